"""The pool world as arrays: what bounds and the plain caches are computed on.

One memory pool, at most one copy of each function, loads that take no time, executions that take none either. A
call saves its function's latency if it finds a copy.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from instainfer.traces.base import Floats, Trace

Hits = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Memory over time: `mb[i]` from `times[i]` on; the first time is 0."""

    times: Floats
    mb: Floats

    def mean(self, edges: Floats) -> Floats:
        """From each edge to the next."""
        piled = np.concatenate([[0.0], np.cumsum(np.diff(self.times) * self.mb[:-1])])
        at = np.searchsorted(self.times, edges, "right") - 1
        used = piled[at] + (edges - self.times[at]) * self.mb[at]
        return np.diff(used) / np.maximum(np.diff(edges), 1e-12)

    def least(self, edges: Floats) -> Floats:
        """From each edge to the next."""
        first = np.searchsorted(self.times, edges[:-1], "right") - 1
        last = np.searchsorted(self.times, edges[1:], "left")
        lows = self.mb[first]
        for at in np.flatnonzero(last - first > 1):
            lows[at] = self.mb[first[at] : last[at]].min()
        return lows


Budget = float | Steps


def mean_budget(budget: Budget, edges: Floats) -> Floats:
    return budget.mean(edges) if isinstance(budget, Steps) else np.full(len(edges) - 1, float(budget))


def least_budget(budget: Budget, edges: Floats) -> Floats:
    return budget.least(edges) if isinstance(budget, Steps) else np.full(len(edges) - 1, float(budget))


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolTrace:
    """A trace with what its functions cost. Calls before `warmup_s` happen and are not counted."""

    trace: Trace
    size_mb: Floats  # of each function
    latency_s: Floats  # of each function
    warmup_s: float = 0.0

    def __post_init__(self) -> None:
        kinds = len(self.trace.names)
        if len(self.size_mb) != kinds or len(self.latency_s) != kinds:
            raise ValueError(f"sizes and latencies must be those of {kinds} functions")
        if (self.size_mb <= 0).any() or (self.latency_s < 0).any():
            raise ValueError("sizes must be above zero, and latencies not below")

    @property
    def counted(self) -> Hits:
        return self.trace.times >= self.warmup_s

    @property
    def values(self) -> Floats:
        """Seconds that each call can save; 0 in the warm-up."""
        return np.where(self.counted, self.latency_s[self.trace.functions], 0.0)

    @property
    def total_s(self) -> float:
        return float(self.values.sum())

    def share(self, fraction: float) -> float:
        """A budget in MB: so much of all functions' size."""
        return fraction * float(self.size_mb.sum())

    def saved_fraction(self, hits: Hits) -> float:
        total = self.total_s
        return float(self.values[hits].sum()) / total if total else 0.0


def lru(pool: PoolTrace, budget_mb: float) -> Hits:
    """What was called longest ago goes first. Of each call: did it find its function?"""
    size = pool.size_mb.tolist()
    kept: OrderedDict[int, None] = OrderedDict()
    hits = np.zeros(len(pool.trace), np.bool_)
    free = budget_mb
    for call, function in enumerate(pool.trace.functions.tolist()):
        if function in kept:
            hits[call] = True
            kept.move_to_end(function)
            continue
        if size[function] > budget_mb:
            continue
        while free < size[function]:
            victim, _ = kept.popitem(last=False)
            free += size[victim]
        kept[function] = None
        free -= size[function]
    return hits


def gdsf(pool: PoolTrace, budget_mb: float, *, remember: bool = False, bypass: bool = False) -> Hits:
    """Greedy-dual size frequency: priority = clock + calls x latency / size; the lowest goes first, of equals
    the one called longest ago, and the clock is what the last to go had.

    `remember`: an evicted function's calls still count when it comes back. `bypass`: a newcomer is put in first
    and may be the lowest itself; otherwise room is made before it comes.
    """
    size = pool.size_mb.tolist()
    density = (pool.latency_s / pool.size_mb).tolist()
    calls = [0] * len(size)
    current: dict[int, tuple[float, int]] = {}  # of what is kept: (priority, call)
    heap: list[tuple[float, int, int]] = []
    hits = np.zeros(len(pool.trace), np.bool_)
    clock, free = 0.0, budget_mb

    def keep(function: int, call: int) -> None:
        current[function] = (clock + calls[function] * density[function], call)
        heappush(heap, (*current[function], function))

    def evict() -> None:
        nonlocal clock, free
        while True:
            priority, call, victim = heappop(heap)
            if current.get(victim) == (priority, call):
                break
        del current[victim]
        clock = priority
        free += size[victim]
        if not remember:
            calls[victim] = 0

    for call, function in enumerate(pool.trace.functions.tolist()):
        if size[function] > budget_mb:
            continue
        calls[function] += 1
        if function in current:
            hits[call] = True
            keep(function, call)
        else:
            while not bypass and free < size[function]:
                evict()
            free -= size[function]
            keep(function, call)
            while free < 0:
                evict()
        if len(heap) > 4 * len(size) + 64:
            heap = [(*entry, one) for one, entry in current.items()]
            heapify(heap)
    return hits
