"""Control groups of containers, v1 and v2 behind one small protocol.

    <mount>/instainfer-<state id>-<run>/<container>/<instance>

One directory per server run, so that a new server can remove what a killed one left while that one's launcher
is doing the same. Only files are written here: synchronous, and importable by the launcher at no cost. A
controller that is not there is left out; `controllers` says which are.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

from instainfer.sandbox import cgroupfs as fs
from instainfer.sandbox.cgroups_v1 import V1 as V1
from instainfer.sandbox.cgroups_v2 import V2 as V2

PREFIX = "instainfer-"


class Groups(Protocol):
    """The groups of one server run. Names are single path components. All raise OSError."""

    version: int
    name: str
    controllers: frozenset[str]  # of memory, pids, freezer

    def add_container(self, container: str, *, limit: int, pids: int, cpus: float = 1.0) -> None: ...

    def enter_container(self, container: str) -> None:
        """Move the calling, single-threaded process in (as its manager)."""
        ...

    def add_instance(self, container: str, instance: str, *, limit: int) -> None: ...

    def doors(self, container: str, instance: str, *, outside: bool = False) -> list[int]:
        """Descriptors into each of which a single-threaded process writes "0" to move itself into the
        instance, and with `outside` into the container as well. On v1 this is 30 µs where moving another
        process waits 6-14 ms for an RCU grace period."""
        ...

    def take(self, container: str, instance: str, pid: int) -> None:
        """Move `pid` into the instance and the container unless it is there. Raises ProcessLookupError when
        it is gone."""
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

    def share(self, container: str, cpus: float) -> None:
        """Its weight against other containers; nothing without a controller of cpus."""
        ...

    def anonymous(self, container: str, instance: str | None = None) -> int:
        """Anonymous and shared-memory bytes charged to the instance (or the whole container), to groups below
        it too. A page is charged to who wrote it first: a fork's copies to the fork, once it has moved."""
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
        return {"name": groups.name, "mounts": {key: str(path) for key, path in groups.mounts.items()}}
    assert isinstance(groups, V2)
    return {"name": groups.name, "root": str(groups.root)}


def restored(description: dict[str, object]) -> Groups:
    name = str(description["name"])
    mounts = description.get("mounts")
    return V1(name, mounts) if isinstance(mounts, dict) else V2(name, str(description["root"]))


def earlier(groups: Groups, prefix: str) -> list[Groups]:
    """Groups at the same place whose name begins with `prefix`, other than these."""
    description = described(groups)
    mounts = description.get("mounts")
    places = list(mounts.values()) if isinstance(mounts, dict) else [str(description["root"])]
    names = {name for place in places for name in fs.directories(Path(place)) if name.startswith(prefix)}
    return [restored({**description, "name": name}) for name in sorted(names - {groups.name})]


def mounted(mountinfo: Path = Path("/proc/self/mountinfo")) -> dict[str, str]:
    """Controller of v1 -> its mount point; "" -> the mount point of v2."""
    known = {"memory", "freezer", "pids", "cpu"}
    found: dict[str, str] = {}
    for line in mountinfo.read_text().splitlines():
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
