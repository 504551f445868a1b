"""How often a function was called, and nothing else: what frequency-based caches know."""

from __future__ import annotations

from math import expm1

from instainfer.policies.base import HORIZON_S

_SHORTEST_S = 1e-3  # in which several arrivals can have come


class Frequency:
    """The rate is that of the whole life: gaps so far over the time from the first arrival until now. A single
    arrival has none."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float, float]] = {}  # arrivals, first, last

    def observe(self, function: str, now: float) -> None:
        count, first, _ = self._seen.get(function, (0, now, now))
        self._seen[function] = count + 1, first, now

    def forget(self, function: str) -> None:
        self._seen.pop(function, None)

    def count(self, function: str) -> int:
        """Arrivals so far."""
        seen = self._seen.get(function)
        return 0 if seen is None else seen[0]

    def rate(self, function: str, now: float) -> float:
        seen = self._seen.get(function)
        if seen is None or seen[0] < 2:
            return 0.0
        count, first, _ = seen
        return (count - 1) / max(now - first, _SHORTEST_S)

    def probability(self, function: str, now: float, horizon_s: float = HORIZON_S) -> float:
        return -expm1(-self.rate(function, now) * max(horizon_s, 0.0))

    def last(self, function: str) -> float | None:
        seen = self._seen.get(function)
        return None if seen is None else seen[2]
