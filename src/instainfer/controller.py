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
from typing import Any

from instainfer.agent import base as wire
from instainfer.clock import Clock
from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.platform import Platform
from instainfer.errors import BY_CODE, InstaInferError, Unavailable, from_problem
from instainfer.eventlog import EventLog
from instainfer.model import Activation, FunctionSpec, Phases, StartKind
from instainfer.observe import Gauge, Metrics
from instainfer.store.base import LogLine
from instainfer.store.writer import BatchWriter

log = logging.getLogger(__name__)

FLUSH_S = 0.5


class Ticket:
    """One accepted request, until it is answered: `done(ticket)` is called exactly once, with `answer` or
    `error` set."""

    __slots__ = (
        "activation", "answer", "arrived", "body", "container", "content_type", "dispatched", "done", "error",
        "inference_s", "instance", "logs", "phases", "request", "spec", "start", "wall",
    )  # fmt: skip

    def __init__(
        self, request: int, spec: FunctionSpec, content_type: str, body: bytes, done: Callable[[Ticket], None]
    ) -> None:
        self.request = request
        self.spec = spec
        self.content_type = content_type
        self.body = body
        self.done = done
        self.activation = ""
        self.arrived = 0.0
        self.wall = 0.0
        self.dispatched = 0.0
        self.start = ""
        self.instance = ""
        self.container = ""
        self.phases = Phases()
        self.inference_s = 0.0
        self.answer: tuple[str, bytes] | None = None  # content type, body
        self.error: InstaInferError | None = None
        self.logs: tuple[tuple[str, str], ...] = ()


class Known:
    """What the controller remembers of a live instance, to tell phases and what became of pre-loads."""

    __slots__ = ("ahead", "bytes", "container", "function", "ready", "revision", "times", "used")

    def __init__(self, container: str, function: str, revision: str, ahead: bool) -> None:
        self.container = container
        self.function = function
        self.revision = revision
        self.ahead = ahead
        self.used = False
        self.ready = 0.0
        self.bytes = 0
        self.times: tuple[tuple[str, float], ...] = ()  # (phase, seconds) of its load, in order


class Controller:
    def __init__(
        self,
        platform: Platform,
        agents: list[wire.Agent],
        clock: Clock,
        events: EventLog,
        writer: BatchWriter,
        metrics: Metrics,
        *,
        epoch: str,
        queue_s: float,
    ) -> None:
        self.platform = platform
        self.metrics = metrics
        self.epoch = epoch
        self.specs: dict[str, FunctionSpec] = {}  # by key: what requests are accepted for
        self.observers: list[Callable[[float, ev.AnyEvent, list[act.AnyAction]], None]] = []
        self.nodes: dict[str, ev.NodeJoined] = {}
        self._agents = {agent.node: agent for agent in agents}
        self._clock = clock
        self._events = events
        self._writer = writer
        self._queue_s = queue_s
        self._loop: asyncio.AbstractEventLoop
        self._tickets: dict[int, Ticket] = {}
        self._requests = itertools.count(1)
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[act.Answer]] = {}
        self._tasks: dict[int, tuple[Callable[[str], None], asyncio.Future[Any]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._node_of: dict[str, wire.Agent] = {}  # container -> its agent
        self._known: dict[str, Known] = {}
        self._created: dict[str, tuple[float, float]] = {}  # container -> (ready at, seconds)
        self._revisions: dict[str, FunctionSpec] = {}
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
        self.metrics.gauges = self._gauges
        for agent in self._agents.values():
            joined = await agent.start(lambda report, agent=agent: self.report(agent, report))  # type: ignore[misc]
            self.nodes[agent.node] = joined
            self.feed(joined)
        self._flush()

    async def drain(self, seconds: float) -> None:
        """Wait until all accepted requests are answered; those left after `seconds` get an error."""
        if self._tickets:
            self._draining = self._loop.create_future()
            await asyncio.wait([self._draining], timeout=seconds)
        for ticket in list(self._tickets.values()):
            self._fail(ticket, Unavailable("the server is stopping", hint="send it again", retry_after_s=5))

    async def aclose(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for agent in self._agents.values():
            await agent.aclose()
        if self._flusher is not None:
            self._flusher.cancel()
        self._events.close()

    def _flush(self) -> None:
        self._events.flush()
        if self._events.full:
            self._events.begin(
                self.platform.state, now=self._clock.now(), wall=self._clock.wall(), first=self._last_request + 1
            )
        self._flusher = self._loop.call_later(FLUSH_S, self._flush)

    def flush_events(self) -> None:
        self._events.flush()

    # ---- requests ------------------------------------------------------------------------------------------

    def submit(self, spec: FunctionSpec, content_type: str, body: bytes, done: Callable[[Ticket], None]) -> Ticket:
        """Accept a request. It ends exactly once, by a call of `done`, possibly before this returns."""
        request = next(self._requests)
        ticket = Ticket(request, spec, content_type, body, done)
        ticket.activation = f"{self._salt}{request:024x}"
        ticket.arrived = self._clock.now()
        ticket.wall = self._clock.wall()
        self._last_request = request
        self._tickets[request] = ticket
        self.feed(ev.RequestArrived(request=request, function=spec.key))
        if not ticket.instance and request in self._tickets:
            limit = self._queue_s
            self._loop.call_later(limit, self.cancel, ticket, f"it waited {limit:g} s and no instance came free")
        return ticket

    def cancel(self, ticket: Ticket, reason: str) -> None:
        """Take back a request that still waits; one that runs is left alone."""
        if ticket.request in self._tickets and not ticket.instance:
            self.feed(ev.RequestCancelled(request=ticket.request, reason=reason))

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
        self.feed(ev.FunctionDeployed(function=function))
        if before is not None and before.revision != spec.revision:
            self.withdraw(before.revision)

    def provide(self, spec: FunctionSpec, revision: wire.Revision) -> None:
        self._revisions[revision.id] = spec
        for agent in self._agents.values():
            agent.send(wire.Provide(revision=revision))

    def withdraw(self, revision: str) -> None:
        self._revisions.pop(revision, None)
        for agent in self._agents.values():
            agent.send(wire.Withdraw(revision=revision))

    def delete(self, key: str) -> None:
        spec = self.specs.pop(key)
        self.feed(ev.FunctionDeleted(function=key))
        self.withdraw(spec.revision)

    async def task(
        self, make: Callable[[int], wire.Command], progress: Callable[[str], None], node: str | None = None
    ) -> Any:
        """Run a Build or Measure on a node; returns Built or Measured, raises what TaskFailed says."""
        token = next(self._tokens)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._tasks[token] = (progress, future)
        agent = self._agents[node] if node is not None else next(iter(self._agents.values()))
        agent.send(make(token))
        try:
            return await future
        finally:
            self._tasks.pop(token, None)

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
                actions = self.platform.handle(event, now)
                for observer in self.observers:
                    observer(now, event, list(actions))
                for action in actions:
                    self._act(action, now)
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
        elif isinstance(action, act.Load):
            self._known[action.instance] = Known(action.container, action.function, action.revision, action.ahead)
        elif isinstance(action, act.Raise):
            self._known[action.instance].ahead = action.ahead
        elif isinstance(action, act.Offload):
            self._ended(action.instance, "evicted")
        container: str = getattr(action, "container", "")
        if not container and (known := self._known.get(getattr(action, "instance", ""))):
            container = known.container
        agent = self._node_of.get(container)
        if agent is not None:
            agent.send(action)  # type: ignore[arg-type] # only commands of an agent come here

    def _dispatch(self, action: act.Dispatch, now: float) -> None:
        ticket = self._tickets[action.request]
        known = self._known[action.instance]
        ticket.dispatched = now
        ticket.start = action.start.value
        ticket.instance = action.instance
        ticket.container = known.container
        if not known.used:
            known.used = True
            if known.ahead:
                self.metrics.preloads["hit"] += 1
        body, ticket.body = ticket.body, b""
        self._node_of[known.container].send(
            wire.Invoke(
                request=action.request,
                instance=action.instance,
                activation=ticket.activation,
                content_type=ticket.content_type,
                body=body,
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
            self.metrics.decision.observe(time.perf_counter() - started)
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
        elif isinstance(report, ev.Event):
            self._learn(report)
            self.feed(report)
        elif isinstance(report, wire.Logged):
            self._logged(report)
        elif isinstance(report, wire.Missing):
            spec = self._revisions.get(report.revision)
            if spec is not None:
                agent.send(wire.Deliver(revision=report.revision, package=self._packages(spec)))
        elif isinstance(report, wire.Progress):
            if (task := self._tasks.get(report.token)) is not None:
                task[0](report.message)
        elif isinstance(report, wire.Built | wire.Measured | wire.TaskFailed):
            task = self._tasks.get(report.token)
            if task is not None and not task[1].done():
                if isinstance(report, wire.TaskFailed):
                    task[1].set_exception(from_problem(report.problem))
                else:
                    task[1].set_result(report)

    def _learn(self, event: ev.Event) -> None:
        """What the core needs not know: for phases, and for what became of pre-loads."""
        if isinstance(event, ev.InstanceReady):
            known = self._known.get(event.instance)
            if known is not None:
                known.ready = self._clock.now()
                known.times = (
                    ("extract", event.start_s),
                    ("imports", event.import_s),
                    ("load", event.load_s),
                    ("warmup", event.warmup_s),
                )
        elif isinstance(event, ev.ContainerReady):
            self._created[event.container] = (self._clock.now(), event.seconds)
        elif isinstance(event, ev.MemorySampled):
            for name, size in event.instances.items():
                if (known := self._known.get(name)) is not None:
                    known.bytes = size
        elif isinstance(event, ev.InstanceFailed | ev.InstanceLost):
            self._ended(event.instance, "failed" if isinstance(event, ev.InstanceFailed) else "evicted")
            self._loop.call_soon(self._known.pop, event.instance, None)
            if event.reason and isinstance(event, ev.InstanceFailed):
                self._failed_log(event.instance, f"[{event.phase} failed] {event.reason}\n")
            elif isinstance(event, ev.InstanceLost) and event.instance in self.platform.state.instances:
                state = self.platform.state.instances[event.instance].state
                if state != "ending":
                    self._failed_log(event.instance, f"[instance ended] {event.reason}\n")
        elif isinstance(event, ev.ContainerLost):
            self._created.pop(event.container, None)
            for name in [n for n, k in self._known.items() if k.container == event.container]:
                self._ended(name, "expired")
                self._loop.call_soon(self._known.pop, name, None)
            self._loop.call_soon(self._node_of.pop, event.container, None)

    def _ended(self, instance: str, outcome: str) -> None:
        known = self._known.get(instance)
        if known is None or known.used or not known.ahead:
            return
        known.used = True  # told once
        self.metrics.preloads[outcome] += 1
        if known.ready:
            self.metrics.wasted_byte_seconds += known.bytes * (self._clock.now() - known.ready)

    def _failed_log(self, instance: str, text: str) -> None:
        known = self._known.get(instance)
        if known is not None:
            self._writer.put(
                LogLine(activation=f"load:{known.function}", stream="stderr", wall=self._clock.wall(), text=text)
            )

    def _logged(self, report: wire.Logged) -> None:
        spec = self._revisions.get(report.revision)
        if spec is None:
            return
        wall = self._clock.wall()
        for stream, text in report.logs:
            self._writer.put(LogLine(activation=f"load:{spec.key}", stream=stream, wall=wall, text=text))

    def _answered(self, report: wire.Answered) -> None:
        ticket = self._tickets.get(report.request)
        ok = not report.problem
        if ticket is not None:
            ticket.inference_s = report.inference_s
            ticket.logs = report.logs
            if ok:
                ticket.answer = (report.content_type, report.body)
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
        now = self._clock.now()
        spec, error = ticket.spec, ticket.error
        ticket.phases = self._phases(ticket, now)
        e2e_s = now - ticket.arrived
        status = "ok" if error is None else error.code
        self._writer.put(
            Activation(
                id=ticket.activation,
                namespace=spec.namespace,
                function=spec.name,
                version=spec.version,
                start=ticket.start,
                status=status,
                wall=ticket.wall,
                e2e_s=e2e_s,
                phases=ticket.phases,
                container=ticket.container,
                instance=ticket.instance,
                request=ticket.request,
                epoch=self.epoch,
                error="" if error is None else error.message,
                hint="" if error is None else error.hint,
                error_phase="" if error is None else error.phase,
                trace="" if error is None else error.detail,
            )
        )
        for stream, text in ticket.logs:
            self._writer.put(LogLine(activation=ticket.activation, stream=stream, wall=ticket.wall, text=text))
        metrics = self.metrics
        metrics.invocation(spec.namespace, spec.name, ticket.start, status)
        metrics.phase("inference", ticket.inference_s)
        metrics.phase("e2e", e2e_s)
        if ticket.start != "warm":
            phases = ticket.phases
            for name, seconds in (
                ("container", phases.container),
                ("import", phases.imports),
                ("load", phases.load),
                ("warmup", phases.warmup),
            ):
                if seconds:
                    metrics.phase(name, seconds)
        if self._draining is not None and not self._tickets and not self._draining.done():
            self._draining.set_result(None)
        ticket.done(ticket)

    def _phases(self, ticket: Ticket, now: float) -> Phases:
        """The wait up to the dispatch is what of container creation and load fell into it, latest first; the
        rest of it was queueing."""
        if not ticket.dispatched:
            return Phases(queue=now - ticket.arrived)
        wait = ticket.dispatched - ticket.arrived
        if ticket.start == StartKind.WARM or ticket.start == StartKind.PRELOADED:
            return Phases(queue=wait, inference=ticket.inference_s)
        known = self._known.get(ticket.instance)
        parts: dict[str, float] = {}
        if known is not None:
            created = self._created.get(known.container)
            times = list(known.times)
            if created is not None and created[0] > ticket.arrived:
                times.insert(0, ("container", created[1]))
            for name, seconds in reversed(times):
                parts[name] = min(seconds, wait)
                wait -= parts[name]
        return Phases(queue=max(0.0, wait), inference=ticket.inference_s, **parts)

    # ---- what is there -------------------------------------------------------------------------------------

    def _gauges(self) -> list[Gauge]:
        state = self.platform.state
        containers: dict[tuple[str, ...], float] = {}
        instances: dict[tuple[str, ...], float] = {}
        idle = 0
        for container in state.containers.values():
            key = ("idle" if container.idle else container.state,)
            containers[key] = containers.get(key, 0) + 1
            idle += max(0, container.free) if container.state == "ready" else 0
        ahead = 0
        for name, instance in state.instances.items():
            level = instance.level.name.lower(), "frozen" if instance.frozen else instance.state
            instances[level] = instances.get(level, 0) + 1
            known = self._known.get(name)
            if known is not None and known.ahead and not known.used:
                ahead += instance.bytes
        queued = sum(len(function.queue) for function in state.functions.values())
        return [
            ("containers", "Containers by state", ("state",), sorted(containers.items())),
            ("instances", "Instances by level and state", ("level", "state"), sorted(instances.items())),
            ("idle_bytes", "Idle memory of warm containers", (), [((), float(idle))]),
            ("preloaded_bytes", "Bytes pre-loaded and not used yet", (), [((), float(ahead))]),
            ("queue_depth", "Requests that wait for an instance", (), [((), float(queued))]),
        ]
