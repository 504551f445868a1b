"""Gaps counted by their length."""

from __future__ import annotations

from bisect import bisect_right
from itertools import repeat
from operator import add


def _edges() -> tuple[float, ...]:
    edges = [0.0, 1.0]
    while edges[-1] < 7 * 86400.0:
        edges.append(edges[-1] * 1.12)  # a bin at one minute is 7 s wide, less than a look-ahead
    return tuple(edges)


#: Bins of gap lengths, seconds: below a second, then in steps of 12% up to a week; the last one is open.
EDGES = _edges()
_LAST = len(EDGES) - 1

_DECAY = 0.98  # of all earlier gaps at each new one: about the last fifty count
_RENORMALISE = 1e9  # weights grow instead of all counts being decayed at each arrival; far from overflow


class GapCounts:
    """How many of the last gaps were how long, in units of the newest one."""

    __slots__ = ("_beyond", "_weight", "total")

    def __init__(self) -> None:
        self._beyond = [0.0] * (_LAST + 2)  # gaps no shorter than each edge; added to as seldom as gaps come
        self._weight = 1.0  # of the newest gap
        self.total = 0.0

    def add(self, gap: float) -> None:
        self.total = self.total * _DECAY + 1.0
        self._weight /= _DECAY
        if self._weight > _RENORMALISE:
            scale = 1.0 / self._weight
            self._beyond = [count * scale for count in self._beyond]
            self._weight = 1.0
        beyond, index = self._beyond, bisect_right(EDGES, gap)
        beyond[:index] = map(add, beyond, repeat(self._weight, index))

    @property
    def weighed(self) -> tuple[list[float], float]:
        """What `beyond` tells it from: at each edge the gaps no shorter, and what the newest weighs in them."""
        return self._beyond, self._weight

    def beyond(self, begin: float, end: float) -> tuple[float, float]:
        """How many lasted longer than `begin`, and how many longer than `end`, which is no less. Gaps are taken as
        even inside a bin."""
        beyond, weight = self._beyond, self._weight
        longer = last = 0.0
        index = bisect_right(EDGES, begin)
        if index <= _LAST:
            edge, later = EDGES[index], beyond[index]
            longer = ((beyond[index - 1] - later) * (edge - begin) / (edge - EDGES[index - 1]) + later) / weight
        index = bisect_right(EDGES, end, index)
        if index <= _LAST:
            edge, later = EDGES[index], beyond[index]
            last = ((beyond[index - 1] - later) * (edge - end) / (edge - EDGES[index - 1]) + later) / weight
        return longer, last
