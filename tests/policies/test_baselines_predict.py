"""The histogram of idle times against its definition, by hand."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instainfer.policies.predict.frequency import Frequency
from instainfer.policies.predict.histogram import BINS, STANDARD, Histogram, IdleHistogram, next_of

MINUTE = 60.0


def filled(*idle_minutes: float, min_count: int = 1) -> IdleHistogram:
    found = IdleHistogram(min_count)
    for one in idle_minutes:
        found.add(one * MINUTE)
    return found


class TestIdleHistogram:
    @pytest.mark.parametrize("count", [1, 2, 100])
    def test_all_in_one_bin(self, count: int) -> None:
        """sqrt(240 - 1) = 15.46, however many."""
        assert filled(*[7.5] * count).cv == pytest.approx(math.sqrt(239)) == pytest.approx(15.5, abs=0.05)

    @pytest.mark.parametrize("bins", [1, 2, 10, 48, 60, 240])
    def test_even_over_k_bins(self, bins: int) -> None:
        found = filled(*(place + 0.5 for _ in range(3) for place in range(bins)))
        assert found.cv == pytest.approx(math.sqrt(240 / bins - 1), abs=1e-9)

    def test_representative_from_two_on(self) -> None:
        """sqrt(240 / 48 - 1) = 2 exactly; with one more bin it is below."""
        assert filled(*(place + 0.5 for place in range(40))).representative
        assert not filled(*(place + 0.5 for place in range(49))).representative
        assert filled(*(place + 0.5 for place in range(49))).windows() == STANDARD

    @given(st.lists(st.floats(0, 15_000), max_size=80))
    def test_the_running_spread_is_that_of_the_counts(self, idle_times: list[float]) -> None:
        found = IdleHistogram()
        for one in idle_times:
            found.add(one)
        counts = [*found.bins]
        assert sum(counts) == found.inside
        assert found.inside + found.outside == len(idle_times)
        if found.inside:
            assert found.cv == pytest.approx(statistics.pstdev(counts) / statistics.fmean(counts))
        else:
            assert found.cv == 0.0

    def test_nothing_known_is_the_standard(self) -> None:
        assert filled().windows() == STANDARD == (0.0, 4 * 3600.0, "standard")
        assert not filled().representative

    def test_percentiles_are_rounded_outwards_and_given_margins(self) -> None:
        """100 idle times: four at 1.2 min, 94 at 10.5 min, one at 30.5 min and one at 60.5 min. The 5th is in the
        bin of minute 10 and the 99th in that of minute 30."""
        found = filled(*[1.2] * 4, *[10.5] * 94, 30.5, 60.5)
        windows = found.windows()
        assert windows.rule == "histogram"
        assert windows.prewarm_s == pytest.approx(10 * MINUTE * 0.9)
        assert windows.end_s == pytest.approx(31 * MINUTE * 1.1)
        assert windows.keep_s == pytest.approx((31 * 1.1 - 10 * 0.9) * MINUTE)  # tail - head, not tail

    def test_the_fifth_of_a_hundred_counts_from_five(self) -> None:
        assert filled(*[1.2] * 5, *[10.5] * 95).windows().prewarm_s == pytest.approx(0.9 * MINUTE)

    def test_a_head_below_a_minute_is_none(self) -> None:
        windows = filled(*[0.5] * 10).windows()
        assert (windows.prewarm_s, windows.rule) == (0.0, "histogram")
        assert windows.keep_s == pytest.approx(66.0)

    def test_the_last_bin_and_what_is_beyond_it(self) -> None:
        found = filled(239.99, 239.99)
        assert found.bins[BINS - 1] == 2
        assert found.windows().prewarm_s == pytest.approx(239 * MINUTE * 0.9)
        assert found.windows().end_s == pytest.approx(240 * MINUTE * 1.1)
        found.add(4 * 3600.0)
        assert (found.inside, found.outside) == (2, 1)
        assert found.windows().rule == "histogram"  # a third is outside
        found.add(4 * 3600.0)
        assert found.windows().rule == "series"  # a half is

    def test_a_minimum_count(self) -> None:
        assert filled(*[10.5] * 4, min_count=5).windows() == STANDARD
        assert filled(*[10.5] * 5, min_count=5).windows().rule == "histogram"
        assert filled(300.0, min_count=2).windows() == STANDARD

    def test_how_many_were_longer_is_even_inside_a_bin(self) -> None:
        found = filled(10.5, 10.5, 20.5, 300.0)
        assert found.beyond(0.0) == 4.0
        assert found.beyond(10.25 * MINUTE) == pytest.approx(2 * 0.75 + 2)
        assert found.beyond(20.5 * MINUTE) == pytest.approx(1.5)
        assert found.beyond(5 * 3600.0) == 1.0

    def test_quantiles_are_even_inside_a_bin(self) -> None:
        found = filled(10.5, 10.5, 20.5, 300.0)
        assert found.quantile(0.0) == pytest.approx(10 * MINUTE)
        assert found.quantile(0.25) == pytest.approx(10.5 * MINUTE)
        assert found.quantile(0.75) == pytest.approx(21 * MINUTE)
        assert found.quantile(0.76) == math.inf


class TestSeries:
    def test_few_or_equal_values_give_their_mean(self) -> None:
        assert next_of([5.0]) == 5.0
        assert next_of([4.0, 5.0, 9.0]) == pytest.approx(6.0)
        assert next_of([7.0] * 10) == 7.0

    def test_values_that_alternate_are_seen_to(self) -> None:
        """Mean 3, away -1 +1 -1 +1: phi = -3 / 4, so that after a 4 comes 3 - 0.75."""
        assert next_of([2.0, 4.0, 2.0, 4.0]) == pytest.approx(2.25)

    def test_by_hand(self) -> None:
        """Mean 4, away -3 -1 1 3: lag 1 sums to 3 - 1 + 3 = 5, squares to 20: 4 + 3 x 0.25."""
        assert next_of([1.0, 3.0, 5.0, 7.0]) == pytest.approx(4.75)

    @given(st.lists(st.floats(0, 1e9), min_size=1, max_size=64))
    def test_never_below_zero(self, series: list[float]) -> None:
        assert 0.0 <= next_of(series) < math.inf


class TestHistogram:
    def subject(self, *gaps_min: float) -> tuple[Histogram, float]:
        found = Histogram()
        now = 0.0
        found.observe("n/f", now)
        for gap in gaps_min:
            now += gap * MINUTE
            found.observe("n/f", now)
        return found, now

    def test_the_conditional_distribution(self) -> None:
        """Three gaps in minute 10, one in minute 20."""
        found, last = self.subject(10.5, 10.5, 10.5, 20.5)
        assert found.probability("n/f", last, 10 * MINUTE) == 0.0
        assert found.probability("n/f", last, 11 * MINUTE) == pytest.approx(0.75)
        # Idle for 10.5 min: 1.5 + 1 are longer, 1.5 of them end within half a minute.
        assert found.probability("n/f", last + 10.5 * MINUTE, 30.0) == pytest.approx(1.5 / 2.5)
        assert found.probability("n/f", last + 15 * MINUTE, MINUTE) == 0.0
        assert found.probability("n/f", last + 20 * MINUTE, MINUTE) == pytest.approx(1.0)
        assert found.probability("n/f", last + 30 * MINUTE, 1e9) == 0.0  # longer than ever: nothing is known
        p = 3 / 4 * 10 / 60
        assert found.rate("n/f", last + 10 * MINUTE) == pytest.approx(-math.log1p(-p) / 10.0)
        assert found.rate("n/f", last + 5 * MINUTE) == 0.0

    def test_without_shape_it_is_the_long_run_rate(self) -> None:
        gaps = [place + 0.5 for place in range(60)]  # even over 60 bins: CV sqrt(3)
        found, last = self.subject(*gaps)
        rate = 60 / (sum(gaps) * MINUTE)
        assert found.rate("n/f", last + 17.0) == pytest.approx(rate)
        assert found.probability("n/f", last, 100.0) == pytest.approx(-math.expm1(-rate * 100.0))
        assert found.quantile("n/f", 0.5) == pytest.approx(math.log(2.0) / rate)

    def test_beyond_the_bins_it_awaits_the_series_window(self) -> None:
        """Gaps of 1000 min: from 850 to 1150 min, evenly."""
        found, last = self.subject(*[1000.0] * 5)
        assert found.probability("n/f", last + 800 * MINUTE, 50 * MINUTE) == pytest.approx(0.0)
        assert found.probability("n/f", last + 800 * MINUTE, 200 * MINUTE) == pytest.approx(0.5)
        assert found.probability("n/f", last + 1000 * MINUTE, 75 * MINUTE) == pytest.approx(0.5)
        assert found.probability("n/f", last + 1150 * MINUTE, 1e9) == 0.0
        assert found.quantile("n/f", 0.5) == pytest.approx(1000 * MINUTE)

    def test_one_arrival_says_nothing(self) -> None:
        found, last = self.subject()
        assert found.rate("n/f", last + 1.0) == 0.0
        assert found.quantile("n/f", 0.5) == math.inf
        assert found.quantile("n/other", 0.5) == math.inf


class TestFrequency:
    def test_counts_and_a_rate_over_all_its_life(self) -> None:
        found = Frequency()
        for at in (10.0, 20.0, 50.0):
            found.observe("n/f", at)
        assert found.count("n/f") == 3
        assert found.count("n/g") == 0
        assert found.rate("n/f", 110.0) == pytest.approx(2 / 100)
        assert found.last("n/f") == 50.0
