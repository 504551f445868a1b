"""What a cache of the idle memory's size would hold: the common part of the caches' modes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from instainfer.model import Level
from instainfer.policies.base import (
    Assignment,
    Bin,
    FunctionView,
    Held,
    Item,
    Plan,
    Predictor,
    Preload,
    Snapshot,
)
from instainfer.policies.preload.bins import Copies, bins_of, megabytes, this_turn
from instainfer.policies.preload.timers import loading


class Cached(ABC):
    """A function that was called belongs into memory, and what ranks lowest makes room. Items are (function,
    level): a whole function where that fits, its libraries alone where they do.

    A cache is filled by calls; here a call fills its own container, and what a function needs is lost with that.
    So the mode brings back, ahead of the next call, what the cache would still have. It foresees nothing and
    off-loads nothing while there is room.
    """

    ends_co_residents = False
    plans = True
    name: str

    def __init__(self) -> None:
        self.placement = Ranked()

    @abstractmethod
    def ranks(self, views: Iterable[FunctionView], forecast: Predictor) -> dict[str, tuple[float, float]]:
        """Of every function that was ever called its rank at IMPORTED and at LOADED; the lowest goes first."""

    def gave_way(self, ranks: list[float]) -> None:  # noqa: B027 - most caches need not know
        """What had these ranks is displaced. Nothing to learn."""

    def plan(self, snapshot: Snapshot, forecast: Predictor, now: float) -> Plan:
        views = {view.name: view for view in snapshot.functions}
        copies = Copies(snapshot)
        ranks = self.ranks(snapshot.functions, forecast)

        def worth(function: str, level: Level) -> float:
            imported, loaded = ranks.get(function, (0.0, 0.0))
            return loaded if level >= Level.LOADED else imported

        items: list[Item] = []
        for view in snapshot.functions:
            if view.name in ranks and copies.wanted(view):
                items += _items(view, *ranks[view.name])
        preloads: list[Preload] = []
        bins = bins_of(snapshot, copies, worth) if items else []
        values = {held.instance: held.value for bin in bins for held in bin.held}
        for one in this_turn(snapshot, self.placement.place(bins, items)):
            view = views[one.function]
            saves = _saves(view, one.level)
            preloads.append(
                Preload(
                    function=one.function,
                    level=one.level,
                    container=one.container,
                    displaced=one.displaced,
                    rule=f"{self.name} would have it: saves {saves:.2f} s, {megabytes(one.weight)}",
                    rate=forecast.rate(one.function, now),
                    probability=forecast.probability(one.function, now),
                    saves_s=saves,
                    weight=one.weight,
                )
            )
        self.gave_way([values[instance] for one in preloads for instance in one.displaced])
        return Plan(preloads=tuple(preloads))


def _saves(view: FunctionView, level: Level) -> float:
    if view.ready >= Level.IMPORTED:
        return view.load_s
    return loading(view) if level >= Level.LOADED else view.import_s


def _items(view: FunctionView, imported: float, loaded: float) -> list[Item]:
    """Those that would save anything; weights are of the whole."""
    found = []
    for level, rank, weight in (
        (Level.IMPORTED, imported, view.imported_bytes),
        (Level.LOADED, loaded, view.loaded_bytes),
    ):
        if view.ready < level and _saves(view, level) > 0.0:
            found.append(
                Item(
                    function=view.name,
                    namespace=view.namespace,
                    level=level,
                    value=rank,
                    weight=weight,
                    mounts=view.mounts,
                )
            )
    return found


class Ranked:
    """Highest rank first (of equals the higher level, then by name), one item of each function: into the bin
    that it fills most tightly, or else where what has to go ranks lowest, and all of it below the item. What
    was placed stays; ranks are never added up. An item's weight is the whole of it; where its function is at a
    lower level already, that instance is raised and what it holds counts."""

    def place(self, bins: Sequence[Bin], items: Sequence[Item]) -> list[Assignment]:
        rooms = [_Room(bin) for bin in bins if bin.open]
        placed: set[str] = set()
        chosen: list[Assignment] = []
        for item in sorted(items, key=lambda one: (-one.value, -one.level, one.function)):
            if item.function in placed:
                continue
            offers = [offer for room in rooms if (offer := room.offer(item)) is not None]
            if not offers:
                continue
            _, _, room, weight, victims = min(offers, key=lambda offer: (*offer[:2], offer[2].bin.container))
            room.take(weight, victims, item.function)
            placed.add(item.function)
            chosen.append(
                Assignment(
                    function=item.function,
                    level=item.level,
                    container=room.bin.container,
                    displaced=tuple(held.instance for held in victims),
                    value=item.value,
                    weight=weight,
                )
            )
        return chosen


class _Room:
    """An open bin while it is being filled."""

    def __init__(self, bin: Bin) -> None:
        self.bin = bin
        self.free = bin.free
        self.held = sorted(bin.held, key=lambda one: (one.value, one.instance))

    def offer(self, item: Item) -> tuple[float, int, _Room, int, list[Held]] | None:
        """(highest rank that goes, room left, this, bytes it takes, what goes), or None."""
        bin = self.bin
        if bin.namespace != item.namespace or bin.own not in ("", item.function) or item.function in bin.fixed:
            return None
        if not set(item.mounts) <= set(bin.mounts):
            return None
        there = [held for held in self.held if held.function == item.function and held.level]
        if any(held.level >= item.level for held in there):
            return None
        weight = max(item.weight - sum(held.bytes for held in there), 0)
        short = weight - self.free
        victims: list[Held] = []
        for held in self.held:
            if short <= 0:
                break
            if held not in there and held.value < item.value:
                victims.append(held)
                short -= held.bytes
        if short > 0:
            return None
        return victims[-1].value if victims else -1.0, -short, self, weight, victims

    def take(self, weight: int, victims: list[Held], function: str) -> None:
        self.free += sum(held.bytes for held in victims) - weight
        # What is being raised stays where it is.
        self.held = [held for held in self.held if held not in victims and held.function != function]
