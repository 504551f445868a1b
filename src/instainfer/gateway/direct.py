"""The way of an ordinary invocation through uvicorn without ASGI: no task, no scope, no events, one write.

`POST /f/NAMESPACE/NAME` on a connection with nothing else under way goes from the parser to the controller, and
its answer from the controller's call back to the transport. Everything else (another method, a query, an escape, a
second request before the first was answered, Expect, Prefer, an idempotency key, a wrong key, a body over the
limit, a browser's request or a name of the server that was not seen before) takes uvicorn's own way to the same
application.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from instainfer.books import Ticket
from instainfer.errors import InstaInferError, NotAllowed
from instainfer.gateway.access import OWNER, Principal
from instainfer.gateway.invoke import PREFIX, Invoke, last_part
from instainfer.gateway.problems import render
from instainfer.listening import Swept

_PREFIX = PREFIX.encode()
_LONG_WAY = frozenset({b"idempotency-key", b"prefer", b"sec-fetch-site", b"origin", b"content-encoding"})


class _Nobody:
    def set(self) -> None:
        """Nobody waits for this event."""


class Call:
    """A request under way. uvicorn takes it for the connection's cycle, and asks no more of one than is here."""

    __slots__ = (
        "content_type", "disconnected", "keep_alive", "message_event", "parts", "protocol", "response_complete",
        "size", "streaming", "ticket", "traceparent", "who",
    )  # fmt: skip

    def __init__(
        self, protocol: Protocol, who: Principal, content_type: str, traceparent: str, keep_alive: bool
    ) -> None:
        self.protocol = protocol
        self.streaming = ""  # content type of an answer that goes out in parts, once it has begun
        self.who = who
        self.traceparent = traceparent
        self.content_type = content_type
        self.keep_alive = keep_alive
        self.parts: list[bytes] = []
        self.size = 0
        self.ticket: Ticket | None = None
        self.response_complete = False
        self.disconnected = False
        self.message_event = _Nobody()

    def part(self, ticket: Ticket, kind: str, body: bytes) -> None:
        self.protocol.part(self, ticket, kind, body)


class Protocol(Swept):
    """`asks`: whether a key is asked for, where there are any; `most`: connections at a time."""

    def __init__(self, *args: Any, hot: Invoke, asks: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        self._hot = hot
        self._asks = asks
        self._call: Call | None = None  # while its body comes in

    def on_headers_complete(self) -> None:
        self.head_is_whole()
        self._call = call = self._begin() if self.url.startswith(_PREFIX) else None
        if call is None:
            super().on_headers_complete()
        else:
            self.cycle = call  # type: ignore[assignment] # see Call

    def _begin(self) -> Call | None:
        """The call that these headers begin, or None where the long way has to be taken."""
        parser, url = self.parser, self.url
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's annotation says
        if (
            parser.get_method() != b"POST"
            or b"%" in url
            or b"?" in url
            or not url.isascii()
            or (cycle is not None and not cycle.response_complete)
            or self.flow.write_paused  # the client does not read: uvicorn waits for it before it answers more
            or self.expect_100_continue
            or parser.get_http_version() != "1.1"
            or parser.should_upgrade()
        ):
            return None
        content_type, traceparent, given = "", "", b""
        for name, value in self.headers:
            if name == b"content-type":
                content_type = value.decode("latin-1")
            elif name == b"content-length":
                if int(value) > self._hot.max_body:
                    return None
            elif name == b"authorization":
                given = value
            elif name == b"traceparent" and self._hot.traced:
                traceparent = value.decode("latin-1")
            elif name == b"host":
                if self._asks and value not in self._hot.browsers.known and not self._hot.access.asked:
                    return None
            elif name in _LONG_WAY:
                return None
        try:
            who = self._hot.access.who(given) if self._asks else OWNER
        except NotAllowed:
            return None
        return Call(self, who, content_type, traceparent, parser.should_keep_alive())

    def on_body(self, body: bytes) -> None:
        call = self._call
        if call is None:
            super().on_body(body)
            return
        call.size += len(body)
        if call.size <= self._hot.max_body:
            call.parts.append(body)
        else:  # chunked, so that its length was not known: the rest is read and dropped
            call.parts.clear()

    def on_message_complete(self) -> None:
        self.is_whole()
        call = self._call
        if call is None:
            super().on_message_complete()
            return
        self._call = None
        try:
            spec = self._hot.find(call.who, self.url.decode(), call.size)
            parts, call.parts = call.parts, []
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            ticket = self._hot.submit(
                spec, call.content_type, body, lambda done: self._done(call, done), traceparent=call.traceparent
            )
        except InstaInferError as refused:
            self._answer(call, *render(refused))
            return
        if not call.response_complete:
            call.ticket = ticket
            ticket.chunk = call.part

    def connection_lost(self, exc: Exception | None) -> None:
        call: Any = self.cycle
        self._call = None
        super().connection_lost(exc)
        if type(call) is Call and call.ticket is not None:
            self._hot.controller.cancel(call.ticket)  # nobody needs the answer

    def part(self, call: Call, ticket: Ticket, kind: str, body: bytes) -> None:
        """A part of the answer: chunked, as it comes. For a client that is slow to read it is kept here, up to the
        limit of an answer; the instance does not wait."""
        if call.disconnected:
            return
        if not call.streaming:
            call.streaming = kind
            self._head(STATUS_LINE[200], self._hot.streamed(ticket, kind))
        if body:
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def _done(self, call: Call, ticket: Ticket) -> None:
        call.ticket = None
        if not call.streaming:
            self._answer(call, *self._hot.response(ticket))
            return
        call.response_complete = True
        if call.disconnected:
            return
        whole, last = last_part(call.streaming, ticket)
        if last:
            self.transport.write(b"%x\r\n%b\r\n" % (len(last), last))
        if whole:
            self.transport.write(b"0\r\n\r\n")
        if not whole or not call.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _head(self, status: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        parts = [status]
        for name, value in (*self.server_state.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*parts, b"\r\n")))

    def _answer(self, call: Call, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        call.response_complete = True
        if call.disconnected:
            return
        parts = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        parts += (b"\r\n" if call.keep_alive else b"connection: close\r\n\r\n", body)
        self.transport.write(b"".join(parts))
        if not call.keep_alive:
            self.transport.close()
        self.on_response_complete()
