"""A container whose instances are held by control groups."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable

from instainfer.sandbox.base import Usage
from instainfer.sandbox.cgroups import Groups
from instainfer.sandbox.measure import Poller, held, inherited, over

FREEZE_S = 2.0
EMPTY_S = 10.0


class GroupedContainer:
    """See base.Container. `end` kills the manager and returns when it has been reaped. `home` is the manager's
    pid namespace."""

    def __init__(
        self,
        id_: str,
        control: socket.socket,
        groups: Groups,
        limit: int,
        end: Callable[[], Awaitable[None]],
        *,
        home: int,
    ) -> None:
        self.id = id_
        self.control = control
        self._groups = groups
        self._limit = limit
        self._end = end
        self._home = home
        self._limits: dict[str, int] = {}
        self._lodgings: dict[str, int] = {}  # pid namespaces of those that were forked elsewhere
        self._inherited: dict[str, int] = {}
        self._dead_of_memory: set[str] = set()
        self._ending: asyncio.Task[None] | None = None
        self._poller = None if "memory" in groups.controllers else Poller(self._over, self.kill)

    def doors(self, instance: str, *, limit: int, outside: bool = False) -> list[int]:
        self._groups.add_instance(self.id, instance, limit=limit)
        self._limits[instance] = limit
        return self._groups.doors(self.id, instance, outside=outside)

    def attach(self, instance: str, pid: int, *, limit: int) -> None:
        if self._limits.get(instance) != limit:  # its doors were not opened
            self._groups.add_instance(self.id, instance, limit=limit)
            self._limits[instance] = limit
        self._groups.take(self.id, instance, pid)
        home = pid_namespace(pid)
        if home != self._home:
            self._lodgings[instance] = home
        if self._poller is not None:
            self._inherited[instance] = inherited(pid)
            self._poller.start()

    async def freeze(self, instance: str) -> None:
        self._groups.freeze(self.id, instance)
        try:
            async with asyncio.timeout(FREEZE_S):
                pause = 0.0
                while not self._groups.frozen(self.id, instance):
                    await asyncio.sleep(pause)
                    pause = min(0.01, pause + 0.0005)
        except TimeoutError:
            self._groups.thaw(self.id, instance)
            raise

    def thaw(self, instance: str) -> None:
        self._groups.thaw(self.id, instance)

    def kill(self, instance: str) -> None:
        if instance in self._limits:
            self._groups.kill(self.id, instance)

    def evict(self, home: int) -> None:
        """Kill the instances that live in this pid namespace: it is to end, and the kernel waits for every
        process in it, even for one that is frozen here (which on cgroup v1 SIGKILL does not wake)."""
        for instance, lodging in tuple(self._lodgings.items()):
            if lodging == home:
                self.kill(instance)

    async def detach(self, instance: str) -> None:
        if self._limits.pop(instance, None) is None:
            return
        self._lodgings.pop(instance, None)
        self._inherited.pop(instance, None)
        async with asyncio.timeout(EMPTY_S):
            await _until_empty(self._groups, self.id, instance)
            if self._groups.oom_kills(self.id, instance):
                self._dead_of_memory.add(instance)
            await _removed(lambda: self._groups.remove_instance(self.id, instance))

    def resize(self, limit: int) -> None:
        self._groups.resize(self.id, limit)
        self._limit = limit

    def share(self, cpus: float) -> None:
        self._groups.share(self.id, cpus)

    def usage(self) -> Usage:
        names = tuple(self._limits)
        if self._poller is None:
            charged = {name: self._groups.anonymous(self.id, name) for name in names}
            return Usage(self._groups.anonymous(self.id), charged)
        instances = {name: held(self._groups.pids(self.id, name), self._inherited.get(name, 0)) for name in names}
        return Usage(sum(instances.values()), instances)

    def oom_killed(self, instance: str) -> bool:
        if self._poller is not None and instance in self._poller.killed:
            return True
        if instance in self._dead_of_memory:
            return True
        return instance in self._limits and self._groups.oom_kills(self.id, instance) > 0

    async def destroy(self) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._destroy())
        await asyncio.shield(self._ending)

    async def _destroy(self) -> None:
        if self._poller is not None:
            await self._poller.stop()
        # The kernel ends the pid namespace when its pid 1 dies, but waits for every process in it, and a frozen
        # one dies only after thawing: so both at once.
        try:
            self._groups.kill(self.id)
            await self._end()
            await end_container(self._groups, self.id)
        finally:
            self._limits.clear()
            self._lodgings.clear()
            self.control.close()

    def _over(self) -> str | None:
        return over(self.usage(), self._limits, self._limit)


def pid_namespace(pid: int) -> int:
    """Its number. Raises ProcessLookupError when the process is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino  # noqa: PTH116 # on the way of every start
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, "it is gone", str(pid)) from None


async def end_container(groups: Groups, container: str) -> None:
    """Kill what is in it and remove it. Raises TimeoutError after 10 s."""
    async with asyncio.timeout(EMPTY_S):
        await _until_empty(groups, container)
        await _removed(lambda: groups.remove_container(container))


async def _until_empty(groups: Groups, container: str, instance: str | None = None) -> None:
    pause = 0.0005
    while groups.pids(container, instance):
        groups.kill(container, instance)
        await asyncio.sleep(pause)
        pause = min(0.02, pause * 2)


async def _removed(remove: Callable[[], None]) -> None:
    """The last process is gone from the list shortly before the group may be removed."""
    while True:
        with contextlib.suppress(OSError):
            return remove()
        await asyncio.sleep(0.001)
