"""What a keep-alive policy may ask of the core: a line for memory, whole room, refusals, containers ahead."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from instainfer.core import actions as act
from instainfer.core import checkpoint
from instainfer.core import events as ev
from instainfer.core.platform import Platform
from instainfer.core.state import State
from instainfer.model import Costs
from instainfer.policies.base import Conduct, ContainerView, KeepAlive
from instainfer.policies.keepalive.fixed import Fixed
from instainfer.policies.keepalive.lru import Lru
from instainfer.policies.predict.forecast import Forecast
from instainfer.policies.predict.poisson import SlidingWindowPoisson
from instainfer.policies.preload.none import NoPreload
from tests.core.world import MB, World, function


def world(keep_alive: KeepAlive, memory: int, **functions: int) -> World:
    """Functions of namespace ns by name, with the memory that they declare."""
    w = World(Platform(State(Forecast(SlidingWindowPoisson()), keep_alive, NoPreload())), memory=memory * MB)
    for name, size in functions.items():
        w.fed(ev.FunctionDeployed(function=function(f"ns/{name}", memory=size * MB)))
    return w


def keeper(**conduct: bool) -> Lru:
    policy = Lru()
    policy.conduct = Conduct(**conduct)
    return policy


@pytest.mark.parametrize("in_line", [False, True])
def test_in_line_the_first_that_lacks_memory_holds_up_the_others(in_line: bool) -> None:
    w = world(keeper(in_line=in_line), 500, busy=200, large=400, small=200)
    running = w.arrive("ns/busy")
    w.settle(until=lambda: running in w.running)
    large = w.arrive("ns/large")  # 300 MB are free
    small = w.arrive("ns/small")
    assert [*w.state.starved] == (["ns/large", "ns/small"] if in_line else ["ns/large"])
    assert len(w.creating) == (0 if in_line else 1)
    w.settle()
    assert w.ended[large] == w.ended[small] == "ok"


def test_the_line_moves_up_when_its_first_gives_up() -> None:
    w = world(keeper(in_line=True), 500, busy=200, large=400, small=200)
    running = w.arrive("ns/busy")
    w.settle(until=lambda: running in w.running)
    large, small = w.arrive("ns/large"), w.arrive("ns/small")
    w.fed(ev.RequestCancelled(request=large))
    assert w.creating == []
    w.fire("queue:ns/small")
    assert len(w.creating) == 1
    w.settle()
    assert w.ended[small] == "ok"


def test_what_needs_no_memory_does_not_wait_in_line() -> None:
    w = world(keeper(in_line=True), 500, busy=200, large=400, small=200)
    w.serve("ns/small")
    running = w.arrive("ns/busy")
    w.settle(until=lambda: running in w.running)
    kept = next(c for c in w.state.containers.values() if c.owner == "ns/small")
    w.fed(ev.PinChanged(token=1, function="ns/small", pinned=True))  # so that it cannot make room
    w.arrive("ns/large")
    warm = w.arrive("ns/small")
    assert w.running[warm] in kept.instances


@pytest.mark.parametrize(("whole", "gone"), [(False, 1), (True, 2)])
def test_room_for_what_is_missing_or_for_the_whole(whole: bool, gone: int) -> None:
    """Three containers of 100 MB, 50 MB free, 150 MB asked for: 100 MB are missing."""
    w = world(keeper(whole=whole), 350, a=100, b=100, c=100, new=150)
    for name in ("a", "b", "c"):
        w.serve(f"ns/{name}")
    w.arrive("ns/new")
    assert len(w.destroying) == gone
    w.settle()


def test_where_the_whole_is_not_to_be_had_what_is_missing_will_do() -> None:
    w = world(keeper(whole=True), 350, a=100, new=300)
    w.serve("ns/a")
    new = w.arrive("ns/new")  # 250 MB are free, 300 MB of idle containers there are not
    assert len(w.destroying) == 1
    w.settle()
    assert w.ended[new] == "ok"


@pytest.mark.parametrize("drops", [False, True])
def test_what_no_eviction_makes_room_for_waits_or_is_dropped(drops: bool) -> None:
    w = world(keeper(drops=drops), 500, busy=200, large=400)
    running = w.arrive("ns/busy")
    w.settle(until=lambda: running in w.running)
    large = w.arrive("ns/large")
    assert w.ended.get(large) == ("overloaded" if drops else None)
    assert bool(w.state.starved) is not drops
    w.settle()
    assert w.ended[large] == ("overloaded" if drops else "ok")


def test_who_waits_for_an_instance_that_runs_is_not_dropped() -> None:
    w = world(keeper(drops=True), 300, busy=200)
    first = w.arrive("ns/busy")
    w.settle(until=lambda: first in w.running)
    second = w.arrive("ns/busy")
    w.fire("queue:ns/busy")
    assert second not in w.ended
    w.settle()
    assert w.ended[second] == "ok"


class Prewarming(Fixed):
    """Ends containers at once, and wants one again 100 s after every use."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.heard: list[tuple[str, float]] = []
        self.at: dict[str, float] = {}

    def arrived(self, function: str, now: float) -> None:
        self.heard.append((function, now))

    def forget(self, function: str) -> None:
        self.at.pop(function, None)

    def used(self, container: ContainerView, now: float, *, cold_s: float) -> None:
        self.at[container.owner] = now + 100.0

    def expires_at(self, container: ContainerView) -> float | None:
        return container.last_used + (0.0 if container.uses else 50.0)

    def prewarm(self, now: float) -> tuple[list[str], float | None]:
        due = sorted(name for name, at in self.at.items() if at <= now)
        for name in due:
            del self.at[name]
        return due, min(self.at.values(), default=None)


def unload(w: World, name: str = "ns/f") -> None:
    """A request, and the end of its container."""
    w.serve(name)
    (container,) = (c for c in w.state.containers.values() if c.owner == name)
    w.fire(f"expire:{container.id}")
    w.settle()
    assert not w.state.containers


def test_a_container_is_created_ahead_and_the_request_loads_into_it() -> None:
    policy = Prewarming()
    w = world(policy, 1000, f=200)
    unload(w)
    assert [name for name, _ in policy.heard] == ["ns/f"]
    ended = w.now
    w.fire("prewarm")
    assert w.now == pytest.approx(ended + 100.0, abs=1.0)
    created = w.decided[-1]
    assert isinstance(created, act.CreateContainer)
    assert created.function == "ns/f"
    container = w.create()
    w.settle()
    assert w.state.containers[container].instances == {}  # it is empty: loading is not the keep-alive policy's
    request = w.arrive("ns/f")
    w.settle()
    assert w.ended[request] == "ok"
    assert sum(isinstance(action, act.CreateContainer) for action in w.decided) == 2


def test_a_request_joins_a_container_that_is_being_created_ahead() -> None:
    w = world(Prewarming(), 1000, f=200)
    unload(w)
    w.fire("prewarm")
    request = w.arrive("ns/f")
    assert len(w.creating) == 1
    w.settle()
    assert w.ended[request] == "ok"


def test_one_that_nobody_needed_ends_by_the_policys_time() -> None:
    w = world(Prewarming(), 1000, f=200)
    unload(w)
    w.fire("prewarm")
    container = w.create()
    w.settle()
    ready = w.now
    w.fire(f"expire:{container}")
    assert w.now == pytest.approx(ready + 50.0, abs=1.0)
    assert w.destroying == [container]


def test_no_container_ahead_where_one_is_idle_or_memory_is_not_free() -> None:
    policy = Prewarming()
    w = world(policy, 1000, f=200, g=900)
    w.serve("ns/f")
    w.fire("prewarm")  # its expiry was not looked at yet: it is still there
    assert w.creating == []
    assert len(w.state.containers) == 1
    policy.at["ns/g"] = w.now
    w.fed(ev.TimerFired(timer="prewarm"))
    assert w.creating == []
    assert w.destroying == []  # nothing is evicted for it


def test_one_that_was_deleted_is_not_pre_warmed() -> None:
    policy = Prewarming()
    w = world(policy, 1000, f=200)
    unload(w)
    w.fed(ev.FunctionDeleted(function="ns/f"))
    assert policy.at == {}
    policy.at["ns/f"] = w.now
    w.fire("prewarm")
    assert w.creating == []


def test_a_checkpoint_keeps_one_policy_not_two() -> None:
    w = world(Prewarming(), 1000, f=200)
    w.serve("ns/f")
    again = checkpoint.load(checkpoint.dump(w.state))
    assert again.prewarms is again.keep_alive


class Lending(Fixed):
    """Empties a container 10 s after its last use, ends it 100 s after, and lends whatever was emptied."""

    def __init__(self) -> None:
        super().__init__(10.0)
        self.emptied: dict[str, None] = {}
        self.offers: list[list[str]] = []

    def expires_at(self, container: ContainerView) -> float | None:
        return container.last_used + (100.0 if container.id in self.emptied else 10.0)

    def used(self, container: ContainerView, now: float, *, cold_s: float) -> None:
        self.emptied.pop(container.id, None)

    def strips(self, container: ContainerView, now: float) -> bool:
        if container.id in self.emptied:
            return False
        self.emptied[container.id] = None
        return True

    def lend(self, function: str, offered: Sequence[ContainerView], now: float) -> str | None:
        self.offers.append([one.id for one in offered])
        return next((one.id for one in offered if one.id in self.emptied), None)


def emptied(w: World, name: str) -> str:
    """A request, and its container ten seconds later."""
    w.serve(name)
    (container,) = (c for c in w.state.containers.values() if c.owner == name)
    w.fire(f"expire:{container.id}")
    w.settle()
    assert container.state == "ready"
    assert not container.instances
    return container.id


def test_a_container_is_emptied_then_taken_over_by_another_function() -> None:
    w = world(Lending(), 1000, f=300, g=200)
    lent = emptied(w, "ns/f")
    request = w.arrive("ns/g")
    assert w.creating == []
    w.settle()
    assert w.ended[request] == "ok"
    container = w.state.containers[lent]
    assert (container.owner, container.limit) == ("ns/g", 200 * MB)
    assert len(w.state.containers) == 1


def test_its_own_function_takes_it_back() -> None:
    policy = Lending()
    w = world(policy, 1000, f=300, g=200)
    lent = emptied(w, "ns/f")
    w.serve("ns/f")
    assert [*w.state.containers] == [lent]
    assert policy.offers == []


def test_an_emptied_one_that_nobody_needs_ends() -> None:
    w = world(Lending(), 1000, f=300)
    lent = emptied(w, "ns/f")
    w.fire(f"expire:{lent}")
    assert w.destroying == [lent]


def test_only_idle_ones_of_the_same_tenant_with_room_are_offered() -> None:
    policy = Lending()
    w = world(policy, 2000, f=300, g=200)
    tiny = Costs(import_s=0.1, load_s=0.1, imported_bytes=20 * MB, loaded_bytes=40 * MB)
    w.fed(ev.FunctionDeployed(function=function("ns/small", memory=60 * MB, costs=tiny)))
    w.fed(ev.FunctionDeployed(function=function("other/h", memory=300 * MB)))
    w.fed(ev.FunctionDeployed(function=function("ns/net", memory=300 * MB, network=True)))
    emptied(w, "ns/small")  # too small for what comes
    idle = emptied(w, "ns/f")
    for name in ("other/h", "ns/net"):
        emptied(w, name)
    del policy.offers[:]
    w.arrive("ns/g")
    assert policy.offers == [[idle]]
    w.settle()


def test_where_a_sandbox_takes_no_guests_nothing_is_lent() -> None:
    policy = Lending()
    w = World(Platform(State(Forecast(SlidingWindowPoisson()), policy, NoPreload())), guests=False)
    for name in ("ns/f", "ns/g"):
        w.fed(ev.FunctionDeployed(function=function(name)))
    emptied(w, "ns/f")
    w.arrive("ns/g")
    assert policy.offers == []
    assert len(w.creating) == 1
    w.settle()


def test_a_pre_load_in_it_makes_room_for_who_takes_it_over() -> None:
    w = world(Lending(), 1000, f=150, g=150, h=150)
    lent = emptied(w, "ns/f")
    w.fed(ev.PreloadRequested(token=1, function="ns/h"))
    w.settle()
    assert w.answers[1].ok
    request = w.arrive("ns/g")  # 100 of 150 MB are the pre-load's
    assert w.creating == []
    w.settle()
    assert w.ended[request] == "ok"
    assert w.state.containers[lent].owner == "ns/g"
