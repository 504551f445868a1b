"""Tyche without its scheduler, for the ablation.

Source: Tyche (TPDS 2026), "Ablation study": the pre-loader's messages alone load functions, and containers
their own one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from msgspec.structs import replace

from instainfer.model import Level
from instainfer.policies.base import Assignment, Bin, FunctionView, Item, Plan, Predictor, Preload, Snapshot
from instainfer.policies.predict.forecast import Forecast
from instainfer.policies.preload.bins import Copies, bins_of, megabytes, this_turn
from instainfer.policies.preload.one_to_one import own_loads
from instainfer.policies.preload.timers import TimerPreload, Timers, item, loading


class FirstFit:
    """Items in the order given, each into the first open bin that has room as it is. Nothing gives way."""

    def place(self, bins: Sequence[Bin], items: Sequence[Item]) -> list[Assignment]:
        free = {bin.container: bin.free for bin in bins if bin.open}
        chosen: list[Assignment] = []
        for one in items:
            for bin in bins:
                weight = _weight(one, bin)
                if weight is not None and weight <= free.get(bin.container, -1):
                    free[bin.container] -= weight
                    chosen.append(
                        Assignment(
                            function=one.function,
                            level=one.level,
                            container=bin.container,
                            value=one.value,
                            weight=weight,
                        )
                    )
                    break
        return chosen


def _weight(one: Item, bin: Bin) -> int | None:
    if bin.namespace != one.namespace or bin.own not in ("", one.function) or one.function in bin.fixed:
        return None
    if not set(one.mounts) <= set(bin.mounts):
        return None
    there = [held for held in bin.held if held.function == one.function and held.level]
    if any(held.level >= one.level for held in there):
        return None
    return max(one.weight - sum(held.bytes for held in there), 0)


class NoScheduler(TimerPreload):
    """The pre-loader alone. At T_load its message comes, in the order of these times: the function goes into
    the first idle container that has room as it is. While those with room are busy the message waits; where
    none has room, it is lost, and nothing else loads the function ahead before its next T_load. Beside it, a
    container that is idle without its owner's function loads that until T_offload. At T_offload all go.

    A hint that opens is a message, too.
    """

    def __init__(self, p_load: float, p_offload: float) -> None:
        super().__init__(p_load, p_offload, FirstFit())
        self._messages: dict[str, float] = {}  # that wait: function -> when it came
        self._before = self._at = -inf  # the last two times of a plan

    def plan(self, snapshot: Snapshot, forecast: Predictor, now: float) -> Plan:
        if now > self._at:
            self._before, self._at = self._at, now
        timers = self.timers((view.name for view in snapshot.functions), forecast, now)
        copies = Copies(snapshot)
        wanted = {view.name: view for view in snapshot.functions if copies.wanted(view)}
        preloads = own_loads(snapshot, forecast, now, lambda view: not timers[view.name].over)
        own = {one.function for one in preloads}
        waiting = self._waiting([view for view in wanted.values() if view.name not in own], forecast, timers, now)
        taken = {one.container for one in preloads}
        bins = [bin for bin in bins_of(snapshot, copies, _worthless) if bin.container not in taken]
        items = [item(wanted[name], forecast.probability(name, now)) for name in waiting]
        self._messages = {
            one.function: waiting[one.function] for one in items if any(_room(one, bin) for bin in bins)
        }
        for one in this_turn(_without(snapshot, preloads), self.placement.place(bins, items)):
            view = wanted[one.function]
            saves = view.load_s if view.ready >= Level.IMPORTED else loading(view)
            preloads.append(
                Preload(
                    function=one.function,
                    level=one.level,
                    container=one.container,
                    displaced=(),
                    rule=f"T_load, {now - waiting[one.function]:.0f} s ago: the first container with room, "
                    f"saves {saves:.2f} s, {megabytes(one.weight)}",
                    rate=timers[one.function].rate,
                    probability=forecast.probability(one.function, now),
                    saves_s=saves,
                    weight=one.weight,
                )
            )
        return Plan(
            preloads=tuple(preloads),
            offloads=tuple(self.offloads(snapshot, forecast, timers, now)),
            wake_at=self.wake_at(snapshot, forecast, timers, list(wanted.values()), now),
        )

    def _waiting(
        self, wanted: Iterable[FunctionView], forecast: Predictor, timers: dict[str, Timers], now: float
    ) -> dict[str, float]:
        """Messages that came since the last plan, or wait, and are not outdated; the earliest first."""
        found: dict[str, float] = {}
        for view in wanted:
            timer = timers[view.name]
            if not timer.due:
                continue
            if self._before < timer.load_at <= now:
                found[view.name] = timer.load_at
            elif view.name in self._messages:
                found[view.name] = self._messages[view.name]
            elif isinstance(forecast, Forecast):
                opened = forecast.next_hint(view.name, self._before)
                if opened is not None and opened <= now:
                    found[view.name] = opened
        return dict(sorted(found.items(), key=lambda one: (one[1], one[0])))


def _worthless(function: str, level: Level) -> float:
    return 0.0


def _room(one: Item, bin: Bin) -> bool:
    """Busy or not."""
    weight = _weight(one, bin)
    return weight is not None and weight <= bin.free


def _without(snapshot: Snapshot, preloads: list[Preload]) -> Snapshot:
    """The loads that are left."""
    node = {container.id: container.node for container in snapshot.containers}
    slots = dict(snapshot.load_slots)
    for one in preloads:
        slots[node[one.container]] -= 1
    return replace(snapshot, load_slots=slots)
