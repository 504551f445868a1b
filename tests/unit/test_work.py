"""Durable work against a store of its own and a controller that does as it is told."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

import pytest
from msgspec.structs import replace

from instainfer.books import Ticket
from instainfer.controller import Controller
from instainfer.errors import InstaInferError, InstanceCrashed, InvocationFailed, Unavailable
from instainfer.gateway.access import Access
from instainfer.model import Attempt, FunctionSpec, Job, JobState, Quota, Style
from instainfer.store.sql import SqlStore
from instainfer.work import Work, error_of

SPEC = FunctionSpec(
    namespace="n", name="f", version=1, digest="sha256:00", style=Style.MODULE, entry="main:handler",
    memory=1, timeout_s=1.0, concurrency=1, environment="", python="3.11",
)  # fmt: skip
KEY = "k"


class Clock:
    def now(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 1000.0


class Obedient:
    """A controller that answers when told to, each request with its own body."""

    def __init__(self) -> None:
        self.specs = {SPEC.key: SPEC}
        self.under_way: list[Ticket] = []
        self.sent = asyncio.Event()

    def submit(
        self,
        spec: FunctionSpec,
        content_type: str,
        body: bytes,
        done: Callable[[Ticket], None],
        *,
        activation: str,
    ) -> Ticket:
        ticket = Ticket(len(self.under_way) + 1, spec, content_type, body, done)
        ticket.activation = activation
        self.under_way.append(ticket)
        self.sent.set()
        return ticket

    async def one(self) -> Ticket:
        while not self.under_way:
            self.sent.clear()
            await self.sent.wait()
        return self.under_way.pop(0)

    def abandon(self, ticket: Ticket, why: str) -> None:
        """It ends by and by."""

    def finish(self, ticket: Ticket, error: InstaInferError | None = None) -> None:
        ticket.error = error
        ticket.answer = None if error else ("text/plain", ticket.body)
        ticket.done(ticket)


@pytest.fixture
def store() -> Iterator[SqlStore]:
    made = SqlStore("sqlite://")
    yield made
    made.close()


def make(controller: Obedient, store: SqlStore, access: Access | None = None) -> Work:
    access = access or Access(store, Clock())
    work = Work(
        cast(Controller, controller), store, Clock(), attempts=2, interruptions=4, most=100, begin=access.begin
    )
    access.freed = work.wake
    return work


def play(
    store: SqlStore,
    scenario: Callable[[Work, Obedient], Coroutine[Any, Any, None]],
    access: Access | None = None,
) -> None:
    async def run() -> None:
        controller = Obedient()
        work = make(controller, store, access)
        async with asyncio.timeout(20):
            await scenario(work, controller)
        work.stop()
        for ticket in controller.under_way:
            controller.finish(ticket, InvocationFailed("the scenario is over"))
        await work.settle()

    asyncio.run(run())


def begun() -> Job:
    """As one is in the store whose server went away, or whose commit nobody heard of."""
    return Job(
        id="old", namespace="n", function="f", content_type="", body=b"in", created=1.0, key=KEY,
        digest=hashlib.sha256(b"\0in").hexdigest(), state=JobState.RUNNING,
        attempts=(Attempt(began=1.0, ended=0.0, status=""),),
    )  # fmt: skip


def test_what_a_request_that_was_adopted_failed_with_is_kept(store: SqlStore) -> None:
    async def scenario(work: Work, controller: Obedient) -> None:
        ticket = controller.submit(SPEC, "", b"in", work.ended, activation="a1")
        job = await work.adopt(ticket, b"in")
        controller.finish(ticket, InvocationFailed("no good"))
        over = await work.result(job)
        assert over.state is JobState.DONE
        assert over.attempts[-1].status == "invocation_failed"
        assert isinstance(error_of(over), InvocationFailed)
        assert store.job("a1").problem == over.problem

    play(store, scenario)


def test_a_commit_that_nobody_heard_of_is_found_by_its_key(store: SqlStore) -> None:
    """The connection broke behind it: the caller was refused, and comes again."""
    store.save_jobs([begun()])

    async def scenario(work: Work, controller: Obedient) -> None:
        job = await work.accept(SPEC, "", b"in", key=KEY)
        assert job.id == "old"
        controller.finish(await controller.one())
        over = await work.result(job)
        assert (over.answer, [one.status for one in over.attempts]) == (b"in", ["interrupted", "ok"])

    play(store, scenario)


def test_what_an_earlier_server_had_begun_goes_on(store: SqlStore) -> None:
    store.save_jobs([begun()])

    async def scenario(work: Work, controller: Obedient) -> None:
        await work.start()
        ticket = await controller.one()
        assert ticket.body == b"in"
        controller.finish(ticket)
        assert (await work.result(await work.find("old"))).answer == b"in"

    play(store, scenario)


def killed(store: SqlStore) -> None:
    """One life of a server that takes up what is there, begins it, and is no more."""

    async def run() -> None:
        controller = Obedient()
        work = make(controller, store)
        async with asyncio.timeout(20):
            await work.start()
            await controller.one()  # its attempt is written before

    asyncio.run(run())


async def attempted(work: Work, id: str) -> Job:
    """As it is when its attempt is over."""
    while (job := await work.find(id)).state is JobState.RUNNING:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0)
    return job


def test_ends_of_the_server_are_not_a_jobs_attempts(store: SqlStore) -> None:
    """More of them than attempts; and those are all there when they are needed."""
    store.save_jobs([begun()])
    killed(store)
    killed(store)

    async def scenario(work: Work, controller: Obedient) -> None:
        await work.start()
        controller.finish(await controller.one(), InstanceCrashed("of its own"))
        job = await attempted(work, "old")
        assert job.state is JobState.WAITING, "one of two attempts"
        assert [one.status for one in job.attempts] == ["interrupted"] * 3 + ["instance_crashed"]

    play(store, scenario)


def test_a_job_that_ends_the_server_is_given_up_and_may_have_another_try(store: SqlStore) -> None:
    store.save_jobs([begun()])
    for _ in range(3):
        killed(store)

    async def scenario(work: Work, controller: Obedient) -> None:
        await work.start()
        job = await work.find("old")
        assert (job.state, [one.status for one in job.attempts]) == (JobState.DEAD, ["interrupted"] * 4)
        assert "the server ended 4 times" in job.problem["detail"]
        assert not controller.under_way
        assert (await work.accept(SPEC, "", b"in", key=KEY)).state is JobState.DEAD
        await work.revive(job)
        controller.finish(await controller.one())
        assert (await work.result(await work.find("old"))).answer == b"in"

    play(store, scenario)


def test_those_that_were_there_often_when_the_server_ended_go_on_one_after_the_other(store: SqlStore) -> None:
    often = (Attempt(began=1.0, ended=2.0, status="interrupted"),) * 2
    jobs = [replace(begun(), id=id, key="", created=float(n)) for n, id in enumerate("abc")]
    store.save_jobs([replace(job, attempts=(*often, *job.attempts)) for job in jobs])
    store.save_jobs([replace(begun(), id="d", created=9.0)])

    async def scenario(work: Work, controller: Obedient) -> None:
        await work.start()
        first, apart = await controller.one(), await controller.one()
        assert {first.activation, apart.activation} == {"a", "d"}
        for id in "bc":
            assert (await work.find(id)).state is JobState.WAITING
            assert store.job(id).attempts[-1].ended == 0, "as it was: another end of the server is none of its own"
        if first.activation == "d":
            first, apart = apart, first
        controller.finish(apart)
        assert not controller.under_way
        controller.finish(first, InstanceCrashed("of its own"))
        second = await controller.one()
        assert (second.activation, controller.under_way) == ("b", [])
        controller.finish(second)
        last = await controller.one()
        assert last.activation == "c"
        controller.finish(last)
        assert (await work.result(await work.find("c"))).state is JobState.DONE
        assert (await work.find("a")).state is JobState.WAITING, "for its second attempt"

    play(store, scenario)


def test_what_was_running_when_the_lease_ran_out_is_as_good_as_new(store: SqlStore) -> None:
    async def scenario(work: Work, controller: Obedient) -> None:
        job = await work.accept(SPEC, "", b"in")
        for _ in range(3):
            ticket = await controller.one()
            work.pause()
            controller.finish(ticket, Unavailable("the lease on the database has run out"))
            await attempted(work, job.id)
            work.resume()
        controller.finish(await controller.one())
        over = await work.result(await work.find(job.id))
        assert [one.status for one in over.attempts] == ["interrupted"] * 3 + ["ok"]

    play(store, scenario)


def test_a_caller_that_goes_away_takes_nothing_back(store: SqlStore) -> None:
    async def scenario(work: Work, controller: Obedient) -> None:
        asking = asyncio.ensure_future(work.accept(SPEC, "", b"in"))
        await asyncio.sleep(0)  # it has begun
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        ticket = await controller.one()
        controller.finish(ticket)
        job = await work.find(ticket.activation)
        assert (await work.result(job)).answer == b"in"

    play(store, scenario)


def test_whoever_waits_when_the_server_stops_is_told_that_it_is_not_over(store: SqlStore) -> None:
    async def scenario(work: Work, controller: Obedient) -> None:
        job = await work.accept(SPEC, "", b"in", key=KEY)
        waiting = asyncio.ensure_future(work.result(job))
        ticket = await controller.one()
        work.stop()
        controller.finish(ticket, InstanceCrashed("its server ends"))
        await work.settle()
        assert (await waiting).state is JobState.WAITING
        assert store.job(job.id).state is JobState.WAITING

    play(store, scenario)


def test_no_more_at_a_time_than_the_namespaces_quota(store: SqlStore) -> None:
    """Of all its functions, the longest waiting first; another one is not held up; a raised quota lets more in."""
    access = Access(store, Clock())
    access.set_quota("n", Quota(concurrency=1))

    async def scenario(work: Work, controller: Obedient) -> None:
        g, other = replace(SPEC, name="g"), replace(SPEC, namespace="other")
        controller.specs |= {g.key: g, other.key: other}
        jobs = [await work.accept(spec, "", b"in") for spec in (SPEC, SPEC, g, SPEC, other)]
        assert [job.state for job in jobs] == ["running", "waiting", "waiting", "waiting", "running"]
        first, apart = await controller.one(), await controller.one()
        assert [first.activation, apart.activation] == [jobs[0].id, jobs[4].id]
        controller.finish(first)
        second = await controller.one()
        assert second.activation == jobs[1].id
        assert not controller.under_way
        assert access.begin("n") is None
        access.set_quota("n", Quota(concurrency=3))
        work.wake("n")
        rest = [await controller.one(), await controller.one()]
        assert {one.activation for one in (second, *rest)} == {job.id for job in jobs[1:4]}
        for ticket in (apart, second, *rest):
            controller.finish(ticket)
        for job in jobs:
            assert (await work.result(job)).state is JobState.DONE
        assert access.begin("n"), "nothing is counted that is over"

    play(store, scenario, access)
