"""The hybrid histogram of idle times: what it says of one function, and a predictor that asks it.

Source: Shahrad et al.: Serverless in the Wild (USENIX ATC'20), "A Practical Resource Management Policy".
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from math import expm1, inf, log1p, sqrt
from typing import NamedTuple

from instainfer.policies.base import HORIZON_S, Quantiles
from instainfer.policies.predict.arima import Series
from instainfer.policies.predict.gaps import SHORTEST_S, Histories

BIN_S = 60.0
BINS = 240  # four hours
RANGE_S = BIN_S * BINS

_HEAD_PERCENT, _TAIL_PERCENT = 5, 99
_HEAD_MARGIN, _TAIL_MARGIN = 0.9, 1.1
_REPRESENTATIVE = 2.0  # coefficient of variation of the bins' counts
_PREWARM_SHARE, _KEEP_SHARE = 0.85, 0.30  # of a predicted idle time
_RECENT = 64  # idle times that the series' model is fitted to
_FEWEST = 4  # with less than these it is their mean


class Windows(NamedTuple):
    """After an execution: seconds until a container is to be there (0: it is not unloaded), and for how long
    from then on."""

    prewarm_s: float
    keep_s: float
    rule: str  # that gave them: histogram, series, standard

    @property
    def end_s(self) -> float:
        return self.prewarm_s + self.keep_s


STANDARD = Windows(0.0, RANGE_S, "standard")


class IdleHistogram:
    """Idle times of one function in bins of a minute; those of four hours and more are only counted.

    Mean and spread of the bins' counts are kept by Welford's method as one count changes. `min_count`: with
    fewer idle times than this the standard windows hold (the source leaves that open; 1 here). `series`: who is
    asked for the next idle time where half of them are too long; by default `next_of`.
    """

    __slots__ = ("_m2", "_mean", "bins", "inside", "min_count", "outside", "recent", "series")

    def __init__(self, min_count: int = 1, series: Series | None = None) -> None:
        self.series = series
        self.min_count = max(min_count, 1)
        self.bins = array("I", bytes(BINS * array("I").itemsize))
        self.inside = 0
        self.outside = 0
        self.recent: deque[float] = deque(maxlen=_RECENT)
        self._mean = 0.0
        self._m2 = 0.0

    def add(self, idle_s: float) -> None:
        """Zero or more seconds."""
        self.recent.append(idle_s)
        if self.series is not None:
            self.series.add(idle_s)
        if idle_s >= RANGE_S:
            self.outside += 1
            return
        place = int(idle_s / BIN_S)
        before = self.bins[place]
        self.bins[place] = before + 1
        self.inside += 1
        mean = self._mean + 1.0 / BINS
        self._m2 += (before + 1 - mean) + (before - self._mean)  # the value grew by one
        self._mean = mean

    @property
    def cv(self) -> float:
        """Standard deviation of the bins' counts over their mean; 0.0 while all are empty."""
        return sqrt(max(self._m2, 0.0) / BINS) / self._mean if self.inside else 0.0

    @property
    def outruns(self) -> bool:
        """At least half of its idle times are too long for the bins."""
        return 0 < self.inside + self.outside <= 2 * self.outside

    @property
    def representative(self) -> bool:
        return self.inside + self.outside >= self.min_count and self.cv >= _REPRESENTATIVE and not self.outruns

    def windows(self) -> Windows:
        if self.inside + self.outside < self.min_count:
            return STANDARD
        if self.outruns:
            expected = next_of(self.recent) if self.series is None else self.series.next()[0]
            return Windows(_PREWARM_SHARE * expected, _KEEP_SHARE * expected, "series")
        if not self.representative:
            return STANDARD
        head = self._bin_of(_HEAD_PERCENT) * BIN_S * _HEAD_MARGIN
        tail = (self._bin_of(_TAIL_PERCENT) + 1) * BIN_S * _TAIL_MARGIN
        return Windows(head, tail - head, "histogram")

    def _bin_of(self, percent: int) -> int:
        """The bin in which the percentile lies."""
        seen = 0
        for place, count in enumerate(self.bins):
            seen += count
            if seen and seen * 100 >= percent * self.inside:
                return place
        return BINS - 1

    def beyond(self, idle_s: float) -> float:
        """How many idle times were longer, those of one bin taken as spread evenly over it."""
        if idle_s >= RANGE_S:
            return float(self.outside)
        place = int(idle_s / BIN_S)
        rest = 1.0 - (idle_s / BIN_S - place)
        return self.bins[place] * rest + sum(self.bins[place + 1 :]) + self.outside

    def quantile(self, share: float) -> float:
        """The idle time that this share of them stays below; infinite where that is beyond the bins."""
        wanted = share * (self.inside + self.outside)
        for place, count in enumerate(self.bins):
            if count and wanted <= count:
                return (place + max(wanted, 0.0) / count) * BIN_S
            wanted -= count
        return inf


def next_of(idle_times: Iterable[float]) -> float:
    """The next of a series by a first-order autoregression, fitted in closed form:

        m + phi (last - m), phi = lag-1 covariance / variance, within [-1, 1]

    with the mean m for fewer than four, or where all are alike. It stands where the source has auto-ARIMA
    (predict/arima.py), which takes a library that a server need not have. Never below 0.
    """
    series = list(idle_times)
    mean = sum(series) / len(series)
    if len(series) < _FEWEST:
        return mean
    away = [one - mean for one in series]
    variance = sum(one * one for one in away)
    if variance <= 0.0:
        return mean
    phi = sum(one * other for one, other in pairwise(away)) / variance
    return max(mean + min(max(phi, -1.0), 1.0) * away[-1], 0.0)


class _History:
    __slots__ = ("first", "idle", "last")

    def __init__(self, now: float, min_count: int) -> None:
        self.first = self.last = now
        self.idle = IdleHistogram(min_count)

    def add(self, now: float) -> None:
        self.idle.add(max(now - self.last, 0.0))
        self.last = now


class Histogram(Histories[_History], Quantiles):
    """How likely is an arrival now, given that the function has been idle for so long? Of its idle times that
    lasted as long, the share that ended soon after.

    A predictor hears of arrivals only, so its idle times are gaps between arrivals: longer by an execution,
    which is far below a bin. Where the histogram is not representative the long-run rate stands for it; where
    half of the idle times outrun it, the next arrival is awaited evenly over the source's window around the
    series' next (from 0.85 to 1.15 of it).
    """

    def __init__(self, min_count: int = 1) -> None:
        super().__init__()
        self.min_count = min_count

    def begin(self, now: float) -> _History:
        return _History(now, self.min_count)

    def probability(self, function: str, now: float, horizon_s: float = HORIZON_S) -> float:
        history = self._histories.get(function)
        if history is None or horizon_s <= 0.0:
            return 0.0
        idle = max(now - history.last, 0.0)
        found = history.idle
        if found.representative:
            lasted = found.beyond(idle)
            return 1.0 - found.beyond(idle + horizon_s) / lasted if lasted > 0.0 else 0.0
        if found.outruns:
            windows = found.windows()
            begin, left = max(idle, windows.prewarm_s), windows.end_s - idle
            if left <= 0.0:
                return 0.0
            return min(max(idle + horizon_s - begin, 0.0) / (windows.end_s - begin), 1.0)
        return -expm1(-_long_run(history) * horizon_s)

    def quantile(self, function: str, p: float) -> float:
        history = self._histories.get(function)
        if history is None:
            return inf
        found = history.idle
        if found.representative:
            return found.quantile(p)
        if found.outruns:
            windows = found.windows()
            return windows.prewarm_s + p * windows.keep_s
        rate = _long_run(history)
        return -log1p(-p) / rate if rate > 0.0 else inf


def _long_run(history: _History) -> float:
    gaps = history.idle.inside + history.idle.outside
    return gaps / max(history.last - history.first, SHORTEST_S) if gaps else 0.0
