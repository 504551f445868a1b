"""The rates of many functions at one moment, each to the last bit what `Hazard.rate` says of it.

For whoever asks for all of them again and again and has numpy: the simulator. Sums, products and quotients are
rounded alike in an array and alone; powers and the error function are not, so those are taken one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from operator import getitem

import numpy as np
from numpy.typing import NDArray

from instainfer.policies.predict.counts import EDGES
from instainfer.policies.predict.hazard import COUNTS_PRIOR, FLOOR, IMPOSSIBLE, Hazard
from instainfer.policies.predict.periods import LATE, MISSED

_Floats = NDArray[np.float64]
_Ints = NDArray[np.intp]

_EDGES = np.array(EDGES)
_LAST = len(EDGES) - 1
#: What so many missed turns are worth; further ones are nothing.
_MISSES = np.array([MISSED**turns for turns in range(400)])
_EXPERTS, _RATES = 6, 4  # of which so many are a Rate, the first
#: Rows of the table: shares of the experts, then what each knows.
_SHARES, _SECONDS, _ARRIVALS = slice(0, 6), slice(6, 10), slice(10, 14)
_TOTAL, _WEIGHT, _PERIOD, _SPREAD, _CALLED = 14, 15, 16, 17, 18
_ROWS = 19


class Hazards:
    """Of these functions, as `hazard` has seen them. What it knows of one is read again once `observed` was told
    of it; functions must not be forgotten."""

    def __init__(self, hazard: Hazard, functions: Sequence[str]) -> None:
        self._hazard = hazard
        self._zeros = dict.fromkeys(functions, 0.0)
        self._names: list[str] = []  # of those that were called at all, in that order: a column each
        self._column: dict[str, int] = {}
        count = len(functions)
        self._table: _Floats = np.ones((_ROWS, count))
        self._beyond: list[list[float]] = []  # of GapCounts: two of each row are read, so none is copied
        self._stale = {name: None for name in functions if hazard.last(name) is not None}
        # The end of one look ahead is often the beginning of the next.
        self._asked: _Floats = np.full(count, -1.0)  # the gap that a column of `_answers` is about
        self._answers: _Floats = np.zeros((_EXPERTS, count))
        # And most stay in one bin from one look to the next.
        self._bins: _Floats = np.zeros((4, count))

    def observed(self, function: str) -> None:
        self._stale[function] = None

    def rates(self, now: float) -> dict[str, float]:
        """Arrivals per second of each."""
        if self._stale:
            self._read()
        rates = self._zeros.copy()
        count = len(self._names)
        if not count:
            return rates
        window_s, table = self._hazard.window_s, self._table[:, :count]
        idle: _Floats = np.maximum(now - table[_CALLED], 0.0)
        often = table[_ARRIVALS.start] / (table[_SECONDS.start] + idle)
        found = self._arrives(idle, window_s) * np.maximum(often, 1.0 / window_s)
        rates.update(zip(self._names, found.tolist(), strict=True))
        return rates

    def _read(self) -> None:
        columns, stale = [], []
        for name in self._stale:
            one = self._hazard.history(name)
            place = self._column.get(name)
            if place is None:
                place = self._column[name] = len(self._names)
                self._names.append(name)
                self._beyond.append([])
            beyond, weight = one.counts.weighed
            self._beyond[place] = beyond
            stale.append(place)
            long_run, pauses, bursts, spells, timer = one.long_run, one.pauses, one.bursts, one.spells, one.timer
            columns.append(
                (
                    *one.shares,
                    *(long_run.seconds, pauses.seconds, bursts.seconds, spells.seconds),
                    *(long_run.arrivals, pauses.arrivals, bursts.arrivals, spells.arrivals),
                    *(one.counts.total, weight),
                    *((0.0, 0.0) if timer is None else (timer.period, timer.spread)),
                    one.last,
                )
            )
        self._stale.clear()
        values = np.fromiter(chain.from_iterable(columns), np.float64, _ROWS * len(stale))
        self._table[:, stale] = values.reshape(len(stale), _ROWS).T
        self._asked[stale] = -1.0
        self._bins[:, stale] = 0.0  # no gap is in that one

    def _arrives(self, idle: _Floats, within: float) -> _Floats:
        """As `_arrives` of hazard.py, step by step."""
        count = len(idle)
        table, bins, answers = self._table[:, :count], self._bins[:, :count], self._answers[:, :count]
        asked = np.flatnonzero(idle != self._asked[:count])
        if asked.size:
            gap = idle[asked]
            answers[:, asked] = _lasts(table[:, asked], self._bins_of(asked, gap), gap)
        later = idle + within
        moved = np.flatnonzero((later < bins[0]) | (later >= bins[1]))
        if moved.size:
            bins[:, moved] = self._bins_of(moved, later[moved])
        after = _lasts(table, bins, later)
        shares = table[_SHARES].copy()
        shares[0] += FLOOR
        lasted = _sum(shares * answers)
        p = _sum(shares * (answers - after)) / np.maximum(lasted, IMPOSSIBLE)
        self._asked[:count], answers[:] = later, after
        arrives: _Floats = np.minimum(np.maximum(p, 0.0), 1.0)
        for place in np.flatnonzero(lasted <= IMPOSSIBLE).tolist():
            history = self._hazard.history(self._names[place])
            arrives[place] = history.in_the_long_run(float(idle[place]), within)
        return arrives

    def _bins_of(self, places: _Ints, gap: _Floats) -> _Floats:
        """Of the bin that each gap is in, see GapCounts: where it begins and ends, and how many lasted so long."""
        index = np.minimum(_EDGES.searchsorted(gap, "right"), _LAST)
        beyond = self._beyond
        rows = [beyond[place] for place in places.tolist()]
        bins = np.empty((4, gap.size))
        bins[0], bins[1] = _EDGES[index - 1], _EDGES[index]
        bins[2] = np.fromiter(map(getitem, rows, (index - 1).tolist()), np.float64, gap.size)
        bins[3] = np.fromiter(map(getitem, rows, index.tolist()), np.float64, gap.size)
        return bins


def _lasts(table: _Floats, bins: _Floats, gap: _Floats) -> _Floats:
    """As `_History.lasts` at one time: a row for each expert, a column for each function."""
    seconds = table[_SECONDS]
    lasts = np.zeros((_EXPERTS, gap.size))
    base = (seconds / (seconds + gap)).ravel()
    powers = map(math.pow, base.tolist(), table[_ARRIVALS].ravel().tolist())
    lasts[:_RATES] = np.fromiter(powers, np.float64, base.size).reshape(seconds.shape)
    begin, end, longer, later = bins
    beyond = np.where(gap < _EDGES[_LAST], (longer - later) * (end - gap) / (end - begin) + later, 0.0)
    lasts[4] = (beyond / table[_WEIGHT] + COUNTS_PRIOR * lasts[0]) / (table[_TOTAL] + COUNTS_PRIOR)
    timed = np.flatnonzero(table[_PERIOD])
    if timed.size:
        lasts[5, timed] = _outlast(table[_PERIOD, timed], table[_SPREAD, timed], gap[timed])
    return lasts


def _outlast(period: _Floats, spread: _Floats, gap: _Floats) -> _Floats:
    """As `Period.outlasts`."""
    late = LATE * spread
    missed = np.where(gap > late, np.trunc((gap - late) / period), 0.0)
    turns = map(math.erf, ((gap - (missed + 1.0) * period) / spread).tolist())
    fires = 0.5 * (1.0 - MISSED) * (1.0 + np.fromiter(turns, np.float64, gap.size))
    left: _Floats = _MISSES[np.minimum(missed, len(_MISSES) - 1).astype(np.intp)] * (1.0 - fires)
    return left


def _sum(rows: _Floats) -> _Floats:
    """From the first to the last, as one adds them by hand."""
    total: _Floats = rows[0] + rows[1]
    for row in rows[2:]:
        total += row
    return total
