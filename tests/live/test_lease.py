"""Two servers and one database: one of them at a time, nothing lost between them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.postgres import Postgres, running
from tests.live.front_helpers import gateway
from tests.live.server_helpers import ECHO, Server, command, environment, eventually, refused

pytestmark = pytest.mark.slow

LEASE_S = 2.0
#: Runs until the wall time that it is told.
UNTIL = """
import time

def handler(event):
    while time.time() < event["until"]:
        time.sleep(0.02)
    return event
"""


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with running() as server:
        yield server


def settings(url: str, **more: str) -> dict[str, str]:
    return {"INSTAINFER_STORE__URL": url, "INSTAINFER_STORE__LEASE_S": f"{LEASE_S:g}", **more}


def standing_by(directory: Path, url: str, **more: str) -> tuple[Server, threading.Thread]:
    """A server that starts as soon as the database is free, in a thread that ends when it serves."""
    directory.mkdir()
    told = settings(url, INSTAINFER_STORE__STANDBY="true", **more)
    server = Server(directory, "--memory", "1GB", variables=told)
    thread = threading.Thread(target=server.start)
    thread.start()
    return server, thread


def test_a_second_server_says_who_has_the_database(tmp_path: Path, database: Postgres) -> None:
    url = database.make("refused")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with Server(tmp_path / "a", "--memory", "1GB", variables=settings(url)) as first:
        said = refused(tmp_path / "b", "--port", "0", **settings(url))
        assert "another server uses this database" in said
        assert f"process {first.process.pid} " in said and str(first.data) in said
        first.kill()
        first.start()  # at once: nobody else can have been it
        first.deploy("n", "echo", ECHO)
        first.term()
    with Server(tmp_path / "b", "--memory", "1GB", variables=settings(url)) as second:
        assert [one["name"] for one in second.client.functions("n")] == ["echo"]
        # its package stayed with the first: the server starts all the same, and says why it cannot run
        assert second.call("n", "echo").status_code in (502, 503)
        assert "the package of n/echo@1" in second.errors()


def test_a_standby_goes_on_with_the_jobs_of_the_dead(tmp_path: Path, database: Postgres) -> None:
    """It has none of the other's files, and a folder that both see."""
    url = database.make("standby")
    shared = {"INSTAINFER_ARTIFACTS__SOURCES": str(tmp_path / "shared")}
    (tmp_path / "a").mkdir()
    with (
        gateway("--store", url) as front,
        Server(tmp_path / "a", "--memory", "1GB", variables=settings(url, **shared)) as first,
    ):
        first.deploy("n", "until", UNTIL)
        assert front.client.status()["server"]["pid"] == first.process.pid
        event = {"until": time.time() + 8.0}
        headers = {"prefer": "respond-async", "idempotency-key": "k"}
        id = front.http.post("/f/n/until", json=event, headers=headers).json()["id"]
        eventually(lambda: first.running("n", "until"))
        second, thread = standing_by(tmp_path / "b", url, **shared)
        eventually(lambda: "waiting" in second.errors() if (tmp_path / "b" / "stderr").exists() else "")
        first.kill()
        (first.data / "admin.sock").unlink()  # nobody comes back to remove it
        there = front.client.status()["server"]  # waits in the gateway until somebody serves
        thread.join(60)
        assert not thread.is_alive()
        try:
            assert there["pid"] == second.process.pid and there["number"] == 2
            eventually(lambda: second.client.job(id)["state"] == "done")
            job = second.client.job(id)
            assert [one["status"] for one in job["attempts"]] == ["interrupted", "ok"]
            before, after = job["attempts"]
            assert after["began"] >= before["began"]
            headers.pop("prefer")
            assert front.http.post("/f/n/until", json=event, headers=headers).json() == event
        finally:
            second.close()


def test_one_that_was_taken_for_dead_changes_nothing_and_ends(tmp_path: Path, database: Postgres) -> None:
    url = database.make("fenced")
    (tmp_path / "a").mkdir()
    first = Server(tmp_path / "a", "--memory", "1GB", variables=settings(url))
    first.start()
    first.deploy("n", "until", UNTIL)
    id = first.http.post(
        "/f/n/until", json={"until": time.time() + 6.0}, headers={"prefer": "respond-async"}
    ).json()["id"]
    eventually(lambda: first.running("n", "until"))
    first.family()
    second, thread = standing_by(tmp_path / "b", url)
    shutil.copytree(first.data / "blobs", second.data / "blobs", dirs_exist_ok=True)
    first.process.send_signal(signal.SIGSTOP)
    thread.join(60)
    try:
        assert not thread.is_alive()
        first.process.send_signal(signal.SIGCONT)
        assert first.process.wait(60) == 1
        assert "another server has taken over the database" in first.errors()
        eventually(lambda: second.client.job(id)["state"] == "done")
        assert [one["status"] for one in second.client.job(id)["attempts"]] == ["interrupted", "ok"]
    finally:
        second.close()
    first.url = ""
    first._process = None
    eventually(lambda: not first.leftovers(), what=f"{first.leftovers()}", seconds=20)


def test_a_standby_that_is_told_to_stop_stops(tmp_path: Path, database: Postgres) -> None:
    url = database.make("stops")
    (tmp_path / "a").mkdir()
    with Server(tmp_path / "a", "--memory", "1GB", variables=settings(url)):
        (tmp_path / "b").mkdir()
        log = tmp_path / "b" / "said"
        with log.open("w") as said:
            waiting = subprocess.Popen(
                command(tmp_path / "b", "--port", "0"),
                env=environment(settings(url, INSTAINFER_STORE__STANDBY="true")),
                cwd=tmp_path / "b",
                stdout=said,
                stderr=said,
            )
        eventually(lambda: "waiting" in log.read_text())
        waiting.terminate()
        assert waiting.wait(20) == 0, log.read_text()
