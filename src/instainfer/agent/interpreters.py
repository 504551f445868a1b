"""Interpreters of this machine: what they are, and which of them is "3.11"."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from instainfer.errors import BuildFailed

OLDEST = (3, 9)


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """What an interpreter said of itself."""

    executable: str
    base: str  # the installation's own, links resolved: another one for a virtual environment's
    prefix: str
    version: tuple[int, int, int]
    implementation: str
    platform: str


# Isolated and without site: no .pth file and no sitecustomize runs, so nothing of a tenant's does.
_PROBE = (
    "import sys, os, sysconfig, json; i = sys.implementation; print(json.dumps(dict(executable=sys.executable,"
    "base=os.path.realpath(getattr(sys, '_base_executable', None) or sys.executable), prefix=sys.base_prefix,"
    "version=sys.version_info[:3], implementation=i.cache_tag or i.name, platform=sysconfig.get_platform())))"
)


async def probe(path: str) -> Interpreter | None:
    """Ask an interpreter what it is; None when it does not run or is none."""
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            *("-I", "-S", "-c", _PROBE),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
        return msgspec.json.decode(output, type=Interpreter)
    except (TimeoutError, msgspec.DecodeError):
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Interpreters:
    """Finds them, and remembers what it found."""

    def __init__(self) -> None:
        self._known: dict[str, Interpreter] = {}

    async def find(self, version: str) -> Interpreter:
        """The base interpreter of a version "3.11": this process's own, else the first that is on PATH and says
        it is one. Raises BuildFailed that says which there are."""
        if known := self._known.get(version):
            return known
        seen: dict[str, Interpreter] = {}
        for candidate in await asyncio.to_thread(_candidates, version):
            base = await probe(candidate)
            if base is not None and base.base != candidate:  # a virtual environment's, or a link
                base = await probe(base.base)
            if base is None:
                continue
            seen.setdefault(dotted(base.version[:2]), base)
            if dotted(base.version[:2]) == version:
                self._known[version] = base
                return base
        there = ", ".join(sorted(seen, key=lambda text: [int(part) for part in text.split(".")]))
        raise BuildFailed(
            f"there is no Python {version} on this machine",
            hint=f"there are {there}; or install it so that python{version} is on PATH",
            phase="build",
        )


def _candidates(version: str) -> list[str]:
    own = getattr(sys, "_base_executable", None) or sys.executable
    found = [own, *(shutil.which(name) for name in (f"python{version}", "python3", "python"))]
    for folder in os.get_exec_path():
        with contextlib.suppress(OSError):  # a folder of PATH that this user may not read
            found += [
                str(path)
                for path in sorted(Path(folder).glob("python3.*"))
                if re.fullmatch(r"python3\.\d+", path.name)
            ]
    return list(dict.fromkeys(path for path in found if path))


def dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def mounts(prefixes: Sequence[Path], executable: Path) -> tuple[Path, ...]:
    """The prefixes and, where links lead to the executable from outside of them, the folders of those links."""
    out = list(dict.fromkeys(prefixes))
    for _ in range(16):  # more hops than any installation has; a circle ends too
        if not any(executable.is_relative_to(prefix) for prefix in out):
            out.append(executable.parent)
        if not executable.is_symlink():
            break
        executable = Path(os.path.normpath(executable.parent / executable.readlink()))
    return tuple(out)
