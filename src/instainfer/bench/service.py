"""Throughput and latency at rising numbers of clients, beside what people would serve a model with instead.

The same function, which gives back what it got, on each system with its defaults and one worker process. Peers are
installed into a temporary environment; all run at once and are measured in turn, round after round.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from instainfer.bench import loadgen
from instainfer.bench.plan import Plan
from instainfer.bench.report import Report, between, cores
from instainfer.bench.server import NAMESPACE, package, serving, spread
from instainfer.errors import BuildFailed, Unavailable

CODE = "def handler(event):\n    return event\n"
BODY = b'{"n": 1}'
CLIENTS = (1, 16, 64, 256)
SECONDS = 5.0
INSTALL_S, START_S = 900.0, 120.0


class Peer(NamedTuple):
    requirement: str
    code: str
    command: tuple[str, ...]  # after the interpreter; {port} is filled in
    path: str


PEERS = {
    "litserve": Peer(
        "litserve",
        """
import sys
import litserve as ls

class Same(ls.LitAPI):
    def setup(self, device): pass
    def decode_request(self, request): return request
    def predict(self, x): return x
    def encode_response(self, output): return output

if __name__ == "__main__":
    server = ls.LitServer(Same(), accelerator="cpu")
    server.run(port=int(sys.argv[1]), generate_client_file=False, log_level="error")
""",
        ("service.py", "{port}"),
        "/predict",
    ),
    "bentoml": Peer(
        "bentoml",
        """
import bentoml

@bentoml.service(workers=1)
class Same:
    @bentoml.api
    def predict(self, n: int) -> dict:
        return {"n": n}
""",
        ("-m", "bentoml", "serve", "service:Same", "--port", "{port}"),
        "/predict",
    ),
}


def measure(plan: Plan, report: Report) -> None:
    """Adds a row per system and number of clients; medians over the rounds."""
    rounds = min(plan.rounds, 5)
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="instainfer-peers-") as directory, ExitStack() as stack:
        python = environment(Path(directory), report)
        server = stack.enter_context(serving("--memory", "1GB"))
        report.machine["sandbox"] = server.sandbox
        server.deploy("noop", package({"main.py": CODE}), {"memory": "128MB", "concurrency": 16})
        server.client.pin(NAMESPACE, "noop")
        addresses = {"instainfer": server.address("noop")}
        for name, peer in PEERS.items():
            addresses[name] = stack.enter_context(running(Path(directory) / name, python, peer))
        report.steps(rounds * len(CLIENTS) * len(addresses))
        for number in range(1, rounds + 1):
            for clients in CLIENTS:
                for name, address in addresses.items():
                    report.step(f"round {number} of {rounds}: {name}, {clients} clients")
                    sample = loadgen.spawn(
                        address, clients=clients, seconds=SECONDS, discard=2 * clients + 50, body=BODY
                    )
                    found.setdefault((name, clients), []).append(sample)
    for (name, clients), samples in found.items():
        row: dict[str, Any] = {"system": name, "clients": clients}
        for key in ("p50_ms", "p99_ms", "requests_per_s"):
            values = [sample[key] for sample in samples if sample[key] is not None]
            row[key] = spread(values)[0] if values else None
        row["errors"] = sum(sample["errors"] for sample in samples)
        row["n"] = sum(sample["n"] for sample in samples)
        report.rows.append(row)
    _show(report, found)


def environment(directory: Path, report: Report) -> Path:
    """The interpreter of one with the peers in it. Raises BuildFailed."""
    report.say(f"installing {', '.join(PEERS)}")
    place = directory / "environment"
    python = place / "bin" / "python"
    commands = (
        [sys.executable, "-m", "venv", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", *(peer.requirement for peer in PEERS.values())],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if done.returncode:
            raise BuildFailed("the peers cannot be installed", detail=done.stderr[-4000:])
    return python


@contextmanager
def running(directory: Path, python: Path, peer: Peer) -> Iterator[str]:
    """The address of one that answers; it and its workers end with the context."""
    directory.mkdir()
    (directory / "service.py").write_text(peer.code)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python), *(part.format(port=port) for part in peer.command)]
    quiet = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(directory / "home")}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _until_it_listens(process, port, directory / "log")
        yield f"http://127.0.0.1:{port}{peer.path}"
    finally:
        _end(process)


def _until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise Unavailable("a peer does not answer", detail=log.read_text(errors="replace")[-4000:])


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (15, 9):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _show(report: Report, found: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    lines = []
    for (name, clients), samples in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        answered = [sample for sample in samples if sample["p50_ms"] is not None]
        cells = [
            between(*spread([sample[key] for sample in answered]), digits) if answered else "-"
            for key, digits in (("p50_ms", 2), ("p99_ms", 2), ("requests_per_s", 0))
        ]
        lines.append((name, str(clients), *cells, str(sum(sample["errors"] for sample in samples))))
    report.table(
        "A function that gives back what it got; median (min-max) over the rounds",
        ("system", "clients", "p50 ms", "p99 ms", "requests/s", "errors"),
        lines,
        [f"{cores(report.machine)}."],
    )
