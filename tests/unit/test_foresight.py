"""Errors of forecasts, with a predictor that says what the test wants."""

from __future__ import annotations

import math

import pytest

from instainfer.foresight import MOST, Foresight
from instainfer.observe import LONG, Histogram
from instainfer.policies import registry


class Evenly:
    """A call every so many seconds at random: the median is ln 2 of that."""

    def __init__(self, every_s: float) -> None:
        self.rate_ = 1.0 / every_s
        self.asked = 0

    def observe(self, function: str, now: float) -> None: ...

    def forget(self, function: str) -> None: ...

    def rate(self, function: str, now: float) -> float:
        return self.rate_

    def probability(self, function: str, now: float, horizon_s: float = 60.0) -> float:
        self.asked += 1
        return -math.expm1(-self.rate_ * horizon_s)

    def last(self, function: str) -> float | None:
        return None


def test_the_error_is_from_the_median_to_the_call() -> None:
    errors = Histogram(LONG)
    foresight = Foresight(Evenly(100.0), errors)
    foresight.arrived("a/f", 10.0)
    foresight.tick(11.0)
    foresight.arrived("a/f", 20.0)
    assert sum(errors.counts) == 1
    assert errors.total == pytest.approx(11.0 + 100 * math.log(2) - 20.0, rel=1e-2)


def test_a_call_asks_nothing_and_one_without_a_forecast_is_not_measured() -> None:
    predictor, errors = Evenly(1.0), Histogram(LONG)
    foresight = Foresight(predictor, errors)
    for now in range(100):
        foresight.arrived("a/f", float(now))
    assert predictor.asked == 0 and sum(errors.counts) == 0


def test_what_is_not_expected_within_a_day_is_left_out() -> None:
    errors = Histogram(LONG)
    foresight = Foresight(Evenly(1e9), errors)
    foresight.arrived("a/f", 0.0)
    foresight.tick(1.0)
    foresight.arrived("a/f", 2.0)
    assert sum(errors.counts) == 0


def test_a_tick_asks_about_a_few_and_forgets_the_deleted() -> None:
    predictor, errors = Evenly(1.0), Histogram(LONG)
    foresight = Foresight(predictor, errors)
    names = [f"a/f{number}" for number in range(MOST + 1)]
    for name in names:
        foresight.arrived(name, 0.0)
    foresight.tick(0.0)
    foresight.forget(names[0])
    for name in names:
        foresight.arrived(name, 1.0)
    assert sum(errors.counts) == MOST - 1


@pytest.mark.parametrize("name", ["hazard", "poisson", "histogram"])
def test_a_timer_is_foreseen_by_real_predictors(name: str) -> None:
    predictor, errors = registry.predictor(name), Histogram(LONG)
    foresight = Foresight(predictor, errors)
    for number in range(200):
        now = 60.0 * number
        foresight.arrived("a/f", now)
        predictor.observe("a/f", now)
        foresight.tick(now + 0.5)
    count = sum(errors.counts)
    assert count > 100
    assert errors.total / count < 60.0
