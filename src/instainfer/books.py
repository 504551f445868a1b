"""The books: what the core needs not know, kept for people. Phases, records, logs, what became of pre-loads."""

from __future__ import annotations

from collections.abc import Callable

from instainfer.agent import base as wire
from instainfer.clock import Clock
from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.state import State
from instainfer.errors import InstaInferError
from instainfer.marks import Marks
from instainfer.model import Activation, FunctionSpec, Phases, StartKind
from instainfer.observe import Gauge, Metrics
from instainfer.store.base import LogLine
from instainfer.store.writer import BatchWriter


class Ticket:
    """One accepted request, until it is answered: `done(ticket)` is called exactly once, with `answer` or
    `error` set."""

    __slots__ = (
        "activation", "answer", "arrived", "body", "chunk", "container", "content_type", "dispatched", "done",
        "error", "inference_s", "instance", "logs", "parts", "phases", "request", "spec", "start", "traceparent",
        "wall",
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
        self.chunk: Callable[[Ticket, str, bytes], None] | None = None  # takes the parts of a streamed answer
        self.parts: list[bytes] = []  # of one that nobody takes in parts
        self.traceparent = ""  # the caller's, where spans are made
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


class Books:
    """Told of every action and report by the controller, in their order."""

    def __init__(
        self,
        clock: Clock,
        writer: BatchWriter,
        metrics: Metrics,
        *,
        epoch: str,
        told: Callable[[Ticket, float], None] | None = None,
    ) -> None:
        """`told` hears of every request that is over, and its seconds from end to end."""
        self.metrics = metrics
        self.marks = Marks(clock)
        self._told = told
        self._clock = clock
        self._writer = writer
        self._epoch = epoch
        self._known: dict[str, Known] = {}
        self._created: dict[str, tuple[float, float]] = {}  # container -> (ready at, seconds)

    def commanded(self, action: act.AnyAction) -> None:
        if isinstance(action, act.Load):
            self._known[action.instance] = Known(action.container, action.function, action.revision, action.ahead)
        elif isinstance(action, act.Raise):
            self._known[action.instance].ahead = action.ahead
        elif isinstance(action, act.Offload):
            self._unused(action.instance, "evicted")
        if not isinstance(action, act.Freeze | act.Thaw | act.ResizeContainer):
            known = self._known.get(getattr(action, "instance", ""))
            self.marks.commanded(action, known.function if known else "", known.container if known else "")

    def adopted(self, held: ev.HeldContainer, node: str) -> None:
        """What a node came with: who made it counted it."""
        self.marks.adopted(held.container, held.function, node)
        for one in held.instances:
            known = Known(held.container, one.function, one.revision, False)
            known.bytes, known.used = one.bytes, True
            self._known[one.instance] = known

    def dispatched(self, ticket: Ticket, action: act.Dispatch, now: float) -> None:
        known = self._known[action.instance]
        ticket.dispatched = now
        ticket.start = action.start.value
        ticket.instance = action.instance
        ticket.container = known.container
        if not known.used:
            known.used = True
            if known.ahead:
                self.metrics.preloads["hit"] += 1

    def container_of(self, instance: str) -> str:
        known = self._known.get(instance)
        return known.container if known is not None else ""

    def learn(self, event: ev.Event, *, expected: bool = False) -> None:
        """A report, before the core handles it; `expected`: the instance ends because it was told to."""
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
                if known.ahead and not known.used:
                    seconds = sum(spent for _, spent in known.times)
                    level = event.level.name.lower()
                    self.marks.loaded(known.function, known.container, event.instance, level, seconds)
        elif isinstance(event, ev.NodeClosed):
            leaves = ("node_draining", "its agent was told to end") if event.drain else ("node_silent",)
            self.marks.node(event.node, *leaves)
        elif isinstance(event, ev.NodeOpened):
            self.marks.node(event.node, "node_heard")
        elif isinstance(event, ev.ContainerReady):
            self._created[event.container] = (self._clock.now(), event.seconds)
        elif isinstance(event, ev.MemorySampled):
            for name, size in event.instances.items():
                if (known := self._known.get(name)) is not None:
                    known.bytes = size
        elif isinstance(event, ev.InstanceFailed | ev.InstanceLost):
            self._unused(event.instance, "failed" if isinstance(event, ev.InstanceFailed) else "evicted")
            if isinstance(event, ev.InstanceFailed):
                self._say(event.instance, f"[{event.phase} failed] {event.reason}\n")
                if (known := self._known.get(event.instance)) is not None:
                    self.marks.failed(known.function, known.container, event.instance, event.reason)
            elif not expected:
                self._say(event.instance, f"[instance ended] {event.reason}\n")
        elif isinstance(event, ev.ContainerLost):
            self._created.pop(event.container, None)
            for name, known in self._known.items():
                if known.container == event.container:
                    self._unused(name, "expired")

    def forget(self, event: ev.Event) -> None:
        """The same report, after the core and all that followed handled it."""
        if isinstance(event, ev.InstanceFailed | ev.InstanceLost):
            self._known.pop(event.instance, None)
        elif isinstance(event, ev.ContainerLost):
            self._known = {n: k for n, k in self._known.items() if k.container != event.container}
            self.marks.gone(event.container)
        elif isinstance(event, ev.ZygoteLost):
            self.marks.gone(event.zygote)

    def _unused(self, instance: str, outcome: str) -> None:
        known = self._known.get(instance)
        if known is None or known.used or not known.ahead:
            return
        known.used = True  # told once
        self.metrics.preloads[outcome] += 1
        if known.ready:
            self.metrics.wasted_byte_seconds += known.bytes * (self._clock.now() - known.ready)

    def waiting(self, instance: str) -> bool:
        """Was it loaded ahead and not used yet?"""
        known = self._known.get(instance)
        return known is not None and known.ahead and not known.used

    def unused_byte_seconds(self) -> float:
        """Of pre-loads that are there and were not used yet: wasted, if they ended now."""
        now = self._clock.now()
        return sum(
            known.bytes * (now - known.ready)
            for known in self._known.values()
            if known.ahead and not known.used and known.ready
        )

    def _say(self, instance: str, text: str) -> None:
        known = self._known.get(instance)
        if known is not None:
            self._load_log(known.function, "stderr", text)

    def _load_log(self, function: str, stream: str, text: str) -> None:
        """A line outside invocations: `instainfer logs FUNCTION` shows it among those of its activations."""
        self._writer.put(LogLine(activation=f"load:{function}", stream=stream, wall=self._clock.wall(), text=text))

    def logged(self, report: wire.Logged, function: str) -> None:
        for stream, text in report.logs:
            self._load_log(function, stream, text)

    def finished(self, ticket: Ticket) -> None:
        """Answered or failed: its phases, its record, its output, its metrics."""
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
                epoch=self._epoch,
                error="" if error is None else error.message,
                hint="" if error is None else error.hint,
                error_phase="" if error is None else error.phase,
                trace="" if error is None else error.detail,
            )
        )
        for stream, text in ticket.logs:
            self._writer.put(LogLine(activation=ticket.activation, stream=stream, wall=ticket.wall, text=text))
        metrics, phases = self.metrics, ticket.phases
        metrics.invocation(spec.namespace, spec.name, ticket.start, status)
        metrics.phase("inference", ticket.inference_s)
        metrics.phase("e2e", e2e_s)
        self._spend(ticket, e2e_s, now)
        if ticket.start != "warm":
            named = (("container", phases.container), ("extract", phases.extract), ("import", phases.imports))
            for name, seconds in (*named, ("load", phases.load), ("warmup", phases.warmup)):
                if seconds:
                    metrics.phase(name, seconds)
        if self._told is not None:
            self._told(ticket, e2e_s)

    def _spend(self, ticket: Ticket, e2e_s: float, now: float) -> None:
        spent = self.metrics.spent_by(ticket.spec.key, now)
        spent.last = ticket.wall
        spent.waited_s += ticket.dispatched - ticket.arrived if ticket.dispatched else e2e_s
        if ticket.error is None:
            spent.ok += 1
            spent.ok_s += e2e_s
            spent.inference_s += ticket.inference_s
        else:
            spent.failed += 1
            spent.failed_s += e2e_s

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

    def deleted(self, function: str) -> None:
        self.metrics.deleted(function, self._clock.now())

    def scrape(self) -> bytes:
        self.metrics.sweep(self._clock.now())
        return self.metrics.render()

    def gauges(self, state: State) -> list[Gauge]:
        """What is there now, for a scrape."""
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
            if self.waiting(name):
                ahead += instance.bytes
        queued = sum(len(function.queue) for function in state.functions.values())
        zygotes: dict[tuple[str, ...], float] = {}
        for zygote in state.zygotes.values():
            zygotes[zygote.state,] = zygotes.get((zygote.state,), 0) + 1
        held = sum(zygote.bytes for zygote in state.zygotes.values())
        return [
            ("containers", "Containers by state", ("state",), sorted(containers.items())),
            ("instances", "Instances by level and state", ("level", "state"), sorted(instances.items())),
            ("idle_bytes", "Idle memory of warm containers", (), [((), float(idle))]),
            ("preloaded_bytes", "Bytes pre-loaded and not used yet", (), [((), float(ahead))]),
            ("queue_depth", "Requests that wait for an instance", (), [((), float(queued))]),
            ("zygotes", "Library zygotes by state", ("state",), sorted(zygotes.items())),
            ("zygote_bytes", "Bytes that library zygotes hold", (), [((), float(held))]),
        ]
