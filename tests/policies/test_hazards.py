"""All rates at once are those that the predictor says one by one, to the last bit."""

from __future__ import annotations

import random

import pytest

from instainfer.policies.predict.hazard import Hazard
from instainfer.policies.predict.hazards import Hazards

NAMES = [f"f{number}" for number in range(24)]
NEVER = NAMES[-1]  # is not called


def check(hazard: Hazard, together: Hazards, now: float) -> None:
    assert {name: rate.hex() for name, rate in together.rates(now).items()} == {
        name: hazard.rate(name, now).hex() for name in NAMES
    }


@pytest.mark.parametrize("window_s", [1.0, 10.0, 30.0])
def test_they_are_the_same(window_s: float) -> None:
    """Timers, Poisson processes and bursts, of periods from a second to a day; looked at often, seldom, and after
    longer than anybody expected."""
    rng = random.Random(int(window_s))
    hazard = Hazard(window_s)
    together = Hazards(hazard, NAMES)
    check(hazard, together, 0.0)
    periods = [10 ** rng.uniform(0.0, 5.0) for _ in NAMES]
    following = [rng.uniform(0.0, period) for period in periods]

    def gap(place: int) -> float:
        period = periods[place]
        if place % 3 == 0:
            return period
        if place % 3 == 1:
            return period * rng.expovariate(1.0)
        return period * (0.01 if rng.random() < 0.8 else 5.0)

    now = 0.0
    for step in range(300):
        now += 1e9 if step == 200 else rng.choice([0.1, 1.0, 10.0, 10.0, 10.0, 1e3, 1e4])
        for place, name in enumerate(NAMES[:-1]):
            for _ in range(5):
                if following[place] > now:
                    break
                hazard.observe(name, following[place])
                together.observed(name)
                following[place] += gap(place)
            following[place] = max(following[place], now)
        check(hazard, together, now)
    check(hazard, together, 0.0)  # a clock behind the last call
    assert together.rates(now)[NEVER] == 0.0
    assert sum(hazard.period(name) is not None for name in NAMES) >= 3


def test_what_was_seen_before_counts() -> None:
    hazard = Hazard()
    for at in (0.0, 60.0, 120.0, 180.0):
        hazard.observe(NAMES[0], at)
    check(hazard, Hazards(hazard, NAMES), 235.0)
