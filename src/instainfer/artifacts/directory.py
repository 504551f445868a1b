"""A folder that all nodes see: a network file system, or the blobs of a server on this machine."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from instainfer.artifacts.names import file_name
from instainfer.artifacts.source import CHUNK
from instainfer.errors import NotFound, Unavailable

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a folder of others: there may be FIFOs


class Directory:
    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self._root = root

    async def read(self, digest: str, start: int = 0) -> AsyncIterator[bytes]:
        descriptor = await asyncio.to_thread(self._open, digest)
        try:
            while data := await asyncio.to_thread(os.pread, descriptor, CHUNK, start):
                start += len(data)
                yield data
        finally:
            os.close(descriptor)

    def _open(self, digest: str) -> int:
        try:
            descriptor = os.open(self._root / file_name(digest), _OPEN)
        except FileNotFoundError:
            raise NotFound(f"{digest} is not in {self._root}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Unavailable(f"{digest} in {self._root} is not a file")
        return descriptor

    async def put(self, digest: str, file: Path) -> None:
        await asyncio.to_thread(self._put, digest, file)

    def _put(self, digest: str, file: Path) -> None:
        path = self._root / file_name(digest)
        if path.exists():
            return
        self._root.mkdir(parents=True, exist_ok=True)
        working = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # nodes share it: pids would clash
        try:
            with file.open("rb") as source, working.open("xb") as target:
                while data := source.read(CHUNK):
                    target.write(data)
                target.flush()
                os.fsync(target.fileno())
            working.rename(path)
        finally:
            working.unlink(missing_ok=True)

    async def aclose(self) -> None:
        """Nothing is open between two reads."""
