"""The default predictor: a mixture of what the next gap may be, whose shares are learned from each function's
own arrivals.

How likely is an arrival in the next moments, given that the function has been idle for so long? Every expert says
how long the next gap lasts; the answer is their mixture, and the idle time is what has already been seen of that
gap: an expert that expected it to be over counts for as little as it had left.

- the *long-run* rate decays with time. Always defined, never sharp;
- the *bursts* are the rate of the last few gaps: how busy it is now;
- *spells* and *pauses* are rates of those gaps that were theirs, by what all had expected: how fast a busy
  function is called, learned from one burst to the next, and how soon a quiet one comes back;
- the *counts* say how many of its gaps ended at which length: sharp, and noisy where they are few;
- the *timer* expects the period in which the last gaps agree.

With every gap each expert's share moves towards the probability that the gap was one of its (online
expectation-maximisation), each having been asked before it learned of the gap. So a function chooses for itself
how much to trust its counts over a rate: shrinkage by what it would have gained. Functions learn nothing from
each other: shares that start at the average of all others' differed by less than 0.1 points of latency saved.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import exp

from instainfer.policies.base import HORIZON_S
from instainfer.policies.predict import periods
from instainfer.policies.predict.counts import GapCounts
from instainfer.policies.predict.periods import Period
from instainfer.policies.predict.rates import Rate

#: The long-run rate forgets over hours: deployments change with the working day.
_LONG_RUN_S = 6 * 3600.0
_BURST_KEEPS = 0.7  # of what is known, at each gap: about the last three count
_SPELL_KEEPS = 0.97  # about the last thirty that were in one
_PAUSE_KEEPS = 0.98  # about the last fifty that were pauses
#: Counts start as so many gaps of the long-run rate: enough that no length is impossible.
COUNTS_PRIOR = 0.5
#: The n-th gap moves the shares by 2 / (n + 4): later ones count for more, as the experts knew little when they
#: were asked of the first. In the long run by 3%: a function that has become another one is learned anew within
#: some thirty gaps.
_SHARE_GAIN = 2.0
_SHARE_PRIOR = 4.0
_SHARE_STEP = 0.03
#: What the long-run rate counts for beyond its share: no gap may be one that nobody expected.
FLOOR = 0.01

#: Arrivals within this share of a window count as one: no decision could come between them, and a function under
#: load costs next to nothing to observe.
_TOGETHER = 0.1

IMPOSSIBLE = 1e-100

_EXPERTS = 6  # in this order: long run, pauses, bursts, spells, counts, timer

#: Of each expert in its place at one time, and of each at a later one.
_Lasts = tuple[float, float, float, float, float, float, float, float, float, float, float, float]


@dataclass(slots=True)
class _History:
    last: float
    learned: float  # the last arrival that began a gap of its own
    arrivals: int = 1
    #: Prior: half an arrival in half an hour, so that one arrival suffices for a rate above zero.
    long_run: Rate = field(default_factory=lambda: Rate(0.5, 1800.0, 1.5, 1800.0))
    #: Whose gap is not known is taken to be an hour's.
    pauses: Rate = field(default_factory=lambda: Rate(1.0, 3600.0, 1.0, 3600.0))
    #: One arrival at once (a millisecond: equal times must not give an infinite rate), and a minute to forget.
    bursts: Rate = field(default_factory=lambda: Rate(1.0, 1e-3, 1.0, 60.0))
    spells: Rate = field(default_factory=lambda: Rate(1.0, 1e-3, 1.0, 60.0))
    counts: GapCounts = field(default_factory=GapCounts)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=periods.GAPS))
    timer: Period | None = None
    shares: list[float] = field(default_factory=lambda: [1.0 / _EXPERTS] * _EXPERTS)

    def lasts(self, begin: float, end: float) -> _Lasts:
        """Of each expert the probability that the next gap lasts longer than `begin`, then of each that it lasts
        longer than `end`; of the timer 0.0 where there is none."""
        long_run, pauses, bursts, spells = self.long_run, self.pauses, self.bursts, self.spells
        counts, timer = self.counts, self.timer
        # see Rate
        seconds, arrivals = long_run.seconds, long_run.arrivals
        a0, b0 = (seconds / (seconds + begin)) ** arrivals, (seconds / (seconds + end)) ** arrivals
        seconds, arrivals = pauses.seconds, pauses.arrivals
        a1, b1 = (seconds / (seconds + begin)) ** arrivals, (seconds / (seconds + end)) ** arrivals
        seconds, arrivals = bursts.seconds, bursts.arrivals
        a2, b2 = (seconds / (seconds + begin)) ** arrivals, (seconds / (seconds + end)) ** arrivals
        seconds, arrivals = spells.seconds, spells.arrivals
        a3, b3 = (seconds / (seconds + begin)) ** arrivals, (seconds / (seconds + end)) ** arrivals
        total = counts.total + COUNTS_PRIOR
        a4, b4 = counts.beyond(begin, end)
        a4, b4 = (a4 + COUNTS_PRIOR * a0) / total, (b4 + COUNTS_PRIOR * b0) / total
        if timer is None:
            return a0, a1, a2, a3, a4, 0.0, b0, b1, b2, b3, b4, 0.0
        return a0, a1, a2, a3, a4, timer.outlasts(begin), b0, b1, b2, b3, b4, timer.outlasts(end)

    def in_the_long_run(self, idle: float, within: float) -> float:
        """Probability that a gap which has lasted `idle` ends in the next `within` seconds, by the long-run rate:
        what is left where nobody knows better."""
        waited = self.long_run.seconds + idle
        return float(1.0 - (waited / (waited + within)) ** self.long_run.arrivals)

    def learn(self, gap: float, window_s: float) -> None:
        """Shares first, from what was expected; then what each expert knows."""
        # Decisions see no finer than a window, so gaps are told apart no finer.
        begin = max(gap - window_s / 2.0, 0.0)
        s0, s1, s2, s3, s4, s5 = self.shares
        a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5 = self.lasts(begin, begin + window_s)
        p0, p1, p2, p3, p4 = s0 * (a0 - b0), s1 * (a1 - b1), s2 * (a2 - b2), s3 * (a3 - b3), s4 * (a4 - b4)
        total, asked = p0 + p1 + p2 + p3 + p4, s0 + s1 + s2 + s3 + s4
        p5 = 0.0
        if self.timer is not None:
            p5 = s5 * (a5 - b5)
            total, asked = total + p5, asked + s5
        if total > IMPOSSIBLE:
            step = max(_SHARE_GAIN / (_SHARE_PRIOR + self.arrivals), _SHARE_STEP)
            scale = step * asked / total  # who was not asked keeps its share
            self.shares = [
                s0 + (scale * p0 - step * s0),
                s1 + (scale * p1 - step * s1),
                s2 + (scale * p2 - step * s2),
                s3 + (scale * p3 - step * s3),
                s4 + (scale * p4 - step * s4),
                s5 if self.timer is None else s5 + (scale * p5 - step * s5),
            ]
            paused, spelled = p1 / total, p3 / total  # their places among the experts
            self.pauses.add(gap, 1.0 - (1.0 - _PAUSE_KEEPS) * paused, paused)
            self.spells.add(gap, 1.0 - (1.0 - _SPELL_KEEPS) * spelled, spelled)
        self.long_run.add(gap, exp(-gap / _LONG_RUN_S))
        self.bursts.add(gap, _BURST_KEEPS)
        self.counts.add(gap)
        self.recent.append(gap)
        self.timer = periods.find(self.recent)
        self.arrivals += 1


class Hazard:
    """See the module. `rate` is the probability of an arrival in the next `window_s`, over `window_s`: a load
    takes seconds, so the worth of having the function must be seen that far ahead.

    It is not -log(1 - p) over `window_s`: that is the same where arrivals are rare, but where they are not it
    counts many, and a timer that is due has one miss to lose, no more than a function called about once a window.
    Only of one that is called several times per window, by its long-run rate, all calls count.
    """

    def __init__(self, window_s: float = 10.0) -> None:
        if window_s <= 0.0:
            raise ValueError("window_s must be above zero")
        self.window_s = window_s
        self._histories: dict[str, _History] = {}

    def observe(self, function: str, now: float) -> None:
        history = self._histories.get(function)
        if history is None:
            self._histories[function] = _History(now, now)
            return
        if now > history.last:
            history.last = now
        gap = history.last - history.learned
        if gap < self.window_s * _TOGETHER:
            history.long_run.arrivals += 1.0
            return
        history.learned = history.last
        history.learn(gap, self.window_s)

    def forget(self, function: str) -> None:
        self._histories.pop(function, None)

    def history(self, function: str) -> _History:
        """What is known of one that was observed; KeyError for any other. To read, not to change."""
        return self._histories[function]

    def last(self, function: str) -> float | None:
        history = self._histories.get(function)
        return None if history is None else history.last

    def period(self, function: str) -> float | None:
        history = self._histories.get(function)
        return None if history is None or history.timer is None else history.timer.period

    def rate(self, function: str, now: float) -> float:
        history = self._histories.get(function)
        if history is None:
            return 0.0
        idle = now - history.last
        if idle < 0.0:
            idle = 0.0
        often, once = history.long_run.after(idle), 1.0 / self.window_s
        return _arrives(history, idle, self.window_s) * (often if often > once else once)

    def probability(self, function: str, now: float, horizon_s: float = HORIZON_S) -> float:
        history = self._histories.get(function)
        if history is None or horizon_s <= 0.0:
            return 0.0
        return _arrives(history, max(now - history.last, 0.0), horizon_s)


def _arrives(history: _History, idle: float, within: float) -> float:
    """Probability that a gap which has lasted `idle` ends in the next `within` seconds."""
    s0, s1, s2, s3, s4, s5 = history.shares
    s0 += FLOOR
    a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5 = history.lasts(idle, idle + within)
    lasted = s0 * a0 + s1 * a1 + s2 * a2 + s3 * a3 + s4 * a4 + s5 * a5
    ended = s0 * (a0 - b0) + s1 * (a1 - b1) + s2 * (a2 - b2) + s3 * (a3 - b3) + s4 * (a4 - b4) + s5 * (a5 - b5)
    if lasted <= IMPOSSIBLE:  # longer than anyone expected
        return history.in_the_long_run(idle, within)
    p = ended / lasted
    return 1.0 if p > 1.0 else p if p > 0.0 else 0.0
