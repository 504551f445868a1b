"""What the core remembers: functions, containers, instances, requests, and the views of them for policies."""

from __future__ import annotations

from collections import deque

import msgspec

from instainfer.core.actions import AnyAction, SetTimer
from instainfer.core.ledger import Ledger
from instainfer.core.lifecycle import Lifecycle
from instainfer.model import Costs, Function, Level
from instainfer.policies.base import (
    ContainerView,
    FunctionView,
    KeepAlive,
    PreloadPolicy,
    ResidentView,
    Snapshot,
)
from instainfer.policies.predict.forecast import Forecast

TICK_S = 0.05  # placement passes are at least this far apart: a burst of events makes one pass


class Request:
    __slots__ = ("arrived", "dispatched", "function", "id", "instance")

    def __init__(self, id: int, function: FunctionState, arrived: float) -> None:
        self.id = id
        self.function = function
        self.arrived = arrived
        self.dispatched = arrived
        self.instance: Instance | None = None


class Instance(Lifecycle):
    __slots__ = (
        "bytes", "container", "for_request", "frozen", "function", "id", "interrupted", "level",
        "ready_at", "revision", "running", "served", "started", "started_level", "target",
    )  # fmt: skip

    def __init__(self, id: str, function: FunctionState, container: Container, target: Level, now: float) -> None:
        super().__init__(f"instance {id} of {function.spec.revision} in {container.id}", "instance", now)
        self.id = id
        self.function = function
        self.revision = function.spec.revision
        self.container = container
        self.level = Level.NONE
        self.started_level = Level.NONE  # where the present load started from
        self.target = target
        self.for_request: int | None = None
        self.bytes = function.expected_bytes(target)
        self.frozen = False
        self.interrupted = 0  # how often a run froze its load
        self.running: dict[int, Request] = {}
        self.served = 0
        self.started = now  # of the present load
        self.ready_at = now

    @property
    def stale(self) -> bool:
        return self.function.deleted or self.revision != self.function.spec.revision

    @property
    def evictable(self) -> bool:
        """Not running, not loading, and nobody waits for it."""
        return self.state in ("ready", "imported") and (self.stale or not self.function.queue)


class Container(Lifecycle):
    __slots__ = (
        "active", "clearing", "created", "doomed", "id", "instances", "last_used", "limit", "mounts",
        "namespace", "node", "owner", "reserved", "suspended", "thawed", "timer", "uses",
    )  # fmt: skip

    def __init__(self, id: str, node: str, function: FunctionState, limit: int, now: float) -> None:
        super().__init__(f"container {id}", "container", now)
        self.id = id
        self.node = node
        self.namespace = function.spec.zone
        self.owner = function.spec.name
        self.mounts: tuple[str, ...] = ()
        self.limit = limit
        self.created = now
        self.last_used = now
        self.uses = 0
        self.instances: dict[str, Instance] = {}
        self.active: Instance | None = None  # the one that loads or runs
        self.thawed: Instance | None = None  # the only one that may execute
        self.suspended: Instance | None = None  # a load that a run has frozen
        self.clearing: Instance | None = None  # waits until all others are gone (strict isolation)
        self.reserved: FunctionState | None = None  # room is being made for this function
        self.doomed = False  # its owner was deleted
        self.timer: float | None = None  # when its expiry is looked at next

    @property
    def used(self) -> int:
        return sum(instance.bytes for instance in self.instances.values())

    @property
    def free(self) -> int:
        return self.limit - self.used

    @property
    def idle(self) -> bool:
        return self.state == "ready" and self.active is None and self.suspended is None

    @property
    def quiet(self) -> bool:
        """Nothing runs in it and nobody waits for anything in it: the keep-alive policy may end it, whatever
        is being pre-loaded (a pre-load never lengthens a container's life)."""
        return (
            self.state == "ready"
            and self.clearing is None
            and self.reserved is None
            and not any(i.running or (i.function.queue and not i.stale) for i in self.instances.values())
        )

    @property
    def open(self) -> bool:
        """May something be loaded into it now?"""
        return self.idle and self.clearing is None and self.reserved is None and not self.doomed

    def of(self, function: FunctionState) -> Instance | None:
        for instance in self.instances.values():
            if instance.function is function and not instance.stale and instance.state != "ending":
                return instance
        return None


class FunctionState:
    __slots__ = (
        "blocked_until", "creating", "deleted", "failures", "instances", "latest", "parked", "pinned", "queue",
        "service_s", "spec", "timer",
    )  # fmt: skip

    def __init__(self, spec: Function) -> None:
        self.spec = spec
        self.queue: deque[Request] = deque()
        self.instances: dict[str, Instance] = {}
        self.creating: dict[str, Container] = {}  # containers being created for it
        self.latest: Instance | None = None  # dispatched to last: the fast path looks here first
        self.service_s = spec.costs.warm_s  # moving average of inference
        self.pinned = False
        self.parked = False  # off-loaded by hand: not pre-loaded again before somebody asks for it
        self.failures = 0
        self.blocked_until = 0.0
        self.deleted = False
        self.timer: float | None = None

    def expected_bytes(self, level: Level) -> int:
        costs = self.spec.costs
        return costs.imported_bytes if level == Level.IMPORTED else costs.loaded_bytes

    def learn(self, **costs: float) -> None:
        self.spec = msgspec.structs.replace(self.spec, costs=msgspec.structs.replace(self.spec.costs, **costs))

    @property
    def costs(self) -> Costs:
        return self.spec.costs

    @property
    def cold_s(self) -> float:
        """What a cold start costs beyond a warm one, seconds."""
        return self.spec.costs.container_s + self.spec.costs.loading_s

    def best_level(self) -> Level:
        """The best level that an instance has reached or is about to reach."""
        best = Level.NONE
        for instance in self.instances.values():
            if not instance.stale and instance.state not in ("ending", "gone"):
                best = max(best, instance.level, instance.target if instance.state == "loading" else Level.NONE)
        return best


class State:
    """Everything, and the actions of the event at hand."""

    def __init__(
        self, forecast: Forecast, keep_alive: KeepAlive, policy: PreloadPolicy, *, queue_limit: int = 1000
    ) -> None:
        self.forecast = forecast
        self.keep_alive = keep_alive
        self.policy = policy
        self.queue_limit = queue_limit
        self.ledger = Ledger()
        self.guests: dict[str, bool] = {}
        self.load_slots: dict[str, int] = {}
        self.functions: dict[str, FunctionState] = {}
        self.containers: dict[str, Container] = {}
        self.instances: dict[str, Instance] = {}
        self.requests: dict[int, Request] = {}
        self.starved: dict[str, FunctionState] = {}  # wait for memory, in order
        self.pass_at: float | None = None
        self.passed_at = float("-inf")
        self.out: list[AnyAction] = []
        self.now = 0.0
        self._counter = 0

    def next_id(self, prefix: str) -> str:
        self._counter += 1
        return f"{prefix}{self._counter}"

    def ask_for_pass(self, at: float | None = None) -> None:
        """A placement pass soon (or at `at`); passes asked for meanwhile are one."""
        at = max(self.now + TICK_S if at is None else at, self.passed_at + TICK_S)
        if self.pass_at is None or at < self.pass_at:
            self.pass_at = at
            self.out.append(SetTimer(timer="placement", at=at))

    def loads_running(self, node: str) -> int:
        return sum(
            1
            for container in self.containers.values()
            if container.node == node and container.active is not None and container.active.state == "loading"
        )

    def value(self, instance: Instance) -> float:
        """Expected seconds saved per second and byte by keeping it: what decides who dies first."""
        if instance.stale or instance.function.deleted:
            return 0.0
        costs = instance.function.costs
        saves = costs.loading_s if instance.level >= Level.LOADED else costs.import_s
        return self.forecast.rate(instance.function.spec.name, self.now) * saves / max(instance.bytes, 1)

    # ---- views -------------------------------------------------------------------------------------------

    def view(self, container: Container, *, residents: bool = True) -> ContainerView:
        return ContainerView(
            id=container.id,
            node=container.node,
            namespace=container.namespace,
            owner=container.owner,
            limit=container.limit,
            free=container.free if residents else 0,
            idle=container.open,
            created=container.created,
            last_used=container.last_used,
            uses=container.uses,
            residents=tuple(
                ResidentView(
                    instance=instance.id,
                    function=instance.function.spec.name,
                    level=instance.target if instance.state == "loading" else instance.level,
                    bytes=instance.bytes,
                    evictable=instance.evictable and container.clearing is not instance,
                    stale=instance.stale,
                )
                for instance in container.instances.values()
            )
            if residents
            else (),
            mounts=container.mounts,
            pinned=self.pinned(container),
        )

    def pinned(self, container: Container) -> bool:
        owner = self.functions.get(container.owner)
        if owner is not None and owner.pinned:
            return True
        return any(instance.function.pinned for instance in container.instances.values())

    def snapshot(self) -> Snapshot:
        functions = []
        for name in sorted(self.functions):
            function = self.functions[name]
            costs = function.costs
            functions.append(
                FunctionView(
                    name=name,
                    namespace=function.spec.zone,
                    libraries=function.spec.libraries,
                    mounts=function.spec.mounts,
                    import_s=costs.import_s,
                    load_s=costs.loading_s - costs.import_s,
                    imported_bytes=costs.imported_bytes,
                    loaded_bytes=costs.loaded_bytes,
                    ready=function.best_level(),
                    blocked=function.parked or function.blocked_until > self.now,
                )
            )
        return Snapshot(
            functions=tuple(functions),
            containers=tuple(
                self.view(container) for container in self.containers.values() if container.state == "ready"
            ),
            load_slots={
                node: max(0, slots - self.loads_running(node)) for node, slots in sorted(self.load_slots.items())
            },
            guests=dict(sorted(self.guests.items())),
        )
