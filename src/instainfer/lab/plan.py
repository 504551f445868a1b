"""What a replay is to send: which of the server's functions stand for those of the trace, and what each is called
with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from instainfer.client import Client
from instainfer.errors import BadInput, BadSettings, Forbidden, NotFound
from instainfer.lab.sender import Call
from instainfer.traces.base import Ints, Trace, few
from instainfer.traces.open import open_trace


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
            raise BadSettings(
                f"a warm-up of {self.warmup:g} leaves nothing to count",
                hint="give a share of the trace, such as 0.25",
            )
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
        raise BadInput(
            f"{path.name} has no call to send",
            hint="take more --minutes, or a lower --min-calls, or another trace",
        )
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
