"""How far Greedy is from a bound above the best placement, where that itself cannot be computed."""

from __future__ import annotations

import pytest

from instainfer.bench.placement import fractional, gain, problem, run, stays
from instainfer.policies.placement.greedy import Greedy
from tests.policies.exact import exact_gain

FUNCTIONS, CONTAINERS = 1000, 100


@pytest.mark.parametrize("family", ["models", "alike", "mixed"])
def test_the_relaxation_is_a_bound(family: str) -> None:
    bins, items = problem(family, 12, 3, 1, memory=0.5)
    assert exact_gain(bins, items) <= fractional(bins, items) * (1.0 + 1e-9)


@pytest.mark.parametrize(
    ("family", "memory", "loss"),
    [
        ("models", 0.25, 0.01),
        ("models", 0.6, 0.002),
        ("alike", 0.25, 0.02),
        ("alike", 0.6, 0.008),
        ("mixed", 0.25, 0.005),
        ("mixed", 0.6, 0.005),
    ],
)
def test_loss_of_a_large_placement(family: str, memory: float, loss: float) -> None:
    """Of which a part is the bound's: what no packing can fill. Most where a container holds three functions."""
    bins, items = problem(family, FUNCTIONS, CONTAINERS, 1, memory)
    got, best = gain(bins, Greedy().place(bins, items)), fractional(bins, items)
    assert got <= best * (1.0 + 1e-9)
    assert got >= (1.0 - loss) * best
