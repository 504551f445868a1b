"""A predictor's forecast with what people announced merged in."""

from __future__ import annotations

from collections.abc import Iterable

from instainfer.policies.base import HORIZON_S, Predictor

#: An announced call may come this much earlier and later than said: clocks and people are inexact, and a
#: load has to be over when the call comes.
LEAD_S = 30.0
GRACE_S = 30.0


class Forecast:
    """Implements Predictor around a `base` one and adds hints.

    A hint says that `function` is called once around `at` with a probability: the arrival is spread evenly
    over [at - LEAD_S, at + GRACE_S], and what is left of it grows denser while the window passes without
    one. The first arrival inside the window uses the hint up; without one it expires with the window. A
    hinted function has a rate although it was never seen; `last` stays the base's.
    """

    def __init__(self, base: Predictor) -> None:
        self.base = base
        self._hints: dict[str, list[tuple[float, float]]] = {}  # (at, probability), earliest first
        # One pass asks for the same rates several times, and they are what it costs.
        self._rates: dict[str, float] = {}
        self._rates_at: float | None = None
        self._called: set[str] = set()

    def hint(self, function: str, at: float, probability: float) -> None:
        """Probabilities outside (0, 1] are clipped; nothing is remembered for zero."""
        if probability > 0.0:
            self._rates_at = None
            hints = self._hints.setdefault(function, [])
            hints.append((at, min(probability, 1.0)))
            hints.sort()

    def observe(self, function: str, now: float) -> None:
        self._rates_at = None
        self._called.add(function)
        self.base.observe(function, now)
        if self._hints:
            self._use_up(function, now)

    def forget(self, function: str) -> None:
        self._rates_at = None
        self._called.discard(function)
        self.base.forget(function)
        self._hints.pop(function, None)

    def rate(self, function: str, now: float) -> float:
        if now != self._rates_at:
            self._rates.clear()
            self._rates_at = now
        rate = self._rates.get(function)
        if rate is None:
            rate = self.base.rate(function, now)
            if self._hints:
                rate += self.hinted(function, now)
            self._rates[function] = rate
        return rate

    def rates(self, functions: Iterable[str], now: float) -> dict[str, float]:
        """Of each of them."""
        rate = self.base.rate
        rates = {function: rate(function, now) for function in functions}
        for function in self._hints.keys() & rates.keys():
            rates[function] += self.hinted(function, now)
        self._rates, self._rates_at = rates.copy(), now
        return rates

    def take_called(self) -> set[str]:
        """Those that were called since this was last asked: for one, the mode, that wants to know whose rates have
        moved by more than time."""
        called, self._called = self._called, set()
        return called

    def hinted(self, function: str, now: float) -> float:
        """The part of `rate` that comes from hints."""
        added = 0.0
        for at, probability in self._hints.get(function, ()):
            if at - LEAD_S <= now < at + GRACE_S:
                # Hazard of an even spread. A certain arrival would end in a division by zero: a second is
                # as fine as decisions are made.
                added += probability / max(LEAD_S + GRACE_S - probability * (now - at + LEAD_S), 1.0)
        return added

    def next_hint(self, function: str, now: float) -> float | None:
        """When the next window that is not open yet opens."""
        return next((at - LEAD_S for at, _ in self._hints.get(function, ()) if at - LEAD_S > now), None)

    def probability(self, function: str, now: float, horizon_s: float = HORIZON_S) -> float:
        any_arrival = self.base.probability(function, now, horizon_s)
        for at, probability in self._hints.get(function, ()):
            begin, end = at - LEAD_S, at + GRACE_S
            if now >= end:
                continue
            left = max(1.0 - probability * max(now - begin, 0.0) / (end - begin), 1e-9)
            overlap = max(min(now + max(horizon_s, 0.0), end) - max(now, begin), 0.0)
            any_arrival += (1.0 - any_arrival) * min(probability * overlap / (end - begin) / left, 1.0)
        return any_arrival

    def last(self, function: str) -> float | None:
        return self.base.last(function)

    def _use_up(self, function: str, now: float) -> None:
        hints = [hint for hint in self._hints.get(function, ()) if now < hint[0] + GRACE_S]
        if hints and now >= hints[0][0] - LEAD_S:
            del hints[0]
        if hints:
            self._hints[function] = hints
        else:
            self._hints.pop(function, None)
