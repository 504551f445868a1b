"""Nodes come and go while a controller runs: against agents that do as they are told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from instainfer.agent import base
from instainfer.agent.base import Answered, Command, Invoke, Measure, Peers, Provide, Sink
from instainfer.books import Books, Ticket
from instainfer.clock import BootClock
from instainfer.controller import Controller
from instainfer.core import actions, events
from instainfer.core.platform import Platform
from instainfer.core.state import State
from instainfer.errors import Conflict, InstanceCrashed, NotFound, Unavailable
from instainfer.eventlog import EventLog
from instainfer.model import Costs, Function, FunctionSpec, Level, Style
from instainfer.observe import DELETED, Metrics
from instainfer.policies import registry
from instainfer.policies.predict.forecast import Forecast
from instainfer.store.sql import SqlStore
from instainfer.store.writer import BatchWriter

MB = 1 << 20
SPEC = FunctionSpec(
    namespace="ns", name="f", version=1, digest="sha256:00", style=Style.MODULE, entry="main:handler",
    memory=64 * MB, timeout_s=1.0, concurrency=1, environment="", python="3.11",
)  # fmt: skip
REVISION = base.Revision(
    id=SPEC.revision, namespace="ns", name="f", number=1, uid_base=1, digest=SPEC.digest, style=SPEC.style,
    entry=SPEC.entry, python="/python",
)  # fmt: skip
FUNCTION = Function(
    name=SPEC.key, revision=SPEC.revision, memory=SPEC.memory, costs=Costs(imported_bytes=MB, loaded_bytes=MB)
)


class Node:
    """An agent whose containers and loads are there at once, and whose answers come when told."""

    def __init__(self, node: str, held: tuple[events.HeldContainer, ...] = ()) -> None:
        self.node = node
        self.shelf = f"http://{node}"
        self.commands: list[Command] = []
        self.held = held
        self.closed = False
        self.report: Sink
        self.early: list[base.Report] = []

    async def start(self, sink: Sink) -> events.NodeJoined:
        self.report = sink
        for report in self.early:
            sink(report)
        return events.NodeJoined(node=self.node, memory=256 * MB, held=self.held)

    async def aclose(self) -> None:
        self.closed = True

    def send(self, command: Command) -> None:
        self.commands.append(command)
        report: base.Report | None = None
        if isinstance(command, actions.CreateContainer):
            report = events.ContainerReady(container=command.container, seconds=0.0)
        elif isinstance(command, actions.Load):
            report = events.InstanceReady(instance=command.instance, level=Level.LOADED)
        elif isinstance(command, actions.DestroyContainer):
            report = events.ContainerLost(container=command.container)
        if report is not None:
            asyncio.get_running_loop().call_soon(self.report, report)

    @property
    def invokes(self) -> list[Invoke]:
        return [command for command in self.commands if isinstance(command, Invoke)]

    def answer(self) -> None:
        for invoke in self.invokes:
            self.report(Answered(request=invoke.request, instance=invoke.instance, inference_s=0.0, body=b"ok"))


class World:
    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.done: asyncio.Queue[Ticket] = asyncio.Queue()

    def ask(self) -> Ticket:
        return self.controller.submit(SPEC, "text/plain", b"body", self.done.put_nowait)

    async def until(self, holds: Callable[[], object]) -> None:
        """A few turns of the loop: nothing here takes time."""
        for _ in range(1000):
            if holds():
                return
            await asyncio.sleep(0)
        raise AssertionError("it never became so")


def play(tmp_path: Path, scenario: Callable[[World], Awaitable[None]], *nodes: Node) -> None:
    async def main() -> None:
        store = SqlStore("sqlite://")
        writer = BatchWriter(store)
        clock = BootClock()
        mode = registry.preload("none")
        state = State(Forecast(registry.predictor(mode.predictor)), registry.keep_alive("pressure"), mode.policy)
        log = EventLog(tmp_path, epoch="e", policy={}, keep_bytes=1 << 20)
        controller = Controller(
            Platform(state), list(nodes), clock, log, Books(clock, writer, Metrics(), epoch="e"), queue_s=60.0
        )
        await controller.start(lambda spec: b"")
        controller.deploy(SPEC, FUNCTION, REVISION)
        async with asyncio.timeout(20):
            await scenario(World(controller))
        await controller.aclose()
        writer.close()
        store.close()

    asyncio.run(main())


def running(*nodes: Node) -> list[Node]:
    return [node for node in nodes if node.invokes]


def test_a_node_that_joins_later_knows_all_that_is_deployed(tmp_path: Path) -> None:
    late = Node("b")

    async def scenario(w: World) -> None:
        w.ask()
        await w.controller.join(late)
        await w.until(lambda: late.invokes)
        assert isinstance(late.commands[1], Provide)  # after the first, which says where it may pull from
        late.answer()
        assert (await w.done.get()).answer == ("", b"ok")

    play(tmp_path, scenario)


def test_nodes_are_told_where_the_others_have_what_they_may_lack(tmp_path: Path) -> None:
    a, b = Node("a"), Node("b")

    def told(node: Node) -> list[tuple[str, ...]]:
        return [command.urls for command in node.commands if isinstance(command, Peers)]

    async def scenario(world: World) -> None:
        await world.controller.join(b)
        assert (told(a), told(b)) == ([(), ("http://b",)], [("http://a",)])
        first = next(n for n, command in enumerate(b.commands) if isinstance(command, Provide))
        assert any(isinstance(command, Peers) for command in b.commands[:first])  # before it looks for anything
        await world.controller.leave("b")
        assert told(a)[-1] == ()

    play(tmp_path, scenario, a)


def test_two_nodes_of_one_name_are_one_too_many(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        with pytest.raises(Conflict):
            await w.controller.join(Node("a"))

    play(tmp_path, scenario, Node("a"))


def test_what_a_lost_node_had_not_been_given_runs_elsewhere(tmp_path: Path) -> None:
    a, b = Node("a"), Node("b")

    async def scenario(w: World) -> None:
        lost: list[str] = []
        w.controller.lost = lost.append
        ticket = w.ask()
        await w.until(lambda: running(a, b))
        (first,) = running(a, b)
        other = b if first is a else a
        first.report(events.NodeLost(node=first.node, unread=(ticket.request,)))
        await w.until(lambda: other.invokes)
        assert lost == [first.node] and list(w.controller.nodes) == [other.node]
        first.answer()  # nobody listens to it any more
        assert w.done.empty()
        other.answer()
        assert (await w.done.get()).error is None

    play(tmp_path, scenario, a, b)


def test_what_ran_on_a_lost_node_is_told(tmp_path: Path) -> None:
    a, b = Node("a"), Node("b")

    async def scenario(w: World) -> None:
        w.ask()
        await w.until(lambda: running(a, b))
        (first,) = running(a, b)
        first.report(events.NodeLost(node=first.node, reason="no route"))
        error = (await w.done.get()).error
        assert isinstance(error, InstanceCrashed) and f"node {first.node} was lost: no route" in str(error)
        w.ask()
        await w.until(lambda: running(*({a, b} - {first})))

    play(tmp_path, scenario, a, b)


def test_a_lost_node_comes_back_with_what_it_has(tmp_path: Path) -> None:
    a = Node("a")
    held = events.HeldInstance(instance="i7", function=SPEC.key, revision=SPEC.revision, level=Level.LOADED)
    back = Node("a", (events.HeldContainer(container="c7", function=SPEC.key, limit=64 * MB, instances=(held,)),))

    async def scenario(w: World) -> None:
        a.report(events.NodeLost(node="a"))
        await w.controller.join(back)
        w.ask()
        assert [invoke.instance for invoke in back.invokes] == ["i7"]
        back.answer()
        assert (await w.done.get()).error is None

    play(tmp_path, scenario, a)


def test_a_node_that_is_lost_while_it_joins(tmp_path: Path) -> None:
    late = Node("b")
    late.early = [events.NodeLost(node="b")]

    async def scenario(w: World) -> None:
        await w.controller.join(late)
        assert not w.controller.nodes

    play(tmp_path, scenario)


def test_a_drained_node_gets_nothing_even_when_it_is_lost_and_back(tmp_path: Path) -> None:
    a, again = Node("a"), Node("a")

    async def scenario(w: World) -> None:
        with pytest.raises(NotFound):
            w.controller.drain_node("b")
        w.controller.drain_node("a")
        ticket = w.ask()
        a.report(events.NodeOpened(node="a"))  # it was out of reach for a moment
        a.report(events.NodeLost(node="a"))
        await w.controller.join(again)
        assert not running(a, again)
        w.controller.open_node("a")
        await w.until(lambda: again.invokes)
        again.answer()
        assert await w.done.get() is ticket

    play(tmp_path, scenario, a)


def test_a_drain_is_taken_back_while_the_node_is_away(tmp_path: Path) -> None:
    a, again = Node("a"), Node("a")

    async def scenario(w: World) -> None:
        w.controller.drain_node("a")
        a.report(events.NodeLost(node="a"))
        w.controller.open_node("a")
        with pytest.raises(NotFound):
            w.controller.open_node("a")
        await w.controller.join(again)
        ticket = w.ask()
        await w.until(lambda: again.invokes)
        again.answer()
        assert await w.done.get() is ticket

    play(tmp_path, scenario, a)


def test_a_node_has_no_more_memory_than_its_agent(tmp_path: Path) -> None:
    a = Node("a")

    async def scenario(w: World) -> None:
        whole = w.controller.nodes["a"].memory
        for said, has in ((whole // 2, whole // 2), (whole // 2, whole // 2), (2 * whole, whole)):
            w.controller.resize_node("a", said)
            assert w.controller.nodes["a"].memory == w.controller.platform.state.ledger.memory("a") == has
        w.controller.resize_node("b", whole)

    play(tmp_path, scenario, a)


def test_a_node_comes_with_as_much_as_the_cluster_lets_it_have(tmp_path: Path) -> None:
    late = Node("b")

    async def scenario(w: World) -> None:
        await w.controller.join(late, 100 * MB)
        assert w.controller.platform.state.ledger.memory("b") == 100 * MB
        w.controller.resize_node("b", 512 * MB)
        assert w.controller.platform.state.ledger.memory("b") == 256 * MB, "what its agent has"

    play(tmp_path, scenario)


def test_a_node_that_leaves_is_closed(tmp_path: Path) -> None:
    a = Node("a")

    async def scenario(w: World) -> None:
        await w.controller.leave("a")
        assert a.closed and not w.controller.nodes

    play(tmp_path, scenario, a)


def test_a_task_ends_with_its_node(tmp_path: Path) -> None:
    a = Node("a")

    async def scenario(w: World) -> None:
        numbers = itertools.count()
        task = asyncio.create_task(
            w.controller.task(lambda token: Measure(token=token, revision=f"r{next(numbers)}"), lambda said: None)
        )
        await w.until(lambda: isinstance(a.commands[-1], Measure))
        a.report(events.NodeLost(node="a"))
        with pytest.raises(Unavailable, match="node a was lost"):
            await task
        with pytest.raises(Unavailable, match="no node"):
            await w.controller.task(lambda token: Measure(token=token, revision="r"), lambda said: None)

    play(tmp_path, scenario, a)


def test_what_cannot_be_carried_out_stops_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The core counts on all of its actions."""

    class Broken(Node):
        broken = False

        def send(self, command: Command) -> None:
            if self.broken and isinstance(command, actions.Offload):
                raise OSError("its group is gone")
            super().send(command)

    broken, whole = Broken("a"), Node("b")

    async def scenario(w: World) -> None:
        w.ask()
        await w.until(lambda: broken.invokes or whole.invokes)
        for node in running(broken, whole):
            node.answer()
        await w.done.get()
        broken.broken = True
        w.controller.delete(SPEC.key)  # off-loads what there is, and ends its container
        await w.until(lambda: not w.controller.platform.state.containers)

    play(tmp_path, scenario, broken, whole)
    said = [record for record in caplog.records if "could not be carried out" in record.getMessage()]
    assert all("Offload" in record.getMessage() for record in said)
    assert said


def test_bodies_that_wait_have_a_bound(tmp_path: Path) -> None:
    node = Node("a")

    async def scenario(w: World) -> None:
        w.controller._most_bytes = 3 * len(b"body")
        for _ in range(3):
            w.ask()
        refused = w.ask()
        assert (await w.done.get()) is refused
        assert refused.error is not None and refused.error.code == "overloaded"
        assert "bodies" in refused.error.message and refused.error.retry_after_s
        for _ in range(3):
            await w.until(lambda: node.invokes)
            (call,) = node.invokes
            node.commands.clear()
            node.report(Answered(request=call.request, instance=call.instance, inference_s=0.0, body=b"ok"))
            assert (await w.done.get()).error is None
        assert w.controller._bytes == 0
        assert w.ask().error is None

    play(tmp_path, scenario, node)


def test_what_is_deleted_leaves_the_metrics(tmp_path: Path) -> None:
    node = Node("a")

    async def scenario(w: World) -> None:
        books = w.controller.books
        w.ask()
        await w.until(lambda: node.invokes)
        node.answer()
        await w.done.get()
        w.controller.delete(SPEC.key)
        labels = f'function="{SPEC.name}",namespace="{SPEC.namespace}"'.encode()
        assert labels in books.scrape(), "those who have not seen the last request yet"
        for n in range(DELETED):
            other = replace(SPEC, name=f"g{n}")
            w.controller.deploy(other, replace(FUNCTION, name=other.key), replace(REVISION, id=other.revision))
            books.metrics.invocation(other.namespace, other.name, "cold", "ok")
            books.metrics.spent_by(other.key, 0.0)
            w.controller.delete(other.key)
        assert labels not in books.scrape()
        assert len(books.metrics.spent) == DELETED

    play(tmp_path, scenario, node)
