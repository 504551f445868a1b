"""ARIMA over the gaps of one function: what comes next, and how far off that may be.

Source: Tyche (TPDS 2026) compares predictors, ARIMA among them; Shahrad et al.: Serverless in the Wild (USENIX
ATC'20) fit it to idle times that outrun their histogram. Neither says more than "auto-ARIMA".
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate, pairwise
from math import erfc, expm1, inf, isfinite, log, sqrt
from statistics import NormalDist, fmean, pstdev
from typing import NamedTuple

from instainfer.errors import Unavailable
from instainfer.policies.base import HORIZON_S, Quantiles
from instainfer.policies.predict.gaps import SHORTEST_S, Histories, due

WINDOW = 64  # gaps that a model is fitted to
FEWEST = 8  # with less than these it is their mean and spread
REFIT = 64  # new gaps until it is fitted again

_ORDERS = tuple((p, q) for p in range(3) for q in range(3))
_STATIONARY = 0.463  # 5% level of the KPSS test; above it differences are taken
_LEAST_SPREAD_S = 0.5  # gaps that are all alike are still not known better
_FAILED = 1e-9  # so improbable is the present idle time that the forecast has been proved wrong


def needs_statsmodels() -> None:
    """Raises Unavailable where it is not installed. Does not import it: that takes a second."""
    if find_spec("statsmodels") is None:
        raise _missing()


def _missing() -> Unavailable:
    return Unavailable("ARIMA needs statsmodels", hint="pip install 'instainfer[lab]'")


class Model(NamedTuple):
    """y' = mean + sum ar (y' before - mean) + sum ma (errors before), y' being y or, once `differenced`, its
    steps, whose mean is 0."""

    differenced: bool
    mean: float
    ar: tuple[float, ...]
    ma: tuple[float, ...]
    spread: float

    def next(self, series: Sequence[float]) -> float:
        """Of the value that follows; errors before the first are taken as none."""
        steps = [after - before for before, after in pairwise(series)] if self.differenced else series
        values = [0.0] * len(self.ar)  # latest first
        errors = [0.0] * len(self.ma)
        expected = self._expected(values, errors)
        for step in steps:
            if self.ar:
                values = [step - self.mean, *values[:-1]]
            if self.ma:
                errors = [step - expected, *errors[:-1]]
            expected = self._expected(values, errors)
        return series[-1] + expected if self.differenced else expected

    def _expected(self, values: list[float], errors: list[float]) -> float:
        return (
            self.mean
            + sum(share * value for share, value in zip(self.ar, values, strict=True))
            + sum(share * error for share, error in zip(self.ma, errors, strict=True))
        )


def fit(series: Sequence[float]) -> Model:
    """The usual steps of an automatic choice: differences where the KPSS test denies a constant level; the order,
    up to (2, 2), of least AICc by Hannan and Rissanen's regressions, which are cheap; and that one by maximum
    likelihood. Tens of milliseconds. Where nothing converges it is mean and spread."""
    plain = Model(False, fmean(series), (), (), pstdev(series))
    scale = plain.spread
    if not scale > 1e-9 * max(abs(plain.mean), 1.0):
        return plain
    try:
        import numpy as np
        from statsmodels.tsa.arima.estimators.hannan_rissanen import (
            hannan_rissanen,
        )
        from statsmodels.tsa.arima.model import ARIMA
    except ModuleNotFoundError as error:  # something that it needs itself
        raise _missing() from error
    values = (np.asarray(series, float) - plain.mean) / scale  # a fit's tolerances are absolute
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        differenced = kpss(list(values)) > _STATIONARY
        used = np.diff(values) if differenced else values
        best = inf
        order = (0, 0)
        for p, q in _ORDERS:
            try:
                found, _ = hannan_rissanen(used, ar_order=p, ma_order=q, demean=not differenced)
            except (ValueError, np.linalg.LinAlgError, IndexError):
                continue  # too few values for this order
            count, parameters = len(used), p + q + 1 + (not differenced)
            if not found.sigma2 > 0.0 or count <= parameters + 1:
                continue
            penalty = 2 * parameters * count / (count - parameters - 1)
            if (score := count * log(found.sigma2) + penalty) < best:
                best, order = score, (p, q)
        try:
            fitted = ARIMA(used, order=(order[0], 0, order[1]), trend="n" if differenced else "c").fit()
        except (ValueError, np.linalg.LinAlgError):
            return plain
    named = dict(zip(fitted.param_names, (float(one) for one in fitted.params), strict=True))
    if not all(isfinite(one) for one in named.values()):
        return plain
    return Model(
        differenced,
        0.0 if differenced else plain.mean + scale * named.get("const", 0.0),
        tuple(named[f"ar.L{lag}"] for lag in range(1, order[0] + 1)),
        tuple(named[f"ma.L{lag}"] for lag in range(1, order[1] + 1)),
        scale * sqrt(max(named["sigma2"], 0.0)),
    )


def kpss(values: Sequence[float]) -> float:
    """The statistic of Kwiatkowski, Phillips, Schmidt and Shin against a constant level, with Bartlett's weights
    over 4 (n / 100)^(1/4) lags; 0.0 where it has none. (The library's own chooses the lags and fails where
    neighbours cancel out.)"""
    count = len(values)
    mean = fmean(values)
    away = [value - mean for value in values]
    lags = int(4.0 * (count / 100.0) ** 0.25)
    variance = sum(one * one for one in away)
    for lag in range(1, lags + 1):
        weight = 1.0 - lag / (lags + 1.0)
        variance += 2.0 * weight * sum(one * other for one, other in zip(away[lag:], away, strict=False))
    walked = sum(total * total for total in accumulate(away))
    return walked / (count * variance) if variance > 0.0 else 0.0


class Series:
    """A series of gaps, or idle times, and what is expected next.

    A model is fitted when 8, 16, 32, 64 values are there and then at every `refit` of them, to the last 64; in
    between it goes on with what came since. It is fitted when somebody first asks, to the values that were there
    when it was due: whether anybody asks makes no difference to the answers.
    """

    __slots__ = ("_answer", "_fitted_at", "_model", "count", "refit", "values")

    def __init__(self, refit: int = REFIT) -> None:
        self.refit = refit
        self.count = 0
        self.values: deque[float] = deque(maxlen=WINDOW + refit)
        self._model: Model | None = None
        self._fitted_at = 0
        self._answer: tuple[float, float] | None = None

    def add(self, value: float) -> None:
        self.count += 1
        self.values.append(value)
        self._answer = None

    def next(self) -> tuple[float, float]:
        """(seconds expected, never below 0; standard deviation of that). There must be a value."""
        if self._answer is None:
            at = due(self.count, FEWEST, self.refit)
            if at > self._fitted_at:
                since = self.count - at
                held = list(self.values)
                self._model = fit(held[: len(held) - since][-WINDOW:])
                self._fitted_at = at
            values = list(self.values)
            if self._model is None:
                expected, spread = fmean(values), pstdev(values) if len(values) > 1 else values[0]
            else:
                expected, spread = self._model.next(values), self._model.spread
            self._answer = max(expected, 0.0), max(spread, _LEAST_SPREAD_S)
        return self._answer


class _History:
    __slots__ = ("first", "gaps", "last")

    def __init__(self, now: float, refit: int) -> None:
        self.first = self.last = now
        self.gaps = Series(refit)

    def add(self, now: float) -> None:
        self.gaps.add(max(now - self.last, 0.0))
        self.last = now


class Arima(Histories[_History], Quantiles):
    """The next gap is normally distributed around what ARIMA expects, as its theory has it, cut off at the idle
    time so far. An idle time that this does not allow for (1 in 10^9) proves the forecast wrong, and the
    long-run rate stands for it. Raises Unavailable without statsmodels, and ValueError for a senseless `refit`
    (new gaps until a model is fitted again)."""

    def __init__(self, refit: int = REFIT) -> None:
        if refit < FEWEST:
            raise ValueError(f"refit is {refit}, and a model needs {FEWEST} gaps")
        needs_statsmodels()
        super().__init__()
        self.refit = refit

    def begin(self, now: float) -> _History:
        return _History(now, self.refit)

    def probability(self, function: str, now: float, horizon_s: float = HORIZON_S) -> float:
        history = self._histories.get(function)
        if history is None or horizon_s <= 0.0 or not history.gaps.count:
            return 0.0
        expected, spread = history.gaps.next()
        idle = max(now - history.last, 0.0)
        lasts = _beyond(idle, expected, spread)
        if lasts < _FAILED:
            rate = history.gaps.count / max(history.last - history.first, SHORTEST_S)
            return -expm1(-rate * horizon_s)
        return 1.0 - min(_beyond(idle + horizon_s, expected, spread) / lasts, 1.0)

    def quantile(self, function: str, p: float) -> float:
        history = self._histories.get(function)
        if history is None or not history.gaps.count:
            return inf
        expected, spread = history.gaps.next()
        below = 1.0 - _beyond(0.0, expected, spread)  # no gap is: that part is cut off
        share = min(max(below + p * (1.0 - below), 1e-12), 1.0 - 1e-12)
        return max(NormalDist(expected, spread).inv_cdf(share), 0.0)


def _beyond(value: float, expected: float, spread: float) -> float:
    """Probability that a normal variate lies beyond it."""
    return 0.5 * erfc((value - expected) / (spread * sqrt(2.0)))
