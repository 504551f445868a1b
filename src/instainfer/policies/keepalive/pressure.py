"""Greedy-dual keep-alive: no time limit, the least valuable container goes when memory is needed.

Source: FaaSCache (ASPLOS'21): priority = clock + frequency x (cold - warm) / MB.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from instainfer.policies.base import Conduct, ContainerView

#: A namespace used this recently keeps one container if at all possible: pre-loading needs a container to
#: load into and never creates one, so a tenant without any pays the whole cold start however well its next
#: call was foreseen. An hour spans the gaps of all but the rarest tenants, and lets those go.
ACTIVE_S = 3600.0

#: Between nodes, rests below this do not tell containers apart.
RESTED_S = 60.0

_MB = float(1 << 20)


class _Use(msgspec.Struct):
    """What is remembered of one container's last use."""

    function: str
    clock: float
    cold_s: float
    megabytes: float


class Pressure:
    """Greedy-dual over containers.

    The frequency of a function is its uses over all its live containers, and is lost with the last of them.
    The clock is the priority of the last victim, so that old uses fade with what was evicted since rather
    than with time. A container never used has priority 0: nothing is known to be lost with it.

    The last container of an active namespace (see ACTIVE_S; a busy container counts) goes only if the need
    cannot be covered without it. Nothing goes beyond the need: a victim that the later ones made superfluous
    is spared, where FaaSCache would let it go.
    """

    conduct: Conduct = Conduct()

    def __init__(self) -> None:
        self._clock = 0.0
        self._uses: dict[str, _Use] = {}  # by container
        self._frequency: dict[str, int] = {}  # by function
        self._live: dict[str, int] = {}  # by function: containers that it used last

    def used(self, container: ContainerView, now: float, *, cold_s: float) -> None:
        function = container.owner
        before = self._uses.get(container.id)
        if before is None or before.function != function:
            self._live[function] = self._live.get(function, 0) + 1
            if before is not None:
                self._left(before.function)
        self._frequency[function] = self._frequency.get(function, 0) + 1
        self._uses[container.id] = _Use(function, self._clock, max(cold_s, 0.0), max(container.limit / _MB, 1.0))

    def gone(self, container: str) -> None:
        use = self._uses.pop(container, None)
        if use is not None:
            self._left(use.function)

    def expires_at(self, container: ContainerView) -> float | None:
        return None

    def victims(
        self, containers: Sequence[ContainerView], need: int, now: float, *, alive: Sequence[ContainerView]
    ) -> list[str]:
        if need <= 0:
            return []
        able = [one for one in containers if one.idle and not one.pinned]
        able.sort(key=lambda one: (self.priority(one.id), one.last_used, one.id))
        count: dict[str, int] = {}
        active: set[str] = set()  # only asked for membership
        for one in alive:
            count[one.namespace] = count.get(one.namespace, 0) + 1
            if not one.idle or now - one.last_used <= ACTIVE_S:
                active.add(one.namespace)

        chosen: list[ContainerView] = []
        spared: list[ContainerView] = []
        for one in able:
            if need <= 0:
                break
            if one.namespace in active and count.get(one.namespace, 0) <= 1:
                spared.append(one)
                continue
            count[one.namespace] = count.get(one.namespace, 0) - 1
            chosen.append(one)
            need -= one.limit
        for one in spared:
            if need <= 0:
                break
            chosen.append(one)
            need -= one.limit
        if need > 0:
            return []
        for one in reversed(chosen):
            if need + one.limit <= 0:
                chosen.remove(one)
                need += one.limit
        self._clock = max(self._clock, *(self.priority(one.id) for one in chosen))
        return [one.id for one in chosen]

    def weigh(self, container: ContainerView, now: float) -> float:
        """Its function's uses x the seconds that each would have cost cold, over the time since its last one.
        Priorities do not tell nodes apart: they are relative to a clock, and per MB."""
        use = self._uses.get(container.id)
        if use is None:
            return 0.0
        return self._frequency[use.function] * use.cold_s / max(now - container.last_used, RESTED_S)

    def priority(self, container: str) -> float:
        use = self._uses.get(container)
        if use is None:
            return 0.0
        return use.clock + self._frequency[use.function] * use.cold_s / use.megabytes

    def _left(self, function: str) -> None:
        self._live[function] -= 1
        if not self._live[function]:
            del self._live[function], self._frequency[function]
