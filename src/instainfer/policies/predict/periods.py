"""Timers: functions whose last gaps agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, sqrt

#: The period is told from so many gaps: three wrong ones in eight do not hide it.
GAPS = 8
_SPREAD = 0.15  # a timer's gaps spread by less than this share of its period
_JITTER_S = 0.5  # added to the spread: schedulers fire late by fractions of a second
_SIGMA = 1.4826  # of a normal distribution, from its MAD
LATE = 5.0 / sqrt(2.0)  # five sigmas, in spreads: later than this is a turn missed
#: Of its turns a timer misses so many: what a gap of two periods is worth when most had one. How far to trust the
#: timer at all is not its own to say.
MISSED = 0.1


@dataclass(slots=True)
class Period:
    """A gap is one period, normally spread, or with probability `MISSED` each a further one."""

    period: float
    spread: float  # sigma x sqrt(2)

    def outlasts(self, gap: float) -> float:
        """Probability that a gap lasts longer than this."""
        late = LATE * self.spread
        missed = int((gap - late) / self.period) if gap > late else 0
        fires = 0.5 * (1.0 - MISSED) * (1.0 + erf((gap - (missed + 1) * self.period) / self.spread))
        return float(MISSED**missed) * (1.0 - fires)


def find(gaps: Sequence[float]) -> Period | None:
    """By median and MAD of the last gaps."""
    count = len(gaps)
    if count < 3:
        return None
    middle, other = count // 2, (count - 1) // 2
    ordered = sorted(gaps)
    period = (ordered[middle] + ordered[other]) / 2.0
    off = sorted([abs(gap - period) for gap in ordered])
    sigma = _SIGMA * (off[middle] + off[other]) / 2.0 + _JITTER_S
    return None if sigma >= _SPREAD * period else Period(period, sigma * sqrt(2.0))
