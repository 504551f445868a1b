"""The instance's end of its socket to the platform."""

from __future__ import annotations

import fcntl
import os
from _thread import allocate_lock

from . import frames

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    Frame = tuple[int, int, dict, bytes]


class Channel:
    """The socket to the platform: whole frames in and out, blocking. When it ends, the process does."""

    def __init__(self, fd: int) -> None:
        self._fd = out_of_the_way(fd)
        self._decoder = frames.Decoder()
        self._frames: list[Frame] = []
        self._lock = allocate_lock()
        # A forked child that held the socket would hide the end of this process from the platform.
        os.register_at_fork(after_in_child=self._abandon)

    def take(self) -> Frame:
        """The next frame."""
        try:
            while not self._frames:
                data = os.read(self._fd, min(max(self._decoder.missing, 1 << 14), 1 << 20))
                if not data:
                    os._exit(0)
                self._frames = self._decoder.feed(data)
        except (OSError, ValueError):  # the function closed it, or it is not our platform that speaks
            os._exit(1)
        return self._frames.pop(0)

    def comes(self, seconds: float) -> bool:
        """Whether something to take is there, or comes within so many seconds. Less than a whole frame counts."""
        if self._frames:
            return True
        from select import POLLIN, poll

        waiting = poll()
        waiting.register(self._fd, POLLIN)
        return bool(waiting.poll(max(seconds, 0.0) * 1000))

    def send(self, kind: int, request: int, meta: dict, body: bytes = b"") -> None:
        """One frame, whole. May be called from any thread."""
        data = frames.encode(kind, request, meta, body)
        try:
            with self._lock:
                sent = os.write(self._fd, data)
                while sent < len(data):
                    sent += os.write(self._fd, memoryview(data)[sent:])
        except OSError:
            os._exit(1)

    def _abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def out_of_the_way(fd: int) -> int:
    """The same socket under a high number, closed on exec: code that closes or inherits low descriptors
    does not meet it."""
    for lowest in (900, 200, 20, 0):
        try:
            moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
        except OSError:  # over RLIMIT_NOFILE
            continue
        os.close(fd)
        return moved
    return fd
