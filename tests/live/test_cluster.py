"""A server in front of several agents, each a process of its own: what becomes of requests when one goes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from psutil import Error, process_iter  # type: ignore[import-untyped] # it ships no types

from instainfer import outliving, trial
from instainfer.agent import process
from instainfer.client import Client
from instainfer.cluster import keeping
from instainfer.gateway import about as serving
from tests.contract.agent_helpers import Proxy
from tests.live.server_helpers import SANDBOX, Process, Server, environment, eventually

pytestmark = pytest.mark.slow

KEY = "a key of the tests"
FUNCTION = """
import os
import time

def handler(event):
    time.sleep(event.get("s", 0))
    return {"n": event.get("n"), "pid": os.getpid(), "loaded": LOADED}

LOADED = time.time()
"""


class Agents:
    """Processes that outlive any server here, and a server in front of them."""

    def __init__(self, directory: Path, *names: str, variables: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.environ = environment({"INSTAINFER_CLUSTER__KEY": KEY, **(variables or {})})
        self.about = {name: self.start(name) for name in names}

    def data(self, name: str) -> Path:
        return self.directory / "agents" / name

    def start(self, name: str, listen: str = "127.0.0.1:0") -> process.About:
        flags = ["--node", name, "--listen", listen, "--memory", "300MB", "--sandbox", SANDBOX]
        return process.ensure(self.data(name), flags, self.environ)

    def address(self, **instead: str) -> str:
        return ",".join(f"{name}={instead.get(name, about.url)}" for name, about in self.about.items())

    def kill(self, name: str) -> None:
        Process(self.about[name].pid).kill()

    def again(self, name: str) -> None:
        """Start it anew where it was."""
        self.about[name] = self.start(name, self.about[name].url.removeprefix("http://"))

    def close(self) -> None:
        for name in self.about:
            outliving.stop(self.data(name))
        for name in self.about:
            node = Server(self.directory)
            node.data = self.data(name)
            gone(node)


def gone(node: Server) -> None:
    """Nothing is left of it."""
    found: list[str] = []

    def none() -> bool:
        found[:] = node.leftovers()
        return not found

    try:
        eventually(none, seconds=20)
    except AssertionError:
        raise AssertionError(f"left behind: {found}") from None


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    made = Agents(tmp_path, "a", "b", "c")
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def served(agents: Agents, **instead: str) -> Iterator[Server]:
    variables = {
        "INSTAINFER_CLUSTER__KEY": KEY,
        "INSTAINFER_CLUSTER__LOST_S": "2",
        "INSTAINFER_LIMITS__ATTEMPTS": "20",
    }
    with Server(agents.directory, "--cluster", agents.address(**instead), variables=variables) as server:
        yield server


def deploy(server: Server, *names: str) -> None:
    for name in names:
        server.deploy("ns", name, FUNCTION, memory="64MB")


def nodes(server: Server) -> dict[str, Any]:
    return {one["node"]: one for one in server.client.nodes()}


def home(server: Server) -> str:
    """Of the only container that there is."""
    (found,) = [name for name, one in nodes(server).items() if one["containers"]]
    return found


class Load:
    """Clients that send one request after the other until they are told to stop; those with a key until each has
    its answer."""

    def __init__(self, server: Server, functions: list[str], *, keys: bool) -> None:
        self._server, self._functions, self._keys = server, functions, keys
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(len(functions))
        self._running = [self._pool.submit(self._client, name) for name in functions]
        self.answered = 0
        self.starts: list[str] = []  # of what was answered: its kind, and of which function
        self.failed: list[str] = []

    def _client(self, function: str) -> None:
        with httpx.Client(base_url=self._server.url, timeout=60, trust_env=False) as http:
            n = 0
            while not self._stop.is_set():
                n += 1
                headers = {"idempotency-key": f"{function}-{n}"} if self._keys else {}
                answer = http.post(f"/f/ns/{function}", json={"n": n, "s": 0.02}, headers=headers)
                if answer.status_code != 200:
                    self.failed.append(answer.text)
                    continue
                self.answered += 1
                self.starts.append(f"{answer.headers['x-instainfer-start']} {function}")
                assert answer.json()["n"] == n
                if self._keys and n % 5 == 0:  # whoever asks again hears the same
                    again = http.post(f"/f/ns/{function}", json={"n": n, "s": 0.02}, headers=headers)
                    assert again.content == answer.content

    def more(self, count: int = 20) -> None:
        """Let so many further requests be answered."""
        until = self.answered + count
        eventually(lambda: self.answered >= until or self._broken(), what="further answers")

    def _broken(self) -> bool:
        return any(one.done() for one in self._running)

    def stop(self) -> None:
        self._stop.set()
        for one in self._running:
            one.result(90)
        self._pool.shutdown()


def test_an_agent_killed_under_load_loses_no_work(agents: Agents) -> None:
    functions = [f"f{n}" for n in range(4)]
    with served(agents) as server:
        deploy(server, *functions)
        load = Load(server, functions, keys=True)
        load.more()
        for name in ("a", "b"):
            agents.kill(name)
            load.more()
            agents.again(name)
            eventually(lambda name=name: nodes(server)[name]["state"] == "joined")  # type: ignore[misc]
            load.more()
        load.stop()
        assert not load.failed
        assert len(agents.about) == 3


def test_plain_calls_that_had_not_begun_run_elsewhere_and_the_rest_is_told(agents: Agents) -> None:
    with served(agents) as server:
        deploy(server, "f")
        server.call("ns", "f")
        where = home(server)
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http, ThreadPoolExecutor(1) as pool:
            running = pool.submit(http.post, "/f/ns/f", json={"s": 30})
            eventually(lambda: server.running("ns", "f"))
            agents.kill(where)
            answer = running.result(30)
        assert answer.status_code == 502
        assert f"node {where} was lost" in answer.json()["detail"]
        assert server.call("ns", "f").status_code == 200
        assert home(server) != where


def test_the_functions_of_a_lost_node_are_loaded_elsewhere(agents: Agents) -> None:
    with served(agents) as server:
        deploy(server, "f")
        server.client.pin("ns", "f")
        eventually(lambda: sum(one["instances"] for one in nodes(server).values()))
        where = home(server)
        agents.kill(where)
        eventually(lambda: any(one["instances"] for name, one in nodes(server).items() if name != where))
        eventually(lambda: server.state("ns", "f") in ("preloaded", "warm"))
        assert server.call("ns", "f").headers["x-instainfer-start"] in ("preloaded", "warm")


@pytest.mark.parametrize("how", ["term", "kill"])
def test_the_next_server_adopts_what_is_loaded(agents: Agents, how: str) -> None:
    with served(agents) as server:
        deploy(server, "f")
        before = server.call("ns", "f").json()
        (server.term if how == "term" else server.kill)()
        server.start()
        again = server.call("ns", "f")
        assert again.headers["x-instainfer-start"] == "warm"
        assert again.json() == before
        assert home(server)


def test_work_of_a_killed_server_runs_again_when_its_first_attempt_is_over(agents: Agents) -> None:
    with served(agents) as server:
        deploy(server, "f")
        headers = {"prefer": "respond-async"}
        accepted = server.http.post("/f/ns/f", json={"s": 2}, headers=headers)
        assert accepted.status_code == 202
        eventually(lambda: server.running("ns", "f"))
        server.kill()
        server.start()
        job = accepted.json().get("id") or accepted.headers["x-instainfer-activation"]
        found = eventually(lambda: (one := server.client.job(job))["state"] == "done" and one)
        assert [attempt["status"] for attempt in found["attempts"]] == ["interrupted", "ok"]


def test_a_drained_node_finishes_and_nothing_fails(agents: Agents) -> None:
    functions = [f"f{n}" for n in range(3)]
    with served(agents) as server:
        deploy(server, *functions)
        load = Load(server, functions, keys=False)
        load.more()
        eventually(lambda: all(f"warm {name}" in load.starts for name in functions))
        began = len(load.starts)
        for name in agents.about:  # a rolling restart
            server.client.drain(name)
            eventually(lambda name=name: nodes(server)[name]["state"] == "drained")  # type: ignore[misc]
            assert outliving.stop(agents.data(name))
            load.more()
            agents.again(name)
            eventually(lambda name=name: nodes(server)[name]["state"] == "drained")  # type: ignore[misc]
            server.client.drain(name, undo=True)
            load.more()
        assert outliving.stop(agents.data("a"))  # which asks for the same by itself
        load.more()
        load.stop()
        assert not load.failed
        kinds = {start.partition(" ")[0] for start in load.starts[began:]}
        assert kinds == {"warm", "preloaded"}, "what was loaded stays so throughout"


def test_a_drain_outlives_the_server(agents: Agents) -> None:
    with served(agents) as server:
        server.client.drain("b")
        server.kill()
        server.start()
        assert {name: one["state"] for name, one in nodes(server).items()} == {
            "a": "joined",
            "b": "drained",
            "c": "joined",
        }
        assert server.client.drain("b", undo=True)["state"] == "joined"
        server.kill()
        server.start()
        assert nodes(server)["b"]["state"] == "joined"


def test_a_link_that_is_cut_and_heals(agents: Agents) -> None:
    """What is loaded behind it is still there; what ran is not."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def do(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    async def cut(proxy: Proxy) -> None:
        proxy.refuse()

    proxies = {}
    for name, about in agents.about.items():
        proxies[name] = Proxy("127.0.0.1", int(about.url.rpartition(":")[2]))
        do(proxies[name].start())
    try:
        with served(agents, **{name: proxy.url for name, proxy in proxies.items()}) as server:
            deploy(server, "f")
            before = server.call("ns", "f").json()
            where = home(server)
            do(cut(proxies[where]))
            assert server.call("ns", "f").json() != before  # elsewhere
            eventually(lambda: nodes(server)[where]["state"] == "lost")
            do(proxies[where].start(int(proxies[where].url.rpartition(":")[2])))
            eventually(lambda: nodes(server)[where]["state"] == "joined")
            assert nodes(server)[where]["instances"] == 1
            for proxy in proxies.values():
                if proxy is not proxies[where]:
                    do(cut(proxy))
            eventually(lambda: server.call("ns", "f").json() == before)
    finally:
        for proxy in proxies.values():
            with contextlib.suppress(Exception):
                do(cut(proxy))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.timeout(240)
def test_a_cluster_of_ray_under_load_loses_a_raylet_and_leaves_nothing(tmp_path: Path) -> None:
    """`cluster up`, work; a raylet, an agent, the actor that keeps the server, and the server killed; `down`."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    found = trial.up(tmp_path, nodes=2, memory="300MB", port=0, sandbox=SANDBOX)
    try:
        server = Server(tmp_path)
        server.url = found["url"]  # of the gateway
        server.client = Client(server.url)
        deploy(server, "f0", "f1")
        load = Load(server, ["f0", "f1"], keys=True)
        load.more()
        (raylet,) = _of(found["ray_dir"], "raylet", "127.0.0.12")
        raylet.kill()
        load.more()
        agents = {path.name: process.find(path) for path in (tmp_path / "server" / "agents").glob("*")}
        killed = agents["127.0.0.11"]
        assert killed is not None
        Process(killed.pid).kill()
        load.more()
        eventually(lambda: nodes(server)["127.0.0.11"]["state"] == "joined")  # started again, and joined
        after = process.find(tmp_path / "server" / "agents" / "127.0.0.11")
        assert after is not None and after.pid != killed.pid
        assert process.find(tmp_path / "server" / "agents" / "127.0.0.12") == agents["127.0.0.12"]
        load.more()
        first = serving.find(tmp_path / "server")
        assert first is not None
        keeper = _keeper(found["ray_dir"])
        Process(keeper).kill()
        eventually(lambda: _keeper(found["ray_dir"]) not in (0, keeper))
        load.more()
        assert serving.find(tmp_path / "server") == first  # which the next actor has found
        Process(first.pid).kill()
        load.more()  # by the next one, which Ray's actor has started: the gateway kept what came meanwhile
        second = serving.find(tmp_path / "server")
        assert second is not None and second.pid != first.pid and second.number == first.number + 1
        load.stop()
        assert not load.failed
        server.client.close()
        assert keeping.release(found["gcs"], trial.environment(tmp_path))  # the actor, and what it keeps
        assert serving.find(tmp_path / "server") is None and not _keeper(found["ray_dir"])
    finally:
        trial.down(tmp_path)
    for name in agents:
        node = Server(tmp_path)
        node.data = tmp_path / "server" / "agents" / name
        gone(node)
    assert not _of(found["ray_dir"])


def _keeper(directory: str) -> int:
    """The process of the actor that keeps the server; 0: there is none now."""
    for raylet in _of(directory, "raylet"):
        with contextlib.suppress(Error):
            for one in raylet.children(recursive=True):
                with contextlib.suppress(Error):
                    if one.cmdline()[:1] == ["ray::Keeper"]:
                        return int(one.pid)
    return 0


def _of(directory: str, *words: str) -> list[Process]:
    """Processes of the Ray that keeps its files there, with these words on their command lines."""
    found = []
    for one in process_iter():
        with contextlib.suppress(Error):
            line = " ".join(one.cmdline())
            if all(word in line for word in (directory, *words)):
                found.append(one)
    return found
