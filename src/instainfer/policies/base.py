"""Protocols of the policies and the snapshots that they see.

A policy never sees the platform's own objects: it gets frozen views and returns plain decisions. All times
are seconds on the platform's clock, all sizes bytes. Everything must be deterministic: equal calls, equal
answers, independent of hash seeds (sort before iterating over a set).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

from instainfer.model import Function, Level

#: Horizon over which an arrival probability is stated, seconds (baselines: where the papers are silent, 60 s).
HORIZON_S = 60.0


class Predictor(Protocol):
    """One question: how many arrivals per second of f, now, given its history?"""

    def observe(self, function: str, now: float) -> None:
        """An arrival. Called for every one, in order of time; must be cheap (the request path)."""
        ...

    def forget(self, function: str) -> None: ...

    def rate(self, function: str, now: float) -> float:
        """Arrivals per second expected at `now`; 0.0 for a function never seen."""
        ...

    def probability(self, function: str, now: float, horizon_s: float = HORIZON_S) -> float:
        """Probability of at least one arrival in (now, now + horizon]."""
        ...

    def last(self, function: str) -> float | None:
        """Time of the last arrival, or None."""
        ...


@runtime_checkable
class Quantiles(Predictor, Protocol):
    """A predictor that knows how the gap after an arrival is spread."""

    def quantile(self, function: str, p: float) -> float:
        """Seconds after the last arrival by when the next one has come with probability `p`; infinite where
        that is not known."""
        ...


class ResidentView(msgspec.Struct, frozen=True, kw_only=True):
    """An instance in a container, as a policy sees it."""

    instance: str
    function: str
    level: Level  # reached, or being reached
    bytes: int  # it holds (measured, or expected while it loads)
    evictable: bool  # not running, not loading, nobody waits for it
    stale: bool = False  # of an older revision


class ContainerView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    node: str
    namespace: str
    owner: str  # the function that ran last
    limit: int
    free: int  # limit - bytes of its instances
    idle: bool  # nothing runs or loads in it: an item may be loaded into it now
    created: float
    last_used: float  # last invocation finished (created, if none); pre-loads never move it
    uses: int
    residents: tuple[ResidentView, ...] = ()
    mounts: tuple[str, ...] = ()
    pinned: bool = False
    closed: bool = False  # its node is out of reach or is being emptied: what is in it does not count as there


class FunctionView(msgspec.Struct, frozen=True, kw_only=True):
    """A function as a pre-load policy sees it. `ready` is the best level of any of its instances that could
    serve a request at once (or will when its running load ends)."""

    name: str
    namespace: str
    libraries: str
    mounts: tuple[str, ...]
    import_s: float
    load_s: float  # load + warm-up: what level LOADED saves beyond IMPORTED
    imported_bytes: int
    loaded_bytes: int  # cumulative
    ready: Level
    blocked: bool = False  # a pre-load of it failed lately: leave it alone
    service_s: float = 0.0  # of a call, about
    concurrency: int = 1  # calls that an instance takes at a time


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a pre-load decision may rest on. Sorted by name/id."""

    functions: tuple[FunctionView, ...]
    containers: tuple[ContainerView, ...]
    load_slots: dict[str, int]  # node -> further loads it can take now
    guests: dict[str, bool]  # node -> may a container hold other functions than its owner?


class Conduct(msgspec.Struct, frozen=True, kw_only=True):
    """How those are served for whom memory is missing. The defaults are the core's own way."""

    in_line: bool = False  # while one waits for memory, no function that came later gets any that is free
    whole: bool = False  # make room for the whole container, whatever is free, where that much can go
    drops: bool = False  # refuse at once what no eviction makes room for, and nothing there will serve
    spare: bool = False  # what is created ahead of requests (Prewarms) comes on top of what idles


class KeepAlive(Protocol):
    """The cold-start manager: alone decides how long a container lives."""

    conduct: Conduct

    def used(self, container: ContainerView, now: float, *, cold_s: float) -> None:
        """An invocation finished in it; `cold_s` is what a cold start of its function costs beyond a warm one."""
        ...

    def gone(self, container: str) -> None: ...

    def expires_at(self, container: ContainerView) -> float | None:
        """When this idle container is to be destroyed, or None for no time limit."""
        ...

    def victims(
        self, containers: Sequence[ContainerView], need: int, now: float, *, alive: Sequence[ContainerView]
    ) -> list[str]:
        """Idle containers (ids, in order) out of `containers` to destroy so that at least `need` bytes of
        limits come free; [] when they do not cover it. `alive`: all containers, the busy ones included, also of
        other nodes than theirs."""
        ...

    def weigh(self, container: ContainerView, now: float) -> float:
        """What is lost with this one. Of several nodes that could make room that one does where the sum of what it
        would lose is least; 0 or more."""
        ...


@runtime_checkable
class Prewarms(Protocol):
    """What a keep-alive policy has beside, if containers are also to be created ahead of requests."""

    def arrived(self, function: str, now: float) -> None:
        """A request came. Called for every one, in order of time; must be cheap (the request path)."""
        ...

    def forget(self, function: str) -> None: ...

    def prewarm(self, now: float) -> tuple[list[str], float | None]:
        """Functions that are to have a container from now on, each told once, and when to ask next. One that
        has an idle container (see Conduct.spare), or whose container does not fit into free memory, is passed
        over."""
        ...


@runtime_checkable
class Lends(Protocol):
    """What a keep-alive policy has beside, if containers are to pass from one function of a tenant to another."""

    def strips(self, container: ContainerView, now: float) -> bool:
        """Its time is over: is it to be emptied and kept, rather than destroyed? Its next end must be later."""
        ...

    def lend(self, function: str, offered: Sequence[ContainerView], now: float) -> str | None:
        """Which of these idle containers of its tenant a request of `function` takes over, that would have to
        have one created; None: none of them."""
        ...


@runtime_checkable
class Layers(Lends, Protocol):
    """What one that lends has beside, if containers are not always emptied altogether."""

    def imports(self, container: ContainerView, now: float) -> bool:
        """It has just been said to be emptied: are its owner's libraries to be in it all the same? They are loaded
        anew when the rest is gone, as nothing comes down from LOADED to IMPORTED."""
        ...


@runtime_checkable
class Watches(Protocol):
    """What a keep-alive policy has beside, if it has to know what there is to be kept alive."""

    def deployed(self, function: Function, now: float) -> None:
        """A new function, or another revision of one, with the costs that are known by then."""
        ...

    def created(self, container: ContainerView, now: float) -> None:
        """A container is ready. One that is idle was created ahead of requests; the other one was waited for."""
        ...


@runtime_checkable
class Periodic(Protocol):
    """What a predictor has beside, if it tells timers."""

    def period(self, function: str) -> float | None:
        """Seconds between its arrivals, where the last ones agree."""
        ...


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A thing to have in memory: a function at a level. `level` IMPORTED is its libraries, LOADED its model
    on top of them (an item of its own, whose value and weight are what it adds)."""

    function: str
    namespace: str
    level: Level
    value: float  # expected seconds of latency saved per second of holding it: rate x seconds that it saves
    weight: int  # bytes beyond the level below
    mounts: tuple[str, ...] = ()


class Held(msgspec.Struct, frozen=True, kw_only=True):
    instance: str
    function: str
    level: Level
    value: float
    bytes: int


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """A container's idle memory. `held` are evictable items in it with their present values; `fixed` names
    functions that are in it and cannot go (their items must not be placed again)."""

    container: str
    namespace: str
    node: str
    free: int
    open: bool = True  # may something be loaded into it now?
    own: str = ""  # if set, only this function may be placed (sandbox without guests)
    mounts: tuple[str, ...] = ()
    held: tuple[Held, ...] = ()
    fixed: tuple[str, ...] = ()


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Load `function` up to `level` into `container`, after off-loading `displaced` (instance ids in it)."""

    function: str
    level: Level
    container: str
    displaced: tuple[str, ...] = ()
    value: float = 0.0
    weight: int = 0


class Placement(Protocol):
    """Multiple knapsack over idle memory."""

    def place(self, bins: Sequence[Bin], items: Sequence[Item]) -> list[Assignment]:
        """At most one assignment per function and per open bin's loading turn is used by the caller now;
        the list is in order of density (value per byte), best first. Never displaces more value than it
        places, nor anything in order to place what fits without."""
        ...


class Preload(msgspec.Struct, frozen=True, kw_only=True):
    """One decision of a pre-load policy, with its grounds in numbers."""

    function: str
    level: Level
    container: str
    displaced: tuple[str, ...]
    rule: str
    rate: float
    probability: float
    saves_s: float
    weight: int


class Offload(msgspec.Struct, frozen=True, kw_only=True):
    instance: str
    rule: str
    rate: float
    probability: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    preloads: tuple[Preload, ...] = ()
    offloads: tuple[Offload, ...] = ()
    wake_at: float | None = None  # decide again then, if nothing happens before


class PreloadPolicy(Protocol):
    """A mode: which function at which level in which container. Gets a forecast, never a raw history."""

    #: the papers' rule: all others in a container end, and their data are erased, before one runs
    ends_co_residents: bool
    #: False: `plan` is always empty, and need not be shown everything to say so
    plans: bool

    def plan(self, snapshot: Snapshot, forecast: Predictor, now: float) -> Plan: ...


class LibrariesView(msgspec.Struct, frozen=True, kw_only=True):
    """The libraries that some functions share, as a policy sees them."""

    name: str
    bytes: int  # of a zygote that has imported them
    functions: tuple[tuple[str, float], ...]  # those that can be forked, and seconds that it saves each start
    not_on: tuple[str, ...] = ()  # nodes where it failed lately


class ZygoteView(msgspec.Struct, frozen=True, kw_only=True):
    zygote: str
    libraries: str
    bytes: int
    complete: bool  # it has all that its functions import
    ending: bool = False  # its memory is on its way back


class ShelfView(msgspec.Struct, frozen=True, kw_only=True):
    """What one node has for zygotes."""

    node: str
    cap: int  # bytes that they may take in all
    free: int  # bytes of the node that nothing was promised to
    slots: int  # further imports or loads that it can take now
    zygotes: tuple[ZygoteView, ...]


class Import(msgspec.Struct, frozen=True, kw_only=True):
    """Start a zygote of `libraries` on `node`, after ending `displaced` (zygotes there); in place of the one
    that is there when it is complete."""

    libraries: str
    node: str
    displaced: tuple[str, ...]
    rule: str
    value: float  # expected seconds saved per second, there
    saves_s: float  # a start of the function that gains most
    weight: int


class LibraryPolicy(Protocol):
    """Which libraries are kept imported on which node."""

    def value(self, libraries: LibrariesView, forecast: Predictor, now: float) -> float:
        """Expected seconds of latency saved per second of holding a zygote of them; what has least goes first."""
        ...

    def plan(
        self, libraries: Sequence[LibrariesView], shelves: Sequence[ShelfView], forecast: Predictor, now: float
    ) -> list[Import]:
        """In the order in which they are to be carried out. One that has to wait for memory which is on its way
        back is in the list, so that nothing else takes that."""
        ...
