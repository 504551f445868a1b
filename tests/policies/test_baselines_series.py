"""ARIMA and the random forest: their parts by hand, then (slow) with the libraries that fit them."""

from __future__ import annotations

import math
import pickle
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instainfer.errors import BadSettings, Unavailable
from instainfer.policies.base import Quantiles
from instainfer.policies.keepalive.hybrid import Hybrid
from instainfer.policies.predict import arima, forest
from instainfer.policies.predict.arima import Arima, Model, Series
from instainfer.policies.predict.forest import Forest
from instainfer.policies.predict.gaps import due
from instainfer.policies.predict.histogram import IdleHistogram
from instainfer.policies.registry import keep_alive, predictor

HOUR = 3600.0
NORMAL = statistics.NormalDist()


def fed(subject: Quantiles, gaps: list[float]) -> float:
    """The time of the last arrival; the first one is at 0."""
    now = 0.0
    subject.observe("n/f", now)
    for gap in gaps:
        now += gap
        subject.observe("n/f", now)
    return now


class TestModel:
    def test_an_autoregression_by_hand(self) -> None:
        """10 + 0.5 x (14 - 10)."""
        assert Model(False, 10.0, (0.5,), (), 1.0).next([8.0, 14.0]) == pytest.approx(12.0)

    def test_two_lags_the_latest_first(self) -> None:
        """10 + 0.5 x 4 - 0.25 x (-2)."""
        assert Model(False, 10.0, (0.5, -0.25), (), 1.0).next([8.0, 14.0]) == pytest.approx(12.5)

    def test_a_moving_average_by_hand(self) -> None:
        """Expected 10, got 12: error 2; then 10 + 0.5 x 2 = 11, got 9: error -2; then 10 - 1."""
        assert Model(False, 10.0, (), (0.5,), 1.0).next([12.0, 9.0]) == pytest.approx(9.0)

    def test_differences_by_hand(self) -> None:
        """Steps 2 and 4: the next is 0.5 x 4 on top of 16."""
        assert Model(True, 0.0, (0.5,), (), 1.0).next([10.0, 12.0, 16.0]) == pytest.approx(18.0)

    def test_both_by_hand(self) -> None:
        """Mean 0. 4: expected 0, error 4. Then 0.5 x 4 + 0.25 x 4 = 3, got 1: error -2. Then 0.5 - 0.5."""
        assert Model(False, 0.0, (0.5,), (0.25,), 1.0).next([4.0, 1.0]) == pytest.approx(0.0)


class TestKpss:
    def test_by_hand(self) -> None:
        """Away -1 1 -1 1, walked -1 0 -1 0; one lag at half weight: 4 + 2 x 0.5 x (-3) = 1. 2 / (4 x 1)."""
        assert arima.kpss([1.0, 3.0, 1.0, 3.0]) == pytest.approx(0.5)

    def test_a_constant_has_none(self) -> None:
        assert arima.kpss([5.0] * 8) == 0.0

    def test_a_trend_and_a_level(self) -> None:
        noise = random.Random(3)
        level = [noise.gauss(0.0, 1.0) for _ in range(64)]
        assert arima.kpss(level) < 0.463 < arima.kpss([value + 0.2 * at for at, value in enumerate(level)])


class TestSchedule:
    @pytest.mark.parametrize(
        ("count", "fitted"), [(1, 0), (7, 0), (8, 8), (15, 8), (16, 16), (63, 32), (64, 64), (127, 64), (200, 192)]
    )
    def test_a_model_is_due_ever_more_seldom_then_at_every_64(self, count: int, fitted: int) -> None:
        assert due(count, arima.FEWEST, arima.REFIT) == fitted

    def test_before_the_eighth_it_is_mean_and_spread(self) -> None:
        series = Series()
        series.add(30.0)
        assert series.next() == (30.0, 30.0)  # one gap says as much as that
        series.add(40.0)
        assert series.next() == (35.0, 5.0)

    def test_whether_anybody_asked_makes_no_difference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fits: list[tuple[float, ...]] = []

        def fit(values: list[float]) -> Model:
            fits.append(tuple(values))
            return Model(False, statistics.fmean(values), (0.5,), (), 1.0)

        monkeypatch.setattr(arima, "fit", fit)
        asked, silent = Series(), Series()
        for value in range(150):
            asked.add(float(value))
            asked.next()
            silent.add(float(value))
        assert asked.next() == silent.next()
        assert [len(one) for one in fits] == [8, 16, 32, 64, 64, 64]  # the last one by `silent`
        assert fits[-1] == fits[-2] == tuple(float(value) for value in range(64, 128))


class TestArima:
    def test_the_cut_off_normal_distribution(self) -> None:
        """Gaps of 30 and 50 s: expected 40, spread 10."""
        found = Arima()
        last = fed(found, [30.0, 50.0])
        lasts = 1.0 - NORMAL.cdf(-4.0)
        assert found.probability("n/f", last, 40.0) == pytest.approx((0.5 - NORMAL.cdf(-4.0)) / lasts)
        assert found.probability("n/f", last + 40.0, 10.0) == pytest.approx(1 - (1 - NORMAL.cdf(1.0)) / 0.5)
        p = found.probability("n/f", last + 40.0, 10.0)
        assert found.rate("n/f", last + 40.0) == pytest.approx(-math.log1p(-p) / 10.0)
        assert found.quantile("n/f", 0.5) == pytest.approx(40.0, abs=0.01)

    def test_what_was_never_to_be_leaves_the_long_run_rate(self) -> None:
        found = Arima()
        last = fed(found, [30.0, 50.0])
        assert found.probability("n/f", last + 140.0, 60.0) == pytest.approx(-math.expm1(-2 / 80 * 60.0))

    def test_one_arrival_says_nothing(self) -> None:
        found = Arima()
        fed(found, [])
        assert found.rate("n/f", 1.0) == 0.0
        assert found.quantile("n/f", 0.5) == found.quantile("n/other", 0.5) == math.inf

    def test_a_refit_at_every_few_gaps_is_refused(self) -> None:
        with pytest.raises(BadSettings, match="refit is 3"):
            predictor("arima(refit=3)")


class TestForestParts:
    def test_features_of_an_arrival(self) -> None:
        """At six in the morning, after gaps of e - 1 and e^3 - 1 s."""
        found = forest.features([math.e - 1.0, math.e**3 - 1.0], 30 * HOUR)
        assert found == pytest.approx((1.0, 1.0, 1.0, 1.0, 3.0, 1.4, 0.64, 0.0, 1.0))

    def test_a_tree_by_hand(self) -> None:
        tree = forest._Tree([0, -2, -2], [2.0, -2.0, -2.0], [1, -1, -1], [2, -1, -1], {1: (5.0, 7.0), 2: (60.0,)})
        assert tree.gaps((2.0,)) == (5.0, 7.0)
        assert tree.gaps((2.1,)) == (60.0,)

    def test_gaps_weigh_by_their_leaf_and_trees_alike(self) -> None:
        """5 and 7 s a quarter each from one tree, 7 s a half from the other."""
        trees = [forest._Tree([-2], [-2.0], [-1], [-1], {0: gaps}) for gaps in ((5.0, 7.0), (7.0,))]
        found = forest._Spread(trees, (0.0,))
        assert [found.lasts(idle) for idle in (0.0, 5.0, 6.9, 7.0)] == pytest.approx([1.0, 0.75, 0.75, 0.0])
        assert [found.quantile(p) for p in (0.0, 0.2, 0.25, 0.3, 1.0)] == [5.0, 5.0, 5.0, 7.0, 7.0]

    @given(st.lists(st.lists(st.floats(0, 1e9), min_size=1, max_size=9), min_size=1, max_size=5), st.floats(0, 1))
    def test_quantiles_are_what_they_say(self, leaves: list[list[float]], p: float) -> None:
        trees = [forest._Tree([-2], [-2.0], [-1], [-1], {0: tuple(gaps)}) for gaps in leaves]
        found = forest._Spread(trees, (0.0,))
        at = found.quantile(p)
        assert 1.0 - found.lasts(at) >= p - 1e-9

    def test_before_the_sixteenth_gap_it_is_the_long_run_rate(self) -> None:
        found = Forest()
        last = fed(found, [10.0] * 15)
        assert found.probability("n/f", last, 20.0) == pytest.approx(-math.expm1(-2.0))
        assert found.quantile("n/f", 0.5) == pytest.approx(10.0 * math.log(2.0))

    def test_whether_anybody_asked_makes_no_difference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        grown: list[list[tuple[forest.Features, float]]] = []

        def grow(rows: list[tuple[forest.Features, float]]) -> list[forest._Tree]:
            grown.append(rows)
            return [forest._Tree([-2], [-2.0], [-1], [-1], {0: tuple(gap for _, gap in rows)})]

        monkeypatch.setattr(forest, "grow", grow)
        asked, silent = Forest(refit=32), Forest(refit=32)
        now = 0.0
        for step in range(700):
            now += 5.0 + step % 7
            for one in (asked, silent):
                one.observe("n/f", now)
            asked.rate("n/f", now)
        assert asked.rate("n/f", now + 1.0) == silent.rate("n/f", now + 1.0)
        assert [len(rows) for rows in grown[:4]] == [15, 31, 63, 95]  # the first gap follows none
        assert len(grown[-1]) == 256
        assert grown[-1] == grown[-2]


@pytest.mark.parametrize(
    ("module", "make"),
    [(arima, Arima), (arima, lambda: Hybrid(arima=True)), (forest, Forest)],
    ids=["arima", "hybrid", "forest"],
)
def test_without_its_library_it_says_what_to_install(
    module: object, make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(Unavailable) as found:
        make()
    assert found.value.hint == "pip install 'instainfer[lab]'"


def test_the_hybrid_takes_its_series_from_arima_where_told_to() -> None:
    """Idle times of five and seven hours: before the eighth it is their mean."""
    policy = keep_alive("hybrid(arima=1)")
    assert isinstance(policy, Hybrid)
    policy.arrived("n/f", 0.0)
    known = policy._functions["n/f"]
    assert isinstance(known.idle.series, Series)
    for idle in (5 * HOUR, 7 * HOUR):
        known.idle.add(idle)
    windows = known.idle.windows()
    assert windows.rule == "series"
    assert (windows.prewarm_s, windows.keep_s) == pytest.approx((0.85 * 6 * HOUR, 0.30 * 6 * HOUR))
    plain = keep_alive("hybrid")
    assert isinstance(plain, Hybrid)
    plain.arrived("n/f", 0.0)
    assert plain._functions["n/f"].idle.series is None


@pytest.mark.slow
class TestFitted:
    def test_values_around_a_level_give_it(self) -> None:
        noise = random.Random(1)
        values = [100.0 + noise.gauss(0.0, 10.0) for _ in range(64)]
        found = arima.fit(values)
        assert not found.differenced
        assert found.next(values) == pytest.approx(100.0, abs=6.0)
        assert found.spread == pytest.approx(statistics.pstdev(values), rel=0.25)

    def test_values_that_alternate_are_seen_to(self) -> None:
        values = [20.0 + (40.0 if step % 2 else 0.0) + math.sin(7.0 * step * step) for step in range(64)]
        assert arima.fit(values).next(values) == pytest.approx(20.0, abs=4.0)

    def test_a_trend_is_differenced(self) -> None:
        values = [10.0 * step + math.sin(7.0 * step * step) for step in range(64)]
        found = arima.fit(values)
        assert found.differenced
        assert found.next(values) == pytest.approx(640.0, abs=12.0)

    @pytest.mark.parametrize(
        "values", [[5.0] * 8, [0.0] * 7 + [1e9], [1e-3 * step for step in range(8)], [1.0, 9.0] * 32]
    )
    def test_odd_series_give_numbers(self, values: list[float]) -> None:
        found = arima.fit(values)
        assert math.isfinite(found.next(values)) and math.isfinite(found.spread)

    def test_the_hybrid_follows_idle_times_that_alternate(self) -> None:
        found = IdleHistogram(series=Series())
        for step in range(16):
            found.add((5 + 2 * (step % 2)) * HOUR)
        windows = found.windows()
        assert windows.rule == "series"
        assert windows.prewarm_s == pytest.approx(0.85 * 5 * HOUR, rel=0.05)

    @pytest.mark.parametrize("name", ["arima", "forest"])
    def test_a_timer_is_awaited_when_it_is_due(self, name: str) -> None:
        found = predictor(name)
        assert isinstance(found, Quantiles)
        last = fed(found, [300.0 + 3.0 * math.sin(7.0 * step * step) for step in range(64)])
        assert found.probability("n/f", last + 290.0, 20.0) > 0.9
        assert found.probability("n/f", last + 100.0, 60.0) < 0.1
        assert found.quantile("n/f", 0.06) > 290.0

    def test_the_forest_knows_what_follows_what(self) -> None:
        """Three short gaps, then a long one."""
        found = Forest()
        last = fed(found, ([5.0, 6.0, 7.0, 900.0] * 16)[:-1])
        assert found.probability("n/f", last, 60.0) < 0.2
        found.observe("n/f", last + 900.0)
        assert found.probability("n/f", last + 900.0, 60.0) > 0.8

    @pytest.mark.parametrize("name", ["arima", "forest"])
    def test_it_is_the_same_again_and_pickled(self, name: str) -> None:
        gaps = [60.0 + 50.0 * math.sin(7.0 * step * step) for step in range(70)]
        subjects = [predictor(name), predictor(name)]
        for one in subjects:
            assert isinstance(one, Quantiles)
            last = fed(one, gaps)
        first, second = subjects
        assert first.rate("n/f", last + 9.0) == second.rate("n/f", last + 9.0)
        third = pickle.loads(pickle.dumps(first))
        assert third.rate("n/f", last + 30.0) == second.rate("n/f", last + 30.0)
