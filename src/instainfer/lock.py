"""One process per data directory, by a lock that the kernel drops whatever ends it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from instainfer.errors import Unavailable


@contextlib.contextmanager
def alone(data: Path) -> Iterator[None]:
    """Raises Unavailable where another server or agent has it."""
    with (data / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Unavailable(
                f"another server uses {data}", hint="stop it, or give this one another --data-dir"
            ) from None
        yield


def taken(data: Path) -> bool:
    """Whether somebody has it now."""
    try:
        with alone(data):
            return False
    except FileNotFoundError:
        return False
    except Unavailable:
        return True
