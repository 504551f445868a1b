"""What a replay has shown, counted as the simulator counts it (`sim.tally`), so that a row of one can stand beside
a row of the other. Times of a row are real seconds, whatever the speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from instainfer.client import parse_timing
from instainfer.errors import BadInput, Unavailable
from instainfer.lab.plan import Server, Stand
from instainfer.lab.replay import Sent
from instainfer.lab.runs import VERSION, Folder, detail, key
from instainfer.lab.sender import INTERRUPTED, UNSENT, Call
from instainfer.lab.simulate import CLASSES, OTHER, TIMELINE, document
from instainfer.model import StartKind
from instainfer.sim.tally import ByClass
from instainfer.traces.classes import classify

WORLD = "live"
#: Phases of Server-Timing, by what they are part of.
_WARMING = ("container", "extract")
_LOADING = ("import", "load", "device", "warmup")
_REFUSED = (429, 503)
_KINDS = frozenset(kind.value for kind in StartKind)


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
        classes = {name: _known(one.row()) | one.spread() for name, one in self._tally.tallies.items()}
        return {
            "version": VERSION,
            "key": key(["replay", given, plan.path.name, self.sent.began], plan.path),
            **detail(given, self.row, classes, self._total, self._timeline),
        }


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """A caller cannot tell what guests did to its calls."""
    return {**row, "harmed_fraction": None, "harm_mean_ms": None}


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
