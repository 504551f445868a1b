"""What the core remembers: functions, containers, instances, requests, and the views of them for policies.
Libraries and their zygotes are in libraries.py."""

from __future__ import annotations

from collections import deque
from math import log2
from typing import NamedTuple

import msgspec

from instainfer.core.actions import AnyAction, SetTimer, Why
from instainfer.core.ledger import Ledger
from instainfer.core.libraries import Libraries, Zygote
from instainfer.core.lifecycle import Lifecycle
from instainfer.core.prices import Price, price, saved_by_fork
from instainfer.core.views import Views
from instainfer.model import Costs, Function, Level, Origin
from instainfer.policies.base import (
    ContainerView,
    KeepAlive,
    Layers,
    Lends,
    LibraryPolicy,
    PreloadPolicy,
    Prewarms,
    ResidentView,
    Snapshot,
    Watches,
)
from instainfer.policies.libraries import MostSaved
from instainfer.policies.predict.forecast import Forecast

TICK_S = 0.05  # placement passes are at least this far apart: a burst of events makes one pass
BACKOFF_S = 30.0  # what failed is left alone for so long: doubles each time, up to an hour
ABSENT_S = 600.0  # a node that was lost is expected back for so long
PRESSURE = 0.95  # of a container's limit: beyond it guests go, lowest value first, before the kernel chooses
FILES_S = 3600.0  # files that were read are taken to stay in a node's memory for so long
PATIENCE_S = 30.0  # pre-loads wait this long for a zygote of their libraries that is being started


def backoff_s(failures: int) -> float:
    return min(BACKOFF_S * 2.0 ** min(failures - 1, 7), 3600.0)


class Request:
    __slots__ = ("arrived", "dispatched", "function", "id", "instance", "unread")

    def __init__(self, id: int, function: FunctionState, arrived: float) -> None:
        self.id = id
        self.function = function
        self.arrived = arrived
        self.dispatched = arrived
        self.instance: Instance | None = None
        self.unread = 0  # instances that it was sent to and that died before they had read it


class Instance(Lifecycle):
    __slots__ = (
        "bytes", "container", "for_request", "frozen", "function", "id", "interrupted", "level", "origin",
        "parent", "ready_at", "revision", "running", "served", "started", "started_level", "target",
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
        expected = function.next_price(container.node)
        self.origin = expected.origin  # until it says how it began
        self.parent = function.zygote(container.node)  # that it is forked from, if it is
        self.bytes = expected.bytes(target)
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
    def serving(self) -> bool:
        """Does it take requests, now or when those that it runs are done?"""
        return self.state in ("ready", "running") and not self.stale and not self.container.closed

    @property
    def evictable(self) -> bool:
        """Not running, not loading, and nobody waits for it."""
        return self.state in ("ready", "imported") and (self.stale or not self.function.queue)


class Container(Lifecycle):
    __slots__ = (
        "active", "clearing", "closed", "created", "doomed", "id", "imports", "instances", "last_used",
        "leaves_by", "limit", "mounts", "namespace", "node", "owner", "replaces", "reserved", "suspended",
        "thawed", "timer", "uses",
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
        self.doomed = False  # its owner was deleted, or its node is being emptied
        self.closed = False  # its node takes nothing new
        self.leaves_by: float | None = None  # it serves until what it has stands elsewhere, or until then
        self.replaces = ""  # the container that leaves, for which this one is made
        self.timer: float | None = None  # when its expiry is looked at next
        self.imports = False  # its owner's libraries are to be imported when it is empty

    @property
    def tenant(self) -> str:
        return self.owner.partition("/")[0]

    @property
    def used(self) -> int:
        return sum(instance.bytes for instance in self.instances.values())

    @property
    def free(self) -> int:
        return self.limit - self.used

    def room(self, function: FunctionState) -> int:
        """Bytes that an instance of it may take ahead of requests: a guest that filled the container to its limit
        would have to go again at the first look at what it holds."""
        return (self.limit if self.owner == function.spec.name else int(PRESSURE * self.limit)) - self.used

    @property
    def leaving(self) -> bool:
        return self.leaves_by is not None

    @property
    def stays(self) -> bool:
        """Does what is in it count as there, for whoever looks ahead?"""
        return not self.closed and self.leaves_by is None

    @property
    def idle(self) -> bool:
        return self.state == "ready" and self.active is None and self.suspended is None

    @property
    def quiet(self) -> bool:
        """Nothing runs in it and nobody waits for anything in it: the keep-alive policy may end it, whatever
        is being pre-loaded (a pre-load never lengthens a container's life)."""
        if self.state != "ready" or self.clearing is not None or self.reserved is not None:
            return False
        for instance in self.instances.values():
            if instance.running or (instance.function.queue and not instance.stale and not self.closed):
                return False
        return True

    @property
    def open(self) -> bool:
        """May something be loaded into it now?"""
        if self.closed or self.doomed or self.leaving:
            return False
        return self.idle and self.clearing is None and self.reserved is None

    def of(self, function: FunctionState) -> Instance | None:
        for instance in self.instances.values():
            if instance.function is function and not instance.stale and instance.state != "ending":
                return instance
        return None


class FunctionState:
    __slots__ = (
        "blocked_until", "clones", "creating", "deleted", "failures", "fresh_s", "instances", "latest",
        "libraries", "parked", "pinned", "queue", "read_on", "service_s", "spawned_beside", "spec", "squeezed",
        "timer", "usual_s",
    )  # fmt: skip

    def __init__(self, spec: Function) -> None:
        self.spec = spec
        self.queue: deque[Request] = deque()
        self.instances: dict[str, Instance] = {}
        self.creating: dict[str, Container] = {}  # containers being created for it
        self.latest: Instance | None = None  # dispatched to last: the fast path looks here first
        self.service_s = self.usual_s = 0.0
        self.takes(spec.costs.warm_s)
        self.pinned = False
        self.parked = False  # off-loaded by hand: not pre-loaded again before somebody asks for it
        self.failures = 0
        self.squeezed = 0  # instances in a row that had to go before they served, since they held too much
        self.blocked_until = 0.0
        self.deleted = False
        self.timer: float | None = None
        self.libraries: Libraries | None = None  # that it may be forked with
        # What did not begin as it should have is expected to do so again once another has.
        self.spawned_beside = ""  # the zygote that it was not forked from
        self.clones = True
        self.read_on: dict[str, float] = {}  # by node: when this version was last loaded there
        self.fresh_s = 0.0  # that a load takes longer where it was not; 0: not measured, or none

    def zygote(self, node: str | None = None) -> str:
        """The one that an instance is forked from, on `node` or (None) anywhere; "" if there is none."""
        libraries = self.libraries
        return libraries.serving(self.spec, node, but=self.spawned_beside) if libraries is not None else ""

    def price_on(self, node: str | None = None) -> Price:
        """Of an instance where there is none yet, on `node` or (None) wherever it is best."""
        return price(self.spec.costs, Origin.FORKED if self.zygote(node) else Origin.SPAWNED)

    def next_price(self, node: str | None = None) -> Price:
        """Of one more instance beside those that are there: a clone, where one of them can be the template."""
        if self.spec.cloneable and self.clones and self.has_template(node):
            return price(self.spec.costs, Origin.CLONED)
        return self.price_on(node)

    def files_on(self, node: str, now: float) -> bool:
        """Was it loaded there lately, so that its files are in memory?"""
        return self.read_on.get(node, -FILES_S) > now - FILES_S

    def has_template(self, node: str | None = None, but: Instance | None = None) -> bool:
        return any(
            instance.state in ("ready", "running")
            and not instance.stale
            and instance is not but
            and (node is None or instance.container.node == node)
            for instance in self.instances.values()
        )

    def takes(self, service_s: float) -> None:
        """Moving average of inference; and what is shown of it to policies, which changes seldom."""
        self.service_s = service_s
        self.usual_s = 2.0 ** (round(2.0 * log2(service_s)) / 2.0) if service_s > 0.0 else 0.0

    def learn(self, **costs: float) -> None:
        self.spec = msgspec.structs.replace(self.spec, costs=msgspec.structs.replace(self.spec.costs, **costs))

    @property
    def costs(self) -> Costs:
        return self.spec.costs

    @property
    def cold_s(self) -> float:
        """What a cold start costs beyond a warm one, seconds."""
        costs = self.spec.costs
        cold_s = costs.container_s + costs.loading_s
        return cold_s - saved_by_fork(costs) if self.libraries is not None and self.zygote() else cold_s

    def best_level(self, *, anywhere: bool = True) -> Level:
        """The best level that an instance has reached or is about to reach; also (`anywhere`) on a node that takes
        nothing new, and where it leaves."""
        best = Level.NONE
        for instance in self.instances.values():
            state = instance.state
            if state == "ending" or state == "gone" or instance.stale:
                continue
            if not (anywhere or instance.container.stays):
                continue
            level = instance.target if state == "loading" and instance.target > instance.level else instance.level
            if level > best:
                best = level
        return best


class Promise(NamedTuple):
    """A pre-load for which others had to go: it follows as soon as they are gone. Were it weighed anew then, with
    the room empty, something smaller might come before it, and be displaced by it again."""

    function: str
    level: Level
    why: Why


class Orphan(NamedTuple):
    """A container that its keep-alive policy had not ended when its node was lost or left."""

    container: str
    function: str  # its owner
    last_used: float
    uses: int
    until: float  # it is made anew before then, or not at all

    @classmethod
    def of(cls, container: Container, until: float) -> Orphan:
        return cls(container.id, container.owner, container.last_used, container.uses, until)


class State:
    """Everything, and the actions of the event at hand."""

    def __init__(
        self,
        forecast: Forecast,
        keep_alive: KeepAlive,
        policy: PreloadPolicy,
        library_policy: LibraryPolicy | None = None,
        *,
        queue_limit: int = 1000,
        era: str = "",
    ) -> None:
        """`era`: part of every id, where ids outlive the controller that gave them."""
        self.forecast = forecast
        self.keep_alive = keep_alive
        self.lends = keep_alive if isinstance(keep_alive, Lends) else None
        self.layers = keep_alive if isinstance(keep_alive, Layers) else None
        self.prewarms = keep_alive if isinstance(keep_alive, Prewarms) else None
        self.watches = keep_alive if isinstance(keep_alive, Watches) else None
        self.policy = policy
        self.library_policy: LibraryPolicy = library_policy or MostSaved()
        self.queue_limit = queue_limit
        self.era = era
        self.ledger = Ledger()
        self.closed: set[str] = set()  # nodes that take nothing new
        self.leaving: dict[str, float] = {}  # nodes that are emptied, and by when: till then they serve
        self.orphans: dict[str, Orphan] = {}  # by container
        self.uneven = False  # a node has come: containers may move there
        self.look_at: float | None = None  # when what moves is looked at next
        self.restless_at = 0.0  # when something was last seen to come up on nodes that stay
        self.absent: dict[str, tuple[int, float]] = {}  # nodes that were lost: their bytes, and when
        self.guests: dict[str, bool] = {}
        self.load_slots: dict[str, int] = {}
        self.allowances: dict[str, int] = {}  # by namespace: bytes of its containers' limits; not there: no limit
        self.zygote_memory: dict[str, int] = {}  # by node: bytes that zygotes may take in all
        self.libraries: dict[tuple[str, str], Libraries] = {}  # by namespace and key
        self.zygotes: dict[str, Zygote] = {}
        self.functions: dict[str, FunctionState] = {}
        self.containers: dict[str, Container] = {}
        self.instances: dict[str, Instance] = {}
        self.requests: dict[int, Request] = {}
        self.views = Views()
        self.starved: dict[str, FunctionState] = {}  # wait for memory, in order
        self.promised: dict[str, Promise] = {}  # by container
        self.pass_at: float | None = None
        self.passed_at = float("-inf")
        self.prewarm_at: float | None = None
        self.out: list[AnyAction] = []
        self.now = 0.0
        self._counter = 0

    def next_id(self, prefix: str) -> str:
        self._counter += 1
        return f"{prefix}{self._counter}{self.era}"

    @property
    def open_nodes(self) -> list[str]:
        """Those that something new may go to."""
        nodes = self.ledger.nodes
        if not (self.closed or self.leaving):
            return nodes
        return [node for node in nodes if node not in self.closed and node not in self.leaving]

    def homeless(self, function: FunctionState) -> bool:
        """Is there no node that could hold its container if all else there went? It waits for one, in nobody's
        way."""
        return all(self.ledger.memory(node) < function.spec.memory for node in self.open_nodes)

    def returning(self, size: int) -> str:
        """A node that was lost lately and had so many bytes, which none that is there has; "" if there is none."""
        since = self.now - ABSENT_S
        for node, (memory, lost_at) in sorted(self.absent.items()):
            if memory >= size and lost_at > since:
                return node
        return ""

    def ask_for_pass(self, at: float | None = None) -> None:
        """A placement pass soon (or at `at`); passes asked for meanwhile are one."""
        at = max(self.now + TICK_S if at is None else at, self.passed_at + TICK_S)
        if self.pass_at is None or at < self.pass_at:
            self.pass_at = at
            self.out.append(SetTimer(timer="placement", at=at))

    def loads_running(self, node: str) -> int:
        """Loads, and imports of zygotes."""
        loads = sum(
            1
            for container in self.containers.values()
            if container.node == node and container.active is not None and container.active.state == "loading"
        )
        return loads + sum(1 for z in self.zygotes.values() if z.node == node and z.state == "starting")

    def value(self, instance: Instance) -> float:
        """Expected seconds saved per second and byte by keeping it: what decides who dies first."""
        if instance.stale or instance.function.deleted:
            return 0.0
        again = instance.function.price_on(instance.container.node)
        saves = again.loading_s if instance.level >= Level.LOADED else again.import_s
        return self.forecast.rate(instance.function.spec.name, self.now) * saves / max(instance.bytes, 1)

    # ---- views -------------------------------------------------------------------------------------------

    def view(self, container: Container, *, residents: bool = True) -> ContainerView:
        free = 0
        shown: list[ResidentView] = []
        if residents:
            # to what others may fill it; where there are no others, to its owner's limit
            free = int(PRESSURE * container.limit) if self.guests.get(container.node, True) else container.limit
            for instance in container.instances.values():
                free -= instance.bytes
                stale = instance.stale
                evictable = (
                    (instance.state == "ready" or instance.state == "imported")
                    and (stale or not instance.function.queue)
                    and container.clearing is not instance
                )
                shown.append(self.views.resident(instance, evictable=evictable, stale=stale))
        return ContainerView(
            id=container.id,
            node=container.node,
            namespace=container.namespace,
            owner=container.owner,
            limit=container.limit,
            free=free,
            idle=container.open and container.id not in self.promised,
            created=container.created,
            last_used=container.last_used,
            uses=container.uses,
            residents=tuple(shown),
            mounts=container.mounts,
            pinned=self.pinned(container),
            closed=not container.stays,
        )

    def pinned(self, container: Container) -> bool:
        owner = self.functions.get(container.owner)
        if owner is not None and owner.pinned:
            return True
        return any(instance.function.pinned for instance in container.instances.values())

    def snapshot(self) -> Snapshot:
        """A function is priced as a fork if it would be one in every container that may hold it: a policy does
        not tell nodes apart, and what it places has to fit."""
        nodes: dict[str, dict[str | None, None]] = {}  # by zone, as ordered sets
        for container in self.containers.values():
            if container.state == "ready":
                nodes.setdefault(container.namespace, {})[container.node] = None
        nowhere: dict[str | None, None] = {None: None}
        functions = []
        now, patience, at_rest = self.now, self.now - PATIENCE_S, self.views.at_rest
        promised = {promise.function for promise in self.promised.values()}
        for name in sorted(self.functions):
            function = self.functions[name]
            libraries = function.libraries
            if not (function.instances or libraries or function.creating or function.parked) and name in at_rest:
                spec, view = at_rest[name]
                same = spec is function.spec and view.service_s == function.usual_s
                if same and function.blocked_until <= now and name not in promised:
                    functions.append(view)
                    continue
            forked = blocked = False
            if libraries is not None:
                forked = all(map(function.zygote, nodes.get(function.spec.zone, nowhere)))
                blocked = libraries.importing(patience)
            if function.creating or name in promised:  # it will be loaded there
                blocked = True
            blocked = blocked or function.parked or function.blocked_until > now
            functions.append(self.views.function(function, forked=forked, blocked=blocked))
        self.views.forget(self.functions, self.instances)
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
