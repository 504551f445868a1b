"""The rates of many functions at one moment, each to the last bit what `Hazard.rate` says of it.

For whoever asks for all of them again and again and has numpy: the simulator. Sums, products and quotients are
rounded alike in an array and alone; powers and the error function are not, so those are taken one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from math import erf

import numpy as np
from numpy.typing import NDArray

from instainfer.policies.predict.counts import EDGES
from instainfer.policies.predict.hazard import COUNTS_PRIOR, FLOOR, IMPOSSIBLE, Hazard
from instainfer.policies.predict.periods import LATE, MISSED

_Floats = NDArray[np.float64]

_EDGES = np.array(EDGES)
_LAST = len(EDGES) - 1
_RATES = 4  # experts that are a Rate, in their places
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
        self._table: _Floats = np.ones((_ROWS, len(functions)))  # a column each
        self._beyond: _Floats = np.zeros((len(functions), _LAST + 2))
        self._seen: NDArray[np.intp] = np.zeros(0, np.intp)  # places of those that were called at all, ascending
        self._names: list[str] = []  # theirs
        self._timed: NDArray[np.intp] = np.zeros(0, np.intp)  # columns of `_seen` that have a timer
        self._stale = {place for place, name in enumerate(functions) if hazard.last(name) is not None}

    def observed(self, function: str) -> None:
        self._stale.add(self._place[function])

    def rates(self, now: float) -> dict[str, float]:
        """Arrivals per second of each."""
        rates = dict.fromkeys(self._functions, 0.0)
        if self._stale:
            self._read()
        if not self._names:
            return rates
        window_s = self._hazard.window_s
        table = self._table[:, self._seen]
        idle = now - table[_CALLED]
        idle[idle < 0.0] = 0.0
        arrives = self._arrives(table, idle, window_s)
        often, once = table[_ARRIVALS][0] / (table[_SECONDS][0] + idle), 1.0 / window_s
        found = arrives * np.where(often > once, often, once)
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
        self._beyond[stale] = [one.counts.weighed[0] for one in histories]
        seen = {*self._seen.tolist(), *stale}
        if len(seen) > len(self._names):
            self._seen = np.array(sorted(seen), np.intp)
            self._names = [self._functions[place] for place in sorted(seen)]
        self._timed = np.flatnonzero(self._table[_PERIOD, self._seen])

    def _arrives(self, table: _Floats, idle: _Floats, within: float) -> _Floats:
        """As `_arrives` of hazard.py, step by step."""
        shares = table[_SHARES]
        shares[0] += FLOOR
        before, after = self._lasts(table, idle), self._lasts(table, idle + within)
        lasted = _sum(shares * before)
        ended = _sum(shares * (before - after))
        p = ended / np.maximum(lasted, IMPOSSIBLE)
        arrives: _Floats = np.where(p > 1.0, 1.0, np.where(p > 0.0, p, 0.0))
        for column in np.flatnonzero(lasted <= IMPOSSIBLE).tolist():
            waited = float(table[_SECONDS][0, column]) + float(idle[column])
            arrives[column] = 1.0 - (waited / (waited + within)) ** float(table[_ARRIVALS][0, column])
        return arrives

    def _lasts(self, table: _Floats, gap: _Floats) -> _Floats:
        """As `_History.lasts`: a row for each expert."""
        seconds = table[_SECONDS]
        lasts = np.zeros((6, len(gap)))
        base = (seconds / (seconds + gap)).ravel()
        powers = map(pow, base.tolist(), table[_ARRIVALS].ravel().tolist())
        lasts[:_RATES] = np.fromiter(powers, np.float64, base.size).reshape(seconds.shape)
        prior = COUNTS_PRIOR * lasts[0]
        lasts[4] = (self._longer(table[_WEIGHT], gap) + prior) / (table[_TOTAL] + COUNTS_PRIOR)
        if self._timed.size:
            period, spread = table[_PERIOD, self._timed], table[_SPREAD, self._timed]
            lasts[5, self._timed] = _outlast(period, spread, gap[self._timed])
        return lasts

    def _longer(self, weight: _Floats, gap: _Floats) -> _Floats:
        """As `GapCounts.beyond`."""
        index = np.minimum(np.searchsorted(_EDGES, gap, "right"), _LAST)
        begin, end = _EDGES[index - 1], _EDGES[index]
        longer, later = self._beyond[self._seen, index - 1], self._beyond[self._seen, index]
        inside = (longer - later) * (end - gap) / (end - begin)
        found: _Floats = np.where(gap < _EDGES[_LAST], (inside + later) / weight, 0.0)
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
