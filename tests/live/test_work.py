"""Requests that are answered later: accepted means kept, and one key has one answer, whatever dies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from instainfer.client import PREFIX
from instainfer.errors import InstaInferError, InvocationFailed, NotFound
from tests.contract.postgres import running
from tests.live.server_helpers import Server, environment, eventually

pytestmark = pytest.mark.slow

WORKER = """
import os, time, uuid

def handler(event):
    if event.get("abort"):
        os.abort()
    if event.get("raise"):
        raise ValueError("no good")
    time.sleep(event.get("s", 0))
    return {"once": uuid.uuid4().hex, "n": event.get("n")}
"""
LATER = {"prefer": "respond-async"}
SETTINGS = {"INSTAINFER_LIMITS__ATTEMPTS": "2"}


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("work"), "--memory", "2GB", variables=SETTINGS) as server:
        server.deploy("n", "f", WORKER)
        yield server


def begin(server: Server, payload: object, **headers: str) -> str:
    """The id of an accepted one."""
    response = server.http.post("/f/n/f", json=payload, headers={**LATER, **headers})
    assert response.status_code == 202, response.text
    found = response.json()
    assert response.headers["location"] == f"{PREFIX}/jobs/{found['id']}"
    return str(found["id"])


def over(server: Server, job: str) -> httpx.Response:
    """The response that it ends with."""

    def look() -> httpx.Response | None:
        response = server.http.get(f"{PREFIX}/jobs/{job}/result", params={"wait_s": 5})
        return response if response.status_code != 202 else None

    return eventually(look)  # type: ignore[return-value] # it fails where it is None


def test_an_answer_is_fetched_later(works: Server) -> None:
    job = begin(works, {"n": 7})
    response = over(works, job)
    assert response.status_code == 200
    assert response.json()["n"] == 7
    assert response.headers["x-instainfer-start"]
    assert over(works, job).json() == response.json()
    shown = works.client.job(job)
    assert shown["state"] == "done"
    assert [one["status"] for one in shown["attempts"]] == ["ok"]
    assert works.client.activation(job)["status"] == "ok"
    assert job in [one["id"] for one in works.client.jobs(namespace="n", state="done")]


def test_a_pending_one_is_readable(works: Server) -> None:
    job = begin(works, {"s": 2})
    assert works.http.get(f"{PREFIX}/jobs/{job}").json()["state"] in ("waiting", "running")
    assert works.http.get(f"{PREFIX}/jobs/{job}/result").status_code == 202
    assert over(works, job).status_code == 200
    with pytest.raises(NotFound):
        works.client.job("none")


def test_one_key_has_one_answer(works: Server) -> None:
    def call(_: int) -> httpx.Response:
        return httpx.post(
            f"{works.url}/f/n/f", json={"n": 1}, headers={"idempotency-key": "k1"}, trust_env=False, timeout=60
        )

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(call, range(8)))
    assert {response.status_code for response in answers} == {200}
    assert len({response.json()["once"] for response in answers}) == 1
    again = call(0)
    assert again.json() == answers[0].json()
    assert again.headers["idempotency-replayed"] == "true"
    begun = begin(works, {"n": 1}, **{"idempotency-key": "k1"})
    assert begun == again.headers["x-instainfer-activation"]
    other = works.http.post("/f/n/f", json={"n": 2}, headers={"idempotency-key": "k1"})
    assert other.status_code == 409, other.text
    assert works.http.post("/f/n/f", json={}, headers={"idempotency-key": "k" * 300}).status_code == 400


def test_what_raises_is_an_answer(works: Server) -> None:
    job = begin(works, {"raise": True})
    response = over(works, job)
    assert response.status_code == 502
    assert response.json()["type"].endswith("invocation_failed")
    assert works.client.job(job)["state"] == "done"
    with pytest.raises(InvocationFailed, match="no good"):
        works.client.result(job)


def test_what_crashes_is_tried_again_then_dead(works: Server) -> None:
    job = begin(works, {"abort": True})
    response = over(works, job)
    assert response.status_code == 502
    shown = works.client.job(job)
    assert shown["state"] == "dead"
    assert [one["status"] for one in shown["attempts"]] == ["instance_crashed"] * 2
    assert works.client.retry(job)["state"] == "waiting"
    assert over(works, job).status_code == 502
    with pytest.raises(InstaInferError, match="dead"):
        works.client.retry(begin(works, {}))


def test_an_instance_killed_in_the_middle(works: Server) -> None:
    job = begin(works, {"s": 2, "n": 3})
    eventually(lambda: works.running("n", "f"))
    for process in works.instances("f"):
        process.kill()
    assert over(works, job).json()["n"] == 3


def test_the_command_line(works: Server) -> None:
    def cli(*line: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "instainfer.cli", *line, "--url", works.url],
            env=environment({}),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout

    job = cli("invoke", "n/f", "--async", "-p", "n", "9").strip()
    assert '"n": 9' in cli("jobs", job, "--wait", "--result").replace('"n":9', '"n": 9')
    assert job in cli("jobs")


def test_accepted_is_kept_through_kills(tmp_path: Path) -> None:
    """The server is killed while jobs run and wait; the next one goes on with all of them, and each key's answer
    is the one that was first told. A kill is no attempt of theirs: they have one."""
    with Server(tmp_path, "--memory", "1GB", variables={"INSTAINFER_LIMITS__ATTEMPTS": "1"}) as server:
        server.deploy("n", "f", WORKER)
        told: dict[str, Any] = {}
        response = server.http.post("/f/n/f", json={"n": 0}, headers={"idempotency-key": "first"})
        told["first"] = response.json()
        jobs = [begin(server, {"s": 0.5, "n": n}, **{"idempotency-key": f"k{n}"}) for n in range(6)]
        eventually(lambda: server.running("n", "f"))
        server.kill()
        server.start()
        assert begin(server, {"s": 0.5, "n": 3}, **{"idempotency-key": "k3"}) == jobs[3]
        server.kill()
        server.start()
        for n, job in enumerate(jobs):
            assert over(server, job).json()["n"] == n
        assert {one["status"] for one in server.client.job(jobs[0])["attempts"][:-1]} <= {"interrupted"}
        again = server.http.post("/f/n/f", json={"n": 0}, headers={"idempotency-key": "first"})
        assert again.json() == told["first"]
        begin(server, {"s": 1, "n": 9})
        server.term()  # an ordinary end drains, or leaves it to the next start
        server.start()
        (newest,) = server.client.jobs(limit=1)
        assert over(server, newest["id"]).json()["n"] == 9


def test_the_database_is_killed_under_load(tmp_path: Path) -> None:
    """PostgreSQL ends without a word: what was accepted is answered when it is back, what cannot be committed is
    refused, and ordinary requests go on."""
    with (
        running() as database,
        Server(tmp_path, "--memory", "1GB", variables={"INSTAINFER_STORE__URL": database.url}) as server,
    ):
        server.deploy("n", "f", WORKER)
        jobs = [begin(server, {"s": 0.3, "n": n}, **{"idempotency-key": f"k{n}"}) for n in range(6)]
        database.kill()
        refused = server.http.post("/f/n/f", json={"n": 0}, headers=LATER)
        assert refused.status_code == 503, refused.text
        assert "database" in refused.json()["detail"]
        assert server.result("n", "f", {"n": 1})["n"] == 1
        database.start()
        for n, job in enumerate(jobs):
            assert over(server, job).json()["n"] == n
        assert begin(server, {"s": 0.3, "n": 2}, **{"idempotency-key": "k2"}) == jobs[2]
