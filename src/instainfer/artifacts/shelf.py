"""Artifacts by digest over HTTP, with ranges: the other end of peer.py.

    GET, HEAD  /artifacts/sha256:…    200, 206 for a range, 404, 416

It asks for no key: whoever mounts it has done so, and lets nobody in who may not see every namespace's.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from instainfer.artifacts.names import checked
from instainfer.artifacts.peer import PREFIX
from instainfer.artifacts.source import CHUNK
from instainfer.errors import InstaInferError, NotFound, WrongMethod

Find = Callable[[str], Path | None]


def in_folders(*roots: Path) -> Find:
    """In the first of these folders that has it."""

    def find(digest: str) -> Path | None:
        name = digest.replace(":", "-")
        return next((path for root in roots if (path := root / name).is_file()), None)

    return find


class Shelf:
    """An ASGI application. `find`: where the file of a digest is, or None; digests are checked before."""

    def __init__(self, find: Find) -> None:
        self._find = find

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._answer(scope, send)
        except InstaInferError as error:
            body = msgspec.json.encode(error.problem())
            kind = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": error.status, "headers": kind})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Any, send: Any) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise WrongMethod(f"{scope['method']} is not how artifacts are asked for", hint="GET or HEAD")
        digest = checked(scope["path"].removeprefix(PREFIX))
        try:
            path = self._find(digest)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW) if path is not None else None
        except FileNotFoundError:
            descriptor = None  # it was evicted just now
        if descriptor is None:
            raise NotFound(f"{digest} is not here")
        try:
            await self._send(scope, send, digest, descriptor)
        finally:
            os.close(descriptor)

    async def _send(self, scope: Any, send: Any, digest: str, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        headers = [
            (b"content-type", b"application/octet-stream"),
            (b"accept-ranges", b"bytes"),
            (b"etag", f'"{digest}"'.encode()),
        ]
        asked = _range(dict(scope["headers"]).get(b"range", b""), size)
        start, stop = asked or (0, size)
        status = 200 if asked is None else 206
        if asked is not None and start >= stop:
            headers += [(b"content-range", b"bytes */%d" % size), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 416, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        if asked is not None:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (start, stop - 1, size)))
        headers.append((b"content-length", b"%d" % (stop - start)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        while start < stop and scope["method"] == "GET":
            data = await asyncio.to_thread(os.pread, descriptor, min(CHUNK, stop - start), start)
            if not data:
                raise OSError(f"{digest} ends at {start}")  # cuts the connection: its length was announced
            start += len(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _range(header: bytes, size: int) -> tuple[int, int] | None:
    """(start, stop) of one range, empty where it lies behind the end; None for none, or for what we do not take
    (several ranges, other units), which RFC 9110 lets us answer with the whole."""
    found = re.fullmatch(rb"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size if int(found[2]) else 0
    stop = min(int(found[2]) + 1, size) if found[2] else size
    return int(found[1]), stop
