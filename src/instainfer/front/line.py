"""One HTTP/1.1 connection to a server: the gateway's end of it, on bare transports, one request at a time.

What it knows that a general client does not tell: whether the server can have begun a request whose connection
ended. It begins none that it has not read whole, and TCP says what was not read:

- a process that ends, or closes a socket, with something unread in it, answers with a reset, not with an end of
  stream; so does the kernel to what arrives after its end;
- its end of stream acknowledges what had arrived until then.

So what was reset, or had not been acknowledged when the stream ended, was not read. Networks send resets, too (a
balancer that tires of a quiet connection, a host that comes back from the dead), but not right after something was
sent: a reset proves nothing later than RESET_S.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import Any
from urllib.parse import urlsplit

import httptools

from instainfer.errors import BadSettings

Headers = list[tuple[bytes, bytes]]

RESET_S = 10.0
CONNECT_S = 2.0
HIGH, LOW = 1 << 18, 1 << 16  # bytes of an answer that wait to be passed on: above, its sender waits
_TCP_CLOSE = 7  # include/net/tcp_states.h: there was a reset
_UNACKED = struct.Struct("24xI")  # struct tcp_info: segments that were sent and not acknowledged
#: Of a connection that carries nothing back: its host is gone after 15 + 3 x 5 seconds.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class Gone(Exception):
    """The connection ended before the answer did. `unread`: the server cannot have begun the request; `answered`:
    its answer had begun."""

    def __init__(self, why: str, *, unread: bool, answered: bool) -> None:
        super().__init__(why)
        self.unread = unread
        self.answered = answered


class Origin:
    """Where a server is, and the connections there that have nothing to do. Raises BadSettings."""

    def __init__(self, url: str, tls: Any = None) -> None:
        """`tls`: an SSLContext for https."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.path.strip("/"):
            raise BadSettings(f"{url!r} is no address of a server", hint="give http://HOST:PORT")
        self.url = url.rstrip("/")
        self.name = parts.netloc.rpartition("@")[2]  # HOST:PORT
        self.host = parts.hostname
        self.port = port or (443 if parts.scheme == "https" else 80)
        self._tls = (tls or True) if parts.scheme == "https" else None
        self._idle: list[Line] = []

    async def line(self) -> Line:
        """Raises OSError where nobody listens."""
        while self._idle:
            line = self._idle.pop()
            if line.alive:
                return line
        return await self.open()

    async def open(self) -> Line:
        async with asyncio.timeout(CONNECT_S):  # TimeoutError is an OSError
            _, line = await asyncio.get_running_loop().create_connection(Line, self.host, self.port, ssl=self._tls)
        return line

    def give_back(self, line: Line) -> None:
        """One whose answer is over."""
        if line.alive:
            self._idle = [one for one in self._idle if one.alive]
            self._idle.append(line)
        else:
            line.abort()

    def close(self) -> None:
        """Those with nothing to do."""
        for line in self._idle:
            line.abort()
        self._idle.clear()


class Line(asyncio.Protocol):
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._writable: asyncio.Future[None] | None = None
        self._head: asyncio.Future[tuple[int, Headers]] | None = None
        self._over = True  # there is no request, or its answer is whole
        self._keep = True
        self._unread = False
        self._whole = False
        self._sent = 0.0

    # ---- a request and its answer

    def ask(self, data: bytes, *, whole: bool, bodiless: bool = False) -> asyncio.Future[tuple[int, Headers]]:
        """Send the head of a request and what there is of its body. Gives status and headers; Gone where there
        are none. `bodiless`: an answer to HEAD has no body, whatever it says."""
        head = self._head = self._loop.create_future()
        self._headers: Headers = []
        self._status = 0
        self._bodiless = bodiless
        self._over = self._whole = self._unread = False
        self._parts: deque[bytes] = deque()
        self._waiting = 0  # bytes in them
        self._paused = False
        self._reader: asyncio.Future[None] | None = None
        self._lost: Gone | None = None
        if self._transport is None:
            self._lose("it was closed", unread=True)
        else:
            self.more(data, whole=whole)
        return head

    def more(self, data: bytes, *, whole: bool) -> None:
        """Send more of the body."""
        if self._transport is not None:
            self._whole = whole
            self._sent = self._loop.time()
            self._transport.write(data)

    async def drained(self) -> None:
        """When more may be sent."""
        if self._writable is not None:
            await self._writable

    @property
    def over(self) -> bool:
        """The answer is here, whole."""
        return self._over

    @property
    def alive(self) -> bool:
        return self._transport is not None and self._keep

    def rest(self) -> bytes:
        """What is here of the answer's body."""
        found = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._waiting = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return found

    async def part(self) -> bytes:
        """More of the answer's body, b"" at its end. Raises Gone where it broke off."""
        if not self._parts:
            if self._over:
                return b""
            if self._lost is None:
                self._reader = self._loop.create_future()
                await self._reader
                self._reader = None
            if not self._parts and self._lost is not None:
                raise self._lost
        return self.rest()

    def abort(self) -> None:
        """Nobody wants the answer."""
        if self._transport is not None:
            self._transport.abort()

    # ---- the transport's calls

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(HIGH, LOW)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._lose(f"it does not speak HTTP: {error}", unread=False)
            self.abort()

    def eof_received(self) -> None:
        if not self._over and self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED.size)
            left = self._transport.get_write_buffer_size()
            self._unread = bool(info[0] == _TCP_CLOSE or _UNACKED.unpack(info)[0] or left)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        reset = isinstance(exc, ConnectionError) and self._loop.time() - self._sent <= RESET_S
        self._lose(str(exc or "it was closed"), unread=self._unread or not self._whole or reset)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # ---- the parser's calls

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._over:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._over or self._head is None or status < 200:
            return
        self._status = status
        if not self._head.done():
            self._head.set_result((status, self._headers))
        if self._bodiless:
            self._keep, self._over = False, True
            self._wake()

    def on_body(self, data: bytes) -> None:
        if self._over:
            return
        self._parts.append(data)
        self._waiting += len(data)
        if self._waiting > HIGH and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._status == 0 and not self._over:  # 100 and its like come before the answer
            self._headers = []
            return
        self._keep = self._keep and self._whole and not self._over and self._parser.should_keep_alive()
        self._over = True
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _lose(self, why: str, *, unread: bool) -> None:
        self._keep = False
        if self._over or self._lost is not None or self._head is None:
            return
        answered = self._status != 0
        self._lost = Gone(why, unread=unread and not answered, answered=answered)
        if not self._head.done():
            self._head.set_exception(self._lost)
            self._head.exception()  # whoever asked may be gone
        self._wake()
