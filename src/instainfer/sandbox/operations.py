"""The steps a container is built of: objects that can say what they are about to do, then do it.

A plan is a list of them, made without touching anything and then run in order; the first one that fails names
itself (`describe()`), and nothing after it is done.
"""

# Paths below a root that is not one yet are text here: pathlib would make it slower, not clearer.
# ruff: noqa: PTH103, PTH110, PTH112, PTH120, PTH123, PTH211

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from instainfer.sandbox import syscalls


class Operation(Protocol):
    def describe(self) -> str: ...

    def execute(self) -> None:
        """Raises OSError."""
        ...


class OperationFailed(Exception):
    """`operation` could not be done; the cause is the OSError."""

    def __init__(self, operation: str, error: str) -> None:
        super().__init__(operation, error)
        self.operation = operation
        self.error = error


def run(plan: Sequence[Operation]) -> None:
    for step in plan:
        try:
            step.execute()
        except OSError as error:
            raise OperationFailed(step.describe(), str(error)) from error


@dataclass(frozen=True)
class Unshare:
    flags: int
    names: str

    def describe(self) -> str:
        return f"enter new namespaces ({self.names})"

    def execute(self) -> None:
        syscalls.unshare(self.flags)


@dataclass(frozen=True)
class LeaveKeys:
    def describe(self) -> str:
        return "leave the server's session keyring"

    def execute(self) -> None:
        syscalls.new_session_keyring()


@dataclass(frozen=True)
class MapOwnUser:
    """Inner root is the server's own user. The kernel wants setgroups denied first, or a process could drop
    a group that denies it a file."""

    uid: int
    gid: int

    def describe(self) -> str:
        return f"map inner root to uid {self.uid}"

    def execute(self) -> None:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"0 {self.uid} 1")
        write("/proc/self/gid_map", f"0 {self.gid} 1")


@dataclass(frozen=True)
class Hostname:
    name: str

    def describe(self) -> str:
        return f"be called {self.name}"

    def execute(self) -> None:
        syscalls.sethostname(self.name[:63])


@dataclass(frozen=True)
class Loopback:
    """Libraries that talk to themselves over 127.0.0.1 work without a network."""

    def describe(self) -> str:
        return "bring up the loopback interface"

    def execute(self) -> None:
        siocgifflags, siocsifflags, up = 0x8913, 0x8914, 0x1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("16sh22x", b"lo", 0)
            flags = struct.unpack_from("16sh", fcntl.ioctl(any_socket, siocgifflags, request))[1]
            fcntl.ioctl(any_socket, siocsifflags, struct.pack("16sh22x", b"lo", flags | up))


@dataclass(frozen=True)
class PrivateMounts:
    """Whatever is mounted from here on is seen here only, and what the host mounts later is not seen."""

    def describe(self) -> str:
        return "make all mounts private"

    def execute(self) -> None:
        syscalls.mount("none", "/", "none", syscalls.MS_REC | syscalls.MS_PRIVATE)


@dataclass(frozen=True)
class Tmpfs:
    path: str
    mode: int
    size: int | None = None  # bytes; None leaves the kernel's half of the memory, which the cgroup limits
    flags: int = syscalls.MS_NOSUID | syscalls.MS_NODEV

    def describe(self) -> str:
        return f"mount a tmpfs on {self.path}"

    def execute(self) -> None:
        os.makedirs(self.path, mode=0o755, exist_ok=True)
        options = f"mode={self.mode:o}" + ("" if self.size is None else f",size={self.size}")
        syscalls.mount("tmpfs", self.path, "tmpfs", self.flags, options)


@dataclass(frozen=True)
class Directory:
    path: str

    def describe(self) -> str:
        return f"create {self.path}"

    def execute(self) -> None:
        os.makedirs(self.path, mode=0o755, exist_ok=True)


@dataclass(frozen=True)
class HandOutListener:
    """A socket belongs to the network namespace that it was made in, whoever accepts on it."""

    port: int
    to: int

    def describe(self) -> str:
        return f"listen on loopback port {self.port} for those outside"

    def execute(self) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
            socket.socket(fileno=os.dup(self.to)) as outside,
        ):
            listener.bind(("127.0.0.1", self.port))
            listener.listen(64)
            socket.send_fds(outside, [b"+"], [listener.fileno()])


@dataclass(frozen=True)
class Bind:
    """Show a host path inside. `optional`: a source that does not exist is no failure."""

    source: str
    target: str
    writable: bool = False
    device: bool = False
    optional: bool = False

    def describe(self) -> str:
        return f"bind {self.source} {'writable' if self.writable else 'read-only'} on {self.target}"

    def execute(self) -> None:
        if not os.path.exists(self.source):
            if self.optional:
                return
            raise FileNotFoundError(2, "no such file or directory", self.source)
        if os.path.isdir(self.source):
            os.makedirs(self.target, mode=0o755, exist_ok=True)
        elif not os.path.exists(self.target):
            os.makedirs(os.path.dirname(self.target), mode=0o755, exist_ok=True)
            os.close(os.open(self.target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        attributes = syscalls.ATTR_NOSUID
        if not self.device:
            attributes |= syscalls.ATTR_NODEV
        if not self.writable:
            attributes |= syscalls.ATTR_RDONLY
        syscalls.bind(self.source, self.target, attributes)


@dataclass(frozen=True)
class Symlink:
    path: str
    to: str

    def describe(self) -> str:
        return f"link {self.path} to {self.to}"

    def execute(self) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        os.symlink(self.to, self.path)


@dataclass(frozen=True)
class File:
    path: str
    text: str

    def describe(self) -> str:
        return f"write {self.path}"

    def execute(self) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        write(self.path, self.text)


@dataclass(frozen=True)
class Proc:
    """A proc of the container's own pid namespace, in which a uid sees only its own processes (hidepid: Linux
    5.8 keeps it per mount)."""

    path: str

    def describe(self) -> str:
        return f"mount proc on {self.path}"

    def execute(self) -> None:
        os.makedirs(self.path, mode=0o755, exist_ok=True)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("proc", self.path, "proc", flags, "hidepid=2")


@dataclass(frozen=True)
class Cover:
    """Make a part of /proc read-only, or (with `by`) hide it behind an empty file."""

    path: str
    by: str = ""

    def describe(self) -> str:
        return f"cover {self.path}"

    def execute(self) -> None:
        if os.path.exists(self.path):
            attributes = syscalls.ATTR_RDONLY | syscalls.ATTR_NOSUID | syscalls.ATTR_NOEXEC
            syscalls.bind(self.by or self.path, self.path, attributes)


@dataclass(frozen=True)
class Uncover:
    """Give back write access below a covered directory, to those whom the kernel lets write there."""

    path: str

    def describe(self) -> str:
        return f"open {self.path}"

    def execute(self) -> None:
        syscalls.bind(self.path, self.path, 0)
        keep = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("none", self.path, "none", syscalls.MS_REMOUNT | syscalls.MS_BIND | keep)


@dataclass(frozen=True)
class PivotRoot:
    """Swap roots and let go of the old one: pivot_root(".", ".") stacks it over the new, so that no directory
    for it has to exist in a root that is about to be read-only."""

    root: str

    def describe(self) -> str:
        return f"make {self.root} the root"

    def execute(self) -> None:
        os.chdir(self.root)
        syscalls.pivot_root(".", ".")
        syscalls.umount(".", syscalls.MNT_DETACH)
        os.chdir("/")
        flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("none", "/", "none", syscalls.MS_REMOUNT | syscalls.MS_BIND | flags)


@dataclass(frozen=True)
class NoUserNamespaces:
    """The limit of a user namespace holds for its descendants and falls to whoever has CAP_SYS_RESOURCE in
    it, which from the exec on nobody has. Without it a tenant could get every capability over namespaces of
    its own and with them a large part of the kernel."""

    def describe(self) -> str:
        return "forbid further user namespaces"

    def execute(self) -> None:
        write("/proc/sys/user/max_user_namespaces", "0")


@dataclass(frozen=True)
class DropCapabilities:
    keep: frozenset[int]

    def describe(self) -> str:
        return f"drop capabilities but {sorted(self.keep)}"

    def execute(self) -> None:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            last = int(file.read())
        for capability in range(last + 1):
            if capability not in self.keep:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def write(path: str, text: str, dir_fd: int | None = None) -> None:
    """In one write(2): the maps and sysctls take no second one. Creates the file where it is a plain one."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=dir_fd)
    try:
        os.write(target, text.encode())
    finally:
        os.close(target)
