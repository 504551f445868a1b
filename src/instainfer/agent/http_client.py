"""The agent of another node, reached over HTTP (http_server.py has the protocol)."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from instainfer import wire
from instainfer.agent.base import Command, Report, Sink
from instainfer.agent.http_connection import Address, Connection
from instainfer.agent.http_server import BEAT_S
from instainfer.core.events import NodeJoined, NodeLost
from instainfer.errors import InstaInferError, Unavailable, from_problem

log = logging.getLogger(__name__)

QUIET_S = 3 * BEAT_S  # a connection on which nothing moves for so long is given up
SLOWEST = 1 << 20  # bytes a second: a batch may take that much longer
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0  # before another try
BATCH = 4 << 20  # bytes after which a batch takes no further command
UNTOLD = 1 << 20  # bytes of reports taken, after which the node is told so even without commands


class HttpAgent:
    """`key`: what the agent's server was given. `lost_s`: how long the node may be out of reach before it is
    reported lost, once. After that only `start` does anything: it joins the node anew, which ends whatever
    still runs there."""

    def __init__(self, node: str, url: str, key: str, *, lost_s: float = 10.0) -> None:
        """Raises BadSettings for a URL that cannot be an agent's."""
        self.node = node
        self._address = Address(url, key)
        self._lost_s = lost_s
        self._link: _Link | None = None

    async def start(self, sink: Sink) -> NodeJoined:
        """Raises Unavailable when the node cannot be joined within `lost_s`."""
        link = _Link(self.node, self._address, sink, self._lost_s)
        self._link = link
        try:
            return await link.join()
        except InstaInferError as error:
            raise Unavailable(
                f"node {self.node} at {self._address.url} cannot be joined: {error.message}",
                hint=error.hint or "is its agent running, and reachable from here?",
            ) from error

    def send(self, command: Command) -> None:
        if self._link is not None:
            self._link.send(command)

    async def aclose(self) -> None:
        """A node that is out of reach goes on with what it runs until a controller joins it."""
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()


class _Link:
    """One session: from joining the node to its end or loss."""

    def __init__(self, node: str, address: Address, sink: Sink, lost_s: float) -> None:
        self._node = node
        self._address = address
        self._sink = sink
        self._lost_s = lost_s
        self._loop = asyncio.get_running_loop()
        self._session = secrets.token_hex(8)
        self._joined: asyncio.Future[NodeJoined] = self._loop.create_future()
        self._open = True  # commands are taken
        self._closing = False
        self._taken = 0  # reports that came, each counted before the sink has it
        self._untold = 0  # bytes of reports that the node does not know to have come
        self._batch = 0
        self._outbox: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._line: Connection | None = None  # for requests that are answered at once
        self._reader = self._loop.create_task(self._until_over(self._read()))
        self._writer = self._loop.create_task(self._until_over(self._write()))

    async def join(self) -> NodeJoined:
        try:
            joined = await self._joined
            if joined.node != self._node:
                raise Unavailable(f"it is node {joined.node}")
        except BaseException:
            self._stop()
            raise
        return joined

    def send(self, command: Command) -> None:
        if self._open:
            self._outbox.append(wire.encode(command))
            self._wake.set()

    async def aclose(self) -> None:
        if not self._open:
            return
        self._open = False
        self._closing = True
        self._writer.cancel()
        await asyncio.wait([self._writer])
        try:
            async with asyncio.timeout(self._lost_s):
                await self._post("close", f"session={self._session}")
                await self._reader  # the stream ends after the last report
        except (OSError, InstaInferError) as error:
            log.warning("node %s may go on with what it runs: %s", self._node, error)
        self._stop()
        await asyncio.wait([self._reader])

    def _stop(self) -> None:
        self._open = False
        self._reader.cancel()
        self._writer.cancel()
        if self._line is not None:
            self._line.close()

    async def _until_over(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except InstaInferError as error:
            if not self._joined.done():
                self._joined.set_exception(error)
            elif self._open:
                log.warning("node %s is lost: %s", self._node, error.message)
                self._stop()
                self._sink(NodeLost(node=self._node))

    # ---- reports

    async def _read(self) -> None:
        patience = _Patience(self._lost_s)
        while True:
            try:
                await self._follow(patience.succeeded)
            except (OSError, Unavailable) as error:
                if self._closing:
                    return
                await patience.failed(error)
            if self._closing:
                return

    async def _follow(self, succeeded: Callable[[], None]) -> None:
        """Take reports from where we are until the stream ends. Raises OSError when it is cut or silent, and
        what the node answers instead of a stream."""
        decoder: wire.Decoder[Report | NodeJoined] = wire.Decoder(Report | NodeJoined)

        def heard(data: bytes) -> None:
            self._untold += len(data)
            for report in decoder.feed(data):
                self._taken += 1
                if isinstance(report, NodeJoined):
                    self._joined.set_result(report)
                else:
                    self._sink(report)
            if self._untold >= UNTOLD:
                self._wake.set()
            succeeded()

        async with asyncio.timeout(QUIET_S):
            line = await Connection.open(self._address)
        target = f"/agent/reports?session={self._session}&after={self._taken}"
        asked = self._loop.create_task(line.request("GET", target, on_body=heard))
        try:
            while not asked.done():
                await asyncio.wait([asked], timeout=QUIET_S)
                if not asked.done() and self._loop.time() - line.heard > QUIET_S:
                    raise TimeoutError(f"nothing came for {QUIET_S:g} s")
            _check(*asked.result())
        finally:
            asked.cancel()
            line.close()

    # ---- commands

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox or self._untold >= UNTOLD:
                await self._deliver(self._next_batch())

    def _next_batch(self) -> list[bytes]:
        messages: list[bytes] = []
        size = 0
        while self._outbox and size < BATCH:
            messages.append(self._outbox.popleft())
            size += len(messages[-1])
        return messages

    async def _deliver(self, messages: list[bytes]) -> None:
        """Until the node has it: it carries a batch out once, however often it comes."""
        self._batch += 1
        patience = _Patience(self._lost_s)
        while True:
            untold = self._untold
            query = f"session={self._session}&batch={self._batch}&after={self._taken}"
            try:
                await self._post("commands", query, messages)
            except (OSError, Unavailable) as error:
                await patience.failed(error)
            else:
                self._untold -= untold
                return

    async def _post(self, what: str, query: str, body: Sequence[bytes] = ()) -> None:
        """Raises OSError, or what the node answers."""
        line = self._line
        try:
            async with asyncio.timeout(QUIET_S + sum(map(len, body)) / SLOWEST):
                if line is None or not line.alive:
                    line = self._line = await Connection.open(self._address)
                status, answer = await line.request("POST", f"/agent/{what}?{query}", body)
        except BaseException:
            if line is not None:
                line.close()
            raise
        _check(status, answer)


class _Patience:
    """Waits longer and longer between tries, until it has had enough."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._until: float | None = None
        self._wait_s = FIRST_WAIT_S

    def succeeded(self) -> None:
        self._until = None
        self._wait_s = FIRST_WAIT_S

    async def failed(self, error: OSError | Unavailable) -> None:
        """Return when it may be tried again. Raises Unavailable."""
        now = self._loop.time()
        if self._until is None:
            silent_s = QUIET_S if isinstance(error, TimeoutError) else 0.0
            self._until = now + self._limit_s - silent_s
        if now + self._wait_s > self._until:
            raise Unavailable(str(error) or type(error).__name__)
        await asyncio.sleep(self._wait_s)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)


def _check(status: int, body: bytes) -> None:
    """Raises what the answer says: Unavailable where it may be tried again."""
    if status < 300:
        return
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        raise Unavailable(f"something on the way answers {status}") from None
    raise from_problem(problem)
