"""Hosts on one machine: each a network, a process and a mount namespace of its own, with a disk of its own, on a
bridge.

    lab        the bridge, 10.77.0.1
    a, b, …    10.77.0.11, .12, …; `here` is its disk, at one path on all of them; so is `marks`, at MARKS, where
               functions see it, too, since sandboxes show them /usr

All of it lives in one process namespace, whose first process reads a pipe that the tests hold: it ends with them,
however they end, and with it every process, interface and mount. Files and empty control groups of tests that were
killed are removed by the next ones (`sweep`).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from psutil import Error, Process, process_iter  # type: ignore[import-untyped] # it ships no types

from tests.live.server_helpers import eventually

PREFIX = "ii-hosts-"
MARKS = Path("/usr/local/games")
NETWORK = "10.77.0"
CLONE_NEWNET = 0x40000000
#: Reads until its standard input ends, which nobody writes to. Whoever has lost its parent becomes its child, and
#: children of a process that ignores SIGCHLD leave no zombies.
FIRST = ("--", "sh", "-c", "trap '' CHLD; exec cat")
NAMESPACES = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
GROUPS = Path("/sys/fs/cgroup")


class Lab:
    """Only tools that every Linux has are used: ip, unshare, nsenter. Raises CalledProcessError where the machine
    does not let us."""

    def __init__(self, *names: str) -> None:
        sweep()
        self.base = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))  # short: there will be sockets in it
        self.base.chmod(0o755)
        self._lock = (self.base / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.here = self.base / "h"
        self.here.mkdir()
        self._first = _first(NAMESPACES)
        self.pid = _child(self._first)
        try:
            bridge = f"ip link add bridge type bridge && ip addr add {NETWORK}.1/24 dev bridge"
            self.network(f"ip link set lo up && {bridge} && ip link set bridge up")
            self.hosts = {name: Host(self, name, 11 + n) for n, name in enumerate(names)}
        except BaseException:
            self.close()
            raise

    def network(self, script: str) -> None:
        """A command among the lab's interfaces."""
        _do("nsenter", "--target", str(self.pid), "--net", "sh", "-ec", script)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and those that it starts, are in the lab's network."""
        with Path("/proc/thread-self/ns/net").open() as before, Path(f"/proc/{self.pid}/ns/net").open() as lab:
            _enter(lab.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def close(self) -> None:
        """Nothing is left of it."""
        assert self._first.stdin is not None
        self._first.stdin.close()
        thaw(self.base)
        self._first.wait(30)
        for host in getattr(self, "hosts", {}).values():
            host.reap()
        _forget(self.base)
        self._lock.close()


class Host:
    def __init__(self, lab: Lab, name: str, number: int) -> None:
        self.name = name
        self.ip = f"{NETWORK}.{number}"
        self.disk = lab.base / "disks" / name  # `here`, as it is seen from outside
        self.disk.mkdir(parents=True)
        self.marks = lab.base / "marks" / name  # MARKS, as it is seen from outside
        self.marks.mkdir(parents=True)
        self._lab = lab
        self._cable = f"to-{name}"
        self._started: list[subprocess.Popen[bytes]] = []
        self.boot()

    def boot(self) -> None:
        lab = self._lab
        self._first = _first(("nsenter", "--target", str(lab.pid), "--net", "--mount", "--pid", *NAMESPACES))
        self.pid = _child(_child(self._first))
        lab.network(
            f"ip link add {self._cable} type veth peer name eth0 netns {self.pid} "
            f"&& ip link set {self._cable} master bridge up"
        )
        addresses = f"ip addr add {self.ip}/24 dev eth0 && ip link set eth0 up && ip link set lo up"
        mounts = f"mount --bind {self.disk} {lab.here} && mount --bind {self.marks} {MARKS}"
        _do(*self._enter(), "sh", "-ec", f"{addresses} && {mounts} && mount -t tmpfs tmpfs /dev/shm")

    def _enter(self) -> tuple[str, ...]:
        return "nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--wd=/", "--"

    def run(self, command: Sequence[str], environ: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """A process there: a child of the one that is returned."""
        with log.open("ab") as output:
            started = subprocess.Popen(
                [*self._enter(), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                start_new_session=True,
            )
        self._started.append(started)
        return started

    def reap(self) -> None:
        assert self._first.stdin is not None
        self._first.stdin.close()
        thaw(self.disk)
        for one in (*self._started, self._first):
            one.wait(30)
        self._started.clear()

    def kill(self) -> None:
        """As if somebody pulled the plug: nothing of it says goodbye to anyone."""
        os.kill(self.pid, signal.SIGKILL)
        self.reap()

    def pull(self) -> None:
        """The cable out: both ends see that."""
        self._lab.network(f"ip link set {self._cable} down")

    def silence(self) -> None:
        """Its packets, and those for it, get lost."""
        self._lab.network(f"ip link set {self._cable} nomaster")

    def heal(self) -> None:
        self._lab.network(f"ip link set {self._cable} master bridge up")

    def processes(self, *words: str) -> list[Process]:
        """Those of its own process namespace, not of a container's, with these words on their command lines."""
        found = []
        try:
            ours = _namespace(self.pid)
        except OSError:
            return []  # it is not up
        for one in process_iter():
            with contextlib.suppress(Error, OSError):
                line = " ".join(one.cmdline())
                if all(word in line for word in words) and _namespace(one.pid) == ours:
                    found.append(one)
        return found


def _first(namespaces: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*namespaces, *FIRST], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _child(parent: subprocess.Popen[bytes] | int) -> int:
    """Its only one, once it is what it is to be."""
    pid = parent if isinstance(parent, int) else parent.pid

    def one() -> int:
        assert isinstance(parent, int) or parent.poll() is None, "the namespaces cannot be made"
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return 0
        (only,) = children
        name = Path(f"/proc/{only}/comm").read_text().strip()
        return int(only) if name in ("cat", "unshare") else 0

    return eventually(one, seconds=20)


def _namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - a text, no path


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _do(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=30)


def sweep() -> None:
    """Remove what labs of tests that were killed have left."""
    for base in Path("/tmp").glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (base / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            thaw(base)
            _forget(base)


def groups(base: Path) -> list[Path]:
    """The control groups, inner ones first, that carry the names of sandboxes with their files below `base`."""
    names = tuple(f"instainfer-{owner.read_text().strip()}" for owner in base.rglob("sandbox/owner"))
    found = [Path(root) for root, _, _ in os.walk(GROUPS, topdown=False)]
    return [path for path in found if names and any(part.startswith(names) for part in path.parts)]


def thaw(base: Path) -> None:
    """Of version 1, a process that is frozen dies of SIGKILL only when it is not any more; and a process namespace
    is not over before that."""
    for group in groups(base):
        with contextlib.suppress(OSError):
            (group / "freezer.state").write_text("THAWED")


def _forget(base: Path) -> None:
    def empty() -> bool:
        for group in (left := groups(base)):
            with contextlib.suppress(OSError):
                group.rmdir()
        return not left

    eventually(empty, what=f"the end of the control groups of {base}")
    shutil.rmtree(base)
