"""What processes hold, and who is over its limit, where the kernel does not look after it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from instainfer.sandbox.base import Usage

POLL_S = 0.25


def held(pids: Iterable[int]) -> int:
    """Bytes of `Pss_Anon` + `Pss_Shmem` over `pids`; those that have gone hold nothing. Takes the kernel some
    10 ms per GB mapped."""
    total = 0
    for pid in pids:
        try:
            with Path(f"/proc/{pid}/smaps_rollup").open("rb") as file:
                lines = file.read().splitlines()
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # the last: an exec is under way
            continue
        for line in lines:
            if line.startswith((b"Pss_Anon:", b"Pss_Shmem:")):
                total += int(line.split()[1]) << 10
    return total


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
