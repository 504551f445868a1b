"""Object snapshots on this node: files that an instance wrote at deploy and later ones map (runtime/snapshot.py).

    root/<namespace>/<function>-<key>.snap    readable by its function alone, never changed
    root/<namespace>/<function>-<key>.json    its marker, written last; lies where no function can write
    root/<namespace>/<function>-<key>.kept/   what libraries keep of a load (optimised models), likewise
    root/<namespace>/.work-<token>/           where a measured instance writes them

The agent never looks into one: its content is a tenant's pickle.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import msgspec

import instainfer.runtime
from instainfer.agent.base import Revision
from instainfer.sandbox import pages

log = logging.getLogger(__name__)

CHUNK = 1 << 22
LATELY_S = 60.0
OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a tenant's: it may be a FIFO


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """What the file was when it was taken over. Any change of it since makes it somebody else's."""

    key: str
    size: int
    inode: int
    changed_ns: int
    sha256: str


class Snapshots:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: dict[Path, float] = {}  # when its pages were last looked after
        self._spoilt: dict[str, str] = {}  # revision -> why its snapshot is not used any more

    def directory(self, namespace: str) -> Path:
        """What a container of the namespace sees, read-only."""
        return self._root / namespace

    def workplace(self, revision: Revision, token: str, uid: int | None) -> Path:
        """A directory that a measured instance may write to."""
        path = self.directory(revision.namespace) / f".work-{token}"
        path.mkdir(mode=0o700, parents=True)
        if uid is not None:
            os.chown(path, uid, uid)
        return path

    def find(self, revision: Revision) -> dict[str, object] | None:
        """What an instance is told to restore from, or None."""
        if not revision.snapshot or revision.id in self._spoilt:
            return None
        path = self._path(revision)
        try:
            marker = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Marker)
            found = path.lstat()
        except (OSError, msgspec.MsgspecError):
            return None
        if (found.st_size, found.st_ino, found.st_mtime_ns) != (marker.size, marker.inode, marker.changed_ns):
            self.spoil(revision, "its file is not the one that was written at deploy")
            return None
        return {"path": str(path), "key": marker.key, "size": marker.size, "inode": marker.inode}

    def resident(self, revision: Revision) -> None:
        """See that its pages are in memory, and charged to the agent: on cgroup v1 whoever touches a page first
        pays for it. Blocks; does little where that was done lately."""
        path = self._path(revision)
        now = time.monotonic()
        if now - self._seen.get(path, -LATELY_S) >= LATELY_S:
            self._seen[path] = now
            with suppress(OSError):
                pages.prefault(path)

    def kept(self, revision: Revision) -> Path | None:
        """The directory of what its libraries keep, if they kept something."""
        path = self._path(revision).with_suffix(".kept")
        return path if path.is_dir() else None

    def keep(self, written: Path, revision: Revision, gid: int | None) -> None:
        """Take a directory over, as `take` does a file. Blocks. Raises OSError."""
        place = self._path(revision).with_suffix(".kept")
        shutil.rmtree(place, ignore_errors=True)
        for directory, _, files in os.walk(written, topdown=False):
            for name in files:
                descriptor = os.open(Path(directory, name), OPEN)
                try:
                    self._own(descriptor, name, gid)
                finally:
                    os.close(descriptor)
            if gid is not None:
                os.chown(directory, 0, gid, follow_symlinks=False)
            Path(directory).chmod(0o550)
        written.rename(place)

    def spoil(self, revision: Revision, reason: str) -> None:
        """Never use it again for this revision: it is loaded plainly."""
        log.warning("the snapshot of %s is not used any more: %s", revision.id, reason)
        self._spoilt[revision.id] = reason

    def take(self, written: Path, revision: Revision, gid: int | None) -> int:
        """Take a file over that nobody has open any more: hash it, close it to changes, put it in its place.
        Returns its size. Blocks. Raises OSError."""
        descriptor = os.open(written, OPEN)
        with os.fdopen(descriptor, "rb") as file:
            self._own(descriptor, written.name, gid)
            size = os.fstat(descriptor).st_size
            if size > revision.memory:  # a sparse file costs who made it nothing
                raise OSError(f"its {size >> 20} MB would not fit into the function's memory")
            digest = hashlib.sha256()
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            os.fsync(descriptor)
            found = os.fstat(descriptor)
        path = self._path(revision)
        marker = Marker(
            key=key(revision),
            size=found.st_size,
            inode=found.st_ino,
            changed_ns=found.st_mtime_ns,
            sha256=digest.hexdigest(),
        )
        written.rename(path)
        working = path.with_suffix(".tmp")
        working.write_bytes(msgspec.json.encode(marker))
        working.rename(path.with_suffix(".json"))
        self._spoilt.pop(revision.id, None)
        return found.st_size

    @staticmethod
    def _own(descriptor: int, name: str, gid: int | None) -> None:
        """Close a file to changes by whoever wrote it."""
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{name} is not a file")
        if gid is not None:
            os.fchown(descriptor, 0, gid)
        os.fchmod(descriptor, 0o440)

    def file(self, revision: Revision) -> tuple[Path, Marker] | None:
        """To be given to other nodes; None where there is none, or one that is not used."""
        if self.find(revision) is None:
            return None
        path = self._path(revision)
        return path, msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Marker)

    def bring(self, file: Path, revision: Revision, gid: int | None) -> None:
        """Have one that another node took over, from its artifact. Blocks. Raises OSError."""
        work = self.directory(revision.namespace) / f".work-{secrets.token_hex(8)}"
        work.mkdir(mode=0o700, parents=True)
        try:
            shutil.copyfile(file, work / "snapshot", follow_symlinks=False)
            self.take(work / "snapshot", revision, gid)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def drop(self, revision: Revision) -> None:
        """It turned out to be wrong, or not worth it."""
        for path in (self._path(revision).with_suffix(".json"), self._path(revision)):
            with suppress(OSError):
                path.unlink()
        shutil.rmtree(self._path(revision).with_suffix(".kept"), ignore_errors=True)

    def sweep(self, needed: Collection[Revision]) -> None:
        """Remove all others, and what builders left. Blocks."""
        keep = {self._path(revision).stem for revision in needed}
        for path in self._root.glob("*/*"):
            if path.name.startswith(".work-"):
                shutil.rmtree(path, ignore_errors=True)
            elif path.stem not in keep:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _path(self, revision: Revision) -> Path:
        return self.directory(revision.namespace) / f"{revision.name}-{key(revision)[:24]}.snap"


def key(revision: Revision) -> str:
    """What a snapshot is good for: code, environment, entry, parameters, variables, the runtime that wrote it and
    the processor that it was made on (libraries choose layouts and kernels by its features)."""
    parts = (
        revision.digest,
        revision.environment,
        revision.python,
        str(revision.style),
        revision.entry,
        revision.declared,
        sorted(revision.variables.items()),
        msgspec.json.encode(revision.params, order="deterministic").decode(),
        revision.threads,
        _runtime(),
        _processor(),
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


@functools.cache
def _runtime() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(instainfer.runtime.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
