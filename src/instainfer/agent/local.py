"""The pre-loading agent of this node, in the controller's process: owns the node's containers."""

from __future__ import annotations

import asyncio
import compileall
import errno
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from instainfer.agent import base
from instainfer.agent.container import ContainerHost
from instainfer.agent.environments import Environments, whole
from instainfer.agent.measure import measure
from instainfer.agent.room import BOOT, FIRST_UID, Maker
from instainfer.agent.snapshots import Snapshots
from instainfer.agent.snapshots import key as key_of
from instainfer.agent.zygotes import UID, Zygotes
from instainfer.artifacts.cache import Cache
from instainfer.artifacts.peer import Peer
from instainfer.artifacts.source import Source, Store
from instainfer.core import actions, events
from instainfer.errors import BadPackage, InstaInferError, Unavailable
from instainfer.packages import open_package
from instainfer.packing import PACK_LIMIT
from instainfer.sandbox import egress
from instainfer.sandbox.base import ContainerSpec, Mount, Sandbox

log = logging.getLogger(__name__)

EVERY_S = 1.0
ROOM = 64 << 20  # bytes of a zygote's room beyond the zygote's own, for its manager and for erasing
GONE = ".gone-"  # a package on its way out
#: Kept: a union would be built and walked for every invocation.
OF_INSTANCE = (base.Invoke, base.Cancel, actions.Freeze, actions.Thaw, actions.Raise, actions.Offload)


def egress_of(revision: base.Revision) -> tuple[str, ...]:
    """What its containers may reach."""
    if isinstance(revision.network, tuple):
        return revision.network
    return (egress.ANYWHERE,) if revision.network else ()


class LocalAgent:
    """`data` holds packages/ and snapshots/, `environments` theirs, each per namespace; only a namespace's own
    subdirectories are ever mounted into its containers."""

    def __init__(
        self,
        sandbox: Sandbox,
        environments: Environments,
        data: Path,
        *,
        node: str = "local",
        memory: int,
        load_slots: int,
        pids: int = 256,
        scratch: int = 512 << 20,
        zygote_memory: int = 0,
        artifacts: Cache | None = None,
        peer: Callable[[str], Source] = Peer,
        packs: bool = False,
    ) -> None:
        """`artifacts`: what is pulled, whose sources this changes; `peer` makes one of a node's URL; `packs`:
        environments that are built here are packed for other nodes."""
        self.node = node
        self.shelf = ""  # whoever serves this one over HTTP has one
        self.sandbox = sandbox
        self._environments = environments
        self._data = data
        self._memory = memory
        self._load_slots = load_slots
        self._pids = pids
        self._scratch = scratch
        self._zygote_memory = zygote_memory
        self._artifacts = artifacts
        self._peer = peer
        self._packs = packs and artifacts is not None
        self._own_sources = list(artifacts.sources) if artifacts is not None else []
        self._equipping: dict[str, asyncio.Task[None]] = {}  # revision -> its environment is being had
        self.snapshots = Snapshots(data / "snapshots")
        self.refusals: dict[str, str] = {}  # revision -> why it cannot serve as a template
        self._zygotes: Zygotes
        self._report: base.Sink = lambda report: None
        self._revisions: dict[str, base.Revision] = {}
        self._arrivals: dict[str, asyncio.Future[None]] = {}  # revision -> its package is on the node
        self._unplaced: set[str] = set()  # revisions whose package the disk did not take
        self._withdrawn: set[str] = set()
        self._containers: dict[str, ContainerHost] = {}
        self._where: dict[str, str] = {}  # instance -> container
        self._tasks: set[asyncio.Task[None]] = set()
        self._errands: set[asyncio.Task[None]] = set()  # of them, builds and measurements
        self._closing = False
        self._ticking: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop

    async def start(self, sink: base.Sink) -> events.NodeJoined:
        self._report = sink
        self._closing = False
        self._loop = asyncio.get_running_loop()
        await self.sandbox.start()
        # Containers see the runtime read-only: without its bytecode every instance would compile it anew.
        await asyncio.to_thread(compileall.compile_dir, str(BOOT.parent), quiet=2)
        self._zygotes = self._new_zygotes()
        self._ticking = self._loop.create_task(self._every_second())
        return self._joined()

    def _new_zygotes(self) -> Zygotes:
        return Zygotes(
            lambda report: self._report(report),
            self.sandbox.create,
            apart=self.sandbox.enforces.function_uids,
        )

    def _joined(self, held: tuple[events.HeldContainer, ...] = ()) -> events.NodeJoined:
        return events.NodeJoined(
            node=self.node,
            memory=self._memory,
            guests=self.sandbox.enforces.function_uids or not self.sandbox.enforces.filesystem,
            load_slots=self._load_slots,
            zygote_memory=self._zygote_memory,
            held=held,
        )

    async def rest(self, reason: str) -> None:
        for task in self._errands:
            task.cancel()
        await asyncio.gather(*self._errands, return_exceptions=True)
        busy = [host for host in self._containers.values() if host.busy]
        await asyncio.gather(*(host.close(reason) for host in busy))

    async def hand_over(self, sink: base.Sink) -> events.NodeJoined:
        """Zygotes end; what was forked from them is held. What was provided has to be provided again."""
        self._report = lambda report: None  # what is being made for the one before is not for the next
        await self.rest("another controller takes the node")
        self._zygotes.end_all("another controller takes the node")
        self._withdrawn.update(self._revisions)
        held = []
        for host in list(self._containers.values()):
            sizes = await asyncio.to_thread(host.usage)
            if not host.busy:
                held.append(host.held(sizes))
        self._report = sink
        return self._joined(tuple(held))

    def send(self, command: base.Command) -> None:
        if isinstance(command, OF_INSTANCE):
            host = self._containers.get(self._where.get(command.instance, ""))
            if host is not None:
                host.submit(command)
        elif isinstance(command, actions.Load):
            host = self._containers.get(command.container)
            if host is not None:
                self._where[command.instance] = command.container
                host.submit(command)
            else:
                reason = f"container {command.container} is gone"
                self._loop.call_soon(self._report, events.InstanceLost(instance=command.instance, reason=reason))
        elif isinstance(command, actions.ResizeContainer):
            host = self._containers.get(command.container)
            if host is not None:
                host.submit(command)
        elif isinstance(command, actions.CreateContainer):
            self._spawn(self._create(command))
        elif isinstance(command, actions.DestroyContainer):
            self._spawn(self._destroy(command.container, command.why.rule))
        elif isinstance(command, actions.StartZygote):
            self._spawn(self._start_zygote(command))
        elif isinstance(command, actions.EndZygote):
            self._zygotes.end(command.zygote, command.why.rule)
        elif isinstance(command, base.Provide):
            self._provide(command.revision)
        elif isinstance(command, base.Deliver):
            self._spawn(self._delivered(command.revision, command.package))
        elif isinstance(command, base.Peers):
            self._ask(command.urls)
        elif isinstance(command, base.Withdraw):
            self._withdrawn.add(command.revision)
        elif isinstance(command, base.Retain):
            self._spawn(self._retain(command.environments))
        elif isinstance(command, base.Build):
            self._errand(self._answering(command.token, self._build(command, self._report), self._report))
        else:
            self._errand(self._answering(command.token, self._measure(command, self._report), self._report))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        if self._closing:
            work.close()
            return None
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        if (task := self._spawn(work)) is not None:
            self._errands.add(task)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._errands.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("agent %s: a task failed", self.node, exc_info=error)

    # ---- containers ----------------------------------------------------------------------------------------

    async def _create(self, command: actions.CreateContainer) -> None:
        started, asker = time.monotonic(), self._report
        revision = self._revisions.get(command.revision)
        if revision is None:
            reason = f"{command.revision} was never provided to node {self.node}"
            self._report(events.ContainerLost(container=command.container, reason=reason))
            return
        try:
            spec = self.spec(revision, command.container, command.limit, command.mounts)
            await self._equipped(revision)
            host = await self.open(spec, self._from_container)
        except (InstaInferError, OSError, TimeoutError) as error:
            reason = error.message if isinstance(error, InstaInferError) else str(error)
            self._report(events.ContainerLost(container=command.container, reason=f"no container: {reason}"))
            return
        if self._report is not asker:
            await host.close("another controller has taken the node")
            return
        host.function, host.limit, host.mounts = command.function, command.limit, command.mounts
        self._containers[command.container] = host
        self._report(events.ContainerReady(container=command.container, seconds=time.monotonic() - started))

    def spec(
        self,
        revision: base.Revision,
        name: str,
        limit: int,
        mounts: tuple[str, ...],
        writable: tuple[Path, ...] = (),
        uids: tuple[int, ...] | None = None,
    ) -> ContainerSpec:
        own = [self._data / "packages" / revision.namespace]
        own += [kept.directory(revision.namespace) for kept in (self._environments, self.snapshots)]
        for directory in own:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        return ContainerSpec(
            id=name,
            namespace=revision.namespace,
            uid_base=revision.uid_base,
            limit=limit,
            mounts=[
                *(Mount(path) for path in (*own, *map(Path, mounts))),
                *(Mount(path, writable=True) for path in writable),
            ],
            uids=uids,
            cpus=float(revision.threads),
            egress=egress_of(revision),
            pids=self._pids,
            scratch=self._scratch,
        )

    async def open(self, spec: ContainerSpec, report: base.Sink) -> ContainerHost:
        container = await self.sandbox.create(spec)
        host = ContainerHost(container, report, self, apart=self.sandbox.enforces.function_uids)
        try:
            await host.ready()
        except BaseException:
            await container.destroy()
            raise
        return host

    def _from_container(self, report: base.Report) -> None:
        if isinstance(report, events.InstanceLost | events.InstanceFailed):
            self._where.pop(report.instance, None)
        self._report(report)

    def ended(self, container: str) -> None:
        self._containers.pop(container, None)
        self._where = {i: c for i, c in self._where.items() if c != container}

    async def _destroy(self, name: str, reason: str) -> None:
        host = self._containers.get(name)
        if host is None:
            self._report(events.ContainerLost(container=name, reason=reason))
        else:
            await host.close(reason)

    # ---- what instances are forked from --------------------------------------------------------------------

    async def _start_zygote(self, command: actions.StartZygote) -> None:
        revisions = [found for name in command.revisions if (found := self._revisions.get(name)) is not None]
        if not revisions:
            reason = "its functions were withdrawn"
            self._report(events.ZygoteLost(zygote=command.zygote, reason=reason))
            return
        try:
            room = self.room(command.zygote, revisions, command.limit)
            await self._equipped(revisions[0])
        except (InstaInferError, OSError) as error:
            self._report(events.ZygoteLost(zygote=command.zygote, reason=str(error)))
            return
        await self._zygotes.start(command, room, revisions)

    def room(
        self, name: str, revisions: list[base.Revision], limit: int, writable: tuple[Path, ...] = ()
    ) -> ContainerSpec:
        """Of a zygote for these. Only their uids exist in it: what it imports can become nobody else."""
        mounts = tuple(sorted({mount for revision in revisions for mount in revision.mounts}))
        uids = (UID, *sorted({FIRST_UID + revision.number for revision in revisions}))
        return self.spec(revisions[0], name, limit + ROOM, mounts, writable, uids)

    def zygote(self, revision: base.Revision) -> Maker | None:
        return self._zygotes.of(revision) if revision.libraries else None

    def template(self, revision: base.Revision) -> Maker | None:
        if not revision.clone:
            return None
        return next(
            (m for host in self._containers.values() if (m := host.template(revision.id)) is not None), None
        )

    def unforkable(self, revision: base.Revision, reason: str) -> None:
        log.warning("%s cannot serve as a template: %s", revision.id, reason)
        self.refusals[revision.id] = reason
        self._revisions[revision.id] = msgspec.structs.replace(revision, clone=False)

    # ---- packages ------------------------------------------------------------------------------------------

    async def revision(self, name: str) -> tuple[base.Revision, Path]:
        """A revision and where its files are, once they are here. Raises Unavailable."""
        revision, arrival = self._revisions.get(name), self._arrivals.get(name)
        if revision is not None and name in self._unplaced:
            self._provide(revision)  # once more: there may be room now
            arrival = self._arrivals.get(name)
        if revision is None or arrival is None:
            raise Unavailable(f"{name} was never provided to node {self.node}, or withdrawn", phase="extract")
        try:
            async with asyncio.timeout(revision.load_timeout_s):
                await asyncio.shield(arrival)
        except TimeoutError:
            raise Unavailable(f"the package of {name} did not come", phase="extract") from None
        return revision, self._path(revision)

    def _path(self, revision: base.Revision) -> Path:
        # Named by function and digest: readable by this function's uid alone, even where two functions of a
        # namespace were deployed from the same bytes.
        digest = revision.digest.rpartition(":")[2][:24]
        return self._data / "packages" / revision.namespace / f"{revision.name}-{digest}"

    def _provide(self, revision: base.Revision) -> None:
        self._withdrawn.discard(revision.id)
        self._unplaced.discard(revision.id)
        if revision.network and self.sandbox.enforces.network:
            variables = {**egress.VARIABLES, **revision.variables}
            revision = msgspec.structs.replace(revision, variables=variables)
        self._revisions[revision.id] = revision
        arrival = self._arrivals.get(revision.id)
        if arrival is None or (arrival.done() and arrival.exception() is not None):
            arrival = self._arrivals[revision.id] = self._loop.create_future()
        if not arrival.done() and self._path(revision).is_dir():
            arrival.set_result(None)
        elif not arrival.done():
            self._spawn(self._pull(revision))
        self._equip(revision)
        there = self._artifacts is not None and revision.snapshot and revision.restores
        if there and revision.restores_key == key_of(revision) and self.snapshots.find(revision) is None:
            self._spawn(self._bring(revision))

    async def _pull(self, revision: base.Revision) -> None:
        """Its package, from the node's sources, else from the controller."""
        if self._artifacts is not None and self._artifacts.sources:
            try:
                async with self._artifacts.hold(revision.digest, most=PACK_LIMIT) as path:
                    await self._deliver(revision.id, await asyncio.to_thread(path.read_bytes))
                return
            except (InstaInferError, OSError) as error:
                log.info("the package of %s comes from the controller: %s", revision.id, error)
        self._report(base.Missing(revision=revision.id))

    async def _bring(self, revision: base.Revision) -> None:
        """Its snapshot, from the node that it was deployed on. Until it is here, and where it cannot be, loads are
        plain."""
        assert self._artifacts is not None
        gid = revision.uid_base + FIRST_UID + revision.number if self.sandbox.enforces.function_uids else None
        try:
            async with self._artifacts.hold(revision.restores, most=revision.memory) as path:
                await asyncio.to_thread(self.snapshots.bring, path, revision, gid)
        except (InstaInferError, OSError) as error:
            log.info("%s is loaded plainly on node %s: %s", revision.id, self.node, error)

    def _ask(self, peers: tuple[str, ...]) -> None:
        if self._artifacts is None:
            return
        try:
            self._artifacts.sources = [*self._own_sources, *map(self._peer, peers)]
        except InstaInferError as error:
            log.error("node %s keeps the peers that it knew: %s", self.node, error)

    # ---- environments of other nodes -----------------------------------------------------------------------

    def _equip(self, revision: base.Revision) -> None:
        """Begin to have its environment where it is not here."""
        if not revision.environment or not revision.version or revision.id in self._equipping or self._closing:
            return
        if whole(Path(revision.python)):
            return
        task = self._equipping[revision.id] = self._loop.create_task(self._have(revision))
        task.add_done_callback(lambda task: self._had(revision, task))

    def _had(self, revision: base.Revision, task: asyncio.Task[None]) -> None:
        self._equipping.pop(revision.id, None)  # the next container tries again
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("node %s has no environment for %s: %s", self.node, revision.id, error)

    async def _equipped(self, revision: base.Revision) -> None:
        """Raises BuildFailed, Unavailable where it is neither to be pulled nor built."""
        self._equip(revision)
        if (task := self._equipping.get(revision.id)) is not None:
            await asyncio.shield(task)

    async def _have(self, revision: base.Revision) -> None:
        """Pulled as another node built it, else built in the namespace's sandbox, as at a deployment."""
        if revision.packed and self._artifacts is not None:
            try:
                await self._environments.unpack(revision.namespace, revision.environment, revision.packed)
                return
            except (InstaInferError, OSError) as error:
                log.warning("the environment of %s is built on node %s: %s", revision.id, self.node, error)
        built = await self._environments.ensure(
            revision.namespace, revision.uid_base, revision.requirements, revision.version, log.debug
        )
        if built.digest != revision.environment or str(built.python) != revision.python:
            raise Unavailable(
                f"node {self.node} has another Python {revision.version}, or another data directory, than the one "
                f"that {revision.id} was deployed on",
                hint="give all nodes the same image and the same data directory",
            )

    async def _delivered(self, name: str, data: bytes) -> None:
        """By the controller. It goes to where nodes keep what they share, too: another server, which has the
        database and not this one's files, finds it there."""
        await self._deliver(name, data)
        revision, artifacts = self._revisions.get(name), self._artifacts
        if revision is None or artifacts is None or not any(isinstance(s, Store) for s in artifacts.sources):
            return
        working = artifacts.root / f".{secrets.token_hex(8)}.tmp"
        try:
            await asyncio.to_thread(working.write_bytes, data)
            if await artifacts.add(working) == revision.digest:
                await artifacts.publish(revision.digest)
        except (InstaInferError, OSError) as error:
            log.warning("the package of %s is not shared: %s", name, error)
        finally:
            await asyncio.to_thread(working.unlink, missing_ok=True)

    async def _deliver(self, name: str, data: bytes) -> None:
        revision, arrival = self._revisions.get(name), self._arrivals.get(name)
        if revision is None or arrival is None or arrival.done():
            return
        apart = self.sandbox.enforces.function_uids
        uid = revision.uid_base + FIRST_UID + revision.number if apart else None
        target = self._path(revision)
        try:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            package = await asyncio.to_thread(open_package, data)
            await asyncio.to_thread(package.extract, target, uid=uid, gid=uid)
        except (BadPackage, OSError) as error:
            log.error("package of %s: %s", name, error)
            if isinstance(error, OSError):
                self._unplaced.add(name)
            arrival.set_exception(Unavailable(f"its package could not be extracted: {error}", phase="extract"))
            arrival.exception()  # looked at by those who wait, if any
        else:
            arrival.set_result(None)

    async def _sweep(self) -> None:
        """Remove the packages of withdrawn revisions that nothing runs any more."""
        in_use = {name for host in self._containers.values() for name in host.revisions}
        for name in [name for name in self._withdrawn if name not in in_use]:
            if name not in self._withdrawn:
                continue  # it was provided again while another one was removed
            self._withdrawn.discard(name)
            self._arrivals.pop(name, None)
            self._unplaced.discard(name)
            revision = self._revisions.pop(name, None)
            if revision is None:
                continue
            path = self._path(revision)
            if not any(self._path(other) == path for other in self._revisions.values()):
                gone = path.with_name(f"{GONE}{time.monotonic_ns()}-{path.name}")  # it may be provided meanwhile
                with suppress(OSError):
                    path.rename(gone)
                await asyncio.to_thread(shutil.rmtree, gone, ignore_errors=True)

    # ---- tasks of a deployment -----------------------------------------------------------------------------

    async def _build(self, command: base.Build, report: base.Sink) -> None:
        built = await self._environments.ensure(
            command.namespace,
            command.uid_base,
            command.requirements,
            command.python,
            lambda message: report(base.Progress(token=command.token, message=message)),
        )
        packed = ""
        if built.digest and self._packs:
            report(base.Progress(token=command.token, message="packing it for other nodes"))
            try:
                packed = await self._environments.pack(command.namespace, built.digest)
            except (InstaInferError, OSError) as error:
                log.warning("an environment could not be packed, other nodes build it: %s", error)
        report(
            base.Built(
                token=command.token,
                digest=built.digest,
                python=str(built.python),
                mounts=tuple(str(path) for path in built.mounts),
                packed=packed,
            )
        )

    async def _measure(self, command: base.Measure, report: base.Sink) -> None:
        arrival = self._arrivals.get(command.revision)
        if arrival is None:
            raise Unavailable(f"{command.revision} was never provided to node {self.node}", phase="package")
        await asyncio.shield(arrival)
        revision = self._revisions[command.revision]
        profile = await measure(
            self,
            revision,
            self._path(revision),
            f"m{command.token}",
            lambda message: report(base.Progress(token=command.token, message=message)),
        )
        restores, key = "", ""
        if self._packs and self._artifacts is not None and profile.uses("snapshot"):
            try:
                if (found := await asyncio.to_thread(self.snapshots.file, revision)) is not None:
                    restores, key = f"sha256:{found[1].sha256}", found[1].key
                    await self._artifacts.add(found[0], digest=restores)
                    await self._artifacts.publish(restores)
            except (InstaInferError, OSError) as error:
                log.warning("the snapshot of %s stays on node %s: %s", revision.id, self.node, error)
                restores = key = ""
        report(base.Measured(token=command.token, profile=profile, restores=restores, restores_key=key))

    async def _answering(self, token: int, work: Coroutine[Any, Any, None], report: base.Sink) -> None:
        """Somebody waits for the answer, whatever becomes of the work."""
        try:
            await work
        except InstaInferError as error:
            report(base.TaskFailed(token=token, problem=error.problem()))
        except OSError as error:
            log.warning("agent %s: a task failed: %s", self.node, error)
            # its container may have been ended meanwhile, and the groups that it was in be gone
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
            where = "the data directory of node" if full else "a task on node"
            said = f"{where} {self.node} {'cannot be used' if full else 'broke off'}: {error}"
            hint = "is its disk full?" if full else "try again; the server's log says more"
            report(base.TaskFailed(token=token, problem=Unavailable(said, hint=hint).problem()))
        except Exception as error:
            log.exception("agent %s: a task failed", self.node)
            problem = InstaInferError(
                f"{type(error).__name__}: {error}", hint="the server's log says more"
            ).problem()
            report(base.TaskFailed(token=token, problem=problem))

    async def _retain(self, environments: tuple[str, ...]) -> None:
        await asyncio.to_thread(self._environments.sweep, environments)
        await asyncio.to_thread(self.snapshots.sweep, tuple(self._revisions.values()))
        for path in await asyncio.to_thread(list, (self._data / "packages").glob("*/*")):
            # What is being extracted has a hidden name and cleans up after itself.
            needed = path in {self._path(revision) for revision in self._revisions.values()}
            if not needed and (not path.name.startswith(".") or path.name.startswith(GONE)):
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    # ---- once a second -------------------------------------------------------------------------------------

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self._sample()
                await self._sweep()
            except Exception:
                log.exception("agent %s: looking after its containers failed", self.node)

    async def _sample(self) -> None:
        """smaps_rollup takes 10-16 ms at 1 GB: in a thread, never on the request path, at most once a second
        and only where something loaded or ran since."""
        for host in [host for host in self._containers.values() if host.touched]:
            host.touched = False
            with suppress(OSError):
                known = await asyncio.to_thread(host.usage)
                if known:
                    self._report(events.MemorySampled(container=host.id, instances=known))
        for name, size in (await asyncio.to_thread(self._zygotes.changed)).items():
            self._report(events.ZygoteSampled(zygote=name, bytes=size))

    async def aclose(self) -> None:
        self._closing = True
        if self._ticking is not None:
            self._ticking.cancel()
        tasks = [*self._tasks, *self._equipping.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._environments.aclose()
        closing = [host.close("the node is closing") for host in list(self._containers.values())]
        await asyncio.gather(*closing, return_exceptions=True)  # whatever fails, the sandbox ends it all
        await self._zygotes.aclose()
        await self.sandbox.aclose()
        if self._artifacts is not None:
            await self._artifacts.aclose()
