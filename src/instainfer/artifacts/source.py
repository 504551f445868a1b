"""Where artifacts come from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol, runtime_checkable

CHUNK = 1 << 20


class Source(Protocol):
    """One that may have artifacts. What it sends is checked by whoever asks, so it can lie about nothing."""

    name: str  # for people: no key in it

    def read(self, digest: str, start: int = 0) -> AsyncIterator[bytes]:
        """Its content from byte `start` to the end, in parts of any size; nothing where `start` is at its end.
        Close it (aclose) to stop early. Raises NotFound when it is not there, Unavailable or OSError when the
        source fails, possibly after some parts."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class Store(Source, Protocol):
    """One that keeps what it is given, for all nodes."""

    async def put(self, digest: str, file: Path) -> None:
        """Whole or not at all; does nothing when it is there. `file` has been checked against its digest.
        Raises Unavailable or OSError."""
        ...
