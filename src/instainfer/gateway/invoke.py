"""The plain face, and the hot path: `POST /f/{namespace}/{name}`, any body in, any out.

Raw ASGI. The body is never parsed, a warm hit decides nothing here, and nothing waits for a commit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from instainfer.books import Ticket
from instainfer.controller import Controller
from instainfer.errors import BadInput, InstaInferError, NotFound, Stopping, TooLarge, WrongMethod
from instainfer.gateway.access import Access, Principal, who_asks
from instainfer.gateway.browsers import Browsers
from instainfer.gateway.problems import AGAIN, render
from instainfer.model import FunctionSpec, Job
from instainfer.work import Work, error_of

PREFIX = "/f/"
LONGEST_KEY = 255

Headers = list[tuple[bytes, bytes]]
Response = tuple[int, Headers, bytes]  # status, headers, body


class Invoke:
    def __init__(
        self,
        controller: Controller,
        access: Access,
        work: Work,
        browsers: Browsers,
        *,
        max_body: int,
        traced: bool = False,
    ) -> None:
        """`traced`: spans are made, so that the caller's traceparent is of interest."""
        self.stopping = False
        self.traced = traced
        self.controller = controller
        self.access = access
        self.work = work
        self.browsers = browsers
        self.max_body = max_body
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            spec, content_type, body = await self._read(scope, receive)
            key, later = _wishes(scope["headers"])
            if key or later:
                await _send(send, *await self._durable(spec, content_type, body, key, later=later))
                return
            ticket, answered = self.begin(spec, content_type, body, scope["headers"])
        except InstaInferError as refused:
            await _send(send, *render(refused))
            return
        except ClientGone:
            return
        parts: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()
        if not answered.done():
            ticket.chunk = lambda _, kind, body: parts.put_nowait((kind, body))
            answered.add_done_callback(lambda _: parts.put_nowait(None))
            waiting = asyncio.ensure_future(self.wait(ticket, answered, receive))
            first = await parts.get()
            if first is not None:
                await self._stream(ticket, *first, parts, send)
                waiting.cancel()
                return
            await waiting
        await _send(send, *self.response(ticket))

    async def _stream(
        self,
        ticket: Ticket,
        kind: str,
        first: bytes,
        parts: asyncio.Queue[tuple[str, bytes] | None],
        send: Any,
    ) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.streamed(ticket, kind)})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        while (part := await parts.get()) is not None:
            await send({"type": "http.response.body", "body": part[1], "more_body": True})
        whole, last = last_part(kind, ticket)
        if not whole:
            return  # uvicorn closes the connection of an answer that is not whole: it shows there
        await send({"type": "http.response.body", "body": last})

    def streamed(self, ticket: Ticket, kind: str) -> list[tuple[bytes, bytes]]:
        """Headers of an answer that comes in parts."""
        return [
            (b"content-type", kind.encode("latin-1", "replace")),
            (b"cache-control", b"no-cache"),
            (b"transfer-encoding", b"chunked"),
            (b"x-instainfer-start", ticket.start.encode()),
            (b"x-instainfer-activation", ticket.activation.encode()),
        ]

    async def _durable(
        self, spec: FunctionSpec, content_type: str, body: bytes, key: str, *, later: bool
    ) -> Response:
        """The response to a request that is committed before it runs: with a key, or to be answered later."""
        self.access.charge(spec.namespace)
        job = await self.work.accept(spec, content_type, body, key=key)
        if later:
            return accepted(job)
        done = await self.work.result(job)
        if done.over:
            return outcome(done, replayed=job.over)
        status, headers, body = accepted(done)
        return status, [*headers, AGAIN], body  # the server is stopping: the next one has the answer

    def response(self, ticket: Ticket) -> Response:
        """Status, headers and body of an answered one."""
        error = ticket.error
        extra = [
            (b"x-instainfer-start", ticket.start.encode()),
            (b"x-instainfer-activation", ticket.activation.encode()),
            (b"server-timing", timing(ticket)),
        ]
        if error is not None:
            status, headers, body = render(error, ticket.activation)
            return status, headers + extra, body
        assert ticket.answer is not None
        kind, body = ticket.answer
        headers = [
            (b"content-type", kind.encode("latin-1", "replace")),
            (b"content-length", b"%d" % len(body)),
            *extra,
        ]
        return 200, headers, body

    def submit(
        self,
        spec: FunctionSpec,
        content_type: str,
        body: bytes,
        done: Callable[[Ticket], None],
        *,
        traceparent: str = "",
    ) -> Ticket:
        """Accept a request, within its namespace's quota. Raises OverQuota."""
        told = self.access.admit(spec.namespace, done)
        return self.controller.submit(spec, content_type, body, told, traceparent=traceparent)

    def find(self, who: Principal, path: str, size: int) -> FunctionSpec:
        """What is called, if it can be. Raises what is wrong."""
        key = path[len(PREFIX) :]
        namespace, _, name = key.partition("/")
        who.check(namespace)
        if self.stopping:
            raise Stopping("the server is stopping", hint="send it again", retry_after_s=5)
        if size > self.max_body:
            raise self._too_large(key)
        spec = self.controller.specs.get(key)
        if spec is None:
            raise NotFound(
                f"there is no function {name!r} in namespace {namespace!r}",
                function=key,
                phase="request",
                hint="`instainfer ls` shows what is deployed; the address is /f/NAMESPACE/NAME",
            )
        return spec

    async def _read(self, scope: Any, receive: Any) -> tuple[FunctionSpec, str, bytes]:
        """Whom the request is for, its content type and body. Raises what is wrong with it."""
        path, method = scope["path"], scope["method"]
        if method != "POST":
            key = path[len(PREFIX) :]
            said = f"{method} is not how a function is called"
            raise WrongMethod(said, hint="use POST", function=key, phase="request")
        spec = self.find(who_asks(scope), path, 0)
        content_type = header(scope["headers"], b"content-type")
        encoding = header(scope["headers"], b"content-encoding").strip().lower()
        if encoding not in ("", "identity"):  # a function is not told of it: it would take it for the content
            raise BadInput(
                f"a body with content-encoding {encoding[:40]!r} is not read here",
                hint="send it as it is, or without that header to a function that decodes it",
                function=spec.key,
                phase="request",
            )
        parts = await read(scope, receive, self.max_body)
        if parts is None:
            raise self._too_large(spec.key)
        return spec, content_type, parts[0] if len(parts) == 1 else b"".join(parts)

    def begin(
        self, spec: FunctionSpec, content_type: str, body: bytes, headers: Headers
    ) -> tuple[Ticket, asyncio.Future[None]]:
        """Accept a request; the future is done when it is answered. Raises OverQuota."""
        traceparent = header(headers, b"traceparent") if self.traced else ""
        answered: asyncio.Future[None] = self._loop.create_future()

        def done(_: Ticket) -> None:
            if not answered.done():
                answered.set_result(None)

        return self.submit(spec, content_type, body, done, traceparent=traceparent), answered

    def _too_large(self, key: str) -> TooLarge:
        limit = self.max_body / 1e6
        return TooLarge(
            f"the body is over the limit of {limit:g} MB",
            function=key,
            phase="request",
            hint="send less, or start the server with a larger server.max_body",
        )

    async def wait(self, ticket: Ticket, answered: asyncio.Future[None], receive: Any) -> None:
        """Until it is answered. Should the caller go away meanwhile, nobody needs the answer."""
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({answered, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                self.controller.cancel(ticket)
        finally:
            gone.cancel()
        await answered


def last_part(kind: str, ticket: Ticket) -> tuple[bool, bytes]:
    """Whether a stream of this type can be ended as a whole one, and what is to be sent before that. An error in
    the middle is an event where there are events; else the connection breaks off, since it is not the end."""
    if ticket.error is None:
        return True, b""
    if kind != "text/event-stream":
        return False, b""
    _, _, problem = render(ticket.error, ticket.activation)
    return True, b"event: error\ndata: %b\n\n" % problem


def _wishes(headers: list[tuple[bytes, bytes]]) -> tuple[str, bool]:
    """Its idempotency key, and whether its answer is to be fetched later. Raises BadInput."""
    key, later = "", False
    for name, value in headers:
        if name == b"idempotency-key":
            key = value.decode("latin-1").strip()
            if not key or len(key) > LONGEST_KEY:
                raise BadInput(
                    "the idempotency key cannot be used",
                    hint=f"send 1 to {LONGEST_KEY} characters, such as a UUID",
                )
        elif name == b"prefer":
            later = later or any(part.strip().lower() == b"respond-async" for part in value.split(b","))
    return key, later


def header(headers: Headers, name: bytes) -> str:
    """Its last value; "" where it was not sent."""
    found = ""
    for key, value in headers:
        if key == name:
            found = value.decode("latin-1")
    return found


async def read(scope: Any, receive: Any, limit: int) -> list[bytes] | None:
    """A request's body in the parts that it came in, one at least; None where it is over the limit. Raises
    ClientGone."""
    length = header(scope["headers"], b"content-length")
    if length and int(length) > limit:
        return None
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        more = message.get("more_body", False)
    return parts


def accepted(job: Job) -> Response:
    """202: it is committed, and this is where its answer will be."""
    where = f"/instainfer/v1/jobs/{job.id}"
    body = json.dumps({"id": job.id, "state": job.state.value, "result": f"{where}/result"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"location", where.encode()),
        (b"preference-applied", b"respond-async"),
        (b"x-instainfer-activation", job.id.encode()),
    ]
    return 202, headers, body


def outcome(job: Job, *, replayed: bool = False) -> Response:
    """What one that is over was answered, or what it failed with."""
    extra = [(b"x-instainfer-start", job.start.encode()), (b"x-instainfer-activation", job.id.encode())]
    if replayed:
        extra.append((b"idempotency-replayed", b"true"))
    error = error_of(job)
    if error is not None:
        status, headers, body = render(error, job.id)
        return status, headers + extra, body
    kind = job.answer_type.encode("latin-1", "replace")
    return 200, [(b"content-type", kind), (b"content-length", b"%d" % len(job.answer)), *extra], job.answer


class ClientGone(Exception):
    """The caller hung up before its request was whole: there is nobody to answer."""


def timing(ticket: Ticket) -> bytes:
    """Server-Timing, milliseconds per phase."""
    phases = ticket.phases
    if ticket.start == "warm" or ticket.start == "preloaded":
        return b"queue;dur=%.3f, inference;dur=%.3f" % (phases.queue * 1e3, phases.inference * 1e3)
    rows = (
        (b"queue", phases.queue),
        (b"container", phases.container),
        (b"extract", phases.extract),
        (b"import", phases.imports),
        (b"load", phases.load),
        (b"device", phases.device),
        (b"warmup", phases.warmup),
        (b"inference", phases.inference),
    )
    return b", ".join(b"%s;dur=%.3f" % (name, seconds * 1e3) for name, seconds in rows if seconds)


async def _send(send: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
