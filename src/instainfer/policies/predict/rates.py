"""A rate that is not known for certain, and the gaps that it lets expect."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Rate:
    """Arrivals counted over seconds watched (Gamma-Poisson): the rate is about arrivals / seconds, the vaguer the
    fewer there are. A gap outlasts t with probability (seconds / (seconds + t)) ** arrivals, the heavy tail of a
    Lomax distribution, and the hazard falls as it lasts.

    The prior, `prior_arrivals` in `prior_s`, is part of both sums and is never forgotten.
    """

    prior_arrivals: float
    prior_s: float
    arrivals: float
    seconds: float

    def add(self, gap: float, keep: float, share: float = 1.0) -> None:
        """A gap that counts for `share` of an arrival; what was seen before counts for `keep` of what it did."""
        self.arrivals = (self.arrivals - self.prior_arrivals) * keep + share + self.prior_arrivals
        self.seconds = (self.seconds - self.prior_s) * keep + share * gap + self.prior_s

    def after(self, idle: float) -> float:
        """Arrivals per second when a gap has lasted so long."""
        return self.arrivals / (self.seconds + idle)
