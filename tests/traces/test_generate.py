"""Hazards that are what arrivals really do: the compensator, the filter against brute force, seeds."""

from __future__ import annotations

import numpy as np
import pytest

from instainfer.errors import BadInput
from instainfer.traces.base import Floats
from instainfer.traces.generate import (
    KINDS,
    Diurnal,
    Hidden,
    Poisson,
    Process,
    Timer,
    bursts,
    generate,
    jumps,
    synthetic,
)

HOUR = 3600.0
PROCESSES: dict[str, Process] = {
    "poisson": Poisson(1 / 60),
    "timer": Timer(300, 40, 30),
    "late timer": Timer(300, 280, 60),
    "diurnal": Diurnal(1 / 60, 0.9, 5 * HOUR),
    "bursts": bursts(inside=1 / 5, outside=1 / 2000, burst_s=60, quiet_s=900),
    "jumps": jumps((1 / 20, 1 / 200, 1 / 2000), lasts_s=2000),
}


def grid(arrivals: Floats, length_s: float, step_s: float) -> Floats:
    return np.unique(np.concatenate([np.arange(0, length_s, step_s), arrivals, [length_s]]))


@pytest.mark.parametrize("name", PROCESSES)
def test_arrivals_less_what_was_expected_average_to_nothing(name: str) -> None:
    process, length_s = PROCESSES[name], 20 * HOUR
    differences, variance = [], 0.0
    for seed in range(15):
        arrivals = process.draw(np.random.default_rng(seed), length_s)
        assert (np.diff(arrivals) > 0).all()
        assert not len(arrivals) or (arrivals[0] >= 0 and arrivals[-1] < length_s)
        expected = process.expected(grid(arrivals, length_s, 60), arrivals).sum()
        differences.append(len(arrivals) - expected)
        variance += expected  # of a counting process less its compensator
    assert abs(sum(differences)) < 4 * np.sqrt(variance)
    assert variance > 100


@pytest.mark.parametrize("name", PROCESSES)
def test_what_is_expected_is_the_integral_of_the_hazard(name: str) -> None:
    process, length_s = PROCESSES[name], 2 * HOUR
    arrivals = process.draw(np.random.default_rng(3), length_s)
    edges = grid(arrivals, length_s, 37)
    expected = process.expected(edges, arrivals)
    parts = 400
    lengths = np.diff(edges)[:, None]
    inside = edges[:-1, None] + (np.arange(parts) + 0.5) / parts * lengths
    means = process.hazard(inside.ravel(), arrivals).reshape(inside.shape).mean(axis=1)
    fits = np.isclose(means * lengths[:, 0], expected, rtol=0.02, atol=0.02)
    if name.endswith("timer"):
        fits |= np.isin(edges[1:], arrivals)  # it may end next to the pole of 1 / (time left)
    assert fits.all()
    assert expected.sum() > 1


def test_a_timers_hazard_by_hand() -> None:
    timer = Timer(100, 20, 10)
    arrivals = np.array([25.0, 122.0])
    at = np.array([5.0, 20.0, 24.0, 26.0, 119.0, 121.0, 123.0, 225.0])
    assert np.allclose(timer.hazard(at, arrivals), [0, 0.1, 1 / 6, 0, 0, 1 / 9, 0, 0.2])
    edges = np.array([0.0, 15.0, 25.0, 122.0, 200.0])
    # from 15 to 25: log(10 / 5); then the second is due at 120; an edge in the middle of nothing
    assert np.allclose(timer.expected(edges, arrivals), [0, np.log(2), np.log(10 / 8), 0])
    wide = timer.expected(np.array([0.0, 25.0]), arrivals)
    assert np.allclose(wide, [np.log(2)])


def test_timers_fire_late_never_early() -> None:
    arrivals = Timer(300, 40, 30).draw(np.random.default_rng(1), 10 * HOUR)
    late = (arrivals - 40) % 300
    assert (late < 30).all()
    assert late.std() > 5
    assert len(arrivals) == 120


def test_the_filter_agrees_with_brute_force() -> None:
    """Posterior by a plain forward recursion in tiny steps."""
    process = Hidden(rates=(0.002, 0.2), leaving=(1 / 300, 1 / 40))
    arrivals = process.draw(np.random.default_rng(4), 500)
    assert len(arrivals) > 5
    step = 0.01
    rates = np.array(process.rates)
    jumps_ = np.array([[-1 / 300, 1 / 300], [1 / 40, -1 / 40]])
    now = np.array([300.0, 40.0]) / 340
    at, upcoming, asked, wanted = 0.0, list(arrivals), [], []
    while at < 500:
        if upcoming and upcoming[0] <= at:
            upcoming.pop(0)
            now = now * rates / (now @ rates)
        if round(at / step) % 500 == 0 and (not len(arrivals) or np.min(np.abs(arrivals - at)) > 0.1):
            asked.append(at)
            wanted.append(float(now @ rates))
        now = now + step * (now @ jumps_ - now * rates)
        now /= now.sum()
        at += step
    assert np.allclose(process.hazard(np.array(asked), arrivals), wanted, rtol=0.01, atol=1e-4)


def test_a_function_more_changes_no_others_arrivals() -> None:
    few = generate({"a": Poisson(0.1), "b": Poisson(0.1)}, 1000, seed=3).trace
    more = generate({"c": Poisson(0.1), "a": Poisson(0.1), "b": Poisson(0.1)}, 1000, seed=3).trace
    assert few.arrivals("a").tolist() == more.arrivals("a").tolist()
    assert few.arrivals("a").tolist() != few.arrivals("b").tolist()
    assert generate({"a": Poisson(0.1)}, 1000, seed=4).trace.times.tolist() != few.arrivals("a").tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_the_seeds(kind: str) -> None:
    made = synthetic(kind, 12, 4 * HOUR, seed=5)
    assert len(made.trace.names) == len(made.processes) == 12
    assert made.trace.length_s == 4 * HOUR
    assert len(made.trace) > 50
    assert made.trace.times.tolist() == synthetic(kind, 12, 4 * HOUR, seed=5).trace.times.tolist()


def test_what_cannot_be_generated() -> None:
    with pytest.raises(BadInput, match="no synthetic trace"):
        synthetic("chaos", 3, 60)
    with pytest.raises(BadInput, match="0 functions"):
        synthetic("poisson", 0, 60)
    with pytest.raises(BadInput, match="empty"):
        generate({"a": Poisson(1)}, 0)
