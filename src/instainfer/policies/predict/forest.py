"""A random forest over the gaps of one function.

Source: Tyche (TPDS 2026) compares predictors, a random forest among them, and says neither features nor sizes;
how a forest states a distribution rather than a mean is Meinshausen: Quantile Regression Forests (JMLR 2006).
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections import deque
from importlib.util import find_spec
from itertools import accumulate
from math import cos, expm1, inf, log1p, pi, sin

from instainfer.errors import Unavailable
from instainfer.policies.base import HORIZON_S, Quantiles
from instainfer.policies.predict.gaps import SHORTEST_S, Histories, due

TREES = 24
WINDOW = 256  # gaps that a forest is grown from
FEWEST = 16  # with less than these it is the long-run rate
REFIT = 256  # new gaps until it is grown again

_LAGS = 5  # last gaps among the features
_LEAF = 4  # fewest gaps in a leaf
_DAY_S = 86400.0

Features = tuple[float, ...]


def needs_scikit_learn() -> None:
    """Raises Unavailable where it is not installed. Does not import it: that takes a second."""
    if find_spec("sklearn") is None:
        raise _missing()


def _missing() -> Unavailable:
    return Unavailable("a random forest needs scikit-learn", hint="pip install 'instainfer[lab]'")


def features(gaps: list[float], at: float) -> Features:
    """Of an arrival at `at` that ended the last of `gaps`: the last five (logarithms, the longest-known one where
    there are fewer), their mean, how even they were, and the hour of the day as a point on a circle. The day
    begins where the clock does."""
    last = [log1p(gap) for gap in gaps[-_LAGS:]]
    lags = [last[0]] * (_LAGS - len(last)) + last
    mean = sum(lags) / _LAGS
    hour = 2.0 * pi * (at % _DAY_S) / _DAY_S
    spread = sum(abs(one - mean) for one in lags) / _LAGS
    return (*lags, mean, spread, cos(hour), sin(hour))


class _Tree:
    """Plain lists: a walk through them takes microseconds, where a call into the library takes milliseconds."""

    __slots__ = ("feature", "leaves", "left", "right", "threshold")

    def __init__(
        self,
        feature: list[int],
        threshold: list[float],
        left: list[int],
        right: list[int],
        leaves: dict[int, tuple[float, ...]],
    ) -> None:
        self.feature = feature
        self.threshold = threshold
        self.left = left
        self.right = right
        self.leaves = leaves  # node -> gaps in it

    def gaps(self, of: Features) -> tuple[float, ...]:
        node = 0
        while self.left[node] >= 0:
            below = of[self.feature[node]] <= self.threshold[node]
            node = self.left[node] if below else self.right[node]
        return self.leaves[node]


def grow(rows: list[tuple[Features, float]]) -> list[_Tree]:
    """From features and the gap that followed. Equal rows, equal trees: the seed is fixed, and there is one
    thread."""
    try:
        import numpy as np
        from sklearn.ensemble import RandomForestRegressor
    except ModuleNotFoundError as error:  # something that it needs itself
        raise _missing() from error
    seen = np.asarray([_single(of) for of, _ in rows], np.float32)
    gaps = [gap for _, gap in rows]
    forest = RandomForestRegressor(
        n_estimators=TREES, min_samples_leaf=_LEAF, max_features=1 / 3, random_state=0, n_jobs=1
    ).fit(seen, np.log1p(gaps))
    found = []
    for tree, places in zip(forest.estimators_, forest.apply(seen).T.tolist(), strict=True):
        members: dict[int, list[float]] = {}
        for place, gap in zip(places, gaps, strict=True):
            members.setdefault(place, []).append(gap)
        nodes = tree.tree_
        # A leaf may have got none but repeated rows of others: then what its parent had would do, and all of
        # the window's gaps do as well.
        leaves = {
            node: tuple(members.get(node, gaps))
            for node, left in enumerate(nodes.children_left.tolist())
            if left < 0
        }
        found.append(
            _Tree(
                nodes.feature.tolist(),
                nodes.threshold.tolist(),
                nodes.children_left.tolist(),
                nodes.children_right.tolist(),
                leaves,
            )
        )
    return found


def _single(of: Features) -> Features:
    """In single precision, in which the trees were grown."""
    return struct.unpack(f"{len(of)}f", struct.pack(f"{len(of)}f", *of))


class _Spread:
    """What the next gap may be: gaps that followed the like of it, and what each counts for."""

    __slots__ = ("beyond", "gaps")

    def __init__(self, trees: list[_Tree], of: Features) -> None:
        weights: dict[float, float] = {}
        single = _single(of)
        for tree in trees:
            gaps = tree.gaps(single)
            for gap in gaps:
                weights[gap] = weights.get(gap, 0.0) + 1.0 / (len(gaps) * len(trees))
        self.gaps = sorted(weights)
        counted = list(accumulate(weights[gap] for gap in reversed(self.gaps)))
        self.beyond = [*reversed(counted), 0.0]  # of those from a place on

    def lasts(self, idle: float) -> float:
        return self.beyond[bisect_right(self.gaps, idle)]

    def quantile(self, p: float) -> float:
        left = (1.0 - p) * self.beyond[0]
        place = bisect_left(self.beyond, -left, key=lambda one: -one)  # the first with no more than that left
        return self.gaps[max(place - 1, 0)]


class _History:
    __slots__ = ("answer", "count", "ends", "first", "fitted_at", "gaps", "last", "trees")

    def __init__(self, now: float, refit: int) -> None:
        self.first = self.last = now
        self.count = 0
        self.gaps: deque[float] = deque(maxlen=WINDOW + refit + _LAGS)
        self.ends: deque[float] = deque(maxlen=WINDOW + refit + _LAGS)  # when they ended
        self.trees: list[_Tree] = []
        self.fitted_at = 0
        self.answer: _Spread | None = None

    def add(self, now: float) -> None:
        self.count += 1
        self.gaps.append(max(now - self.last, 0.0))
        self.ends.append(now)
        self.last = now
        self.answer = None

    def next(self, refit: int) -> _Spread | None:
        """None while there is no forest."""
        at = due(self.count, FEWEST, refit)
        if not at:
            return None
        if at > self.fitted_at:
            gaps, ends = list(self.gaps), list(self.ends)
            end = len(gaps) - (self.count - at)
            begin = max(end - WINDOW, 1)
            self.trees = grow(
                [
                    (features(gaps[max(place - _LAGS, 0) : place], ends[place - 1]), gaps[place])
                    for place in range(begin, end)
                ]
            )
            self.fitted_at = at
            self.answer = None
        if self.answer is None:
            self.answer = _Spread(self.trees, features(list(self.gaps)[-_LAGS:], self.last))
        return self.answer

    @property
    def long_run(self) -> float:
        return self.count / max(self.last - self.first, SHORTEST_S) if self.count else 0.0


class Forest(Histories[_History], Quantiles):
    """How likely is an arrival now, given that the function has been idle for so long? Of the gaps that followed
    the like of its last ones and lasted as long, the share that ended soon after. Where there was none, and
    before the sixteenth gap, the long-run rate.

    A forest is grown when 16, 32 … 256 gaps are there and then at every `refit` of them, from the last 256; it is
    grown when somebody first asks, from what was there when it was due: whether anybody asks makes no difference.
    Raises Unavailable without scikit-learn, and ValueError for a senseless `refit`.
    """

    def __init__(self, refit: int = REFIT) -> None:
        if refit < FEWEST:
            raise ValueError(f"refit is {refit}, and a forest needs {FEWEST} gaps")
        needs_scikit_learn()
        super().__init__()
        self.refit = refit

    def begin(self, now: float) -> _History:
        return _History(now, self.refit)

    def probability(self, function: str, now: float, horizon_s: float = HORIZON_S) -> float:
        history = self._histories.get(function)
        if history is None or horizon_s <= 0.0:
            return 0.0
        idle = max(now - history.last, 0.0)
        spread = history.next(self.refit)
        if spread is not None and (lasts := spread.lasts(idle)) > 0.0:
            return 1.0 - min(spread.lasts(idle + horizon_s) / lasts, 1.0)
        return -expm1(-history.long_run * horizon_s)

    def quantile(self, function: str, p: float) -> float:
        history = self._histories.get(function)
        if history is None or not history.count:
            return inf
        spread = history.next(self.refit)
        return spread.quantile(p) if spread is not None else -log1p(-p) / history.long_run
