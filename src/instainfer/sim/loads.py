"""The work of one node: loads, and inferences where those take processors from loads. What is more than its
processors can do at a time goes slower."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

from instainfer.sim.engine import Engine

_CLOSE = 1e-9  # seconds of work: what is left of a job by rounding


class Job:
    """`work_s`: with a processor of its own; infinite for one that is ended from outside (`suspend`). `spent_s`:
    so far, without the time in which it was suspended."""

    __slots__ = ("done", "entry", "left_s", "resumed", "spent_s", "work_s")

    def __init__(self, work_s: float, done: Callable[[], None]) -> None:
        self.work_s = work_s
        self.left_s = work_s
        self.done = done
        self.spent_s = 0.0
        self.resumed = 0.0
        self.entry = 0  # of the heap; 0: it does not run

    @property
    def slowed(self) -> float:
        """Of one that is done: how much longer it took than with a processor of its own."""
        return self.spent_s / self.work_s if self.work_s > 0.0 else 1.0


class Loads:
    """Processor sharing: with n jobs on k processors each goes on at min(1, k / n) of full speed. That is what a
    kernel does with processes of one thread and equal weights."""

    def __init__(self, engine: Engine, processors: int) -> None:
        self._engine = engine
        self._processors = max(processors, 1)
        self._running = 0
        self._work = 0.0  # seconds of work that a job would have got done so far
        self._at = 0.0  # when that was so
        self._ends: list[tuple[float, int, Job]] = []  # at which `_work` each ends; stale entries among them
        self._entries = 0
        self._look = 0  # number of the last look that was asked for: earlier ones are void

    def resume(self, job: Job) -> None:
        """Start it, or go on with it."""
        self._advance()
        self._entries += 1
        job.entry = self._entries
        job.resumed = self._engine.now
        heappush(self._ends, (self._work + job.left_s, job.entry, job))
        self._running += 1
        self._look_again()

    def suspend(self, job: Job) -> None:
        """Stop it for a while, or for good. Nothing happens if it does not run."""
        if not job.entry:
            return
        self._advance()
        end = next(end for end, entry, _ in self._ends if entry == job.entry)
        job.left_s = max(0.0, end - self._work)
        self._stop(job)
        self._look_again()

    def _stop(self, job: Job) -> None:
        job.entry = 0
        job.spent_s += self._engine.now - job.resumed
        self._running -= 1

    def _advance(self) -> None:
        now = self._engine.now
        if self._running:
            self._work += (now - self._at) * min(1.0, self._processors / self._running)
        self._at = now

    def _look_again(self) -> None:
        ends = self._ends
        while ends and ends[0][1] != ends[0][2].entry:
            heappop(ends)
        self._look += 1
        if ends and ends[0][0] < inf:
            left = max(0.0, ends[0][0] - self._work)
            look = self._look
            at = self._engine.now + left / min(1.0, self._processors / self._running)
            self._engine.call(at, lambda: self._end(look))

    def _end(self, look: int) -> None:
        if look != self._look:
            return
        self._advance()
        ended: list[Job] = []
        ends = self._ends
        while ends and (ends[0][1] != ends[0][2].entry or ends[0][0] <= self._work + _CLOSE):
            _, entry, job = heappop(ends)
            if entry == job.entry:
                job.left_s = 0.0
                self._stop(job)
                ended.append(job)
        self._look_again()
        for job in ended:
            job.done()
