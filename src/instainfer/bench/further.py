"""Further instances of one function, to order: what each holds, and how long it took to come.

Every instance answers the sample, as any would, and is then held by a call that lasts: the next request finds
all of them busy, waits as long as the platform has it wait, and gets an instance more.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped] # ships no types

from instainfer.bench.http import Caller, timing
from instainfer.bench.models import Model
from instainfer.bench.server import Bench, spread
from instainfer.client import parse_timing
from instainfer.errors import InstaInferError
from instainfer.units import MB

#: Instances by mode. Processes that share nothing are all like the second.
COUNTS = {"plain": 2, "mapped": 2, "ours": 8}
LEAST_WAIT_S = 1.0  # before the platform thinks a further instance is worth it; longer, if a cold start is
SAMPLED_S = 2.2  # memory is measured once a second, where something ran since
OTHER = ("queue", "container", "inference", "total")  # phases of a request before and after its instance came


class One(NamedTuple):
    id: str
    start: str
    container_ms: float  # until there was one for it
    ready_ms: float  # from then until it could answer


class Further:
    """Sizes in MB; `anonymous` as the server says, by instance in the order of their coming. `total` is (first,
    alone; last, among all) as PSS, None where /proc cannot be read."""

    def __init__(self, came: list[One], anonymous: list[float], total: tuple[float | None, float | None]) -> None:
        self.came = came
        self.anonymous = anonymous
        self.total = total

    def _later(self, times: list[float]) -> float | None:
        """Median of all but the first."""
        return spread(times[1:])[0] if len(times) > 1 else None

    def columns(self) -> dict[str, Any]:
        first, last = self.total
        return {
            "memory_first_mb": self.anonymous[0] if self.anonymous else None,
            "memory_second_mb": self.anonymous[1] if len(self.anonymous) > 1 else None,
            "memory_nth_mb": self.anonymous[-1] if len(self.anonymous) > 1 else None,
            "total_first_mb": first,
            "total_nth_mb": last,
            "instances": len(self.anonymous),
            "further_ms": self._later([one.ready_ms for one in self.came]),
            "further_container_ms": self._later([one.container_ms for one in self.came]),
            "further_start": self.came[-1].start if len(self.came) > 1 else None,
        }

    def cells(self, plain: Further | None) -> list[str]:
        """For the table. `plain`: the same model's, loaded plainly."""
        row = self.columns()
        last = row["memory_nth_mb"]
        against = (row["memory_first_mb"], plain.columns()["memory_first_mb"] if plain is not None else None)
        return [
            *(_cell(row[key]) for key in ("memory_first_mb", "memory_second_mb", "memory_nth_mb")),
            *(f"{last / first:.1%}" if last is not None and first else "-" for first in against),
            *(_cell(row[key]) for key in ("total_first_mb", "total_nth_mb")),
            str(row["instances"]),
            row["further_start"] or "-",
            *(_cell(row[key]) for key in ("further_ms", "further_container_ms")),
        ]


def further(server: Bench, name: str, model: Model, count: int, cold_s: float) -> Further:
    """Up to `count` instances, fewer where the node has no memory for so many containers. No other container may
    be there but those that stay."""
    node = server.client.containers()["node"]
    count = max(1, min(count, int((node["memory_mb"] - node["committed_mb"]) // model.memory_mb)))
    each = max(cold_s, LEAST_WAIT_S) + cold_s + 0.5
    until = time.monotonic() + 1.4 * each * count + 2 * SAMPLED_S
    came: list[One] = []
    processes: list[set[int]] = []
    held: list[threading.Thread] = []
    alone: float | None = None
    while len(came) < count and time.monotonic() < until:
        known, before = {one.id for one in came}, _processes(name)
        with Caller(server.address(name), model.body, model.content_type, 300.0) as caller:
            _, reply = caller.call()
        phases = parse_timing(timing(reply).decode("latin-1"))
        fresh = [one["id"] for one in _listed(server, name) if one["served"] and one["id"] not in known]
        if reply.status != 200 or len(fresh) != 1:
            break
        ready = sum(ms for phase, ms in phases.items() if phase not in OTHER)
        came.append(One(fresh[0], reply.start, phases.get("container", 0.0), ready))
        processes.append(_processes(name) - before)
        held.append(_hold(server.address(name), until - time.monotonic() + SAMPLED_S))
        server.until("a call that lasts", lambda: _running(server, name) == len(came))
        if len(came) == 1:
            time.sleep(SAMPLED_S)
            alone = _total(processes[0])
    time.sleep(SAMPLED_S)
    sizes = {one["id"]: one["bytes_mb"] for one in _listed(server, name)}
    anonymous = [sizes[one.id] for one in came if one.id in sizes]
    last = _total(processes[-1]) if len(came) > 1 else None
    for thread in held:
        thread.join()
    return Further(came, anonymous, (alone, last))


def _hold(url: str, seconds: float) -> threading.Thread:
    def call() -> None:
        with (
            suppress(InstaInferError),  # that it was held is all it is for
            Caller(url, json.dumps({"hold_s": max(seconds, 0.1)}).encode(), timeout_s=seconds + 60) as caller,
        ):
            caller.call()

    thread = threading.Thread(target=call, daemon=True)  # nobody waits for it when the benchmark is interrupted
    thread.start()
    return thread


def _listed(server: Bench, name: str) -> list[dict[str, Any]]:
    return [
        instance
        for container in server.client.containers()["containers"]
        for instance in container["instances"]
        if instance["function"] in (name, f"{container['namespace']}/{name}")
    ]


def _running(server: Bench, name: str) -> int:
    return sum(instance["state"] == "running" for instance in _listed(server, name))


def _processes(name: str) -> set[int]:
    """Of the function's instances, where this user may see them: they stand in its package, whose folder is called
    after it."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(OSError):
            where = Path(os.readlink(f"/proc/{process.pid}/cwd"))  # noqa: PTH115 - what it says, unresolved
            if where.name.rpartition("-")[0] == name:
                found.add(process.pid)
    return found


def _total(pids: set[int]) -> float | None:
    """MB of PSS: what is theirs, and their share of what they share."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total / MB if total else None


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"
