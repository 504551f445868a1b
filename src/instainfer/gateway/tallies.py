"""Invocations that ended, counted by second; and what is left of a batch of them once it is counted.

A busy server ends thousands a second. Whoever looks on sees their number and a few of them: they are counted in
the thread that has just saved them, and no record outlives that but the few that may be shown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import TypeVar

from instainfer.model import Activation

T = TypeVar("T")

SAMPLED = 250  # durations of one second and namespace that the quantiles are of


class Tally:
    """Of the invocations of one namespace (or container, or node) that ended in one second."""

    __slots__ = ("failed", "starts", "took")

    def __init__(self) -> None:
        self.failed = 0
        self.starts: dict[str, int] = {}
        self.took: list[float] = []  # of those that went well

    def add(self, rows: Sequence[Activation]) -> None:
        """At least one, all with the same `start` and `status`."""
        start = rows[0].start or "none"
        self.starts[start] = self.starts.get(start, 0) + len(rows)
        if rows[0].status != "ok":
            self.failed += len(rows)
        else:
            self.took += [row.e2e_s for row in spread(rows, SAMPLED - len(self.took))]

    def merge(self, other: Tally) -> None:
        self.failed += other.failed
        for start, count in other.starts.items():
            self.starts[start] = self.starts.get(start, 0) + count
        # In order: what is taken is then of the short and the long ones alike, and a minute of ordered seconds is
        # sorted in half the time.
        self.took = list(spread(sorted([*self.took, *other.took]), SAMPLED))


Counts = dict[int, dict[str, Tally]]  # by second since 1970, and by namespace, container or node


def counted(rows: Sequence[Activation], by: str) -> Counts:
    """By the second in which they ended and by that attribute. Neighbours are mostly alike, and those that are
    cost a comparison."""
    key = attrgetter(by)
    counts: Counts = {}
    begun, second, of, start, status = 0, math.inf, "", "", ""
    for place, row in enumerate(rows):
        ended = row.wall + row.e2e_s
        if second <= ended < second + 1.0 and row.start == start and row.status == status and key(row) == of:
            continue
        if place:
            tally_of(counts, int(second), of).add(rows[begun:place])
        begun, second, of, start, status = place, float(math.floor(ended)), key(row), row.start, row.status
    if rows:
        tally_of(counts, int(second), of).add(rows[begun:])
    return counts


def tally_of(counts: Counts, second: int, of: str) -> Tally:
    """The one of them, made if need be."""
    there = counts.get(second)
    if there is None:
        there = counts[second] = {}
    found = there.get(of)
    if found is None:
        found = there[of] = Tally()
    return found


def merge(counts: Counts, more: Counts) -> None:
    for second, there in more.items():
        for of, one in there.items():
            tally_of(counts, second, of).merge(one)


class Heard:
    """Of saved invocations, their counts and at most `most` of themselves. `by_container`: counted by it too."""

    def __init__(self, most: int, rows: Sequence[Activation] = (), by_container: bool = False) -> None:
        self.by_namespace = counted(rows, "namespace")
        self.by_container = counted(rows, "container") if by_container else {}
        self.kept = thinned(rows, most)
        self._most = most

    def merge(self, later: Heard) -> None:
        merge(self.by_namespace, later.by_namespace)
        merge(self.by_container, later.by_container)
        self.kept = thinned([*self.kept, *later.kept], self._most)

    def left_out(self) -> dict[str, int]:
        """How many of each namespace are counted and not kept."""
        left: Counter[str] = Counter()
        for there in self.by_namespace.values():
            for namespace, one in there.items():
                left[namespace] += sum(one.starts.values())
        left.subtract(row.namespace for row in self.kept)
        return dict(left)


def thinned(rows: Sequence[Activation], most: int) -> Sequence[Activation]:
    """At most so many of them, in their order: warm ones are left out first, the oldest of them first."""
    if len(rows) <= most:
        return rows
    rare = [place for place, row in enumerate(rows) if row.start != "warm" or row.status != "ok"]
    if not rare:
        return rows[-most:]
    chosen = set(rare[-most:])
    for place in range(len(rows) - 1, -1, -1):
        if len(chosen) == most:
            break
        chosen.add(place)
    return [rows[place] for place in sorted(chosen)]


def spread(values: Sequence[T], most: int) -> Sequence[T]:
    """At most so many, evenly from all of them."""
    if len(values) <= most:
        return values
    if not most:
        return ()
    step = -(-len(values) // most)
    return values[step // 2 :: step]
