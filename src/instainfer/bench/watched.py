"""What an open dashboard costs: the same load with a reader of the live feed and without, in turn.

The reader asks as the page does and takes every byte, and looks at none: what a browser makes of them is not the
server's cost. What the reader itself takes of a processor is said too. Beside the throughput stands the processor
time of the server per call, which says the same where the machine has other things to do.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any, Self
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped] # ships no types

from instainfer.bench import loadgen
from instainfer.bench.plan import Plan
from instainfer.bench.report import Report
from instainfer.bench.server import Bench, spread
from instainfer.errors import Unavailable

CLIENTS = 16
WAKE_S = 1.5  # its first events, which have a minute of the past to look up
DISCARDED = 500
FIGURES = ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "requests_per_s", "server_cpu_ms")

Sample = dict[str, Any]


class Reader:
    """Of the live feed of the server at `url`, in a thread, while the block lasts."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._socket = socket.create_connection((where.hostname or "", where.port or 80), timeout=30)
        self._socket.sendall(f"GET /instainfer/v1/live HTTP/1.1\r\nhost: {where.netloc}\r\n\r\n".encode())
        self.read = 0  # bytes
        self.events = 0
        self.seconds = 0.0
        self.cpu_s = 0.0
        self._thread = threading.Thread(target=self._take, name="a reader of the live feed", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _take(self) -> None:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while data := self._socket.recv(1 << 20):
                self.read += len(data)
                self.events += data.count(b"\nid: ") + data.startswith(b"id: ")
        self.seconds = time.monotonic() - began
        self.cpu_s = time.thread_time()


class Watched:
    """Rounds of a load that nobody looks at, one of twice the length that somebody does, and again one that nobody
    does: a server that gets slower or faster meanwhile does so for both."""

    def __init__(self) -> None:
        self.off: list[Sample] = []
        self.on: list[Sample] = []
        self.read = 0
        self.events = 0
        self.read_s = 0.0
        self.read_cpu_s = 0.0

    def run(self, server: Bench, function: str, body: bytes, plan: Plan, report: Report) -> None:
        for number in range(1, plan.rounds + 1):
            what = f"round {number} of {plan.rounds}: watched_noop"
            report.step(f"{what}, nobody looks")
            before = load(server, function, body, plan.watch_s / 2)
            report.step(f"{what}, somebody looks")
            self._watch(server, function, body, plan)
            report.step(f"{what}, nobody looks any more")
            time.sleep(plan.rest_s)
            self.off.append(_mean(before, load(server, function, body, plan.watch_s / 2)))

    def _watch(self, server: Bench, function: str, body: bytes, plan: Plan) -> None:
        with Reader(server.url) as reader:
            time.sleep(WAKE_S)
            self.on.append(load(server, function, body, plan.watch_s))
        if not reader.events:
            raise Unavailable("the live feed told nothing", hint="this is a fault: report it")
        self.read += reader.read
        self.events += reader.events
        self.read_s += reader.seconds
        self.read_cpu_s += reader.cpu_s

    def row(self, sandbox: str, concurrency: int) -> dict[str, Any]:
        on, off = self.on, self.off
        pairs = list(zip(off, on, strict=True))
        slower = [1.0 - with_["requests_per_s"] / without["requests_per_s"] for without, with_ in pairs]
        dearer = [with_["server_cpu_ms"] / without["server_cpu_ms"] - 1.0 for without, with_ in pairs]
        row: dict[str, Any] = {
            "name": "watched_noop",
            "sandbox": sandbox,
            "clients": CLIENTS,
            "concurrency": concurrency,
        }
        for key in FIGURES:
            row[key] = spread([one[key] for one in on])[0]
            row[f"unwatched_{key}"] = spread([one[key] for one in off])[0]
        row["cost_fraction"], row["cost_min_fraction"], row["cost_max_fraction"] = spread(slower)
        row["cpu_cost_fraction"], row["cpu_cost_min_fraction"], row["cpu_cost_max_fraction"] = spread(dearer)
        row["reader_cpu_fraction"] = self.read_cpu_s / self.read_s
        row["event_mb"] = self.read / self.events / 1e6
        row["errors"] = sum(one["errors"] for one in (*on, *off))
        row["n"] = sum(one["n"] for one in on)
        return row


def _mean(one: Sample, other: Sample) -> Sample:
    """Of two loads of the same length."""
    return {
        key: one[key] + other[key] if key in ("n", "errors") else (one[key] + other[key]) / 2
        for key in (*FIGURES, "n", "errors")
    }


def load(server: Bench, function: str, body: bytes, seconds: float) -> Sample:
    """`loadgen`'s result, and `server_cpu_ms` of each call."""
    process = psutil.Process(server.pid)
    before = process.cpu_times()
    sample = loadgen.spawn(
        server.address(function), clients=CLIENTS, seconds=seconds, discard=DISCARDED, body=body
    )
    after = process.cpu_times()
    spent_s = after.user + after.system - before.user - before.system
    if not sample["n"]:
        raise Unavailable("no call was answered", hint="see the server's log")
    sample["server_cpu_ms"] = spent_s * 1e3 / (sample["n"] + DISCARDED)
    return sample


def said(row: dict[str, Any]) -> str:
    return (
        f"An open dashboard costs {row['cost_fraction']:.1%} of the throughput "
        f"({row['cost_min_fraction']:.1%} to {row['cost_max_fraction']:.1%} over the rounds, of which each has "
        f"both) and {row['cpu_cost_fraction']:.1%} of the server's processor time per call "
        f"({row['cpu_cost_min_fraction']:.1%} to {row['cpu_cost_max_fraction']:.1%})."
    )
