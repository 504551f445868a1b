"""A trace sent to a live server: every call at its time, whatever became of the ones before, and all that the
answers say.

What is counted is counted as the simulator counts it (`sim.tally`), so that a row of one can stand beside a row
of the other. Times of a row are real seconds, whatever the speed.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from instainfer.client import PREFIX, Client, parse_timing
from instainfer.errors import BadInput, BadSettings, Forbidden, NotFound, Unavailable
from instainfer.lab.runs import VERSION, Folder, detail, key
from instainfer.lab.sender import INTERRUPTED, UNSENT, Call, Counts, Sender, Target
from instainfer.lab.simulate import CLASSES, OTHER, TIMELINE, document
from instainfer.model import StartKind
from instainfer.sim.tally import ByClass
from instainfer.traces.base import Ints, Trace, few
from instainfer.traces.classes import classify
from instainfer.traces.open import open_trace
from instainfer.units import MB

WORLD = "live"
LOOK_S = 2.0  # between two looks at the server's containers: what memory they have
#: Phases of Server-Timing, by what they are part of.
_WARMING = ("container", "extract")
_LOADING = ("import", "load", "device", "warmup")
_REFUSED = (429, 503)
_KINDS = frozenset(kind.value for kind in StartKind)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one replay. `warmup`: the share of the trace that is sent and not counted."""

    url: str = ""
    namespace: str | None = None  # only functions of this one stand in
    speed: float = 1.0  # trace seconds in a second
    minutes: str | None = None
    cap_per_minute: int | None = None
    min_calls: int = 1  # functions of the trace called less often are left out
    seed: int = 0
    warmup: float = 0.25
    late_s: float = 0.01  # a call sent later than this after it was due is counted
    in_flight: int = 256
    timeout_s: float = 120.0

    def check(self) -> None:
        """Raises BadSettings."""
        if not 0.0 < self.speed <= 10_000.0:
            raise BadSettings(f"a speed of {self.speed:g}", hint="1 is the trace's own, 10 ten times as fast")
        if not 0.0 <= self.warmup < 1.0:
            raise BadSettings(f"a warm-up of {self.warmup:g}", hint="a share of the trace, such as 0.25")
        if self.in_flight < 1 or self.timeout_s <= 0.0 or self.late_s < 0.0:
            raise BadSettings("calls in flight, and how long each may take, are above 0", hint="leave them out")


class Payload(NamedTuple):
    body: bytes
    content_type: str


class Stand(NamedTuple):
    """A deployed function that stands for functions of the trace."""

    key: str  # "namespace/name"
    payload: Payload
    loading_s: float  # as the server measured it: import, load, and warm-up or the excess of a first inference
    warm_s: float
    warmed: bool  # its loads end with a warm-up call, so that no first inference is slower than the others


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be sent. `trace` is of the server's functions: those that stand for several of the source's
    functions have the calls of all."""

    path: Path
    settings: Settings
    trace: Trace
    stands: tuple[Stand, ...]  # in the order of `trace.names`
    sources: tuple[str, ...]  # names of the source's functions
    source: Ints  # of each call: its place in `sources`
    standing: dict[str, str]  # the source's function -> the server's

    def which(self, call: Call) -> int:
        """The place of its function in `stands`."""
        return int(self.trace.functions[call.position])

    @property
    def length_s(self) -> float:
        """Real seconds."""
        return self.trace.length_s / self.settings.speed

    @property
    def since(self) -> float:
        """Calls due from here on are counted."""
        return self.settings.warmup * self.length_s


class Server(NamedTuple):
    """What it said of itself when the replay began."""

    policy: dict[str, str]
    memory_mb: float
    sandbox: str
    functions: list[dict[str, Any]]  # as the management API lists them, those that are in question


def ask(client: Client, namespace: str | None) -> Server:
    """Raises NotFound where nothing is deployed, and what keeps the server from answering."""
    functions = client.functions(namespace)
    if not functions:
        where = f"namespace {namespace!r}" if namespace else "the server"
        raise NotFound(
            f"{where} has no function that could stand for one of the trace", hint="`instainfer deploy` some"
        )
    try:
        status = client.status()
    except Forbidden:  # a namespace's key: the policy is not its business
        status = {}
    return Server(
        policy=status.get("policy", {}),
        memory_mb=status.get("memory_mb", 0.0),
        sandbox=status.get("sandbox", ""),
        functions=functions,
    )


# ---- the plan --------------------------------------------------------------------------------------------------


def plan(
    path: Path,
    settings: Settings,
    functions: Sequence[Mapping[str, Any]],
    *,
    mapping: Mapping[str, str] | None = None,
    payloads: Mapping[str, Payload] | None = None,
) -> Plan:
    """`functions`: the server's. `mapping`: a function of the trace -> one of the server's. `payloads`: by name of
    the server's function; "" is for all others. Raises BadSettings, and BadInput for a trace, a name or a missing
    payload with which nothing can be sent."""
    settings.check()
    trace = open_trace(
        path, minutes=settings.minutes, cap_per_minute=settings.cap_per_minute, seed=settings.seed
    ).at_least(max(settings.min_calls, 1))
    if not len(trace):
        raise BadInput(f"{path.name} has no call in these minutes", hint="take more --minutes")
    keys = [f"{one['namespace']}/{one['name']}" for one in functions]
    standing = stand_ins(trace.names, keys, mapping or {})
    found = payloads or {}
    named = {find(name, keys): payload for name, payload in found.items() if name}
    used = [key for key in keys if key in set(standing.values())]
    by_key = dict(zip(keys, functions, strict=True))
    place = {key: at for at, key in enumerate(used)}
    places = np.array([place[standing[name]] for name in trace.names], np.int32)
    stands = tuple(_stand(key, by_key[key], named.get(key, found.get(""))) for key in used)
    return Plan(
        path=path,
        settings=settings,
        trace=replace(
            trace,
            names=tuple(used),
            functions=places[trace.functions],
            memory_mb=np.empty(0, np.float32),
            triggers=(),
        ),
        stands=stands,
        sources=trace.names,
        source=trace.functions.astype(np.int64),
        standing=standing,
    )


def stand_ins(names: Sequence[str], keys: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Which of the server's functions stands for each of the trace's: the mapping's, else the one of its name,
    else the server's in turn, by the place of the trace's. Raises BadInput for a name that nobody has."""
    if unknown := sorted(set(mapping) - set(names)):
        raise BadInput(
            f"the trace has no function {unknown[0]!r}, which is mapped",
            hint=f"in these minutes it has {len(names)}: {few(names)}",
        )
    found = {}
    for at, name in enumerate(names):
        if name in mapping:
            found[name] = find(mapping[name], keys)
        else:
            found[name] = _named(name, keys) or keys[at % len(keys)]
    return found


def find(name: str, keys: Sequence[str]) -> str:
    """The key of the server's function of this name. Raises BadInput."""
    key = _named(name, keys)
    if key is None:
        raise BadInput(f"the server has no function {name!r}", hint=f"it has {few(keys, 8)}")
    return key


def _named(name: str, keys: Sequence[str]) -> str | None:
    """NAMESPACE/NAME, or NAME where only one namespace has it."""
    if name in keys:
        return name
    found = [key for key in keys if key.partition("/")[2] == name]
    return found[0] if len(found) == 1 else None


def _stand(key: str, function: Mapping[str, Any], payload: Payload | None) -> Stand:
    if payload is None:
        if sample := function.get("sample"):
            short = key.removeprefix("default/")
            raise BadInput(
                f"what is {key} to be called with? It has a sample, {sample}, which the server keeps to itself",
                hint=f"--data {short}=@{sample}",
            )
        payload = Payload(b"{}", "application/json")
    profile = function.get("profile") or {}
    warm, warmup = profile.get("warm_ms", 0.0), profile.get("warmup_ms", 0.0)
    first = max(warmup, profile.get("first_ms", warm) - warm, 0.0)
    loading = profile.get("import_ms", 0.0) + profile.get("load_ms", 0.0) + first
    return Stand(key, payload, loading / 1e3, warm / 1e3, warmup > 0.0)


# ---- sending ---------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Sent:
    """What was sent, and what came back. Seconds since `began` (wall time)."""

    plan: Plan
    calls: list[Call]
    counts: Counts
    began: float
    interrupted: bool
    looks: list[tuple[float, int, int]] = field(default_factory=list)  # when, bytes of containers, of zygotes
    wasted_byte_s: float = 0.0  # since calls count


def send(plan: Plan, target: Target, progress: Callable[[float, Counts, int], None] | None = None) -> Sent:
    """All of it, to the end; ^C ends it with what there is. `progress` gets seconds, counts and how many calls are
    in flight, twice a second. Raises nothing: a call that fails is a call that failed."""
    import uvloop

    gc.collect()
    gc.freeze()  # a collection through everything that is loaded here would be a late call
    try:
        return uvloop.run(_send(plan, target, progress))
    finally:
        gc.unfreeze()


async def _send(plan: Plan, target: Target, progress: Callable[[float, Counts, int], None] | None) -> Sent:
    settings = plan.settings
    requests = [target.request("POST", f"/f/{one.key}", *one.payload) for one in plan.stands]
    due_s = array("d", plan.trace.times / settings.speed)
    sender = Sender(
        target,
        due_s,
        array("i", plan.trace.functions),
        requests,
        in_flight=settings.in_flight,
        timeout_s=settings.timeout_s,
        late_s=settings.late_s,
    )
    sent = Sent(plan=plan, calls=sender.calls, counts=sender.counts, began=0.0, interrupted=False)
    with _interruptible(sender):
        work = asyncio.ensure_future(sender.run())
        others = [asyncio.ensure_future(_look(sender, sent))]
        if progress is not None:
            others.append(asyncio.ensure_future(_tell(sender, progress)))
        try:
            await work
        finally:
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)
    sent.began, sent.interrupted = sender.began, sender.interrupted
    return sent


@contextmanager
def _interruptible(sender: Sender) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, sender.interrupt)
    except (ValueError, RuntimeError):  # not the main thread, whose signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _tell(sender: Sender, progress: Callable[[float, Counts, int], None]) -> None:
    while True:
        await asyncio.sleep(0.5)
        progress(sender.elapsed, sender.counts, sender.in_flight)


async def _look(sender: Sender, sent: Sent) -> None:
    """What the server's containers hold now and then, and what its pre-loads wasted meanwhile."""
    namespace = sent.plan.settings.namespace
    before: float | None = None
    await asyncio.sleep(0)  # it has begun
    while True:
        with suppress(OSError, msgspec.DecodeError):
            shown = msgspec.json.decode(await sender.get(f"{PREFIX}/containers"), type=_Containers)
            held = [one.limit_mb for one in shown.containers if namespace in (None, one.namespace)]
            forked = [one.bytes_mb for one in shown.zygotes if namespace in (None, one.namespace)]
            sent.looks.append((sender.elapsed, round(sum(held) * MB), round(sum(forked) * MB)))
        with suppress(OSError, ValueError):
            wasted = await _wasted(sender)
            if before is None and sender.elapsed >= sent.plan.since:
                before = wasted
            sent.wasted_byte_s = wasted - before if before is not None else 0.0
        await asyncio.sleep(LOOK_S)


class _Container(msgspec.Struct):
    namespace: str
    limit_mb: float


class _Zygote(msgspec.Struct):
    namespace: str
    bytes_mb: float


class _Containers(msgspec.Struct):
    containers: list[_Container]
    zygotes: list[_Zygote] = []


async def _wasted(sender: Sender) -> float:
    """Raises OSError, and ValueError where the metric is not there."""
    return metric((await sender.get("/metrics")).decode(), "instainfer_wasted_byte_seconds_total")


def metric(text: str, name: str) -> float:
    """The value of one without labels, in Prometheus's text. Raises ValueError where it is not there."""
    for line in text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise ValueError(f"no {name}")


# ---- counting --------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """An answered call, taken apart. Milliseconds."""

    start: StartKind
    phases: dict[str, float]
    warming_ms: float
    loading_ms: float
    inference_ms: float  # without the excess of a first one, which is loading
    e2e_ms: float

    @property
    def waited_ms(self) -> float:
        """All but the inference: warming, loading, queueing, and the way there and back."""
        return self.e2e_ms - self.inference_ms


def told(call: Call, stand: Stand, warm_ms: float) -> Told | None:
    """None where there was no answer, or none that a start can be told of. `warm_ms`: what the function's
    inference usually takes."""
    if call.failed or call.status >= 400 or call.start not in _KINDS:
        return None
    phases = parse_timing(call.timing)
    inference = phases.get("inference", 0.0)
    excess = 0.0
    if call.start not in (StartKind.WARM, StartKind.CLONED) and not stand.warmed:
        excess = max(0.0, inference - warm_ms)
    return Told(
        start=StartKind(call.start),
        phases=phases,
        warming_ms=sum(phases.get(name, 0.0) for name in _WARMING),
        loading_ms=sum(phases.get(name, 0.0) for name in _LOADING) + excess,
        inference_ms=inference - excess,
        e2e_ms=call.e2e_s * 1e3,
    )


def why_not(call: Call) -> str:
    """What became of a call that was not answered well; "" for the others."""
    if call.failed:
        return call.failed
    if call.status >= 400:
        return f"HTTP {call.status}"
    return "" if call.start in _KINDS else "no start kind: is this an instainfer server?"


class Usual(NamedTuple):
    """What one function's calls take in this run where nothing is in the way: what the others are held against."""

    warm_ms: float  # an inference
    loading_s: float


def usual(sent: Sent) -> list[Usual]:
    """Of each function: medians of its warm inferences and means of its cold starts' loading; where there were
    none of them, what the server measured when it was deployed."""
    plan = sent.plan
    warm: list[list[float]] = [[] for _ in plan.stands]
    loading: list[list[float]] = [[] for _ in plan.stands]
    for call in sent.calls:
        if call.start == StartKind.WARM and not why_not(call):
            warm[plan.which(call)].append(parse_timing(call.timing).get("inference", 0.0))
    warm_ms = [float(np.median(w)) if w else one.warm_s * 1e3 for w, one in zip(warm, plan.stands, strict=True)]
    for call in sent.calls:
        at = plan.which(call)
        one = told(call, plan.stands[at], warm_ms[at])
        if one is not None and one.start is StartKind.COLD:
            loading[at].append(one.loading_ms / 1e3)
    return [
        Usual(ms, float(np.mean(took)) if took else one.loading_s)
        for ms, took, one in zip(warm_ms, loading, plan.stands, strict=True)
    ]


class Counted:
    """A replay, counted: `row` and `run` are as the files have them."""

    def __init__(self, sent: Sent, server: Server) -> None:
        self.sent = sent
        self.reasons: Counter[str] = Counter()  # why calls failed
        plan = sent.plan
        classes = [str(kind or OTHER) for kind in classify(plan.trace)]
        self._tally = ByClass(CLASSES, classes, plan.since, plan.length_s)
        self._timeline: list[dict[str, Any]] = []
        self._late = self._errors = self._unsent = self._due = 0
        takes = usual(sent)
        for call in sent.calls:
            if call.due_s >= plan.since and call.failed != INTERRUPTED:
                self._count(call, plan.which(call), takes)
        ends = [begin for begin, _, _ in sent.looks[1:]]
        if (
            not sent.interrupted
        ):  # what the last look saw stays so until the trace ends, a little after its last call
            ends.append(plan.length_s)
        for (begin, held, forked), end in zip(sent.looks, ends, strict=False):
            self._tally.shared.held(held, begin, end)
            self._tally.shared.held_by_zygote(forked, begin, end)
        self._tally.shared.wasted_byte_s = sent.wasted_byte_s
        self._total = self._tally.total()
        self.row = self._row(server)

    def _count(self, call: Call, at: int, takes: list[Usual]) -> None:
        stand, tally = self.sent.plan.stands[at], self._tally.of[at]
        self._due += 1
        self._late += call.late_s > self.sent.plan.settings.late_s
        one = told(call, stand, takes[at].warm_ms)
        if one is None:
            self.reasons[why_not(call)] += 1
            if call.failed == UNSENT:
                self._unsent += 1
            elif call.status in _REFUSED:
                tally.refused(call.due_s)
            else:
                self._errors += 1
            return
        tally.served(
            call.due_s,
            one.start,
            one.e2e_ms / 1e3,
            one.inference_ms / 1e3,
            takes[at].loading_s,
            one.loading_ms / 1e3,
        )
        if len(self._timeline) < TIMELINE:
            self._timeline.append(
                {
                    "function": stand.key,
                    "arrived_s": call.due_s,
                    "start": one.start.value,
                    "warming_ms": one.warming_ms,
                    "loading_ms": one.loading_ms,
                    "inference_ms": one.inference_ms,
                    "e2e_ms": one.e2e_ms,
                }
            )

    def _row(self, server: Server) -> dict[str, Any]:
        plan, settings = self.sent.plan, self.sent.plan.settings
        total_mb = sum((one.get("profile") or {}).get("loaded_mb", 0.0) for one in server.functions)
        return {
            "trace": plan.path.name,
            "world": WORLD,
            "policy": server.policy.get("mode", ""),
            "predictor": server.policy.get("predictor", ""),
            "keep_alive": server.policy.get("keep_alive", ""),
            "nodes": 1,
            "budget_fraction": server.memory_mb / total_mb if total_mb else 0.0,
            "budget_mb": server.memory_mb,
            "functions": len(plan.stands),
            **_known(self._total.row()),
            "seed": settings.seed,
            "speed": settings.speed,
            "late_fraction": self._late / max(self._due - self._unsent, 1),
            "errors": self._errors,
            "unsent": self._unsent,
            "interrupted": self.sent.interrupted,
        }

    def run(self) -> dict[str, Any]:
        """As `runs/0.json` has it."""
        plan = self.sent.plan
        given = {**msgspec.to_builtins(plan.settings), "functions": plan.standing}
        classes = {name: _known(one.row()) for name, one in self._tally.tallies.items()}
        return {
            "version": VERSION,
            "key": key(["replay", given, plan.path.name, self.sent.began], plan.path),
            **detail(given, self.row, classes, self._total, self._timeline),
        }


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """A caller cannot tell what guests did to its calls."""
    return {**row, "harmed_fraction": None, "harm_mean_ms": None}


# ---- files -----------------------------------------------------------------------------------------------------


def write(folder: Path, counted: Counted, server: Server) -> dict[str, Any]:
    """results.json, runs/0.json and calls.jsonl; returns the first. Raises BadInput."""
    made = results(counted, server)
    Folder(folder).save(0, counted.run())
    try:
        with (folder / "calls.jsonl").open("wb") as file:
            for line in lines(counted.sent):
                file.write(msgspec.json.encode(line) + b"\n")
        text = msgspec.json.format(msgspec.json.encode(made), indent=2)
        (folder / "results.json").write_bytes(text + b"\n")
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}", hint="name another folder") from None
    return made


def results(counted: Counted, server: Server) -> dict[str, Any]:
    """As `results.json` has it."""
    made = document("replay", [counted.row])
    made["machine"]["sandbox"] = server.sandbox
    return made


def lines(sent: Sent) -> Iterator[dict[str, Any]]:
    """A line a call, in the order in which they were due: what `traces` reads as a server's own records, with what
    the server does not know. One that was not sent has no `wall`."""
    plan = sent.plan
    for call in sent.calls:
        namespace, _, name = plan.stands[plan.which(call)].key.partition("/")
        phases = parse_timing(call.timing)
        sending = call.failed != UNSENT
        yield {
            "id": call.activation,
            "namespace": namespace,
            "function": name,
            "trace_function": plan.sources[int(plan.source[call.position])],
            "due_s": call.due_s,
            "sent_s": call.sent_s if sending else None,
            "wall": sent.began + call.sent_s if sending else None,
            "late_ms": call.late_s * 1e3 if sending else None,
            "status": call.status,
            "start": call.start,
            "e2e_ms": call.e2e_s * 1e3,
            "phases": {f"{phase}_ms": taken for phase, taken in phases.items()},
            "error": why_not(call),
        }


def check_answered(counted: Counted) -> None:
    """Raises Unavailable where nothing was answered well, with the commonest reason."""
    calls = counted.sent.calls
    if calls and not counted.sent.interrupted and all(why_not(call) for call in calls):
        reason, _ = Counter(why_not(call) for call in calls).most_common(1)[0]
        raise Unavailable(
            f"none of {len(calls)} calls was answered; most: {reason}", hint="see the server's log; is it running?"
        )
