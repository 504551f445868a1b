"""Just enough HTTP/1.1 for a client whose own time is part of what it measures."""

from __future__ import annotations

import socket
import time
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from instainfer.errors import Unavailable

READ = 1 << 16
REST_S = 2.0  # servers close connections that rest for some seconds: uvicorn after 5


class Reply(NamedTuple):
    status: int
    start: str  # of x-instainfer-start, "" without one
    keep: bool  # the connection stays
    head: bytes  # in lower case
    body: bytes


def render(url: str, body: bytes, content_type: str) -> tuple[str, int, bytes]:
    """Host, port and the whole POST request that is sent again and again."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    head = (
        f"POST {parts.path or '/'} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return host, port, head.encode("latin-1") + body


def parse(data: bytes) -> Reply | None:
    """The response that `data` is, or None while it is not whole. Raises ValueError on what is no response, has
    no content-length or goes on after its end (nothing is pipelined here)."""
    at = data.find(b"\r\n\r\n")
    if at < 0:
        return None
    head = data[:at].lower()
    if not head.startswith(b"http/1.1 "):
        raise ValueError(f"not a response: {head[:40]!r}")
    length = _value(head, b"\r\ncontent-length:")
    if not length:
        raise ValueError("a response without content-length")
    end = at + 4 + int(length)
    if len(data) < end:
        return None
    if len(data) > end:
        raise ValueError("bytes after the end of the response")
    start = _value(head, b"\r\nx-instainfer-start:")
    keep = _value(head, b"\r\nconnection:") != b"close"
    return Reply(int(head[9:12]), start.decode("latin-1"), keep, head, data[at + 4 :])


def timing(reply: Reply) -> bytes:
    """Its Server-Timing header."""
    return _value(reply.head, b"\r\nserver-timing:")


def _value(head: bytes, name: bytes) -> bytes:
    at = head.find(name)
    if at < 0:
        return b""
    at += len(name)
    end = head.find(b"\r\n", at)
    return head[at : end if end >= 0 else len(head)].strip()


class Caller:
    """One client, blocking: the time of single calls between which other things are done."""

    def __init__(
        self, url: str, body: bytes, content_type: str = "application/json", timeout_s: float = 120.0
    ) -> None:
        host, port, self._request = render(url, body, content_type)
        self._where = host, port
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._used = 0.0

    def call(self) -> tuple[float, Reply]:
        """Seconds from the first byte sent to the last received, and the answer. A connection is made before
        the time is taken, if there is none or it has rested so long that the server may be about to close it.
        Raises Unavailable when there is no answer or none that can be read."""
        try:
            return self._call()
        except (OSError, ValueError) as error:
            where = f"{self._where[0]}:{self._where[1]}"
            raise Unavailable(
                f"a call to {where} was not answered: {error}", hint="see the server's log"
            ) from None

    def _call(self) -> tuple[float, Reply]:
        if self._socket is None or time.monotonic() - self._used > REST_S:
            self._connect()
        connection = self._socket
        assert connection is not None
        data = b""
        began = time.perf_counter()
        connection.sendall(self._request)
        while True:
            got = connection.recv(READ)
            if not got:
                raise ConnectionError("the server closed the connection")
            data += got
            reply = parse(data)
            if reply is not None:
                taken = time.perf_counter() - began
                self._used = time.monotonic()
                return taken, reply

    def _connect(self) -> None:
        self.close()
        self._socket = socket.create_connection(self._where, timeout=self._timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
