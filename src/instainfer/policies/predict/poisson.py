"""The papers' predictor: a Poisson process whose rate is that of a sliding window of arrivals.

Source: InstaInfer (SoCC'24) and Tyche (TPDS 2026), "Proactive Pre-loader"; W = 10 where they are silent.
"""

from __future__ import annotations

import math
from collections import deque

from instainfer.policies.base import HORIZON_S

#: Arrivals closer than this count as this far apart: equal timestamps must not give an infinite rate.
_SHORTEST_WINDOW_S = 1e-3


def due_after(rate: float, p: float) -> float:
    """-ln(1 - p) / rate: seconds after the last arrival when F(t) = 1 - exp(-rate t) reaches `p`.

    T_load is this at P_load and T_offload at P_offload. Infinite when there is no rate.
    """
    return -math.log1p(-p) / rate if rate > 0.0 else math.inf


class SlidingWindowPoisson:
    """rate = W / T_w.

    W arrivals happened in the half-open window that starts *at* the arrival before them and ends at the last
    one: T_w = last - start, the sum of W gaps. With n <= W arrivals known in all, the first of them opens the
    window and W = n - 1. This is the reading under which W / T_w is the rate of evenly spaced arrivals;
    counting the opening arrival too would overstate it by 1 / W. A single arrival has no rate: 0.0.

    The process has no memory, so the rate does not change until the next arrival.
    """

    def __init__(self, window: int = 10) -> None:
        if window < 1:
            raise ValueError(f"a window of {window} arrivals has no gap")
        self.window = window
        self._arrivals: dict[str, deque[float]] = {}

    def observe(self, function: str, now: float) -> None:
        arrivals = self._arrivals.get(function)
        if arrivals is None:
            arrivals = self._arrivals[function] = deque(maxlen=self.window + 1)
        arrivals.append(now)

    def forget(self, function: str) -> None:
        self._arrivals.pop(function, None)

    def rate(self, function: str, now: float) -> float:
        arrivals = self._arrivals.get(function)
        if arrivals is None or len(arrivals) < 2:
            return 0.0
        return (len(arrivals) - 1) / max(arrivals[-1] - arrivals[0], _SHORTEST_WINDOW_S)

    def probability(self, function: str, now: float, horizon_s: float = HORIZON_S) -> float:
        """F(horizon): how long the function has been idle does not enter."""
        return -math.expm1(-self.rate(function, now) * max(horizon_s, 0.0))

    def last(self, function: str) -> float | None:
        arrivals = self._arrivals.get(function)
        return arrivals[-1] if arrivals else None
