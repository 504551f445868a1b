"""The lease on a database: taken, renewed, lost; in the store and in a server's hands."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from instainfer.errors import Unavailable
from instainfer.model import Job
from instainfer.store.lease import Lease
from instainfer.store.sql import SqlStore


def job(id: str) -> Job:
    return Job(id=id, namespace="n", function="f", content_type="", body=b"", created=1.0)


def test_a_lease_is_one_holders_and_fences_what_others_write(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    first, second = SqlStore(url), SqlStore(url)
    assert first.take_lease("a", "about a", 60.0) is None
    found = second.take_lease("b", "about b", 60.0)
    assert found is not None and found[0] == "about a" and 0.0 < found[1] <= 60.0
    assert first.save_jobs([job("1")]) == [True]
    assert first.renew_lease(0.0)  # so it has run out
    assert second.take_lease("b", "about b", 60.0) is None
    assert not first.renew_lease(60.0)
    with pytest.raises(Unavailable, match="taken over"):
        first.save_jobs([job("2")])
    with pytest.raises(Unavailable, match="taken over"):
        first.function_number("n", "f")
    first.release_lease()  # which is no longer its to give
    assert first.take_lease("a", "about a", 60.0) is not None
    assert [one.id for one in second.unfinished_jobs()] == ["1"]
    again = SqlStore(url)
    assert again.take_lease("b", "about b", 60.0) is None  # its own, after it was killed
    with pytest.raises(Unavailable, match="taken over"):
        second.save_jobs([job("3")])
    for store in (first, second, again):
        store.close()


class Told:
    """A store whose answers are the test's, and what was said to its server."""

    def __init__(self) -> None:
        self.answers: list[bool | Exception] = []
        self.block = threading.Event()
        self.heard: list[str] = []

    def take_lease(self, holder: str, about: str, seconds: float) -> tuple[str, float] | None:
        return None

    def renew_lease(self, seconds: float) -> bool:
        if not self.answers:
            self.block.wait(20)
            return True
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def release_lease(self) -> None: ...


def play(told: Told, tmp_path: Path, until: Callable[[], bool]) -> list[str]:
    (tmp_path / "lock").touch()

    async def run() -> None:
        lease = Lease(told, tmp_path / "lock", 0.4)
        await lease.take(standby=False)
        happened = asyncio.Event()

        def say(word: str) -> Callable[[], None]:
            def said() -> None:
                told.heard.append(word)
                if until():
                    happened.set()

            return said

        keeping = asyncio.create_task(lease.keep(pause=say("pause"), resume=say("resume"), lost=say("lost")))
        async with asyncio.timeout(20):
            await happened.wait()
        told.block.set()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(run())
    return told.heard


def test_one_that_is_lost_is_said_after_the_jobs_are_stopped(tmp_path: Path) -> None:
    told = Told()
    told.answers = [True, False]
    assert play(told, tmp_path, lambda: "lost" in told.heard) == ["pause", "lost"]


def test_a_database_that_is_away_pauses_and_one_that_is_back_resumes(tmp_path: Path) -> None:
    told = Told()
    told.answers = [*[Unavailable("away")] * 4, True, True, True]
    heard = play(told, tmp_path, lambda: "resume" in told.heard)
    assert heard == ["pause", "resume"]


def test_a_database_that_does_not_answer_pauses_too(tmp_path: Path) -> None:
    told = Told()
    assert play(told, tmp_path, lambda: "pause" in told.heard) == ["pause"]
