"""What becomes of containers when a node is emptied, lost, or comes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.moving import LOOK_S
from instainfer.core.state import ABSENT_S
from instainfer.model import Level
from tests.core.test_nodes import held, loaded, running, where, world
from tests.core.world import MB, World, function

NAMES = tuple(f"ns/f{n}" for n in range(6))
AT_ONCE = {"warm", "preloaded"}


def steps(w: World, most: int = 300) -> Iterator[None]:
    """One thing after the other, after each a turn for the test, until only far timers are left."""
    for _ in range(most):
        if w.destroying:
            w.destroy()
        elif w.ending:
            w.end()
        elif w.retiring:
            w.retire()
        elif w.creating:
            w.create()
        elif any(name not in w.frozen for name, _ in w.loading):
            w.load()
        elif w.timers and min(w.timers.values()) <= w.now + 2 * LOOK_S:
            w.fire()
        else:
            return
        yield
    raise AssertionError("it does not come to rest")


def rest(w: World) -> None:
    for _ in steps(w):
        pass


def on(w: World, node: str) -> list[str]:
    """Owners of its containers."""
    return sorted(c.owner for c in w.state.containers.values() if c.node == node)


def owners(w: World) -> list[str]:
    return sorted(c.owner for c in w.state.containers.values())


def start(w: World, name: str) -> str:
    """How a request of it starts, which is answered at once; "" where it has to wait."""
    request = w.arrive(name)
    kind = w.starts.get(request, "")
    if kind:
        w.finish(request)
    return kind


def fill(w: World, node: str, *names: str) -> None:
    """A container of each of these on this node, loaded, and each called thrice."""
    others = [one for one in w.state.open_nodes if one != node]
    for one in others:
        w.fed(ev.NodeClosed(node=one))
    for name in names:
        for _ in range(3):
            w.serve(name)
            w.now += 1.0
    for one in others:
        w.fed(ev.NodeOpened(node=one))
    w.state.uneven = False
    rest(w)
    assert on(w, node) == sorted(names)


# ---- a node that is emptied


def test_during_a_drain_nothing_that_was_there_goes_cold() -> None:
    w = world(*NAMES, nodes=("m",), memory=4096 * MB)
    fill(w, "n", *NAMES)
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    asked = 0
    for _ in steps(w):
        name = NAMES[asked % len(NAMES)]
        assert start(w, name) in AT_ONCE, f"{name} after {asked} steps"
        asked += 1
    assert asked > len(NAMES)
    assert not on(w, "n") and on(w, "m") == sorted(NAMES)
    assert "n" in w.state.closed and not w.state.leaving


def test_guests_are_pre_loaded_before_their_container_goes() -> None:
    w = world("ns/f0", "ns/f1", nodes=("m",), memory=600 * MB)
    fill(w, "n", "ns/f0")
    for _ in range(3):
        w.serve("ns/f1")
    w.fed(ev.NodeLost(node="m"))
    rest(w)
    assert {i.function.spec.name for i in w.state.instances.values()} == {"ns/f0", "ns/f1"}
    w.fed(ev.NodeJoined(node="m", memory=600 * MB))
    w.state.orphans.clear()
    w.state.uneven = False
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    for _ in steps(w):
        for name in ("ns/f0", "ns/f1"):
            assert start(w, name) in AT_ONCE, name
    assert on(w, "n") == []
    assert on(w, "m") == ["ns/f0"] or on(w, "m") == ["ns/f1"]


def test_a_drain_keeps_to_the_loads_that_other_nodes_can_take() -> None:
    w = world(*NAMES, nodes=("m",), memory=4096 * MB)
    fill(w, "n", *NAMES)
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    most = 0
    for _ in steps(w):
        coming = sum(1 for c in w.state.containers.values() if c.node == "m" and c.state == "creating")
        most = max(most, coming + w.state.loads_running("m"))
    assert most == w.state.load_slots["m"] == 2


def test_requests_go_to_what_stays_once_it_stands() -> None:
    w = world("ns/f0", nodes=("m",))
    fill(w, "n", "ns/f0")
    first = running(w, "ns/f0")  # so that its container is not idle
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    rest(w)
    assert on(w, "n") == ["ns/f0"], "what runs there is finished"
    second = w.arrive("ns/f0")
    assert where(w, second) == "m" and w.starts[second] == "preloaded"
    w.finish(second)
    w.finish(first)
    rest(w)
    assert on(w, "n") == []


def test_what_has_no_place_elsewhere_ends_without_waiting_for_the_limit() -> None:
    w = world("ns/f0", "ns/f1", nodes=("m",), memory=600 * MB)
    fill(w, "n", "ns/f0")
    w.fed(ev.NodeResized(node="m", memory=100 * MB))
    began = w.now
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    rest(w)
    assert on(w, "n") == [] and w.now < began + 5.0
    assert [orphan.function for orphan in w.state.orphans.values()] == ["ns/f0"]


def test_the_only_node_is_emptied_at_once() -> None:
    w = world("ns/f0", nodes=())
    w.serve("ns/f0")
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    assert w.destroying and "n" in w.state.closed


def test_a_drain_ends_when_its_time_is_over() -> None:
    w = world("ns/f0", nodes=("m",))
    fill(w, "n", "ns/f0")
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    (made,) = w.creating  # it takes longer than anybody waits
    w.creating.clear()
    while w.now < w.state.leaving.get("n", 0.0):
        assert start(w, "ns/f0") == "warm"
        w.fire()
    w.settle()
    assert on(w, "n") == [] and "n" in w.state.closed
    w.fed(ev.ContainerReady(container=made, seconds=61.0))
    rest(w)
    assert start(w, "ns/f0") == "preloaded"


def test_a_pinned_function_is_loaded_throughout() -> None:
    w = world("ns/f0", nodes=("m",), memory=600 * MB)
    fill(w, "n", "ns/f0")
    w.fed(ev.PinChanged(token=1, function="ns/f0", pinned=True))
    w.fed(ev.FunctionDeployed(function=function("ns/f1")))
    w.serve("ns/f1")  # whose container has to make room for it
    assert on(w, "m") == ["ns/f1"]
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    for _ in steps(w):
        there = w.state.functions["ns/f0"].instances.values()
        assert any(i.level == Level.LOADED and i.state == "ready" for i in there)
    assert on(w, "n") == [] and on(w, "m") == ["ns/f0"]


def test_a_drain_that_is_taken_back_leaves_everything_as_it_was() -> None:
    w = world("ns/f0", nodes=("m",))
    fill(w, "n", "ns/f0")
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    w.fed(ev.NodeOpened(node="n"))
    assert not w.state.leaving and not any(c.leaving for c in w.state.containers.values())
    rest(w)
    assert start(w, "ns/f0") in AT_ONCE
    assert "n" in {c.node for c in w.state.containers.values()}


def test_a_node_that_is_lost_while_it_is_emptied() -> None:
    w = world("ns/f0", nodes=("m",))
    fill(w, "n", "ns/f0")
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    w.fed(ev.NodeLost(node="n"))
    rest(w)
    assert owners(w) == ["ns/f0"] and not w.state.leaving
    assert start(w, "ns/f0") == "preloaded"


def test_a_node_that_is_out_of_reach_does_not_serve_while_it_is_emptied() -> None:
    w = world("ns/f0", nodes=("m",))
    fill(w, "n", "ns/f0")
    w.fed(ev.NodeClosed(node="n"))
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    w.settle()
    assert on(w, "n") == []


# ---- a node that is lost, and one that comes


def test_containers_of_a_lost_node_are_made_anew_where_memory_is() -> None:
    w = world("ns/f0", "ns/f1", nodes=("m",), memory=600 * MB)
    fill(w, "n", "ns/f0")
    fill(w, "m", "ns/f1")
    w.fed(ev.NodeLost(node="n"))
    rest(w)
    assert owners(w) == ["ns/f1"], "there is no memory for another one"
    assert {i.function.spec.name for i in w.state.instances.values()} == {"ns/f0", "ns/f1"}
    w.fed(ev.NodeJoined(node="n", memory=600 * MB))
    rest(w)
    assert (on(w, "m"), on(w, "n")) == (["ns/f1"], ["ns/f0"])
    w.fed(ev.NodeLost(node="m"))
    rest(w)
    assert [start(w, name) for name in ("ns/f0", "ns/f1")] == ["preloaded", "preloaded"]


def test_as_many_as_there_were_are_made_anew_by_and_by() -> None:
    w = world(*NAMES, nodes=("m",), memory=4096 * MB)
    fill(w, "n", *NAMES)
    w.fed(ev.NodeLost(node="n"))
    w.fire("move")
    assert len(w.creating) == w.state.load_slots["m"] == 2
    w.fire("move")  # looked at while they are being made
    rest(w)
    assert on(w, "m") == sorted(NAMES) and not w.state.orphans
    assert [start(w, name) for name in NAMES] == ["preloaded"] * len(NAMES)


def test_one_that_is_made_anew_stands_for_no_other_of_its_function() -> None:
    w = world("ns/f", nodes=(), memory=600 * MB)
    two = (held(loaded(served=0)), replace(held(loaded(instance="i9e2")), container="c7e2"))
    w.fed(ev.NodeJoined(node="m", memory=1200 * MB, held=two))
    w.serve("ns/f")
    assert w.state.containers["c7e2"].last_used > w.state.containers["c7e1"].last_used
    w.fed(ev.NodeLost(node="m"))
    rest(w)
    assert owners(w) == ["ns/f"] and len(w.state.orphans) == 1
    w.fed(ev.NodeResized(node="n", memory=1200 * MB))
    rest(w)
    assert owners(w) == ["ns/f", "ns/f"] and not w.state.orphans


def test_what_has_moved_is_worth_what_it_was() -> None:
    w = world("ns/f0", "ns/f1", "ns/f2", nodes=("m",), memory=1200 * MB)
    fill(w, "n", "ns/f0")
    fill(w, "m", "ns/f1")
    for _ in range(5):
        w.serve("ns/f0")
    w.fed(ev.NodeClosed(node="n", drain=True, within_s=60.0))
    rest(w)
    assert on(w, "m") == ["ns/f0", "ns/f1"]
    w.serve("ns/f2")
    assert on(w, "m") == ["ns/f0", "ns/f2"], "the one that is called least has gone"


def test_what_requests_have_made_meanwhile_is_not_made_again() -> None:
    w = world("ns/f0", nodes=("m",))
    fill(w, "n", "ns/f0")
    w.fed(ev.NodeLost(node="n"))
    w.serve("ns/f0")
    rest(w)
    assert owners(w) == ["ns/f0"] and not w.state.orphans


def test_a_lost_node_that_comes_back_with_its_containers_has_them_once() -> None:
    w = world("ns/f", nodes=(), memory=600 * MB)
    w.fed(ev.NodeJoined(node="m", memory=600 * MB, held=(held(loaded()),)))
    w.fed(ev.NodeResized(node="n", memory=10 * MB))
    w.fed(ev.NodeLost(node="m"))
    assert list(w.state.orphans) == ["c7e1"]
    w.fed(ev.NodeJoined(node="m", memory=600 * MB, held=(held(loaded()),)))
    rest(w)
    assert owners(w) == ["ns/f"] and not w.state.orphans


@pytest.mark.parametrize("after", ["deleted", "long"])
def test_what_is_of_no_use_any_more_is_not_made_anew(after: str) -> None:
    w = world("ns/f0", nodes=(), memory=600 * MB)
    w.serve("ns/f0")
    w.fed(ev.NodeLost(node="n"))
    if after == "deleted":
        w.fed(ev.FunctionDeleted(function="ns/f0"))
    else:
        w.now += ABSENT_S
    w.fed(ev.NodeJoined(node="n", memory=600 * MB))
    rest(w)
    assert not w.state.containers and not w.state.orphans


def test_a_node_that_comes_gets_containers_of_the_fullest_by_and_by() -> None:
    w = world(*NAMES, nodes=(), memory=4096 * MB)
    fill(w, "n", *NAMES)
    w.fed(ev.NodeJoined(node="m", memory=4096 * MB))
    for turn, _ in enumerate(steps(w)):
        assert sum(c.leaving for c in w.state.containers.values()) <= 1
        assert start(w, NAMES[turn % len(NAMES)]) in AT_ONCE
    assert owners(w) == sorted(NAMES)
    assert len(on(w, "n")) in (3, 4)
    before = set(w.state.containers)
    w.fed(ev.NodeJoined(node="o", memory=64 * MB))  # too small for any of them
    rest(w)
    assert set(w.state.containers) == before


def test_a_container_that_cannot_be_made_on_a_node_that_has_come_stays_where_it_is() -> None:
    w = world("ns/f0", "ns/f1", nodes=(), memory=1200 * MB)
    fill(w, "n", "ns/f0", "ns/f1")
    before = set(w.state.containers)
    w.fed(ev.NodeJoined(node="m", memory=1200 * MB))
    w.fire("move")
    (made,) = w.creating
    w.creating.clear()
    assert [c.leaving for c in w.state.containers.values()].count(True) == 1
    w.fed(ev.NodeResized(node="m", memory=100 * MB))
    w.fed(ev.ContainerLost(container=made, reason="it could not be made"))
    rest(w)
    assert set(w.state.containers) == before and not any(c.leaving for c in w.state.containers.values())
    assert not any(isinstance(a, act.DestroyContainer) for a in w.decided)
