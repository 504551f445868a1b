"""A process that gives life to others by forking itself, with all that it has in memory: a library zygote, or the
template of a loaded function. It speaks the manager's protocol (manager.py) on its control socket.

Fork and go on in the child as another process needs care at each of these: capabilities, descriptors, random
number generators, being killed with the parent (it is not), and threads, which do not come along.
"""

from __future__ import annotations

import os
import sys
from _signal import getsignal, signal  # type: ignore[import-not-found] # typeshed knows `signal` only

from . import manager

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    from _socket import socket

#: Libraries that keep tasks of their own after their import and yet work in a forked child, and how many: proven
#: by a test for each. onnxruntime's is a logger's; sessions, and with them thread pools, come later.
PROVEN = {"onnxruntime": 1}


class Forker(manager.Manager):
    """`serve` ends in the parent when it is told to, and raises Born in every child. `apart`: each child is to
    have a uid of its own, which this process was given the right to take."""

    def __init__(self, control: socket, about: dict, *, apart: bool = False) -> None:
        self._told = about
        self._apart = apart
        self._handlers = {number: getsignal(number) for number in manager.HANDLED}
        super().__init__(control)

    def _allowed(self) -> bool:
        return self._apart

    def _harden(self) -> None:
        manager.prctl(manager.DUMPABLE, 0)

    def _about(self) -> dict:
        return self._told

    def _detach(self, parent: int) -> None:
        """What it has forked lives on when it ends; the container's manager ends them all."""
        if self._privileged:
            manager.hold(())
        manager.prctl(manager.DUMPABLE, 1)  # a change of uid has taken it

    def _close(self, fds: list) -> None:
        """Only what is the forker's: what a library keeps open it may go on using."""
        for fd in {*fds, self._null, self._wake, self._woken, self._control.fileno()}:
            if fd > manager.HIGHEST:
                os.close(fd)
        self._control.detach()

    def _go_on(self, message: dict, env: dict) -> None:
        os.environ.clear()
        os.environ.update(env)
        for number, handler in self._handlers.items():  # Python ignores SIGPIPE, and a library may have set some
            if handler is not None:
                signal(number, handler)
        reseed()

    def end(self) -> None:
        """What it has forked lives on."""


def reseed() -> None:
    """Random number generators that would give each child the same numbers. `random` sees to itself."""
    modules = sys.modules
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    if "torch" in modules:
        modules["torch"].default_generator.seed()


def tasks() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # no /proc
        return 1


def tasks_too_many() -> int:
    """Tasks beyond the main one that would be missing in a child."""
    proven = sum(count for name, count in PROVEN.items() if name in sys.modules)
    return max(tasks() - 1 - proven, 0)
