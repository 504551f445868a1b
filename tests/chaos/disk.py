"""A small disk of the test's own, to be filled."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.live.server_helpers import ROOT

FILLER = "filler"


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A directory; where one may mount, on a disk of this size ("64m")."""
    path.mkdir()
    if ROOT:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "small", str(path)], check=True)
    try:
        yield path
    finally:
        if ROOT:
            subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Not a byte is left on it. Only for a disk of `small_disk`, with root."""
    try:
        with (disk / FILLER).open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size) == size:
                        pass
        yield
    finally:
        (disk / FILLER).unlink()
