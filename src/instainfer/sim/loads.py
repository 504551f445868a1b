"""The loads of one node: beyond its slots they slow each other."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from instainfer.sim.engine import Engine

_CLOSE = 1e-9  # seconds of work: what is left of a job by rounding


class Job:
    """`work_s`: with a slot of its own. `spent_s`: so far, without the time in which it was suspended."""

    __slots__ = ("done", "entry", "left_s", "resumed", "spent_s", "work_s")

    def __init__(self, work_s: float, done: Callable[[], None]) -> None:
        self.work_s = work_s
        self.left_s = work_s
        self.done = done
        self.spent_s = 0.0
        self.resumed = 0.0
        self.entry = 0  # of the heap; 0: it does not run


class Loads:
    """Shares the slots evenly: with n jobs on k slots each goes on at min(1, k / n) of full speed."""

    def __init__(self, engine: Engine, slots: int) -> None:
        self._engine = engine
        self._slots = max(slots, 1)
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
            self._work += (now - self._at) * min(1.0, self._slots / self._running)
        self._at = now

    def _look_again(self) -> None:
        ends = self._ends
        while ends and ends[0][1] != ends[0][2].entry:
            heappop(ends)
        self._look += 1
        if ends:
            left = max(0.0, ends[0][0] - self._work)
            look = self._look
            at = self._engine.now + left / min(1.0, self._slots / self._running)
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
