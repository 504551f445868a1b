"""The papers' rule: load at T_load after the last arrival, off-load at T_offload.

Source: InstaInfer (SoCC'24) and Tyche (TPDS 2026), "Proactive Pre-loader" and "Pre-loading Scheduler".
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from instainfer.model import Level
from instainfer.policies.base import (
    FunctionView,
    Item,
    Offload,
    Placement,
    Plan,
    Predictor,
    Preload,
    Quantiles,
    Snapshot,
)
from instainfer.policies.predict.forecast import Forecast
from instainfer.policies.predict.poisson import due_after
from instainfer.policies.preload.bins import Copies, bins_of, megabytes, this_turn


class TimerPreload:
    """Functions between T_load and T_offload compete by P(arrival in 60 s) x loading latency; after
    T_offload they go, whether or not the memory is needed. A function is loaded whole or not at all.

    The rate is the window's (see predict/poisson.py) and stands still between arrivals, so the next T_load
    or T_offload of any function is when to decide again. A predictor that knows how gaps are spread (Quantiles)
    is asked for the times by when P_load and P_offload are reached: F is then its own.

    A hint (see predict/forecast.py) is ours, not the papers': while its window is open the function is due,
    and is not off-loaded.
    """

    plans = True

    def __init__(
        self, p_load: float, p_offload: float, placement: Placement, *, ends_co_residents: bool = True
    ) -> None:
        if not 0.0 <= p_load < p_offload < 1.0:
            raise ValueError(f"P_load {p_load} and P_offload {p_offload} are not in order within [0, 1)")
        self.p_load = p_load
        self.p_offload = p_offload
        self.placement = placement
        self.ends_co_residents = ends_co_residents

    def plan(self, snapshot: Snapshot, forecast: Predictor, now: float) -> Plan:
        views = {view.name: view for view in snapshot.functions}
        timers = self.timers(views, forecast, now)
        copies = Copies(snapshot)

        def worth(function: str, level: Level) -> float:
            view = views.get(function)
            if view is None or level < Level.LOADED or timers[function].over:
                return 0.0
            return forecast.probability(function, now) * loading(view)

        wanted = [view for view in snapshot.functions if copies.wanted(view)]
        due = [view for view in wanted if timers[view.name].due]
        preloads: list[Preload] = []
        if due:
            bins = bins_of(snapshot, copies, worth)
            items = [item(view, forecast.probability(view.name, now)) for view in due]
            for one in this_turn(snapshot, self.placement.place(bins, items)):
                view = views[one.function]
                saves = view.load_s if view.ready >= Level.IMPORTED else loading(view)
                probability = forecast.probability(view.name, now)
                preloads.append(
                    Preload(
                        function=one.function,
                        level=one.level,
                        container=one.container,
                        displaced=one.displaced,
                        rule=f"T_load: idle for {timers[view.name].idle:.0f} s, {probability:.0%} within a "
                        f"minute, saves {saves:.2f} s, {megabytes(one.weight)}",
                        rate=timers[view.name].rate,
                        probability=probability,
                        saves_s=saves,
                        weight=one.weight,
                    )
                )
        displaced = {instance for one in preloads for instance in one.displaced}
        offloads = self.offloads(snapshot, forecast, timers, now)
        return Plan(
            preloads=tuple(preloads),
            offloads=tuple(one for one in offloads if one.instance not in displaced),
            wake_at=self.wake_at(snapshot, forecast, timers, wanted, now),
        )

    def offloads(
        self, snapshot: Snapshot, forecast: Predictor, timers: dict[str, Timers], now: float
    ) -> list[Offload]:
        return [
            Offload(
                instance=resident.instance,
                rule=f"T_offload: no arrival for {timers[resident.function].idle:.0f} s, "
                f"by when {self.p_offload:.0%} would have come",
                rate=timers[resident.function].rate,
                probability=forecast.probability(resident.function, now),
            )
            for container in snapshot.containers
            if container.idle and not container.pinned
            for resident in container.residents
            if resident.evictable and resident.function in timers and timers[resident.function].over
        ]

    def wake_at(
        self,
        snapshot: Snapshot,
        forecast: Predictor,
        timers: dict[str, Timers],
        wanted: list[FunctionView],
        now: float,
    ) -> float | None:
        """The next timer, or window of a hint."""
        loaded = {resident.function for one in snapshot.containers for resident in one.residents}
        times = [timers[view.name].load_at for view in wanted]
        times += [timers[name].offload_at for name in sorted(loaded) if name in timers]
        if isinstance(forecast, Forecast):
            times += [start for view in wanted if (start := forecast.next_hint(view.name, now)) is not None]
        next_at = min((time for time in times if time > now), default=math.inf)
        return next_at if next_at < math.inf else None

    def timers(self, functions: Iterable[str], forecast: Predictor, now: float) -> dict[str, Timers]:
        base = forecast.base if isinstance(forecast, Forecast) else forecast
        spread = base if isinstance(base, Quantiles) else None
        return {name: Timers(self, forecast, base, spread, name, now) for name in functions}


class Timers:
    """T_load and T_offload of one function on the platform's clock; infinite while it has no rate."""

    __slots__ = ("due", "idle", "load_at", "offload_at", "over", "rate")

    def __init__(
        self,
        policy: TimerPreload,
        forecast: Predictor,
        base: Predictor,
        spread: Quantiles | None,
        function: str,
        now: float,
    ) -> None:
        hinted = isinstance(forecast, Forecast) and forecast.hinted(function, now) > 0.0
        last = base.last(function)
        self.rate = base.rate(function, now)
        self.idle = 0.0 if last is None else now - last
        self.load_at = self.offload_at = math.inf
        if last is not None and spread is not None:
            self.load_at = last + spread.quantile(function, policy.p_load)
            self.offload_at = last + spread.quantile(function, policy.p_offload)
        elif last is not None:
            self.load_at = last + due_after(self.rate, policy.p_load)
            self.offload_at = last + due_after(self.rate, policy.p_offload)
        self.over = self.offload_at <= now and not hinted
        self.due = hinted or self.load_at <= now < self.offload_at


def loading(view: FunctionView) -> float:
    """Seconds that a call is spared that finds it loaded."""
    return view.import_s + view.load_s


def item(view: FunctionView, probability: float) -> Item:
    """The whole function, as the papers place it."""
    return Item(
        function=view.name,
        namespace=view.namespace,
        level=Level.LOADED,
        value=probability * loading(view),
        weight=view.loaded_bytes,
        mounts=view.mounts,
    )
