"""Several nodes: where things go, and what comes of it when one closes, goes, or comes with something on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.state import ABSENT_S, FILES_S
from instainfer.model import Level
from instainfer.policies import registry
from instainfer.policies.routing import Room, choose, draw, homes
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
    rooms = [Room(node=home, promised=0, memory=1), Room(node=other, promised=0, memory=1, level=Level.IMPORTED)]
    assert choose("f", rooms, 0.0) == other
    assert choose("f", [*rooms, Room(node=another, promised=0, memory=1, level=Level.LOADED)], 0.0) == another
    rooms = [Room(node=home, promised=0, memory=1), Room(node=other, promised=0, memory=1, files=True)]
    assert choose("f", rooms, 0.0) == other


@given(
    nodes=st.lists(st.text("abcxyz0", min_size=1, max_size=4), min_size=1, max_size=9, unique=True),
    wanted=st.integers(1, 5),
    name=st.text("fgh", min_size=1, max_size=5),
)
def test_homes_are_stable(nodes: list[str], wanted: int, name: str) -> None:
    """A node more or less, or one home more, changes one of them, and that only where it has to."""

    def found(nodes: list[str], wanted: int) -> list[str]:
        """Where one container after the other goes."""
        rooms = {node: Room(node=node, promised=0, memory=1) for node in nodes}
        order = []
        for _ in range(min(wanted, len(nodes))):
            node = choose(name, list(rooms.values()), 0.0, wanted)
            order.append(node)
            rooms[node] = replace(rooms[node], own=rooms[node].own + 1)
        return order

    now = set(found(nodes, wanted))
    assert now == set(sorted(nodes, key=lambda node: -draw(name, node))[:wanted])
    assert now <= set(found(nodes, wanted + 1))
    for gone in nodes[: len(nodes) - 1]:
        later = set(found([node for node in nodes if node != gone], wanted))
        assert now - {gone} <= later
        assert gone in now or later == now
    assert choose(name, [Room(node=node, promised=0, memory=1) for node in reversed(nodes)], 0.0, wanted) == (
        choose(name, [Room(node=node, promised=0, memory=1) for node in nodes], 0.0, wanted)
    )


def test_of_its_homes_that_with_fewest_of_its_own_then_that_with_most_room() -> None:
    first, second, third = sorted("abc", key=lambda node: -draw("f", node))
    rooms = {node: Room(node=node, promised=50, memory=100) for node in "abc"}
    rooms[second] = replace(rooms[second], promised=45)
    rooms[third] = replace(rooms[third], promised=0)
    assert choose("f", list(rooms.values()), 0.5, 1) == first
    assert choose("f", list(rooms.values()), 0.5, 2) == second
    rooms[second] = replace(rooms[second], own=1)
    assert choose("f", list(rooms.values()), 0.5, 2) == first
    assert [homes(rate, 2.0, 4) for rate in (0.0, 0.1, 2.0, 2.1)] == [1, 1, 1, 2]


def test_a_function_goes_where_its_files_are_once_that_is_known_to_save() -> None:
    w = world("ns/f")

    def load(import_s: float) -> str:
        """A cold start, on a node of its own. Returns where."""
        w.arrive()
        w.create()
        instance, level = w.loading.pop(0)
        node = w.state.instances[instance].container.node
        w.fed(ev.InstanceReady(instance=instance, level=level, import_s=import_s, load_s=0.5), after=import_s)
        w.settle()
        return node

    def over() -> None:
        for container in list(w.state.containers):
            w.fed(ev.ContainerLost(container=container, reason="its time was over"))

    state = w.state.functions["ns/f"]
    home = load(import_s=3.0)  # its files come first
    assert (state.fresh_s, state.costs.import_s) == (2.5, 0.5), "what only a first load takes is kept apart"
    over()
    w.fed(ev.NodeClosed(node=home))
    other = load(import_s=3.0)
    over()
    w.fed(ev.NodeLost(node=home))
    w.fed(ev.NodeJoined(node=home, memory=2048 * MB))
    assert load(import_s=0.5) == other, "its home has lost them"
    over()
    w.now += FILES_S
    assert load(import_s=3.0) == home
    w.fed(ev.FunctionDeployed(function=function(revision="ns/f@2")))
    assert not state.read_on


def test_functions_spread_over_nodes_and_return_to_where_they_were() -> None:
    names = [f"ns/f{n}" for n in range(6)]
    w = world(*names)
    first = {name: where(w, running(w, name)) for name in names}
    assert set(first.values()) == set(NODES)
    w.settle()
    assert {name: where(w, running(w, name)) for name in names} == first


# ---- room


def test_room_is_made_where_least_is_lost() -> None:
    names = [f"ns/f{n}" for n in range(4)]
    w = world(*names, memory=700 * MB)  # one container on each node
    for name in names[:3]:
        for _ in range(1 if name == names[1] else 5):
            w.serve(name)
            w.now += 100.0
    seldom = next(c.node for c in w.state.containers.values() if c.owner == names[1])
    assert where(w, running(w, names[3])) == seldom
    assert {c.owner for c in w.state.containers.values()} == {names[0], names[2], names[3]}


def test_no_room_is_made_where_another_node_has_it_on_its_way() -> None:
    w = world("ns/f0", "ns/f1", "ns/f2", "ns/f3", memory=700 * MB)
    for name in ("ns/f0", "ns/f1", "ns/f2"):
        w.serve(name)
    w.arrive("ns/f3")
    assert len(w.destroying) == 1
    w.state.starved.clear()
    w.arrive("ns/f3")
    assert len(w.destroying) == 1
    w.settle()


@pytest.mark.parametrize("keep_alive", registry.KEEP_ALIVES)
def test_every_keep_alive_policy_weighs(keep_alive: str) -> None:
    w = World(platform(keep_alive=keep_alive))
    w.fed(ev.FunctionDeployed(function=function()))
    w.serve()
    (container,) = w.state.containers.values()
    view = w.state.view(container)
    fresh, old = (w.state.keep_alive.weigh(view, w.now + rest) for rest in (0.0, 3600.0))
    assert 0.0 <= old < fresh


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


# ---- copies


def one_container_each() -> World:
    w = world("ns/f", "ns/g", "ns/h", nodes=("n", "m"), memory=700 * MB)
    for name in ("ns/g", "ns/h"):
        w.serve(name)
    assert sorted(c.node for c in w.state.containers.values()) == ["m", "n"]
    w.settle()
    return w


def test_a_function_with_several_calls_under_way_is_loaded_on_several_nodes() -> None:
    w = one_container_each()
    for _ in range(40):
        w.finish(running(w), seconds=2.0)
        w.settle()
    loaded = [i for i in w.state.functions["ns/f"].instances.values() if i.level == Level.LOADED]
    assert sorted(i.container.node for i in loaded) == ["m", "n"]
    assert len(w.state.containers) == 2


def test_what_is_out_of_reach_is_pre_loaded_elsewhere_before_its_node_is_lost() -> None:
    w = one_container_each()
    w.serve()
    (instance,) = w.state.functions["ns/f"].instances.values()
    node = instance.container.node
    w.fed(ev.NodeClosed(node=node))
    w.settle()
    assert {i.container.node for i in w.state.functions["ns/f"].instances.values()} == {"m", "n"}
    w.fed(ev.NodeLost(node=node))
    assert w.starts[running(w)] == "preloaded"


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


# ---- a node that has less memory than it had, or more


def test_a_node_that_has_less_memory_gives_up_what_is_idle_and_loses_least() -> None:
    w = world(*(f"ns/f{n}" for n in range(3)), nodes=(), memory=1600 * MB)
    w.fed(ev.NodeJoined(node="n", memory=1600 * MB))
    for name, times in (("ns/f0", 5), ("ns/f1", 1), ("ns/f2", 5)):
        for _ in range(times):
            w.serve(name)
    w.fed(ev.NodeResized(node="n", memory=1100 * MB))
    assert w.state.ledger.free("n") == 0
    w.settle()
    assert {c.owner for c in w.state.containers.values()} == {"ns/f0", "ns/f2"}
    w.fed(ev.NodeResized(node="n", memory=1600 * MB))
    assert w.state.ledger.free("n") == 576 * MB


def test_what_runs_on_a_node_that_has_less_memory_ends_when_it_is_done() -> None:
    w = world("ns/f", "ns/g", nodes=(), memory=600 * MB)
    request = running(w)
    w.fed(ev.NodeResized(node="n", memory=100 * MB))
    waits = w.arrive("ns/g")
    assert request in w.running and not w.destroying
    w.finish(request)
    w.settle()
    assert not w.state.containers
    assert w.ended.get(waits) != "ok"
    w.fed(ev.NodeResized(node="n", memory=600 * MB))
    w.settle()
    w.serve("ns/g")
    assert w.fed(ev.NodeResized(node="nobody", memory=1)) == []


def test_zygotes_go_where_containers_are_not_enough() -> None:
    w = World(platform(), memory=1000 * MB, zygote_memory=400 * MB)
    w.fed(ev.FunctionDeployed(function=function(libraries="numpy", forkable=True)))
    w.settle()
    w.serve()
    w.settle()
    assert w.state.zygotes
    w.fed(ev.NodeResized(node="n", memory=10 * MB))
    w.settle()
    assert not w.state.zygotes and not w.state.containers


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
