"""What predictors share that keep a history of each function and ask how its next gap is spread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log1p
from typing import Generic, Protocol, TypeVar

from instainfer.policies.base import HORIZON_S

LOOK_AHEAD_S = 10.0  # of a rate: a load takes seconds
SHORTEST_S = 1e-3  # in which several arrivals can have come
_ALMOST_SURE = 0.9999


class History(Protocol):
    """Of one function, since its first arrival."""

    last: float

    def add(self, now: float) -> None:
        """A further arrival."""
        ...


H = TypeVar("H", bound=History)


class Histories(ABC, Generic[H]):
    """All of Predictor but what the next arrival's probability is."""

    def __init__(self) -> None:
        self._histories: dict[str, H] = {}

    @abstractmethod
    def begin(self, now: float) -> H:
        """The history of a function that has arrived for the first time."""

    @abstractmethod
    def probability(self, function: str, now: float, horizon_s: float = HORIZON_S) -> float: ...

    def observe(self, function: str, now: float) -> None:
        history = self._histories.get(function)
        if history is None:
            self._histories[function] = self.begin(now)
        else:
            history.add(now)

    def forget(self, function: str) -> None:
        self._histories.pop(function, None)

    def last(self, function: str) -> float | None:
        history = self._histories.get(function)
        return None if history is None else history.last

    def rate(self, function: str, now: float) -> float:
        """Of a Poisson process with the same probability of an arrival soon."""
        p = self.probability(function, now, LOOK_AHEAD_S)
        return -log1p(-min(p, _ALMOST_SURE)) / LOOK_AHEAD_S if p > 0.0 else 0.0


def due(count: int, fewest: int, every: int) -> int:
    """How many gaps there were when the model that holds after `count` of them was to be fitted: `fewest` and each
    doubling of it, then every multiple of `every`; 0: it never was."""
    if count >= every:
        return count - count % every
    at, size = 0, fewest
    while size <= count:
        at, size = size, size * 2
    return at
