"""Traces whose hazards are known, to measure how near a policy comes to the best that any could do.

A process draws its arrivals and says, for any moment, its hazard given the arrivals before: the expected
arrivals a second that an observer sees who knows the process and its parameters, but not its hidden state.
`lab/bounds.py` integrates them. Processes are drawn independently, each from a generator of its own seeded by
(seed, name): adding a function changes no other's arrivals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import tau
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from instainfer.errors import BadInput
from instainfer.traces.base import Floats, Trace, gather
from instainfer.traces.placement import seed_of


class Process(Protocol):
    def draw(self, rng: np.random.Generator, length_s: float) -> Floats:
        """Arrivals in [0, length_s), ascending."""
        ...

    def hazard(self, at: Floats, arrivals: Floats) -> Floats:
        """Arrivals a second expected at each of the ascending times `at`, given the arrivals strictly before
        it."""
        ...

    def expected(self, edges: Floats, arrivals: Floats) -> Floats:
        """Arrivals expected from each edge to the next, given those up to and including the first of the two: the
        integral of the hazard. Edges ascend and no arrival lies strictly between two neighbours."""
        ...


@dataclass(frozen=True)
class Poisson:
    rate: float  # a second

    def draw(self, rng: np.random.Generator, length_s: float) -> Floats:
        return np.sort(rng.random(rng.poisson(self.rate * length_s))) * length_s

    def hazard(self, at: Floats, arrivals: Floats) -> Floats:
        return np.full(len(at), self.rate)

    def expected(self, edges: Floats, arrivals: Floats) -> Floats:
        return self.rate * np.diff(edges)


@dataclass(frozen=True)
class Timer:
    """Due at phase, phase + period, …; each time late by a uniform delay below `jitter_s`, which is less than a
    period. Schedulers fire late, never early, and do not let delays add up."""

    period_s: float
    phase_s: float
    jitter_s: float

    def draw(self, rng: np.random.Generator, length_s: float) -> Floats:
        due = np.arange(self.phase_s % self.period_s, length_s, self.period_s)
        fired = due + rng.random(len(due)) * self.jitter_s
        return fired[fired < length_s]

    def hazard(self, at: Floats, arrivals: Floats) -> Floats:
        late, open_ = self._late(at), ~self._fired(at, arrivals, "left")
        left = np.maximum(self.jitter_s - late, 1e-12)
        return np.where(open_ & (late >= 0) & (late < self.jitter_s), 1.0 / left, 0.0)

    def expected(self, edges: Floats, arrivals: Floats) -> Floats:
        """The integral of 1 / (time left) is a logarithm; it is infinite at the end of the jitter, which the
        arrival always precedes."""
        begins, ends = edges[:-1], edges[1:]
        due = begins - self._late(begins)
        total = np.zeros(len(begins))
        last = np.ceil(np.max(np.diff(edges), initial=0.0) / self.period_s) + 1
        for ahead in range(int(last) + 1):  # an edge may lie before the due time, and a bin may span several
            start = due + ahead * self.period_s
            low = np.clip(begins - start, 0.0, self.jitter_s)
            high = np.clip(ends - start, 0.0, self.jitter_s)
            waits = (high > low) & ~self._fired(np.maximum(begins, start), arrivals, "right", start)
            with np.errstate(divide="ignore"):
                part = np.log(self.jitter_s - low) - np.log(np.maximum(self.jitter_s - high, 1e-12))
            total += np.where(waits, part, 0.0)
        return total

    def _late(self, at: Floats) -> Floats:
        """Seconds since the latest due time; below zero before the first."""
        phase = self.phase_s % self.period_s
        return np.where(at < phase, at - phase, (at - phase) % self.period_s)

    def _fired(self, at: Floats, arrivals: Floats, side: str, due: Floats | None = None) -> NDArray[np.bool_]:
        """Whether the arrival of the latest due time (or of `due`) has come by `at`."""
        due = at - self._late(at) if due is None else due
        before = np.searchsorted(arrivals, at, side)  # type: ignore[call-overload]
        earlier = np.searchsorted(arrivals, due, "left")
        fired: NDArray[np.bool_] = before > earlier
        return fired


@dataclass(frozen=True)
class Diurnal:
    """Poisson at mean x (1 + swing x cos), highest at `peak_s`, with a swing from 0 to 1."""

    mean: float  # a second
    swing: float
    peak_s: float
    period_s: float = 86400.0

    def draw(self, rng: np.random.Generator, length_s: float) -> Floats:
        top = self.mean * (1 + self.swing)
        tried = np.sort(rng.random(rng.poisson(top * length_s))) * length_s
        return tried[rng.random(len(tried)) * top < self.hazard(tried, tried)]

    def hazard(self, at: Floats, arrivals: Floats) -> Floats:
        return self.mean * (1 + self.swing * np.cos(tau * (at - self.peak_s) / self.period_s))

    def expected(self, edges: Floats, arrivals: Floats) -> Floats:
        waves = np.sin(tau * (edges - self.peak_s) / self.period_s) * self.period_s / tau
        return self.mean * np.diff(edges + self.swing * waves)


@dataclass(frozen=True)
class Hidden:
    """Poisson at a rate that jumps (a Markov-modulated Poisson process): state i has `rates[i]`, is left after
    1 / `leaving[i]` seconds on average, and each of the other states follows with equal chance. Two states, one
    nearly silent, make bursts; several that last long make rate jumps.

    The hazard is what an observer of the arrivals alone can know: the mean of the rates over the posterior of
    the hidden state, by the exact filter. Between arrivals the unnormalised posterior follows
    exp((Q - diag(rates)) t), at an arrival it is multiplied by the rates.
    """

    rates: tuple[float, ...]
    leaving: tuple[float, ...]

    def draw(self, rng: np.random.Generator, length_s: float) -> Floats:
        state = int(rng.choice(len(self.rates), p=self._stationary()))
        now, found = 0.0, [np.empty(0)]
        while now < length_s:
            stays = rng.exponential(1 / self.leaving[state])
            until = min(now + stays, length_s)
            found.append(now + np.sort(rng.random(rng.poisson(self.rates[state] * (until - now)))) * (until - now))
            now += stays
            state = (state + int(rng.integers(1, len(self.rates)))) % len(self.rates)
        times = np.concatenate(found)
        return times[times < length_s]

    def hazard(self, at: Floats, arrivals: Floats) -> Floats:
        before = np.searchsorted(arrivals, at, "left")
        values, _, left = self._modes()
        since = at - np.concatenate([[0.0], arrivals])[before]
        now = (self._filtered(arrivals)[before] * np.exp(np.outer(since, values - values[-1]))) @ left
        rates: Floats = np.maximum(now @ np.array(self.rates), 0.0) / now.sum(axis=1)
        return rates

    def expected(self, edges: Floats, arrivals: Floats) -> Floats:
        """By the log of the chance of no arrival yet, whose slope is minus the hazard: exact."""
        before = np.searchsorted(arrivals, edges[:-1], "right")
        values, _, left = self._modes()
        weights = self._filtered(arrivals)[before] * left.sum(axis=1)
        last = np.concatenate([[0.0], arrivals])[before]

        def log_chance(at: Floats) -> Floats:
            chance = (weights * np.exp(np.outer(at - last, values - values[-1]))).sum(axis=1)
            logarithm: Floats = np.log(np.maximum(chance, 1e-300)) + values[-1] * (at - last)
            return logarithm

        return log_chance(edges[:-1]) - log_chance(edges[1:])

    def _stationary(self) -> Floats:
        """Of a walk that leaves to any other state alike: as long as a state lasts."""
        stays = 1 / np.array(self.leaving)
        shares: Floats = stays / stays.sum()
        return shares

    def _modes(self) -> tuple[Floats, Floats, Floats]:
        """Eigenvalues, vectors and their inverse of Q - diag(rates), made symmetric by the stationary weights:
        the walk is reversible."""
        leaving, weight = np.array(self.leaving), np.sqrt(self._stationary())
        jumps = np.repeat(leaving[:, None] / (len(leaving) - 1), len(leaving), axis=1)
        np.fill_diagonal(jumps, -leaving)
        values, vectors = np.linalg.eigh((weight[:, None] * (jumps - np.diag(self.rates))) / weight[None, :])
        return values, vectors / weight[:, None], vectors.T * weight[None, :]

    def _filtered(self, arrivals: Floats) -> Floats:
        """(arrivals + 1) x states: the posterior at the start and just after each arrival, in the modes'
        coordinates (times `left` it is the chance of each state)."""
        values, right, left = self._modes()
        jump = (left * np.array(self.rates)) @ right
        sums = left.sum(axis=1)
        decays = np.exp(np.outer(np.diff(arrivals, prepend=0.0), values - values[-1]))
        found = np.empty((len(arrivals) + 1, len(self.rates)))
        now = found[0] = self._stationary() @ right
        for at, decay in enumerate(decays, start=1):
            now = (now * decay) @ jump
            now /= now @ sums
            found[at] = now
        return found


def bursts(*, inside: float, outside: float, burst_s: float, quiet_s: float) -> Hidden:
    """Arrivals a second inside and outside bursts, and how long each lasts on average."""
    return Hidden(rates=(outside, inside), leaving=(1 / quiet_s, 1 / burst_s))


def jumps(rates: tuple[float, ...], *, lasts_s: float) -> Hidden:
    """A rate that holds for so long on average and then is another of these."""
    return Hidden(rates=rates, leaving=(1 / lasts_s,) * len(rates))


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """A trace and what made it; `processes` are in the order of its functions."""

    trace: Trace
    processes: tuple[Process, ...]


def generate(processes: Mapping[str, Process], length_s: float, *, seed: int = 0, source: str = "") -> Synthetic:
    """Functions keep the mapping's order."""
    if length_s <= 0:
        raise BadInput(f"a trace of {length_s} s is empty", hint="give a length above zero")
    drawn = [
        process.draw(np.random.default_rng([seed, seed_of(name)]), length_s) for name, process in processes.items()
    ]
    functions = np.repeat(np.arange(len(drawn), dtype=np.int32), [len(times) for times in drawn])
    trace = gather(
        list(processes),
        np.concatenate([np.empty(0), *drawn]),
        functions,
        length_s=length_s,
        source=source or f"synthetic, seed {seed}",
    )
    return Synthetic(trace=trace, processes=tuple(processes.values()))


def synthetic(kind: str, functions: int, length_s: float, *, seed: int = 0) -> Synthetic:
    """`kind`: one of KINDS. Parameters are drawn per function, log-uniform, so that mean gaps run from half a
    minute to an hour: what arrives oftener is always loaded, what arrives less often never matters.

    Raises BadInput.
    """
    if kind not in KINDS:
        raise BadInput(f"there is no synthetic trace {kind!r}", hint=f"the kinds are {', '.join(KINDS)}")
    if functions < 1:
        raise BadInput(f"{functions} functions", hint="give 1 or more")
    digits = len(str(functions - 1))
    processes: dict[str, Process] = {}
    for number in range(functions):
        name = f"{kind}-{number:0{digits}}"
        rng = np.random.default_rng([seed, seed_of(name, 1)])
        processes[name] = KINDS[kind](rng)
    return generate(processes, length_s, seed=seed, source=f"synthetic {kind}, seed {seed}")


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _poisson(rng: np.random.Generator) -> Process:
    return Poisson(1 / _log_uniform(rng, 30, 3600))


def _timer(rng: np.random.Generator) -> Process:
    period = float(rng.choice([60, 120, 300, 600, 900, 1800, 3600]))
    return Timer(period, rng.random() * period, rng.uniform(0.01, 0.1) * period)


def _bursts(rng: np.random.Generator) -> Process:
    gap = _log_uniform(rng, 2, 30)
    return bursts(
        inside=1 / gap,
        outside=1 / _log_uniform(rng, 3600, 36000),
        burst_s=gap * rng.uniform(5, 30),
        quiet_s=_log_uniform(rng, 600, 7200),
    )


def _diurnal(rng: np.random.Generator) -> Process:
    return Diurnal(1 / _log_uniform(rng, 30, 3600), rng.uniform(0.5, 1), rng.uniform(0, 86400))


def _jumps(rng: np.random.Generator) -> Process:
    return jumps(tuple(1 / _log_uniform(rng, 30, 7200) for _ in range(3)), lasts_s=_log_uniform(rng, 1800, 14400))


def _mixed(rng: np.random.Generator) -> Process:
    return (_poisson, _timer, _bursts, _diurnal, _jumps)[int(rng.integers(5))](rng)


KINDS: Mapping[str, Callable[[np.random.Generator], Process]] = {
    "poisson": _poisson,
    "timers": _timer,
    "bursts": _bursts,
    "diurnal": _diurnal,
    "jumps": _jumps,
    "mixed": _mixed,
}
