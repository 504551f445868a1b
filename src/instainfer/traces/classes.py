"""How regular a function's arrivals are, and replay sets drawn by that.

The papers' classes, by the coefficient of variation (CoV) of the gaps over the whole trace: predictable below 1,
normal from 1 to 4, bursty above. A function of fewer than ten arrivals has none.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from instainfer.errors import BadInput
from instainfer.traces.base import Floats, Trace

MIN_ARRIVALS = 10
_PREDICTABLE_BELOW = 1.0
_BURSTY_ABOVE = 4.0
_ANY = 1 << 62


class Regularity(StrEnum):
    PREDICTABLE = "predictable"
    NORMAL = "normal"
    BURSTY = "bursty"


def cov(trace: Trace) -> Floats:
    """Of each function: standard deviation over mean of its gaps; NaN where it has fewer than ten arrivals, and
    0 where all came at once."""
    order, bounds = trace.grouped
    times, functions = trace.times[order], trace.functions[order]
    inside = functions[1:] == functions[:-1]
    gaps, whose = np.diff(times)[inside], functions[1:][inside]
    kinds = len(trace.names)
    many = np.maximum(np.bincount(whose, minlength=kinds), 1)
    mean = np.bincount(whose, gaps, kinds) / many
    variance = np.bincount(whose, (gaps - mean[whose]) ** 2, kinds) / many
    found = np.divide(np.sqrt(variance), mean, out=np.zeros(kinds), where=mean > 0)
    found[np.diff(bounds) < MIN_ARRIVALS] = np.nan
    return found


def classify(trace: Trace) -> list[Regularity | None]:
    """Of each function; None where it has too few arrivals to say."""
    return [_class_of(value) for value in cov(trace)]


def sample(
    trace: Trace,
    regularity: Regularity,
    functions: int,
    *,
    seed: int = 0,
    arrivals: tuple[int, int] = (MIN_ARRIVALS, _ANY),
) -> Trace:
    """So many functions of one class, drawn without replacement, in the trace's order. `arrivals`: fewest and most
    that a function may have, both included; a set without a most is ruled by its busiest function.

    Raises BadInput where the trace has too few of them.
    """
    fewest, most = arrivals
    fit = [
        at
        for at, found in enumerate(classify(trace))
        if found is regularity and fewest <= int(trace.counts[at]) <= most
    ]
    if len(fit) < functions:
        raise BadInput(
            f"{functions} {regularity} functions are wanted and the trace has {len(fit)}",
            hint="ask for fewer, or take a longer trace",
        )
    drawn = np.sort(np.random.default_rng(seed).choice(fit, functions, replace=False))
    return trace.select(trace.names[at] for at in drawn)


def sample_sets(
    trace: Trace, functions: int, *, seed: int = 0, arrivals: tuple[int, int] = (MIN_ARRIVALS, _ANY)
) -> dict[Regularity, Trace]:
    """One set of each class."""
    return {kind: sample(trace, kind, functions, seed=seed, arrivals=arrivals) for kind in Regularity}


def _class_of(value: float) -> Regularity | None:
    if np.isnan(value):
        return None
    if value < _PREDICTABLE_BELOW:
        return Regularity.PREDICTABLE
    return Regularity.BURSTY if value > _BURSTY_ABOVE else Regularity.NORMAL
