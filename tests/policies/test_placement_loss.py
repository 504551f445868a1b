"""How far Greedy is from a bound above the best placement, where that itself cannot be computed."""

from __future__ import annotations

import pytest

from instainfer.bench.placement import PLACEMENTS, fractional, problem, run, stays
from tests.policies.exact import exact_gain

FUNCTIONS, CONTAINERS = 1000, 100


@pytest.mark.parametrize("family", ["models", "alike", "mixed"])
def test_the_relaxation_is_a_bound(family: str) -> None:
    bins, items = problem(family, 12, 3, 1, memory=0.5)
    assert exact_gain(bins, items) <= fractional(bins, items) * (1.0 + 1e-9)


@pytest.mark.parametrize("full", [False, True])
def test_nor_is_anything_better_than_it_in_full_containers(full: bool) -> None:
    bins, items = problem("mixed", 12, 3, 1, memory=0.5, full=full)
    assert stays(bins) + exact_gain(bins, items) <= fractional(bins, items) * (1.0 + 1e-9)


@pytest.mark.parametrize(
    ("family", "memory", "plain", "exchanged"),
    [
        ("models", 0.25, 0.01, 0.006),
        ("models", 0.6, 0.002, 0.001),
        ("alike", 0.25, 0.02, 0.006),
        ("alike", 0.6, 0.008, 0.003),
        ("mixed", 0.25, 0.005, 0.002),
        ("mixed", 0.6, 0.005, 0.001),
    ],
)
def test_loss_of_a_large_placement(family: str, memory: float, plain: float, exchanged: float) -> None:
    """Of which a part is the bound's: what no packing can fill. Most where a container holds three functions."""
    bins, items = problem(family, FUNCTIONS, CONTAINERS, 1, memory)
    losses = [run(make(), bins, list(items), events=0).loss for make in PLACEMENTS.values()]
    assert 0.0 <= losses[1] < losses[0] <= plain and losses[1] <= exchanged
