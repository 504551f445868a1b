"""One process per data directory, by a lock that the kernel drops whatever ends it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from instainfer.errors import BadSettings, Unavailable

LOOKS, LOOK_S = 5, 0.01


def opened(data: Path, name: str, mode: str = "a") -> IO[Any]:
    """A file of the data directory, which is made if need be. Raises BadSettings where nothing can be kept."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        return (data / name).open(mode)
    except OSError as error:
        raise BadSettings(
            f"the data directory {data} cannot be used: {error.strerror or error}",
            hint="give a --data-dir that you may write to",
        ) from None


@contextlib.contextmanager
def alone(data: Path) -> Iterator[None]:
    """The directory is made if need be. Raises Unavailable where another server or agent has it, and BadSettings
    where nobody can keep anything."""
    with opened(data, "lock") as file:
        for _ in range(LOOKS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(LOOK_S)  # whoever looks whether it is taken has it for a moment
        else:
            raise Unavailable(f"another server uses {data}", hint="stop it, or give this one another --data-dir")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(data: Path) -> int | None:
    """The process that has it now."""
    if not taken(data):
        return None
    with contextlib.suppress(OSError, ValueError):
        return int((data / "lock").read_text())
    return None


def taken(data: Path) -> bool:
    """Whether somebody has it now."""
    try:
        with (data / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True
