"""Tyche without its predictor, for the ablation.

Source: Tyche (TPDS 2026), "Ablation study": no pre-load nor off-load ahead of time, only reactions.
"""

from __future__ import annotations

from math import inf

from msgspec.structs import replace

from instainfer.policies.base import HORIZON_S, Placement, Plan, Predictor, Quantiles, Snapshot
from instainfer.policies.preload.bins import megabytes
from instainfer.policies.preload.timers import TimerPreload


class NoPredictor(TimerPreload):
    """The scheduler alone: whatever was called at least once is as likely as anything else that was, so that
    loading latency per byte decides, and there are no timers.

    The plan depends on what is where, not on the time, and never asks to be woken: it changes when a container
    comes or goes, or a call has moved what is in them.
    """

    def __init__(self, placement: Placement) -> None:
        super().__init__(0.0, 0.94, placement)

    def plan(self, snapshot: Snapshot, forecast: Predictor, now: float) -> Plan:
        plan = super().plan(snapshot, _Unpredicted(forecast), now)
        preloads = tuple(
            replace(
                one,
                rule=f"no predictor: saves {one.saves_s:.2f} s, {megabytes(one.weight)}",
                rate=forecast.rate(one.function, now),
                probability=forecast.probability(one.function, now),
            )
            for one in plan.preloads
        )
        return Plan(preloads=preloads)


class _Unpredicted(Quantiles):
    """Knows who was called, and nothing of when: due at once, and for ever."""

    def __init__(self, forecast: Predictor) -> None:
        self._forecast = forecast

    def observe(self, function: str, now: float) -> None:
        """The forecast behind it is told."""

    def forget(self, function: str) -> None:
        """Likewise."""

    def rate(self, function: str, now: float) -> float:
        return 0.0

    def probability(self, function: str, now: float, horizon_s: float = HORIZON_S) -> float:
        return 0.0 if self.last(function) is None else 1.0

    def last(self, function: str) -> float | None:
        return self._forecast.last(function)

    def quantile(self, function: str, p: float) -> float:
        return inf if p > 0.0 else 0.0
