"""Real agents beside a server: what the way to another node adds to a call, and how soon what a node that went had
loaded is loaded elsewhere."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from instainfer import outliving
from instainfer.agent import process
from instainfer.bench.http import Caller
from instainfer.bench.loadgen import quantile
from instainfer.bench.report import Report
from instainfer.bench.server import NAMESPACE, Bench, package, serving
from instainfer.errors import Unavailable

CODE = "def handler(event):\n    return event\n"
BODY = b'{"n": 1}'
KEY = "INSTAINFER_CLUSTER__KEY"
#: An agent that does not answer is lost after this, three seconds by default; Ray's health checks play no part.
TUNED = {"INSTAINFER_CLUSTER__LOST_S": "2", "INSTAINFER_NODE__ZYGOTE_MEMORY": "0"}
ROUNDS, CALLS = 20, 100
LOSSES, RECOVER_S = 5, 20.0
REST_S, POLL_S = 1.0, 0.05
AFFECTED = 6  # functions, on three nodes
NODES = ("a", "b", "c")
MEMORY = "420MB"  # of each: one wide container, whose idle memory is for others, and two small ones
WIDE, SMALL = "256MB", "64MB"


def measure(report: Report, *, quick: bool = False) -> None:
    """Adds the rows `remote_hop` and, where the sandbox lets functions share a container, `node_loss_recovery`."""
    rounds, losses = (2, 1) if quick else (ROUNDS, LOSSES)
    report.rows.append(hop(report, rounds))
    row = recovery(report, losses)
    if row is not None:
        report.rows.append(row)


# ---- the way to another node


def hop(report: Report, rounds: int) -> dict[str, Any]:
    """The same warm no-op of a server whose agent is in its process, and of one whose agent is another process on
    this machine that it reaches by HTTP: rounds of calls to the one and to the other in turn, one client."""
    taken: dict[str, list[float]] = {"embedded": [], "remote": []}
    with ExitStack() as stack:
        servers = {"embedded": stack.enter_context(serving("--memory", "300MB"))}
        address, variables = stack.enter_context(agents("a", memory="300MB")).joined()
        servers["remote"] = stack.enter_context(serving("--cluster", address, variables=variables))
        callers: dict[str, Caller] = {}
        for name, server in servers.items():
            server.deploy("noop", package({"main.py": CODE}), {"memory": "128MB"})
            server.client.pin(NAMESPACE, "noop")
            callers[name] = stack.enter_context(Caller(server.address("noop"), BODY))
        for number in range(rounds + 1):
            report.say(f"remote hop, round {number} of {rounds}")
            for name in sorted(callers, reverse=bool(number % 2)):
                seconds = [_called(callers[name]) for _ in range(CALLS)]
                if number:  # the first is for warming up
                    taken[name] += seconds
    found = {name: sorted(seconds) for name, seconds in taken.items()}
    row: dict[str, Any] = {"name": "remote_hop", "unit": "ms"}
    for key, part in (("p50_ms", 0.5), ("p99_ms", 0.99)):
        for name, seconds in found.items():
            row[f"{name}_{key}"] = quantile(seconds, part) * 1e3
        row[key] = row[f"remote_{key}"] - row[f"embedded_{key}"]
    return {**row, "value": row["p50_ms"], "n": len(found["remote"])}


def _called(caller: Caller) -> float:
    seconds, reply = caller.call()
    if reply.status != 200:
        raise Unavailable(f"the no-op was answered with {reply.status}", hint="see the server's log")
    return seconds


# ---- a node that goes


def recovery(report: Report, losses: int) -> dict[str, Any] | None:
    """Seconds from the end of an agent, killed with all that it has, until each function that was loaded there is
    loaded on another node, without anybody calling it; of some losses, one after the other."""
    taken: list[float] = []
    affected = failed = 0
    with agents(*NODES, memory=MEMORY) as there:
        address, variables = there.joined()
        with serving("--cluster", address, variables=variables) as server:
            wide = [f"wide{number}" for number in range(len(NODES))]
            small = [f"small{number}" for number in range(AFFECTED)]
            for name in (*wide, *small):
                memory = WIDE if name in wide else SMALL
                server.deploy(name, package({"main.py": CODE}), {"memory": memory})
            if not all(one["guests"] for one in server.client.nodes()):
                return None  # nothing is loaded but into containers of its own, and there are none elsewhere
            for number in range(losses):
                report.say(f"a node is lost, {number + 1} of {losses}")
                _everybody(server, lambda: all(one["state"] == "joined" for one in server.client.nodes()))
                for name in (*wide, *small, *small):
                    _call(server, name)
                _rest(server)
                victim = max(NODES, key=lambda node: len(_loaded(server, small, but="", only=node)))
                gone = _loaded(server, small, but="", only=victim) - _loaded(server, small, but=victim)
                began = time.monotonic()
                there.kill(victim)
                try:
                    _everybody(server, lambda: gone <= _loaded(server, small, but=victim))  # noqa: B023 # called here
                    taken.append(time.monotonic() - began)
                    affected += len(gone)
                except Unavailable:
                    failed += 1
                there.again(victim)
    if not taken:
        raise Unavailable("what a lost node had loaded was never loaded elsewhere", hint="see the server's log")
    taken.sort()
    return {
        "name": "node_loss_recovery",
        "value": quantile(taken, 0.5),
        "unit": "s",
        "max_s": taken[-1],
        "functions": affected,
        "failed": failed,
        "lost_s": float(TUNED["INSTAINFER_CLUSTER__LOST_S"]),
        "n": len(taken),
    }


def _everybody(server: Bench, true: Any) -> None:
    server.until("what was to come of the nodes", true, RECOVER_S)


def _rest(server: Bench) -> None:
    """Until nothing has been loaded or moved for a second."""
    since, before = time.monotonic(), None
    while time.monotonic() < since + REST_S:
        there = server.client.containers()["containers"]
        now = sorted((one["node"], one["id"], sorted(each["id"] for each in one["instances"])) for one in there)
        if now != before:
            since, before = time.monotonic(), now
        time.sleep(POLL_S)


def _call(server: Bench, name: str) -> None:
    with Caller(server.address(name), BODY) as caller:
        _called(caller)


def _loaded(server: Bench, names: list[str], *, but: str, only: str = "") -> set[str]:
    """Those of these functions that are loaded on any node but this one, or on this one only."""
    wanted = {f"{NAMESPACE}/{name}" for name in names}
    return {
        instance["function"]
        for container in server.client.containers()["containers"]
        for instance in container["instances"]
        if container["node"] != but and only in ("", container["node"])
        if instance["function"] in wanted and instance["level"] == "loaded" and instance["state"] != "ending"
    }


# ---- agents


class Agents:
    """Processes of their own, each with a data directory."""

    def __init__(self, directory: Path, nodes: tuple[str, ...], memory: str) -> None:
        self._directory, self._memory = directory, memory
        kept = {k: v for k, v in os.environ.items() if not k.startswith("INSTAINFER_") or "_SANDBOX__" in k}
        self._variables = {**TUNED, KEY: secrets.token_urlsafe(36)}
        self._environ = {**kept, **self._variables}
        self._about = {node: self._start(node, "127.0.0.1:0") for node in nodes}

    def joined(self) -> tuple[str, dict[str, str]]:
        """What a server is given to have them as its nodes."""
        return ",".join(f"{node}={about.url}" for node, about in self._about.items()), self._variables

    def kill(self, node: str) -> None:
        os.kill(self._about[node].pid, signal.SIGKILL)

    def again(self, node: str) -> None:
        """Start it anew where it was."""
        self._about[node] = self._start(node, self._about[node].url.removeprefix("http://"))

    def close(self) -> None:
        for node in self._about:
            outliving.stop(self._directory / node)

    def _start(self, node: str, listen: str) -> process.About:
        flags = ["--node", node, "--listen", listen, "--memory", self._memory]
        return process.ensure(self._directory / node, flags, self._environ)


@contextmanager
def agents(*nodes: str, memory: str) -> Iterator[Agents]:
    with tempfile.TemporaryDirectory(prefix="instainfer-bench-") as directory:
        made = Agents(Path(directory), nodes, memory)
        try:
            yield made
        finally:
            made.close()
