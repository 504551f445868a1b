"""An open loop of calls to one server: each goes out when it is due, whatever became of those before it.

No queue: a call that is due while too many are in flight is not sent, and says so. Connections are kept and used
again; one is made, before the call's own time starts, where none rests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools

from instainfer.client import ADDRESS_HINT
from instainfer.errors import Unavailable

#: Servers close connections that rest for some seconds: uvicorn after 5. One that rested longer than this is not
#: used again, since a request could cross the closing.
REST_S = 2.0
_SWEEP_S = 0.5
_EARLY_S = 0.0005  # timers are kept to the millisecond: what is due so soon need not wait for another

UNSENT, INTERRUPTED = "unsent", "interrupted"


class Target(NamedTuple):
    """Where a server is, taken apart once."""

    url: str
    host: str
    port: int
    tls: bool
    socket: str  # path of a Unix socket, instead of host and port
    prefix: str  # of every path
    head: str  # of every request: HTTP version, host, key

    def request(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> bytes:
        kind = f"content-type: {content_type}\r\n" if content_type else ""
        line = f"{method} {self.prefix}{path}{self.head}{kind}content-length: {len(body)}\r\n\r\n"
        return line.encode("latin-1") + body


def target(where: str, key: str = "") -> Target:
    """`where`: a URL, or the path of a server's admin socket (`Client.where`). Raises Unavailable."""
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    if "://" not in where:
        return Target(where, "", 0, False, where, "", f" HTTP/1.1\r\nhost: localhost\r\n{authorization}")
    parts = urlsplit(where)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unavailable(f"{where!r} is no server's address", hint=ADDRESS_HINT)
    tls = parts.scheme == "https"
    head = f" HTTP/1.1\r\nhost: {parts.netloc}\r\n{authorization}"
    return Target(where, parts.hostname, parts.port or (443 if tls else 80), tls, "", parts.path.rstrip("/"), head)


class Call:
    """One call of the schedule. Seconds since the loop began; `failed` says why there is no answer."""

    __slots__ = ("activation", "due_s", "e2e_s", "failed", "position", "sent_s", "start", "status", "timing")

    def __init__(self, position: int, due_s: float) -> None:
        self.position = position  # in the schedule
        self.due_s = due_s
        self.sent_s = 0.0
        self.e2e_s = 0.0  # from the first byte sent to the last received
        self.status = 0
        self.start = ""  # of x-instainfer-start
        self.activation = ""
        self.timing = ""  # the Server-Timing header
        self.failed = ""

    @property
    def late_s(self) -> float:
        return max(0.0, self.sent_s - self.due_s)


class Counts:
    """Of a loop, while it runs."""

    __slots__ = ("errors", "late", "ready", "sent", "unsent")

    def __init__(self) -> None:
        self.sent = self.late = self.unsent = self.errors = self.ready = 0


class Sender:
    """To be made in the loop that runs it. `due_s` ascend, seconds from the beginning; `requests[which[i]]` is
    what call i sends. `in_flight`: calls under way at most; one without an answer after `timeout_s` is given up.
    `calls` are those that were due."""

    def __init__(
        self,
        target: Target,
        due_s: Sequence[float],
        which: Sequence[int],
        requests: Sequence[bytes],
        *,
        in_flight: int,
        timeout_s: float,
        late_s: float,
    ) -> None:
        self.calls: list[Call] = []
        self.counts = Counts()
        self.began = 0.0  # wall time
        self.interrupted = False
        self._target = target
        self._due_s = due_s
        self._which = which
        self._requests = requests
        self._most = in_flight
        self._timeout_s = timeout_s
        self._late_s = late_s
        self._under_way: dict[Call, _Connection | None] = {}  # in the order in which they were due
        self._resting: list[_Connection] = []  # the last one used is the next one used
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._zero = time.perf_counter()

    @property
    def in_flight(self) -> int:
        return len(self._under_way)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning. Not the loop's time, which stands still between two of its rounds."""
        return time.perf_counter() - self._zero

    async def run(self) -> None:
        """Until every call has been due and is over, or `interrupt`."""
        self._zero, self.began = time.perf_counter(), time.time()
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
        self._turn()
        try:
            await self._over
        finally:
            self._sweeper.cancel()
            if self._timer is not None:
                self._timer.cancel()
            for task in self._tasks:
                task.cancel()
            for connection in list(self._open):
                connection.abort()

    def interrupt(self) -> None:
        """Send nothing more, wait for nothing more."""
        self.interrupted = True
        for call in list(self._under_way):
            self._end(call, INTERRUPTED)
        if not self._over.done():
            self._over.set_result(None)

    async def get(self, path: str) -> bytes:
        """Of the management API, beside the calls. Raises OSError when there is no 200, TimeoutError among
        them."""
        async with asyncio.timeout(self._timeout_s):
            connection = await self._connection()
            answered: asyncio.Future[None] = self._loop.create_future()
            call = Call(-1, self.elapsed)

            def done(call: Call, failed: str) -> None:
                call.failed = failed
                if not answered.done():
                    answered.set_result(None)

            connection.send(call, self._target.request("GET", path), done, keep=True)
            try:
                await answered
            except asyncio.CancelledError:
                connection.abort()  # what comes yet would be taken for the answer to something else
                raise
        if call.status != 200:
            raise OSError(call.failed or f"{path}: {call.status}")
        return connection.body

    # ---- the schedule

    def _turn(self) -> None:
        """Send what is due, and come back for the next."""
        if self.interrupted:
            return
        self._timer = None
        due_s, now = self._due_s, self.elapsed + _EARLY_S
        at = len(self.calls)
        while at < len(due_s) and due_s[at] <= now:
            self._begin(Call(at, due_s[at]))
            at += 1
        if at < len(due_s):
            self._timer = self._loop.call_later(max(0.0, due_s[at] - self.elapsed), self._turn)
        else:
            self._check_over()

    def _begin(self, call: Call) -> None:
        self.calls.append(call)
        if len(self._under_way) >= self._most:
            call.failed = UNSENT
            self.counts.unsent += 1
            return
        resting = self._rested()
        self._under_way[call] = resting
        if resting is not None:
            self._send(call, resting)
            return
        task = self._loop.create_task(self._send_on_new(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_on_new(self, call: Call) -> None:
        try:
            connection = await self._connection()
        except OSError as error:
            call.sent_s = self.elapsed
            self._end(call, f"no connection: {error.strerror or error}")
            return
        if call in self._under_way:
            self._under_way[call] = connection
            self._send(call, connection)
        else:
            self._rest(connection)

    def _send(self, call: Call, connection: _Connection) -> None:
        self.counts.sent += 1
        connection.send(call, self._requests[self._which[call.position]], self._end)
        if call.late_s > self._late_s:
            self.counts.late += 1

    def _end(self, call: Call, failed: str) -> None:
        if call not in self._under_way:
            return  # it was given up before, for another reason than what came of that
        del self._under_way[call]
        call.failed = failed
        if failed or call.status >= 400:
            self.counts.errors += failed != INTERRUPTED
        elif call.start in ("warm", "preloaded"):
            self.counts.ready += 1
        self._check_over()

    def _check_over(self) -> None:
        if not self._under_way and len(self.calls) == len(self._due_s) and not self._over.done():
            self._over.set_result(None)

    def _sweep(self) -> None:
        """Give up what waits for too long, and the connections that nobody needs."""
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
        long_ago = self.elapsed - self._timeout_s
        for call, connection in list(self._under_way.items()):
            if call.due_s > long_ago:
                break
            self._end(call, f"no answer within {self._timeout_s:g} s")
            if connection is not None:
                connection.abort()
        while self._resting and self.elapsed - self._resting[0].rests > REST_S:
            self._resting.pop(0).abort()

    # ---- connections

    def _rested(self) -> _Connection | None:
        while self._resting:
            connection = self._resting.pop()
            if connection.alive and self.elapsed - connection.rests <= REST_S:
                return connection
            connection.abort()
        return None

    async def _connection(self) -> _Connection:
        """Raises OSError."""
        if (resting := self._rested()) is not None:
            return resting
        goal = self._target
        if goal.socket:
            _, made = await self._loop.create_unix_connection(lambda: _Connection(self), goal.socket)
        else:
            tls = True if goal.tls else None
            _, made = await self._loop.create_connection(lambda: _Connection(self), goal.host, goal.port, ssl=tls)
        self._open.add(made)
        return made

    def _rest(self, connection: _Connection) -> None:
        if connection.alive:
            connection.rests = self.elapsed
            self._resting.append(connection)

    def _lost(self, connection: _Connection) -> None:
        self._open.discard(connection)


class _Connection(asyncio.Protocol):
    """One call at a time."""

    def __init__(self, sender: Sender) -> None:
        self.alive = False
        self.rests = 0.0  # since when
        self.body = b""
        self._sender = sender
        self._parser = httptools.HttpResponseParser(self)
        self._call: Call | None = None

    def send(self, call: Call, request: bytes, done: Callable[[Call, str], None], *, keep: bool = False) -> None:
        """`done(call, failed)` is called once, with "" where there is an answer. `keep` its body."""
        self._call, self._done = call, done
        self._parts: list[bytes] | None = [] if keep else None
        call.sent_s = self._sender.elapsed
        if self.alive:
            self._transport.write(request)
        else:
            self._finish("the connection was lost")

    def abort(self) -> None:
        if self.alive:
            self.alive = False
            self._transport.abort()

    def _finish(self, failed: str = "") -> None:
        call, self._call = self._call, None
        if call is None:
            return
        call.e2e_s = self._sender.elapsed - call.sent_s
        if not failed:
            self._sender._rest(self)
        self._done(call, failed)

    # ---- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's transports are not asyncio's subclasses
        self.alive = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        self._sender._lost(self)
        self._finish(f"the connection was lost{f': {exc}' if exc else ''}")

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(f"no HTTP: {error}")
            self.abort()

    # ---- the parser's calls

    def on_header(self, name: bytes, value: bytes) -> None:
        call = self._call
        if call is None:
            return
        name = name.lower()
        if name == b"x-instainfer-start":
            call.start = value.decode("latin-1")
        elif name == b"x-instainfer-activation":
            call.activation = value.decode("latin-1")
        elif name == b"server-timing":
            call.timing = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        if self._call is not None and self._parts is not None:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        if self._call is None:
            return
        self._call.status = self._parser.get_status_code()
        self.body = b"".join(self._parts or ())
        if not self._parser.should_keep_alive():
            self.abort()
        self._finish()
