"""The `linux` sandbox: namespaces, a root of its own and control groups, with root or without.

With root ("privileged") every container has 65536 uids of its own, so that functions of one container are kept
apart from each other; without ("rootless") it has one. Nothing else differs but who holds memory: a user
without a delegated control group can only look and kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import instainfer.runtime
from instainfer.errors import Unavailable
from instainfer.sandbox import cgroups, egress, seccomp
from instainfer.sandbox.base import ContainerSpec, Enforces
from instainfer.sandbox.children import Exit
from instainfer.sandbox.grouped import GroupedContainer, end_container, pid_namespace
from instainfer.sandbox.idmap import mapping
from instainfer.sandbox.launcher import LARGEST
from instainfer.sandbox.sessions import Leader, SessionContainer
from instainfer.sandbox.state import State

log = logging.getLogger(__name__)

RUNTIME = Path(instainfer.runtime.__file__).resolve().parent
MANAGER = RUNTIME / "manager.py"
CREATE_S = 20.0
EVICT_S = 0.05

LinuxContainer = GroupedContainer | SessionContainer


@dataclass(frozen=True)
class Manager:
    """A running one: its end, and its pid namespace, in which all that it starts lives."""

    exit: Exit
    home: int


class LinuxSandbox:
    name = "linux"

    def __init__(
        self,
        state: Path,
        *,
        privileged: bool | None = None,
        find_groups: Callable[[str], cgroups.Groups | None] = cgroups.find,
        networks: Sequence[str] = (),
    ) -> None:
        """`state`: a directory of its own. `privileged`: by default, whether this is root. `find_groups` gives
        the control groups of a name, or None to do without. `networks`: private ones that functions may
        reach as if they were public."""
        self._networks = networks
        self.connect: egress.Connect = egress.connect  # how containers get out
        self._state = State(state)
        self._privileged = os.geteuid() == 0 if privileged is None else privileged
        self._python = Path(sys.executable).resolve()
        self._find_groups = find_groups
        # found now, so that the declaration can be read before the start; the name comes with the state's
        groups = find_groups(cgroups.PREFIX)
        self._controllers: frozenset[str] = frozenset() if groups is None else groups.controllers
        self._groups: cgroups.Groups | None = None
        self._launcher: _LauncherLink | None = None
        self._containers: dict[str, LinuxContainer] = {}
        self._leaders: set[Leader] = set()

    @property
    def enforces(self) -> Enforces:
        return Enforces(
            filesystem=True,
            network=True,
            processes=True,
            function_uids=self._privileged,
            memory="kernel" if "memory" in self._controllers else "polled",
            pids="pids" in self._controllers,
            calls=seccomp.supported(),
            freezer="cgroup" if "freezer" in self._controllers else "signal",
        )

    async def start(self) -> None:
        self._state.take()
        self._groups = self._find_groups(cgroups.PREFIX + self._state.name)
        if self._groups is not None:
            for left in cgroups.earlier(self._groups, f"{cgroups.PREFIX}{self._state.id}-"):
                await _remove_all(left)
        # Without control groups nothing can be left: a container ends with its manager, and a manager with the
        # server's end of its socket.

    async def create(self, spec: ContainerSpec) -> LinuxContainer:
        if not self._state.id:
            raise Unavailable("the sandbox was not started")
        if spec.id in self._containers:
            raise Unavailable(f"container {spec.id} exists")
        if self._launcher is not None and self._launcher.lost:
            await self._launcher.aclose()
            self._launcher = None
        if self._launcher is None:
            self._launcher = _LauncherLink(self._python)
        request = self._request(spec)
        ours, theirs = control_pair()
        handing, handed = socket.socketpair()  # the listening socket comes over it, from inside
        with handing, handed:
            try:
                manager = await self._launcher.create(request, theirs, handed)
                proxy = self._proxy(spec, handing) if spec.egress else None
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
        end = self._end_of(spec.id, manager, proxy)
        container: LinuxContainer
        if self._groups is not None:
            container = GroupedContainer(spec.id, ours, self._groups, spec.limit, end, home=manager.home)
        else:
            container = SessionContainer(spec.id, ours, spec.limit, end, self._leaders)
        self._containers[spec.id] = container
        return container

    async def aclose(self) -> None:
        ended = await asyncio.gather(
            *(c.destroy() for c in tuple(self._containers.values())), return_exceptions=True
        )
        if self._launcher is not None:
            await self._launcher.aclose()
            self._launcher = None
        if self._groups is not None:
            await _remove_all(self._groups)
        self._state.release()
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    def _request(self, spec: ContainerSpec) -> dict[str, Any]:
        mounts = {str(path): False for path in (Path(sys.base_prefix), RUNTIME, self._prefix())}
        mounts |= {str(mount.path): mount.writable for mount in spec.mounts}
        return {
            "op": "create",
            "id": spec.id,
            "privileged": self._privileged,
            "ids": mapping(spec.uid_base, spec.uids),
            "network": spec.network,
            "egress": egress.PORT if spec.egress else 0,
            "limit": spec.limit,
            "pids": spec.pids,
            "filter": seccomp.supported(),
            "cpus": spec.cpus,
            "scratch": spec.scratch,
            # what lies below /usr is seen anyway, read-only
            "mounts": [[p, w] for p, w in mounts.items() if w or (not p.startswith("/usr/") and p != "/usr")],
            "environ": dict(spec.environ),
            "python": str(self._python),
            "manager": str(MANAGER),
            "root": str(self._state.root),
            "groups": None if self._groups is None else cgroups.described(self._groups),
        }

    def _proxy(self, spec: ContainerSpec, handing: socket.socket) -> egress.Proxy:
        handing.setblocking(False)
        try:
            _, fds, _, _ = socket.recv_fds(handing, 1, 1, socket.MSG_CMSG_CLOEXEC)
            (listener,) = fds
        except (OSError, ValueError) as error:
            raise Unavailable(f"container {spec.id} has no way out: {error}") from error
        rules = egress.Rules(spec.egress, self._networks)
        return egress.Proxy(socket.socket(fileno=listener), rules, connect=self.connect)

    def _prefix(self) -> Path:
        """Of the interpreter, for one that is reached by a link from elsewhere."""
        return self._python.parent.parent

    def _end_of(self, id_: str, manager: Manager, proxy: egress.Proxy | None) -> Callable[[], Awaitable[None]]:
        async def end() -> None:
            if proxy is not None:
                proxy.close()
            manager.exit.send(signal.SIGKILL)
            while True:  # again: one may be frozen meanwhile
                for container in tuple(self._containers.values()):
                    if isinstance(container, GroupedContainer):
                        container.evict(manager.home)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(manager.exit.wait(), EVICT_S)
                    break
            self._containers.pop(id_, None)

        return end


def control_pair() -> tuple[socket.socket, socket.socket]:
    """The server's end, non-blocking, and the manager's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # a datagram must fit in whole
    return ours, theirs


async def _remove_all(groups: cgroups.Groups) -> None:
    await asyncio.gather(*(end_container(groups, container) for container in groups.containers()))
    groups.remove()


class _LauncherLink:
    """The server's side of launcher.py."""

    def __init__(self, python: Path) -> None:
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._wanted: dict[str, asyncio.Future[Manager]] = {}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        source = Path(__file__).resolve().parents[2]
        # `-I` knows no PYTHONPATH, and the package is not below the standard library of every interpreter
        start = f"import sys; sys.path.insert(0, {str(source)!r}); from instainfer.sandbox import launcher"
        try:
            self._process = subprocess.Popen(
                [str(python), "-I", "-S", "-c", f"{start}; launcher.main({theirs.fileno()})"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"PATH": os.defpath},
            )
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"the launcher of containers cannot be started: {error}") from error
        finally:
            theirs.close()
        self._exit = Exit(os.pidfd_open(self._process.pid))
        self._loop.add_reader(self._socket.fileno(), self._readable)

    async def create(self, request: dict[str, Any], control: socket.socket, handed: socket.socket) -> Manager:
        """The running manager. Raises Unavailable with the operation that failed."""
        answer: asyncio.Future[Manager] = self._loop.create_future()
        self._wanted[request["id"]] = answer
        data = json.dumps(request).encode()
        try:
            async with asyncio.timeout(CREATE_S):
                while True:
                    try:
                        socket.send_fds(self._socket, [data], [control.fileno(), handed.fileno()])
                        break
                    except BlockingIOError:  # a burst: it works one request off in a millisecond
                        await asyncio.sleep(0.001)
                return await answer
        except TimeoutError:
            raise Unavailable(f"container {request['id']} was not built in {CREATE_S:g} s") from None
        except OSError as error:
            raise Unavailable(f"the launcher of containers is gone: {error}") from error
        finally:
            self._wanted.pop(request["id"], None)

    async def aclose(self) -> None:
        """Return when it has ended what it knows of."""
        self._lose("the sandbox was closed")
        await self._exit.wait()
        self._process.wait()

    def _readable(self) -> None:
        while not self.lost:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, LARGEST, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(str(error))
                return
            if not data:
                self._lose("it ended")
                return
            self._heard(json.loads(data), fds)

    def _heard(self, said: dict[str, Any], fds: list[int]) -> None:
        answer = self._wanted.get(said["id"])
        if said["event"] == "created":
            exit_ = Exit(fds[0])
            if answer is None or answer.done():  # nobody waits any more
                exit_.send(signal.SIGKILL)
                return
            home = 0
            with contextlib.suppress(ProcessLookupError):  # it ended at once: nothing was forked in there
                home = pid_namespace(said["pid"])
            answer.set_result(Manager(exit_, home))
        elif said["event"] == "failed" and answer is not None and not answer.done():
            answer.set_exception(
                Unavailable(
                    f"a container cannot be made: {said['operation']}: {said['error']}",
                    hint="`--sandbox auto` takes what works on this machine",
                )
            )
        elif said["event"] == "exited":
            log.debug("manager of %s ended: %s", said["id"], said.get("signal") or said.get("code"))

    def _lose(self, why: str) -> None:
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for answer in self._wanted.values():
            if not answer.done():
                answer.set_exception(Unavailable(f"the launcher of containers is gone: {why}"))
        with contextlib.suppress(ChildProcessError):
            self._process.poll()
