"""Several nodes: where things go, and what comes of it when one closes, goes, or comes with something on it."""

from __future__ import annotations

import pytest

from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.state import ABSENT_S
from instainfer.model import Level
from instainfer.policies.routing import Room, choose, draw
from tests.core.world import MB, World, function, platform

NODES = ("m", "n", "o")


def world(*names: str, nodes: tuple[str, ...] = NODES, memory: int = 2048 * MB) -> World:
    made = World(platform(), memory=memory)
    for node in nodes:
        made.fed(ev.NodeJoined(node=node, memory=memory))
    for name in names:
        made.fed(ev.FunctionDeployed(function=function(name)))
    return made


def where(w: World, request: int) -> str:
    """The node on which it runs."""
    return w.state.instances[w.running[request]].container.node


def running(w: World, name: str = "ns/f") -> int:
    request = w.arrive(name)
    w.settle(until=lambda: request in w.running)
    return request


def held(*instances: ev.HeldInstance, name: str = "ns/f", limit: int = 512 * MB) -> ev.HeldContainer:
    return ev.HeldContainer(container="c7e1", function=name, limit=limit, instances=instances)


def loaded(revision: str = "ns/f@1", **more: object) -> ev.HeldInstance:
    fields: dict[str, object] = {"instance": "i9e1", "function": "ns/f", "level": Level.LOADED, "served": 3}
    return ev.HeldInstance(revision=revision, **(fields | more))  # type: ignore[arg-type] # test shorthand


# ---- routing


def test_a_function_has_a_home_and_a_node_that_comes_takes_only_its_share() -> None:
    def homes(nodes: list[str]) -> dict[str, str]:
        rooms = [Room(node=node, promised=0, memory=1) for node in nodes]
        return {name: choose(name, rooms, 0.0) for name in map(str, range(600))}

    three, four = homes(["a", "b", "c"]), homes(["a", "b", "c", "d"])
    moved = {name for name in three if three[name] != four[name]}
    assert {four[name] for name in moved} == {"d"}
    assert 100 < len(moved) < 200
    assert all(150 < list(three.values()).count(node) < 250 for node in "abc")


def test_a_home_that_is_far_fuller_than_the_others_is_passed_over() -> None:
    first, second = sorted("ab", key=lambda node: -draw("f", node))
    rooms = {first: Room(node=first, promised=60, memory=100), second: Room(node=second, promised=40, memory=100)}
    assert choose("f", list(rooms.values()), 0.5) == first
    rooms[first] = Room(node=first, promised=70, memory=100)
    assert choose("f", list(rooms.values()), 0.5) == second


def test_where_it_is_loaded_comes_before_where_its_libraries_are_before_home() -> None:
    home = max("abc", key=lambda node: draw("f", node))
    other, another = sorted(set("abc") - {home})
    rooms = [Room(node=home, promised=0, memory=1), Room(node=other, promised=0, memory=1, libraries=True)]
    assert choose("f", rooms, 0.0) == other
    assert choose("f", [*rooms, Room(node=another, promised=0, memory=1, loaded=True)], 0.0) == another


def test_functions_spread_over_nodes_and_return_to_where_they_were() -> None:
    names = [f"ns/f{n}" for n in range(6)]
    w = world(*names)
    first = {name: where(w, running(w, name)) for name in names}
    assert set(first.values()) == set(NODES)
    w.settle()
    assert {name: where(w, running(w, name)) for name in names} == first


# ---- a node that is lost


def test_what_never_reached_a_lost_node_runs_elsewhere_and_the_rest_is_told() -> None:
    w = world()
    w.fed(ev.FunctionDeployed(function=function(concurrency=2)))
    read = running(w)
    node, unread = where(w, read), w.arrive()
    assert w.running[unread] == w.running[read]
    w.fed(ev.NodeLost(node=node, unread=(unread,)))
    assert w.ended[read] == "instance_crashed"
    w.settle()
    assert w.ended[unread] == "ok"


def test_what_is_sent_again_goes_to_an_instance_that_is_idle() -> None:
    w = world("ns/f")
    first = running(w)
    node = where(w, first)
    w.fed(ev.NodeClosed(node=node))
    other = running(w)
    w.finish(other)
    w.fed(ev.NodeLost(node=node, unread=(first,)))
    assert w.running[first] in w.state.instances
    w.settle()


def test_who_waited_for_a_load_on_a_lost_node_is_served_elsewhere() -> None:
    w = world("ns/f")
    first = w.arrive()
    w.create()
    second = w.arrive()  # both wait for the load
    (container,) = w.state.containers.values()
    w.loading.clear()
    w.fed(ev.NodeLost(node=container.node))
    w.settle()
    assert (w.ended[first], w.ended[second]) == ("ok", "ok")
    assert w.state.functions["ns/f"].failures == 0, "the function is not to blame"
    assert all(c.node != container.node for c in w.state.containers.values())


def test_a_container_that_a_lost_node_was_making_is_made_elsewhere() -> None:
    w = world("ns/f")
    request = w.arrive()
    (container,) = w.state.containers.values()
    w.creating.clear()
    w.fed(ev.NodeLost(node=container.node))
    w.settle()
    assert w.ended[request] == "ok"


def test_requests_of_a_dead_container_that_were_not_read_are_sent_again() -> None:
    w = world("ns/f")
    request = running(w)
    container = w.state.instances[w.running[request]].container
    w.fed(ev.ContainerLost(container=container.id, reason="its manager died", unread=(request,)))
    w.settle()
    assert w.ended[request] == "ok"


# ---- a node that is the only one large enough


def large(memory: int = 3000 * MB) -> World:
    """`ns/f` fits on `big` alone, `ns/g` anywhere."""
    w = world("ns/g", nodes=("m",), memory=1024 * MB)
    w.fed(ev.NodeJoined(node="big", memory=4096 * MB))
    w.fed(ev.FunctionDeployed(function=function(memory=memory)))
    return w


def test_who_fits_on_a_lost_node_alone_waits_for_it_in_nobodys_way() -> None:
    w = large()
    w.serve()
    w.fed(ev.NodeLost(node="big"))
    waits = w.arrive()
    assert waits not in w.ended
    for _ in range(3):  # the functions of smaller containers are served, whoever waited first
        w.serve("ns/g")
    w.fed(ev.NodeJoined(node="big", memory=4096 * MB))
    w.settle()
    assert w.ended[waits] == "ok"


def test_who_waits_too_long_for_a_lost_node_is_told_which() -> None:
    w = large()
    w.fed(ev.NodeLost(node="big"))
    request = w.arrive()
    actions = w.fed(ev.RequestCancelled(request=request, reason="it waited 60 s", code="overloaded"), after=60.0)
    (reject,) = [action for action in actions if isinstance(action, act.Reject)]
    assert reject.code == "unavailable"
    assert "big was lost" in reject.reason and "3000 MB" in reject.reason
    w.serve("ns/g")


def test_a_node_that_stays_away_is_not_waited_for() -> None:
    w = large()
    w.fed(ev.NodeLost(node="big"))
    w.now += ABSENT_S
    assert w.ended[w.arrive()] == "overloaded"
    w.fed(ev.NodeJoined(node="big", memory=2048 * MB))
    assert w.ended[w.arrive()] == "overloaded"


@pytest.mark.parametrize("keep_alive", ["pressure", "openwhisk"])
def test_who_waits_for_a_node_that_is_out_of_reach_is_in_nobodys_way(keep_alive: str) -> None:
    w = World(platform(keep_alive=keep_alive), memory=600 * MB)
    w.fed(ev.NodeJoined(node="big", memory=4096 * MB))
    w.fed(ev.FunctionDeployed(function=function(memory=3000 * MB)))
    for name in ("ns/g", "ns/h"):
        w.fed(ev.FunctionDeployed(function=function(name)))
    w.fed(ev.NodeClosed(node="big"))
    waits = w.arrive()
    for name in ("ns/g", "ns/h", "ns/g"):  # each takes the other's place
        assert w.ended[w.serve(name)] == "ok"
    assert waits not in w.ended
    w.fed(ev.NodeOpened(node="big"))
    w.settle()
    assert w.ended[waits] == "ok"


# ---- a node that takes nothing new


def test_a_closed_node_gets_no_requests_until_it_is_open_again() -> None:
    w = world("ns/f")
    w.serve()
    (container,) = w.state.containers.values()
    w.fed(ev.NodeClosed(node=container.node))
    elsewhere = running(w)
    assert where(w, elsewhere) != container.node
    w.fed(ev.NodeOpened(node=container.node))
    assert where(w, w.arrive()) == container.node
    w.settle()


def test_who_waits_at_a_node_that_closes_is_served_elsewhere() -> None:
    w = world("ns/f")
    first = running(w)
    node = where(w, first)
    second = w.arrive()
    w.fed(ev.NodeClosed(node=node))
    w.settle(until=lambda: second in w.running)
    assert where(w, second) != node
    assert w.running.get(first), "what runs there goes on"


def test_a_drained_node_finishes_its_work_and_is_empty() -> None:
    w = world("ns/f", "ns/g")
    for name in ("ns/f", "ns/g"):
        w.serve(name)
    busy = running(w)
    node = where(w, busy)
    w.fed(ev.NodeClosed(node=node, drain=True))
    w.settle()
    assert w.ended[busy] == "ok"
    assert not [c for c in w.state.containers.values() if c.node == node]
    again = running(w)
    assert where(w, again) != node


def test_a_container_that_comes_up_on_a_closed_node_is_not_loaded_into() -> None:
    w = world("ns/f")
    request = w.arrive()
    (container,) = w.state.containers.values()
    w.fed(ev.NodeClosed(node=container.node, drain=True))
    w.settle()
    assert w.ended[request] == "ok"
    assert (
        {c.node for c in w.state.containers.values()}
        == {i.container.node for i in w.state.instances.values()}
        != {container.node}
    )


def test_a_pinned_function_moves_when_its_node_is_drained() -> None:
    w = world("ns/f")
    w.fed(ev.PinChanged(token=1, function="ns/f", pinned=True))
    w.settle()
    (before,) = w.state.instances.values()
    w.fed(ev.NodeClosed(node=before.container.node, drain=True))
    w.settle()
    (after,) = w.state.instances.values()
    assert after.container.node != before.container.node
    assert after.level == Level.LOADED


# ---- a node that comes with something on it


def test_what_an_earlier_controller_left_serves_at_once() -> None:
    w = world("ns/f", nodes=())
    w.fed(ev.NodeJoined(node="m", memory=1024 * MB, held=(held(loaded(bytes=77 * MB)),)))
    instance = w.state.instances["i9e1"]
    assert (instance.bytes, instance.container.id) == (77 * MB, "c7e1")
    request = w.arrive()
    assert (w.running[request], w.starts[request]) == ("i9e1", "warm")
    w.settle()


def test_who_waits_is_served_by_what_a_node_comes_with() -> None:
    w = World(platform(), memory=64 * MB)
    w.fed(ev.NodeLost(node="n"))
    w.fed(ev.FunctionDeployed(function=function()))
    request = w.arrive()
    w.fed(ev.NodeJoined(node="m", memory=1024 * MB, held=(held(loaded()),)))
    assert w.running[request] == "i9e1"


def test_what_is_frozen_is_thawed_for_its_request() -> None:
    w = world("ns/f", "ns/g", nodes=())
    guest = loaded(instance="i2e1", function="ns/g", revision="ns/g@1", frozen=True)
    w.frozen.add("i2e1")
    w.fed(ev.NodeJoined(node="m", memory=1024 * MB, held=(held(loaded(), guest),)))
    w.serve("ns/g")
    assert w.frozen == {"i9e1"}


@pytest.mark.parametrize("limit", [512 * MB, 4096 * MB])
def test_what_is_nobodys_or_too_large_ends(limit: int) -> None:
    w = world("ns/g" if limit == 512 * MB else "ns/f", nodes=())
    actions = w.fed(ev.NodeJoined(node="m", memory=1024 * MB, held=(held(loaded(), limit=limit),)))
    assert [a.container for a in actions if isinstance(a, act.DestroyContainer)] == ["c7e1"]
    assert not w.state.containers


def test_an_old_version_ends_and_its_container_stays() -> None:
    w = world("ns/f", nodes=())
    actions = w.fed(ev.NodeJoined(node="m", memory=1024 * MB, held=(held(loaded("ns/f@0")),)))
    assert [a.instance for a in actions if isinstance(a, act.Offload)] == ["i9e1"]
    assert list(w.state.containers) == ["c7e1"]


def test_ids_of_an_era_are_nobody_elses() -> None:
    w = World(platform())
    w.state.era = "e2"
    assert w.state.next_id("c") == "c1e2"
