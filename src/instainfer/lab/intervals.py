"""Which memory a call needs to save its latency: one interval of one size, and how intervals fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instainfer.lab.linear import Matrix
from instainfer.lab.pool import Budget, PoolTrace, least_budget
from instainfer.traces.base import Floats, Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervals:
    """One for each call that can save something; none overlaps another of the same function."""

    calls: Ints  # positions in the trace
    starts: Floats  # from when on its function must be in memory
    ends: Floats
    sizes: Floats
    values: Floats  # seconds

    def __len__(self) -> int:
        return len(self.calls)

    def where(self, chosen: NDArray[np.bool_]) -> Intervals:
        return Intervals(
            calls=self.calls[chosen],
            starts=self.starts[chosen],
            ends=self.ends[chosen],
            sizes=self.sizes[chosen],
            values=self.values[chosen],
        )

    def beside(self, other: Intervals) -> Intervals:
        """Both, one after the other."""
        return Intervals(
            calls=np.concatenate([self.calls, other.calls]),
            starts=np.concatenate([self.starts, other.starts]),
            ends=np.concatenate([self.ends, other.ends]),
            sizes=np.concatenate([self.sizes, other.sizes]),
            values=np.concatenate([self.values, other.values]),
        )

    @property
    def density(self) -> Floats:
        """Seconds saved for a MB held a second."""
        return self.values / np.maximum(self.sizes * (self.ends - self.starts), 1e-12)


def previous_times(pool: PoolTrace) -> Floats:
    """Of each call: when the same function was called before, -inf if never."""
    before = pool.trace.previous
    return np.where(before >= 0, pool.trace.times[np.maximum(before, 0)], -np.inf)


def kept(pool: PoolTrace) -> Intervals:
    """From each call's predecessor to it. First calls have none; one that comes at the same moment as the last
    needs no memory."""
    before = previous_times(pool)
    return _since(pool, np.maximum(before, 0.0)).where((pool.values > 0) & np.isfinite(before))


def just_in_time(pool: PoolTrace, takes: Floats) -> Intervals:
    """From the last moment at which each call's load can begin, or from its predecessor if that was later.
    `takes`: of each call, seconds of the load."""
    starts = np.maximum(np.maximum(previous_times(pool), pool.trace.times - takes), 0.0)
    return _since(pool, starts).where(pool.values > 0)


def moments(intervals: Intervals) -> Floats:
    """When anything begins or ends."""
    return np.unique(np.concatenate([intervals.starts, intervals.ends]))


def entries(intervals: Intervals, edges: Floats) -> int:
    """Of `usage` over these edges, about."""
    return int((np.searchsorted(edges, intervals.ends) - np.searchsorted(edges, intervals.starts)).sum())


def usage(intervals: Intervals, edges: Floats) -> Matrix:
    """MB that each takes from each edge to the next, on average over that step: one column an interval."""
    first = np.clip(np.searchsorted(edges, intervals.starts, "right") - 1, 0, len(edges) - 2)
    last = np.clip(np.searchsorted(edges, intervals.ends, "left"), first + 1, len(edges) - 1)
    many = last - first
    begins = np.concatenate([[0], np.cumsum(many)])
    column = np.repeat(np.arange(len(intervals)), many)
    row = np.arange(begins[-1]) - np.repeat(begins[:-1], many) + np.repeat(first, many)
    covered = np.minimum(edges[row + 1], intervals.ends[column]) - np.maximum(edges[row], intervals.starts[column])
    width = np.diff(edges)[row]  # 0 where an arrival follows another at once: nothing is held in no time
    share = np.divide(np.clip(covered, 0.0, None), width, out=np.zeros_like(width), where=width > 0.0)
    return Matrix(begins=begins, rows=row, values=share * intervals.sizes[column], height=len(edges) - 1)


def pack(intervals: Intervals, budget: Budget, ranks: Sequence[Floats]) -> float:
    """Value of a choice that fits at every moment: the best of several greedy ones, each from its highest rank
    down."""
    edges = moments(intervals)
    room = least_budget(budget, edges) if len(edges) > 1 else np.empty(0)
    starts = np.searchsorted(edges, intervals.starts).tolist()
    ends = np.searchsorted(edges, intervals.ends).tolist()
    sizes = intervals.sizes.tolist()
    best = 0.0
    for rank in ranks:
        free = room.copy()
        chosen = []
        for one in np.argsort(-rank, kind="stable").tolist():
            span = free[starts[one] : ends[one]]
            if not len(span) or span.min() >= sizes[one]:
                span -= sizes[one]
                chosen.append(one)
        best = max(best, float(intervals.values[chosen].sum()))
    return best


def _since(pool: PoolTrace, starts: Floats) -> Intervals:
    return Intervals(
        calls=np.arange(len(pool.trace)),
        starts=starts,
        ends=pool.trace.times,
        sizes=pool.size_mb[pool.trace.functions],
        values=pool.values,
    )
