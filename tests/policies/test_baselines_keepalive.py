"""The published keep-alive policies against their definitions, by hand."""

from __future__ import annotations

import pickle

import pytest

from instainfer.policies.base import Conduct, Lends, Prewarms
from instainfer.policies.keepalive.agenda import Agenda
from instainfer.policies.keepalive.faascache import FaasCache
from instainfer.policies.keepalive.gdsf import Gdsf
from instainfer.policies.keepalive.hybrid import Hybrid
from instainfer.policies.keepalive.lru import Lru
from instainfer.policies.keepalive.pagurus import Pagurus
from instainfer.policies.registry import keep_alive
from tests.policies.test_keepalive import MB, container

MINUTE = 60.0


class TestOpenWhisk:
    def test_ten_seconds_of_grace_and_ten_minutes(self) -> None:
        policy = keep_alive("openwhisk")
        assert policy.expires_at(container("c", last_used=100.0)) == 100.0 + 10.0 + 600.0

    def test_who_waits_for_memory_waits_in_line(self) -> None:
        assert keep_alive("openwhisk").conduct == Conduct(in_line=True)
        assert keep_alive("fixed").conduct == keep_alive("pressure").conduct == Conduct()

    def test_of_idle_ones_only_the_oldest_go_until_the_need_is_covered(self) -> None:
        busy = container("busy", last_used=0.0, idle=False)
        alive = [busy, container("a", last_used=3.0), container("b", last_used=1.0), container("c", last_used=2.0)]
        assert keep_alive("openwhisk").victims(alive, 101 * MB, 9.0, alive=alive) == ["b", "c"]
        assert keep_alive("openwhisk").victims(alive, 301 * MB, 9.0, alive=alive) == []


class TestLru:
    def test_no_time_limit_and_the_oldest_first(self) -> None:
        alive = [container("a", last_used=3.0), container("b", last_used=1.0)]
        assert Lru().expires_at(alive[0]) is None
        assert Lru().victims(alive, 1, 9e9, alive=alive) == ["b"]


class TestFaasCache:
    def test_no_time_limit(self) -> None:
        assert FaasCache().expires_at(container("c")) is None

    def test_priorities_and_clock_by_hand(self) -> None:
        """a: 2 uses x 3 s / 100 MB = 0.06; b: 1 x 2 / 200 = 0.01; c: 1 x 8 / 400 = 0.02."""
        policy = FaasCache()
        a, b, c = (
            container("a", function="a", limit=100 * MB),
            container("b", function="b", limit=200 * MB),
            container("c", function="c", limit=400 * MB),
        )
        for _ in range(2):
            policy.used(a, 1.0, cold_s=3.0)
        policy.used(b, 2.0, cold_s=2.0)
        policy.used(c, 3.0, cold_s=8.0)
        assert [policy.priority(id) for id in "abc"] == pytest.approx([0.06, 0.01, 0.02])
        alive = [a, b, c]
        assert policy.victims(alive, 500 * MB, 4.0, alive=alive) == ["b", "c"]
        policy.gone("b")
        policy.gone("c")
        policy.used(b, 5.0, cold_s=2.0)
        assert policy.priority("b") == pytest.approx(0.02 + 0.01)  # the clock is what c, the last to go, had
        assert policy.priority("a") == pytest.approx(0.06)  # set at its use, when the clock was 0
        policy.used(a, 6.0, cold_s=3.0)
        assert policy.priority("a") == pytest.approx(0.02 + 3 * 0.03)

    def test_the_frequency_is_over_all_live_containers_and_reset_with_the_last(self) -> None:
        policy = FaasCache()
        first, second = container("a"), container("b")
        for one in (first, first, second):
            policy.used(one, 1.0, cold_s=1.0)
        assert policy.priority("a") == policy.priority("b") == pytest.approx(3 / 100)
        policy.gone("a")
        assert policy.priority("b") == pytest.approx(3 / 100)
        policy.gone("b")
        policy.used(first, 2.0, cold_s=1.0)
        assert policy.priority("a") == pytest.approx(1 / 100)

    def test_nothing_goes_without_pressure_and_what_runs_never(self) -> None:
        policy = FaasCache()
        alive = [container("a", idle=False), container("b")]
        assert policy.victims(alive, 0, 1.0, alive=alive) == []
        assert policy.victims(alive, 100 * MB, 1.0, alive=alive) == ["b"]
        assert policy.victims(alive, 101 * MB, 1.0, alive=alive) == []

    def test_nothing_is_spared(self) -> None:
        """Where `pressure` keeps a tenant's last container, and what a larger victim made superfluous."""
        policy = FaasCache()
        lonely = container("a", namespace="x", limit=64 * MB, last_used=0.5)
        large = container("b", namespace="y", limit=512 * MB, last_used=1.0)
        assert policy.victims([lonely, large], 500 * MB, 2.0, alive=[lonely, large]) == ["a", "b"]
        assert keep_alive("pressure").victims([lonely, large], 500 * MB, 2.0, alive=[lonely, large]) == ["b"]

    def test_a_failed_search_leaves_the_clock(self) -> None:
        policy = FaasCache()
        one = container("a")
        policy.used(one, 1.0, cold_s=5.0)
        assert policy.victims([one], 900 * MB, 2.0, alive=[one]) == []
        policy.used(one, 3.0, cold_s=5.0)
        assert policy.priority("a") == pytest.approx(2 * 5 / 100)

    def test_the_clock_does_not_go_back(self) -> None:
        policy = FaasCache()
        low, high = container("a", function="low"), container("b", function="high")
        policy.used(low, 1.0, cold_s=1.0)
        policy.used(high, 1.0, cold_s=9.0)
        assert policy.victims([high], 1, 2.0, alive=[low, high]) == ["b"]  # the other one ran
        assert policy.victims([low], 1, 3.0, alive=[low]) == ["a"]
        policy.used(container("c", function="new"), 4.0, cold_s=1.0)
        assert policy.priority("c") == pytest.approx(0.09 + 0.01)

    def test_the_published_simulators_ways_are_options(self) -> None:
        assert FaasCache().conduct == Conduct()
        assert keep_alive("faascache", whole=1.0).conduct == Conduct(whole=True)
        assert keep_alive("faascache", whole=1.0, drops=1.0).conduct == Conduct(whole=True, drops=True)


class TestGdsf:
    def test_the_frequency_outlives_the_containers(self) -> None:
        policy = Gdsf()
        one = container("a")
        policy.used(one, 1.0, cold_s=2.0)
        policy.used(one, 2.0, cold_s=2.0)
        assert policy.victims([one], 1, 3.0, alive=[one]) == ["a"]
        policy.gone("a")
        policy.used(one, 4.0, cold_s=2.0)
        assert policy.priority("a") == pytest.approx(2 * 0.02 + 3 * 0.02)


def rounds(policy: Hybrid, idle_times: list[float], run_s: float = 1.0, start: float = 0.0) -> float:
    """Requests that run for `run_s` with these idle times between them; when the last one ended."""
    now = start
    policy.arrived("n/f", now)
    for idle in [*idle_times, None]:
        now += run_s
        policy.used(container("c", last_used=now), now, cold_s=1.0)
        if idle is not None:
            now += idle
            policy.arrived("n/f", now)
    return now


class TestHybrid:
    def test_an_unknown_function_is_kept_for_four_hours(self) -> None:
        policy = Hybrid()
        assert policy.expires_at(container("c", last_used=50.0)) == 50.0 + 4 * 3600.0
        end = rounds(policy, [])
        assert policy.expires_at(container("c", last_used=end)) == end + 4 * 3600.0
        assert policy.prewarm(9e9) == ([], None)

    def test_unload_pre_warm_and_keep(self) -> None:
        """Idle times of 10.5 min: head 10 x 0.9 = 9 min, tail 11 x 1.1 = 12.1 min."""
        policy = Hybrid()
        end = rounds(policy, [10.5 * MINUTE] * 20)
        assert policy.expires_at(container("c", last_used=end)) == end  # at once
        head = end + 9 * MINUTE
        due, next_at = policy.prewarm(end)
        assert due == []
        assert next_at == pytest.approx(head)
        assert policy.prewarm(head - 0.1)[0] == []
        assert policy.prewarm(head + 1e-6) == (["n/f"], None)
        assert policy.prewarm(head + 1.0) == ([], None)  # told once
        warmed = container("w", last_used=head + 0.3)
        assert policy.expires_at(warmed) == pytest.approx(end + 12.1 * MINUTE)

    def test_a_head_of_zero_does_not_unload(self) -> None:
        """Idle times below a minute: head 0, tail 1 x 1.1 min."""
        policy = Hybrid()
        end = rounds(policy, [20.0] * 20)
        assert policy.expires_at(container("c", last_used=end)) == pytest.approx(end + 66.0)
        assert policy.prewarm(9e9) == ([], None)

    def test_an_arrival_cancels_the_pre_warming(self) -> None:
        policy = Hybrid()
        end = rounds(policy, [10.5 * MINUTE] * 20)
        policy.arrived("n/f", end + 60.0)
        assert policy.prewarm(end + 9 * MINUTE + 1.0) == ([], None)

    def test_an_idle_time_runs_from_the_last_end_and_counts_once(self) -> None:
        policy = Hybrid()
        policy.arrived("n/f", 0.0)
        policy.arrived("n/f", 1.0)  # while the first one runs
        policy.used(container("c", last_used=2.0), 2.0, cold_s=1.0)
        policy.used(container("d", last_used=3.0), 3.0, cold_s=1.0)
        policy.arrived("n/f", 10.0)
        policy.arrived("n/f", 10.5)
        known = policy._functions["n/f"]
        assert [*known.idle.recent] == [7.0]

    def test_long_idle_times_are_left_to_the_series(self) -> None:
        """Five hours each time: pre-warm at 0.85 of it, keep for 0.30 of it."""
        policy = Hybrid()
        end = rounds(policy, [5 * 3600.0] * 4)
        assert policy.prewarm(end)[1] == pytest.approx(end + 0.85 * 5 * 3600.0)
        warmed = container("w", last_used=end + 0.86 * 5 * 3600.0)
        assert policy.expires_at(warmed) == pytest.approx(end + 1.15 * 5 * 3600.0)

    def test_a_minimum_of_idle_times_is_a_setting(self) -> None:
        policy = keep_alive("hybrid", min_count=3.0)
        assert isinstance(policy, Hybrid)
        end = rounds(policy, [10.5 * MINUTE] * 2)
        assert policy.windows("n/f").rule == "standard"
        policy.arrived("n/f", end + 10.5 * MINUTE)
        assert policy.windows("n/f").rule == "histogram"

    def test_a_forgotten_function_is_new_again(self) -> None:
        policy = Hybrid()
        rounds(policy, [10.5 * MINUTE] * 20)
        policy.forget("n/f")
        assert policy.prewarm(9e9) == ([], None)
        assert policy.expires_at(container("c", last_used=50.0)) == 50.0 + 4 * 3600.0

    def test_it_pre_warms_and_the_others_do_not(self) -> None:
        assert isinstance(Hybrid(), Prewarms)
        assert not any(
            isinstance(keep_alive(name), Prewarms) for name in ("pressure", "fixed", "lru", "faascache")
        )

    def test_pickled_it_goes_on(self) -> None:
        policy = Hybrid()
        end = rounds(policy, [10.5 * MINUTE] * 20)
        twin = pickle.loads(pickle.dumps(policy))
        assert twin.prewarm(end + 3600.0) == policy.prewarm(end + 3600.0) == (["n/f"], None)


class TestPagurus:
    def test_a_minute_idle_makes_a_lender_that_lives_for_fifteen(self) -> None:
        policy = Pagurus()
        one = container("a", last_used=100.0)
        policy.used(one, 100.0, cold_s=1.0)
        assert policy.expires_at(one) == 160.0
        assert policy.strips(one, 160.0)
        assert policy.expires_at(one) == 160.0 + 900.0
        assert not policy.strips(one, 1060.0)

    def test_one_lender_for_each_function(self) -> None:
        policy = Pagurus()
        first, second, other = container("a"), container("b"), container("c", function="g")
        assert policy.strips(first, 60.0)
        assert policy.expires_at(second) == 900.0
        assert not policy.strips(second, 900.0)
        assert policy.strips(other, 60.0)
        policy.gone("a")
        assert policy.strips(second, 900.0)

    def test_the_lender_that_idled_longest_is_rented_and_not_lent_again(self) -> None:
        policy = Pagurus()
        late, early, idle = (
            container("a", last_used=20.0),
            container("b", function="g", last_used=10.0),
            container("c", function="h", last_used=0.0),  # idle, and no lender
        )
        policy.strips(late, 80.0)
        policy.strips(early, 80.0)
        assert policy.lend("n/new", [late, early, idle], 90.0) == "b"
        assert policy.lend("n/new", [idle], 90.0) is None
        rented = container("b", function="new", last_used=100.0)
        policy.used(rented, 100.0, cold_s=1.0)
        assert policy.expires_at(rented) == 1000.0
        assert not policy.strips(rented, 1000.0)
        assert policy.strips(container("d", function="g"), 200.0)  # g has none any more

    def test_taken_back_by_its_function_it_may_be_lent_again(self) -> None:
        policy = Pagurus()
        one = container("a", last_used=10.0)
        policy.strips(one, 70.0)
        again = container("a", last_used=80.0)
        policy.used(again, 80.0, cold_s=1.0)
        assert policy.expires_at(again) == 140.0
        assert policy.strips(again, 140.0)

    def test_t_is_the_95th_percentile_of_a_quarter_of_an_hours_gaps(self) -> None:
        """21 arrivals, 20 gaps: 19 of 30 s and one of 200 s; the 19th of them is the 95th percentile."""
        policy = Pagurus()
        at = 0.0
        policy.arrived("n/f", at)
        for gap in [30.0] * 10 + [200.0] + [30.0] * 9:
            at += gap
            policy.arrived("n/f", at)
        assert policy.idle_s("n/f") == 60.0
        policy.arrived("n/f", 905.0)
        assert policy.idle_s("n/f") == 30.0

    def test_twenty_arrivals_are_too_few(self) -> None:
        policy = Pagurus()
        for turn in range(20):
            policy.arrived("n/f", 30.0 * turn)
        policy.arrived("n/f", 905.0)
        assert policy.idle_s("n/f") == 60.0

    def test_those_rent_that_had_most_cold_starts(self) -> None:
        """Ten functions with 1 to 10 cold starts in half an hour: those with three or more may."""
        policy = Pagurus()
        policy.arrived("n/f", 0.0)
        number = 0
        for index in range(10):
            for _ in range(index + 1):
                number += 1
                policy.used(container(f"x{number}", function=f"f{index}"), 5.0, cold_s=1.0)
                policy.used(container(f"x{number}", function=f"f{index}"), 6.0, cold_s=1.0)  # warm: not counted
        lender = container("a", function="g")
        policy.strips(lender, 60.0)
        assert policy.lend("n/f0", [lender], 1000.0) == "a"  # before the first choice all may
        policy.arrived("n/f", 1800.0)
        may = [index for index in range(10) if policy.lend(f"n/f{index}", [lender], 1801.0)]
        assert may == [2, 3, 4, 5, 6, 7, 8, 9]

    def test_it_lends_and_the_others_do_not(self) -> None:
        assert isinstance(Pagurus(), Lends)
        assert not any(
            isinstance(keep_alive(name), Lends) for name in ("pressure", "fixed", "faascache", "hybrid")
        )


class TestAgenda:
    def test_in_the_order_of_time_then_name_and_each_once(self) -> None:
        agenda = Agenda()
        for name, at in (("b", 2.0), ("a", 2.0), ("c", 1.0), ("d", 9.0)):
            agenda.set(name, at)
        agenda.set("c", 3.0)
        agenda.set("d", None)
        assert agenda.next() == 2.0
        assert agenda.take(2.5) == ["a", "b"]
        assert agenda.take(9.0) == ["c"]
        assert agenda.next() is None

    def test_a_time_set_back_and_forth_is_due_once(self) -> None:
        agenda = Agenda()
        for at in (5.0, 6.0, 5.0):
            agenda.set("a", at)
        assert agenda.take(7.0) == ["a"]
        assert agenda.take(7.0) == []
