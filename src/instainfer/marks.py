"""What the platform did outside of invocations, and why: the latest of it, for those who look on."""

from __future__ import annotations

from collections import deque

import msgspec

from instainfer.clock import Clock
from instainfer.core import actions as act

#: What becomes of a node. `node_silent`: it is not heard of; `node_heard`: again, before it was lost.
NODES = ("node_joined", "node_silent", "node_heard", "node_lost", "node_draining", "node_reopened")
MOST = 2_000  # kept, some 2 MB: a reader who falls further behind starts anew


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    number: int  # 1, 2, … since the server started
    wall: float
    what: str  # preload, load, raise, loaded, offload, failed, create, destroy, zygote, end_zygote; NODES
    namespace: str  # "" of what concerns a node: it is the owner's
    function: str = ""  # its name within the namespace; "" where it concerns a whole container or zygote
    container: str = ""
    instance: str = ""
    node: str = ""
    level: str = ""
    seconds: float | None = None  # that it took, of `loaded`
    why: act.Why | None = None


class Marks:
    """A ring, filled as commands are given: never by a request that finds an instance."""

    def __init__(self, clock: Clock) -> None:
        self.latest: deque[Mark] = deque(maxlen=MOST)
        self.count = 0
        self._clock = clock
        # (tenant, node) of containers and zygotes that may be spoken of again
        self._home: dict[str, tuple[str, str]] = {}

    def since(self, number: int) -> list[Mark]:
        """Those after this one, oldest first."""
        new = self.count - number
        if new <= 0:
            return []
        return list(self.latest)[-new:]

    def commanded(self, action: act.AnyAction, function: str, container: str) -> None:
        """`function` and `container`: of the instance that it is about, if it is about one."""
        if isinstance(action, act.Load | act.Raise):
            if isinstance(action, act.Load) and action.waiting:  # it is a part of that request's time
                return
            by_demand = "load" if isinstance(action, act.Load) else "raise"
            self._add(
                "preload" if action.ahead else by_demand,
                function,
                container=container,
                instance=action.instance,
                level=action.level.name.lower(),
                why=action.why,
            )
        elif isinstance(action, act.Offload):
            self._add("offload", function, container=container, instance=action.instance, why=action.why)
        elif isinstance(action, act.CreateContainer):
            self._home[action.container] = action.function.partition("/")[0], action.node
            self._add("create", action.function, container=action.container, why=action.why)
        elif isinstance(action, act.DestroyContainer):
            tenant, _ = self._home.get(action.container, ("", ""))
            self._add("destroy", f"{tenant}/", container=action.container, why=action.why)
        elif isinstance(action, act.StartZygote):
            tenant = action.revisions[0].partition("/")[0] if action.revisions else ""
            self._home[action.zygote] = tenant, action.node
            self._add("zygote", f"{tenant}/", instance=action.zygote, why=action.why)
        elif isinstance(action, act.EndZygote):
            tenant, _ = self._home.get(action.zygote, ("", ""))
            self._add("end_zygote", f"{tenant}/", instance=action.zygote, why=action.why)

    def adopted(self, container: str, function: str, node: str) -> None:
        """It was there before this start of the server; `function` owns it."""
        self._home[container] = function.partition("/")[0], node

    def node(self, node: str, what: str, reason: str = "") -> None:
        """`what`: of NODES."""
        self._add(what, "", node=node, why=act.Why(rule=reason[:300]) if reason else None)

    def loaded(self, function: str, container: str, instance: str, level: str, seconds: float) -> None:
        """What was pre-loaded is there."""
        self._add("loaded", function, container=container, instance=instance, level=level, seconds=seconds)

    def failed(self, function: str, container: str, instance: str, reason: str) -> None:
        said = reason.partition("\n")[0][:300]  # the function's own words may be in it
        self._add("failed", function, container=container, instance=instance, why=act.Why(rule=said))

    def gone(self, name: str) -> None:
        """A container or zygote that is not spoken of again."""
        self._home.pop(name, None)

    def _add(
        self,
        what: str,
        function: str,
        *,
        container: str = "",
        instance: str = "",
        node: str = "",
        level: str = "",
        seconds: float | None = None,
        why: act.Why | None = None,
    ) -> None:
        self.count += 1
        namespace, _, name = function.partition("/")
        self.latest.append(
            Mark(
                number=self.count,
                wall=self._clock.wall(),
                what=what,
                namespace=namespace,
                function=name,
                container=container,
                instance=instance,
                node=node or self._home.get(container or instance, ("", ""))[1],
                level=level,
                seconds=seconds,
                why=why,
            )
        )
