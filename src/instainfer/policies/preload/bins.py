"""A snapshot as bins for the placement, and the assignments that can be made in this turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import exp

from msgspec.structs import replace

from instainfer.model import Level
from instainfer.policies.base import (
    Assignment,
    Bin,
    ContainerView,
    FunctionView,
    Held,
    Item,
    ResidentView,
    Snapshot,
)

#: Share of its worth that a further copy of a function has, where its calls are not looked at more closely: it
#: helps only while the better ones are busy.
FURTHER_COPY = 0.1

#: Worth of having a function at a level: expected seconds of latency saved per second of holding it.
Worth = Callable[[str, Level], float]
#: Share of a function's worth that a copy has beside so many better ones.
Share = Callable[[str, int], float]


def usual(function: str, copies: int) -> float:
    return FURTHER_COPY**copies


def taken(mean: float, places: int) -> float:
    """Probability that a call finds so many others under way, or more, where calls come independently and `mean`
    are under way in the mean: the tail of a Poisson distribution, however long each of them takes."""
    if places <= 0:
        return 1.0
    if mean > 700.0:  # e^-mean is nothing: far above or far below
        return float(mean > places)
    term = below = exp(-mean)
    for calls in range(1, places):
        term *= mean / calls
        below += term
        if calls > mean and term < 1e-12:
            break
    return max(0.0, 1.0 - below)


class Copies:
    """The instances of each function that are up to date, best first."""

    def __init__(self, snapshot: Snapshot) -> None:
        loaded = Level.LOADED
        first: dict[str, ResidentView] = {}
        several: dict[str, list[ResidentView]] = {}
        self._busy: set[str] = set()
        self._nodes: dict[str, list[str]] = {}  # of those that are loaded, or being loaded
        for container in snapshot.containers:
            if container.closed:
                continue
            for resident in container.residents:
                if resident.stale:
                    continue
                function = resident.function
                if function in first:
                    several.setdefault(function, [first[function]]).append(resident)
                else:
                    first[function] = resident
                if resident.level >= loaded:
                    self._nodes.setdefault(function, []).append(container.node)
                    if not resident.evictable:
                        self._busy.add(function)
        self._rank: dict[str, int] = {}  # of those that are not the only one
        for copies in several.values():
            copies.sort(key=lambda one: (-one.level, one.evictable, one.instance))
            self._rank.update((one.instance, rank) for rank, one in enumerate(copies))

    def better(self, resident: ResidentView) -> int:
        """How many copies are better than this one, which is up to date."""
        return self._rank.get(resident.instance, 0)

    def nodes(self, function: str) -> Sequence[str]:
        """Of each copy that is loaded or will be."""
        return self._nodes.get(function, ())

    @property
    def loaded(self) -> Iterable[tuple[str, int]]:
        """Functions that are loaded or will be, and how often."""
        return ((name, len(nodes)) for name, nodes in self._nodes.items())

    def wanted(self, function: FunctionView) -> bool:
        """May a pre-load of it gain anything? Not if it is ready, nor if a copy runs or loads: that one is
        free before long, and whether a request should rather have a second one is known when it comes."""
        return function.ready < Level.LOADED and not function.blocked and function.name not in self._busy


def bins_of(snapshot: Snapshot, copies: Copies, worth: Worth, share: Share = usual) -> list[Bin]:
    """Open are idle containers of nodes with a load to spare. A pinned container gives its free memory only:
    what is in it was asked for by hand."""
    return [_bin(snapshot, container, copies, worth, share) for container in snapshot.containers]


def _bin(snapshot: Snapshot, container: ContainerView, copies: Copies, worth: Worth, share: Share) -> Bin:
    held: list[Held] = []
    fixed: list[str] = []
    for resident in container.residents:
        if not resident.evictable or container.pinned:
            if not resident.stale:
                fixed.append(resident.function)
            continue
        value, level = 0.0, Level.NONE
        if not resident.stale:
            level = resident.level
            value = worth(resident.function, level)
            if better := copies.better(resident):
                value *= share(resident.function, better)
        held.append(
            Held(
                instance=resident.instance,
                function=resident.function,
                level=level,
                value=value,
                bytes=resident.bytes,
            )
        )
    return Bin(
        container=container.id,
        namespace=container.namespace,
        node=container.node,
        free=container.free,
        open=container.idle and snapshot.load_slots.get(container.node, 0) > 0,
        own="" if snapshot.guests.get(container.node, True) else container.owner,
        mounts=container.mounts,
        held=tuple(held),
        fixed=tuple(fixed),
    )


def apart(bins: list[Bin], functions: Iterable[FunctionView], copies: Copies) -> list[Bin]:
    """No further copy of these goes where one is already, as long as another node could take it: a node may go."""
    rooms = [(bin, bin.free + sum(held.bytes for held in bin.held)) for bin in bins if bin.open]
    barred: dict[str, list[str]] = {}  # by node
    for function in functions:
        name, there = function.name, set(copies.nodes(function.name))
        if any(
            size >= function.loaded_bytes
            and bin.node not in there
            and bin.namespace == function.namespace
            and bin.own in ("", name)
            and name not in bin.fixed
            for bin, size in rooms
        ):
            for node in sorted(there):
                barred.setdefault(node, []).append(name)
    if not barred:
        return bins
    return [
        replace(bin, fixed=(*bin.fixed, *barred[bin.node])) if bin.open and bin.node in barred else bin
        for bin in bins
    ]


def items_of(
    function: FunctionView, value_imported: float, value_loaded: float, *, further: bool = False
) -> tuple[Item, ...]:
    """Its two items; libraries that are ready somewhere save nothing once more, but still weigh. There are none of
    a function that is loaded whole or not at all. `further`: of a copy that begins anew."""
    if not function.imported_bytes and value_imported <= 0.0:
        return (
            Item(
                function=function.name,
                namespace=function.namespace,
                level=Level.LOADED,
                value=value_loaded,
                weight=function.loaded_bytes,
                mounts=function.mounts,
            ),
        )
    libraries = Item(
        function=function.name,
        namespace=function.namespace,
        level=Level.IMPORTED,
        value=value_imported if further or function.ready < Level.IMPORTED else 0.0,
        weight=function.imported_bytes,
        mounts=function.mounts,
    )
    model = Item(
        function=function.name,
        namespace=function.namespace,
        level=Level.LOADED,
        value=value_loaded,
        weight=max(function.loaded_bytes - function.imported_bytes, 0),
        mounts=function.mounts,
    )
    return libraries, model


def this_turn(snapshot: Snapshot, assignments: Iterable[Assignment]) -> list[Assignment]:
    """The first assignment into each container, within the loads that its node can take."""
    slots = dict(snapshot.load_slots)
    node = {container.id: container.node for container in snapshot.containers}
    used: set[str] = set()
    now: list[Assignment] = []
    for assignment in assignments:
        where = node[assignment.container]
        if assignment.container not in used and slots.get(where, 0) > 0:
            used.add(assignment.container)
            slots[where] -= 1
            now.append(assignment)
    return now


def megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MB"
