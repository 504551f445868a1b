"""Kill parts of a loaded server at random (instances, managers, zygotes, builders, the database, the server), fill
its disk, make a function's loads hang: nobody hangs, nobody gets a wrong answer, nothing is left behind.

Runs for CHAOS_SECONDS (30 by default; `make chaos` takes ten minutes) from the seed CHAOS_SEED (random by
default). Both are printed: `CHAOS_SEED=… CHAOS_SECONDS=300 pytest -s tests/chaos` deals the same blows.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from instainfer.client import PREFIX, Client
from instainfer.errors import InstaInferError
from tests.chaos.disk import filled, small_disk
from tests.chaos.sources import sources
from tests.contract.postgres import Postgres, running
from tests.live.server_helpers import ECHO, ROOT, SANDBOX, Server, alive, eventually, kill, package

SECONDS = float(os.environ.get("CHAOS_SECONDS", "30"))
SEED = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(1 << 32)))
CLIENTS = 8
TIMEOUT_S = 3.0  # of a function
LOAD_S = 5.0
QUEUE_S = 10.0
#: A request waits, loads and runs within this, whatever happens to it; what lasts longer hangs.
LIMIT_S = QUEUE_S + LOAD_S + TIMEOUT_S + 12.0
SERVER_EVERY_S = 20.0
#: Only root can give the data directory a disk of its own to fill.
BLOWS = [
    *["instance"] * 6, *["manager"] * 2, *["builder"] * 2, "database", "zygote", "load", *["disk"] * ROOT,
]  # fmt: skip
STATUSES = {200, 502, 503, 504}

FUNCTIONS = {
    "echo": "def handler(event):\n    return event\n",
    "slow": "import time\n\ndef handler(event):\n    time.sleep(0.15)\n    return event\n",
    "loads": "import time\ntime.sleep(0.4)\n\ndef handler(event):\n    return event\n",
    "crash": "import os\n\ndef handler(event):\n    if event['n'] % 5 == 0: os.abort()\n    return event\n",
    "hangs": "import os, time\nif os.path.exists('hang'): time.sleep(1000)\n" + ECHO,
    "forked": "import decimal, http.server, sqlite3, unittest.mock, xmlrpc.client\n" + ECHO,
    "stuck": "def handler(event):\n    while event['n'] % 20 == 0: pass\n    return event\n",
}
MEMORY = {"echo": "128MB", "slow": "48MB", "loads": "48MB", "crash": "48MB", "stuck": "48MB"} | {
    "hangs": "48MB",
    "forked": "64MB",
}


class Load:
    """Threads that call functions until told to stop, and what they were answered."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(n,), daemon=True) for n in range(CLIENTS)]
        self.tally: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.hanging: dict[int, tuple[str, float]] = {}
        self.longest = 0.0
        self.activations: Counter[str] = Counter()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT_S + 10)
        assert not [thread for thread in self._threads if thread.is_alive()], f"requests hang: {self.hanging}"

    def _client(self, number: int) -> None:
        rng = random.Random(f"{SEED}-{number}")
        sent = 0
        with httpx.Client(timeout=LIMIT_S + 5, trust_env=False) as http:
            while not self._stop.is_set():
                url = self._server.url
                if not url:
                    self._stop.wait(0.02)  # it is down and about to be started again
                    continue
                sent += 1
                name = rng.choice(sorted(FUNCTIONS))
                nonce = {"client": number, "n": sent, "nonce": rng.getrandbits(64)}
                self.hanging[number] = (name, time.monotonic())
                try:
                    outcome = self._call(http, f"{url}/f/chaos/{name}", name, nonce)
                except httpx.ReadTimeout:
                    outcome = f"{name}: hung"
                    self._complain(f"{name} {nonce}: no answer in {LIMIT_S + 5} s")
                except httpx.TransportError:
                    outcome = "server: connection lost"
                name, began = self.hanging.pop(number)
                with self._lock:
                    self.tally[outcome] += 1
                    self.longest = max(self.longest, time.monotonic() - began)

    def _call(self, http: httpx.Client, url: str, name: str, nonce: dict[str, int]) -> str:
        response = http.post(url, json=nonce)
        activation = response.headers.get("x-instainfer-activation", "")
        with self._lock:
            self.activations[activation] += bool(activation)
        if response.status_code == 200:
            if response.json() != nonce:
                self._complain(f"{name} {nonce}: answered {response.text[:200]}")
            return f"{name}: {response.headers['x-instainfer-start']}"
        if response.status_code not in STATUSES:
            self._complain(f"{name} {nonce}: {response.status_code} {response.text[:300]}")
            return f"{name}: status {response.status_code}"
        kind = str(json.loads(response.content)["type"]).rpartition(":")[2]
        if name in ("echo", "slow", "loads", "forked") and kind not in (
            "instance_crashed",
            "unavailable",
            "overloaded",
        ):
            self._complain(f"{name} {nonce}: {response.text[:300]}")
        return f"{name}: {kind}"

    def _complain(self, text: str) -> None:
        with self._lock:
            self.wrong.append(text)


class Durable:
    """Threads that have requests committed under keys of their own, and insist until each is accepted. `accepted`:
    key -> (function, nonce, ids that were told of it)."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(n,), daemon=True) for n in range(2)]
        self.accepted: dict[str, tuple[str, dict[str, int], set[str]]] = {}
        self.refused: Counter[int] = Counter()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()

    def _client(self, number: int) -> None:
        rng = random.Random(f"{SEED}-durable-{number}")
        sent = 0
        with httpx.Client(timeout=LIMIT_S, trust_env=False) as http:
            while not self._stop.wait(0.05):
                sent += 1
                name, key = rng.choice(["echo", "slow", "loads"]), f"{number}-{sent}"
                nonce = {"durable": number, "n": sent, "nonce": rng.getrandbits(64)}
                for _ in range(rng.choice([1, 1, 2])):  # some are sent twice: one answer all the same
                    self._insist(http, name, key, nonce)

    def _insist(self, http: httpx.Client, name: str, key: str, nonce: dict[str, int]) -> None:
        headers = {"prefer": "respond-async", "idempotency-key": key}
        while not self._stop.is_set():
            url = self._server.url
            try:
                response = http.post(f"{url}/f/chaos/{name}", json=nonce, headers=headers) if url else None
            except httpx.TransportError:
                response = None
            if response is not None and response.status_code == 202:
                self.accepted.setdefault(key, (name, nonce, set()))[2].add(response.json()["id"])
                return
            if response is not None:
                self.refused[response.status_code] += 1
            self._stop.wait(0.02)

    def check(self) -> Counter[str]:
        """Every one that was accepted is over, once, and has its own answer or is a dead letter."""
        ends: Counter[str] = Counter()
        for key, (name, nonce, ids) in self.accepted.items():
            assert len(ids) == 1, f"{key} became {ids}"
            (id,) = ids
            eventually(partial(self._over, id), seconds=60)
            ends[self._server.client.job(id)["state"]] += 1
            response = self._server.http.get(f"{PREFIX}/jobs/{id}/result")
            if response.status_code == 200:
                assert response.json() == nonce, f"{key}: {response.text}"
            else:
                kind = response.json()["type"].rpartition(":")[2]
                assert kind in ("instance_crashed", "unavailable", "overloaded", "load_failed", "timed_out"), (
                    response.text
                )
            again = self._server.http.post(f"/f/chaos/{name}", json=nonce, headers={"idempotency-key": key})
            assert (again.status_code, again.content) == (response.status_code, response.content), key
        return ends

    def _over(self, id: str) -> bool:
        return self._server.client.job(id)["state"] in ("done", "dead")


class Builds:
    """A thread that has an environment built, over and over: each is deployed, or has failed and says of
    what."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        data = package(self._server.directory.parent, "import slowly_built\n" + ECHO)
        with sources() as url:
            for number in itertools.count():
                if self._stop.wait(0.2):
                    return
                wanted: dict[str, object] = {
                    "memory": "48MB",
                    "requirements": [f"slowly-built @ {url}/{number}/slowly_built-1.0.tar.gz"],
                }
                try:
                    end = self._build(data, wanted)
                except (httpx.TransportError, InstaInferError, json.JSONDecodeError) as error:
                    end = type(error).__name__  # the server went away
                self.ends[end] += 1

    def _build(self, data: bytes, wanted: dict[str, object]) -> str:
        if not self._server.url:
            return "down"
        with Client(self._server.url) as client:
            for event in client.deploy("chaos", "built", data, wanted):
                last = event
                if self._stop.is_set():
                    return "left"
        if last["event"] == "deployed":
            return "deployed"
        kind = str(last["problem"]["type"]).rpartition(":")[2]
        if kind not in (
            "build_failed",
            "unavailable",
            "load_failed",
            "instance_crashed",
            "overloaded",
            "timed_out",
        ):
            self.wrong.append(json.dumps(last)[:1000])
        return kind


def blows(rng: random.Random) -> Iterator[tuple[float, str]]:
    """(seconds to wait, whom to kill), for ever."""
    since = 0.0
    while True:
        pause = rng.uniform(0.1, 1.2)
        since += pause
        if since >= SERVER_EVERY_S:
            since = 0.0
            yield pause, "server"
        else:
            yield pause, rng.choice(BLOWS)


def strike(server: Server, database: Postgres, rng: random.Random, target: str) -> str:
    """Kill -9 one of them, or worse; what was hit."""
    if target == "disk":
        with filled(server.directory):
            threading.Event().wait(rng.uniform(0.2, 1.0))  # it lives with that for a while
        return target
    if target == "load":
        flag = server.package("chaos", "hangs") / "hang"
        if flag.exists():
            flag.unlink()
            return "nobody"
        flag.touch(0o644)
        for process in server.instances("hangs"):
            kill(process)
        return target
    if target == "database":
        database.kill()
        database.start()
        return target
    if target == "server":
        server.kill()
        server.start()
        return target
    if target == "builder":
        processes = [process for name in ("uv", "pip") for process in server.named(f"/{name}")]
    elif target == "zygote":
        processes = server.named("zygote")
    else:
        processes = server.named("boot.py" if target == "instance" else "manager.py")
    if not processes:
        return "nobody"
    victim = rng.choice(sorted(processes, key=lambda process: process.pid))
    kill(victim)
    return target


def tracebacks(errors: str) -> list[str]:
    """Those in a log, each with the line before and its first lines."""
    lines = errors.splitlines()
    return ["\n".join(lines[max(0, n - 1) : n + 40]) for n, line in enumerate(lines) if "Traceback" in line]


@contextlib.contextmanager
def telling(log: Path) -> Iterator[None]:
    """Where the test fails, whatever of, what the server said: where all of it is, and its tracebacks."""
    try:
        yield
    except BaseException:
        told = tracebacks(log.read_text()) if log.exists() else []
        print(f"the server's log: {log}, with {len(told)} tracebacks", *told, sep="\n---\n")
        raise


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 240)
def test_chaos(tmp_path: Path) -> None:
    log = tmp_path / "server.log"  # not on the small disk, which is full at times and goes with the test
    with telling(log):
        chaos(tmp_path, log)


def chaos(tmp_path: Path, log: Path) -> None:
    print(f"\nCHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:g} ({SANDBOX} sandbox)")
    rng = random.Random(SEED)
    hits: Counter[str] = Counter()
    limits = {
        "INSTAINFER_LIMITS__LOAD_S": f"{LOAD_S:g}",
        "INSTAINFER_LIMITS__QUEUE_S": f"{QUEUE_S:g}",
        "INSTAINFER_NODE__LOAD_SLOTS": "2",
    }
    # room for about half of the functions' containers: they are evicted, and live as guests of each other
    with (
        running() as database,
        small_disk(tmp_path / "disk", "192m") as disk,
        Server(
            disk, "--memory", "240MB", variables={**limits, "INSTAINFER_STORE__URL": database.url}, log=log
        ) as server,
    ):
        for name, source in FUNCTIONS.items():
            server.deploy("chaos", name, source, memory=MEMORY[name], timeout=f"{TIMEOUT_S:g}s")
        load, durable, builds = Load(server), Durable(server), Builds(server)
        load.start()
        durable.start()
        builds.start()
        end = time.monotonic() + SECONDS
        try:
            for pause, target in blows(rng):
                threading.Event().wait(pause)  # the blows are dealt over time: that is the experiment
                if time.monotonic() > end:
                    break
                hits[strike(server, database, rng, target)] += 1
        finally:
            load.stop()
            durable.stop()
            builds.stop()
        (server.package("chaos", "hangs") / "hang").unlink(missing_ok=True)
        ends = durable.check()
        for name in FUNCTIONS:
            answers = [server.call("chaos", name, {"n": 1}).status_code for _ in range(2)]
            assert answers[-1] == 200, f"{name} does not come back: {answers}"
        assert server.http.get("/healthz").status_code == 200
        kept = Counter(one["id"] for one in server.client.activations(namespace="chaos", limit=2000))
        parts = [process for process in server.family() if alive(process)]
        errors = server.errors()
    total = sum(load.tally.values())
    print(f"{total} requests, the longest {load.longest:.1f} s; killed: {dict(sorted(hits.items()))}")
    print(f"builds: {dict(sorted(builds.ends.items()))}")
    print(f"{len(durable.accepted)} accepted for later: {dict(ends)}; refused {dict(durable.refused)}")
    for outcome, count in sorted(load.tally.items()):
        print(f"{count:7d}  {outcome}")
    assert load.wrong == []
    assert builds.wrong == []
    assert load.longest < LIMIT_S
    assert ends["done"] > 0
    assert max(load.activations.values()) == 1, "a request was answered twice"
    assert not kept or max(kept.values()) == 1
    assert not [process for process in parts if alive(process)]
    told = tracebacks(errors)
    assert not told, "\n---\n".join(told)
    assert sum(count for outcome, count in load.tally.items() if outcome.startswith("echo: ")) > 0
