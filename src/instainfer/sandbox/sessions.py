"""A container whose instances are held by what any user may do: signals and reading /proc.

An instance is the session that its process leads, plus descendants that are still linked to it. One that has
left both is found again only by its mark, if the sandbox gave it one, or dies with the container.
"""

# /proc is walked for every freeze, and pathlib takes three times as long.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from instainfer.sandbox.base import Usage
from instainfer.sandbox.measure import Poller, held, over

FREEZE_S = 2.0
EMPTY_S = 10.0
STOPPED = frozenset("TtZX")


class SessionContainer:
    """See base.Container. `end` kills the manager and what else it is made of, and returns when it is gone."""

    def __init__(self, id_: str, control: socket.socket, limit: int, end: Callable[[], Awaitable[None]]) -> None:
        self.id = id_
        self.control = control
        self._limit = limit
        self._end = end
        self._leaders: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        self._poller = Poller(self._over, self.kill)
        self._ending: asyncio.Task[None] | None = None

    def doors(self, instance: str, *, limit: int) -> list[int]:
        return []

    def attach(self, instance: str, pid: int, *, limit: int) -> None:
        os.kill(pid, 0)
        self._leaders[instance] = pid
        self._limits[instance] = limit
        self._poller.start()

    async def freeze(self, instance: str) -> None:
        try:
            async with asyncio.timeout(FREEZE_S):
                pause = 0.0
                while running := [pid for pid, state in self._members(instance).items() if state not in STOPPED]:
                    for pid in running:  # again each time: a new child appears until its parent has stopped
                        _signal(pid, signal.SIGSTOP)
                    await asyncio.sleep(pause)
                    pause = min(0.01, pause + 0.0005)
        except TimeoutError:
            self.thaw(instance)
            raise

    def thaw(self, instance: str) -> None:
        for pid in self._members(instance):
            _signal(pid, signal.SIGCONT)

    def kill(self, instance: str) -> None:
        done: set[int] = set()
        while new := self._members(instance).keys() - done:
            for pid in new:
                _signal(pid, signal.SIGKILL)
            done |= new

    async def detach(self, instance: str) -> None:
        if instance not in self._leaders:
            return
        async with asyncio.timeout(EMPTY_S):
            pause = 0.0005
            while any(state not in "ZX" for state in self._members(instance).values()):
                self.kill(instance)
                await asyncio.sleep(pause)
                pause = min(0.02, pause * 2)
        self._leaders.pop(instance, None)
        self._limits.pop(instance, None)

    def resize(self, limit: int) -> None:
        self._limit = limit

    def usage(self) -> Usage:
        table = processes()
        instances = {name: held(members(pid, table)) for name, pid in tuple(self._leaders.items())}
        return Usage(sum(instances.values()), instances)

    def oom_killed(self, instance: str) -> bool:
        return instance in self._poller.killed

    async def destroy(self) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._destroy())
        await asyncio.shield(self._ending)

    async def _destroy(self) -> None:
        await self._poller.stop()
        for instance in self._leaders:
            self.kill(instance)
        await self._end()
        self._leaders.clear()
        self._limits.clear()
        self.control.close()

    def _members(self, instance: str) -> dict[int, str]:
        leader = self._leaders.get(instance)
        return {} if leader is None else members(leader, processes())

    def _over(self) -> str | None:
        return over(self.usage(), self._limits, self._limit)


def processes() -> dict[int, tuple[str, int, int]]:
    """pid -> (state, parent, session) of every process that this one may see."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with (
                contextlib.suppress(FileNotFoundError, ProcessLookupError),
                open(f"/proc/{name}/stat", "rb") as file,
            ):
                # the name in parentheses may hold anything, a parenthesis too: what counts is after the last
                fields = file.read().rpartition(b")")[2].split()
                found[int(name)] = (fields[0].decode(), int(fields[1]), int(fields[3]))
    return found


def members(leader: int, table: dict[int, tuple[str, int, int]]) -> dict[int, str]:
    """pid -> state of `leader`, its session and its descendants."""
    inside = {pid for pid, (_, _, session) in table.items() if leader in (pid, session)}
    while more := {pid for pid, (_, parent, _) in table.items() if parent in inside} - inside:
        inside |= more
    return {pid: table[pid][0] for pid in inside}


def marked(variable: str, prefix: str) -> list[int]:
    """Processes that were started with the environment variable beginning with `prefix`."""
    line = f"{variable}={prefix}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                environ = Path("/proc", name, "environ").read_bytes()
                if any(word.startswith(line) for word in environ.split(b"\0")):
                    found.append(int(name))
    return found


async def end_marked(variable: str, prefix: str) -> None:
    """Kill them until there are none. Raises TimeoutError after 10 s."""
    async with asyncio.timeout(EMPTY_S):
        while pids := marked(variable, prefix):
            for pid in pids:
                _signal(pid, signal.SIGKILL)
            await asyncio.sleep(0.005)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
