"""The agent's side of the control socket of a manager, a library zygote or a template: of whatever makes instances
(runtime/manager.py has the protocol).

Driven by readers of the event loop, no threads. What comes over the socket is not trusted: a manager that says
what ours would not say is treated as lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from instainfer.errors import InstanceCrashed, Unavailable

LARGEST = 256 << 10  # bytes of a datagram
MOST_FDS = 8
SPAWN_S = 10.0
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


@dataclass(frozen=True)
class Hello:
    pid: int  # as the container numbers it
    python: str
    about: Mapping[str, Any] = field(default_factory=dict)  # what else it said: a zygote's import


_NATIVE = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)


@dataclass(frozen=True)
class Exit:
    """How a process ended; neither is known when its manager went before it could tell."""

    code: int | None = None
    signal: int | None = None

    @property
    def how(self) -> str:
        """In words that follow "its process"."""
        if self.signal is None:
            return "ended" if self.code is None else f"exited with status {self.code}"
        native = " in native code" if self.signal in _NATIVE else ""
        try:
            name = signal.Signals(self.signal).name
        except ValueError:
            name = "unknown"
        return f"crashed{native}: signal {self.signal} ({name})"


@dataclass(frozen=True)
class Spawned:
    """A process that has been let go. Whoever gets it owns the socket (non-blocking) and both descriptors
    (non-blocking read ends)."""

    instance: str
    pid: int  # as this host numbers it
    sock: socket.socket
    stdout_fd: int
    stderr_fd: int
    control: socket.socket | None = None  # a template's

    def close(self) -> None:
        self.sock.close()
        if self.control is not None:
            self.control.close()
        os.close(self.stdout_fd)
        os.close(self.stderr_fd)


class _Malformed(Exception):
    pass


class ManagerLink:
    """Takes the control socket over. `on_lost(reason)` is called once, when the manager is gone or talks
    nonsense; `on_exit(instance, exit)` for every instance that ends, before its future is done."""

    def __init__(
        self,
        control: socket.socket,
        *,
        on_lost: Callable[[str], None] | None = None,
        on_exit: Callable[[str, Exit], None] | None = None,
    ) -> None:
        self._control = control
        self._control.setblocking(False)
        self._fd = control.fileno()
        self._on_lost = on_lost
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[Hello] = self._loop.create_future()
        self._spawning: dict[str, asyncio.Future[list[int]]] = {}
        self._exits: dict[str, asyncio.Future[Exit]] = {}
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self.lost: str | None = None  # the reason
        self._loop.add_reader(self._fd, self._readable)

    async def hello(self, timeout_s: float = 10.0) -> Hello:
        """Raises Unavailable when it does not come."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._hello)
        except TimeoutError:
            raise Unavailable(f"a container's manager said nothing in {timeout_s:g} s") from None

    async def spawn(
        self,
        instance: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        *,
        uid: int | None = None,
        gid: int | None = None,
        limits: Mapping[str, int] | None = None,
        attach: Callable[[int], None],
        doors: Sequence[int] = (),
        packets: bool = False,
        control: bool = False,
        caps: bool = False,
        warm: bool = False,
    ) -> Spawned:
        """Start a process. `attach` gets its host pid while it waits and may refuse by raising: then it is
        killed and never runs. Closes the doors. `packets`: its socket keeps datagrams apart; `control`: it gets
        a second one, which does; `caps`: it may become other uids of its container; `warm`: a
        clone makes a warm-up call. Raises Unavailable when the
        manager refuses or is lost, InstanceCrashed when the process dies before its go."""
        if self.lost is not None or instance in self._spawning:
            _close(doors)
            raise Unavailable(f"instance {instance} cannot be started: {self.lost or 'it is being started'}")
        opened: asyncio.Future[list[int]] = self._loop.create_future()
        self._spawning[instance] = opened
        self._exits[instance] = self._loop.create_future()
        message = {
            "op": "spawn",
            "instance": instance,
            "argv": list(argv),
            "env": dict(env),
            "cwd": cwd,
            "uid": uid,
            "gid": gid,
            "limits": dict(limits or {}),
            "packets": packets,
            "control": control,
            "caps": caps,
            "warm": warm,
        }
        self._post(message, list(doors))
        spawned: Spawned | None = None
        try:
            async with asyncio.timeout(SPAWN_S):
                sock_fd, stdout_fd, stderr_fd, *more = await opened
                second = socket.socket(fileno=more[0]) if more else None
                spawned = Spawned(instance, 0, socket.socket(fileno=sock_fd), stdout_fd, stderr_fd, second)
                spawned.sock.setblocking(False)
                os.set_blocking(stdout_fd, False)
                os.set_blocking(stderr_fd, False)
                pid = await self._waiting(spawned)
            attach(pid)
            spawned.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
            spawned.sock.send(b"G")
        except BaseException as error:
            if spawned is not None:
                spawned.close()
            self.kill(instance)
            if isinstance(error, TimeoutError):
                raise Unavailable(f"instance {instance} did not start in {SPAWN_S:g} s") from None
            raise
        finally:
            self._spawning.pop(instance, None)
            if opened.done() and not opened.cancelled() and opened.exception() is None and spawned is None:
                _close(opened.result())
        return replace(spawned, pid=pid)

    def kill(self, instance: str) -> None:
        """SIGKILL to its process group. The sandbox's `kill` is stronger; this works before an attach."""
        self._post({"op": "kill", "instance": instance}, [])

    def exited(self, instance: str) -> asyncio.Future[Exit]:
        """Done when the instance's process was reaped or the manager is lost; never an exception. Await it
        shielded. KeyError for an instance that was never spawned here (or was `forgotten`)."""
        return self._exits[instance]

    def forget(self, instance: str) -> None:
        self._exits.pop(instance, None)

    def close(self) -> None:
        """Stop listening and let the manager end. Does not call `on_lost`."""
        self._on_lost = None
        self._lose("it was closed")

    async def _waiting(self, spawned: Spawned) -> int:
        """The host's number of the process that has said "H"."""
        sock = spawned.sock
        said: asyncio.Future[None] = self._loop.create_future()

        def speak() -> None:
            if not said.done():
                said.set_result(None)

        self._loop.add_reader(sock.fileno(), speak)
        try:
            await said
        finally:
            self._loop.remove_reader(sock.fileno())
        try:
            data, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        except OSError:
            data, ancillary = b"", []
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and data == b"H":
                pid = int(_CREDENTIALS.unpack(raw)[0])
                if pid > 0:
                    return pid
        detail = ""
        with contextlib.suppress(OSError):
            detail = os.read(spawned.stderr_fd, 4096).decode(errors="replace").strip()
        raise InstanceCrashed(f"instance {spawned.instance} ended before it began", detail=detail)

    def _post(self, message: dict[str, Any], fds: list[int]) -> None:
        if self.lost is not None:
            _close(fds)
            return
        self._outbox.append((json.dumps(message).encode(), fds))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._outbox:
            data, fds = self._outbox[0]
            try:
                socket.send_fds(self._control, [data], fds)
            except BlockingIOError:
                self._loop.add_writer(self._fd, self._flush)
                return
            except OSError as error:
                self._lose(str(error))
                return
            self._outbox.popleft()
            _close(fds)
        self._loop.remove_writer(self._fd)

    def _readable(self) -> None:
        while self.lost is None:
            try:
                data, ancillary, flags, _ = self._control.recvmsg(
                    LARGEST, socket.CMSG_SPACE(4 * MOST_FDS), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(str(error))
                return
            fds = _descriptors(ancillary)
            try:
                if not data:
                    raise _Malformed("it ended")
                if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise _Malformed("it said too much at once")
                self._heard(data, fds)
            except _Malformed as reason:
                _close(fds)
                self._lose(str(reason))

    def _heard(self, data: bytes, fds: list[int]) -> None:
        """Raises _Malformed; `fds` are the caller's in that case only."""
        try:
            said = json.loads(data)
            event = said["event"]
            if event == "spawned":
                return self._heard_spawned(said["instance"], fds)
            if fds:
                raise _Malformed(f"descriptors with {event!r}")
            if event == "hello":
                about = {key: value for key, value in said.items() if key not in ("event", "pid", "python")}
                hello = Hello(int(said["pid"]), str(said["python"]), about)
                if not self._hello.done():
                    self._hello.set_result(hello)
            elif event == "refused":
                opened = self._spawning.get(said["instance"])
                if opened is not None and not opened.done():
                    opened.set_exception(Unavailable(f"instance {said['instance']} refused: {said['error']}"))
            elif event == "exited":
                self._ended(said["instance"], Exit(_number(said["code"]), _number(said["signal"])))
            elif event == "failed":
                raise _Malformed(f"it failed: {said['error']}")
            else:
                raise _Malformed(f"unknown event {event!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _Malformed(f"a malformed message: {error}") from error

    def _heard_spawned(self, instance: str, fds: list[int]) -> None:
        opened = self._spawning.get(instance)
        if len(fds) not in (3, 4):
            raise _Malformed(f"{len(fds)} descriptors with a spawned instance")
        if opened is None or opened.done():  # given up on, and killed
            _close(fds)
        else:
            opened.set_result(fds)

    def _ended(self, instance: str, exit_: Exit) -> None:
        future = self._exits.get(instance)
        if future is None or future.done():
            return
        if self._on_exit is not None:
            self._on_exit(instance, exit_)
        future.set_result(exit_)

    def _lose(self, reason: str) -> None:
        if self.lost is not None:
            return
        self.lost = reason
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._control.close()
        for _, fds in self._outbox:
            _close(fds)
        self._outbox.clear()
        error = Unavailable(f"a container's manager is gone: {reason}")
        waiting: list[asyncio.Future[Any]] = [self._hello, *self._spawning.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever does not wait for it is told by on_lost
        if self._on_lost is not None:
            self._on_lost(reason)
        for instance in tuple(self._exits):
            self._ended(instance, Exit())


def _number(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} is not a number")


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, raw in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += struct.unpack(f"{len(raw) // 4}i", raw[: len(raw) // 4 * 4])
    return found


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
