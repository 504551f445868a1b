"""Stem cells and RainbowCake's layers: their definitions by hand, then in the core."""

from __future__ import annotations

import math
import pickle

import msgspec
import pytest

from instainfer.core import actions as act
from instainfer.core import checkpoint
from instainfer.core import events as ev
from instainfer.core.platform import Platform
from instainfer.core.state import State
from instainfer.errors import BadSettings
from instainfer.model import Costs, Function, Level
from instainfer.policies.base import ContainerView, Layers, Lends, Prewarms, Watches
from instainfer.policies.keepalive.fixed import Fixed
from instainfer.policies.keepalive.openwhisk import StemCells
from instainfer.policies.keepalive.rainbowcake import Layer, RainbowCake
from instainfer.policies.predict.forecast import Forecast
from instainfer.policies.predict.poisson import SlidingWindowPoisson
from instainfer.policies.preload.none import NoPreload
from instainfer.policies.registry import keep_alive
from tests.core.world import World, function
from tests.policies.test_keepalive import MB, container

LN5 = math.log(5.0)


def deployed(name: str = "n/f", memory: int = 100, libraries: str = "", costs: Costs | None = None) -> Function:
    return Function(
        name=name, revision=f"{name}@1", memory=memory * MB, libraries=libraries, costs=costs or Costs()
    )


def fresh(id: str, *, at: float = 0.0, limit: int = 100 * MB, idle: bool = True) -> ContainerView:
    """One in which nothing has run."""
    return msgspec.structs.replace(container(id, limit=limit, last_used=at, idle=idle), uses=0)


def stem_cells(spec: str, *functions: Function) -> StemCells:
    policy = keep_alive(spec)
    assert isinstance(policy, StemCells)
    for one in functions or (deployed(),):
        policy.deployed(one, 0.0)
    return policy


class TestStemCells:
    def test_there_are_none_by_default(self) -> None:
        assert type(keep_alive("openwhisk")) is Fixed
        assert not isinstance(keep_alive("openwhisk"), Prewarms)

    def test_so_many_from_the_start_for_each_size_of_each_tenant(self) -> None:
        policy = stem_cells(
            "openwhisk(stem_cells=2)",
            deployed("n/f"), deployed("n/g"), deployed("n/h", 200), deployed("o/f"),
        )  # fmt: skip
        due, _ = policy.prewarm(0.0)
        assert due == ["n/f", "n/f", "n/h", "n/h", "o/f", "o/f"]
        assert policy.prewarm(1.0)[0] == []

    def test_what_was_not_created_is_asked_for_again_after_a_minute(self) -> None:
        policy = stem_cells("openwhisk(stem_cells=2)")
        assert policy.prewarm(0.0) == (["n/f", "n/f"], 60.0)
        policy.created(fresh("a"), 0.3)
        assert policy.prewarm(59.0) == ([], 60.0)
        assert policy.prewarm(60.0) == (["n/f"], 120.0)
        policy.created(fresh("b"), 60.3)
        assert policy.prewarm(500.0) == ([], None)

    def test_one_that_ran_is_replaced_and_one_that_ended_too(self) -> None:
        policy = stem_cells("openwhisk(stem_cells=1)")
        policy.prewarm(0.0)
        policy.created(fresh("a"), 0.3)
        policy.used(container("a", last_used=5.0), 5.0, cold_s=1.0)
        assert policy.prewarm(5.0)[0] == ["n/f"]
        assert policy.expires_at(container("a", last_used=5.0)) == 5.0 + 610.0
        policy.created(fresh("b"), 5.3)
        policy.gone("b")
        assert policy.prewarm(6.0)[0] == ["n/f"]

    def test_a_cold_start_takes_the_oldest_of_its_very_size(self) -> None:
        policy = stem_cells("openwhisk(stem_cells=1)", deployed("n/f"), deployed("n/g"), deployed("n/h", 200))
        policy.created(fresh("a"), 2.0)
        policy.created(fresh("b"), 1.0)
        policy.created(fresh("large", limit=200 * MB), 0.0)
        policy.created(fresh("waited", idle=False), 0.0)  # for a request: none
        offered = [fresh("a"), fresh("b"), fresh("large", limit=200 * MB), fresh("waited"), container("used")]
        assert policy.lend("n/g", offered, 9.0) == "b"
        assert policy.lend("n/h", offered, 9.0) == "large"
        assert policy.lend("n/g", [fresh("large", limit=200 * MB), container("used")], 9.0) is None
        assert policy.lend("n/unknown", offered, 9.0) is None

    def test_they_are_never_evicted_and_have_no_time_limit_of_their_own(self) -> None:
        policy = stem_cells("openwhisk(stem_cells=1)")
        policy.created(fresh("a"), 0.0)
        used = container("b", last_used=9.0)
        assert policy.victims([fresh("a"), used], 1, 10.0, alive=[]) == ["b"]
        assert policy.victims([fresh("a"), used], 101 * MB, 10.0, alive=[]) == []
        assert policy.expires_at(fresh("a")) is None
        assert not policy.strips(fresh("a"), 10.0)

    @pytest.mark.parametrize(
        ("cold", "wanted"),
        [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (9, 5)],  # min(max(1, cold // 2 x 2), 5)
    )
    def test_every_ten_minutes_their_number_follows_the_cold_starts(self, cold: int, wanted: int) -> None:
        policy = stem_cells("openwhisk(min=1,max=5,threshold=2,increment=2,ttl=700)")
        assert policy.prewarm(0.0) == ([], 600.0)  # none from the start
        assert policy.prewarm(1.0)[0] == ["n/f"]  # and from then on the least
        policy.created(fresh("s"), 1.3)
        for number in range(cold):
            policy.created(fresh(f"c{number}", idle=False), 10.0)
        due, next_at = policy.prewarm(600.0)
        assert due == ["n/f"] * (wanted - 1)  # one is there
        assert next_at == (660.0 if due else 1200.0)
        for number in range(len(due)):
            policy.created(fresh(f"t{number}"), 600.3)
        assert policy.prewarm(601.0) == ([], 1200.0)

    def test_those_that_are_too_old_go_at_a_check_and_do_not_count_at_it(self) -> None:
        policy = stem_cells("openwhisk(stem_cells=2,min=1,max=5)")
        policy.prewarm(0.0)
        policy.created(fresh("a"), 0.3)
        policy.created(fresh("b"), 500.0)
        assert policy.expires_at(fresh("a")) == 600.0
        assert policy.expires_at(fresh("b")) == 1200.0  # 100 s old at the first check
        assert policy.prewarm(600.0)[0] == []  # b is the one
        assert policy.expires_at(fresh("a")) == 600.0
        policy.gone("a")
        assert policy.prewarm(1200.0)[0] == ["n/f"]

    def test_a_kind_without_functions_is_not_kept_up(self) -> None:
        policy = stem_cells("openwhisk(stem_cells=1)", deployed("n/f"), deployed("n/g"))
        policy.forget("n/f")
        assert policy.prewarm(0.0)[0] == ["n/g"]
        policy.forget("n/g")
        assert policy.prewarm(100.0)[0] == []

    @pytest.mark.parametrize(
        "spec", ["openwhisk(min=1)", "openwhisk(min=3,max=2)", "openwhisk(max=1,threshold=0)"]
    )
    def test_numbers_that_contradict_each_other(self, spec: str) -> None:
        with pytest.raises(BadSettings):
            keep_alive(spec)

    def test_pickled_it_goes_on(self) -> None:
        policy = stem_cells("openwhisk(stem_cells=2)")
        policy.prewarm(0.0)
        policy.created(fresh("a"), 0.3)
        twin = pickle.loads(pickle.dumps(policy))
        twin.used(container("a"), 3.0, cold_s=1.0)
        policy.used(container("a"), 3.0, cold_s=1.0)
        assert twin.prewarm(3.0) == policy.prewarm(3.0) == (["n/f"], 60.0)


def world(spec: str, memory: int, **sizes: int) -> World:
    """Functions of tenant `ns` with these limits in MB."""
    brain = Platform(State(Forecast(SlidingWindowPoisson()), keep_alive(spec), NoPreload()))
    found = World(brain, memory=memory * MB)
    for name, size in sizes.items():
        found.fed(ev.FunctionDeployed(function=function(f"ns/{name}", memory=size * MB, libraries=name[:1])))
    return found


def created(w: World) -> int:
    return sum(isinstance(action, act.CreateContainer) for action in w.decided)


class TestStemCellsInTheCore:
    def test_they_are_created_at_once_and_a_request_loads_into_one(self) -> None:
        w = world("openwhisk(stem_cells=2)", 2000, f=200, g=200)
        assert len(w.creating) == 2
        w.settle()
        request = w.arrive("ns/g")
        assert w.creating == []  # it took one
        w.settle()
        assert w.ended[request] == "ok"
        assert created(w) == 3  # and another one took its place
        assert sorted(c.owner for c in w.state.containers.values()) == ["ns/f", "ns/f", "ns/g"]

    def test_another_size_is_a_cold_start_beside_them(self) -> None:
        w = world("openwhisk(stem_cells=1)", 600, f=200, g=300)
        w.settle()
        assert created(w) == 2
        w.fed(ev.FunctionDeployed(function=function("ns/h", memory=250 * MB)))
        assert w.creating == []  # 100 MB are free
        w.arrive("ns/h")
        assert w.destroying == []  # no stem cell goes for it
        assert w.creating == []

    def test_a_checkpoint_keeps_one_policy(self) -> None:
        w = world("openwhisk(stem_cells=1)", 600, f=200)
        again = checkpoint.load(checkpoint.dump(w.state))
        assert {id(one) for one in (again.watches, again.prewarms, again.lends)} == {id(again.keep_alive)}


#: Of User 2 s and 500 MB, of Lang 1 s and 100 MB, of the container 0.4 s and 2 MB.
COSTS = Costs(
    container_s=0.4, import_s=1.0, load_s=2.0, first_s=0.0, imported_bytes=100 * MB, loaded_bytes=500 * MB
)


def rainbow(alpha: float = 0.996, **arrivals: list[float]) -> RainbowCake:
    """Functions of one tenant; of those whose names begin alike the libraries are alike."""
    policy = RainbowCake(alpha)
    for name in arrivals:
        policy.deployed(deployed(f"n/{name}", libraries=name[:1], costs=COSTS), 0.0)
    for at, name in sorted((at, name) for name, times in arrivals.items() for at in times):
        policy.arrived(f"n/{name}", at)
    return policy


class TestRainbowCake:
    def test_without_a_history_ten_minutes(self) -> None:
        policy = rainbow(f=[0.0])
        assert policy.time_s(Layer.USER, "n/f", 1.0) == 600.0
        assert RainbowCake().time_s(Layer.BARE, "n/never", 1.0) == 600.0

    def test_mean_times_ln_5_of_the_last_six_arrivals(self) -> None:
        """The gaps of the last six: 100, 100, 100, 100, 200 s; the cap is far off."""
        policy = rainbow(0.999999, f=[0.0, 1000.0, 1100.0, 1200.0, 1300.0, 1400.0, 1600.0])
        assert policy.time_s(Layer.USER, "n/f", 1601.0) == pytest.approx(120.0 * LN5)

    def test_of_a_day(self) -> None:
        policy = rainbow(0.99999999, f=[0.0, 50_000.0, 50_100.0])
        assert policy.time_s(Layer.USER, "n/f", 50_100.0) == pytest.approx(25_050.0 * LN5)
        assert policy.time_s(Layer.USER, "n/f", 86_400.0) == pytest.approx(100.0 * LN5)

    def test_caps_and_the_least(self) -> None:
        """alpha / (1 - alpha) = 1e4: User 1e4 x 2 / 500 = 40 s and so 60, Lang 1e4 x 1 / 100 = 100 s, Bare 1e4 x
        0.4 / 2 = 2000 s."""
        policy = rainbow(1.0 - 1.0 / 10_001.0, f=[0.0, 1000.0])
        assert policy.time_s(Layer.USER, "n/f", 1000.0) == 60.0
        assert policy.time_s(Layer.LANG, "n/f", 1000.0) == pytest.approx(100.0)
        assert policy.time_s(Layer.BARE, "n/f", 1000.0) == pytest.approx(1000.0 * LN5)

    def test_the_published_weight_leaves_the_minute(self) -> None:
        """249 x 0.4 / 2 = 49.8 s for Bare, less for the others."""
        policy = rainbow(f=[0.0, 1000.0])
        assert [policy.time_s(layer, "n/f", 1000.0) for layer in Layer] == [60.0, 60.0, 60.0]

    def test_lower_layers_count_the_arrivals_of_all_who_share_them(self) -> None:
        """f1: gap 600 s. f1 and f2: 0, 200, 600. All: 0, 200, 300, 600."""
        policy = rainbow(0.9999999, f1=[0.0, 600.0], f2=[200.0], g=[300.0])
        assert policy.time_s(Layer.USER, "n/f1", 600.0) == pytest.approx(600.0 * LN5)
        assert policy.time_s(Layer.LANG, "n/f1", 600.0) == pytest.approx(300.0 * LN5)
        assert policy.time_s(Layer.LANG, "n/g", 600.0) == 600.0  # one arrival is no history
        assert policy.time_s(Layer.BARE, "n/g", 600.0) == pytest.approx(200.0 * LN5)

    def test_layer_by_layer_and_then_it_ends(self) -> None:
        policy = rainbow(f=[0.0, 1000.0])
        one = container("a", last_used=1001.0)
        policy.used(one, 1001.0, cold_s=3.0)
        assert policy.expires_at(one) == 1061.0
        assert policy.strips(one, 1061.0)
        assert policy.imports(one, 1061.0)
        assert policy.expires_at(one) == 1121.0
        assert policy.strips(one, 1121.0)
        assert not policy.imports(one, 1121.0)
        assert policy.expires_at(one) == 1181.0
        assert not policy.strips(one, 1181.0)

    def test_used_again_it_is_user_again(self) -> None:
        policy = rainbow(f=[0.0, 1000.0])
        one = container("a", last_used=1001.0)
        policy.used(one, 1001.0, cold_s=3.0)
        policy.strips(one, 1061.0)
        policy.used(one, 1070.0, cold_s=3.0)
        assert policy.layer("a") is Layer.USER
        assert policy.expires_at(one) == 1130.0

    def test_one_never_used_has_nothing_imported(self) -> None:
        policy = rainbow(f=[0.0, 1000.0])
        ahead = fresh("a", at=1500.0)
        assert policy.expires_at(ahead) == 1560.0
        assert policy.strips(ahead, 1560.0)
        assert policy.layer("a") is Layer.BARE

    def test_a_pinned_one_never_ends(self) -> None:
        assert rainbow(f=[0.0]).expires_at(container("a", pinned=True)) is None

    def test_lang_to_those_with_the_same_libraries_then_bare_to_all(self) -> None:
        policy = rainbow(f1=[0.0], f2=[0.0], g=[0.0])
        user, lang, bare = (
            container("user", function="f1", last_used=1.0),
            container("lang", function="f1", last_used=3.0),
            container("bare", function="f1", last_used=2.0),
        )
        policy.strips(lang, 700.0)
        policy.strips(bare, 700.0)
        policy.strips(bare, 800.0)
        offered = [user, lang, bare]
        assert policy.lend("n/f2", offered, 900.0) == "lang"
        assert policy.lend("n/g", offered, 900.0) == "bare"
        assert policy.lend("n/g", [user, lang], 900.0) is None

    def test_functions_without_a_key_share_no_libraries(self) -> None:
        policy = RainbowCake()
        for name in ("n/f", "n/g"):
            policy.deployed(deployed(name), 0.0)
        one = container("a")
        policy.strips(one, 600.0)
        assert policy.lend("n/g", [one], 601.0) is None

    def test_pre_warming_when_the_gap_is_over(self) -> None:
        policy = rainbow(f=[0.0])
        assert policy.prewarm(0.0) == ([], None)
        policy.arrived("n/f", 100.0)
        due, next_at = policy.prewarm(100.0)
        assert due == []
        assert next_at == pytest.approx(100.0 + 100.0 * LN5)
        assert policy.prewarm(100.0 + 100.0 * LN5 + 1e-6) == (["n/f"], None)

    def test_a_forgotten_function_is_new_again(self) -> None:
        policy = rainbow(0.9999999, f=[0.0, 1000.0])
        policy.forget("n/f")
        assert policy.prewarm(9e9) == ([], None)
        assert policy.time_s(Layer.USER, "n/f", 1000.0) == 600.0

    def test_what_it_is(self) -> None:
        policy = keep_alive("rainbowcake")
        for protocol in (Prewarms, Lends, Layers, Watches):
            assert isinstance(policy, protocol)
        assert not isinstance(keep_alive("pagurus"), Layers)
        with pytest.raises(BadSettings, match="alpha is 1"):
            keep_alive("rainbowcake(alpha=1)")

    def test_pickled_it_goes_on(self) -> None:
        policy = rainbow(f=[0.0, 1000.0])
        one = container("a", last_used=1001.0)
        policy.used(one, 1001.0, cold_s=3.0)
        twin = pickle.loads(pickle.dumps(policy))
        assert twin.strips(one, 1061.0) and policy.strips(one, 1061.0)
        assert twin.expires_at(one) == policy.expires_at(one)
        assert twin.prewarm(9e9) == policy.prewarm(9e9)


class TestRainbowCakeInTheCore:
    def lang(self, w: World, name: str) -> str:
        """A request, and the end of its container's first layer."""
        w.serve(name)
        (found,) = (c.id for c in w.state.containers.values() if c.owner == name)
        w.fire(f"expire:{found}")
        w.settle()
        return found

    def test_the_instance_ends_and_its_libraries_come_back(self) -> None:
        w = world("rainbowcake", 1000, f=150)
        found = self.lang(w, "ns/f")
        assert [one.level for one in w.state.containers[found].instances.values()] == [Level.IMPORTED]
        loads = [action for action in w.decided if isinstance(action, act.Load)]
        assert [one.ahead for one in loads] == [False, True]
        request = w.arrive("ns/f")
        w.settle()
        assert w.starts[request] == "imported"
        assert created(w) == 1

    def test_then_it_is_empty_and_then_gone(self) -> None:
        w = world("rainbowcake", 1000, f=150, g=150)
        found = self.lang(w, "ns/f")
        w.fire(f"expire:{found}")
        w.settle()
        assert w.state.containers[found].instances == {}
        assert w.destroying == []
        w.fire(f"expire:{found}")
        assert w.destroying == [found]

    def test_an_empty_one_serves_any_function_of_its_tenant(self) -> None:
        w = world("rainbowcake", 1000, f=150, g=150)
        found = self.lang(w, "ns/f")
        request = w.arrive("ns/g")
        assert len(w.creating) == 1  # a Lang with other libraries is none
        w.settle()
        assert w.ended[request] == "ok"
        w.fire(f"expire:{found}")
        w.settle()
        assert w.state.containers[found].instances == {}
        w.fed(ev.FunctionDeployed(function=function("ns/h", memory=150 * MB)))
        w.serve("ns/h")
        assert w.state.containers[found].owner == "ns/h"
        assert created(w) == 2

    def test_a_request_that_comes_while_it_is_emptied_is_served_and_nothing_is_imported(self) -> None:
        w = world("rainbowcake", 1000, f=300)
        w.serve("ns/f")
        (found,) = w.state.containers
        w.fire(f"expire:{found}")
        assert len(w.ending) == 1
        request = w.arrive("ns/f")
        w.settle()
        assert w.ended[request] == "ok"
        assert created(w) == 1
        assert sum(action.ahead for action in w.decided if isinstance(action, act.Load)) == 0

    def test_libraries_that_save_nothing_are_not_imported(self) -> None:
        w = world("rainbowcake", 1000, f=150)
        w.serve("ns/f")
        w.state.functions["ns/f"].learn(import_s=0.0)
        (found,) = w.state.containers
        w.fire(f"expire:{found}")
        w.settle()
        assert w.state.containers[found].instances == {}
