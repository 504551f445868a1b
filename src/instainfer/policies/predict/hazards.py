"""The rates of many functions at one moment, each to the last bit what `Hazard.rate` says of it.

For whoever asks for all of them again and again and has numpy: the simulator. Sums, products and quotients are
rounded alike in an array and alone; powers and the error function are not, so those are taken one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from math import erf
from operator import getitem

import numpy as np
from numpy.typing import NDArray

from instainfer.policies.predict.counts import EDGES
from instainfer.policies.predict.hazard import COUNTS_PRIOR, FLOOR, IMPOSSIBLE, Hazard
from instainfer.policies.predict.periods import LATE, MISSED

_Floats = NDArray[np.float64]

_EDGES = np.array(EDGES)
_LAST = len(EDGES) - 1
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
        self._functions = list(functions)
        self._place = {name: place for place, name in enumerate(functions)}
        count = len(functions)
        self._table: _Floats = np.ones((_ROWS, count))  # a column each
        self._beyond: list[list[float]] = [[]] * count  # of GapCounts: two of each row are read, so none is copied
        self._seen: NDArray[np.intp] = np.zeros(0, np.intp)  # places of those that were called at all, ascending
        self._names: list[str] = []  # theirs
        self._stale = {place for place, name in enumerate(functions) if hazard.last(name) is not None}
        # The end of one look ahead is often the beginning of the next: see `_History.lasts`.
        self._asked: _Floats = np.full(count, -1.0)  # the gap that a column of `_answers` is about
        self._answers: _Floats = np.zeros((_EXPERTS, count))

    def observed(self, function: str) -> None:
        self._stale.add(self._place[function])

    def rates(self, now: float) -> dict[str, float]:
        """Arrivals per second of each."""
        rates = dict.fromkeys(self._functions, 0.0)
        if self._stale:
            self._read()
        if not self._names:
            return rates
        window_s, seen = self._hazard.window_s, self._seen
        idle = now - self._table[_CALLED, seen]
        idle[idle < 0.0] = 0.0
        often = self._table[_ARRIVALS.start, seen] / (self._table[_SECONDS.start, seen] + idle)
        once = 1.0 / window_s
        found = self._arrives(seen, idle, window_s) * np.where(often > once, often, once)
        rates.update(zip(self._names, found.tolist(), strict=True))
        return rates

    def _read(self) -> None:
        stale = sorted(self._stale)
        self._stale.clear()
        histories = [self._hazard.history(self._functions[place]) for place in stale]
        columns = []
        for one in histories:
            long_run, pauses, bursts, spells, timer = one.long_run, one.pauses, one.bursts, one.spells, one.timer
            columns.append(
                (
                    *one.shares,
                    *(long_run.seconds, pauses.seconds, bursts.seconds, spells.seconds),
                    *(long_run.arrivals, pauses.arrivals, bursts.arrivals, spells.arrivals),
                    *(one.counts.total, one.counts.weighed[1]),
                    *((0.0, 0.0) if timer is None else (timer.period, timer.spread)),
                    one.last,
                )
            )
        self._table[:, stale] = np.array(columns).T
        for place, one in zip(stale, histories, strict=True):
            self._beyond[place] = one.counts.weighed[0]
        self._asked[stale] = -1.0
        seen = {*self._seen.tolist(), *stale}
        if len(seen) > len(self._names):
            self._seen = np.array(sorted(seen), np.intp)
            self._names = [self._functions[place] for place in sorted(seen)]

    def _arrives(self, places: NDArray[np.intp], idle: _Floats, within: float) -> _Floats:
        """As `_arrives` of hazard.py, step by step."""
        shares = self._table[_SHARES, places]
        shares[0] += FLOOR
        asked = np.flatnonzero(idle != self._asked[places])
        self._answers[:, places[asked]] = self._lasts(places[asked], idle[asked])
        before = self._answers[:, places]
        after = self._lasts(places, idle + within)
        self._asked[places], self._answers[:, places] = idle + within, after
        lasted = _sum(shares * before)
        p = _sum(shares * (before - after)) / np.maximum(lasted, IMPOSSIBLE)
        arrives: _Floats = np.where(p > 1.0, 1.0, np.where(p > 0.0, p, 0.0))
        for column in np.flatnonzero(lasted <= IMPOSSIBLE).tolist():
            history = self._hazard.history(self._functions[places[column]])
            arrives[column] = history.in_the_long_run(float(idle[column]), within)
        return arrives

    def _lasts(self, places: NDArray[np.intp], gap: _Floats) -> _Floats:
        """As `_History.lasts`: a row for each expert."""
        table = self._table[:, places]
        seconds = table[_SECONDS]
        lasts = np.zeros((_EXPERTS, len(gap)))
        base = (seconds / (seconds + gap)).ravel()
        powers = map(pow, base.tolist(), table[_ARRIVALS].ravel().tolist())
        lasts[:_RATES] = np.fromiter(powers, np.float64, base.size).reshape(seconds.shape)
        prior = COUNTS_PRIOR * lasts[0]
        lasts[4] = (self._longer(places, gap) / table[_WEIGHT] + prior) / (table[_TOTAL] + COUNTS_PRIOR)
        timed = np.flatnonzero(table[_PERIOD])
        if timed.size:
            lasts[5, timed] = _outlast(table[_PERIOD, timed], table[_SPREAD, timed], gap[timed])
        return lasts

    def _longer(self, places: NDArray[np.intp], gap: _Floats) -> _Floats:
        """As `GapCounts.beyond`, not yet over the weight of the newest gap."""
        index = np.minimum(np.searchsorted(_EDGES, gap, "right"), _LAST)
        begin, end = _EDGES[index - 1], _EDGES[index]
        beyond = self._beyond
        rows = [beyond[place] for place in places.tolist()]
        longer = np.fromiter(map(getitem, rows, (index - 1).tolist()), np.float64, gap.size)
        later = np.fromiter(map(getitem, rows, index.tolist()), np.float64, gap.size)
        inside = (longer - later) * (end - gap) / (end - begin)
        found: _Floats = np.where(gap < _EDGES[_LAST], inside + later, 0.0)
        return found


def _outlast(period: _Floats, spread: _Floats, gap: _Floats) -> _Floats:
    """As `Period.outlasts`."""
    late = LATE * spread
    missed = np.where(gap > late, np.trunc((gap - late) / period), 0.0)
    turns = map(erf, ((gap - (missed + 1.0) * period) / spread).tolist())
    fires = 0.5 * (1.0 - MISSED) * (1.0 + np.fromiter(turns, np.float64, gap.size))
    left: _Floats = np.fromiter(map(pow, repeat(MISSED), missed.tolist()), np.float64, gap.size) * (1.0 - fires)
    return left


def _sum(rows: _Floats) -> _Floats:
    """From the first to the last, as one adds them by hand."""
    total: _Floats = rows[0] + rows[1]
    for row in rows[2:]:
        total += row
    return total
