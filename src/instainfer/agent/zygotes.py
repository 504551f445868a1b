"""Library zygotes of this node: processes that have imported an environment's libraries and wait to be forked
(runtime/zygote.py).

Each lives in a room of its own: a container that no function ever owns, whose user namespace maps the functions of
this one environment and nobody else. There it holds the right to become another uid, so that its forks become
their functions; whatever it imports can reach no further than those who import it too. Its forks stay in the room
for their namespaces, and belong to their containers by control groups: memory, freezer, processes. The room
outlives the zygote until the last of them is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from instainfer.agent.base import Revision
from instainfer.agent.instance import Output
from instainfer.agent.link import ManagerLink
from instainfer.agent.room import BOOT, FIRST_UID, Maker, Process, Room
from instainfer.agent.starting import environment
from instainfer.core.actions import StartZygote
from instainfer.core.events import ZygoteLost, ZygoteReady
from instainfer.errors import InstaInferError
from instainfer.sandbox.base import Container, ContainerSpec

log = logging.getLogger(__name__)

HELLO_S = 10.0
UID = 999  # inner uid of a zygote
GRAIN = 1 << 20  # bytes by which a zygote has to change before it is worth an event
NAME = "zygote"  # of its process in its room

Open = Callable[[ContainerSpec], Awaitable[Container]]


class Refused(Exception):
    """These libraries cannot be forked; another try would end the same way."""


class Zygote:
    """One, from its start to its end."""

    def __init__(self, name: str, libraries: str, numbers: frozenset[int]) -> None:
        self.name = name
        self.libraries = libraries
        self.numbers = numbers  # of the functions that it may fork
        self.import_s = 0.0
        self.told = 0  # bytes
        self._room: Room | None = None
        self._process: Process | None = None
        self._output: Output | None = None
        self._maker: Maker | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # why it is gone
        self.closed = asyncio.Event()  # and its room too

    @property
    def maker(self) -> Maker | None:
        """What forks, while it can."""
        maker = self._maker
        return maker if maker is not None and maker.link.lost is None else None

    async def start(
        self, open: Open, spec: ContainerSpec, revisions: Sequence[Revision], limit: int, *, apart: bool
    ) -> None:
        """Return when it can be forked. Raises Refused, Unavailable, InstanceCrashed, OSError; then it is gone."""
        first = revisions[0]
        modules = list(dict.fromkeys(module for revision in revisions for module in revision.modules))
        container = await open(spec)
        room = self._room = Room(container, on_lost=self._room_lost)
        try:
            await room.link.hello(HELLO_S)
            bare = msgspec.structs.replace(first, threads=1, number=UID - FIRST_UID)
            process = self._process = await room.maker.make(
                NAME,
                into=container,
                argv=[first.python, "-s", "-B", str(BOOT), "zygote", "3"],
                env=environment(bare, apart=apart),
                cwd="/",
                uid=UID if apart else None,
                limit=limit,
                packets=True,
                caps=apart,
            )
            self._watching = asyncio.get_running_loop().create_task(self._watch(process))
            self._output = Output(process.spawned.stdout_fd, process.spawned.stderr_fd, first.log_bytes)
            process.spawned.sock.send(json.dumps({"modules": modules, "apart": apart}).encode())
            link = ManagerLink(process.spawned.sock, on_lost=lambda reason: self._over(self._why(reason)))
            hello = await link.hello(first.load_timeout_s)
            about: dict[str, Any] = dict(hello.about)
            if refused := str(about.get("refused") or ""):
                raise Refused(refused)
            self.import_s = int(about.get("import_us") or 0) / 1e6
            self._maker = Maker(room, link)
        except BaseException as error:
            self._over(str(error))
            raise
        room.empty = self._left

    def _why(self, reason: str) -> str:
        with suppress(OSError):
            if self._room is not None and self._room.container.oom_killed(NAME):
                return "it went over its memory limit"
        printed = "".join(text for _, text in self._output.take())[-500:] if self._output is not None else ""
        return f"{reason}; it printed: {printed}" if printed else reason

    async def _watch(self, process: Process) -> None:
        """Its control socket does not tell: a child that a library left behind may have it open."""
        exit = await process.ended()
        self._over(self._why(f"it {exit.how}"))

    def bytes(self) -> int:
        """Takes milliseconds; may be called from a thread."""
        return 0 if self._room is None else self._room.container.usage().instances.get(NAME, 0)

    def end(self, reason: str) -> None:
        """What was forked from it lives on."""
        self._over(reason)

    def _over(self, reason: str) -> None:
        if self.lost.done():
            return
        self.lost.set_result(reason)
        self._maker = None
        if self._room is not None:
            with suppress(OSError):  # its group is gone, and it with it
                self._room.container.kill(NAME)
        if self._room is None or not self._room.inhabited:
            self._left()

    def _room_lost(self, reason: str) -> None:
        """Where the kernel does not end everybody in it with its manager, we do."""
        self._over(f"its room's manager is gone: {reason}")
        self._left()

    def _left(self) -> None:
        """The last fork has left the room."""
        if self.lost.done() and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self.close())

    async def close(self) -> None:
        """End it, its room and whatever lives in it. Idempotent."""
        self._over("the node is closing")
        try:
            if self._room is not None:
                self._room.link.close()
                await self._room.container.destroy()
        except OSError as error:
            said = str(error) or "it did not end in time"
            log.warning("the room of zygote %s is given up, though something may be left: %s", self.name, said)
        finally:
            if self._output is not None:
                self._output.close()
                self._output = None
            self.closed.set()


class Zygotes:
    """All of a node, by the name that the core gave them."""

    def __init__(self, report: Callable[[ZygoteReady | ZygoteLost], None], open: Open, *, apart: bool) -> None:
        self._report = report
        self._open = open
        self._apart = apart
        self._all: dict[str, Zygote] = {}
        self._rooms: set[Zygote] = set()  # ended ones whose forks live on, too

    def of(self, revision: Revision) -> Maker | None:
        """What can fork an instance of this revision: the newest that may."""
        for zygote in reversed(self._all.values()):
            if zygote.libraries == revision.libraries and revision.number in zygote.numbers:
                maker = zygote.maker
                if maker is not None:
                    return maker
        return None

    async def start(self, command: StartZygote, spec: ContainerSpec, revisions: Sequence[Revision]) -> None:
        """Reports ZygoteReady, and sooner or later ZygoteLost."""
        zygote = Zygote(command.zygote, command.libraries, frozenset(r.number for r in revisions))
        self._all[command.zygote] = zygote
        self._rooms.add(zygote)
        refused = False
        try:
            await zygote.start(self._open, spec, revisions, command.limit, apart=self._apart)
            size = zygote.told = await asyncio.to_thread(zygote.bytes)
            self._report(ZygoteReady(zygote=command.zygote, import_s=zygote.import_s, bytes=size))
        except Refused as error:
            refused = True
            zygote.end(str(error))
        except (InstaInferError, OSError, TimeoutError) as error:
            zygote.end(str(error))
        reason = await asyncio.shield(zygote.lost)
        self._all.pop(command.zygote, None)
        self._report(ZygoteLost(zygote=command.zygote, reason=reason, refused=refused))
        await zygote.closed.wait()
        self._rooms.discard(zygote)

    def end(self, name: str, reason: str) -> None:
        zygote = self._all.get(name)
        if zygote is not None:
            zygote.end(reason)
        else:
            self._report(ZygoteLost(zygote=name, reason=reason))

    def end_all(self, reason: str) -> None:
        for zygote in tuple(self._all.values()):
            zygote.end(reason)

    def changed(self) -> dict[str, int]:
        """Bytes of each that is ready and not as large any more as was last said. May be called from a thread."""
        found = {}
        for name, zygote in tuple(self._all.items()):
            if zygote.maker is not None:
                with suppress(OSError):
                    size = zygote.bytes()
                    if abs(size - zygote.told) >= GRAIN:
                        zygote.told = found[name] = size
        return found

    async def aclose(self) -> None:
        await asyncio.gather(*(zygote.close() for zygote in tuple(self._rooms)), return_exceptions=True)
        self._rooms.clear()
