"""Sources that fail in every way, and real servers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from instainfer.artifacts.shelf import Shelf, in_folders
from instainfer.errors import NotFound
from instainfer.listening import bind, serving, url


def content(size: int, seed: int = 0) -> bytes:
    """Repeats nowhere, so that a part in the wrong place is noticed."""
    out = bytearray()
    while len(out) < size:
        out += hashlib.sha256(f"{seed} {len(out)}".encode()).digest()
    return bytes(out[:size])


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def keep(folder: Path, data: bytes) -> str:
    found = digest(data)
    folder.mkdir(exist_ok=True)
    (folder / found.replace(":", "-")).write_bytes(data)
    return found


class Fake:
    """`sends` gets (digest, start) and gives what the source sends; what it raises comes after that."""

    def __init__(self, sends: Callable[[str, int], AsyncIterator[bytes]], name: str = "fake") -> None:
        self.name = name
        self.asked: list[tuple[str, int]] = []
        self._sends = sends

    async def read(self, digest: str, start: int = 0) -> AsyncIterator[bytes]:
        self.asked.append((digest, start))
        async for data in self._sends(digest, start):
            yield data

    async def aclose(self) -> None:
        pass


def sending(data: bytes, *, stop: int | None = None, error: Exception | None = None, name: str = "fake") -> Fake:
    """Of `data`, up to `stop` bytes at a time (then it ends, or raises `error`)."""

    async def sends(_: str, start: int) -> AsyncIterator[bytes]:
        rest = data[start:] if stop is None else data[start : start + stop]
        for at in range(0, len(rest), 7001):
            yield rest[at : at + 7001]
        if error is not None and start + len(rest) < len(data):
            raise error

    return Fake(sends, name)


def empty(name: str = "empty") -> Fake:
    async def sends(digest: str, _: int) -> AsyncIterator[bytes]:
        if digest:
            raise NotFound("not here")
        yield b""

    return Fake(sends, name)


@contextlib.asynccontextmanager
async def shelf(*folders: Path, key: str = "", seen: list[Any] | None = None) -> AsyncIterator[str]:
    """A real server of these folders; its URL."""
    app = Shelf(in_folders(*folders))

    async def gate(scope: Any, receive: Any, send: Any) -> None:
        if seen is not None:
            seen.append(dict(scope["headers"]))
        if key and dict(scope["headers"]).get(b"authorization") != f"Bearer {key}".encode():
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await app(scope, receive, send)

    with bind("127.0.0.1", 0) as bound:
        async with serving(gate, bound, access_log=False):
            yield url(bound)


@contextlib.asynccontextmanager
async def raw(answer: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that writes what it likes after each request's head, then hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(await reader.readuntil(b"\r\n\r\n"), writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
