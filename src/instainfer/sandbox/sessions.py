"""A container whose instances are held by what any user may do: signals and reading /proc.

An instance is the session that its process leads, plus descendants that are still linked to it and are no
instance themselves. One that has left both is found again only by its mark, if the sandbox gave it one, or
dies with the container; after a fork in another container the mark is that one's, and so is the end.
"""

# /proc is walked for every freeze, and pathlib takes three times as long.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from instainfer.sandbox.base import Usage
from instainfer.sandbox.measure import Poller, held, inherited, over

FREEZE_S = 2.0
EMPTY_S = 10.0
STOPPED = frozenset("TtZX")


@dataclass(frozen=True)
class Process:
    """A line of /proc."""

    state: str
    parent: int
    session: int
    started: int  # ticks since boot


@dataclass(frozen=True)
class Leader:
    """The process that an instance began as. Its number is free for others once it and its session are gone,
    which the platform learns a little later than the kernel: hence the time of its start."""

    pid: int
    started: int
    inherited: int  # bytes


class SessionContainer:
    """See base.Container. `end` kills the manager and what else it is made of, and returns when it is gone.
    `everyone` is one set for all containers of a sandbox, of who leads an instance in any of them."""

    def __init__(
        self,
        id_: str,
        control: socket.socket,
        limit: int,
        end: Callable[[], Awaitable[None]],
        everyone: set[Leader],
    ) -> None:
        self.id = id_
        self.control = control
        self._limit = limit
        self._end = end
        self._everyone = everyone
        self._leaders: dict[str, Leader] = {}
        self._limits: dict[str, int] = {}
        self._poller = Poller(self._over, self.kill)
        self._ending: asyncio.Task[None] | None = None

    def doors(self, instance: str, *, limit: int, outside: bool = False) -> list[int]:
        return []

    def attach(self, instance: str, pid: int, *, limit: int) -> None:
        process = look(pid)
        if process is None:
            raise ProcessLookupError(errno.ESRCH, "it is gone", str(pid))
        self._forget(instance)
        self._leaders[instance] = Leader(pid, process.started, inherited(pid))
        self._everyone.add(self._leaders[instance])
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
        await self._emptied(instance)
        self._forget(instance)
        self._limits.pop(instance, None)

    def resize(self, limit: int) -> None:
        self._limit = limit

    def share(self, cpus: float) -> None:
        pass

    def usage(self) -> Usage:
        table = processes()
        others = tuple(self._everyone)
        instances = {
            name: held(members(leader, table, others), leader.inherited)
            for name, leader in tuple(self._leaders.items())
        }
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
        for instance in tuple(self._leaders):  # those that were forked elsewhere did not end with the manager
            await self._emptied(instance)
            self._forget(instance)
        self._limits.clear()
        self.control.close()

    async def _emptied(self, instance: str) -> None:
        async with asyncio.timeout(EMPTY_S):
            pause = 0.0005
            while any(state not in "ZX" for state in self._members(instance).values()):
                self.kill(instance)
                await asyncio.sleep(pause)
                pause = min(0.02, pause * 2)

    def _members(self, instance: str) -> dict[int, str]:
        leader = self._leaders.get(instance)
        return {} if leader is None else members(leader, processes(), self._everyone)

    def _forget(self, instance: str) -> None:
        leader = self._leaders.pop(instance, None)
        if leader is not None:
            self._everyone.discard(leader)

    def _over(self) -> str | None:
        return over(self.usage(), self._limits, self._limit)


def look(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the name in parentheses may hold anything, a parenthesis too: what counts is after the last
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def processes() -> dict[int, Process]:
    """Every process that this one may see, by its pid."""
    looked = ((int(name), look(int(name))) for name in os.listdir("/proc") if name.isdecimal())
    return {pid: process for pid, process in looked if process is not None}


def members(leader: Leader, table: dict[int, Process], everyone: Iterable[Leader]) -> dict[int, str]:
    """pid -> state of `leader`, its session and its descendants, but for leaders among these and theirs."""
    bearer = table.get(leader.pid)
    if bearer is not None and bearer.started != leader.started:
        return {}  # the kernel gives a number away only when it is no session's either
    apart = {other.pid for other in everyone if other.pid in table and table[other.pid].started == other.started}
    inside = {pid for pid, process in table.items() if leader.pid in (pid, process.session)}
    while more := {pid for pid, process in table.items() if process.parent in inside} - inside - apart:
        inside |= more
    return {pid: table[pid].state for pid in inside}


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
    dying: dict[int, Process] = {}  # whose environment the kernel frees long before they are gone
    async with asyncio.timeout(EMPTY_S):
        while True:
            for pid in marked(variable, prefix):
                process = look(pid)
                if process is not None:
                    dying[pid] = process
                    _signal(pid, signal.SIGKILL)
            if not dying:
                return
            await asyncio.sleep(0.005)
            dying = {pid: was for pid, was in dying.items() if _goes_on(pid, was)}


def _goes_on(pid: int, was: Process) -> bool:
    process = look(pid)
    return process is not None and process.started == was.started and process.state not in "ZX"


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
