"""A library zygote: imports what functions of one environment were seen to import, then waits to be forked.

Started as `boot.py zygote FD`; FD is its end of a SEQPACKET socketpair. The first datagram is

    {"modules": [...], "apart": whether it is to give each child a uid}

then it says hello as a manager does, with {"import_us", "tasks", "missing", "refused"} besides, and from there on
speaks the manager's protocol. What it forks goes on as instance.py. It runs tenant code (a library's import is),
so it is trusted with nothing but the uids of the functions that use these very libraries.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from _socket import AF_UNIX, SOCK_SEQPACKET, socket

from . import forker, frames, instance, manager, payloads, styles, timing, traces  # noqa: F401 # for the children

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    from typing import NoReturn


def main(fd: int) -> NoReturn:
    bare = frozenset(sys.modules)
    control = socket(AF_UNIX, SOCK_SEQPACKET, 0, fileno=fd)
    os.set_inheritable(fd, False)
    wanted = frames.loads(control.recv(manager.LARGEST).decode())
    about = import_all(wanted["modules"])
    instance.flush()
    zygote = forker.Forker(control, about, apart=wanted["apart"])
    born = False
    try:
        zygote.serve()
    except manager.Born:
        born = True  # and no more in here: whatever the function raises would be told as raised because of this
    if born:
        instance.main(3, bare=bare)
    os._exit(0)


def import_all(modules: list) -> dict:
    """What it is to tell of itself. A module that is not there is none of ours to complain about: the function
    that needs it will."""
    import ast  # noqa: F401 # children need these
    import ctypes  # noqa: F401
    import hashlib  # noqa: F401

    from . import declared, fastpaths, snapshot  # noqa: F401

    began = time.monotonic()
    before = descriptors()
    missing = 0
    refused = ""
    gc.disable()  # nothing of what is imported goes away again
    for name in modules:
        try:
            __import__(name)
        except BaseException:  # noqa: BLE001  # a library may raise what it likes
            missing += 1
        if not refused and forker.tasks_too_many():
            refused = "importing %s starts threads, which a fork does not bring along" % name
    left = [what for fd, what in descriptors().items() if fd not in before and not what.startswith("/")]
    if left and not refused:
        refused = "its libraries keep a %s open, which children would share" % left[0].partition(":")[0]
    gc.collect()
    gc.freeze()  # a collection in a child would else touch, and so copy, all of it
    gc.enable()
    spent = int((time.monotonic() - began) * 1e6)
    return {"import_us": spent, "tasks": forker.tasks(), "missing": missing, "refused": refused}


def descriptors() -> dict:
    """Number -> what it is, of what is open."""
    found: dict[int, str] = {}
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:  # no /proc
        return found
    for number in numbers:
        try:
            found[int(number)] = os.readlink("/proc/self/fd/" + number)
        except OSError:
            continue  # the directory's own
    return found
