"""The ablations of Tyche and the caches as modes of pre-loading, by hand."""

from __future__ import annotations

import pickle

import pytest

from instainfer.model import Level
from instainfer.policies.base import Bin, Held, Item, Plan, Predictor
from instainfer.policies.placement.greedy import Greedy
from instainfer.policies.predict.forecast import Forecast
from instainfer.policies.predict.frequency import Frequency
from instainfer.policies.predict.hazard import Hazard
from instainfer.policies.predict.histogram import Histogram
from instainfer.policies.predict.poisson import SlidingWindowPoisson
from instainfer.policies.preload.cached import Ranked
from instainfer.policies.preload.gdsf import GdsfPreload
from instainfer.policies.preload.lru import LruPreload
from instainfer.policies.preload.no_predictor import NoPredictor
from instainfer.policies.preload.no_scheduler import NoScheduler
from instainfer.policies.preload.one_to_one import OneToOne
from instainfer.policies.preload.timers import TimerPreload
from instainfer.policies.registry import preload
from tests.policies.test_preload import MB, container, function, resident, snapshot

#: -60 ln 0.94 and -60 ln 0.06: T_load and T_offload of one arrival a minute.
T_LOAD, T_OFFLOAD = 3.712524, 168.804643


def poisson(**last: float) -> SlidingWindowPoisson:
    """Functions of namespace n that came once a minute, the last time then."""
    found = SlidingWindowPoisson()
    for name, at in last.items():
        for turn in range(10, -1, -1):
            found.observe(f"n/{name}", at - 60.0 * turn)
    return found


def where(plan: Plan) -> list[tuple[str, str]]:
    return [(one.function, one.container) for one in plan.preloads]


class TestTimersOfAHistogram:
    def test_the_quantiles_are_its_own(self) -> None:
        """Gaps evenly in minute 10: 6% have ended at 10.06 min, 94% at 10.94 min."""
        forecast = Histogram()
        for turn in range(11):
            forecast.observe("n/f", turn * 630.0)
        last = 6300.0
        policy = TimerPreload(0.06, 0.94, Greedy(churn=0.0))
        snap = snapshot([function("n/f")], [container("c", 200)])
        early = policy.plan(snap, forecast, last + 10.05 * 60)
        assert early.preloads == ()
        assert early.wake_at == pytest.approx(last + 10.06 * 60)
        assert where(policy.plan(snap, forecast, last + 10.07 * 60)) == [("n/f", "c")]
        loaded = snapshot(
            [function("n/f", ready=Level.LOADED)], [container("c", 100, resident("n/f", instance="i"))]
        )
        assert policy.plan(loaded, forecast, last + 10.9 * 60).wake_at == pytest.approx(last + 10.94 * 60)
        assert [one.instance for one in policy.plan(loaded, forecast, last + 10.95 * 60).offloads] == ["i"]


class TestNoPredictor:
    def test_registered(self) -> None:
        policy = preload("tyche_np").policy
        assert isinstance(policy, NoPredictor)
        assert policy.ends_co_residents

    def test_no_timers_in_either_direction(self) -> None:
        policy = NoPredictor(Greedy(churn=0.0))
        forecast = Forecast(poisson(f=1000.0))
        snap = snapshot([function("n/f")], [container("c", 200)])
        for idle in (0.0, 1.0, 1e6):  # before T_load, and long after T_offload
            plan = policy.plan(snap, forecast, 1000.0 + idle)
            assert where(plan) == [("n/f", "c")]
            assert plan.wake_at is None
        loaded = snapshot([function("n/f", ready=Level.LOADED)], [container("c", 100, resident("n/f"))])
        assert policy.plan(loaded, forecast, 1e6) == Plan()

    def test_latency_per_byte_decides_not_the_rate(self) -> None:
        """g saves 1.3 s with 100 MB, f 1.3 s with 130 MB, though f comes ever so often."""
        forecast = poisson(f=1000.0, g=10.0)
        snap = snapshot([function("n/f", loaded=130), function("n/g", loaded=100)], [container("c", 150)])
        assert where(NoPredictor(Greedy(churn=0.0)).plan(snap, forecast, 1001.0)) == [("n/g", "c")]

    def test_what_was_never_called_is_not_known(self) -> None:
        snap = snapshot([function("n/f")], [container("c", 200)])
        assert NoPredictor(Greedy(churn=0.0)).plan(snap, poisson(), 5.0) == Plan()

    def test_a_better_item_displaces(self) -> None:
        forecast = poisson(f=1000.0, g=1000.0)
        views = [function("n/f", ready=Level.LOADED, load_s=0.1), function("n/g", load_s=2.0)]
        snap = snapshot(views, [container("c", 10, resident("n/f", instance="i"))])
        (one,) = NoPredictor(Greedy(churn=0.0)).plan(snap, forecast, 1001.0).preloads
        assert (one.function, one.displaced) == ("n/g", ("i",))


class TestNoScheduler:
    def plan(self, policy: NoScheduler, forecast: Predictor, now: float, *free: int, idle: bool = True) -> Plan:
        views = [function("n/f"), function("n/g")]
        boxes = [container(f"c{n}", room, idle=idle) for n, room in enumerate(free)]
        return policy.plan(snapshot(views, boxes), forecast, now)

    def test_registered(self) -> None:
        policy = preload("tyche_ns").policy
        assert isinstance(policy, NoScheduler)
        assert (policy.p_load, policy.p_offload, policy.ends_co_residents) == (0.06, 0.94, True)

    def test_the_message_comes_at_t_load(self) -> None:
        policy, forecast = NoScheduler(0.06, 0.94), poisson(f=1000.0)
        early = self.plan(policy, forecast, 1000.0 + T_LOAD - 0.01, 200)
        assert early.preloads == ()
        assert early.wake_at == pytest.approx(1000.0 + T_LOAD)
        due = self.plan(policy, forecast, 1000.0 + T_LOAD + 0.01, 200)
        assert where(due) == [("n/f", "c0")]

    def test_first_fit_not_best_fit_nor_by_value(self) -> None:
        """The message of g came first, though f is as dear; the first with room is far larger than needed."""
        policy, forecast = NoScheduler(0.06, 0.94), poisson(f=1001.0, g=1000.0)
        plan = self.plan(policy, forecast, 1010.0, 50, 500, 100)
        assert where(plan) == [("n/g", "c1")]
        again = self.plan(policy, forecast, 1010.0, 50, 500, 100)
        assert again == plan

    def test_a_message_that_finds_no_room_is_lost(self) -> None:
        policy, forecast = NoScheduler(0.06, 0.94), poisson(f=1000.0)
        assert self.plan(policy, forecast, 1000.0 + T_LOAD + 0.01, 50).preloads == ()
        assert self.plan(policy, forecast, 1010.0, 500).preloads == ()  # too late
        forecast.observe("n/f", 1060.0)
        assert self.plan(policy, forecast, 1062.0, 500).preloads == ()
        assert where(self.plan(policy, forecast, 1070.0, 500)) == [("n/f", "c0")]

    def test_a_message_waits_while_those_with_room_are_busy(self) -> None:
        policy, forecast = NoScheduler(0.06, 0.94), poisson(f=1000.0)
        assert self.plan(policy, forecast, 1000.0 + T_LOAD + 0.01, 500, idle=False).preloads == ()
        assert where(self.plan(policy, forecast, 1010.0, 500)) == [("n/f", "c0")]

    def test_but_not_beyond_t_offload(self) -> None:
        policy, forecast = NoScheduler(0.06, 0.94), poisson(f=1000.0)
        assert self.plan(policy, forecast, 1000.0 + T_LOAD + 0.01, 500, idle=False).preloads == ()
        assert self.plan(policy, forecast, 1000.0 + T_OFFLOAD + 0.01, 500).preloads == ()

    def test_nothing_is_displaced(self) -> None:
        policy, forecast = NoScheduler(0.06, 0.94), poisson(f=1000.0)
        views = [function("n/f"), function("n/h", ready=Level.LOADED)]
        snap = snapshot(views, [container("c", 10, resident("n/h"))])
        assert policy.plan(snap, forecast, 1010.0).preloads == ()

    def test_an_idle_container_loads_its_own(self) -> None:
        policy, forecast = NoScheduler(0.06, 0.94), poisson(f=1000.0)
        snap = snapshot([function("n/f")], [container("c", 200, owner="n/f")])
        assert where(policy.plan(snap, forecast, 1000.5)) == [("n/f", "c")]  # before T_load
        assert policy.plan(snap, forecast, 1000.0 + T_OFFLOAD + 0.01).preloads == ()

    def test_at_t_offload_it_goes(self) -> None:
        policy, forecast = NoScheduler(0.06, 0.94), poisson(f=1000.0)
        loaded = snapshot(
            [function("n/f", ready=Level.LOADED)], [container("c", 0, resident("n/f", instance="i"))]
        )
        before = policy.plan(loaded, forecast, 1000.0 + T_OFFLOAD - 0.01)
        assert before.offloads == ()
        assert before.wake_at == pytest.approx(1000.0 + T_OFFLOAD)
        after = policy.plan(loaded, forecast, 1000.0 + T_OFFLOAD + 0.01)
        assert [one.instance for one in after.offloads] == ["i"]

    def test_a_hint_is_a_message(self) -> None:
        policy, forecast = NoScheduler(0.06, 0.94), Forecast(SlidingWindowPoisson())
        forecast.hint("n/f", 100.0, 1.0)
        plan = self.plan(policy, forecast, 10.0, 200)
        assert plan.preloads == ()
        assert plan.wake_at == 70.0
        assert where(self.plan(policy, forecast, 70.0, 200)) == [("n/f", "c0")]

    def test_pickled_it_goes_on(self) -> None:
        policy, forecast = NoScheduler(0.06, 0.94), poisson(f=1000.0)
        self.plan(policy, forecast, 1000.0 + T_LOAD + 0.01, 500, idle=False)
        twin = pickle.loads(pickle.dumps(policy))
        assert self.plan(twin, forecast, 1010.0, 500) == self.plan(policy, forecast, 1010.0, 500)


class TestOneToOne:
    def test_registered(self) -> None:
        policy = preload("tyche_nps").policy
        assert isinstance(policy, OneToOne)
        assert policy.ends_co_residents

    def test_into_its_own_container_only(self) -> None:
        views = [function("n/f"), function("n/g"), function("n/h")]
        boxes = [
            container("c", 500, owner="n/f"),
            container("d", 500, owner="n/f"),
            container("e", 99, owner="n/g"),
        ]
        plan = OneToOne().plan(snapshot(views, boxes), poisson(f=0.0, g=0.0, h=0.0), 1e6)
        assert where(plan) == [("n/f", "c")]
        assert plan.offloads == ()
        assert plan.wake_at is None

    def test_not_into_one_that_runs_or_beyond_the_nodes_loads(self) -> None:
        views = [function("n/f"), function("n/g")]
        boxes = [container("c", 500, owner="n/f"), container("d", 500, owner="n/g")]
        assert where(OneToOne().plan(snapshot(views, boxes, slots=1), poisson(), 0.0)) == [("n/f", "c")]
        busy = [container("c", 500, owner="n/f", idle=False)]
        assert OneToOne().plan(snapshot(views, busy), poisson(), 0.0) == Plan()

    def test_libraries_that_are_there_are_raised(self) -> None:
        there = resident("n/f", level=Level.IMPORTED, size=40)
        snap = snapshot([function("n/f", ready=Level.IMPORTED)], [container("c", 60, there, owner="n/f")])
        (one,) = OneToOne().plan(snap, poisson(), 0.0).preloads
        assert (one.weight, one.saves_s) == (60 * MB, 0.3)


def called(forecast: Predictor, **times: tuple[float, ...]) -> None:
    for at, name in sorted((at, name) for name, many in times.items() for at in many):
        forecast.observe(f"n/{name}", at)


class TestLru:
    def test_the_last_called_come_first(self) -> None:
        forecast = Hazard()
        called(forecast, a=(1.0, 2.0, 3.0), b=(9.0,), c=(5.0,))
        snap = snapshot([function(f"n/{name}") for name in "abcd"], [container("x", 250)])
        policy = LruPreload()
        assert where(policy.plan(snap, forecast, 10.0)) == [("n/b", "x")]  # one load per turn
        bins = policy.placement.place(
            [Bin(container="x", namespace="n", node="n", free=250)],
            [item("a", 3.0), item("b", 9.0), item("c", 5.0)],
        )
        assert [one.function for one in bins] == ["n/b", "n/c"]

    def test_the_oldest_gives_way_whatever_it_saves(self) -> None:
        forecast = Hazard()
        called(forecast, a=(1.0,), b=(2.0,), c=(3.0,))
        views = [
            function("n/a", ready=Level.LOADED),
            function("n/b", ready=Level.LOADED, load_s=99.0),
            function("n/c", load_s=0.01),
        ]
        box = container("x", 0, resident("n/a", instance="ia"), resident("n/b", instance="ib"))
        plan = LruPreload().plan(snapshot(views, [box]), forecast, 10.0)
        assert [(one.function, one.displaced) for one in plan.preloads] == [("n/c", ("ia",))]
        assert plan.wake_at is None

    def test_nothing_newer_gives_way(self) -> None:
        forecast = Hazard()
        called(forecast, a=(5.0,), c=(3.0,))
        views = [function("n/a", ready=Level.LOADED), function("n/c")]
        snap = snapshot(views, [container("x", 0, resident("n/a"))])
        assert LruPreload().plan(snap, forecast, 10.0) == Plan()

    def test_the_libraries_alone_where_the_whole_does_not_fit(self) -> None:
        forecast = Hazard()
        called(forecast, a=(5.0,))
        (one,) = LruPreload().plan(snapshot([function("n/a")], [container("x", 50)]), forecast, 10.0).preloads
        assert (one.level, one.weight, one.saves_s) == (Level.IMPORTED, 40 * MB, 1.0)


class TestGdsf:
    def test_ranks_by_hand(self) -> None:
        """a: 3 calls x 1.3 s / 100 MB whole and 3 x 1 / 40 for its libraries; b: 1 x 1.3 / 100, 1 x 1 / 40."""
        forecast = Frequency()
        called(forecast, a=(1.0, 2.0, 3.0), b=(9.0,))
        ranks = GdsfPreload().ranks([function("n/a"), function("n/b"), function("n/c")], Forecast(forecast))
        assert {name: pytest.approx(both) for name, both in ranks.items()} == {
            "n/a": (3 / 40, 3.9 / 100),
            "n/b": (1 / 40, 1.3 / 100),
        }

    def test_the_clock_is_what_gave_way(self) -> None:
        forecast = Frequency()
        called(forecast, a=(1.0,), b=(2.0, 3.0))
        views = [function("n/a", ready=Level.LOADED, imported=100), function("n/b", imported=100)]
        box = container("x", 0, resident("n/a", instance="ia"))
        policy = GdsfPreload()
        (one,) = policy.plan(snapshot(views, [box]), forecast, 10.0).preloads
        assert (one.function, one.displaced) == ("n/b", ("ia",))
        clock = 1.3 / 100
        forecast.observe("n/a", 11.0)
        ranks = policy.ranks(views, forecast)
        assert ranks["n/a"][1] == pytest.approx(clock + 2 * 1.3 / 100)
        assert ranks["n/b"][1] == pytest.approx(2 * 1.3 / 100)  # not called since: the clock of then

    def test_beside_another_predictor_it_counts_what_it_sees(self) -> None:
        forecast = Hazard()
        policy = GdsfPreload()
        views = [function("n/a")]
        for at in (1.0, 2.0):
            forecast.observe("n/a", at)
            policy.ranks(views, forecast)
            ranks = policy.ranks(views, forecast)  # asked twice, counted once
        assert ranks["n/a"][1] == pytest.approx(2 * 1.3 / 100)


def item(name: str, rank: float, weight: int = 100, level: Level = Level.LOADED) -> Item:
    return Item(function=f"n/{name}", namespace="n", level=level, value=rank, weight=weight)


def held(name: str, rank: float, size: int = 100, level: Level = Level.LOADED) -> Held:
    return Held(instance=f"i{name}", function=f"n/{name}", level=level, value=rank, bytes=size)


def bin_(id: str, free: int, *there: Held) -> Bin:
    return Bin(container=id, namespace="n", node="n", free=free, held=there)


class TestRanked:
    def test_best_fit_before_anything_goes(self) -> None:
        (one,) = Ranked().place([bin_("x", 300), bin_("y", 120), bin_("z", 0, held("o", 0.5))], [item("a", 9.0)])
        assert (one.container, one.displaced) == ("y", ())

    def test_where_what_goes_ranks_lowest(self) -> None:
        """Not where least goes: ranks are not added up."""
        bins = [bin_("x", 0, held("p", 3.0)), bin_("y", 0, held("q", 1.0, 50), held("r", 2.0, 50))]
        (one,) = Ranked().place(bins, [item("a", 9.0)])
        assert (one.container, one.displaced) == ("y", ("iq", "ir"))

    def test_all_that_goes_ranks_below(self) -> None:
        bins = [bin_("y", 0, held("q", 1.0, 50), held("r", 9.0, 50))]
        assert Ranked().place(bins, [item("a", 9.0)]) == []

    def test_what_was_placed_stays(self) -> None:
        placed = Ranked().place([bin_("x", 100)], [item("a", 2.0), item("b", 3.0)])
        assert [one.function for one in placed] == ["n/b"]

    def test_an_instance_is_raised_where_it_is(self) -> None:
        bins = [bin_("x", 500), bin_("y", 10, held("a", 9.0, 40, Level.IMPORTED), held("o", 1.0, 60))]
        (one,) = Ranked().place(bins[1:], [item("a", 9.0)])
        assert (one.container, one.weight, one.displaced) == ("y", 60, ("io",))
