"""Files of a control group file system, the same in both versions."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

GONE = frozenset((errno.ENOENT, errno.ENODEV))  # a group that was removed before, or while it was read


def refuse_to_squeeze(path: Path, anonymous: int, limit: int) -> None:
    if anonymous > limit:
        raise OSError(errno.EBUSY, f"{anonymous} bytes are in use, which cannot be shrunk to {limit}", str(path))


def write(path: Path, text: str) -> None:
    target = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(target, text.encode())
    except OSError as error:  # write(2) knows no path
        raise OSError(error.errno, f"{error.strerror} (writing {text!r})", str(path)) from None
    finally:
        os.close(target)


def write_if_there(path: Path, text: str) -> None:
    if path.exists():
        write(path, text)


def open_all(paths: list[Path]) -> list[int]:
    opened: list[int] = []
    try:
        for path in paths:
            opened.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    except OSError:
        for descriptor in opened:
            os.close(descriptor)
        raise
    return opened


def pids(path: Path) -> list[int]:
    try:
        return [int(line) for line in path.read_text().split()]
    except OSError as error:
        if error.errno in GONE:
            return []
        raise


def pids_below(path: Path) -> Iterator[int]:
    yield from pids(path / "cgroup.procs")
    for name in directories(path):
        yield from pids_below(path / name)


def signal_until_settled(pids: Callable[[], set[int]]) -> None:
    done: set[int] = set()
    for _ in range(64):
        new = pids() - done
        if not new:
            return
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        done |= new


def directories(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def table(path: Path) -> dict[str, int]:
    """Lines of "name number"; {} when the group is gone."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        if error.errno in GONE:
            return {}
        raise
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}


def rmdir(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def rmtree(path: Path) -> None:
    for name in directories(path):
        rmtree(path / name)
    rmdir(path)
