"""Linux system calls that the standard library has no function for.

Every wrapper fails through `_check`: an OSError whose message names the call and what it was done to, so that
a container that cannot be built says at which step and on which path. Nothing here but ctypes is imported:
the launcher starts with it.
"""

from __future__ import annotations

import ctypes
import errno
import os

# namespaces (sched.h)
NEWNS = 0x00020000
NEWCGROUP = 0x02000000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000

# mount(2) and umount2(2)
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

# mount_setattr(2)
ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
ATTR_NOEXEC = 0x8

# prctl(2)
PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

# capabilities that a manager may keep
CAP_KILL = 5
CAP_SETGID = 6
CAP_SETUID = 7

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x4

# Calls since Linux 5.1 have one number on every architecture; the older two have not, and glibc wraps none.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_SYS_PIVOT_ROOT, _SYS_KEYCTL = {"x86_64": (155, 250)}.get(os.uname().machine, (41, 219))
_KEYCTL_JOIN_SESSION_KEYRING = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str, flags: int, data: str | None = None) -> None:
    done = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(data))
    _check(done, f"mount({source}, {target}, {kind}, {flags:#x}, {data})")


def umount(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(_bytes(target), ctypes.c_int(flags)), f"umount2({target}, {flags:#x})")


def pivot_root(new: str, old: str) -> None:
    _check(_libc.syscall(_SYS_PIVOT_ROOT, _bytes(new), _bytes(old)), f"pivot_root({new}, {old})")


def bind(source: str, target: str, attributes: int, *, recursive: bool = True) -> None:
    """Show `source` at `target`, with the `ATTR_…` set on every mount below it before it becomes visible.

    The classic MS_BIND ignores flags and needs a remount per submount; this is one step (Linux 5.12).
    A user namespace may not clone a tree without the mounts beneath: it would uncover what they hide.
    """
    below = _AT_RECURSIVE if recursive else 0
    tree = _check(
        _libc.syscall(
            _SYS_OPEN_TREE,
            _AT_FDCWD,
            _bytes(source),
            ctypes.c_uint(_OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | below),
        ),
        f"open_tree({source})",
    )
    try:
        if attributes:
            wanted = _MountAttr(attr_set=attributes)
            _check(
                _libc.syscall(
                    _SYS_MOUNT_SETATTR,
                    tree,
                    b"",
                    ctypes.c_uint(_AT_EMPTY_PATH | below),
                    ctypes.byref(wanted),
                    ctypes.c_size_t(ctypes.sizeof(wanted)),
                ),
                f"mount_setattr({source}, {attributes:#x})",
            )
        _check(
            _libc.syscall(
                _SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, _bytes(target), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
            ),
            f"move_mount({source}, {target})",
        )
    finally:
        os.close(tree)


def prctl(option: int, value: int, more: int = 0) -> None:
    zero = ctypes.c_ulong(0)
    done = _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), ctypes.c_ulong(more), zero, zero)
    _check(done, f"prctl({option}, {value})")


def sethostname(name: str) -> None:
    raw = os.fsencode(name)
    _check(_libc.sethostname(raw, ctypes.c_size_t(len(raw))), f"sethostname({name})")


def new_session_keyring() -> None:
    """Leave the keys of whoever started the server behind. A kernel without keyrings has none to leave."""
    if _libc.syscall(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        number = ctypes.get_errno()
        if number != errno.ENOSYS:
            raise OSError(number, f"keyctl(JOIN_SESSION_KEYRING): {os.strerror(number)}")
