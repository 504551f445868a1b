"""A container as a place where processes are started, and what starts them."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from instainfer.agent.link import Exit, ManagerLink, Spawned
from instainfer.errors import InstaInferError
from instainfer.sandbox import children
from instainfer.sandbox.base import Container

BOOT = Path(__file__).resolve().parent.parent / "runtime" / "boot.py"
FIRST_UID = 1000  # inner uids of functions: 1000 + number
ERASE_S = 10.0
ERASE_MEMORY = 64 << 20
TOLD_S = 0.5  # how long after the end of a process its parent has to tell how it ended
LIMITS = {"nofile": 1024, "core": 0}


class Room:
    """The namespaces of one container, and who lives in them: mostly the container's own instances; in the room of
    a library zygote, instances that by their control groups belong to other containers."""

    def __init__(self, container: Container, *, on_lost: Callable[[str], None]) -> None:
        self.container = container
        self.link = ManagerLink(container.control, on_lost=on_lost)
        self.maker = Maker(self, self.link)
        self.empty: Callable[[], None] | None = None  # called when the last one has left
        self._people: dict[str, int | None] = {}  # instance -> the uid that it has in here
        self._erasures = itertools.count()

    def enter(self, instance: str, uid: int | None) -> None:
        self._people[instance] = uid

    async def leave(self, instance: str) -> None:
        """It is gone: erase what its function left, if that was the last of it in here."""
        uid = self._people.pop(instance, None)
        if uid is not None and uid not in self._people.values() and self.link.lost is None:
            with suppress(OSError, TimeoutError, InstaInferError):
                await self._erase(uid)
        if not self._people and self.empty is not None:
            self.empty()

    @property
    def inhabited(self) -> bool:
        return bool(self._people)

    async def _erase(self, uid: int) -> None:
        """Delete what this uid left in the scratch: the next function must find none of it, and only the uid
        itself can look into its directories."""
        name = f"erase-{next(self._erasures)}"
        argv = ["/usr/bin/find", "/tmp", "/dev/shm", "-xdev", "-mindepth", "1", "-uid", str(uid), "-delete"]
        process = await self.maker.make(
            name, into=self.container, argv=argv, env={}, cwd="/tmp", uid=uid, limit=ERASE_MEMORY
        )
        process.spawned.close()
        try:
            async with asyncio.timeout(ERASE_S):
                await process.ended()
        finally:
            self.container.kill(name)
            self.link.forget(name)
            await self.container.detach(name)


@dataclass(frozen=True)
class Process:
    """One that has been let go."""

    name: str
    spawned: Spawned
    maker: Maker
    exit: children.Exit | None  # of one whose parent may end before it

    async def ended(self) -> Exit:
        """How it ended, once it has."""
        told = self.maker.link.exited(self.name)
        if self.exit is None:
            return await asyncio.shield(told)
        await self.exit.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(TOLD_S):
                return await asyncio.shield(told)
        return Exit()

    def forget(self) -> None:
        self.maker.link.forget(self.name)


class Maker:
    """What makes instances: a container's manager, a library zygote or a template, each in a room. `settled`:
    it has the uid of what it makes already."""

    def __init__(self, room: Room, link: ManagerLink, *, settled: bool = False) -> None:
        self.room = room
        self.link = link
        self.settled = settled

    async def make(
        self,
        name: str,
        *,
        into: Container,
        argv: Sequence[str] = (),
        env: Mapping[str, str],
        cwd: str,
        uid: int | None,
        limit: int,
        packets: bool = False,
        control: bool = False,
        caps: bool = False,
        warm: bool = False,
    ) -> Process:
        """A process in this room, under a control group of its own in the container `into` before it executes
        anything. Raises OSError, Unavailable, InstanceCrashed."""
        outside = into is not self.room.container
        exit_: children.Exit | None = None

        def attach(pid: int) -> None:
            nonlocal exit_
            if self is not self.room.maker:
                exit_ = children.Exit(os.pidfd_open(pid))
            into.attach(name, pid, limit=limit)

        try:
            spawned = await self.link.spawn(
                name,
                argv=argv,
                env=env,
                cwd=cwd,
                uid=uid,
                gid=uid,
                # what may be written to at all is memory, or (in a measurement) a directory for what it keeps
                limits=LIMITS if uid is None else {**LIMITS, "fsize": limit},
                attach=attach,
                doors=into.doors(name, limit=limit, outside=outside),
                packets=packets,
                control=control,
                caps=caps,
                warm=warm,
            )
        except BaseException:
            with suppress(OSError, TimeoutError):
                await into.detach(name)
            raise
        return Process(name, spawned, self, exit_)
