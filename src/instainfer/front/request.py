"""A caller's request, as it is passed on: its head made once, its body kept while it may have to be sent again."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from instainfer.front.hold import Hold
from instainfer.front.line import Headers

PREFIX = b"/f/"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
#: For one connection, not for the request (RFC 9110, 7.6.1); and what is said anew of the body.
HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
    b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"content-length",
})  # fmt: skip


class Left(Exception):
    """The caller went away: there is nobody to answer."""


class Leaving:
    """The caller's connection may end at any time; `then` is called when it does."""

    __slots__ = ("_then", "left", "transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.left = False
        self._then: Any = None

    def call(self, then: Any) -> None:
        """`then` instead of what was to be called; at once where the caller is gone."""
        self._then = then
        if self.left and then is not None:
            then()

    def leave(self) -> None:
        self.left = True
        if self._then is not None:
            self._then()


class Request:
    def __init__(self, scope: Any, receive: Any, hold: Hold) -> None:
        self.leaving: Leaving = scope["leaving"]
        self.method: str = scope["method"]
        self.path: bytes = scope["raw_path"]
        self.parts: list[bytes] = []
        self.whole = False  # they are all of the body
        self.kept = True  # all of the body that has come is in `parts`
        self._size = 0
        self._receive = receive
        self._hold = hold
        self._length: bytes | None = None
        self._lines, self.repeatable = self._head(scope)

    def _head(self, scope: Any) -> tuple[bytes, bool]:
        """Its lines but for what is said of the body; whether it may be begun twice."""
        headers: Headers = scope["headers"]
        dropped = HOP
        forwarded: list[bytes] = []
        for name, value in headers:
            if name == b"connection":
                named = {part.strip().lower() for part in value.split(b",")}
                dropped = dropped | (named - {b"close"})
            elif name == b"content-length":
                self._length = value
            elif name == b"x-forwarded-for":
                forwarded.append(value)
        query: bytes = scope["query_string"]
        target = self.path + b"?" + query if query else self.path
        lines = [b"%b %b HTTP/1.1\r\n" % (self.method.encode(), target)]
        keyed = later = False
        for name, value in headers:
            if name in dropped or name == b"x-forwarded-for":
                continue
            if name == b"idempotency-key":
                keyed = True
            elif name == b"prefer":
                later = later or any(part.strip().lower() == b"respond-async" for part in value.split(b","))
            lines.append(b"%b: %b\r\n" % (name, value))
        client = scope.get("client")
        if client:
            forwarded.append(client[0].encode())
        if forwarded:
            lines.append(b"x-forwarded-for: %b\r\n" % b", ".join(forwarded))
        invoked = self.path.startswith(PREFIX)
        if invoked and later and not keyed and self.method == "POST":
            # So that it can be sent again: the server accepts it once, whatever becomes of its answer.
            lines.append(b"idempotency-key: gateway-%b\r\n" % secrets.token_hex(16).encode())
            keyed = True
        return b"".join(lines), self.method in SAFE or (invoked and keyed)

    @property
    def head(self) -> bytes:
        if self.whole:
            size = self._size
            said = b"content-length: %d\r\n\r\n" % size if size or self.method not in SAFE else b"\r\n"
        elif self._length is not None:
            said = b"content-length: %b\r\n\r\n" % self._length
        else:
            said = b"transfer-encoding: chunked\r\n\r\n"
        return self._lines + said

    def framed(self, part: bytes, *, last: bool = False) -> bytes:
        """A part as it goes out behind a head that was made when the body was not whole."""
        if self._length is not None:
            return part
        sent = b"%x\r\n%b\r\n" % (len(part), part) if part else b""
        return sent + b"0\r\n\r\n" if last else sent

    async def more(self) -> bytes:
        """The next part of the body. The first is kept in any case. Raises Left."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Left
        part: bytes = message.get("body", b"")
        self.whole = not message.get("more_body", False)
        if part and self.kept:
            if self._hold.keep(len(part), in_any_case=not self.parts):
                self._size += len(part)
                self.parts.append(part)
            else:
                self.drop()
        return part

    def drop(self) -> None:
        """It will not be sent again."""
        self.kept = False
        self._hold.dropped(self._size)
        self._size = 0
        self.parts.clear()
