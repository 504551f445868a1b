"""The default mode: what is expected to save most, into memory that nobody needs more."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from math import inf

from instainfer.model import Level
from instainfer.policies.base import (
    Assignment,
    Bin,
    FunctionView,
    Item,
    Placement,
    Plan,
    Predictor,
    Preload,
    Snapshot,
)
from instainfer.policies.predict.forecast import Forecast
from instainfer.policies.preload.bins import Copies, apart, bins_of, items_of, megabytes, taken, this_turn

#: How often to look again while values alone may change what is best. Timers are foreseen ten seconds ahead
#: and loads take about one.
TICK_S = 1.0
#: How far ahead a function without a rate is asked about: is there an announcement that will give it one?
_ANNOUNCED_S = 86400.0
#: Of a further copy: what fewer calls would use is not worth its load.
LEAST_SHARE = 0.1


class HazardPreload:
    """Value of a function at a level = arrivals per second expected now x seconds that the level saves. A further
    copy has of that the share of calls which find all others taken; while a node could go, that is on another one.

    Never off-loads for its own sake: memory that nobody else wants is free. Instances go only where a better
    item takes their place. Values move with every second a function is idle, so while some function could
    still get in by displacing another, it asks to be woken a tick later; otherwise only an event (a
    container, a finished load or run, an arrival) can change the plan and it does not.
    """

    ends_co_residents = False
    plans = True

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        # Plans may follow each other by a twentieth of a second, and rates are what they cost: between two ticks
        # only those are asked for again whose function was called.
        self._rates: dict[str, float] = {}
        self._rated_at = -inf
        #: Of each function what they were made of, and its items: the placement knows the very same objects again.
        self._items: dict[str, tuple[FunctionView, float, bool, tuple[Item, ...]]] = {}

    def plan(self, snapshot: Snapshot, forecast: Predictor, now: float) -> Plan:
        views = {view.name: view for view in snapshot.functions}
        rates = self._rated(views, forecast, now)

        def worth(function: str, level: Level) -> float:
            view = views.get(function)
            if view is None or level < Level.IMPORTED:
                return 0.0
            return rates[function] * (view.import_s + view.load_s if level >= Level.LOADED else view.import_s)

        def share(function: str, others: int) -> float:
            view = views.get(function)
            if view is None or not others:
                return 1.0
            return taken(rates[function] * view.service_s, others * view.concurrency)

        copies = Copies(snapshot)
        further: dict[str, float] = {}  # functions that another copy is worth having of -> its share
        for name, there in copies.loaded:
            known = views.get(name)
            if known is None or known.blocked:
                continue
            if rates[name] * known.service_s < LEAST_SHARE * there * known.concurrency:
                continue  # Markov's bound
            if (part := share(name, there)) >= LEAST_SHARE:
                further[name] = part
        wanted = [view for view in snapshot.functions if view.name in further or copies.wanted(view)]
        if not wanted:
            return Plan()
        bins = bins_of(snapshot, copies, worth, share)
        if further and len(snapshot.load_slots) > 1:
            bins = apart(bins, [views[name] for name in further], copies)
        candidates = [view for view in wanted if rates[view.name] > 0.0]
        values = rates
        if further:
            values = {view.name: rates[view.name] * further.get(view.name, 1.0) for view in candidates}
        chosen: list[Assignment] = []
        if _may_enter(candidates, values, bins):
            items = self._items_of(candidates, values, further)
            chosen = this_turn(snapshot, self.placement.place(bins, items))
        preloads: list[Preload] = []
        for place, one in enumerate(chosen, 1):
            view, rate = views[one.function], rates[one.function]
            saves = _saves(view, Level.NONE if view.name in further else view.ready, one.level)
            rank = "best value per byte" if place == 1 else f"number {place} by value per byte"
            preloads.append(
                Preload(
                    function=one.function,
                    level=one.level,
                    container=one.container,
                    displaced=one.displaced,
                    rule=f"expected {rate:.3g}/s, saves {saves:.2f} s, {_beside(view, further, copies)}"
                    f"{megabytes(one.weight)}; "
                    f"{rank} among {len(candidates)} candidates",
                    rate=rate,
                    probability=forecast.probability(one.function, now),
                    saves_s=saves,
                    weight=one.weight,
                )
            )
        going = {one.function for one in chosen}
        waiting = [view for view in wanted if view.name not in going]
        changes = _may_change(waiting, bins) and any(
            rates[view.name] > 0.0 or forecast.probability(view.name, now, _ANNOUNCED_S) > 0.0 for view in waiting
        )
        return Plan(preloads=tuple(preloads), wake_at=now + TICK_S if changes else None)

    def _rated(self, functions: Collection[str], forecast: Predictor, now: float) -> dict[str, float]:
        """Arrivals per second of each, as of now or, where it was not called since, of the last tick."""
        rate, rates = forecast.rate, self._rates
        if not isinstance(forecast, Forecast):
            return {name: rate(name, now) for name in functions}
        called = forecast.take_called()
        if not self._rated_at <= now < self._rated_at + TICK_S:
            self._rated_at = now
            self._items = {}
            self._rates = forecast.rates(functions, now)
            return self._rates
        for name in functions:
            if name in called or name not in rates:
                rates[name] = rate(name, now)
        return rates

    def _items_of(
        self, views: Iterable[FunctionView], values: Mapping[str, float], further: Container[str]
    ) -> list[Item]:
        found: list[Item] = []
        known = self._items
        for view in views:
            name = view.name
            value, again = values[name], name in further
            before = known.get(name)
            if before is not None and before[0] is view and before[1] == value and before[2] is again:
                found += before[3]
                continue
            items = items_of(view, value * view.import_s, value * view.load_s, further=again)
            known[name] = view, value, again, items
            found += items
        return found


def _beside(view: FunctionView, further: dict[str, float], copies: Copies) -> str:
    part = further.get(view.name)
    there = len(copies.nodes(view.name))
    return "" if part is None else f"of the {part:.0%} of calls that find {there} busy, "


def _saves(view: FunctionView, start: Level, level: Level) -> float:
    """Seconds that an arrival saves at `level` against `start`."""
    saved = view.import_s if start < Level.IMPORTED <= level else 0.0
    return saved + (view.load_s if start < Level.LOADED <= level else 0.0)


def _may_enter(views: list[FunctionView], rates: Mapping[str, float], bins: list[Bin]) -> bool:
    """Could the placement take one of these as things are? It fits somewhere, or is worth more than the cheapest
    bytes that would have to go. In between two calls the answer is no, most of the time."""
    rooms: dict[str, tuple[int, float]] = {}  # by namespace or only function: most free, least density held
    there: set[str] = set()  # can be raised where they are
    for bin in bins:
        if bin.open:
            key = bin.own or bin.namespace
            free, cheapest = rooms.get(key, (-1, inf))
            for held in bin.held:
                cheapest = min(cheapest, held.value / (held.bytes or 1))
                if held.level == Level.IMPORTED:
                    there.add(held.function)
            rooms[key] = max(free, bin.free), cheapest
    for view in views:
        least = view.imported_bytes if view.import_s > 0.0 else view.loaded_bytes
        worth = rates[view.name] * (view.import_s + view.load_s)
        if view.name in there:
            return True
        for key in (view.namespace, view.name):
            if key in rooms:
                free, cheapest = rooms[key]
                # With more bytes to go than these its worth per byte only falls.
                if least <= free or worth > cheapest * (least - free):
                    return True
    return False


def _may_change(waiting: list[FunctionView], bins: list[Bin]) -> bool:
    """Could one of these get into an open bin if it were only worth enough?"""
    most: dict[str, int] = {}  # by namespace or only function: the largest room to be had
    for bin in bins:
        if bin.open:
            key = bin.own or bin.namespace
            most[key] = max(most.get(key, -1), bin.free + sum(held.bytes for held in bin.held))
    return any(
        view.imported_bytes <= max(most.get(view.namespace, -1), most.get(view.name, -1)) for view in waiting
    )
