"""Environments: an interpreter plus installed libraries, content-addressed within a namespace.

    root/<namespace>/<digest>/        the virtual environment
    root/<namespace>/<digest>.json    its marker, written last: without it the rest is remains of a build
    root/<namespace>/<digest>.packed  which artifact it is, where it was packed for other nodes
    root/<namespace>/.cache/          uv's and pip's, of this namespace alone
    root/<namespace>/.build-<digest>/ home and temporary files while it is built

Requirements bring tenant code, at build (setup.py) and at every start (.pth files): a Runner runs it, we never
do. The marker lies where no build can write.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from instainfer.agent import installers
from instainfer.agent.installers import Sources
from instainfer.agent.interpreters import OLDEST, Interpreter, Interpreters, dotted, mounts, probe
from instainfer.agent.runners import Runner
from instainfer.artifacts import trees
from instainfer.artifacts.cache import Cache
from instainfer.errors import BadInput, BadPackage, BuildFailed

BUILD_TIMEOUT_S = 1800.0
_SHORT = 24  # hex digits of a digest in a directory's name: 96 bits
_DETAIL_LINES = 25

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """`digest` is "" for an interpreter that is used as it is. `mounts`: what a container must see."""

    digest: str
    python: Path
    mounts: tuple[Path, ...]


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """Written when an environment is whole."""

    digest: str
    requirements: tuple[str, ...]
    base: Interpreter
    installer: str
    seconds: float


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a packed one. It is good for its own path only: scripts and bytecode name it."""

    path: str
    marker: Marker


class Environments:
    """`root` belongs to the agent; its namespaces' folders are seen read-only in their containers."""

    def __init__(
        self,
        root: Path,
        runner: Runner,
        installer: Literal["auto", "uv", "pip"] = "auto",
        *,
        timeout_s: float = BUILD_TIMEOUT_S,
        sources: Sources | None = None,
        artifacts: Cache | None = None,
    ) -> None:
        """`artifacts`: where packed ones come from and go to."""
        self._root = root.absolute()
        self._runner = runner
        self._installer = installer
        self._timeout_s = timeout_s
        self._sources = sources
        self._artifacts = artifacts
        self._interpreters = Interpreters()
        self._building: dict[tuple[str, str], _Build] = {}

    def directory(self, namespace: str) -> Path:
        """All of a namespace's."""
        return self._root / namespace

    async def ensure(
        self, namespace: str, uid_base: int, requirements: Sequence[str], python: str, progress: Progress
    ) -> Environment:
        """The environment of these requirements, built if it is not there. `python` is "3.11", or the path of an
        interpreter that is used as it is (no requirements then). Without requirements it is bare: a base
        interpreter itself would bring its own site-packages along.

        Raises BuildFailed (phase "build") with the installer's last lines in `detail`.
        """
        if "/" in python:
            if requirements:
                raise _failed(
                    f"python = {python!r} is used as it is: nothing can be installed into it",
                    hint="drop the requirements, or give a version such as 3.11",
                )
            return await self._existing(python)
        base = await self._interpreters.find(python)
        digest = digest_of(requirements, base)
        key = (namespace, digest)
        build = self._building.get(key)
        if build is None:
            build = _Build()
            build.listeners.append(progress)
            order = _Order(namespace, uid_base, tuple(requirements), base, digest, self._root / namespace)
            build.task = asyncio.create_task(self._ensure(order, build))
            self._building[key] = build
            build.task.add_done_callback(lambda task: self._built(key, task))
        else:
            build.listeners.append(progress)
        assert build.task is not None
        return await asyncio.shield(build.task)  # whoever goes away leaves the build to the others

    def _built(self, key: tuple[str, str], task: asyncio.Task[Environment]) -> None:
        self._building.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, even if nobody waits any more

    # ---- from and for other nodes

    async def pack(self, namespace: str, digest: str) -> str:
        """The artifact that it is, kept on this node and given to every store. It has to be whole. Raises
        Unavailable, BadPackage, OSError."""
        assert self._artifacts is not None
        folder, name = self._root / namespace, digest[:_SHORT]
        note = folder / f"{name}.packed"
        with suppress(OSError, BadInput):
            known = await asyncio.to_thread(note.read_text, "ascii")
            if self._artifacts.find(known) is not None:
                return known
        async with _lock(folder / f"{name}.lock", lambda message: None):
            marker = msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=Marker)
            manifest = msgspec.json.encode(Packed(path=str(folder / name), marker=marker))
            working = folder / f".{name}.packing"
            try:
                await asyncio.to_thread(trees.pack, folder / name, manifest, working)
                artifact = await self._artifacts.add(working)
            finally:
                working.unlink(missing_ok=True)
            _write_whole(note, artifact.encode())
        await self._artifacts.publish(artifact)
        return artifact

    async def unpack(self, namespace: str, digest: str, artifact: str) -> None:
        """Have it as another node built it; does nothing where it is whole. Nothing of it is run or imported.

        Raises NotFound, Unavailable when it cannot be pulled, BadPackage when it is not this environment or is not
        for this node: another path, another interpreter.
        """
        assert self._artifacts is not None
        folder, name = self._root / namespace, digest[:_SHORT]
        if _whole(folder, name):
            return
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        async with self._artifacts.hold(artifact) as archive, _lock(folder / f"{name}.lock", lambda message: None):
            if _whole(folder, name):
                return
            manifest = await asyncio.to_thread(trees.manifest_of, archive)
            marker = await self._fitting(manifest, folder / name, digest)
            await asyncio.to_thread(_remove, folder, name)
            await asyncio.to_thread(trees.unpack, archive, folder / name)
            _write_whole(folder / f"{name}.json", msgspec.json.encode(marker))

    async def _fitting(self, manifest: bytes, target: Path, digest: str) -> Marker:
        """Raises BadPackage."""
        try:
            packed = msgspec.json.decode(manifest, type=Packed)
        except msgspec.DecodeError as error:
            raise BadPackage(f"the packed environment cannot be read: {error}") from None
        marker, there = packed.marker, packed.marker.base
        if marker.digest != digest or digest_of(marker.requirements, there) != digest:
            raise BadPackage("the packed environment is another one")
        if packed.path != str(target):
            raise BadPackage(
                f"the packed environment is for {packed.path}, and here it would lie in {target}",
                hint="give all nodes the same data directory",
            )
        base = await self._interpreters.find(dotted(there.version[:2]))
        if base != there:
            raise BadPackage(
                f"it was built with {there.base} ({dotted(there.version)}, {there.platform}), and this node has "
                f"{base.base} ({dotted(base.version)}, {base.platform})",
                hint="give all nodes the same image",
            )
        return marker

    async def aclose(self) -> None:
        """Stop every build."""
        tasks = [build.task for build in self._building.values() if build.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def sweep(self, keep: Collection[str]) -> int:
        """Delete environments whose digest is not in `keep`, and remains of killed builds; never one that is
        being built. Returns how many went. Blocks."""
        gone = 0
        kept = {digest[:_SHORT] for digest in keep}
        for folder in self._root.glob("*/"):
            names = {re.sub(r"^\.build-|\.(json|packed)$", "", path.name) for path in folder.iterdir()}
            for name in sorted(name for name in names - kept if re.fullmatch(rf"[0-9a-f]{{{_SHORT}}}", name)):
                with _try_lock(folder / f"{name}.lock") as held:
                    if held:
                        _remove(folder, name)
                        gone += 1
        return gone

    # ---- interpreters

    async def _existing(self, python: str) -> Environment:
        path = Path(python)
        found = await probe(python) if path.is_absolute() else None
        if found is None:
            raise _failed(
                f"{python} is not a Python that runs on this machine", hint="give the absolute path of one"
            )
        if found.version[:2] < OLDEST:
            raise _failed(f"{python} is Python {dotted(found.version)}", hint="3.9 and later can be used")
        # With -S the interpreter does not look at pyvenv.cfg, so that is for us to do.
        own = path.parent.parent
        prefixes = [own] if (own / "pyvenv.cfg").is_file() else []
        return Environment("", path, mounts([*prefixes, Path(found.prefix)], path))

    # ---- building

    async def _ensure(self, order: _Order, build: _Build) -> Environment:
        folder, name = order.folder, order.name
        if _whole(folder, name):
            return order.environment
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        async with _lock(folder / f"{name}.lock", build.tell):
            if _whole(folder, name):  # another process was faster
                return order.environment
            started = time.monotonic()
            try:
                installer = await self._build(order, build)
            except BaseException:
                await asyncio.to_thread(_remove, folder, name)
                raise
            await asyncio.to_thread(shutil.rmtree, order.work, ignore_errors=True)
            seconds = time.monotonic() - started
            marker = Marker(
                digest=order.digest,
                requirements=order.requirements,
                base=order.base,
                installer=installer,
                seconds=seconds,
            )
            _write_whole(folder / f"{name}.json", msgspec.json.encode(marker))
        count = len(await asyncio.to_thread(_installed, order.target, installer))
        build.tell(
            f"installed {count} package{'s' * (count > 1)} in {seconds:.1f} s with {installer}"
            if count
            else "made a bare environment"
        )
        return order.environment

    async def _build(self, order: _Order, build: _Build) -> str:
        """Returns the installer that did it."""
        uv = installers.find_uv() if self._installer != "pip" else None
        if self._installer == "uv" and uv is None:
            raise _failed("uv is not installed", hint='install it, or set installer = "pip"')
        sources = self._sources or Sources.read()
        wanted = [self._installer] if self._installer != "auto" else _choice(order.requirements, sources, uv)
        for installer, following in zip(wanted, [*wanted[1:], ""], strict=True):
            await asyncio.to_thread(self._prepare, order)
            tail: deque[str] = deque(maxlen=200)
            failure = await self._install(installer, uv, sources, order, build, tail)
            if not failure:
                return installer
            diagnosis = installers.diagnose(tail)
            if not following or diagnosis.kind in ("missing", "network", "disk", "compiler"):
                raise _failed(diagnosis.message or failure, hint=diagnosis.hint, detail=_last(tail))
            build.tell(f"{installer} could not install these requirements; trying {following}")
        raise AssertionError("an installer either succeeds or raises")

    async def _install(
        self, installer: str, uv: str | None, sources: Sources, order: _Order, build: _Build, tail: deque[str]
    ) -> str:
        """What went wrong, or ""."""
        cache = order.folder / ".cache"
        passed = installers.passed_on(os.environ)
        env = {
            **passed,
            **sources.variables(),
            "PATH": f"{order.target / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(order.work),
            "TMPDIR": str(order.work / "tmp"),
            "UV_CACHE_DIR": str(cache / "uv"),
            "PIP_CACHE_DIR": str(cache / "pip"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "UV_NO_PROGRESS": "1",
            "NO_COLOR": "1",
        }
        read_only = {*sources.paths(passed), *mounts([Path(order.base.prefix)], Path(order.base.base))}
        if uv is not None:
            read_only.add(Path(uv))
        listed = order.work / "requirements.txt" if order.requirements else None
        plan = installers.steps(
            installer, uv=uv, base=Path(order.base.base), target=order.target, listed=listed, sources=sources
        )

        def on_line(line: str) -> None:
            tail.append(line)
            if said := installers.progress_of(line):
                build.tell(said)

        deadline = time.monotonic() + self._timeout_s
        for argv in plan:
            try:
                status = await self._runner.run(
                    namespace=order.namespace,
                    uid_base=order.uid_base,
                    argv=argv,
                    env=env,
                    cwd=order.work,
                    read_only=sorted(read_only),
                    writable=[order.target, order.work, cache],
                    network=True,
                    on_line=on_line,
                    timeout_s=max(deadline - time.monotonic(), 1.0),
                )
            except TimeoutError:
                raise _failed(
                    f"the build took longer than {self._timeout_s:g} s and was ended",
                    hint="fewer or lighter requirements, or versions that have wheels for this Python",
                    detail=_last(tail),
                ) from None
            except OSError as error:
                return f"{argv[0]} could not be started: {error}"
            if status:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                return f"{Path(argv[0]).name} {how}"
        return ""

    def _prepare(self, order: _Order) -> None:
        """Empty folders, owned by whoever the build runs as."""
        _remove(order.folder, order.name)
        owned = [order.folder / ".cache", order.work, order.work / "tmp", order.target]
        for path in owned:
            path.mkdir(mode=0o755 if path == order.target else 0o700, exist_ok=True)
        listed = order.work / "requirements.txt"
        listed.write_text("".join(f"{line}\n" for line in order.requirements), "utf-8")
        owner = self._runner.owner(order.uid_base)
        if owner is not None:
            for path in (*owned, listed):
                os.chown(path, owner, owner, follow_symlinks=False)


@dataclass(frozen=True)
class _Order:
    """What is to be built, and where."""

    namespace: str
    uid_base: int
    requirements: tuple[str, ...]
    base: Interpreter
    digest: str
    folder: Path  # of the namespace

    @property
    def name(self) -> str:
        return self.digest[:_SHORT]

    @property
    def target(self) -> Path:
        return self.folder / self.name

    @property
    def work(self) -> Path:
        return self.folder / f".build-{self.name}"

    @property
    def environment(self) -> Environment:
        seen = mounts([self.target, Path(self.base.prefix)], Path(self.base.base))
        return Environment(self.digest, self.target / "bin" / "python", seen)


class _Build:
    """One running build and who wants to hear of it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Environment] | None = None
        self.listeners: list[Progress] = []
        self._last = ""

    def tell(self, message: str) -> None:
        if message != self._last:
            self._last = message
            for listener in self.listeners:
                listener(message)


def digest_of(requirements: Sequence[str], base: Interpreter) -> str:
    """Content key, whatever installer builds it and wherever the interpreter lies."""
    lines = sorted({installers.normalised(line) for line in requirements})
    key: list[Any] = [1, lines, base.version, base.implementation, base.platform]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()


def _choice(requirements: Sequence[str], sources: Sources, uv: str | None) -> list[str]:
    """Installers in the order in which to try them. Projects that exist in several builds go to pip where its
    configuration names further sources: which build is meant follows from pip's rules."""
    if uv is None:
        return ["pip"]
    several = any(installers.project(line) in installers.SEVERAL_BUILDS for line in requirements)
    if several and sources.unusual:
        return ["pip"]
    return ["uv", "pip"] if requirements else ["uv"]


def _failed(message: str, *, hint: str = "", detail: str = "") -> BuildFailed:
    return BuildFailed(message, hint=hint, detail=detail, phase="build")


def _last(lines: Sequence[str]) -> str:
    return "\n".join(list(lines)[-_DETAIL_LINES:])


def _installed(target: Path, installer: str) -> list[Path]:
    """What was asked for and what that needs: not what `python -m venv` brings for pip to run."""
    brought = ("pip", "setuptools") if installer == "pip" else ()
    found = target.glob("lib/python*/site-packages/*.dist-info")
    return [path for path in found if path.name.partition("-")[0] not in brought]


def whole(python: Path) -> bool:
    """The environment whose interpreter this is is there, wherever it lies: below this node's folder, or on a file
    system that nodes share. Blocks, briefly."""
    target = python.parent.parent
    return _whole(target.parent, target.name)


def _whole(folder: Path, name: str) -> bool:
    """Its marker is there and the interpreter it was made of still is."""
    try:
        marker = msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=Marker)
    except (OSError, msgspec.DecodeError):
        return False
    return Path(marker.base.base).exists() and (folder / name / "bin" / "python").exists()


def _remove(folder: Path, name: str) -> None:
    with suppress(FileNotFoundError):
        (folder / f"{name}.json").unlink()  # first: from here on it is not whole
    (folder / f"{name}.packed").unlink(missing_ok=True)
    for path in (folder / name, folder / f".build-{name}"):
        if path.exists():
            shutil.rmtree(path)


def _write_whole(path: Path, data: bytes) -> None:
    working = path.with_name(f".{path.name}.tmp")
    working.write_bytes(data)
    working.replace(path)


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """The kernel's lock, which a killed process loses. The file stays: whoever removed it could let two in."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


@asynccontextmanager
async def _lock(path: Path, tell: Progress) -> AsyncIterator[None]:
    """Polled: a thread that waits in flock could not be cancelled."""
    while True:
        with _try_lock(path) as held:
            if held:
                yield
                return
        tell("another process builds it; waiting")
        await asyncio.sleep(0.2)
