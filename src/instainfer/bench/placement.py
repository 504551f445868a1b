"""One placement pass by itself: what it takes, at first and after an event, and how far it is from the best.

Pure computation on drawn instances. The best of a large instance cannot be had; what stands for it is a bound
above it, so that a part of every loss is the bound's: what no packing can fill.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from instainfer import garbage
from instainfer.bench.report import Report, between
from instainfer.model import Level
from instainfer.policies.base import Assignment, Bin, Held, Item
from instainfer.policies.placement.exchange import ENOUGH
from instainfer.policies.placement.greedy import Greedy

#: The papers' eight models.
PAPERS_MB = (923, 1648, 957, 649, 907, 1348, 1027, 1333)
FAMILIES = ("models", "alike", "mixed")
SIZES = ((1_000, 100), (10_000, 1_000))
MEMORIES = (0.25, 0.6)  # as a share of all functions' size
SEEDS, EVENTS = 5, 20
QUICK = 2  # seeds and events, of the small size alone

Problem = tuple[list[Bin], list[Item]]


#: Plain, as it is by default, and with what was placed moved about. Without hysteresis, which is no loss.
PLACEMENTS: dict[str, Callable[[], Greedy]] = {
    "greedy": lambda: Greedy(0.0),
    "exchange": lambda: Greedy(0.0, exchange_from=ENOUGH),
}


class Measured(NamedTuple):
    loss: float  # share of the bound
    first_s: float
    event_s: list[float]


def problem(
    family: str, functions: int, containers: int, seed: int, memory: float = 0.25, *, full: bool = False
) -> Problem:
    """Containers with memory for that share of all functions; empty, or `full`: nine tenths of each are held by
    others, that are worth as much as what comes."""
    rng = random.Random(f"{family} {seed}")
    items: list[Item] = []
    total = 0
    for number in range(functions):
        size, rate = _size_and_rate(rng, family, number)
        total += size
        items += _items(rng, f"f{number}", size, rate)
    each = memory * total / containers
    bins = []
    for number in range(containers):
        memory_of_it = int(each * rng.uniform(0.5, 1.5))
        held = _held(rng, family, number, memory_of_it * 9 // 10) if full else ()
        bins.append(
            Bin(
                container=f"c{number}",
                namespace="n",
                node="node",
                free=memory_of_it - sum(one.bytes for one in held),
                held=held,
            )
        )
    return bins, items


def _size_and_rate(rng: random.Random, family: str, number: int) -> tuple[int, float]:
    if family == "models":  # the papers' eight sizes, rates over three orders of magnitude
        return PAPERS_MB[number % 8] * 1000, 10.0 ** rng.uniform(-4, -1)
    if family == "alike":  # the same, and nobody is called much more than another: the hardest to tell apart
        return PAPERS_MB[number % 8] * 1000, rng.uniform(0.5e-3, 1.5e-3)
    return int(rng.lognormvariate(5.7, 0.9) * 1000) + 2, rng.lognormvariate(-7.0, 1.5)  # few large, many small


def _items(rng: random.Random, name: str, size: int, rate: float) -> list[Item]:
    part = int(size * rng.uniform(0.3, 0.7))
    seconds, share = rng.uniform(0.2, 2.4), rng.uniform(0.2, 0.8)
    return [
        Item(function=name, namespace="n", level=level, value=value, weight=weight)
        for level, value, weight in (
            (Level.IMPORTED, rate * seconds * share, part),
            (Level.LOADED, rate * seconds * (1.0 - share), size - part),
        )
    ]


def _held(rng: random.Random, family: str, container: int, room: int) -> tuple[Held, ...]:
    held: list[Held] = []
    for number in range(1_000):
        size, rate = _size_and_rate(rng, family, number + container)
        if size > room:
            break
        room -= size
        name = f"h{container}-{number}"
        value = rate * rng.uniform(0.2, 2.4)
        held.append(Held(instance=name, function=name, level=Level.LOADED, value=value, bytes=size))
    return tuple(held)


def gain(bins: Sequence[Bin], placed: Sequence[Assignment], churn: float = 0.0) -> float:
    """Sum of values placed minus (1 + churn) x values displaced."""
    worth = {held.instance: held.value for one in bins for held in one.held}
    return sum(one.value - (1.0 + churn) * sum(worth[instance] for instance in one.displaced) for one in placed)


def stays(bins: Sequence[Bin]) -> float:
    """What is held already."""
    return sum(held.value for one in bins for held in one.held)


def fractional(bins: Sequence[Bin], items: Sequence[Item]) -> float:
    """A bound above what can be there after a pass, what is held included: all memory is one room, and items could
    be cut (the linear relaxation's optimum). An item is worth less than the one that it stands on, or the two are
    one."""
    by_function: dict[str, list[Item]] = {}
    for item in items:
        by_function.setdefault(item.function, []).append(item)
    parts = [(held.value / (held.bytes or 1), held.value, held.bytes) for one in bins for held in one.held]
    for found in by_function.values():
        found.sort(key=lambda item: item.level)
        steps = [(item.value, item.weight) for item in found]
        if len(steps) == 2 and steps[1][0] * steps[0][1] >= steps[0][0] * steps[1][1]:
            steps = [(steps[0][0] + steps[1][0], steps[0][1] + steps[1][1])]
        parts += [(value / weight, value, weight) for value, weight in steps]
    parts.sort(reverse=True)
    left, total = sum(one.free + sum(held.bytes for held in one.held) for one in bins), 0.0
    for density, value, weight in parts:
        if weight > left:
            return total + density * left
        total, left = total + value, left - weight
    return total


def run(placement: Greedy, bins: list[Bin], items: list[Item], *, events: int, seed: int = 0) -> Measured:
    """The first pass of `placement`, and one after each of so many events: a function was called, and is worth
    more than before. Processor time of this thread, so that a busy machine counts for little."""
    rng = random.Random(seed)
    began = time.thread_time()
    placed = placement.place(bins, items)
    first = time.thread_time() - began
    there = stays(bins)
    best = fractional(bins, items)
    took: list[float] = []
    for _ in range(events):
        called = rng.randrange(len(items) // 2) * 2
        for at in (called, called + 1):
            one = items[at]
            items[at] = Item(
                function=one.function,
                namespace=one.namespace,
                level=one.level,
                value=one.value * 2.0,
                weight=one.weight,
                mounts=one.mounts,
            )
        began = time.thread_time()
        placement.place(bins, items)
        took.append(time.thread_time() - began)
    return Measured(1.0 - (there + gain(bins, placed)) / best, first, took)


def measure(report: Report, *, quick: bool = False) -> None:
    cases = [
        (functions, containers, family, memory, full)
        for functions, containers in (SIZES[:1] if quick else SIZES)
        for family in FAMILIES
        for memory in MEMORIES
        for full in (False, True)
    ]
    seeds, events = (QUICK, QUICK) if quick else (SEEDS, EVENTS)
    report.steps(len(cases))
    for functions, containers, family, memory, full in cases:
        held = "full" if full else "empty"
        name = f"{family}_{memory:g}_{held}_{functions}x{containers}"
        report.step(f"placement, {name}")
        few = 1 if functions > SIZES[0][0] and not quick else seeds
        problems = [problem(family, functions, containers, seed, memory, full=full) for seed in range(1, few + 1)]
        with garbage.settled():  # as in the server, whose passes these are
            for placement, make in PLACEMENTS.items():
                found = [run(make(), bins, list(items), events=events) for bins, items in problems]
                report.rows.append(_row(name, placement, found))
    report.table(
        "Placement passes",
        ["instance", "placement", "loss % (least-most)", "first pass ms", "after an event ms", "p99"],
        [
            [
                row["name"],
                row["placement"],
                between(*(100.0 * row[f"loss_{which}_fraction"] for which in ("p50", "least", "most"))),
                between(row["first_p50_ms"], row["first_least_ms"], row["first_most_ms"]),
                between(row["event_p50_ms"], row["event_least_ms"], row["event_most_ms"]),
                f"{row['event_p99_ms']:.2f}",
            ]
            for row in report.rows
        ],
        [
            "instance: family, memory as a share of all functions' size, containers empty or full, functions x"
            " containers.",
            "loss: against the linear relaxation, in which items can be cut: a bound above the best.",
            "placement: plain greedy, the default, and with what was placed moved about.",
            "ms: processor time; median (least-most). An event: one function is worth twice as much.",
        ],
    )


def _row(name: str, placement: str, found: Sequence[Measured]) -> dict[str, Any]:
    events = [took for one in found for took in one.event_s]
    row: dict[str, Any] = {"name": name, "placement": placement, "n": len(found), "events": len(events)}
    for key, values, scale, unit in (
        ("loss", [one.loss for one in found], 1.0, "fraction"),
        ("first", [one.first_s for one in found], 1e3, "ms"),
        ("event", events, 1e3, "ms"),
    ):
        row[f"{key}_p50_{unit}"] = float(np.median(values)) * scale
        row[f"{key}_least_{unit}"], row[f"{key}_most_{unit}"] = min(values) * scale, max(values) * scale
    row["event_p99_ms"] = float(np.percentile(events, 99)) * 1e3
    return row
