"""One live container of this node: its commands in order, its instances, their ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from instainfer.agent.base import Cancel, Invoke, Report, Revision, Sink
from instainfer.agent.instance import InstanceHost, Output
from instainfer.agent.link import Exit, ManagerLink
from instainfer.agent.room import BOOT, FIRST_UID, Maker, Process, Room
from instainfer.agent.snapshots import Snapshots
from instainfer.agent.starting import environment, interception
from instainfer.core import actions
from instainfer.core.events import (
    ContainerLost,
    HeldContainer,
    HeldInstance,
    InstanceFailed,
    InstanceLost,
    InstanceReady,
)
from instainfer.errors import InstaInferError, Unavailable
from instainfer.model import Level, Origin
from instainfer.sandbox.base import Container
from instainfer.units import MB, say_mb

log = logging.getLogger(__name__)

HELLO_S = 10.0

Work = (
    actions.Load
    | actions.Raise
    | actions.Offload
    | actions.Freeze
    | actions.Thaw
    | actions.ResizeContainer
    | Invoke
    | Cancel
)

SLOW = (actions.Load, actions.Freeze)  # what follows these waits for them


class Node(Protocol):
    """What a container asks of its agent."""

    snapshots: Snapshots

    async def revision(self, name: str) -> tuple[Revision, Path]:
        """A revision and where its files are, once they are here. Raises Unavailable."""
        ...

    def zygote(self, revision: Revision) -> Maker | None:
        """What this revision may be forked from, now."""
        ...

    def template(self, revision: Revision) -> Maker | None:
        """A loaded process of this revision that serves nobody, now."""
        ...

    def unforkable(self, revision: Revision, reason: str) -> None:
        """It cannot serve as a template, as it turned out."""
        ...

    def ended(self, container: str) -> None: ...


class Resident:
    """An instance in this container: the process that answers, and the template that it was forked from, if this
    container has it. While that one loads, it is the process."""

    def __init__(self, host: InstanceHost, process: Process) -> None:
        self.host = host
        self.process = process
        self.template: Process | None = None
        self.maker: Maker | None = None  # the template's, once it can be forked
        self.ready: InstanceReady | None = None  # what the template's load took
        self.frozen = False
        self.again = False  # where a shorter way of loading fails, the next one is taken

    @property
    def groups(self) -> list[str]:
        """Names of its processes' control groups."""
        return [self.process.name] + ([self.template.name] if self.template is not None else [])


class ContainerHost:
    """Carries out commands in the order in which they came: what follows a Freeze or a Load starts once that
    is confirmed. On the hot path nothing is pending and a command is carried out where it is called."""

    def __init__(self, container: Container, report: Sink, node: Node, *, apart: bool) -> None:
        self.id = container.id
        self.container = container
        self.touched = True  # something ran or loaded since memory was last sampled
        self.residents: dict[str, Resident] = {}
        self.limit = 0  # these are told on to the next controller
        self.function = ""
        self.mounts: tuple[str, ...] = ()
        self.room = Room(container, on_lost=self._manager_lost)
        self._apart = apart  # every function has a uid of its own
        self._sink = report
        self._node = node
        self._pending: deque[Work] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._reasons: dict[str, tuple[str, str, int | None]] = {}  # why we ended an instance
        self._tasks: set[asyncio.Future[None]] = set()
        self._gone = False

    async def ready(self) -> None:
        """Raises Unavailable when the manager does not say hello."""
        await self.room.link.hello(HELLO_S)

    @property
    def revisions(self) -> set[str]:
        return {resident.host.revision.id for resident in self.residents.values()}

    def template(self, revision: str) -> Maker | None:
        for resident in self.residents.values():
            maker = resident.maker
            if maker is not None and maker.link.lost is None and resident.host.revision.id == revision:
                return maker
        return None

    @property
    def busy(self) -> bool:
        """Something runs or loads in it, or is to."""
        if self._gone or self._worker is not None or self._pending:
            return True
        return any(resident.host.busy or not resident.host.wanted for resident in self.residents.values())

    def held(self, sizes: Mapping[str, int]) -> HeldContainer:
        """What there is for another controller. Only where it is not busy."""
        return HeldContainer(
            container=self.id,
            function=self.function,
            limit=self.limit,
            mounts=self.mounts,
            instances=tuple(
                HeldInstance(
                    instance=name,
                    function=f"{resident.host.revision.namespace}/{resident.host.revision.name}",
                    revision=resident.host.revision.id,
                    level=resident.host.wanted,
                    origin=resident.host.origin,
                    bytes=sizes.get(name, 0),
                    served=resident.host.served,
                    frozen=resident.frozen,
                )
                for name, resident in self.residents.items()
            ),
        )

    # ---- commands ------------------------------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        if self._gone:
            return
        if self._worker is None and not isinstance(work, SLOW):
            self._now(work)
            return
        self._pending.append(work)
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._pending and not self._gone:
                work = self._pending.popleft()
                if isinstance(work, actions.Load):
                    await self._load(work)
                elif isinstance(work, actions.Freeze):
                    await self._freeze(work.instance)
                else:
                    self._now(work)
        finally:
            self._worker = None

    def _now(self, work: Work) -> None:
        if isinstance(work, actions.ResizeContainer):
            self._resize(work.limit)
            return
        resident = self.residents.get(work.instance)
        if resident is None:
            return  # it ended meanwhile: InstanceLost was or will be reported
        if isinstance(work, Invoke):
            self.touched = True
            resident.host.invoke(
                work.request, work.activation, work.content_type, work.body, traceparent=work.traceparent
            )
        elif isinstance(work, Cancel):
            resident.host.cancel(work.request)
        elif isinstance(work, actions.Thaw):
            resident.frozen = False
            with suppress(OSError):
                self.container.thaw(resident.process.name)
            resident.host.thawed()
        elif isinstance(work, actions.Raise):
            self.touched = True
            resident.host.lift(work.level)
        elif isinstance(work, actions.Offload):
            self.end(work.instance, work.why.rule, "", None)

    def _resize(self, limit: int) -> None:
        self.limit = limit
        try:
            self.container.resize(limit)
        except OSError as error:
            # The kernel cannot reclaim that much yet; the limit it has stays in force until the next change.
            log.warning("container %s keeps its limit: %s", self.id, error)

    async def _freeze(self, name: str) -> None:
        resident = self.residents.get(name)
        if resident is None:
            return
        resident.host.freezing()
        resident.frozen = True
        try:
            await self.container.freeze(resident.process.name)
        except (OSError, TimeoutError) as error:
            # It must not execute beside the next one: if it cannot be frozen it ends.
            self.end(name, f"it could not be frozen: {error}", "instance_crashed", None)

    # ---- loading -------------------------------------------------------------------------------------------

    async def _load(self, work: actions.Load) -> None:
        try:
            revision, package = await self._node.revision(work.revision)
        except Unavailable as error:
            self._sink(InstanceFailed(instance=work.instance, phase="extract", reason=error.message))
            return
        try:
            await self.load(work.instance, revision, package, work.level, waiting=work.waiting)
        except (OSError, InstaInferError) as error:
            reason = f"its process could not be started: {error}"
            self._sink(InstanceFailed(instance=work.instance, phase="container", reason=reason))

    async def load(self, name: str, revision: Revision, package: Path, level: Level, *, waiting: bool) -> None:
        """By the shortest way there is: from a template, from a zygote, from nothing; whatever fails makes way for
        the next. Where nobody waits, what is loaded becomes a template first, if it can."""
        asked = time.monotonic()
        template = self._node.template(revision) if level >= Level.LOADED else None
        if template is not None:
            try:
                await self.clone(name, revision, package, template, asked=asked, warm=not waiting)
            except (OSError, InstaInferError) as error:
                log.info("%s is loaded anew, its template fails: %s", revision.id, error)
            else:
                return
        spec: dict[str, object] = {}
        snapshot = self._node.snapshots.find(revision)
        if snapshot is not None:
            spec["snapshot"] = snapshot
            self._task(asyncio.to_thread(self._node.snapshots.resident, revision))  # beside the fork
        spec["intercept"] = interception(revision, package, self._node.snapshots, restored=snapshot is not None)
        if waiting:
            spec["sample"] = ""  # whoever waits brings the first call
        as_template = revision.clone and level >= Level.LOADED and (snapshot is None or not waiting)
        zygote = self._node.zygote(revision)
        for maker in (zygote, None) if zygote is not None else (None,):
            try:
                await self.spawn(
                    name, revision, package, level, spec, maker, asked=asked, template=as_template, again=True
                )
            except (OSError, InstaInferError) as error:
                if maker is None:
                    raise
                log.info("%s starts from nothing, its zygote fails: %s", revision.id, error)
            else:
                return

    async def spawn(
        self,
        name: str,
        revision: Revision,
        package: Path,
        level: Level,
        spec: dict[str, object] | None = None,
        maker: Maker | None = None,
        *,
        asked: float | None = None,
        template: bool = False,
        again: bool = False,
    ) -> InstanceHost:
        """Start the process, put it under its cgroup before it executes anything, and tell it to load. `spec`:
        what it is told beyond and instead of the revision's own; `template`: it is to become one, and `name`
        its first fork; `again`: if this fails where a plain load may not, that follows."""
        asked = time.monotonic() if asked is None else asked
        origin = Origin.SPAWNED if maker is None else Origin.FORKED
        process = await self._make(
            f"{name}.t" if template else name, revision, str(package), maker or self.room.maker, control=template
        )
        host = self._host(name, revision, package, process, origin)
        resident = self.residents[name] = Resident(host, process)
        resident.again = again
        if template:
            resident.template = process
        await self._connect(host, process)
        self._watch(name, process)
        host.go(level, asked=asked, spec={**(spec or {}), "template": template})
        return host

    async def clone(
        self, name: str, revision: Revision, package: Path, template: Maker, *, asked: float, warm: bool = False
    ) -> InstanceHost:
        process = await self._make(name, revision, str(package), template, warm=warm)
        host = self._host(name, revision, package, process, Origin.CLONED)
        self.residents[name] = Resident(host, process)
        host.born(asked=asked)
        await self._connect(host, process)
        self._watch(name, process)
        return host

    async def _make(
        self,
        name: str,
        revision: Revision,
        package: str,
        maker: Maker,
        *,
        control: bool = False,
        warm: bool = False,
    ) -> Process:
        # a template has its uid, and may not take another
        uid = FIRST_UID + revision.number if self._apart and not maker.settled else None
        return await maker.make(
            name,
            into=self.container,
            argv=[revision.python, "-s", "-B", str(BOOT), "instance", "3"],
            env=environment(revision, apart=self._apart),
            cwd=package,
            uid=uid,
            limit=revision.memory,
            control=control,
            warm=warm,
        )

    def _host(
        self, name: str, revision: Revision, package: Path, process: Process, origin: Origin
    ) -> InstanceHost:
        spawned = process.spawned
        output = Output(spawned.stdout_fd, spawned.stderr_fd, revision.log_bytes)
        host = InstanceHost(
            name,
            revision,
            str(package),
            origin,
            output,
            lambda report: self._told(name, report),
            lambda reason, code, request: self.end(name, reason, code, request),
        )
        self.touched = True
        process.maker.room.enter(process.name, FIRST_UID + revision.number if self._apart else None)
        return host

    async def _connect(self, host: InstanceHost, process: Process) -> None:
        """From here on it is heard, before this returns too: a clone says at once that it is ready."""
        await asyncio.get_running_loop().create_unix_connection(lambda: host, sock=process.spawned.sock)

    def _told(self, name: str, report: Report) -> None:
        if not isinstance(report, InstanceReady):
            self._sink(report)
            return
        resident = self.residents.get(name)
        if resident is None:
            return
        host = resident.host
        if reason := host.snapshot_refused:
            self._node.snapshots.spoil(host.revision, reason)
        if resident.template is resident.process:  # the template is ready: now the instance itself
            resident.ready = report
            self._task(self._first_clone(name, resident))
            return
        if resident.ready is not None:  # what the two took together
            first = resident.ready
            warmup_s = first.warmup_s + report.warmup_s
            report = msgspec.structs.replace(first, start_s=first.start_s + report.start_s, warmup_s=warmup_s)
        self._sink(report)

    async def _first_clone(self, name: str, resident: Resident) -> None:
        control, template = resident.process.spawned.control, resident.host
        assert control is not None
        maker = Maker(resident.process.maker.room, ManagerLink(control), settled=True)
        try:
            revision, package = template.revision, Path(template.package)
            process = await self._make(name, revision, template.package, maker, warm=template.warming)
        except (OSError, InstaInferError) as error:
            maker.link.close()
            self.end(name, f"its template cannot be forked: {error}", "instance_crashed", None)
            return
        if self.residents.get(name) is not resident or name in self._reasons:  # it was ended meanwhile
            maker.link.close()
            process.spawned.close()
            self.container.kill(process.name)
            await process.ended()
            await self._bury(process)
            return
        host = self._host(name, revision, package, process, template.origin)
        host.details = template.details
        host.born(asked=time.monotonic())
        resident.host, resident.process, resident.maker = host, process, maker
        await self._connect(host, process)
        template.close()
        self._watch(name, process)
        if resident.frozen:  # meanwhile: a run has interrupted the load
            await self._freeze(name)

    # ---- ends ----------------------------------------------------------------------------------------------

    def end(self, name: str, reason: str, code: str, request: int | None) -> None:
        """Kill it; InstanceLost follows when it is gone."""
        resident = self.residents.get(name)
        if resident is not None:
            self._reasons.setdefault(name, (reason, code, request))
            for group in resident.groups:
                with suppress(OSError):  # its group is gone, and it with it
                    self.container.kill(group)

    def _watch(self, name: str, process: Process) -> None:
        self._task(self._ended(name, process))

    def _task(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("container %s: a task failed", self.id, exc_info=error)

    async def _ended(self, name: str, process: Process) -> None:
        exit = await process.ended()
        resident = self.residents.get(name)
        if resident is None or self._gone:
            return
        oom = self.container.oom_killed(process.name)
        await self._bury(process)
        if process is not resident.process:  # a template alone: the instance goes on without it
            resident.template = None
            if resident.maker is not None:
                resident.maker.link.close()
                resident.maker = None
            return
        template = resident.template if resident.template is not process else None
        if template is not None:
            self.container.kill(template.name)
            await template.ended()
            await self._bury(template)
            if resident.maker is not None:
                resident.maker.link.close()
        self.residents.pop(name, None)
        if not self._gone:
            self._lost(name, resident, exit, oom)

    async def _bury(self, process: Process) -> None:
        with suppress(OSError, TimeoutError):
            await self.container.detach(process.name)
        process.forget()
        await process.maker.room.leave(process.name)

    def _lost(self, name: str, resident: Resident, exit: Exit, oom: bool) -> None:
        host = resident.host
        loading = host.loading
        kept = [work.request for work in self._pending if isinstance(work, Invoke) and work.instance == name]
        unread = (*host.close(), *kept)
        ours = self._reasons.pop(name, None)
        reason, code, request = ours or ("", "", None)
        if host.failure is not None and host.failure.phase == "template" and resident.again:
            self._node.unforkable(host.revision, host.failure.reason)
            self._again(name, host, msgspec.structs.replace(host.revision, clone=False))
            return
        if host.restoring and resident.again and (loading or host.failure is not None):
            # What goes wrong with a restored model may go well with a loaded one.
            said = host.failure.reason.partition("\n")[0] if host.failure is not None else reason
            if host.failure is not None or oom or code == "timed_out" or not reason:
                self._node.snapshots.spoil(host.revision, said or f"a process that restored it {exit.how}")
            if host.failure is not None or not (oom or reason):
                self._again(name, host, host.revision)
                return
        if host.failure is not None:
            self._sink(host.failure)
            return
        if oom:
            limit = say_mb(host.revision.memory / MB)
            reason = f"killed: it went over its memory limit of {limit} (set `memory` in function.toml)"
        elif not reason:
            reason = f"its process {exit.how}"
        code = code or "instance_crashed"
        self._sink(InstanceLost(instance=name, reason=reason, code=code, request=request, unread=unread))

    def _again(self, name: str, host: InstanceHost, revision: Revision) -> None:
        """The same load without what went wrong."""

        async def load() -> None:
            try:
                await self.load(name, revision, Path(host.package), host.wanted, waiting=not host.warming)
            except (OSError, InstaInferError) as error:
                reason = f"its process could not be started: {error}"
                self._sink(InstanceFailed(instance=name, phase="container", reason=reason))

        self._task(load())

    def _manager_lost(self, reason: str) -> None:
        if not self._gone:
            self._task(self.close(f"its manager is gone: {reason}"))

    async def _destroy(self) -> None:
        try:
            await self.container.destroy()
        except OSError as error:  # TimeoutError is one: the kernel does not let go of a process of its
            said = str(error) or "it did not end in time"
            log.warning("container %s is given up, though something may be left of it: %s", self.id, said)

    def usage(self) -> dict[str, int]:
        """Bytes of each instance, its template's included. Takes milliseconds; may be called from a thread."""
        sizes = self.container.usage().instances
        return {
            name: sum(sizes.get(group, 0) for group in resident.groups)
            for name, resident in tuple(self.residents.items())
        }

    async def close(self, reason: str) -> None:
        """End it whatever its state, and report it lost. Idempotent."""
        if self._gone:
            return
        self._gone = True
        unread = [work.request for work in self._pending if isinstance(work, Invoke)]
        self._pending.clear()
        if self._worker is not None:
            self._worker.cancel()
        self.room.link.close()
        try:
            await self._destroy()
            residents = list(self.residents.values())
            self.residents.clear()
            for resident in residents:
                unread += resident.host.close()
                if resident.maker is not None:
                    resident.maker.link.close()
                for process in {resident.process, resident.template} - {None}:
                    if process is not None and process.maker.room is not self.room:
                        await process.maker.room.leave(process.name)
        finally:  # its memory is free and its requests have to be told, whatever else went wrong
            self._node.ended(self.id)
            self._sink(ContainerLost(container=self.id, reason=reason, unread=tuple(unread)))
