"""A cluster of Ray on three hosts of this machine, under load, and what becomes of that when parts of it go.

One cluster lives through all of it, in the order of the tests: the server on `a`, containers on `b` and `c`. Every
answer is checked when it comes; functions leave marks while they run, which tell whether two runs of one request
overlapped; in the end every request that was accepted has its one answer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from psutil import Process, process_iter  # type: ignore[import-untyped] # it ships no types

from instainfer import trial
from instainfer.client import PREFIX, Client
from tests.chaos.hosts import MARKS, Host, Lab, groups
from tests.live.server_helpers import SANDBOX, Server, eventually, gone, kill

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]

GCS, PORT = 6379, 3233
LOST_S = 2.0
#: As service managers and Kubernetes do. A raylet that Ray has given up ends when it hears of that.
AGAIN = ("sh", "-c", 'while :; do "$@"; sleep 0.5; done', "again")
KEYED, LATER, PINNED = ("f0", "f1"), "f2", "pinned"
FUNCTION = f"""
import os
import secrets
import time

MARKS = os.open("{MARKS}/marks", os.O_WRONLY)
HOST = open("{MARKS}/host").read()

def handler(event):
    run, key = secrets.token_hex(8), event["key"]

    def mark(what):
        os.write(MARKS, f"{{what}} {{key}} {{run}}\\n".encode())

    mark("begin")
    until = time.monotonic() + event["s"]
    while time.monotonic() < until:
        time.sleep(0.01)
        mark("goes-on")
    mark("end")
    return {{"key": key, "run": run, "host": HOST, "loaded": LOADED}}

LOADED = time.time()
"""


class Marks:
    """What functions said while they ran, in the order in which they said it."""

    def __init__(self, hosts: Iterable[Host]) -> None:
        fifo: Path | None = None
        for host in hosts:
            (host.marks / "host").write_text(host.name)
            if fifo is None:
                fifo = host.marks / "marks"
                os.mkfifo(fifo)
                fifo.chmod(0o666)  # a pipe can be written to where the file system cannot
            else:
                (host.marks / "marks").hardlink_to(fifo)
        assert fifo is not None
        self._fifo = os.open(fifo, os.O_RDWR)
        self._lines: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        rest = ""
        while True:
            text = rest + os.read(self._fifo, 1 << 16).decode()
            *lines, rest = text.split("\n")
            self._lines += lines
            if lines and lines[-1] == "over":
                return

    def all(self) -> list[tuple[str, str, str]]:
        """(what, key, run), all that were written before."""
        os.write(self._fifo, b"over\n")
        self._reading.join(30)
        os.close(self._fifo)
        return [(what, key, run) for what, key, run in (line.split() for line in self._lines if line != "over")]


class Work:
    """Clients that send one request after the other, each until it is answered (or accepted, where the answer is
    to come later), however often the server is away meanwhile."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._insist, args=(name,), daemon=True) for name in KEYED]
        self._threads.append(threading.Thread(target=self._hand_in, daemon=True))
        self.answers: dict[str, set[bytes]] = defaultdict(set)
        self.jobs: dict[str, set[str]] = defaultdict(set)
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []
        for thread in self._threads:
            thread.start()

    def _insist(self, name: str) -> None:
        with self._client() as http:
            n = 0
            while not self._stop.is_set():
                n += 1
                for _ in range(2 if n % 5 == 0 else 1):  # whoever asks again hears the same
                    answer = self._until(200, http, name, f"{name}-{n}", {})
                    if answer is not None:
                        self.answers[f"{name}-{n}"].add(answer.content)

    def _hand_in(self) -> None:
        with self._client() as http:
            n = 0
            while not self._stop.wait(0.1):
                n += 1
                key = f"{LATER}-{n}"
                answer = self._until(202, http, LATER, key, {"prefer": "respond-async"})
                if answer is not None:
                    self.jobs[key].add(answer.json()["id"])

    def _until(
        self, status: int, http: httpx.Client, name: str, key: str, headers: dict[str, str]
    ) -> httpx.Response | None:
        while not self._stop.is_set():
            answer = self.ask(http, name, key, headers)
            if answer is not None and answer.status_code == status:
                return answer
            self._stop.wait(0.05)
        return None

    def ask(self, http: httpx.Client, name: str, key: str, headers: dict[str, str]) -> httpx.Response | None:
        """None where there was no server; what it answers is right, or says that it can be tried again."""
        try:
            answer = http.post(
                f"/f/ns/{name}", json={"key": key, "s": 0.05}, headers={"idempotency-key": key, **headers}
            )
        except httpx.TransportError as error:
            self.refused[type(error).__name__] += 1
            return None
        if answer.status_code == 200:
            if answer.json()["key"] != key:
                self.wrong.append(f"{key}: {answer.text}")
        elif answer.status_code != 202:
            self.refused[answer.json()["type"].rpartition(":")[2]] += 1
            if answer.status_code not in (429, 503):
                self.wrong.append(f"{key}: {answer.status_code} {answer.text}")
        return answer

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._server.http.base_url, headers=self._server.http.headers, timeout=60)

    def more(self, count: int = 10) -> None:
        """Let so many further requests of every function be answered."""
        before = {name: self._count(name) for name in KEYED}
        eventually(
            lambda: all(self._count(name) >= before[name] + count for name in KEYED) or self.wrong,
            what=f"further answers: {dict(self.refused)}",
        )
        assert not self.wrong, "\n".join(self.wrong)

    def _count(self, name: str) -> int:
        return sum(key.startswith(f"{name}-") for key in list(self.answers))

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive()


class Cluster:
    """Ray's head and the server on `a`, on which no containers are; raylets on `b` and `c`. On `b` the agent is
    started beside Ray, on `c` by it."""

    def __init__(self) -> None:
        self.lab = Lab("a", "b", "c")
        self.a, self.b, self.c = self.lab.hosts.values()
        self.here = self.lab.here
        self.marks = Marks(self.lab.hosts.values())
        self.rays: dict[str, subprocess.Popen[bytes]] = {}
        token = self.lab.base / "ray.token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_urlsafe(36))
        self.environ = trial.environment(self.lab.base) | {
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(self.here / "gcs"),
            "INSTAINFER_SERVER__API_KEY": "a key of the tests",
            "INSTAINFER_CLUSTER__LOST_S": str(LOST_S),
            "INSTAINFER_LIMITS__ATTEMPTS": "50",
            "INSTAINFER_CLUSTER__KEY": secrets.token_urlsafe(36),
            "INSTAINFER_ENVIRONMENTS__ROOT": str(self.here / "server" / "environments"),
        }
        self.url = f"http://{self.a.ip}:{PORT}"
        self.server = Server(self.lab.base)
        self.server.url = self.url
        self.server.client = Client(self.url, "a key of the tests")
        self.server.http = httpx.Client(
            base_url=self.url, headers={"authorization": "Bearer a key of the tests"}, timeout=60, trust_env=False
        )

    def start(self) -> None:
        self.ray(self.a)
        self.apart(self.b)
        self.ray(self.b, wait=False)
        self.ray(self.c)
        self.up(self.b)
        self.serve()
        self.joined()

    def ray(self, host: Host, *, wait: bool = True) -> None:
        resources = {"no_containers": 1} if host is self.a else {"warm_mb": 300}
        where = (
            ["--head", f"--port={GCS}", "--include-dashboard=false", f"--temp-dir={self.here / 'r'}"]
            if host is self.a
            else [f"--address={self.a.ip}:{GCS}"]
        )
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={host.ip}"),
            *where,
            *("--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"),
            *("--min-worker-port=0", "--max-worker-port=0", "--include-log-monitor=false"),
            f"--labels=instainfer/host={host.name}",
            f"--resources={json.dumps(resources)}",
        ]
        log = self._log(host)
        log.write_text("")
        apart = {"INSTAINFER_AGENT_APART": "1"} if host is self.b else {}
        self.rays[host.name] = host.run([*AGAIN, *command], self.environ | apart, log)
        if wait:
            self.up(host)

    def apart(self, host: Host) -> None:
        """Its agent by itself, as in a pod (deploy/kuberay): Ray only has to find it."""
        data = self.here / "server" / "agents" / host.name
        command = [
            *(sys.executable, "-m", "instainfer.cli", "agent", "--node", host.name, "--listen", f"{host.ip}:3234"),
            *("--data-dir", str(data), "--memory", "300MB", "--sandbox", SANDBOX),
        ]
        host.run([*AGAIN, *command], self.environ, self.lab.base / f"agent-{host.name}.log")

    def up(self, host: Host) -> None:
        started, log = self.rays[host.name], self._log(host)
        eventually(
            lambda: started.poll() is not None or "Ray runtime started" in log.read_text(errors="replace"),
            what=f"Ray on {host.name}",
        )
        assert started.poll() is None, log.read_text(errors="replace")

    def _log(self, host: Host) -> Path:
        return self.lab.base / f"ray-{host.name}.log"

    @property
    def log(self) -> Path:
        return self.lab.base / "server.log"

    def serve(self) -> None:
        command = [
            *(sys.executable, "-m", "instainfer.cli", "serve", "--cluster", f"ray://{self.a.ip}:{GCS}"),
            *("--host", self.a.ip, "--port", str(PORT), "--data-dir", str(self.here / "server")),
            *("--sandbox", SANDBOX),
        ]
        before = len(self.log.read_text()) if self.log.exists() else 0
        started = self.a.run(command, self.environ, self.log)
        eventually(
            lambda: started.poll() is not None or "instainfer serves at" in self.log.read_text()[before:],
            what="a server",
        )
        assert started.poll() is None, self.log.read_text()[-2000:]

    def only(self, host: Host, *words: str) -> Process:
        (found,) = host.processes(*words)
        return found

    def agent(self, host: Host) -> Process:
        found = self.agents(host)
        assert len(found) == 1, found
        return found[0]

    def agents(self, host: Host) -> list[Process]:
        return [one for one in host.processes("instainfer.cli agent", str(self.here)) if one.name() != "sh"]

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {one["node"]: one for one in self.server.client.nodes()}

    def lost(self, host: Host) -> bool:
        """It has not joined any more; once Ray has given it up, too, it is not even told of."""
        return bool(self.nodes().get(host.name, {"state": "joining"})["state"] == "joining")

    def joined(self, *, ray: bool = False) -> None:
        """Both have joined, and if that is asked, Ray hears of them."""

        def both() -> bool:
            nodes = self.nodes()
            alive = all(
                one["state"] == "joined" and (not ray or one["cluster"] == "alive") for one in nodes.values()
            )
            return alive and len(nodes) == 2

        eventually(both, what=f"both nodes: {self.nodes()}")

    # ---- its end

    def stop(self) -> list[str]:
        """End the server and the agents as one does. What is left of them and should not be."""
        self.only(self.a, "instainfer.cli serve").terminate()
        eventually(lambda: not self.a.processes("-m instainfer"), what="the server's end")
        for again in self.b.processes("agent --node b", "again"):
            again.kill()
        for host in (self.b, self.c):
            data = self.here / "server" / "agents" / host.name
            command = [sys.executable, "-m", "instainfer.cli", "agent", "--stop", "--data-dir", str(data)]
            stopping = host.run(command, self.environ, self.log)
            assert stopping.wait(60) == 0, self.log.read_text()[-2000:]
        found: list[str] = []

        def none() -> bool:
            found[:] = self.leftovers()
            return not found

        with contextlib.suppress(AssertionError):
            eventually(none, seconds=20)
        return found

    def leftovers(self) -> list[str]:
        states = [path.read_text().strip() for path in self.lab.base.glob("disks/*/server/**/sandbox/owner")]
        assert len(states) == 2, "each agent has had a sandbox"
        hosts = self.lab.hosts.values()
        found = [f"{one.pid} {one.cmdline()}" for host in hosts for one in host.processes("-m instainfer")]
        for one in process_iter():
            with contextlib.suppress(Exception):
                if any(state in one.environ().get("INSTAINFER_SANDBOX", "") for state in states):
                    found.append(f"{one.pid} {one.cmdline()}")
        found += map(str, groups(self.lab.base))
        for host in hosts:
            mounts = Path(f"/proc/{host.pid}/mountinfo").read_text().splitlines()
            found += [line for line in mounts if f"{self.here}/" in line.split()[4]]
        return found

    def close(self) -> None:
        for log in (self.log, *self.lab.base.glob("disks/*/server/agents/*/agent.log")):
            print(f"---- {log}", *log.read_text().splitlines()[-40:], sep="\n")
        self.server.client.close()
        self.server.http.close()
        self.lab.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    made = Cluster()
    try:
        with made.lab.inside():
            made.start()
            yield made
    finally:
        made.close()
    assert not made.lab.base.exists()


@pytest.fixture(scope="module")
def work(cluster: Cluster) -> Iterator[Work]:
    for name in (*KEYED, LATER, PINNED):
        cluster.server.deploy("ns", name, FUNCTION, memory="64MB")
    cluster.server.client.pin("ns", PINNED)
    made = Work(cluster.server)
    try:
        made.more()
        yield made
    finally:
        made.stop()


def pinned(cluster: Cluster, work: Work, key: str) -> dict[str, Any]:
    answer = work.ask(cluster.server.http, PINNED, key, {})
    assert answer is not None and answer.status_code == 200, answer
    return {"start": answer.headers["x-instainfer-start"], **answer.json()}


def test_a_raylet_is_killed(cluster: Cluster, work: Work) -> None:
    agent = cluster.agent(cluster.b)
    cluster.only(cluster.b, "raylet/raylet").kill()
    work.more()
    eventually(lambda: cluster.nodes()["b"]["cluster"] != "alive")
    cluster.joined(ray=True)
    assert cluster.agent(cluster.b) == agent
    work.more()


def test_an_agent_is_killed(cluster: Cluster, work: Work) -> None:
    agent = cluster.agent(cluster.c)
    agent.kill()
    work.more()
    eventually(lambda: cluster.agents(cluster.c) not in ([], [agent]))
    cluster.joined()
    work.more()


@pytest.mark.parametrize("how", ["pulled", "silent"])
def test_a_link_is_cut_and_heals(cluster: Cluster, work: Work, how: str) -> None:
    host = cluster.c if how == "pulled" else cluster.b
    agent = cluster.agent(host)
    (host.pull if how == "pulled" else host.silence)()
    work.more()
    eventually(lambda: cluster.lost(host))
    work.more()
    host.heal()
    cluster.joined()
    assert cluster.agent(host) == agent
    work.more()


def test_a_host_is_gone_and_comes_back(cluster: Cluster, work: Work) -> None:
    """What was kept loaded there is loaded elsewhere."""
    before = pinned(cluster, work, "before")
    host = cluster.lab.hosts[before["host"]]
    host.kill()
    work.more()
    eventually(lambda: cluster.lost(host))
    eventually(lambda: cluster.server.state("ns", PINNED) in ("preloaded", "warm"))
    after = pinned(cluster, work, "after")
    assert after["host"] != before["host"] and after["start"] in ("preloaded", "warm")
    host.boot()
    if host is cluster.b:
        cluster.apart(host)
    cluster.ray(host)
    cluster.joined()
    work.more()


def test_the_head_is_killed_then_the_server_and_both_come_back(cluster: Cluster, work: Work) -> None:
    """Without a head, server and agents go on with what they knew; so does a server that is new: it adopts what is
    loaded. Afterwards Ray has agents started as ever."""
    before = [cluster.agent(host) for host in (cluster.b, cluster.c)]
    head = cluster.a.processes(str(cluster.here / "r"))  # the one that would start it again comes first
    for one in head:
        kill(one)
    gone(head)
    work.more()
    assert [one["state"] for one in cluster.nodes().values()] == ["joined"] * 2
    warm = pinned(cluster, work, "warm")
    cluster.only(cluster.a, "instainfer.cli serve").kill()
    cluster.serve()
    again = pinned(cluster, work, "still-warm")
    assert (again["loaded"], again["host"], again["start"]) == (warm["loaded"], warm["host"], "warm")
    work.more()
    assert [cluster.agent(host) for host in (cluster.b, cluster.c)] == before
    cluster.ray(cluster.a)
    before[1].kill()
    eventually(lambda: cluster.agents(cluster.c) not in ([], [before[1]]))
    cluster.joined()
    assert cluster.agent(cluster.b) == before[0]
    work.more()


def test_the_accounts(cluster: Cluster, work: Work) -> None:
    """What was accepted has one answer, which a run of its own gave; no run began before the one before was over;
    and nothing is left of anything."""
    work.stop()
    assert not work.wrong
    http = cluster.server.http
    for key, ids in work.jobs.items():
        (id,) = ids
        answer = http.get(f"{PREFIX}/jobs/{id}/result", params={"wait_s": 30})
        assert answer.status_code == 200, answer.text
        work.answers[key].add(answer.content)
    marks = cluster.marks.all()
    runs: dict[str, list[str]] = defaultdict(list)
    for _, key, run in marks:
        if not runs[key] or runs[key][-1] != run:
            assert run not in runs[key], f"two runs of {key} overlap"
            runs[key].append(run)
    ended = {run for what, _, run in marks if what == "end"}
    for key, answers in work.answers.items():
        (content,) = answers
        said = json.loads(content)
        assert said["key"] == key and said["run"] in runs[key] and said["run"] in ended
    several = {key for key, each in runs.items() if len(each) > 1}
    for key in sorted({*several, *list(work.answers)[::10]}):  # who asks once more hears the same once more
        more = work.ask(http, key.partition("-")[0], key, {})
        assert more is not None and work.answers[key] == {more.content}, key
    told = f"{len(runs)} requests, {len(several)} of them begun again; clients heard {dict(work.refused)}"
    print(f"\n{told}")
    assert several, told
    assert not cluster.stop()
    text = cluster.log.read_text()
    assert not [word for word in ("Traceback", "ERROR", "deploy it again") if word in text], text
