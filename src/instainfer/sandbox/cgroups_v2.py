"""Control groups, version 2: see cgroups.Groups."""

from __future__ import annotations

import contextlib
from pathlib import Path

from instainfer.sandbox import cgroupfs as fs


class V2:
    """The unified hierarchy. A group that gives controllers to its children may hold no process itself, so the
    manager has a leaf of its own beside the instances."""

    version = 2
    MANAGER = "manager"

    def __init__(self, name: str, root: str) -> None:
        self.name = name
        self.root = Path(root)
        self._base = self.root / name
        available = (self.root / "cgroup.controllers").read_text().split()
        granted = set((self.root / "cgroup.subtree_control").read_text().split())
        for controller in ("memory", "pids", "cpu"):
            if controller in available and controller not in granted:
                # EBUSY where processes sit in the root of a delegated subtree: then without this controller
                with contextlib.suppress(OSError):
                    fs.write(self.root / "cgroup.subtree_control", f"+{controller}")
                    granted.add(controller)
        self._granted = granted & {"memory", "pids", "cpu"}
        self.controllers = frozenset((self._granted - {"cpu"}) | {"freezer"})

    def add_container(self, container: str, *, limit: int, pids: int, cpus: float = 1.0) -> None:
        path = self._base / container
        wanted = " ".join(f"+{controller}" for controller in sorted(self._granted))
        for step in (self._base, path):
            step.mkdir(exist_ok=True)
            if wanted:
                fs.write(step / "cgroup.subtree_control", wanted)
        (path / self.MANAGER).mkdir(exist_ok=True)
        self.resize(container, limit)
        if "pids" in self._granted:
            fs.write(path / "pids.max", str(pids))
        self.share(container, cpus)

    def enter_container(self, container: str) -> None:
        fs.write(self._base / container / self.MANAGER / "cgroup.procs", "0")

    def add_instance(self, container: str, instance: str, *, limit: int) -> None:
        path = self._base / container / instance
        path.mkdir(exist_ok=True)
        if "memory" in self._granted:
            fs.write(path / "memory.max", str(limit))
            fs.write_if_there(path / "memory.swap.max", "0")

    def doors(self, container: str, instance: str, *, outside: bool = False) -> list[int]:
        # one hierarchy: who enters the instance has entered the container
        return fs.open_all([self._base / container / instance / "cgroup.procs"])

    def take(self, container: str, instance: str, pid: int) -> None:
        path = self._base / container / instance / "cgroup.procs"
        if pid not in fs.pids(path):
            fs.write(path, str(pid))

    def pids(self, container: str, instance: str | None = None) -> list[int]:
        return sorted(fs.pids_below(self._base / container / (instance or "")))

    def freeze(self, container: str, instance: str) -> None:
        fs.write(self._base / container / instance / "cgroup.freeze", "1")

    def frozen(self, container: str, instance: str) -> bool:
        return fs.table(self._base / container / instance / "cgroup.events").get("frozen") == 1

    def thaw(self, container: str, instance: str) -> None:
        fs.write(self._base / container / instance / "cgroup.freeze", "0")

    def kill(self, container: str, instance: str | None = None) -> None:
        path = self._base / container / (instance or "")
        if not path.exists():
            return
        if (path / "cgroup.kill").exists():  # Linux 5.14; reaches frozen tasks and forks in flight by itself
            fs.write(path / "cgroup.kill", "1")
        else:
            fs.write(path / "cgroup.freeze", "1")
            fs.signal_until_settled(lambda: set(fs.pids_below(path)))
            fs.write(path / "cgroup.freeze", "0")

    def resize(self, container: str, limit: int) -> None:
        if "memory" not in self._granted:
            return
        path = self._base / container
        fs.refuse_to_squeeze(path, self.anonymous(container), limit)  # memory.max never fails: it kills instead
        fs.write(path / "memory.max", str(limit))
        fs.write_if_there(path / "memory.swap.max", "0")

    def limit(self, container: str, instance: str | None = None) -> int | None:
        path = self._base / container / (instance or "") / "memory.max"
        text = path.read_text().strip() if "memory" in self._granted else "max"
        return None if text == "max" else int(text)

    def share(self, container: str, cpus: float) -> None:
        if "cpu" in self._granted:
            weight = min(10000, max(1, round(100 * cpus)))  # what the kernel takes
            fs.write(self._base / container / "cpu.weight", str(weight))

    def anonymous(self, container: str, instance: str | None = None) -> int:
        stat = fs.table(self._base / container / (instance or "") / "memory.stat")
        return stat.get("anon", 0) + stat.get("shmem", 0)

    def oom_kills(self, container: str, instance: str) -> int:
        if "memory" not in self._granted:
            return 0
        return fs.table(self._base / container / instance / "memory.events").get("oom_kill", 0)

    def remove_instance(self, container: str, instance: str) -> None:
        fs.rmdir(self._base / container / instance)

    def remove_container(self, container: str) -> None:
        fs.rmtree(self._base / container)

    def containers(self) -> list[str]:
        return sorted(fs.directories(self._base))

    def remove(self) -> None:
        fs.rmdir(self._base)
