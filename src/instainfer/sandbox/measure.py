"""What processes hold, and who is over its limit, where the kernel does not look after it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from instainfer.sandbox.base import Usage

POLL_S = 0.25


def inherited(pid: int) -> int:
    """Bytes of anonymous and shared memory that a process which was only just forked has of its parent: all
    that it maps. Takes microseconds. 0 when it is gone."""
    table = _table(f"/proc/{pid}/status")
    return table.get(b"RssAnon", 0) + table.get(b"RssShmem", 0)


def held(pids: Iterable[int], inherited: int = 0) -> int:
    """Bytes of anonymous and shared memory that an instance has made, where no control group counts them.
    `pids` are its processes (those that have gone hold nothing), `inherited` is what the first of them had at
    its start. Takes the kernel some 10 ms per GB mapped.

    /proc tells how many processes map a page, not which. Pages that nobody else maps (`Private`) are its own but
    miss what it shares with its children: who allocates and then forks would weigh nothing. Shares (`Pss`) count
    that, and a part of whatever it was forked from as well; and a process that others were forked from has all
    it made, though its share sinks with each of them (`Anonymous`). Of the last two at most `inherited` is not
    its own, so that each of the three, less that, is a floor. The highest is exact for an only process that
    nobody forks from, and never too low by more than `inherited`."""
    private = shares = largest = 0
    for pid in pids:
        table = _table(f"/proc/{pid}/smaps_rollup")
        shared = table.get(b"Pss_Shmem", 0)
        share = table.get(b"Pss_Anon", 0) + shared
        # Private_Clean is file pages. So are those of Private_Dirty that were written to a file a moment ago.
        private += min(table.get(b"Private_Dirty", 0), share)
        shares += share
        largest = max(largest, table.get(b"Anonymous", 0) + shared)
    return max(private, shares - inherited, largest - inherited)


def _table(path: str) -> dict[bytes, int]:
    """Lines of "Name: number kB" in bytes; {} when the process is gone."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # the last: an exec is under way
        return {}
    fields = (line.split() for line in lines if line.endswith(b" kB"))
    return {field[0].rstrip(b":"): int(field[1]) << 10 for field in fields}


def over(usage: Usage, limits: Mapping[str, int], limit: int) -> str | None:
    """Whom to kill: an instance over its own limit, or the largest one when the container is over its."""
    for instance, size in usage.instances.items():
        if size > limits.get(instance, size):
            return instance
    if usage.anonymous > limit and usage.instances:
        return max(usage.instances, key=lambda instance: usage.instances[instance])
    return None


class Poller:
    """Kills for memory every 250 ms, as the kernel does where it may: enforcement by looking."""

    def __init__(self, look: Callable[[], str | None], kill: Callable[[str], None]) -> None:
        """`look` reads files and runs in a thread; `kill` runs in the loop."""
        self.killed: set[str] = set()
        self._look = look
        self._kill = kill
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            victim = await asyncio.to_thread(self._look)
            if victim is not None:
                self.killed.add(victim)
                self._kill(victim)
