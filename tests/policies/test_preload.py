"""What holds for every mode of pre-loading beside every keep-alive policy, then each mode by hand."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson  # type: ignore[import-untyped] # it ships no types

from instainfer.errors import BadSettings
from instainfer.model import Level
from instainfer.policies.base import ContainerView, FunctionView, Plan, ResidentView, Snapshot
from instainfer.policies.placement.greedy import Greedy
from instainfer.policies.predict.forecast import Forecast
from instainfer.policies.predict.hazard import Hazard
from instainfer.policies.predict.poisson import SlidingWindowPoisson
from instainfer.policies.preload.bins import taken
from instainfer.policies.preload.hazard import TICK_S, HazardPreload
from instainfer.policies.preload.timers import TimerPreload
from instainfer.policies.registry import KEEP_ALIVES, MODES, keep_alive, predictor, preload

MB = 1 << 20


def function(
    name: str,
    *,
    ready: Level = Level.NONE,
    imported: int = 40,
    loaded: int = 100,
    import_s: float = 1.0,
    load_s: float = 0.3,
    mounts: tuple[str, ...] = (),
    blocked: bool = False,
    service_s: float = 0.0,
    concurrency: int = 1,
) -> FunctionView:
    return FunctionView(
        name=name,
        namespace=name.partition("/")[0],
        libraries="",
        mounts=mounts,
        import_s=import_s,
        load_s=load_s,
        imported_bytes=imported * MB,
        loaded_bytes=loaded * MB,
        ready=ready,
        blocked=blocked,
        service_s=service_s,
        concurrency=concurrency,
    )


def resident(
    name: str,
    *,
    level: Level = Level.LOADED,
    size: int = 100,
    evictable: bool = True,
    stale: bool = False,
    instance: str = "",
) -> ResidentView:
    return ResidentView(
        instance=instance or f"i-{name}",
        function=name,
        level=level,
        bytes=size * MB,
        evictable=evictable,
        stale=stale,
    )


def container(
    id: str,
    free: int,
    *residents: ResidentView,
    node: str = "node",
    namespace: str = "n",
    owner: str = "n/owner",
    idle: bool = True,
    pinned: bool = False,
    mounts: tuple[str, ...] = (),
    closed: bool = False,
) -> ContainerView:
    return ContainerView(
        id=id,
        node=node,
        namespace=namespace,
        owner=owner,
        limit=free * MB + sum(one.bytes for one in residents),
        free=free * MB,
        idle=idle,
        created=0.0,
        last_used=10.0,
        uses=1,
        residents=residents,
        mounts=mounts,
        pinned=pinned,
        closed=closed,
    )


def snapshot(
    functions: list[FunctionView],
    containers: list[ContainerView],
    *,
    slots: int = 4,
    guests: bool = True,
) -> Snapshot:
    nodes = sorted({one.node for one in containers})
    return Snapshot(
        functions=tuple(functions),
        containers=tuple(containers),
        load_slots=dict.fromkeys(nodes, slots),
        guests=dict.fromkeys(nodes, guests),
    )


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Snapshot, list[tuple[str, float]], float]:
    """A snapshot that a platform could give, arrivals, and how long ago the last one was."""
    names = [f"{draw(st.sampled_from('nm'))}/f{index}" for index in range(draw(st.integers(1, 6)))]
    number = itertools.count()
    containers: list[ContainerView] = []
    best: dict[str, Level] = {}
    for index in range(draw(st.integers(0, 5))):
        namespace = draw(st.sampled_from("nm"))
        idle = draw(st.integers(0, 3)) > 0
        residents = []
        for name in [name for name in names if name[0] == namespace and draw(st.booleans())]:
            level = draw(st.sampled_from([Level.IMPORTED, Level.LOADED]))
            stale = draw(st.integers(0, 4)) == 0
            evictable = idle or draw(st.booleans())
            if not stale and evictable and idle:
                best[name] = max(best.get(name, Level.NONE), level)
            size = draw(st.integers(10, 200))
            residents.append(
                resident(
                    name, level=level, size=size, evictable=evictable, stale=stale, instance=f"i{next(number)}"
                )
            )
        containers.append(
            container(
                f"c{index}",
                draw(st.integers(0, 400)),
                *residents,
                node=draw(st.sampled_from(["x", "y"])),
                namespace=namespace,
                owner=draw(st.sampled_from(names)),
                idle=idle,
                pinned=draw(st.integers(0, 5)) == 0,
                mounts=draw(st.sampled_from([(), ("/opt",)])),
            )
        )
    views = [
        function(
            name,
            ready=best.get(name, Level.NONE),
            imported=draw(st.integers(5, 60)),
            loaded=draw(st.integers(60, 300)),
            mounts=draw(st.sampled_from([(), ("/opt",)])),
            blocked=draw(st.integers(0, 5)) == 0,
        )
        for name in names
    ]
    scene = Snapshot(
        functions=tuple(views),
        containers=tuple(containers),
        load_slots={"x": draw(st.integers(0, 2)), "y": draw(st.integers(0, 2))},
        guests={"x": True, "y": draw(st.booleans())},
    )
    times = sorted(draw(st.lists(st.floats(0, 1000), max_size=30)))
    arrivals = [(draw(st.sampled_from(names)), at) for at in times]
    return scene, arrivals, draw(st.floats(0, 500))


@pytest.mark.parametrize("keep_alive_name", KEEP_ALIVES)
@pytest.mark.parametrize("mode", MODES)
@given(scene=scenes())
@settings(max_examples=40)
def test_every_mode_beside_every_keep_alive(
    mode: str, keep_alive_name: str, scene: tuple[Snapshot, list[tuple[str, float]], float]
) -> None:
    snap, arrivals, idle = scene
    policy, predictor_name = preload(mode)
    cold_start_manager = keep_alive(keep_alive_name)
    forecast = Forecast(predictor(predictor_name))
    for name, at in arrivals:
        forecast.observe(name, at)
    now = (arrivals[-1][1] if arrivals else 0.0) + idle
    lives = [cold_start_manager.expires_at(one) for one in snap.containers]
    plan = policy.plan(snap, forecast, now)
    check(snap, plan, now)
    assert lives == [cold_start_manager.expires_at(one) for one in snap.containers]
    assert pickle.loads(pickle.dumps(policy)).plan(snap, forecast, now) == plan
    if mode == "none":
        assert plan == Plan()
    if mode == "hazard":
        assert plan.offloads == ()


def check(snap: Snapshot, plan: Plan, now: float) -> None:
    views = {view.name: view for view in snap.functions}
    boxes = {box.id: box for box in snap.containers}
    holder = {one.instance: box for box in snap.containers for one in box.residents}
    slots = dict(snap.load_slots)
    assert len({one.container for one in plan.preloads}) == len(plan.preloads)  # one load at a time
    assert len({one.function for one in plan.preloads}) == len(plan.preloads)
    gone = [*(one.instance for one in plan.offloads), *(x for one in plan.preloads for x in one.displaced)]
    assert len({*gone}) == len(gone)
    for instance in gone:
        box = holder[instance]
        assert box.idle
        assert not box.pinned
        assert next(one for one in box.residents if one.instance == instance).evictable
    for one in plan.preloads:
        view, box = views[one.function], boxes[one.container]
        slots[box.node] -= 1
        assert slots[box.node] >= 0
        assert box.idle
        assert box.namespace == view.namespace
        assert {*view.mounts} <= {*box.mounts}
        assert snap.guests[box.node] or box.owner == view.name
        assert view.ready < Level.LOADED
        assert not view.blocked
        there = [r for r in box.residents if r.function == view.name and not r.stale]
        assert all(r.level < one.level for r in there)
        assert {*one.displaced} <= {r.instance for r in box.residents}
        room = box.free + sum(r.bytes for r in box.residents if r.instance in gone)
        assert one.weight <= room
        assert one.rate >= 0.0
        assert 0.0 <= one.probability <= 1.0
        assert one.saves_s > 0.0
        assert one.rule
    assert plan.wake_at is None or plan.wake_at > now


def seen(*names: str, at: float = 0.0) -> Hazard:
    subject = Hazard()
    for name in names:
        subject.observe(name, at)
    return subject


@given(mean=st.floats(0.0, 50.0), places=st.integers(0, 80))
def test_a_call_finds_others_as_poisson_has_it(mean: float, places: int) -> None:
    assert taken(mean, places) == pytest.approx(poisson.sf(places - 1, mean), abs=1e-9)
    assert taken(mean, places + 1) <= taken(mean, places) <= 1.0
    assert (taken(1e6, 10), taken(1e3, 2000)) == (1.0, 0.0)


class TestHazardPreload:
    def policy(self) -> HazardPreload:
        return HazardPreload(Greedy())

    def test_one_arrival_is_enough_when_memory_is_free(self) -> None:
        plan = self.policy().plan(snapshot([function("n/f")], [container("c", 100)]), seen("n/f"), 60.0)
        (one,) = plan.preloads
        assert (one.function, one.level, one.container, one.displaced) == ("n/f", Level.LOADED, "c", ())
        assert one.saves_s == pytest.approx(1.3)
        assert one.rule.endswith("/s, saves 1.30 s, 100 MB; best value per byte among 1 candidates")
        assert plan.wake_at is None  # the end of the load is an event

    def test_memory_that_nobody_wants_is_left_alone_for_ever(self) -> None:
        idle_for_a_year = snapshot([function("n/f", ready=Level.LOADED)], [container("c", 0, resident("n/f"))])
        assert self.policy().plan(idle_for_a_year, seen("n/f"), 3e7) == Plan()

    def test_a_better_function_displaces_a_worse_one_and_a_worse_one_waits(self) -> None:
        forecast = Hazard()
        forecast.observe("n/rare", 0.0)
        for at in range(0, 3000, 30):
            forecast.observe("n/often", float(at))
        rare, often = function("n/rare"), function("n/often")
        loaded_rare = function("n/rare", ready=Level.LOADED)
        loaded_often = function("n/often", ready=Level.LOADED)
        plan = self.policy().plan(
            snapshot([loaded_rare, often], [container("c", 20, resident("n/rare"))]), forecast, 2995.0
        )
        assert plan.preloads[0].displaced == ("i-n/rare",)
        plan = self.policy().plan(
            snapshot([loaded_often, rare], [container("c", 20, resident("n/often"))]), forecast, 2995.0
        )
        assert plan == Plan(wake_at=2995.0 + TICK_S)

    def test_second_copies_go_before_only_ones(self) -> None:
        views = [function("n/a", ready=Level.LOADED), function("n/b", ready=Level.LOADED), function("n/new")]
        boxes = [
            container("c1", 0, resident("n/a", instance="a1")),
            container("c2", 0, resident("n/a", instance="a2")),
            container("c3", 0, resident("n/b", instance="b1")),
        ]
        (one,) = self.policy().plan(snapshot(views, boxes), seen("n/a", "n/b", "n/new"), 5.0).preloads
        assert one.displaced == ("a2",)

    def hot(self) -> Hazard:
        forecast = Hazard()
        for number in range(600):
            forecast.observe("n/hot", float(number))
        return forecast

    def test_a_hot_function_is_loaded_on_a_second_node(self) -> None:
        """Calls last as long as they are apart: many find another one under way."""
        hot = function("n/hot", ready=Level.LOADED, service_s=1.0)
        boxes = [
            container("a", 0, resident("n/hot"), node="x"),
            container("b", 100, node="x"),
            container("c", 500, node="y"),
        ]
        (one,) = self.policy().plan(snapshot([hot], boxes), self.hot(), 599.5).preloads
        assert (one.container, one.level, one.displaced) == ("c", Level.LOADED, ())
        assert one.saves_s == pytest.approx(1.3)
        assert "of calls that find 1 busy" in one.rule
        for there in (boxes[:2], [*boxes[:2], container("c", 39, node="y")]):
            (one,) = self.policy().plan(snapshot([hot], there), self.hot(), 599.5).preloads
            assert one.container == "b", "rather on the same node than nowhere"

    @pytest.mark.parametrize(
        "changes", [{"service_s": 0.02}, {"service_s": 1.0, "concurrency": 8}, {"service_s": 1.0, "blocked": True}]
    )
    def test_no_second_copy_that_few_calls_would_use(self, changes: dict[str, Any]) -> None:
        hot = function("n/hot", ready=Level.LOADED, **changes)
        boxes = [container("a", 0, resident("n/hot"), node="x"), container("b", 500, node="y")]
        assert self.policy().plan(snapshot([hot], boxes), self.hot(), 599.5) == Plan()

    def test_a_second_copy_has_to_be_worth_what_it_displaces(self) -> None:
        forecast = Hazard()
        calls = [("n/hot", float(number)) for number in range(600)]
        calls += [("n/warm", number * 10.0 + number * 7919 % 97 / 10) for number in range(59)]  # no timer
        for name, at in sorted(calls, key=lambda call: call[1]):
            forecast.observe(name, at)
        warm = function("n/warm", ready=Level.LOADED)
        boxes = [container("a", 0, resident("n/hot"), node="x"), container("b", 0, resident("n/warm"), node="y")]

        def displaced(service_s: float) -> list[str]:
            hot = function("n/hot", ready=Level.LOADED, service_s=service_s)
            plan = self.policy().plan(snapshot([hot, warm], boxes), forecast, 599.5)
            return [name for one in plan.preloads for name in one.displaced]

        assert displaced(4.0) == ["i-n/warm"]
        assert displaced(0.06) == []

    def test_what_is_on_a_node_that_takes_nothing_is_loaded_elsewhere(self) -> None:
        boxes = [
            container("a", 0, resident("n/f"), node="x", idle=False, closed=True),
            container("b", 100, node="y"),
        ]
        (one,) = self.policy().plan(snapshot([function("n/f")], boxes), seen("n/f"), 5.0).preloads
        assert one.container == "b"

    def test_old_revisions_go_first(self) -> None:
        views = [function("n/a", ready=Level.LOADED), function("n/b")]
        box = container("c", 0, resident("n/a"), resident("n/b", stale=True))
        (one,) = self.policy().plan(snapshot(views, [box]), seen("n/a", "n/b"), 5.0).preloads
        assert one.displaced == ("i-n/b",)

    def test_an_imported_instance_is_raised_where_it_is(self) -> None:
        views = [function("n/f", ready=Level.IMPORTED)]
        boxes = [container("a", 500), container("b", 60, resident("n/f", level=Level.IMPORTED, size=45))]
        (one,) = self.policy().plan(snapshot(views, boxes), seen("n/f"), 5.0).preloads
        assert (one.container, one.level, one.weight) == ("b", Level.LOADED, 55 * MB)
        assert one.saves_s == pytest.approx(0.3)

    def test_a_running_copy_is_free_before_a_second_one_is_loaded(self) -> None:
        running = container("c", 0, resident("n/f", evictable=False), idle=False)
        free = container("d", 500)
        assert self.policy().plan(snapshot([function("n/f")], [running, free]), seen("n/f"), 5.0) == Plan()

    def test_a_pinned_container_gives_its_free_memory_only(self) -> None:
        views = [function("n/p", ready=Level.LOADED), function("n/f")]
        pinned = container("c", 50, resident("n/p"), pinned=True)
        forecast = seen("n/f")
        plan = self.policy().plan(snapshot(views, [pinned]), forecast, 5.0)
        (one,) = plan.preloads
        assert (one.level, one.displaced) == (Level.IMPORTED, ())

    def test_without_guests_only_the_owner(self) -> None:
        views = [function("n/f"), function("n/g")]
        box = container("c", 500, owner="n/g")
        plan = self.policy().plan(snapshot(views, [box], guests=False), seen("n/f", "n/g"), 5.0)
        assert [one.function for one in plan.preloads] == ["n/g"]

    def test_loads_of_a_node_are_limited(self) -> None:
        views = [function(f"n/f{n}") for n in range(4)]
        boxes = [container(f"c{n}", 100) for n in range(4)]
        forecast = seen(*(view.name for view in views))
        assert len(self.policy().plan(snapshot(views, boxes, slots=2), forecast, 5.0).preloads) == 2
        assert self.policy().plan(snapshot(views, boxes, slots=0), forecast, 5.0) == Plan()

    def test_an_announcement_is_waited_for(self) -> None:
        forecast = Forecast(Hazard())
        forecast.hint("n/f", 100.0, 0.9)
        scene = snapshot([function("n/f"), function("n/g")], [container("c", 500)])
        assert self.policy().plan(scene, forecast, 10.0) == Plan(wake_at=10.0 + TICK_S)
        assert [one.function for one in self.policy().plan(scene, forecast, 80.0).preloads] == ["n/f"]
        assert self.policy().plan(scene, forecast, 200.0) == Plan()  # it did not come true


class TestTimerPreload:
    """Ten gaps of 60 s: T_load 3.71 s and T_offload 168.80 s after the last arrival, at 600 s."""

    def policy(self) -> TimerPreload:
        return TimerPreload(0.06, 0.94, Greedy(churn=0.0))

    def forecast(self) -> Forecast:
        forecast = Forecast(SlidingWindowPoisson())
        for n in range(11):
            forecast.observe("n/f", 60.0 * n)
        return forecast

    def test_it_loads_at_t_load(self) -> None:
        scene = snapshot([function("n/f")], [container("c", 500)])
        early = self.policy().plan(scene, self.forecast(), 603.0)
        assert early.preloads == ()
        assert early.wake_at == pytest.approx(603.712524)
        assert early.wake_at is not None
        (one,) = self.policy().plan(scene, self.forecast(), early.wake_at).preloads
        assert (one.function, one.level, one.weight) == ("n/f", Level.LOADED, 100 * MB)
        assert one.probability == pytest.approx(1 - math.exp(-1))
        assert one.saves_s == pytest.approx(1.3)

    def test_it_off_loads_at_t_offload_though_nobody_wants_the_memory(self) -> None:
        scene = snapshot([function("n/f", ready=Level.LOADED)], [container("c", 500, resident("n/f"))])
        before = self.policy().plan(scene, self.forecast(), 700.0)
        assert before.offloads == ()
        assert before.wake_at == pytest.approx(768.804643)
        assert before.wake_at is not None
        after = self.policy().plan(scene, self.forecast(), before.wake_at)
        assert [one.instance for one in after.offloads] == ["i-n/f"]
        assert after.wake_at is None

    def test_after_t_offload_it_does_not_load(self) -> None:
        scene = snapshot([function("n/f")], [container("c", 500)])
        assert self.policy().plan(scene, self.forecast(), 800.0) == Plan()

    def test_one_arrival_loads_and_off_loads_nothing(self) -> None:
        forecast = SlidingWindowPoisson()
        forecast.observe("n/f", 0.0)
        scene = snapshot([function("n/f")], [container("c", 500)])
        assert self.policy().plan(scene, forecast, 50.0) == Plan()
        scene = snapshot([function("n/f", ready=Level.LOADED)], [container("c", 500, resident("n/f"))])
        assert self.policy().plan(scene, forecast, 1e6) == Plan()

    def test_whole_or_not_at_all(self) -> None:
        scene = snapshot([function("n/f")], [container("c", 90)])
        assert self.policy().plan(scene, self.forecast(), 650.0).preloads == ()

    def test_a_hint_makes_it_due_and_keeps_it(self) -> None:
        forecast = self.forecast()
        forecast.hint("n/f", 2000.0, 1.0)
        forecast.hint("n/new", 2000.0, 1.0)
        missing = snapshot([function("n/f"), function("n/new")], [container("c", 100), container("d", 100)])
        assert self.policy().plan(missing, forecast, 1000.0) == Plan(wake_at=1970.0)
        plan = self.policy().plan(missing, forecast, 1970.0)
        assert [one.function for one in plan.preloads] == ["n/f", "n/new"]
        there = snapshot([function("n/f", ready=Level.LOADED)], [container("c", 0, resident("n/f"))])
        assert self.policy().plan(there, forecast, 1970.0).offloads == ()

    def test_what_is_over_makes_room_without_being_off_loaded_twice(self) -> None:
        forecast = self.forecast()
        for n in range(11):
            forecast.observe("n/late", 700.0 + 10.0 * n)
        scene = snapshot(
            [function("n/f", ready=Level.LOADED), function("n/late")], [container("c", 0, resident("n/f"))]
        )
        plan = self.policy().plan(scene, forecast, 805.0)
        assert [one.displaced for one in plan.preloads] == [("i-n/f",)]
        assert plan.offloads == ()

    def test_thresholds_are_probabilities_in_order(self) -> None:
        with pytest.raises(ValueError, match="in order"):
            TimerPreload(0.9, 0.1, Greedy())


class TestRegistry:
    def test_the_papers_modes_end_co_residents_and_ask_poisson(self) -> None:
        for mode in ("tyche", "instainfer"):
            policy, name = preload(mode)
            assert policy.ends_co_residents
            assert name == "poisson"
        assert not preload().policy.ends_co_residents
        assert preload().predictor == "hazard"

    def test_the_papers_thresholds(self) -> None:
        found = {}
        for mode in ("tyche", "instainfer"):
            policy = preload(mode).policy
            assert isinstance(policy, TimerPreload)
            assert isinstance(policy.placement, Greedy)
            found[mode] = (policy.p_load, policy.p_offload, policy.placement.by_value)
        assert found == {"tyche": (0.06, 0.94, False), "instainfer": (0.05, 0.85, True)}

    @pytest.mark.parametrize("make", [predictor, keep_alive, preload])
    def test_an_unknown_name_is_told_what_exists(self, make: object) -> None:
        assert callable(make)
        with pytest.raises(BadSettings, match=r"there is no .* 'nonsense'") as caught:
            make("nonsense")
        assert caught.value.hint.startswith("these exist: ")

    def test_every_call_gives_a_new_object(self) -> None:
        assert predictor() is not predictor()
        assert keep_alive() is not keep_alive()

    def test_settings_are_checked(self) -> None:
        fixed = keep_alive("fixed", seconds=5.0)
        assert fixed.expires_at(container("c", 0)) == 15.0
        with pytest.raises(BadSettings, match="no setting 'seconds'"):
            keep_alive("pressure", seconds=5.0)
        with pytest.raises(BadSettings, match="is nan"):
            keep_alive("fixed", seconds=math.nan)
