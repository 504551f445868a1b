"""A process that outlives whoever has it started, and is found again by its data directory.

Whether it lives is a lock's business (lock.py); while it serves, a file there says who and where it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from instainfer import lock
from instainfer.errors import Unavailable

T = TypeVar("T", bound=msgspec.Struct)
LOOK_S = 0.05


def write(path: Path, data: bytes) -> None:
    """Whole or not at all, and synced."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


def find(data: Path, about: str, kind: type[T]) -> T | None:
    """What the one that lives there says of itself, once it serves."""
    if not lock.taken(data):
        return None
    with contextlib.suppress(OSError, msgspec.DecodeError, msgspec.ValidationError):
        return msgspec.json.decode((data / about).read_bytes(), type=kind)
    return None


def ensure(
    data: Path,
    about: str,
    kind: type[T],
    log: str,
    command: Sequence[str],
    environ: Mapping[str, str] | None,
    seconds: float,
) -> T:
    """The one that lives there, or one that is started with this command in a session of its own. Blocks. Raises
    Unavailable where none serves in time; one that was started and waits for something goes on."""
    with lock.opened(data, log, "ab") as output:
        before = output.tell()
        until = time.monotonic() + seconds
        started: subprocess.Popen[bytes] | None = None
        while time.monotonic() < until:
            if (found := find(data, about, kind)) is not None:
                return found
            if started is not None and started.poll() is not None:
                break
            if started is None and not lock.taken(data):
                (data / about).unlink(missing_ok=True)  # of one that was killed
                started = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environ,
                    cwd="/",
                    start_new_session=True,
                )
            time.sleep(LOOK_S)
    with (data / log).open("rb") as written:
        written.seek(before)
        said = written.read()[-500:].decode(errors="replace").strip()
    raise Unavailable(f"none started in {data}: {said or 'it said nothing'}", hint=f"see {data / log}")


def stop(data: Path, seconds: float = 120.0) -> bool:
    """Tell the one that lives there to end, whether it serves yet or not, and wait until it has; False where there
    is none. Raises Unavailable."""
    pid = lock.holder(data)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + seconds
    while lock.taken(data):
        if time.monotonic() > until:
            raise Unavailable(f"process {pid} of {data} does not end", hint="kill it")
        time.sleep(LOOK_S)
    return True
