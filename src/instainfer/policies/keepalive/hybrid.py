"""Hybrid-histogram keep-alive: unload after an execution, be there again when the next request is due.

Source: Shahrad et al.: Serverless in the Wild (USENIX ATC'20); windows are in predict/histogram.py.
"""

from __future__ import annotations

from instainfer.policies.base import ContainerView
from instainfer.policies.keepalive.agenda import Agenda
from instainfer.policies.keepalive.fixed import Fixed
from instainfer.policies.predict.arima import Series, needs_statsmodels
from instainfer.policies.predict.histogram import STANDARD, IdleHistogram, Windows


class _Function:
    __slots__ = ("awaited", "ended", "idle", "windows")

    def __init__(self, min_count: int, *, arima: bool) -> None:
        self.idle = IdleHistogram(min_count, Series() if arima else None)
        self.ended: float | None = None  # its last execution
        self.awaited = False  # no request came since
        self.windows = STANDARD  # as of the last idle time


class Hybrid(Fixed):
    """An idle time lasts from the end of an execution to the next arrival; of several ends in a row the last
    counts, and an arrival while others run ends none.

    A container that ran goes at once where a pre-warm window is set, and another is created when it is over;
    what is there from then on stays until the keep-alive window is over, too. A pre-warmed container is empty:
    what is loaded into it is the pre-loader's matter, and the request's. One is created per idle time, where
    none is idle and memory is free (see Prewarms). Under pressure those used longest ago go first: the source
    has no pressure.

    `arima`: idle times too long for the histogram are foretold as in the source (predict/arima.py; raises
    Unavailable without statsmodels), else by an autoregression that takes no library. The source fits at every
    idle time, here see Series.
    """

    def __init__(self, min_count: int = 1, arima: bool = False) -> None:
        super().__init__()
        if arima:
            needs_statsmodels()
        self.min_count = min_count
        self.arima = arima
        self._functions: dict[str, _Function] = {}
        self._agenda = Agenda()

    def arrived(self, function: str, now: float) -> None:
        known = self._functions.get(function)
        if known is None:
            known = self._functions[function] = _Function(self.min_count, arima=self.arima)
        if known.awaited and known.ended is not None:
            known.idle.add(max(now - known.ended, 0.0))
            known.awaited = False
            known.windows = known.idle.windows()
        self._agenda.set(function, None)

    def forget(self, function: str) -> None:
        self._functions.pop(function, None)
        self._agenda.set(function, None)

    def used(self, container: ContainerView, now: float, *, cold_s: float) -> None:
        known = self._functions.get(container.owner)
        if known is None:
            return
        known.ended = now
        known.awaited = True
        prewarm_s = known.windows.prewarm_s
        self._agenda.set(container.owner, now + prewarm_s if prewarm_s > 0.0 else None)

    def prewarm(self, now: float) -> tuple[list[str], float | None]:
        return self._agenda.take(now), self._agenda.next()

    def windows(self, function: str) -> Windows:
        known = self._functions.get(function)
        return STANDARD if known is None else known.windows

    def expires_at(self, container: ContainerView) -> float | None:
        if container.pinned:
            return None
        windows = self.windows(container.owner)
        known = self._functions.get(container.owner)
        if known is None or known.ended is None:
            return container.last_used + windows.end_s
        if windows.prewarm_s > 0.0 and container.last_used < known.ended + windows.prewarm_s:
            return container.last_used
        return max(known.ended + windows.end_s, container.last_used)
