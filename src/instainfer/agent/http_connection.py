"""One HTTP/1.1 connection to an agent: the client's end of it, on bare transports.

A general client costs more than the whole hop may: an empty POST to an agent in another process took 0.12 ms
(median, uvloop, a busy machine of 2 cores), the same with httpx 1.3 ms.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import httptools

from instainfer.errors import BadSettings

log = logging.getLogger(__name__)


class Address:
    """Where an agent is, taken apart once. Raises BadSettings."""

    def __init__(self, url: str, key: str, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadSettings(f"{url!r} is no address of an agent", hint="give http://HOST:PORT")
        self.url = url
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.tls = (tls or True) if parts.scheme == "https" else None
        self.path = parts.path.rstrip("/")
        self.common = f" HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {key}\r\ncontent-length: "


class Connection(asyncio.Protocol):
    """One request at a time. It is of no use after an error, or after a request was cancelled: close it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._body = bytearray()
        self._on_body: Callable[[bytes], None] | None = None
        self.heard = self._loop.time()  # when something came last

    @classmethod
    async def open(cls, address: Address) -> Connection:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: cls(address), address.host, address.port, ssl=address.tls)
        return made

    async def request(
        self, method: str, target: str, body: Sequence[bytes] = (), on_body: Callable[[bytes], None] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer; the body of a 200 goes to `on_body`, where there is one, as it comes.
        Raises OSError when the connection ends first."""
        if self._transport is None:
            raise ConnectionError("it is closed")
        self._answer = self._loop.create_future()
        self._on_body = on_body
        self.heard = self._loop.time()
        head = f"{method} {self._address.path}{target}{self._address.common}{sum(map(len, body))}\r\n\r\n"
        self._transport.write(b"".join((head.encode("latin-1"), *body)))
        return await self._answer

    @property
    def alive(self) -> bool:
        return self._transport is not None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()  # what is not sent yet need not be
            self._transport = None

    # ---- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # uvloop's transports are not asyncio subclasses

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc if isinstance(exc, OSError) else ConnectionError("it was closed"))
            self._answer.exception()  # whoever asked may have gone

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            # What `on_body` raised comes as the cause.
            log.error("%s: its answer cannot be used", self._address.url, exc_info=error)
            self.close()

    # ---- the parser's calls

    def on_body(self, data: bytes) -> None:
        if self._on_body is not None and self._parser.get_status_code() == 200:
            self._on_body(data)
        else:
            self._body += data

    def on_message_complete(self) -> None:
        body = bytes(self._body)
        self._body.clear()
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), body))
