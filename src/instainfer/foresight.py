"""How far off forecasts are: for every function, when its next call was expected, against when it came.

Forecasts are asked between requests, a few at each tick; the path of a request sees two dictionaries. So of a
function that is called more often than ticks come, some gaps are measured and most are not.
"""

from __future__ import annotations

from instainfer.observe import Histogram
from instainfer.policies.base import Predictor

MOST = 8  # functions a tick: asking costs up to 0.1 ms each, and requests wait meanwhile
SOONEST_S, LATEST_S = 0.05, 86_400.0
STEPS = 16  # halvings of that range: the answer is right to less than a thousandth


class Foresight:
    """The expected time is the median: by when the next call has come with probability one half. A function
    for which that is beyond a day is not expected, and nothing is measured."""

    def __init__(self, predictor: Predictor, errors: Histogram) -> None:
        self._predictor = predictor
        self._errors = errors
        self._due: dict[str, float] = {}  # function -> when its next call is expected
        self._called: dict[str, None] = {}  # since it was last asked about, in order

    def arrived(self, function: str, now: float) -> None:
        """Of every request, on its path."""
        due = self._due.pop(function, None)
        if due is not None:
            self._errors.observe(abs(due - now))
        self._called[function] = None

    def forget(self, function: str) -> None:
        self._due.pop(function, None)
        self._called.pop(function, None)

    def tick(self, now: float) -> None:
        """Expect the next calls of some functions that were called meanwhile."""
        for function in list(self._called)[:MOST]:
            del self._called[function]
            after = self.expected(function, now)
            if after is not None:
                self._due[function] = now + after

    def expected(self, function: str, now: float) -> float | None:
        """Seconds from now by when a call has come with probability one half."""

        def early(horizon_s: float) -> bool:
            return self._predictor.probability(function, now, horizon_s) < 0.5

        low, high = SOONEST_S, LATEST_S
        if early(high):
            return None
        for _ in range(STEPS):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if early(middle) else (low, middle)
        return high
