"""One live container of this node: its commands in order, its instances, their ends."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from instainfer.agent.base import Invoke, Revision, Sink
from instainfer.agent.instance import InstanceHost, Output
from instainfer.agent.link import Exit, ManagerLink, Spawned
from instainfer.core import actions
from instainfer.core.events import ContainerLost, InstanceFailed, InstanceLost
from instainfer.errors import InstaInferError, Unavailable
from instainfer.model import Level
from instainfer.sandbox.base import Container, Usage

log = logging.getLogger(__name__)

BOOT = Path(__file__).resolve().parent.parent / "runtime" / "boot.py"
HELLO_S = 10.0
ERASE_S = 10.0
ERASE_MEMORY = 64 << 20
FIRST_UID = 1000  # inner uids of functions: 1000 + number
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

Work = (
    actions.Load
    | actions.Raise
    | actions.Offload
    | actions.Freeze
    | actions.Thaw
    | actions.ResizeContainer
    | Invoke
)

SLOW = (actions.Load, actions.Freeze)  # what follows these waits for them


class ContainerHost:
    """Carries out commands in the order in which they came: what follows a Freeze or a Load starts once that
    is confirmed. On the hot path nothing is pending and a command is carried out where it is called."""

    def __init__(
        self,
        container: Container,
        report: Sink,
        revision: Callable[[str], Awaitable[tuple[Revision, Path]]],
        ended: Callable[[str], None],
        *,
        apart: bool,
    ) -> None:
        self.id = container.id
        self._apart = apart  # every function has a uid of its own
        self.container = container
        self.instances: dict[str, InstanceHost] = {}
        self.touched = True  # something ran or loaded since memory was last sampled
        self._report = report
        self._revision = revision
        self._ended = ended
        self._pending: deque[Work] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._reasons: dict[str, tuple[str, str, int | None]] = {}  # why we ended an instance
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone = False
        self._erasures = itertools.count()
        self.link = ManagerLink(container.control, on_lost=self._manager_lost)

    async def ready(self) -> None:
        """Raises Unavailable when the manager does not say hello."""
        await self.link.hello(HELLO_S)

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
        instance = self.instances.get(work.instance)
        if instance is None:
            return  # it ended meanwhile: InstanceLost was or will be reported
        if isinstance(work, Invoke):
            self.touched = True
            instance.invoke(work.request, work.activation, work.content_type, work.body)
        elif isinstance(work, actions.Thaw):
            with suppress(OSError):
                self.container.thaw(work.instance)
            instance.thawed()
        elif isinstance(work, actions.Raise):
            self.touched = True
            instance.lift(work.level)
        elif isinstance(work, actions.Offload):
            self.end(work.instance, work.why.rule, "", None)

    def _resize(self, limit: int) -> None:
        try:
            self.container.resize(limit)
        except OSError as error:
            # The kernel cannot reclaim that much yet; the limit it has stays in force until the next change.
            log.warning("container %s keeps its limit: %s", self.id, error)

    async def _freeze(self, name: str) -> None:
        instance = self.instances.get(name)
        if instance is None:
            return
        instance.freezing()
        try:
            await self.container.freeze(name)
        except (OSError, TimeoutError) as error:
            # It must not execute beside the next one: if it cannot be frozen it ends.
            self.end(name, f"it could not be frozen: {error}", "instance_crashed", None)

    async def _load(self, work: actions.Load) -> None:
        try:
            revision, package = await self._revision(work.revision)
        except Unavailable as error:
            self._report(InstanceFailed(instance=work.instance, phase="extract", reason=error.message))
            return
        try:
            await self.spawn(work.instance, revision, package, work.level)
        except (OSError, InstaInferError) as error:
            reason = f"its process could not be started: {error}"
            self._report(InstanceFailed(instance=work.instance, phase="container", reason=reason))

    async def spawn(self, name: str, revision: Revision, package: Path, level: Level) -> InstanceHost:
        """Start the process, put it under its cgroup before it executes anything, and tell it to load."""
        asked = time.monotonic()
        uid = FIRST_UID + revision.number if self._apart else None
        spawned = await self._start(
            name,
            argv=[revision.python, "-s", "-B", str(BOOT), "instance", "3"],
            env=environment(revision, apart=self._apart),
            cwd=str(package),
            uid=uid,
            limit=revision.memory,
        )
        output = Output(spawned.stdout_fd, spawned.stderr_fd, revision.log_bytes)
        host = InstanceHost(
            name,
            revision,
            str(package),
            output,
            self._report,
            lambda reason, code, request: self.end(name, reason, code, request),
        )
        self.instances[name] = host
        self.touched = True
        self.link.exited(name).add_done_callback(lambda future: self._exited(name, future))
        await asyncio.get_running_loop().create_unix_connection(lambda: host, sock=spawned.sock)
        host.go(level, asked=asked)
        return host

    async def _start(
        self, name: str, *, argv: list[str], env: dict[str, str], cwd: str, uid: int | None, limit: int
    ) -> Spawned:
        """A process in the container, under a cgroup of its own before it executes anything."""
        try:
            return await self.link.spawn(
                name,
                argv=argv,
                env=env,
                cwd=cwd,
                uid=uid,
                gid=uid,
                limits={"nofile": 1024, "core": 0},
                attach=lambda pid: self.container.attach(name, pid, limit=limit),
                doors=self.container.doors(name, limit=limit),
            )
        except BaseException:
            with suppress(OSError, TimeoutError):
                await self.container.detach(name)
            raise

    async def _erase(self, uid: int) -> None:
        """Delete what this uid left in the container's scratch: the next function must find none of it, and
        only the uid itself can look into its directories."""
        name = f"erase-{next(self._erasures)}"
        argv = ["/usr/bin/find", "/tmp", "/dev/shm", "-mindepth", "1", "-uid", str(uid), "-delete"]
        spawned = await self._start(name, argv=argv, env={}, cwd="/tmp", uid=uid, limit=ERASE_MEMORY)
        spawned.close()
        try:
            async with asyncio.timeout(ERASE_S):
                await asyncio.shield(self.link.exited(name))
        finally:
            self.container.kill(name)
            self.link.forget(name)
            await self.container.detach(name)

    def end(self, name: str, reason: str, code: str, request: int | None) -> None:
        """Kill it; InstanceLost follows when it is gone."""
        if name in self.instances:
            self._reasons.setdefault(name, (reason, code, request))
            self.container.kill(name)

    def _exited(self, name: str, future: asyncio.Future[Exit]) -> None:
        if self._gone or future.cancelled():
            return
        task = asyncio.get_running_loop().create_task(self._bury(name, future.result()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bury(self, name: str, exit: Exit) -> None:
        oom = self.container.oom_killed(name)
        with suppress(OSError, TimeoutError):
            await self.container.detach(name)
        self.link.forget(name)
        instance = self.instances.pop(name, None)
        if instance is None:
            return
        instance.close()
        shared = any(other.revision.number == instance.revision.number for other in self.instances.values())
        if self._apart and not self._gone and not shared:
            with suppress(OSError, TimeoutError, InstaInferError):
                await self._erase(FIRST_UID + instance.revision.number)
        if instance.failure is not None:
            self._reasons.pop(name, None)
            self._report(instance.failure)
            return
        reason, code, request = self._reasons.pop(name, ("", "", None))
        if oom:
            limit = instance.revision.memory >> 20
            reason = f"killed: it went over its memory limit of {limit} MB (set `memory` in function.toml)"
        elif not reason:
            reason = f"its process {how(exit)}"
        code = code or "instance_crashed"
        self._report(InstanceLost(instance=name, reason=reason, code=code, request=request))

    def _manager_lost(self, reason: str) -> None:
        if not self._gone:
            task = asyncio.get_running_loop().create_task(self.close(f"its manager is gone: {reason}"))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def usage(self) -> Usage:
        return self.container.usage()

    async def close(self, reason: str) -> None:
        """End it whatever its state, and report it lost. Idempotent."""
        if self._gone:
            return
        self._gone = True
        self._pending.clear()
        if self._worker is not None:
            self._worker.cancel()
        self.link.close()
        await self.container.destroy()
        for instance in self.instances.values():
            instance.close()
        self.instances.clear()
        self._ended(self.id)
        self._report(ContainerLost(container=self.id, reason=reason))


def environment(revision: Revision, *, apart: bool) -> dict[str, str]:
    """The variables of an instance: its own over a minimum; nothing of the server's environment leaks in.
    Where functions are kept apart its scratch is a directory that the instance makes for itself, 0700."""
    home = f"/tmp/f{FIRST_UID + revision.number}" if apart else "/tmp"
    bin_directory = str(Path(revision.python).parent)
    return {
        "PATH": f"{bin_directory}:/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "",
        # Unpinned threads of co-residents fight for the cores: a 40 ms call became 2 s.
        **dict.fromkeys(THREADS, "1"),
        **revision.variables,
    }


def how(exit: Exit) -> str:
    if exit.signal is not None:
        try:
            name = signal.Signals(exit.signal).name
        except ValueError:
            name = "unknown"
        native = (
            " in native code"
            if exit.signal in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)
            else ""
        )
        return f"crashed{native}: signal {exit.signal} ({name})"
    return f"exited with status {exit.code}"
