"""What the platform adds to a call: a function that does nothing, called over HTTP, beside the bare call of the
same function in a loop and beside what the load generator itself can do.

Records, metrics, logs and policies of the server are at their defaults.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from instainfer.bench import echo, front, loadgen, watched
from instainfer.bench.http import Caller
from instainfer.bench.loadgen import quantile
from instainfer.bench.plan import Plan
from instainfer.bench.report import Report, between, cores
from instainfer.bench.server import NAMESPACE, Bench, package, serving, spread
from instainfer.errors import Conflict, Unavailable

CODE = "def handler(event):\n    return event\n"
BODY = b'{"n": 1}'
CLIENTS = (1, 16)
SETTINGS = {"memory": "128MB"}
#: `noop` runs one request at a time, as functions do by default: with many clients it shows the queue as well.
#: `noop16` takes as many as there are clients, so that what is measured is the platform.
FUNCTIONS: dict[str, dict[str, Any]] = {
    "noop": SETTINGS,
    "noop16": {**SETTINGS, "concurrency": max(CLIENTS)},
    "owner": SETTINGS,
    "guest": SETTINGS,
}
Sample = dict[str, Any]


def measure(plan: Plan, report: Report) -> None:
    """Adds the rows `client_ceiling`, `warm_noop` and `gateway_noop` (the same through a gateway; per number of
    clients), `in_process`, `watched_noop` and `preloaded_noop`. Figures are medians over the rounds."""
    report.steps(plan.rounds * (3 * len(CLIENTS) + 6))
    found: dict[tuple[str, int, int], list[Sample]] = {}  # by name, clients, concurrency of the function
    preloads, looks = Preloads(), watched.Watched()
    share = -(-plan.preloads // plan.rounds)
    with serving("--memory", "1GB") as server, echo.running() as bare, front.running(server.url) as gateway:
        report.machine["sandbox"] = server.sandbox
        for name, settings in FUNCTIONS.items():
            report.say(f"deploying {name}")
            server.deploy(name, package({"main.py": CODE}), settings)
        server.client.pin(NAMESPACE, "noop")  # a warm container is what is measured, not the keep-alive policy
        server.client.pin(NAMESPACE, "noop16")
        for number in range(1, plan.rounds + 1):
            what = f"round {number} of {plan.rounds}"

            def load(name: str, url: str, clients: int, concurrency: int, what: str = what) -> None:
                report.step(f"{what}: {name}, {clients} clients")
                sample = loadgen.spawn(
                    url, clients=clients, requests=plan.requests, discard=plan.requests // 10, body=BODY
                )
                if name in ("warm_noop", "gateway_noop"):
                    sample["errors"] += sample["n"] - sample["starts"].get("warm", 0)
                found.setdefault((name, clients, concurrency), []).append(sample)

            for clients in CLIENTS:
                load("client_ceiling", bare, clients, 0)
                load("warm_noop", server.address("noop"), clients, 1)
            load("gateway_noop", server.address("noop", gateway), 1, 1)
            load("warm_noop", server.address("noop16"), max(CLIENTS), max(CLIENTS))
            load("gateway_noop", server.address("noop16", gateway), max(CLIENTS), max(CLIENTS))
            report.step(f"{what}: in_process")
            found.setdefault(("in_process", 1, 0), []).append(in_process(plan.requests))
            report.step(f"{what}: preloaded_noop, {share} starts")
            preloads.run(server, share)
        looks.run(server, "noop16", BODY, plan, report)
    for (name, clients, concurrency), samples in sorted(found.items()):
        report.rows.append(_row(name, server.sandbox, clients, concurrency, samples))
    report.rows.append(looks.row(server.sandbox, max(CLIENTS)))
    report.rows.append(preloads.row(server.sandbox))
    _show(report, found, preloads)


def in_process(requests: int) -> Sample:
    """The same function and the same bytes without any platform: decode, call, encode, in a plain loop."""
    scope: dict[str, Callable[[Any], Any]] = {}
    exec(CODE, scope)
    handler, loads, dumps = scope["handler"], json.loads, json.dumps
    clock = time.perf_counter
    taken = []
    began = clock()
    for _ in range(requests):
        at = clock()
        dumps(handler(loads(BODY))).encode()
        taken.append(clock() - at)
    elapsed = clock() - began
    taken.sort()
    return {
        "n": requests,
        "errors": 0,
        "requests_per_s": requests / elapsed,
        "mean_ms": sum(taken) / requests * 1e3,
        "p50_ms": quantile(taken, 0.5) * 1e3,
        "p90_ms": quantile(taken, 0.9) * 1e3,
        "p99_ms": quantile(taken, 0.99) * 1e3,
    }


class Preloads:
    """Starts from a pre-load, each followed by a warm call of the same function. The pre-load goes by hand into
    the idle container of `owner`; before every second start `owner` runs once more, so that it is the one thawed
    and has to be frozen first. A start of any other kind than was arranged is an error and no sample."""

    def __init__(self) -> None:
        self.found: list[float] = []  # the pre-loaded instance was left as its load left it
        self.behind: list[float] = []  # the owner had run since
        self.warm: list[float] = []
        self.errors = 0

    def run(self, server: Bench, count: int) -> None:
        with Caller(server.address("owner"), BODY) as owner, Caller(server.address("guest"), BODY) as guest:
            owner.call()
            for number in range(count):
                server.client.offload(NAMESPACE, "guest")
                server.until("a pre-load of `guest`", lambda: _preload(server))
                server.until("the end of its load", lambda: server.state("guest") == "preloaded")
                between = number % 2 == 1
                if between:
                    owner.call()
                seconds, first = guest.call()
                again, second = guest.call()
                if (first.status, first.start, second.status, second.start) != (200, "preloaded", 200, "warm"):
                    self.errors += 1
                    continue
                (self.behind if between else self.found).append(seconds)
                self.warm.append(again)
                owner.call()  # the container is its own again

    def row(self, sandbox: str) -> dict[str, Any]:
        taken, warm = sorted(self.found + self.behind), sorted(self.warm)
        if not taken:
            raise Unavailable(
                f"none of {self.errors} starts was a pre-loaded one", hint="this is a fault: report it"
            )
        row: dict[str, Any] = {"name": "preloaded_noop", "sandbox": sandbox, "clients": 1}
        row["mean_ms"] = sum(taken) / len(taken) * 1e3
        for key, part in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)):
            row[key] = quantile(taken, part) * 1e3
        row["requests_per_s"] = len(taken) / sum(taken)
        row["warm_p50_ms"], row["warm_p99_ms"] = quantile(warm, 0.5) * 1e3, quantile(warm, 0.99) * 1e3
        row["added_p50_ms"] = row["p50_ms"] - row["warm_p50_ms"]
        row["added_p99_ms"] = row["p99_ms"] - row["warm_p99_ms"]
        for key, part_of in (("thawed_p50_ms", self.found), ("frozen_p50_ms", self.behind)):
            row[key] = spread(part_of)[0] * 1e3 if part_of else None
        return {**row, "errors": self.errors, "n": len(taken)}


def _preload(server: Bench) -> bool:
    """Ask for it; not yet while what was off-loaded before still holds its bytes."""
    try:
        server.client.preload(NAMESPACE, "guest")
    except Conflict:
        return False
    return True


def _row(name: str, sandbox: str, clients: int, concurrency: int, samples: list[Sample]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "sandbox": sandbox if name in ("warm_noop", "gateway_noop") else "",
        "clients": clients,
    }
    if concurrency:
        row["concurrency"] = concurrency
    for key in ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "requests_per_s"):
        values = [sample[key] for sample in samples if sample[key] is not None]
        row[key] = spread(values)[0] if values else None
    values = [sample["p50_ms"] for sample in samples if sample["p50_ms"] is not None]
    row["p50_min_ms"], row["p50_max_ms"] = (min(values), max(values)) if values else (None, None)
    row["errors"] = sum(sample["errors"] for sample in samples)
    row["n"] = sum(sample["n"] for sample in samples)
    return row


def _show(report: Report, found: dict[tuple[str, int, int], list[Sample]], preloads: Preloads) -> None:
    lines: list[tuple[str, ...]] = []
    for (name, clients, concurrency), samples in sorted(found.items()):
        answered = [sample for sample in samples if sample["p50_ms"] is not None]
        at = f" (concurrency {concurrency})" if concurrency > 1 else ""
        errors = str(sum(sample["errors"] for sample in samples))
        if not answered:
            lines.append((name + at, str(clients), "-", "-", "-", errors))
            continue
        cells = [
            between(*spread([sample[key] for sample in answered]), digits)
            for key, digits in (("p50_ms", 3), ("p99_ms", 2), ("requests_per_s", 0))
        ]
        lines.append((name + at, str(clients), *cells, errors))
    looked, row = report.rows[-2:]
    figures = f"{looked['p50_ms']:.3f}", f"{looked['p99_ms']:.2f}", f"{looked['requests_per_s']:.0f}"
    lines.append((f"watched_noop (concurrency {looked['concurrency']})", "16", *figures, str(looked["errors"])))
    rate = f"{row['requests_per_s']:.0f}"
    lines.append(("preloaded_noop", "1", f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.2f}", rate, str(row["errors"])))
    said = (
        f"A pre-loaded start adds {row['added_p50_ms']:.3f} ms to a warm call's {row['warm_p50_ms']:.3f} "
        f"(medians; {row['added_p99_ms']:.2f} ms at p99; n = {row['n']})"
    )
    if row["thawed_p50_ms"] is not None and row["frozen_p50_ms"] is not None:
        said += f": {row['thawed_p50_ms']:.3f} ms as loaded, {row['frozen_p50_ms']:.3f} after its owner ran again."
    report.table(
        f"What a call costs, {report.machine['sandbox']} sandbox; median (min–max) over the rounds",
        ("name", "clients", "p50 ms", "p99 ms", "requests/s", "errors"),
        lines,
        [said, watched.said(looked), f"{cores(report.machine)}."],
    )
