"""The live shell: drives the pure core on a real clock, and agents with what it decides.

The hot path is short: a request becomes an event, the core answers with a Dispatch, the agent writes a frame;
the answer becomes an event and a call of the waiter. Records, metrics and the event log are appended to memory
and written by others.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from instainfer.agent import base as wire
from instainfer.books import Books, Ticket
from instainfer.clock import Clock
from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.platform import Platform
from instainfer.errors import (
    BY_CODE,
    Conflict,
    InstaInferError,
    NotFound,
    Overloaded,
    Stopping,
    Unavailable,
    from_problem,
)
from instainfer.eventlog import EventLog
from instainfer.foresight import Foresight
from instainfer.model import FunctionSpec

log = logging.getLogger("instainfer")

FLUSH_S = 0.5


class Watcher(Protocol):
    """Looks on. On the request path: it is quick, and it never raises."""

    def follow(self, now: float, event: ev.AnyEvent) -> None:
        """Of every event, before the core handles it."""
        ...

    def finished(self, ticket: Ticket) -> None:
        """A request was answered or failed, and is in the books."""
        ...


class _Task(NamedTuple):
    """A build or measurement that somebody waits for."""

    node: str
    progress: Callable[[str], None]
    future: asyncio.Future[Any]


class Controller:
    def __init__(
        self,
        platform: Platform,
        agents: list[wire.Agent],
        clock: Clock,
        events: EventLog,
        books: Books,
        *,
        queue_s: float,
        most: int = 20_000,
        most_bytes: int = 1 << 40,
        drain_s: float = 0.0,
    ) -> None:
        """`queue_s`: longest wait for an instance; `most`: requests accepted and not answered, `most_bytes`: of
        their bodies, which are kept until then; `drain_s`: the longest that a drained node serves."""
        self.platform = platform
        self.books = books
        self.specs: dict[str, FunctionSpec] = {}  # by key: what requests are accepted for
        self.nodes: dict[str, ev.NodeJoined] = {}
        self.watcher: Watcher | None = None  # set before `start`
        self._foresight = Foresight(platform.state.forecast, books.metrics.prediction_error)
        self.lost: Callable[[str], None] = lambda node: None  # hears of a node that is lost, after the core
        self.draining: set[str] = set()  # nodes that take nothing new until somebody says so
        self._agents = {agent.node: agent for agent in agents}
        self._sizes: dict[str, int] = {}  # by node: bytes that its agent has for containers
        self._clock = clock
        self._events = events
        self._queue_s = queue_s
        self._drain_s = drain_s
        self._drained_by: dict[str, float] = {}  # by node that is drained: until when it may serve
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0  # of bodies
        self._loop: asyncio.AbstractEventLoop
        self._tickets: dict[int, Ticket] = {}
        self._requests = itertools.count(1)
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[act.Answer]] = {}
        self._tasks: dict[int, _Task] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._node_of: dict[str, wire.Agent] = {}  # container or zygote -> its agent
        self._revisions: dict[str, tuple[FunctionSpec, wire.Revision]] = {}
        self._packages: Callable[[FunctionSpec], bytes]
        self._queue: deque[ev.AnyEvent] = deque()
        self._feeding = False
        self._flusher: asyncio.TimerHandle | None = None
        self._last_request = 0
        self._draining: asyncio.Future[None] | None = None
        self._salt = secrets.token_hex(4)

    # ---- life ----------------------------------------------------------------------------------------------

    async def start(self, packages: Callable[[FunctionSpec], bytes]) -> None:
        """`packages` gives the bytes of a version for nodes that lack it."""
        self._loop = asyncio.get_running_loop()
        self._packages = packages
        self._events.begin(self.platform.state, now=self._clock.now(), wall=self._clock.wall(), first=1)
        self.books.metrics.gauges = lambda: self.books.gauges(self.platform.state)
        for agent in list(self._agents.values()):
            await self.join(agent)
        self._flush()

    async def join(self, agent: wire.Agent, most: int = 0) -> None:
        """A node comes in, now or later: all that is deployed may run there, and what it holds goes on. `most`:
        bytes that its containers may take now, if its agent has more; 0: all of it. Raises Unavailable; Conflict
        where a node of this name is in already."""
        node = agent.node
        if node in self.nodes:
            raise Conflict(f"there is a node {node} already", hint="every node has a name of its own")
        early: list[wire.Report] = []  # before it is known to have joined

        def report(report: wire.Report) -> None:
            if self._agents.get(node) is agent:
                self.report(agent, report)
            elif not entered:
                early.append(report)

        entered = False
        joined = await agent.start(report)
        entered = True
        self._agents[node] = agent
        self.nodes[node] = joined
        self._sizes[node] = joined.memory
        if 0 < most < joined.memory:
            joined = self.nodes[node] = msgspec.structs.replace(joined, memory=most)
        self._introduce()
        for _, revision in self._revisions.values():
            agent.send(wire.Provide(revision=revision))
        for held in joined.held:
            self._node_of[held.container] = agent
            self.books.adopted(held, node)
        self.books.marks.node(node, "node_joined")
        self.feed(joined)
        if node in self.draining:
            self._close(node)
        for each in early:
            report(each)

    def _introduce(self) -> None:
        """Nodes are told where the others have what they may lack."""
        shelves = {node: agent.shelf for node, agent in self._agents.items() if agent.shelf}
        for node, agent in self._agents.items() if shelves else ():
            agent.send(wire.Peers(urls=tuple(url for other, url in shelves.items() if other != node)))

    async def leave(self, node: str) -> None:
        """The node goes, and with it whatever is there. `drain_node` first lets it finish."""
        agent = self._agents.get(node)
        if agent is not None and node in self.nodes:
            self._node_lost(agent, ev.NodeLost(node=node, reason="it was told to leave"))
            await agent.aclose()

    def drain_node(self, node: str) -> None:
        """Nothing new goes there, what is idle there ends when it stands elsewhere, or when its time is over, what
        runs is finished. Raises NotFound."""
        self._known(node)
        self.draining.add(node)
        self.books.marks.node(node, "node_draining", "by hand")
        self._close(node)

    def _close(self, node: str) -> None:
        """Again as well: its time goes on."""
        now = self._clock.now()
        by = self._drained_by.setdefault(node, now + self._drain_s)
        self.feed(ev.NodeClosed(node=node, drain=True, within_s=max(0.0, by - now)))

    def open_node(self, node: str) -> None:
        """Take `drain_node` back, also for a node that is away. Raises NotFound."""
        if node not in self.draining:
            self._known(node)
        self.draining.discard(node)
        self._drained_by.pop(node, None)
        if node in self.nodes:
            self.books.marks.node(node, "node_reopened", "by hand")
            self.feed(ev.NodeOpened(node=node))

    async def restart_node(self, node: str) -> None:
        """Have the agent of a drained node begin anew: it is lost, and joins again. Raises NotFound, Conflict
        where something is there yet, Unavailable."""
        self._known(node)
        agent = self._agents[node]
        if not isinstance(agent, wire.Restarts):
            raise Conflict(f"the agent of {node} is the server itself", hint="restart the server")
        if node not in self.draining or any(one.node == node for one in self.platform.state.containers.values()):
            raise Conflict(
                f"{node} is not drained", hint=f"`instainfer cluster drain {node}`, and wait until it is"
            )
        await agent.restart()

    def resize_node(self, node: str, memory: int) -> None:
        """Its containers may take so many bytes, and no more than its agent was started with."""
        joined = self.nodes.get(node)
        if joined is None:
            return
        memory = min(memory, self._sizes[node])
        if memory != joined.memory:
            self.nodes[node] = msgspec.structs.replace(joined, memory=memory)
            self.feed(ev.NodeResized(node=node, memory=memory))

    def _known(self, node: str) -> None:
        if node not in self.nodes:
            there = ", ".join(sorted(self.nodes)) or "none"
            raise NotFound(f"there is no node {node}", hint=f"the nodes are: {there}")

    @property
    def under_way(self) -> int:
        """Requests accepted and not answered."""
        return len(self._tickets)

    @property
    def last_request(self) -> int:
        """Number of the last that was accepted."""
        return self._last_request

    async def drain(self, seconds: float) -> None:
        """Wait until all accepted requests are answered; those left after `seconds` get an error."""
        if self._tickets:
            self._draining = self._loop.create_future()
            await asyncio.wait([self._draining], timeout=seconds)
        for ticket in list(self._tickets.values()):
            kind = Unavailable if ticket.instance else Stopping  # which is for what was not begun
            self._fail(ticket, kind("the server is stopping", hint="send it again", retry_after_s=5))

    async def aclose(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for agent in list(self._agents.values()):
            await agent.aclose()
        if self._flusher is not None:
            self._flusher.cancel()
        self._events.close()

    def _flush(self) -> None:
        now = self._clock.now()
        self._give_up(now - self._queue_s)
        self._foresight.tick(now)
        self._events.flush()
        if self._events.full:
            self._events.begin(
                self.platform.state, now=self._clock.now(), wall=self._clock.wall(), first=self._last_request + 1
            )
        self._flusher = self._loop.call_later(FLUSH_S, self._flush)

    def _give_up(self, before: float) -> None:
        """Take back what waits since before then. Looked for here and there rather than with a timer for each,
        which would keep every answered request that once waited for as long."""
        overdue = []
        for ticket in self._tickets.values():  # in order of arrival
            if ticket.arrived > before:
                break
            overdue.append(ticket)
        for ticket in overdue:
            if not ticket.instance:
                reason = f"it waited {self._queue_s:g} s and no instance came free"
                self.feed(ev.RequestCancelled(request=ticket.request, reason=reason, code="overloaded"))

    def flush_events(self) -> None:
        self._events.flush()

    # ---- requests ------------------------------------------------------------------------------------------

    def submit(
        self,
        spec: FunctionSpec,
        content_type: str,
        body: bytes,
        done: Callable[[Ticket], None],
        *,
        activation: str = "",
        traceparent: str = "",
    ) -> Ticket:
        """Accept a request. It ends exactly once, by a call of `done`, possibly before this returns.
        `activation`: its id, where it has one already."""
        request = next(self._requests)
        ticket = Ticket(request, spec, content_type, body, done)
        ticket.activation = activation or f"{self._salt}{request:024x}"
        ticket.traceparent = traceparent
        ticket.arrived = self._clock.now()
        ticket.wall = self._clock.wall()
        self._last_request = request
        full = len(self._tickets) >= self._most
        self._bytes += len(body)
        self._tickets[request] = ticket
        if full or self._bytes > self._most_bytes:
            said = (
                f"{self._most} requests are under way or wait"
                if full
                else f"the bodies of requests that are under way or wait take {self._most_bytes / 1e6:g} MB"
            )
            self._fail(ticket, Overloaded(said, function=spec.key, hint="send it again later", retry_after_s=1.0))
            return ticket
        self._foresight.arrived(spec.key, ticket.arrived)
        self.feed(ev.RequestArrived(request=request, function=spec.key))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Its caller went away: take it back if it still waits; one that runs is told, in case it streams."""
        if ticket.request not in self._tickets:
            return
        if not ticket.instance:
            self.feed(ev.RequestCancelled(request=ticket.request))
        elif ticket.chunk is not None:
            self._node_of[ticket.container].send(wire.Cancel(request=ticket.request, instance=ticket.instance))

    def abandon(self, ticket: Ticket, reason: str) -> None:
        """End it however far it is, with an error after which it may be tried again. One that runs ends with its
        instance, since nothing else stops it for certain."""
        if ticket.request not in self._tickets:
            return
        if not ticket.instance:
            self.feed(ev.RequestCancelled(request=ticket.request, reason=reason, code="unavailable"))
        else:
            agent = self._node_of[ticket.container]
            agent.send(act.Offload(instance=ticket.instance, why=act.Why(rule=reason)))

    # ---- by hand -------------------------------------------------------------------------------------------

    async def ask(self, make: Callable[[int], ev.AnyEvent]) -> act.Answer:
        """Feed an event that the core answers by token."""
        token = next(self._tokens)
        future: asyncio.Future[act.Answer] = self._loop.create_future()
        self._waiting[token] = future
        self.feed(make(token))
        return await future

    def deploy(self, spec: FunctionSpec, function: Any, revision: wire.Revision) -> None:
        """From now on requests of this function go to this version."""
        self.provide(spec, revision)
        before = self.specs.get(spec.key)
        self.specs[spec.key] = spec
        self.books.metrics.deployed(spec.key)
        self.feed(ev.FunctionDeployed(function=function))
        if before is not None and before.revision != spec.revision:
            self.withdraw(before.revision)

    def provide(self, spec: FunctionSpec, revision: wire.Revision) -> None:
        self._revisions[revision.id] = spec, revision
        for agent in self._agents.values():
            agent.send(wire.Provide(revision=revision))

    def withdraw(self, revision: str) -> None:
        self._revisions.pop(revision, None)
        for agent in self._agents.values():
            agent.send(wire.Withdraw(revision=revision))

    def retain(self, environments: tuple[str, ...]) -> None:
        for agent in self._agents.values():
            agent.send(wire.Retain(environments=environments))

    def delete(self, key: str) -> None:
        spec = self.specs.pop(key)
        self._foresight.forget(key)
        self.books.deleted(key)
        self.feed(ev.FunctionDeleted(function=key))
        self.withdraw(spec.revision)

    async def task(
        self, make: Callable[[int], wire.Command], progress: Callable[[str], None], node: str | None = None
    ) -> Any:
        """Run a Build or Measure on a node; returns Built or Measured, raises what TaskFailed says."""
        token = next(self._tokens)
        future: asyncio.Future[Any] = self._loop.create_future()
        agent = self._agents[self._any_node() if node is None else node]
        self._tasks[token] = _Task(agent.node, progress, future)
        agent.send(make(token))
        try:
            return await future
        finally:
            self._tasks.pop(token, None)

    def _any_node(self) -> str:
        """Raises Unavailable where there is none."""
        for node in self.platform.state.open_nodes or self.nodes:
            return node
        raise Unavailable("no node has joined", hint="`instainfer cluster status` shows them", retry_after_s=5.0)

    # ---- events in, actions out ----------------------------------------------------------------------------

    def feed(self, event: ev.AnyEvent) -> None:
        """Handle an event now, or right after the one at hand when an action led to it."""
        self._queue.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._queue:
                event = self._queue.popleft()
                now = self._clock.now()
                self._events.append(now, event)
                if self.watcher is not None:
                    self.watcher.follow(now, event)
                for action in self.platform.handle(event, now):
                    try:
                        self._act(action, now)
                    except Exception:
                        # The core counts on all of them: those that follow are carried out.
                        log.exception("this could not be carried out: %.500r", action)
        finally:
            self._feeding = False

    def _act(self, action: act.AnyAction, now: float) -> None:
        kind = type(action)
        if kind is act.Dispatch:
            self._dispatch(action, now)  # type: ignore[arg-type] # narrowed by `kind`, which costs less than a match
        elif kind is act.SetTimer:
            self._set_timer(action)  # type: ignore[arg-type]
        elif kind is act.Reject:
            self._reject(action)  # type: ignore[arg-type]
        elif kind is act.Answer:
            answer: act.Answer = action  # type: ignore[assignment]
            future = self._waiting.pop(answer.token, None)
            if future is not None and not future.done():
                future.set_result(answer)
        else:
            self._command(action)

    def _command(self, action: act.AnyAction) -> None:
        if isinstance(action, act.CreateContainer):
            self._node_of[action.container] = self._agents[action.node]
        elif isinstance(action, act.StartZygote):
            self._node_of[action.zygote] = self._agents[action.node]
        self.books.commanded(action)
        where: str = getattr(action, "container", "") or getattr(action, "zygote", "")
        agent = self._node_of.get(where or self.books.container_of(getattr(action, "instance", "")))
        if agent is not None:
            agent.send(action)  # type: ignore[arg-type] # only commands of an agent come here

    def _dispatch(self, action: act.Dispatch, now: float) -> None:
        ticket = self._tickets[action.request]
        self.books.dispatched(ticket, action, now)
        ticket.parts.clear()
        self._node_of[ticket.container].send(
            wire.Invoke(
                request=action.request,
                instance=action.instance,
                activation=ticket.activation,
                content_type=ticket.content_type,
                traceparent=ticket.traceparent,
                body=ticket.body,  # kept until it is answered: an instance may die before it has read it
            )
        )

    def _set_timer(self, action: act.SetTimer) -> None:
        old = self._timers.pop(action.timer, None)
        if old is not None:
            old.cancel()
        delay = max(0.0, action.at - self._clock.now())
        self._timers[action.timer] = self._loop.call_later(delay, self._fire, action.timer, action.at)

    def _fire(self, timer: str, at: float) -> None:
        now = self._clock.now()
        if now < at:  # the loop's clock and ours drift apart by less than its resolution
            self._timers[timer] = self._loop.call_later(at - now, self._fire, timer, at)
            return
        self._timers.pop(timer, None)
        if timer == "placement":
            started = time.perf_counter()
            self.feed(ev.TimerFired(timer=timer))
            self.books.metrics.decision.observe(time.perf_counter() - started)
        else:
            self.feed(ev.TimerFired(timer=timer))

    def _reject(self, action: act.Reject) -> None:
        ticket = self._tickets.get(action.request)
        if ticket is None:
            return
        reason, _, trace = action.reason.partition("\n")
        kind = BY_CODE.get(action.code, InstaInferError)
        name = ticket.spec.name
        hints = {
            "overloaded": "send it again later, or give the node more memory",
            "over_quota": "declare less `memory` in function.toml, or have the namespace's quota raised",
            "load_failed": f"`instainfer logs {name}` shows what it printed while loading",
            "instance_crashed": f"`instainfer logs {name}` shows what it printed; the next call starts a new one",
            "timed_out": "raise `timeout` in function.toml, or make the function faster",
            "not_found": "`instainfer ls` shows what is deployed",
        }
        self._fail(
            ticket,
            kind(
                reason,
                function=ticket.spec.key,
                phase=action.phase,
                detail=trace,
                hint=hints.get(action.code, ""),
                retry_after_s=1.0 if action.code in ("overloaded", "unavailable") else None,
            ),
        )

    # ---- reports of agents ---------------------------------------------------------------------------------

    def report(self, agent: wire.Agent, report: wire.Report) -> None:
        if type(report) is wire.Answered:
            self._answered(report)
        elif type(report) is wire.Part:
            self._part(report)
        elif isinstance(report, ev.NodeLost):
            self._node_lost(agent, report)
        elif isinstance(report, ev.NodeOpened) and report.node in self.draining:
            if report.node in self.platform.state.leaving:  # it serves as before it was out of reach
                self._event(report)
                self._close(report.node)
        elif isinstance(report, ev.Event):
            self._event(report)
        elif isinstance(report, wire.Logged):
            ticket = self._tickets.get(report.request) if report.request is not None else None
            if ticket is not None:
                ticket.logs = report.logs  # its InstanceLost follows and ends it
            elif (known := self._revisions.get(report.revision)) is not None:
                self.books.logged(report, known[0].key)
        elif isinstance(report, wire.Missing):
            known = self._revisions.get(report.revision)
            if known is not None:
                try:
                    package = self._packages(known[0])
                except InstaInferError as error:
                    log.error("%s cannot run: %s", known[0].key, error.message)
                    package = b""  # which no node can extract: whoever calls it is told, and nobody else
                agent.send(wire.Deliver(revision=report.revision, package=package))
        elif isinstance(report, wire.Progress):
            if (task := self._tasks.get(report.token)) is not None:
                task.progress(report.message)
        elif isinstance(report, wire.Built | wire.Measured | wire.TaskFailed):
            task = self._tasks.get(report.token)
            if task is not None and not task.future.done():
                if isinstance(report, wire.TaskFailed):
                    task.future.set_exception(from_problem(report.problem))
                else:
                    task.future.set_result(report)

    def _event(self, event: ev.Event) -> None:
        if isinstance(event, ev.InstanceLost):
            instance = self.platform.state.instances.get(event.instance)
            self.books.learn(event, expected=instance is None or instance.state == "ending")
        else:
            self.books.learn(event)
        unread = event.unread if isinstance(event, ev.InstanceLost | ev.ContainerLost) else ()
        before = self._given(unread)
        self.feed(event)  # type: ignore[arg-type] # the events among an agent's reports are the core's
        self._wait_again(before)
        if isinstance(event, ev.ContainerLost):
            self._loop.call_soon(self._node_of.pop, event.container, None)
        elif isinstance(event, ev.ZygoteLost):
            self._node_of.pop(event.zygote, None)
        self._loop.call_soon(self.books.forget, event)

    def _given(self, requests: tuple[int, ...]) -> list[tuple[Ticket, str]]:
        """With the instances that they were given to."""
        tickets = [ticket for request in requests if (ticket := self._tickets.get(request)) is not None]
        return [(ticket, ticket.instance) for ticket in tickets]

    def _wait_again(self, before: list[tuple[Ticket, str]]) -> None:
        """Those of them that nobody else was given to meanwhile."""
        for ticket, instance in before:
            if ticket.instance == instance:
                ticket.instance = ticket.container = ""

    def _node_lost(self, agent: wire.Agent, event: ev.NodeLost) -> None:
        node = event.node
        if self.nodes.pop(node, None) is None:
            return
        del self._agents[node]
        self.books.marks.node(node, "node_lost", event.reason)
        self._introduce()
        gone = [ev.ContainerLost(container=name) for name, at in self._node_of.items() if at is agent]
        for lost in gone:
            self.books.learn(lost)
        before = self._given(event.unread)
        self.feed(event)
        self._wait_again(before)
        for lost in gone:
            self._node_of.pop(lost.container, None)
            self._loop.call_soon(self.books.forget, lost)
        for task in self._tasks.values():
            if task.node == node and not task.future.done():
                said = f"node {node} was lost" + (f": {event.reason}" if event.reason else "")
                task.future.set_exception(Unavailable(said, hint="try again", retry_after_s=1.0))
        self.lost(node)

    def _part(self, report: wire.Part) -> None:
        ticket = self._tickets.get(report.request)
        if ticket is None or ticket.instance != report.instance:
            return
        if ticket.chunk is not None:
            ticket.chunk(ticket, report.content_type, report.body)
        else:
            ticket.parts.append(report.body)

    def _answered(self, report: wire.Answered) -> None:
        ticket = self._tickets.get(report.request)
        ok = not report.problem
        if ticket is not None:
            ticket.inference_s = report.inference_s
            ticket.logs = report.logs
            if ok:
                ticket.answer = (report.content_type, b"".join((*ticket.parts, report.body)))
                self._finish(ticket)
            else:
                self._fail(ticket, from_problem(report.problem))
        self.feed(
            ev.InvocationFinished(
                request=report.request, instance=report.instance, inference_s=report.inference_s, ok=ok
            )
        )

    # ---- ends ----------------------------------------------------------------------------------------------

    def _fail(self, ticket: Ticket, error: InstaInferError) -> None:
        ticket.error = error
        self._finish(ticket)

    def _finish(self, ticket: Ticket) -> None:
        if self._tickets.pop(ticket.request, None) is None:
            return
        self._bytes -= len(ticket.body)
        ticket.body = b""
        self.books.finished(ticket)
        if self.watcher is not None:
            self.watcher.finished(ticket)
        if self._draining is not None and not self._tickets and not self._draining.done():
            self._draining.set_result(None)
        ticket.done(ticket)
