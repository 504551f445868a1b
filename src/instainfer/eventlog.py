"""The log of every event that the core was fed: what `why` replays.

Append-only segments in a directory. A segment begins with a head (which run of the server, its policies, the
core's state at that moment) and goes on with length-prefixed (now, event) records. Old segments are dropped
when the directory is over its size. Nothing waits for it: what a kill -9 can lose is the last second.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from instainfer.core import checkpoint
from instainfer.core.events import AnyEvent
from instainfer.core.state import State

log = logging.getLogger(__name__)

SEGMENT = 16 << 20  # bytes
LENGTH = 4


class Head(msgspec.Struct, frozen=True, kw_only=True):
    epoch: str
    wall: float  # at `now`
    now: float
    policy: dict[str, str]
    first: int  # number of the first request that can be in it
    state: bytes


_encoder = msgspec.msgpack.Encoder()
_heads = msgspec.msgpack.Decoder(Head)
_records: msgspec.msgpack.Decoder[tuple[float, AnyEvent]] = msgspec.msgpack.Decoder(tuple[float, AnyEvent])


class EventLog:
    def __init__(self, directory: Path, *, epoch: str, policy: dict[str, str], keep_bytes: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._epoch = epoch
        self._policy = policy
        self._keep = keep_bytes
        self._buffer = bytearray()
        self._failed = False  # said once
        self._file: BinaryIO | None = None
        self._written = 0
        self._number = 0

    @property
    def full(self) -> bool:
        """Time for a new segment: this one is long enough, or could not be written."""
        return self._file is None or self._written >= SEGMENT

    def begin(self, state: State, *, now: float, wall: float, first: int) -> None:
        """A new segment, starting from this state (before the next event is handled)."""
        self.close()
        self._number += 1
        path = self._directory / f"{wall:017.6f}-{self._epoch}-{self._number:06d}.log"
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            self._fail(error)
            return
        self._written = 0
        self._append(
            Head(
                epoch=self._epoch,
                wall=wall,
                now=now,
                policy=self._policy,
                first=first,
                state=checkpoint.dump(state),
            )
        )
        self.flush()
        self._prune()

    def append(self, now: float, event: AnyEvent) -> None:
        if self._file is not None:
            self._append((now, event))

    def _append(self, record: Head | tuple[float, AnyEvent]) -> None:
        buffer = self._buffer
        start = len(buffer)
        _encoder.encode_into(record, buffer, start + LENGTH)
        size = len(buffer) - start
        buffer[start : start + LENGTH] = (size - LENGTH).to_bytes(LENGTH, "big")
        self._written += size

    def flush(self) -> None:
        """Never raises: what cannot be written ends the segment, and what follows is not kept until a new one,
        with a checkpoint of its own, can be begun. Serving goes on without a log; `why` says where it ends."""
        data = memoryview(bytes(self._buffer))
        self._buffer.clear()
        try:
            while data and self._file is not None:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            log.warning("events are not kept, so `why` cannot explain them: %s", error)
        self._failed = True
        self._buffer.clear()
        self.close()

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _prune(self) -> None:
        segments = sorted(self._directory.glob("*.log"))
        total = sum(path.stat().st_size for path in segments)
        for path in segments[:-1]:
            if total <= self._keep:
                break
            total -= path.stat().st_size
            path.unlink()


def find(directory: Path, epoch: str, request: int) -> tuple[Head, list[Path]] | None:
    """The segment in which this run's request can have arrived, and it with all later ones of the run."""
    best: tuple[Head, int] | None = None
    segments = sorted(directory.glob(f"*-{epoch}-*.log"))
    for index, path in enumerate(segments):
        head = _head(path)
        if head is not None and head.first <= request:
            best = head, index
    return None if best is None else (best[0], segments[best[1] :])


def read(segments: list[Path]) -> Iterator[tuple[float, AnyEvent]]:
    """Their events in order. A torn record at the end of a segment (a kill -9) ends that segment."""
    for path in segments:
        with path.open("rb") as file:
            for index, data in enumerate(_frames(file)):
                if index:
                    yield _records.decode(data)


def _head(path: Path) -> Head | None:
    try:
        with path.open("rb") as file:
            for data in _frames(file):
                return _heads.decode(data)
    except (OSError, msgspec.DecodeError):
        return None
    return None


def _frames(file: BinaryIO) -> Iterator[bytes]:
    while len(prefix := file.read(LENGTH)) == LENGTH:
        size = int.from_bytes(prefix, "big")
        data = file.read(size)
        if len(data) < size:
            return
        yield data
