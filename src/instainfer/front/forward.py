"""Passes requests on to the server that serves, as an ASGI application.

A request whose server went away goes to the next one if it cannot have been begun (line.py), if the server says
that it may be sent again (`x-instainfer-again`), or if it may be begun twice: it changes nothing, or it has an
idempotency key. Any other one is told that it may have been begun: it never runs a second time by our doing.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from instainfer.errors import InstaInferError, Interrupted
from instainfer.front.hold import Hold
from instainfer.front.line import Gone, Headers, Line
from instainfer.front.request import HOP, Leaving, Left, Request
from instainfer.front.servers import Server, Servers
from instainfer.gateway.problems import AGAIN, render
from instainfer.listening import Swept

EVENTS = b"text/event-stream"
FIRST_WAIT_S, LONGEST_WAIT_S = 0.01, 0.5  # before a request is sent a third time, and so on


class Protocol(Swept):
    """A caller's connection; its requests know when it ends, without a task of each that waits for that."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["leaving"] = Leaving(self.transport)  # type: ignore[typeddict-unknown-key] # for us alone

    def connection_lost(self, exc: Exception | None) -> None:
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's annotation says
        super().connection_lost(exc)
        if cycle is not None:
            cycle.scope["leaving"].leave()


class Forward:
    def __init__(self, servers: Servers, hold: Hold) -> None:
        self.sent_again = 0
        self.interrupted = 0
        self._servers = servers
        self._hold = hold
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive, self._hold)
        try:
            if request.path == b"/livez":
                await _say(send, 200, b"application/json", b'{"status":"alive"}')
                return
            await request.more()
            await self._forward(request, send)
        except InstaInferError as error:
            await _refuse(request, error, send)
        except Left:
            pass
        finally:
            request.leaving.call(None)
            request.drop()

    async def _forward(self, request: Request, send: Any) -> None:
        until, tries = 0.0, 0
        while True:
            server = self._servers.serving
            if server is None:
                until = until or self._hold.until()
                server = await self._wait(request, until)
            try:
                line = await server.line()
            except OSError:  # it is not there: nothing was sent
                self._servers.doubt(server)
                continue
            if request.leaving.left:
                server.give_back(line)
                raise Left
            try:
                if await self._exchange(request, server, line, send):
                    return
            except Gone as gone:
                await self._interrupted(request, gone)
            self._servers.doubt(server)
            until = until or self._hold.until()
            if self._loop.time() > until:
                raise self._hold.refuse("every server that it was sent to went away")
            self.sent_again += 1
            tries += 1
            if tries > 1:
                await asyncio.sleep(min(FIRST_WAIT_S * 2**tries, LONGEST_WAIT_S))

    async def _wait(self, request: Request, until: float) -> Server:
        if request.path in (b"/readyz", b"/healthz"):
            raise self._hold.refuse("no server serves")
        while not request.whole:  # a caller who could not send on would be taken for a silent one
            await request.more()
            if not request.kept:
                raise self._hold.refuse("no server serves, and the request is too large to be kept here")
        if self._servers.serving is not None:
            return self._servers.serving
        try:
            return await self._hold.wait(until, request.leaving.call)
        except asyncio.CancelledError:
            if request.leaving.left:
                raise Left from None
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise self._hold.refuse("this gateway is stopping") from None
        finally:
            request.leaving.call(None)

    async def _interrupted(self, request: Request, gone: Gone) -> None:
        """Return if it may be sent again."""
        if request.leaving.left:
            raise Left
        if not gone.unread and not request.repeatable:
            self.interrupted += 1
            raise Interrupted(
                "the server went away while it had this request: it may have been begun",
                hint="send it again if that does no harm; one with an Idempotency-Key goes on by itself",
                detail=str(gone),
            )
        if not request.kept:
            raise self._hold.refuse("the server went away, and the request is too large to be kept here")

    async def _exchange(self, request: Request, server: Server, line: Line, send: Any) -> bool:
        """False: it is to be sent again. Raises Gone, before anything was answered; Left."""
        request.leaving.call(line.abort)
        whole = request.whole
        parts = request.parts if whole else map(request.framed, request.parts)
        head = line.ask(b"".join((request.head, *parts)), whole=whole, bodiless=request.method == "HEAD")
        if request.repeatable:
            server.pending.add(line)
        feeding = None if whole else self._loop.create_task(self._feed(request, line))
        try:
            try:
                status, headers = await head
            finally:
                server.pending.discard(line)
            if AGAIN in headers and request.kept:
                line.abort()
                return False
            request.drop()
            await self._answer(request, status, headers, line, send)
        finally:
            if feeding is not None:
                feeding.cancel()
        if line.over:
            server.give_back(line)
        else:
            line.abort()
        return True

    async def _feed(self, request: Request, line: Line) -> None:
        """The rest of the body, as it comes."""
        try:
            while not request.whole:
                part = await request.more()
                line.more(request.framed(part, last=request.whole), whole=request.whole)
                await line.drained()
        except Left:
            line.abort()

    async def _answer(self, request: Request, status: int, headers: Headers, line: Line, send: Any) -> None:
        events = False
        kept: Headers = []
        for name, value in headers:
            if name == b"content-length" or name not in HOP:
                kept.append((name, value))
            if name == b"content-type":
                events = value.startswith(EVENTS)
        await send({"type": "http.response.start", "status": status, "headers": kept})
        try:
            while not line.over:
                part = await line.part()
                if part:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except Gone:
            await self._broken(request, events, send)
            return
        await send({"type": "http.response.body", "body": line.rest()})

    async def _broken(self, request: Request, events: bool, send: Any) -> None:
        """An answer broke off. An event says so where there are events; else the connection's end does."""
        if request.leaving.left:
            raise Left
        self.interrupted += 1
        if events:
            error = Interrupted("the server went away in the middle of this answer")
            _, _, problem = render(error)
            await send({"type": "http.response.body", "body": b"event: error\ndata: %b\n\n" % problem})
            return
        gone: asyncio.Future[None] = self._loop.create_future()
        request.leaving.call(gone.cancel)
        request.leaving.transport.close()
        await asyncio.wait({gone})


async def _refuse(request: Request, error: InstaInferError, send: Any) -> None:
    """In the words of the face that was asked."""
    status, headers, body = render(error)
    if request.path.startswith(b"/api/"):
        body = json.dumps({"error": f"{error.message}\n{error.hint}".strip(), "code": error.code}).encode()
    elif request.path.startswith(b"/v2"):
        body = json.dumps({"error": error.message}).encode()
    else:
        await _send(send, status, headers, body)
        return
    kept = [one for one in headers if one[0] not in (b"content-type", b"content-length")]
    told = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await _send(send, status, [*told, *kept], body)


async def _say(send: Any, status: int, kind: bytes, body: bytes) -> None:
    await _send(send, status, [(b"content-type", kind), (b"content-length", b"%d" % len(body))], body)


async def _send(send: Any, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
