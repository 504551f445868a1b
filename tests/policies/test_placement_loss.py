"""How far Greedy is from a bound above the best placement, where that itself cannot be computed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from instainfer.model import Level
from instainfer.policies.base import Bin, Item
from instainfer.policies.placement.greedy import Greedy
from tests.policies.exact import exact_gain, gain

PAPERS_MB = (923, 1648, 957, 649, 907, 1348, 1027, 1333)
FUNCTIONS, CONTAINERS = 1000, 100


def fractional_gain(bins: Sequence[Bin], items: Sequence[Item]) -> float:
    """As if all memory were one room that nothing is in, and items could be cut: the linear relaxation's optimum.
    An item is worth less than the one that it stands on, or the two are one."""
    by_function: dict[str, list[Item]] = {}
    for item in items:
        by_function.setdefault(item.function, []).append(item)
    parts: list[tuple[float, float, int]] = []  # value per byte, value, bytes
    for found in by_function.values():
        found.sort(key=lambda item: item.level)
        steps = [(item.value, item.weight) for item in found]
        if len(steps) == 2 and steps[1][0] * steps[0][1] >= steps[0][0] * steps[1][1]:
            steps = [(steps[0][0] + steps[1][0], steps[0][1] + steps[1][1])]
        parts += [(value / weight, value, weight) for value, weight in steps]
    parts.sort(reverse=True)
    left, total = sum(one.free for one in bins), 0.0
    for density, value, weight in parts:
        if weight > left:
            return total + density * left
        total, left = total + value, left - weight
    return total


def problem(
    family: str, functions: int, containers: int, seed: int, memory: float = 0.25
) -> tuple[list[Bin], list[Item]]:
    """Empty containers with memory for that share of all functions."""
    rng = random.Random(f"{family} {seed}")
    items: list[Item] = []
    total = 0
    for number in range(functions):
        if family == "models":  # the papers' eight sizes, rates over three orders of magnitude
            size, rate = PAPERS_MB[number % 8] * 1000, 10.0 ** rng.uniform(-4, -1)
        elif family == "alike":  # the same, and nobody is called much more than another: the hardest to tell apart
            size, rate = PAPERS_MB[number % 8] * 1000, rng.uniform(0.5e-3, 1.5e-3)
        else:  # few large ones, many small ones
            size, rate = int(rng.lognormvariate(5.7, 0.9) * 1000) + 2, rng.lognormvariate(-7.0, 1.5)
        total += size
        part = int(size * rng.uniform(0.3, 0.7))
        seconds, share = rng.uniform(0.2, 2.4), rng.uniform(0.2, 0.8)
        for level, value, weight in (
            (Level.IMPORTED, rate * seconds * share, part),
            (Level.LOADED, rate * seconds * (1.0 - share), size - part),
        ):
            items.append(Item(function=f"f{number}", namespace="n", level=level, value=value, weight=weight))
    each = memory * total / containers
    return [
        Bin(container=f"c{number}", namespace="n", node="node", free=int(each * rng.uniform(0.5, 1.5)))
        for number in range(containers)
    ], items


@pytest.mark.parametrize("family", ["models", "alike", "mixed"])
def test_the_relaxation_is_a_bound(family: str) -> None:
    bins, items = problem(family, 12, 3, 1, memory=0.5)
    assert exact_gain(bins, items) <= fractional_gain(bins, items) * (1.0 + 1e-9)


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
    got, best = gain(bins, Greedy().place(bins, items)), fractional_gain(bins, items)
    assert got <= best * (1.0 + 1e-9)
    assert got >= (1.0 - loss) * best
