"""Durable work: requests that are committed before they are accepted, and answered once whatever dies meanwhile.

At least once: an attempt that ended with its instance, its node or the server is followed by another one, after
the instance is known dead (a new server starts when the old one's containers are gone). Whoever has the same
idempotency key gets the same answer, which nobody sees before it is committed.

Attempts that ended with the server (or its lease) are counted apart, against a limit of their own: they are seldom
the job's fault, but a job that brings the server down must not do so for ever.

Only ids and times of what waits are held in memory; bodies stay in the store until their turn.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import logging
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakValueDictionary

from msgspec.structs import replace

from instainfer.books import Ticket
from instainfer.clock import Clock
from instainfer.controller import Controller
from instainfer.errors import (
    Conflict,
    InstaInferError,
    InstanceCrashed,
    NotFound,
    Overloaded,
    Stopping,
    Unavailable,
    from_problem,
)
from instainfer.model import Attempt, FunctionSpec, Job, JobState
from instainfer.store.base import Store
from instainfer.store.commits import Commits

log = logging.getLogger("instainfer.work")

#: Errors after which another attempt may do better: what failed was not the function's answer.
AGAIN = frozenset({"unavailable", "stopping", "overloaded", "instance_crashed"})
#: Instead of an error's code, of an attempt that ended with the server.
INTERRUPTED = "interrupted"
#: A job that was interrupted so often may be the reason. Of such ones the next begins when the last has ended, so
#: that the one that is takes no other with it: those that wait for their turn are not interrupted.
SUSPECT = 3
BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
#: Of one function at a time: what its instances can run, and a few so that none waits for the store.
AT_ONCE = 32


class Work:
    """`attempts`: after so many a job is dead; `interruptions`: or after so many of these; `most`: jobs that may
    wait, of one namespace. `begin` is asked before an attempt of a namespace begins: what to call when that
    is over, or None, and then `wake` is to be called when there may be room for it."""

    def __init__(
        self,
        controller: Controller,
        store: Store,
        clock: Clock,
        *,
        attempts: int,
        interruptions: int,
        most: int,
        begin: Callable[[str], Callable[[], None] | None],
    ) -> None:
        self._controller = controller
        self._store = store
        self._clock = clock
        self._attempts = attempts
        self._interruptions = interruptions
        self._most = most
        self._commits = Commits(store)
        self._open: dict[str, Job] = {}  # by id, not over yet; without their bodies
        self._keys: dict[tuple[str, str, str], str] = {}  # of those -> id
        self._counts: dict[str, int] = {}  # of those, by namespace
        self._ready: dict[str, deque[str]] = {}  # by function: ids whose time has come
        self._begin = begin
        self._running: dict[str, int] = {}  # by function
        self._ends: dict[str, Callable[[], None]] = {}  # by job: what `begin` wants to have called
        self._later: list[tuple[float, str]] = []  # a heap: wall time, id
        self._timer: asyncio.TimerHandle | None = None
        self._watchers: dict[str, list[asyncio.Future[Job]]] = {}
        self._locks: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._submitted: dict[str, Ticket] = {}  # by job: those that run, or wait for an instance
        self._suspects: deque[str] = deque()  # ids, the oldest first
        self._suspect = ""  # the one of them whose turn it is
        self._paused = False
        self._stopping = False
        self._unwritten = False  # the end of some job could not be written, and it was said

    async def start(self) -> None:
        """Go on with what an earlier server was given. What it was running ended with it."""
        now = self._clock.wall()
        for job in await asyncio.to_thread(self._store.unfinished_jobs):
            found = self._interrupted(job) if job.state is JobState.RUNNING else job
            interruptions = _interruptions(found)
            if found is not job and interruptions >= self._interruptions:
                log.error("job %s of %s is given up: the server ended with it", job.id, job_function(job))
                await self._write(self._given_up(found, now))
                continue
            self._remember(found)
            if found is not job and interruptions >= SUSPECT:
                self._suspects.append(job.id)
            else:
                self._queue(found)
        self._next_suspect()
        if self._open:
            log.info("going on with %d jobs", len(self._open))

    def _next_suspect(self) -> None:
        self._suspect = self._suspects.popleft() if self._suspects else ""
        if self._suspect:
            self._queue(self._open[self._suspect])

    def _take_up(self, job: Job) -> Job:
        """One that is in the store alone: nobody runs it."""
        if job.state is JobState.RUNNING:
            job = self._interrupted(job)
        self._remember(job)
        self._queue(job)
        return job

    def _interrupted(self, job: Job) -> Job:
        """A running one, as it is when its server is no more."""
        lost = replace(job.attempts[-1], ended=self._clock.wall(), status=INTERRUPTED)
        return replace(job, state=JobState.WAITING, attempts=(*job.attempts[:-1], lost))

    def _given_up(self, job: Job, now: float) -> Job:
        error = InstanceCrashed(
            f"the server ended {_interruptions(job)} times while this ran, or was about to: it may be the reason",
            function=job_function(job),
            hint="what the server's log says of its ends; retrying the job gives it its attempts again",
        )
        return replace(job, state=JobState.DEAD, problem=error.problem(), finished=now)

    def pause(self) -> None:
        """Begin nothing, and end what runs: another server may be about to begin it again."""
        self._paused = True
        for ticket in tuple(self._submitted.values()):
            self._controller.abandon(ticket, "the lease on the database has run out")

    def resume(self) -> None:
        self._paused = False
        for function in tuple(self._ready):
            self._next(function)

    def wake(self, namespace: str) -> None:
        """There may be room for its jobs again: those of all its functions, the longest waiting first."""
        waiting = [function for function in self._ready if function.partition("/")[0] == namespace]
        for function in sorted(waiting, key=lambda name: self._open[self._ready[name][0]].created):
            self._next(function)

    def stop(self) -> None:
        """No further attempts; what runs is the controller's to drain."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()

    async def settle(self) -> None:
        """Wait until what has ended is written; whoever waits for an answer is told that there is none yet."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        for id in tuple(self._watchers):
            self._tell(self._open[id])

    # ---- what callers do -----------------------------------------------------------------------------------

    async def accept(self, spec: FunctionSpec, content_type: str, body: bytes, *, key: str = "") -> Job:
        """A job that is committed: a new one, or the one that has this key already, over or not. Raises Conflict
        where the key came with another body, Overloaded where too many wait, Unavailable."""
        if self._stopping:
            raise Stopping("the server is stopping", hint="send it again", retry_after_s=5)
        if not key:
            return await self._commit(self._new(spec, content_type, body))
        # One after the other: whoever comes second must not be told of a job that is not committed.
        place = (spec.namespace, spec.name, key)
        async with self._locks.setdefault(place, asyncio.Lock()):
            digest = _digest(content_type, body)
            known = await self._by_key(place)
            if known is None:
                return await self._commit(replace(self._new(spec, content_type, body), key=key, digest=digest))
        if known.digest != digest:
            raise Conflict(
                f"the idempotency key {key!r} was used with another body",
                function=spec.key,
                hint="one key is for one request: use a new key",
            )
        return known

    async def _commit(self, job: Job) -> Job:
        """To the end, even if its caller goes away meanwhile: what is in the store and what is held here agree."""
        return await asyncio.shield(asyncio.ensure_future(self._accept(job)))

    async def _accept(self, job: Job) -> Job:
        if self._counts.get(job.namespace, 0) >= self._most:
            raise Overloaded(
                f"{self._most} jobs of namespace {job.namespace!r} wait already",
                function=job_function(job),
                hint="send it again later, or raise limits.jobs",
                retry_after_s=10.0,
            )
        function = job_function(job)
        at_once = self._running.get(function, 0) < AT_ONCE and not self._ready.get(function)
        at_once = at_once and not self._paused and self._enter(job)
        if at_once:
            job = replace(
                job, state=JobState.RUNNING, attempts=(Attempt(began=job.created, ended=0.0, status=""),)
            )
        self._remember(job)
        try:
            if not await self._commits.save(job):
                raise Conflict(f"the key {job.key!r} is being used", function=function, hint="send it again")
        except BaseException:
            self._forget(job)
            if at_once:
                self._leave(job)
            raise
        if at_once:
            self._task(self._run(job, job.body))
        else:
            self._queue(job)
        return job

    async def revive(self, job: Job) -> Job:
        """A dead one gets its attempts again. Raises Conflict where it is not dead."""
        if job.state is not JobState.DEAD or job.id in self._open:
            raise Conflict(f"job {job.id} is not dead: it is {job.state.value}", hint="only dead ones need it")
        job = replace(job, state=JobState.WAITING, due=0.0, attempts=(), problem={}, finished=0.0)
        self._remember(job)
        try:
            await self._commits.save(job)
        except BaseException:
            self._forget(job)
            raise
        self._queue(job)
        return job

    def adopt(self, ticket: Ticket, body: bytes) -> asyncio.Task[Job]:
        """Make a job of a request that runs already and whose caller will come back for its answer. The task ends
        when that is committed."""
        job = replace(
            self._new(ticket.spec, ticket.content_type, body),
            id=ticket.activation,
            state=JobState.RUNNING,
            attempts=(Attempt(began=ticket.wall, ended=0.0, status=""),),
        )
        self._remember(job)
        self._count(job_function(job))  # and no more: its namespace's quota has it

        async def commit() -> Job:
            await self._commits.save(job)
            return job

        return asyncio.create_task(commit())

    def ended(self, ticket: Ticket) -> None:
        """An adopted one was answered."""
        job = self._open.get(ticket.activation)
        if job is not None:
            self._task(self._finish(job, ticket, ticket.error))

    async def find(self, id: str) -> Job:
        """As it is now, with its answer once it is over. Raises NotFound."""
        job = self._open.get(id)
        return job if job is not None else await asyncio.to_thread(self._store.job, id)

    async def result(self, job: Job, seconds: float | None = None) -> Job:
        """When it is over, or as it is after so many seconds."""
        if job.over or job.id not in self._open:
            return job if job.over else await self.find(job.id)
        watcher: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._watchers.setdefault(job.id, []).append(watcher)
        try:
            return await asyncio.wait_for(watcher, seconds)
        except TimeoutError:
            return self._open.get(job.id, job)

    # ---- attempts ------------------------------------------------------------------------------------------

    def _new(self, spec: FunctionSpec, content_type: str, body: bytes) -> Job:
        return Job(
            id=uuid.uuid4().hex,
            namespace=spec.namespace,
            function=spec.name,
            content_type=content_type,
            body=body,
            created=self._clock.wall(),
        )

    async def _by_key(self, place: tuple[str, str, str]) -> Job | None:
        id = self._keys.get(place)
        if id is not None:
            return self._open[id]
        found = await asyncio.to_thread(self._store.job_by_key, *place)
        if found is None or found.over:
            return found
        return self._take_up(found)  # its commit worked, but the connection broke before we heard of it

    def _queue(self, job: Job) -> None:
        if job.due > self._clock.wall():
            heapq.heappush(self._later, (job.due, job.id))
            self._arm()
            return
        function = job_function(job)
        self._ready.setdefault(function, deque()).append(job.id)
        self._next(function)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._later and not self._stopping:
            delay = max(0.0, self._later[0][0] - self._clock.wall())
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._clock.wall()
        while self._later and self._later[0][0] <= now:
            _, id = heapq.heappop(self._later)
            function = job_function(self._open[id])
            self._ready.setdefault(function, deque()).append(id)
            self._next(function)
        self._arm()

    def _next(self, function: str) -> None:
        ready = self._ready.get(function)
        while ready and self._running.get(function, 0) < AT_ONCE and not self._stopping and not self._paused:
            job = self._open[ready[0]]
            if not self._enter(job):
                return
            ready.popleft()
            self._task(self._run(job, None))
        if not ready:
            self._ready.pop(function, None)

    async def _run(self, job: Job, body: bytes | None) -> None:
        """One attempt; that it runs is written before it does. `body`: of one of which it is written already."""
        try:
            if body is None:
                body = (await asyncio.to_thread(self._store.job, job.id)).body
                began = Attempt(began=self._clock.wall(), ended=0.0, status="")
                job = replace(job, state=JobState.RUNNING, attempts=(*job.attempts, began))
                self._open[job.id] = job
                await self._commits.save(job)
            spec = self._controller.specs.get(job_function(job))
            if spec is None:
                raise NotFound(f"there is no function {job_function(job)}", function=job_function(job))
            if self._paused:
                raise Unavailable("the lease on the database has run out", function=spec.key)
            ended: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
            given = self._controller.submit(spec, job.content_type, body, ended.set_result, activation=job.id)
            self._submitted[job.id] = given
            try:
                ticket = await ended
            finally:
                del self._submitted[job.id]
        except InstaInferError as error:
            await self._finish(job, None, error)
            return
        await self._finish(job, ticket, ticket.error)

    async def _finish(self, job: Job, ticket: Ticket | None, error: InstaInferError | None) -> None:
        now = self._clock.wall()
        kind, answer = ("", b"") if ticket is None or ticket.answer is None else ticket.answer
        start = "" if ticket is None else ticket.start
        again = error is not None and error.code in AGAIN
        status = "ok" if error is None else INTERRUPTED if again and self._paused else error.code
        attempts = (
            (*job.attempts[:-1], replace(job.attempts[-1], ended=now, status=status)) if job.attempts else ()
        )
        problem = {} if error is None else error.problem()
        job = replace(job, attempts=attempts, answer_type=kind, answer=answer, problem=problem, start=start)
        failed = sum(one.status != INTERRUPTED for one in attempts)
        if again and self._stopping:  # the server's own end: the next one goes on with it
            job = replace(job, state=JobState.WAITING, due=0.0, attempts=attempts[:-1])
        elif again and status == INTERRUPTED:  # this one has lost its lease, and may get it again
            job = replace(job, state=JobState.WAITING, due=0.0)
        elif again and failed < self._attempts:
            wait = min(BACKOFF_S * 2 ** max(0, failed - 1), LONGEST_BACKOFF_S)
            job = replace(job, state=JobState.WAITING, due=now + wait)
        else:
            dead = again or status == "not_found"
            job = replace(job, state=JobState.DEAD if dead else JobState.DONE, finished=now)
        await self._write(job)
        self._leave(job)
        if job.over:
            self._forget(job)
            self._tell(job)
        else:
            self._open[job.id] = job
            if not self._stopping:
                self._queue(job)
        self._next(job_function(job))
        if job.id == self._suspect and not self._stopping:
            self._next_suspect()

    async def _write(self, job: Job) -> None:
        """As often as it takes: an answer that cannot be written is not given up, since it may not be computed
        twice while the first is known. Said once, of however many, until one can be written again."""
        wait = 0.1
        while True:
            try:
                await self._commits.save(job)
            except InstaInferError as error:
                if self._stopping:
                    log.error("the end of job %s is not written; it will run again: %s", job.id, error.message)
                    return
                if not self._unwritten:
                    log.warning("the end of job %s is not written yet: %s", job.id, error.message)
                self._unwritten = True
                await asyncio.sleep(wait)
                wait = min(2 * wait, 5.0)
            else:
                if self._unwritten:
                    self._unwritten = False
                    log.info("ends of jobs are written again")
                return

    def _tell(self, job: Job) -> None:
        for watcher in self._watchers.pop(job.id, ()):
            if not watcher.done():
                watcher.set_result(job)

    def _enter(self, job: Job) -> bool:
        """False where its namespace's quota has no room for it now."""
        end = self._begin(job.namespace)
        if end is None:
            return False
        self._ends[job.id] = end
        self._count(job_function(job))
        return True

    def _count(self, function: str) -> None:
        self._running[function] = self._running.get(function, 0) + 1

    def _leave(self, job: Job) -> None:
        function = job_function(job)
        self._running[function] -= 1
        if not self._running[function]:
            del self._running[function]
        end = self._ends.pop(job.id, None)
        if end is not None:
            end()

    # ---- books ---------------------------------------------------------------------------------------------

    def _remember(self, job: Job) -> None:
        self._open[job.id] = replace(job, body=b"")
        if job.key:
            self._keys[job.namespace, job.function, job.key] = job.id
        self._counts[job.namespace] = self._counts.get(job.namespace, 0) + 1

    def _forget(self, job: Job) -> None:
        if self._open.pop(job.id, None) is None:
            return
        self._keys.pop((job.namespace, job.function, job.key), None)
        self._counts[job.namespace] -= 1
        if not self._counts[job.namespace]:
            del self._counts[job.namespace]

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a job's attempt failed", exc_info=error)


def job_function(job: Job) -> str:
    return f"{job.namespace}/{job.function}"


def _interruptions(job: Job) -> int:
    return sum(one.status == INTERRUPTED for one in job.attempts)


def error_of(job: Job) -> InstaInferError | None:
    """What it ended with instead of an answer."""
    return from_problem(job.problem) if job.problem else None


def _digest(content_type: str, body: bytes) -> str:
    return hashlib.sha256(content_type.encode() + b"\0" + body).hexdigest()
