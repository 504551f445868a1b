"""Control groups of containers, v1 and v2 behind one small protocol.

    <mount>/instainfer-<state id>-<run>/<container>/<instance>

One directory per server run, so that a new server can remove what a killed one left while that one's launcher
is doing the same. Only files are written here: synchronous, and importable by the launcher at no cost. A
controller that is not there is left out; `controllers` says which are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

PREFIX = "instainfer-"
GONE = frozenset((errno.ENOENT, errno.ENODEV))  # a group that was removed before, or while it was read


class Groups(Protocol):
    """The groups of one server run. Names are single path components. All raise OSError."""

    version: int
    name: str
    controllers: frozenset[str]  # of memory, pids, freezer

    def add_container(self, container: str, *, limit: int, pids: int) -> None: ...

    def enter_container(self, container: str) -> None:
        """Move the calling, single-threaded process in (as its manager)."""
        ...

    def add_instance(self, container: str, instance: str, *, limit: int) -> None: ...

    def doors(self, container: str, instance: str) -> list[int]:
        """Descriptors into each of which a single-threaded process writes "0" to move itself into the
        instance. On v1 this is 30 µs where moving another process waits 6-14 ms for an RCU grace period."""
        ...

    def take(self, container: str, instance: str, pid: int) -> None:
        """Move `pid` in unless it is there. Raises ProcessLookupError when it is gone."""
        ...

    def pids(self, container: str, instance: str | None = None) -> list[int]:
        """Live processes in the instance (or in the container, its manager included)."""
        ...

    def freeze(self, container: str, instance: str) -> None:
        """Begin to."""
        ...

    def frozen(self, container: str, instance: str) -> bool: ...

    def thaw(self, container: str, instance: str) -> None: ...

    def kill(self, container: str, instance: str | None = None) -> None:
        """SIGKILL to everything in it, frozen or not, those that are just being forked included."""
        ...

    def resize(self, container: str, limit: int) -> None:
        """Raises OSError (EBUSY) when what is in use cannot be shrunk to it."""
        ...

    def limit(self, container: str, instance: str | None = None) -> int | None:
        """Bytes in force, or None without one."""
        ...

    def anonymous(self, container: str) -> int:
        """Anonymous and shared-memory bytes charged to the whole container."""
        ...

    def oom_kills(self, container: str, instance: str) -> int: ...

    def remove_instance(self, container: str, instance: str) -> None:
        """Raises OSError (EBUSY) while somebody is in it; nothing happens if it is gone."""
        ...

    def remove_container(self, container: str) -> None: ...

    def containers(self) -> list[str]: ...

    def remove(self) -> None:
        """The directory of the run itself, once it is empty."""
        ...


class V1:
    """One hierarchy per controller. Processes may sit in inner groups, so the manager sits in its container's
    and instances in groups below; limits of pids and cpu are the container's and need no group per instance."""

    version = 1

    def __init__(self, name: str, mounts: dict[str, str]) -> None:
        self.name = name
        self._mounts = {
            key: Path(path) for key, path in mounts.items() if key in ("memory", "freezer", "pids", "cpu")
        }
        self.controllers = frozenset(self._mounts) - {"cpu"}

    def add_container(self, container: str, *, limit: int, pids: int) -> None:
        for controller in self._mounts:
            self._path(controller, container).mkdir(parents=True, exist_ok=True)
        if "memory" in self._mounts:
            memory = self._path("memory", container)
            hierarchy = memory.parent / "memory.use_hierarchy"
            if hierarchy.exists() and hierarchy.read_text().strip() == "0":  # before Linux 5.11
                _write(memory / "memory.use_hierarchy", "1")
            self._limit(memory, limit)
        if "pids" in self._mounts:
            _write(self._path("pids", container) / "pids.max", str(pids))

    def enter_container(self, container: str) -> None:
        for controller in self._mounts:
            # `tasks` and "0": the only move that takes no lock over all threads (cgroup_procs_write_start)
            _write(self._path(controller, container) / "tasks", "0")

    def add_instance(self, container: str, instance: str, *, limit: int) -> None:
        for controller in self._per_instance():
            self._path(controller, container, instance).mkdir(exist_ok=True)
        if "memory" in self._mounts:
            self._limit(self._path("memory", container, instance), limit)

    def doors(self, container: str, instance: str) -> list[int]:
        return _open_all([self._path(c, container, instance) / "tasks" for c in self._per_instance()])

    def take(self, container: str, instance: str, pid: int) -> None:
        for controller in self._per_instance():
            path = self._path(controller, container, instance) / "cgroup.procs"
            if pid not in _pids(path):
                _write(path, str(pid))

    def pids(self, container: str, instance: str | None = None) -> list[int]:
        paths = [self._path(next(iter(self._mounts)), container)]
        if instance is not None:
            paths = [self._path(self._per_instance()[0], container, instance)]
        return sorted({pid for path in paths for pid in _pids_below(path)})

    def freeze(self, container: str, instance: str) -> None:
        _write(self._path("freezer", container, instance) / "freezer.state", "FROZEN")

    def frozen(self, container: str, instance: str) -> bool:
        # reading makes the kernel look again; FREEZING is what it says until the last task has stopped
        state = (self._path("freezer", container, instance) / "freezer.state").read_text()
        return state.strip() == "FROZEN"

    def thaw(self, container: str, instance: str) -> None:
        _write(self._path("freezer", container, instance) / "freezer.state", "THAWED")

    def kill(self, container: str, instance: str | None = None) -> None:
        paths = [self._path(c, container, *([instance] if instance else [])) for c in self._per_instance()]
        frozen = [path / "freezer.state" for path in paths if (path / "freezer.state").exists()]
        # frozen first: nothing can be forked between reading the list and the last signal
        for state in frozen:
            _write(state, "FROZEN")
        _signal_until_settled(lambda: {pid for path in paths for pid in _pids_below(path)})
        # a frozen task dies only after thawing, and a child's own state outlives its parent's
        for state in frozen:
            for below in (*state.parent.glob("*/freezer.state"), state):
                with contextlib.suppress(FileNotFoundError):
                    _write(below, "THAWED")

    def resize(self, container: str, limit: int) -> None:
        if "memory" in self._mounts:
            path = self._path("memory", container)
            _refuse_to_squeeze(path, self.anonymous(container), limit)  # the kernel tries for a second first
            self._limit(path, limit)

    def limit(self, container: str, instance: str | None = None) -> int | None:
        if "memory" not in self._mounts:
            return None
        path = self._path("memory", container, *([instance] if instance else []))
        bytes_ = int((path / "memory.limit_in_bytes").read_text())
        return None if bytes_ >= 1 << 62 else bytes_

    def anonymous(self, container: str) -> int:
        stat = _table(self._path("memory", container) / "memory.stat")
        return stat.get("total_rss", 0) + stat.get("total_shmem", 0)

    def oom_kills(self, container: str, instance: str) -> int:
        if "memory" not in self._mounts:
            return 0
        return _table(self._path("memory", container, instance) / "memory.oom_control").get("oom_kill", 0)

    def remove_instance(self, container: str, instance: str) -> None:
        for controller in self._per_instance():
            _rmdir(self._path(controller, container, instance))

    def remove_container(self, container: str) -> None:
        for controller in self._mounts:
            _rmtree(self._path(controller, container))

    def containers(self) -> list[str]:
        return sorted({name for c in self._mounts for name in _directories(self._path(c))})

    def remove(self) -> None:
        for controller in self._mounts:
            _rmdir(self._path(controller))

    def _path(self, controller: str, *parts: str) -> Path:
        return self._mounts[controller].joinpath(self.name, *parts)

    def _per_instance(self) -> list[str]:
        return [controller for controller in ("freezer", "memory") if controller in self._mounts]

    @staticmethod
    def _limit(path: Path, limit: int) -> None:
        """Memory with swap may not be below memory without: which of the two is first depends on the way."""
        files = [path / "memory.limit_in_bytes", path / "memory.memsw.limit_in_bytes"]
        if not files[1].exists():
            _write(files[0], str(limit))
            return
        if int(files[0].read_text()) < limit:
            files.reverse()
        for file in files:
            _write(file, str(limit))


class V2:
    """The unified hierarchy. A group that gives controllers to its children may hold no process itself, so the
    manager has a leaf of its own beside the instances."""

    version = 2
    MANAGER = "manager"

    def __init__(self, name: str, root: str) -> None:
        self.name = name
        self._root = Path(root)
        self._base = self._root / name
        available = (self._root / "cgroup.controllers").read_text().split()
        granted = set((self._root / "cgroup.subtree_control").read_text().split())
        for controller in ("memory", "pids", "cpu"):
            if controller in available and controller not in granted:
                # EBUSY where processes sit in the root of a delegated subtree: then without this controller
                with contextlib.suppress(OSError):
                    _write(self._root / "cgroup.subtree_control", f"+{controller}")
                    granted.add(controller)
        self._granted = granted & {"memory", "pids", "cpu"}
        self.controllers = frozenset((self._granted - {"cpu"}) | {"freezer"})

    def add_container(self, container: str, *, limit: int, pids: int) -> None:
        path = self._base / container
        wanted = " ".join(f"+{controller}" for controller in sorted(self._granted))
        for step in (self._base, path):
            step.mkdir(exist_ok=True)
            if wanted:
                _write(step / "cgroup.subtree_control", wanted)
        (path / self.MANAGER).mkdir(exist_ok=True)
        self.resize(container, limit)
        if "pids" in self._granted:
            _write(path / "pids.max", str(pids))

    def enter_container(self, container: str) -> None:
        _write(self._base / container / self.MANAGER / "cgroup.procs", "0")

    def add_instance(self, container: str, instance: str, *, limit: int) -> None:
        path = self._base / container / instance
        path.mkdir(exist_ok=True)
        if "memory" in self._granted:
            _write(path / "memory.max", str(limit))
            _write_if_there(path / "memory.swap.max", "0")

    def doors(self, container: str, instance: str) -> list[int]:
        return _open_all([self._base / container / instance / "cgroup.procs"])

    def take(self, container: str, instance: str, pid: int) -> None:
        path = self._base / container / instance / "cgroup.procs"
        if pid not in _pids(path):
            _write(path, str(pid))

    def pids(self, container: str, instance: str | None = None) -> list[int]:
        return sorted(_pids_below(self._base / container / (instance or "")))

    def freeze(self, container: str, instance: str) -> None:
        _write(self._base / container / instance / "cgroup.freeze", "1")

    def frozen(self, container: str, instance: str) -> bool:
        return _table(self._base / container / instance / "cgroup.events").get("frozen") == 1

    def thaw(self, container: str, instance: str) -> None:
        _write(self._base / container / instance / "cgroup.freeze", "0")

    def kill(self, container: str, instance: str | None = None) -> None:
        path = self._base / container / (instance or "")
        if not path.exists():
            return
        if (path / "cgroup.kill").exists():  # Linux 5.14; reaches frozen tasks and forks in flight by itself
            _write(path / "cgroup.kill", "1")
        else:
            _write(path / "cgroup.freeze", "1")
            _signal_until_settled(lambda: set(_pids_below(path)))
            _write(path / "cgroup.freeze", "0")

    def resize(self, container: str, limit: int) -> None:
        if "memory" not in self._granted:
            return
        path = self._base / container
        _refuse_to_squeeze(path, self.anonymous(container), limit)  # memory.max never fails: it kills instead
        _write(path / "memory.max", str(limit))
        _write_if_there(path / "memory.swap.max", "0")

    def limit(self, container: str, instance: str | None = None) -> int | None:
        path = self._base / container / (instance or "") / "memory.max"
        text = path.read_text().strip() if "memory" in self._granted else "max"
        return None if text == "max" else int(text)

    def anonymous(self, container: str) -> int:
        stat = _table(self._base / container / "memory.stat")
        return stat.get("anon", 0) + stat.get("shmem", 0)

    def oom_kills(self, container: str, instance: str) -> int:
        if "memory" not in self._granted:
            return 0
        return _table(self._base / container / instance / "memory.events").get("oom_kill", 0)

    def remove_instance(self, container: str, instance: str) -> None:
        _rmdir(self._base / container / instance)

    def remove_container(self, container: str) -> None:
        _rmtree(self._base / container)

    def containers(self) -> list[str]:
        return sorted(_directories(self._base))

    def remove(self) -> None:
        _rmdir(self._base)


def find(name: str) -> Groups | None:
    """Groups that this process may make under `name`, or None when there are none that at least freeze."""
    mounts = mounted()
    v1 = {key: path for key, path in mounts.items() if key and os.access(path, os.W_OK)}
    if "freezer" in v1:
        return V1(name, v1)
    if "" not in mounts:
        return None
    for root in (mounts[""], mounts[""] + _own_v2()):
        if os.access(root, os.W_OK) and os.access(Path(root, "cgroup.procs"), os.W_OK):
            with contextlib.suppress(OSError):  # removed meanwhile, or a delegation of the directory alone
                return V2(name, root)
    return None


def described(groups: Groups) -> dict[str, object]:
    """What `restored` makes the same groups of in another process."""
    if isinstance(groups, V1):
        return {"name": groups.name, "mounts": {key: str(path) for key, path in groups._mounts.items()}}
    assert isinstance(groups, V2)
    return {"name": groups.name, "root": str(groups._root)}


def restored(description: dict[str, object]) -> Groups:
    name = str(description["name"])
    mounts = description.get("mounts")
    return V1(name, mounts) if isinstance(mounts, dict) else V2(name, str(description["root"]))


def earlier(groups: Groups, prefix: str) -> list[Groups]:
    """Groups at the same place whose name begins with `prefix`, other than these."""
    description = described(groups)
    mounts = description.get("mounts")
    places = list(mounts.values()) if isinstance(mounts, dict) else [str(description["root"])]
    names = {name for place in places for name in _directories(Path(place)) if name.startswith(prefix)}
    return [restored({**description, "name": name}) for name in sorted(names - {groups.name})]


def mounted() -> dict[str, str]:
    """Controller of v1 -> its mount point; "" -> the mount point of v2."""
    known = {"memory", "freezer", "pids", "cpu"}
    found: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        place = left.split()[4]
        if kind == "cgroup2":
            found[""] = place
        elif kind == "cgroup":
            found |= dict.fromkeys(known & set(options.split(",")), place)
    return found


def _own_v2() -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:].rstrip("/")
    return ""


def _refuse_to_squeeze(path: Path, anonymous: int, limit: int) -> None:
    if anonymous > limit:
        raise OSError(errno.EBUSY, f"{anonymous} bytes are in use, which cannot be shrunk to {limit}", str(path))


def _write(path: Path, text: str) -> None:
    target = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(target, text.encode())
    except OSError as error:  # write(2) knows no path
        raise OSError(error.errno, f"{error.strerror} (writing {text!r})", str(path)) from None
    finally:
        os.close(target)


def _write_if_there(path: Path, text: str) -> None:
    if path.exists():
        _write(path, text)


def _open_all(paths: list[Path]) -> list[int]:
    opened: list[int] = []
    try:
        for path in paths:
            opened.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    except OSError:
        for descriptor in opened:
            os.close(descriptor)
        raise
    return opened


def _pids(path: Path) -> list[int]:
    try:
        return [int(line) for line in path.read_text().split()]
    except OSError as error:
        if error.errno in GONE:
            return []
        raise


def _pids_below(path: Path) -> Iterator[int]:
    yield from _pids(path / "cgroup.procs")
    for name in _directories(path):
        yield from _pids_below(path / name)


def _signal_until_settled(pids: Callable[[], set[int]]) -> None:
    done: set[int] = set()
    for _ in range(64):
        new = pids() - done
        if not new:
            return
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        done |= new


def _directories(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _table(path: Path) -> dict[str, int]:
    """Lines of "name number"; {} when the group is gone."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        if error.errno in GONE:
            return {}
        raise
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}


def _rmdir(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def _rmtree(path: Path) -> None:
    for name in _directories(path):
        _rmtree(path / name)
    _rmdir(path)
