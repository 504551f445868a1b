"""One contract for every predictor, then the papers' cases by hand and what the hazard is for."""

from __future__ import annotations

import math
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instainfer.policies.base import Predictor
from instainfer.policies.predict.forecast import GRACE_S, LEAD_S, Forecast
from instainfer.policies.predict.hazard import Hazard
from instainfer.policies.predict.poisson import SlidingWindowPoisson, due_after
from instainfer.policies.registry import PREDICTORS, predictor

#: They fit models, and import what does that for a second before.
FITTING = ("arima", "forest")
KNOWN = [pytest.param(name, marks=pytest.mark.slow) if name in FITTING else name for name in PREDICTORS]
NAMES = [*KNOWN, "forecast"]

#: Gaps from none at all to years.
GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 100), st.floats(0, 1e9)), min_size=1, max_size=60)


def make(name: str) -> Predictor:
    if name != "forecast":
        return predictor(name)
    forecast = Forecast(predictor())
    forecast.hint("n/f", 50.0, 0.9)
    forecast.hint("n/f", 60.0, 1.0)
    return forecast


def feed(subject: Predictor, gaps: list[float], start: float = 0.0) -> float:
    now = start
    for gap in gaps:
        now += gap
        subject.observe("n/f", now)
    return now


@pytest.mark.parametrize("name", KNOWN)
def test_nothing_is_expected_of_a_function_never_seen(name: str) -> None:
    subject = predictor(name)
    subject.observe("n/other", 5.0)
    assert subject.rate("n/f", 10.0) == 0.0
    assert subject.probability("n/f", 10.0) == 0.0
    assert subject.last("n/f") is None


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(gaps=GAPS, idle=st.one_of(st.floats(0, 1e3), st.floats(0, 1e9)))
def test_a_forecast_is_finite_and_a_probability_grows_with_its_horizon(
    name: str, gaps: list[float], idle: float
) -> None:
    subject = make(name)
    now = feed(subject, gaps) + idle
    rate = subject.rate("n/f", now)
    assert math.isfinite(rate)
    assert rate >= 0.0
    before = 0.0
    for horizon in (0.0, 1e-6, 0.5, 1.0, 10.0, 60.0, 600.0, 1e5, 1e9):
        now_probable = subject.probability("n/f", now, horizon)
        assert before - 1e-9 <= now_probable <= 1.0
        before = now_probable
    assert subject.probability("n/f", now, 0.0) == 0.0


@pytest.mark.parametrize("name", [name for name in (*PREDICTORS, "forecast") if name not in FITTING])
@settings(deadline=None)
@given(gaps=GAPS, later=GAPS)
def test_a_pickled_predictor_goes_on_as_the_first_would_have(
    name: str, gaps: list[float], later: list[float]
) -> None:
    goes_on(name, gaps, later)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FITTING))
@settings(deadline=None, max_examples=8)  # each fits models
@given(gaps=GAPS, later=GAPS)
def test_a_pickled_one_that_fits_goes_on_too(name: str, gaps: list[float], later: list[float]) -> None:
    goes_on(name, gaps, later)


def goes_on(name: str, gaps: list[float], later: list[float]) -> None:
    first = make(name)
    now = feed(first, gaps)
    first.rate("n/f", now)  # whatever is derived on demand must not make a difference
    second = pickle.loads(pickle.dumps(first))
    assert feed(first, later, now) == feed(second, later, now)
    for idle in (0.0, 7.0, 61.0, 1e6):
        at = now + sum(later) + idle
        assert first.rate("n/f", at) == second.rate("n/f", at) == first.rate("n/f", at)
        assert first.probability("n/f", at) == second.probability("n/f", at)
    assert first.last("n/f") == second.last("n/f")


@pytest.mark.parametrize("name", NAMES)
def test_a_forgotten_function_is_new_again(name: str) -> None:
    subject = make(name)
    feed(subject, [1.0] * 20)
    assert subject.last("n/f") == 20.0
    subject.forget("n/f")
    subject.forget("n/f")
    assert subject.rate("n/f", 21.0) == 0.0
    assert subject.last("n/f") is None


@pytest.mark.parametrize("name", KNOWN)
def test_functions_do_not_disturb_each_other(name: str) -> None:
    alone, together = predictor(name), predictor(name)
    for at in range(0, 100, 10):
        alone.observe("n/a", float(at))
        together.observe("n/a", float(at))
        together.observe("n/b", at + 0.5)
    assert alone.rate("n/a", 95.0) == together.rate("n/a", 95.0)


@pytest.mark.parametrize("name", KNOWN)
def test_a_clock_that_stands_still_gives_a_finite_rate(name: str) -> None:
    subject = predictor(name)
    for _ in range(50):
        subject.observe("n/f", 3.0)
    assert 0.0 < subject.rate("n/f", 3.0) < math.inf


class TestPoisson:
    def test_one_arrival_has_no_rate(self) -> None:
        subject = SlidingWindowPoisson()
        subject.observe("n/f", 100.0)
        assert subject.rate("n/f", 100.0) == 0.0
        assert subject.probability("n/f", 100.0, 1e6) == 0.0
        assert due_after(subject.rate("n/f", 100.0), 0.06) == math.inf

    def test_fewer_arrivals_than_the_window_use_those_there_are(self) -> None:
        subject = SlidingWindowPoisson(window=10)
        for at in (0.0, 10.0, 40.0):  # two arrivals in the 40 s after the first
            subject.observe("n/f", at)
        assert subject.rate("n/f", 40.0) == 2 / 40

    def test_the_window_slides(self) -> None:
        subject = SlidingWindowPoisson(window=10)
        for at in range(0, 2000, 200):
            subject.observe("n/f", float(at))
        for n in range(11):  # the last 10 arrivals came within 10 x 30 s
            subject.observe("n/f", 2000.0 + 30.0 * n)
        assert subject.rate("n/f", 2300.0) == 10 / 300
        assert subject.rate("n/f", 9999.0) == 10 / 300  # no memory of being idle

    def test_the_papers_timers(self) -> None:
        subject = SlidingWindowPoisson(window=10)
        for n in range(11):
            subject.observe("n/f", 60.0 * n)  # rate 1/60, last at 600
        assert subject.probability("n/f", 700.0, 60.0) == pytest.approx(0.632120559)
        rate = subject.rate("n/f", 700.0)
        assert due_after(rate, 0.06) == pytest.approx(3.712524)  # -60 ln 0.94
        assert due_after(rate, 0.94) == pytest.approx(168.804643)  # -60 ln 0.06
        assert due_after(rate, 0.05) == pytest.approx(3.077598)  # -60 ln 0.95
        assert due_after(rate, 0.85) == pytest.approx(113.827199)  # -60 ln 0.15

    def test_the_timer_formula_at_its_ends(self) -> None:
        assert due_after(0.5, 0.0) == 0.0
        assert due_after(0.0, 0.5) == math.inf

    def test_a_window_needs_a_gap(self) -> None:
        with pytest.raises(ValueError, match="no gap"):
            SlidingWindowPoisson(window=0)


class TestHazard:
    def test_one_arrival_suffices_for_a_rate(self) -> None:
        subject = Hazard()
        subject.observe("n/f", 0.0)
        assert subject.rate("n/f", 1.0) > 0.0
        assert subject.rate("n/f", 1.0) > subject.rate("n/f", 3600.0) > 0.0  # idle time is evidence

    def test_it_finds_a_timer(self) -> None:
        subject = Hazard()
        feed(subject, [60.0] * 12)
        due = 12 * 60.0 + 60.0
        assert subject.rate("n/f", due - 5.0) > 20 * subject.rate("n/f", due - 55.0)
        assert subject.probability("n/f", due - 5.0, 10.0) > 0.6  # twelve gaps convince, not quite
        assert subject.probability("n/f", due - 55.0, 10.0) < 0.1

    def test_a_jittering_timer_with_a_few_wrong_gaps_is_still_one(self) -> None:
        subject = Hazard()
        feed(subject, [300.0, 302.0, 299.0, 45.0, 301.0, 298.0, 600.0, 300.0])
        last = subject.last("n/f")
        assert last is not None
        assert subject.rate("n/f", last + 295.0) > 5 * subject.rate("n/f", last + 100.0)

    def test_after_a_miss_it_awaits_the_next_turn_and_in_the_end_gives_up(self) -> None:
        subject = Hazard()
        feed(subject, [600.0] * 8)
        last = 4800.0
        first, second, third = (subject.rate("n/f", last + turn * 600.0 - 5.0) for turn in (1, 2, 3))
        between = subject.rate("n/f", last + 900.0)
        assert first > second > third > 2 * between
        long_after = subject.rate("n/f", last + 10 * 600.0 - 5.0)
        assert long_after == pytest.approx(subject.rate("n/f", last + 10 * 600.0 - 300.0), rel=0.1)

    def test_bursts_raise_the_rate_while_they_last(self) -> None:
        subject = Hazard()
        for _ in range(20):
            feed(subject, [2.0, 5.0, 3.0, 1.5, 4.0, 7.0, 3600.0], subject.last("n/f") or 0.0)
        last = subject.last("n/f")
        assert last is not None
        assert subject.rate("n/f", last + 1.0) > 10 * subject.rate("n/f", last + 200.0)

    def test_a_new_burst_is_expected_to_be_as_fast_as_the_earlier_ones(self) -> None:
        subject, drawn = Hazard(), random.Random(1)
        for _ in range(8):
            pause = 300.0 + drawn.expovariate(1 / 5000)
            feed(subject, [pause, *(drawn.expovariate(1 / 20) for _ in range(15))], subject.last("n/f") or 0.0)
        last = feed(
            subject, [4000.0], subject.last("n/f") or 0.0
        )  # its first call, and nothing recent but the pause
        assert subject.probability("n/f", last, 60.0) > 0.7  # 15 of 16 gaps are in a burst: 0.89
        assert subject.probability("n/f", last + 300.0, 60.0) < 0.1  # the burst is over

    def test_a_timer_that_is_due_has_one_miss_to_lose(self) -> None:
        timer, steady = Hazard(window_s=10.0), Hazard(window_s=10.0)
        due = feed(timer, [600.0] * 40) + 595.0
        now = feed(steady, [10.0] * 200) + 5.0
        assert timer.probability("n/f", due, 10.0) > 0.8
        assert timer.rate("n/f", due) == pytest.approx(timer.probability("n/f", due, 10.0) / 10.0)
        assert timer.rate("n/f", due) < 1.1 * steady.rate("n/f", now)

    def test_a_busy_function_has_a_rate_of_its_order(self) -> None:
        subject = Hazard()
        for n in range(20_000):
            subject.observe("n/f", n / 100)
        assert 0.5 < subject.rate("n/f", 200.0) < 100.0  # its long-run rate rises from a prior
        assert subject.probability("n/f", 200.0) > 0.999

    def test_weights_stay_in_range_over_a_long_life(self) -> None:
        long, short = Hazard(), Hazard()
        gaps = [3.0, 9.0, 27.0, 81.0]
        feed(long, gaps * 1000)  # passes the renormalisation many times
        feed(short, gaps * 250)
        for idle in (1.0, 10.0, 100.0):
            assert long.rate("n/f", long.last("n/f") or 0.0 + idle) > 0.0
            a = long.probability("n/f", (long.last("n/f") or 0.0) + idle, 10.0)
            b = short.probability("n/f", (short.last("n/f") or 0.0) + idle, 10.0)
            assert a == pytest.approx(b, rel=0.05)

    def test_it_takes_no_senseless_settings(self) -> None:
        with pytest.raises(ValueError, match="above zero"):
            Hazard(window_s=0.0)


class TestForecast:
    def test_a_hint_raises_rate_and_probability_in_its_window_only(self) -> None:
        forecast = Forecast(Hazard())
        forecast.observe("n/f", 0.0)
        plain = Hazard()
        plain.observe("n/f", 0.0)
        forecast.hint("n/f", 500.0, 0.8)
        for at in (100.0, 500.0 - LEAD_S - 1, 500.0 + GRACE_S):
            assert forecast.rate("n/f", at) == plain.rate("n/f", at)
        for at in (500.0 - LEAD_S, 500.0, 500.0 + GRACE_S - 1):
            assert forecast.rate("n/f", at) >= plain.rate("n/f", at) + 0.8 / (LEAD_S + GRACE_S)
        assert forecast.probability("n/f", 500.0 - LEAD_S, LEAD_S + GRACE_S) >= 0.8
        assert forecast.probability("n/f", 600.0) == plain.probability("n/f", 600.0)

    def test_a_function_never_seen_may_be_hinted(self) -> None:
        forecast = Forecast(SlidingWindowPoisson())
        forecast.hint("n/f", 100.0, 1.0)
        assert forecast.last("n/f") is None
        assert forecast.rate("n/f", 10.0) == 0.0
        assert forecast.next_hint("n/f", 10.0) == 100.0 - LEAD_S
        assert forecast.probability("n/f", 10.0, 3600.0) == 1.0
        assert forecast.hinted("n/f", 100.0) == forecast.rate("n/f", 100.0) == pytest.approx(1 / GRACE_S)
        assert forecast.next_hint("n/f", 100.0) is None

    def test_an_arrival_in_the_window_uses_the_hint_up(self) -> None:
        forecast = Forecast(SlidingWindowPoisson())
        forecast.hint("n/f", 100.0, 1.0)
        forecast.hint("n/f", 110.0, 1.0)
        forecast.observe("n/f", 20.0)  # before either window
        assert forecast.hinted("n/f", 95.0) > forecast.hinted("n/f", 75.0) > 0.0
        forecast.observe("n/f", 95.0)
        assert forecast.hinted("n/f", 100.0) == pytest.approx(1 / 40)  # the second one's
        forecast.observe("n/f", 99.0)
        assert forecast.hinted("n/f", 100.0) == 0.0

    @pytest.mark.parametrize(("given", "taken"), [(0.0, 0.0), (-1.0, 0.0), (7.0, 1.0)])
    def test_probabilities_are_clipped(self, given: float, taken: float) -> None:
        forecast = Forecast(SlidingWindowPoisson())
        forecast.hint("n/f", 100.0, given)
        assert forecast.probability("n/f", 0.0, 1e4) == taken
