"""What is told of the next arrival is what the predictor says, and asking changes nothing."""

from __future__ import annotations

import pickle

import pytest

from instainfer.policies import registry
from instainfer.policies.predict.forecast import Forecast
from instainfer.policies.predict.outlook import LONGEST_S, outlook


def timer(every: float, count: int, predictor: str = "hazard") -> tuple[Forecast, float]:
    forecast = Forecast(registry.predictor(predictor))
    for turn in range(count):
        forecast.observe("n/f", turn * every)
    return forecast, (count - 1) * every


def test_a_timer_is_told_with_its_period_and_when_it_is_due() -> None:
    forecast, last = timer(60.0, 40)
    told = outlook(forecast, "n/f", last + 20.0)
    assert told.period_s == 60.0
    assert told.last_s == 20.0
    soon, likely, late = told.next_s
    assert soon is not None and likely is not None and late is not None
    assert soon <= likely <= late
    assert 30.0 < likely < 50.0  # 40 s are left
    at, _ = max(told.hazard, key=lambda point: point[1])
    assert 25.0 < at < 50.0


@pytest.mark.parametrize("predictor", ["hazard", "poisson", "histogram"])
def test_the_quantiles_are_the_predictors_own(predictor: str) -> None:
    forecast, last = timer(30.0, 20, predictor)
    now = last + 7.0
    told = outlook(forecast, "n/f", now)
    for share, within in zip((0.1, 0.5, 0.9), told.next_s, strict=True):
        if within is None:
            assert forecast.probability("n/f", now, LONGEST_S) < share
        else:
            assert forecast.probability("n/f", now, within) >= share
    for at, rate in told.hazard:
        assert rate == forecast.rate("n/f", now + at)
    assert told.rate == told.hazard[0][1]


def test_asking_changes_nothing() -> None:
    forecast, last = timer(30.0, 20)
    as_it_was = pickle.dumps(forecast.base)
    asked, unasked = pickle.loads(as_it_was), pickle.loads(as_it_was)
    outlook(Forecast(asked), "n/f", last + 5.0)
    for one in (asked, unasked):  # the last answer is remembered: let it be the same one
        one.rate("n/f", last + 7.0)
    assert pickle.dumps(asked) == pickle.dumps(unasked)


def test_of_what_was_never_called_nothing_is_expected() -> None:
    told = outlook(Forecast(registry.predictor("hazard")), "n/f", 5.0)
    assert (told.rate, told.last_s, told.next_s, told.period_s) == (0.0, None, (None, None, None), None)
    assert {rate for _, rate in told.hazard} == {0.0}
