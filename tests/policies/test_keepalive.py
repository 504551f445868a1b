"""One contract for every keep-alive policy, then what each of them is for."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instainfer.policies.base import ContainerView
from instainfer.policies.keepalive.fixed import Fixed
from instainfer.policies.keepalive.pressure import ACTIVE_S, Pressure
from instainfer.policies.registry import KEEP_ALIVES, keep_alive

MB = 1 << 20


def container(
    id: str,
    *,
    namespace: str = "n",
    function: str = "f",
    limit: int = 100 * MB,
    last_used: float = 0.0,
    idle: bool = True,
    pinned: bool = False,
) -> ContainerView:
    return ContainerView(
        id=id,
        node="node",
        namespace=namespace,
        owner=f"{namespace}/{function}",
        limit=limit,
        free=limit,
        idle=idle,
        created=0.0,
        last_used=last_used,
        uses=1,
        pinned=pinned,
    )


@dataclass(frozen=True)
class Scene:
    alive: list[ContainerView]
    uses: list[tuple[int, float]]  # (which container, cost of a cold start)
    need: int


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    alive = [
        container(
            f"c{index}",
            namespace=draw(st.sampled_from("ab")),
            function=draw(st.sampled_from("fg")),
            limit=draw(st.integers(1, 8)) * 64 * MB,
            last_used=draw(st.floats(0, 9000)),
            idle=draw(st.integers(0, 3)) > 0,
            pinned=draw(st.integers(0, 5)) == 0,
        )
        for index in range(draw(st.integers(0, 8)))
    ]
    which = st.integers(0, max(len(alive) - 1, 0))
    uses = draw(st.lists(st.tuples(which, st.floats(0, 10)), max_size=12)) if alive else []
    return Scene(alive, uses, draw(st.integers(0, 24)) * 64 * MB)


@pytest.mark.parametrize("name", KEEP_ALIVES)
@given(scene=scenes())
def test_victims_are_idle_not_pinned_enough_and_not_one_too_many(name: str, scene: Scene) -> None:
    policy = keep_alive(name)
    for which, cold_s in scene.uses:
        policy.used(scene.alive[which], 9000.0, cold_s=cold_s)
    twin = pickle.loads(pickle.dumps(policy))
    chosen = policy.victims(scene.alive, scene.need, 9000.0, alive=scene.alive)
    by_id = {one.id: one for one in scene.alive}
    limits = [by_id[id].limit for id in chosen]
    able = [one for one in scene.alive if one.idle and not one.pinned]

    assert len({*chosen}) == len(chosen)
    assert all(by_id[id].idle and not by_id[id].pinned for id in chosen)
    if chosen:
        assert sum(limits) >= scene.need > sum(limits[:-1])
    else:
        assert scene.need == 0 or sum(one.limit for one in able) < scene.need
    assert twin.victims(scene.alive, scene.need, 9000.0, alive=scene.alive) == chosen
    assert policy.victims(scene.alive[::-1], scene.need, 9000.0, alive=scene.alive) == chosen


@pytest.mark.parametrize("name", KEEP_ALIVES)
def test_a_pinned_container_never_expires(name: str) -> None:
    assert keep_alive(name).expires_at(container("c", pinned=True)) is None


@pytest.mark.parametrize("name", KEEP_ALIVES)
def test_pre_loads_do_not_move_the_end_of_a_container(name: str) -> None:
    """Whatever is in it and however much is free, a container lives as long as its uses say."""
    policy = keep_alive(name)
    before = container("c", last_used=50.0)
    policy.used(before, 50.0, cold_s=1.0)
    fuller = msgspec.structs.replace(before, free=0)
    assert policy.expires_at(fuller) == policy.expires_at(before)


class TestFixed:
    def test_ten_minutes_after_the_last_use(self) -> None:
        assert Fixed().expires_at(container("c", last_used=50.0)) == 650.0
        assert Fixed(5.0).expires_at(container("c", last_used=50.0)) == 55.0

    def test_openwhisk_pauses_first(self) -> None:
        assert keep_alive("openwhisk").expires_at(container("c", last_used=50.0)) == 660.0

    def test_the_oldest_goes_first_until_the_need_is_covered(self) -> None:
        alive = [container("a", last_used=30.0), container("b", last_used=10.0), container("c", last_used=20.0)]
        assert Fixed().victims(alive, 150 * MB, 40.0, alive=alive) == ["b", "c"]
        assert Fixed().victims(alive, 301 * MB, 40.0, alive=alive) == []


class TestPressure:
    def test_no_time_limit(self) -> None:
        assert Pressure().expires_at(container("c")) is None

    def test_priority_is_clock_plus_frequency_times_cost_per_megabyte(self) -> None:
        policy = Pressure()
        a, b = container("a", limit=100 * MB), container("b", limit=400 * MB, function="g")
        for _ in range(3):
            policy.used(a, 1.0, cold_s=2.0)
        policy.used(b, 2.0, cold_s=4.0)
        assert policy.priority("a") == pytest.approx(3 * 2 / 100)
        assert policy.priority("b") == pytest.approx(1 * 4 / 400)

        third = container("c")
        assert policy.victims([a, b, third], 450 * MB, 3.0, alive=[a, b, third]) == ["c", "b"]
        policy.gone("b")
        policy.used(b, 4.0, cold_s=4.0)  # back: its frequency starts again, the clock does not
        assert policy.priority("b") == pytest.approx(0.01 + 0.01)

    def test_frequency_is_shared_by_the_containers_of_a_function_and_lost_with_the_last(self) -> None:
        policy = Pressure()
        first, second = container("a"), container("b")
        policy.used(first, 1.0, cold_s=1.0)
        policy.used(second, 2.0, cold_s=1.0)
        assert policy.priority("a") == policy.priority("b") == pytest.approx(2 / 100)
        policy.gone("a")
        assert policy.priority("b") == pytest.approx(2 / 100)
        policy.gone("b")
        policy.used(first, 3.0, cold_s=1.0)
        assert policy.priority("a") == pytest.approx(1 / 100)

    def test_a_guest_takes_the_container_over(self) -> None:
        policy = Pressure()
        policy.used(container("a", function="f"), 1.0, cold_s=9.0)
        policy.used(container("a", function="g"), 2.0, cold_s=1.0)
        assert policy.priority("a") == pytest.approx(1 / 100)
        policy.used(container("b", function="f"), 3.0, cold_s=1.0)  # f had lost its last container
        assert policy.priority("b") == pytest.approx(1 / 100)

    def test_the_last_container_of_an_active_namespace_stays_if_at_all_possible(self) -> None:
        policy = Pressure()
        lonely = container("a", namespace="x", last_used=1000.0)
        rich = [container(f"b{n}", namespace="y", last_used=1000.0) for n in range(2)]
        alive = [lonely, *rich]
        for one in rich:
            policy.used(one, 1000.0, cold_s=5.0)  # worth more than the lonely one, which goes all the same last
        assert policy.victims(alive, 100 * MB, 1001.0, alive=alive) == ["b0"]
        assert policy.victims(alive, 300 * MB, 1001.0, alive=alive) == ["b0", "a", "b1"]
        assert policy.victims(alive, 100 * MB, 1001.0 + ACTIVE_S, alive=alive) == ["a"]

    def test_a_busy_container_keeps_its_namespace_alive(self) -> None:
        busy, idle = container("a", idle=False), container("b", last_used=1000.0)
        assert Pressure().victims([idle], 50 * MB, 1001.0, alive=[busy, idle]) == ["b"]

    def test_nothing_superfluous_goes(self) -> None:
        small, large = container("a", limit=64 * MB), container("b", limit=512 * MB, last_used=1.0)
        assert Pressure().victims([small, large], 500 * MB, 9e9, alive=[small, large]) == ["b"]
