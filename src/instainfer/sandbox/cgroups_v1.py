"""Control groups, version 1: see cgroups.Groups."""

from __future__ import annotations

import contextlib
from pathlib import Path

from instainfer.sandbox import cgroupfs as fs


class V1:
    """One hierarchy per controller. Processes may sit in inner groups, so the manager sits in its container's
    and instances in groups below; pids and cpu are the container's and need no group per instance."""

    version = 1

    def __init__(self, name: str, mounts: dict[str, str]) -> None:
        self.name = name
        self.mounts = {
            key: Path(path) for key, path in mounts.items() if key in ("memory", "freezer", "pids", "cpu")
        }
        self.controllers = frozenset(self.mounts) - {"cpu"}

    def add_container(self, container: str, *, limit: int, pids: int, cpus: float = 1.0) -> None:
        for controller in self.mounts:
            self._path(controller, container).mkdir(parents=True, exist_ok=True)
        if "memory" in self.mounts:
            memory = self._path("memory", container)
            hierarchy = memory.parent / "memory.use_hierarchy"
            if hierarchy.exists() and hierarchy.read_text().strip() == "0":  # before Linux 5.11
                fs.write(memory / "memory.use_hierarchy", "1")
            self._limit(memory, limit)
        if "pids" in self.mounts:
            fs.write(self._path("pids", container) / "pids.max", str(pids))
        self.share(container, cpus)

    def enter_container(self, container: str) -> None:
        for controller in self.mounts:
            # `tasks` and "0": the only move that takes no lock over all threads (cgroup_procs_write_start)
            fs.write(self._path(controller, container) / "tasks", "0")

    def add_instance(self, container: str, instance: str, *, limit: int) -> None:
        for controller in self._per_instance():
            self._path(controller, container, instance).mkdir(exist_ok=True)
        if "memory" in self.mounts:
            self._limit(self._path("memory", container, instance), limit)

    def doors(self, container: str, instance: str, *, outside: bool = False) -> list[int]:
        paths = [self._path(c, container, instance) for c in self._per_instance()]
        if outside:
            paths += self._of_the_container(container)
        return fs.open_all([path / "tasks" for path in paths])

    def take(self, container: str, instance: str, pid: int) -> None:
        paths = [self._path(c, container, instance) for c in self._per_instance()]
        for path in (*paths, *self._of_the_container(container)):
            if pid not in fs.pids(path / "cgroup.procs"):
                fs.write(path / "cgroup.procs", str(pid))

    def pids(self, container: str, instance: str | None = None) -> list[int]:
        if instance is not None:
            paths = [self._path(self._per_instance()[0], container, instance)]
        else:  # all: one that comes in from outside enters them one by one
            paths = [self._path(controller, container) for controller in self.mounts]
        return sorted({pid for path in paths for pid in fs.pids_below(path)})

    def freeze(self, container: str, instance: str) -> None:
        fs.write(self._path("freezer", container, instance) / "freezer.state", "FROZEN")

    def frozen(self, container: str, instance: str) -> bool:
        # reading makes the kernel look again; FREEZING is what it says until the last task has stopped
        state = (self._path("freezer", container, instance) / "freezer.state").read_text()
        return state.strip() == "FROZEN"

    def thaw(self, container: str, instance: str) -> None:
        fs.write(self._path("freezer", container, instance) / "freezer.state", "THAWED")

    def kill(self, container: str, instance: str | None = None) -> None:
        paths = [self._path(c, container, *([instance] if instance else [])) for c in self._per_instance()]
        frozen = [path / "freezer.state" for path in paths if (path / "freezer.state").exists()]
        # frozen first: nothing can be forked between reading the list and the last signal
        for state in frozen:
            fs.write(state, "FROZEN")
        fs.signal_until_settled(lambda: {pid for path in paths for pid in fs.pids_below(path)})
        # a frozen task dies only after thawing, and a child's own state outlives its parent's
        for state in frozen:
            for below in (*state.parent.glob("*/freezer.state"), state):
                with contextlib.suppress(FileNotFoundError):
                    fs.write(below, "THAWED")

    def resize(self, container: str, limit: int) -> None:
        if "memory" in self.mounts:
            path = self._path("memory", container)
            fs.refuse_to_squeeze(path, self.anonymous(container), limit)  # the kernel tries for a second first
            self._limit(path, limit)

    def limit(self, container: str, instance: str | None = None) -> int | None:
        if "memory" not in self.mounts:
            return None
        path = self._path("memory", container, *([instance] if instance else []))
        bytes_ = int((path / "memory.limit_in_bytes").read_text())
        return None if bytes_ >= 1 << 62 else bytes_

    def share(self, container: str, cpus: float) -> None:
        if "cpu" in self.mounts:
            shares = min(262144, max(2, round(1024 * cpus)))  # what the kernel takes
            fs.write(self._path("cpu", container) / "cpu.shares", str(shares))

    def anonymous(self, container: str, instance: str | None = None) -> int:
        path = self._path("memory", container, *([instance] if instance else []))
        stat = fs.table(path / "memory.stat")
        return stat.get("total_rss", 0) + stat.get("total_shmem", 0)

    def oom_kills(self, container: str, instance: str) -> int:
        if "memory" not in self.mounts:
            return 0
        return fs.table(self._path("memory", container, instance) / "memory.oom_control").get("oom_kill", 0)

    def remove_instance(self, container: str, instance: str) -> None:
        for controller in self._per_instance():
            fs.rmdir(self._path(controller, container, instance))

    def remove_container(self, container: str) -> None:
        for controller in self.mounts:
            fs.rmtree(self._path(controller, container))

    def containers(self) -> list[str]:
        return sorted({name for c in self.mounts for name in fs.directories(self._path(c))})

    def remove(self) -> None:
        for controller in self.mounts:
            fs.rmdir(self._path(controller))

    def _path(self, controller: str, *parts: str) -> Path:
        return self.mounts[controller].joinpath(self.name, *parts)

    def _of_the_container(self, container: str) -> list[Path]:
        return [self._path(c, container) for c in self.mounts if c not in self._per_instance()]

    def _per_instance(self) -> list[str]:
        return [controller for controller in ("freezer", "memory") if controller in self.mounts]

    @staticmethod
    def _limit(path: Path, limit: int) -> None:
        """Memory with swap may not be below memory without: which of the two is first depends on the way."""
        files = [path / "memory.limit_in_bytes", path / "memory.memsw.limit_in_bytes"]
        if not files[1].exists():
            fs.write(files[0], str(limit))
            return
        if int(files[0].read_text()) < limit:
            files.reverse()
        for file in files:
            fs.write(file, str(limit))
