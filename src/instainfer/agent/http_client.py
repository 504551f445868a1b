"""The agent of another node, reached over HTTP (http_server.py has the protocol)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import ssl
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from instainfer import wire
from instainfer.agent.base import Answered, Carried, Command, Invoke, Report, Sink
from instainfer.agent.http_connection import Address, Connection
from instainfer.agent.http_server import BEAT_S
from instainfer.core.actions import Load
from instainfer.core.events import ContainerLost, InstanceLost, NodeClosed, NodeJoined, NodeLost, NodeOpened
from instainfer.errors import InstaInferError, Unavailable, from_problem

log = logging.getLogger(__name__)

QUIET_S = 3 * BEAT_S  # a connection on which nothing moves for so long is given up, at the latest
QUIET_SHARE = 0.6  # of the time after which the node is lost: the same, if that is less
LEASE_SHARE = 0.8  # of that time: after so long without us the node ends what it runs
RESTART_S = 20.0  # a node ends what is there in less
JOIN_S = 20.0  # … while a node ends what others had it do
SLOWEST = 1 << 20  # bytes a second: a batch may take that much longer
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0  # before another try
BATCH = 4 << 20  # bytes after which a batch takes no further command
UNTOLD = 1 << 20  # bytes of reports taken, after which the node is told so even without commands


class HttpAgent:
    """`key`: what the agent's server was given. `lost_s`: how long the node may be out of reach before it is
    reported lost, once; by then it has ended what it ran. After that only `start` does anything: it joins the node
    anew. Before, NodeClosed and NodeOpened tell when it does not answer and when it does again.

    `epoch`: of our controller (http_server.py). `stays`: the node outlives us, `aclose` only lets go of it."""

    def __init__(
        self,
        node: str,
        url: str,
        key: str,
        *,
        lost_s: float = 10.0,
        epoch: int = 0,
        stays: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Raises BadSettings for a URL that cannot be an agent's."""
        self.node = node
        self.shelf = url
        self._address = Address(url, key, tls)
        self._lost_s = lost_s
        self._epoch = epoch
        self._stays = stays
        self._link: _Link | None = None

    async def start(self, sink: Sink) -> NodeJoined:
        """Raises Unavailable when the node cannot be joined within `lost_s`."""
        link = _Link(self.node, self._address, sink, self._lost_s, self._epoch)
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

    async def restart(self) -> None:
        """What runs there ends, and the agent begins anew; NodeLost follows. Raises Unavailable."""
        if self._link is not None:
            await self._link.restart()

    async def aclose(self) -> None:
        """A node that is out of reach goes on with what it runs until a controller joins it."""
        link, self._link = self._link, None
        if link is not None and self._stays:
            await link.let_go()
        elif link is not None:
            await link.aclose()


class _Link:
    """One session: from joining the node to its end or loss."""

    def __init__(self, node: str, address: Address, sink: Sink, lost_s: float, epoch: int) -> None:
        self._node = node
        self._address = address
        self._sink = sink
        self._lost_s = lost_s
        self._loop = asyncio.get_running_loop()
        self._quiet_s = min(QUIET_S, QUIET_SHARE * lost_s)
        self._us = f"session={secrets.token_hex(8)}&epoch={epoch}"
        self._joined: asyncio.Future[NodeJoined] = self._loop.create_future()
        self._open = True  # commands are taken
        self._closing = False
        self._taken = 0  # reports that came, each counted before the sink has it
        self._untold = 0  # bytes of reports that the node does not know to have come
        self._batch = 0
        self._out = 0  # the last batch that may have reached the node
        self._carried = 0  # batches that it had carried out when it last told of a loss
        self._outbox: deque[tuple[bytes, int]] = deque()  # message, the request that it carries
        self._asked: dict[int, _Asked] = {}  # requests that were not answered
        self._loaded: dict[str, str] = {}  # instance -> container
        self._troubles: set[str] = set()  # who cannot reach it
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
        if not self._open:
            return
        request = 0
        if type(command) is Invoke:
            request = command.request
            self._asked[request] = _Asked(command.instance)
        elif type(command) is Load:
            self._loaded[command.instance] = command.container
        self._outbox.append((wire.encode(command), request))
        self._wake.set()

    async def restart(self) -> None:
        try:
            async with asyncio.timeout(RESTART_S):
                line = await Connection.open(self._address)  # of its own: commands go on meanwhile
                try:
                    _check(*await line.request("POST", f"/agent/restart?{self._us}"))
                finally:
                    line.close()
        except OSError as error:
            raise Unavailable(f"node {self._node} cannot be told: {error}", retry_after_s=1.0) from error

    async def let_go(self) -> None:
        """Without a word: the node goes on."""
        self._stop()
        await asyncio.wait([self._reader, self._writer])

    async def aclose(self) -> None:
        if not self._open:
            return
        self._open = False
        self._closing = True
        self._writer.cancel()
        await asyncio.wait([self._writer])
        try:
            async with asyncio.timeout(self._lost_s):
                await self._post("close", self._us)
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
                unread = tuple(sorted(r for r, asked in self._asked.items() if asked.batch > self._out))
                self._sink(NodeLost(node=self._node, reason=error.message, unread=unread))

    def _reached(self, who: str, patience: _Patience) -> None:
        patience.succeeded()
        if who in self._troubles:
            self._troubles.discard(who)
            if not self._troubles and self._open:
                self._sink(NodeOpened(node=self._node))

    async def _failed(self, who: str, patience: _Patience, error: OSError | Unavailable) -> None:
        """Once is what happens to connections; twice in a row, the node is out of reach."""
        again = patience.failing
        if again and not self._troubles and self._joined.done() and self._open:
            self._sink(NodeClosed(node=self._node))
        if again:
            self._troubles.add(who)
        await patience.failed(error)

    # ---- reports

    async def _read(self) -> None:
        patience = _Patience(self._lost_s, self._quiet_s)
        while True:
            try:
                await self._follow(lambda: self._reached("reader", patience))
            except (OSError, Unavailable) as error:
                if self._closing:
                    return
                await self._failed("reader", patience, error)
            if self._closing:
                return

    async def _follow(self, succeeded: Callable[[], None]) -> None:
        """Take reports from where we are until the stream ends. Raises OSError when it is cut or silent, and
        what the node answers instead of a stream."""
        decoder: wire.Decoder[Report | NodeJoined | Carried] = wire.Decoder(Report | NodeJoined | Carried)

        def heard(data: bytes) -> None:
            self._untold += len(data)
            for report in decoder.feed(data):
                self._taken += 1
                if type(report) is Answered:
                    self._asked.pop(report.request, None)
                    self._sink(report)
                elif isinstance(report, NodeJoined):
                    self._loaded = {i.instance: c.container for c in report.held for i in c.instances}
                    self._joined.set_result(report)
                elif isinstance(report, Carried):
                    self._carried = report.batch
                elif isinstance(report, InstanceLost | ContainerLost):
                    self._sink(self._completed(report))
                else:
                    self._sink(report)
            if self._untold >= UNTOLD:
                self._wake.set()
            succeeded()

        quiet_s = self._quiet_s
        async with asyncio.timeout(quiet_s):
            line = await Connection.open(self._address)
        times = f"beat={int(quiet_s / 3 * 1e3)}&lease={int(LEASE_SHARE * self._lost_s * 1e3)}"
        target = f"/agent/reports?{self._us}&after={self._taken}&{times}"
        asked = self._loop.create_task(line.request("GET", target, on_body=heard))
        try:
            while not asked.done():
                await asyncio.wait([asked], timeout=quiet_s)
                limit_s = quiet_s if self._joined.done() else max(quiet_s, JOIN_S)
                if not asked.done() and self._loop.time() - line.heard > limit_s:
                    raise TimeoutError(f"nothing came for {limit_s:g} s")
            _check(*asked.result())
        finally:
            asked.cancel()
            line.close()

    def _completed(self, lost: InstanceLost | ContainerLost) -> InstanceLost | ContainerLost:
        """With the requests that the node had not even been given when it was lost there."""
        if isinstance(lost, InstanceLost):
            gone = {lost.instance}
        else:
            gone = {instance for instance, where in self._loaded.items() if where == lost.container}
        for instance in gone:
            self._loaded.pop(instance, None)
        late = [r for r, a in self._asked.items() if a.instance in gone and a.batch > self._carried]
        self._asked = {r: a for r, a in self._asked.items() if a.instance not in gone}
        if not late:
            return lost
        return msgspec.structs.replace(lost, unread=tuple(sorted({*lost.unread, *late})))

    # ---- commands

    async def _write(self) -> None:
        await asyncio.wait([self._joined])
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._quiet_s / 3):
                    await self._wake.wait()
            silent = not self._wake.is_set()
            self._wake.clear()
            if silent:
                await self._deliver([], self._batch)  # we are there
            while self._outbox or self._untold >= UNTOLD:
                await self._deliver(self._next_batch(), self._batch)

    def _next_batch(self) -> list[bytes]:
        messages: list[bytes] = []
        size = 0
        self._batch += 1
        while self._outbox and size < BATCH:
            message, request = self._outbox.popleft()
            messages.append(message)
            size += len(message)
            if request and (asked := self._asked.get(request)) is not None:
                asked.batch = self._batch
        return messages

    async def _deliver(self, messages: list[bytes], batch: int) -> None:
        """Until the node has it: it carries a batch out once, however often it comes."""
        patience = _Patience(self._lost_s, self._quiet_s)
        while True:
            untold = self._untold
            query = f"{self._us}&batch={batch}&after={self._taken}"
            try:
                await self._post("commands", query, messages, batch)
            except (OSError, Unavailable) as error:
                await self._failed("writer", patience, error)
            else:
                self._reached("writer", patience)
                self._untold -= untold
                return

    async def _post(self, what: str, query: str, body: Sequence[bytes] = (), batch: int = 0) -> None:
        """Raises OSError, or what the node answers."""
        line = self._line
        try:
            async with asyncio.timeout(self._quiet_s + sum(map(len, body)) / SLOWEST):
                if line is None or not line.alive:
                    line = self._line = await Connection.open(self._address)
                self._out = max(self._out, batch)
                status, answer = await line.request("POST", f"/agent/{what}?{query}", body)
        except BaseException:
            if line is not None:
                line.close()
            raise
        _check(status, answer)


class _Asked:
    """A request that was sent, or is to be."""

    __slots__ = ("batch", "instance")

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.batch = 1 << 62  # the one that it goes with, once that is made


class _Patience:
    """Waits longer and longer between tries, until it has had enough."""

    def __init__(self, limit_s: float, quiet_s: float) -> None:
        self._limit_s = limit_s
        self._quiet_s = quiet_s
        self._loop = asyncio.get_running_loop()
        self._until: float | None = None
        self._wait_s = FIRST_WAIT_S

    @property
    def failing(self) -> bool:
        return self._until is not None

    def succeeded(self) -> None:
        self._until = None
        self._wait_s = FIRST_WAIT_S

    async def failed(self, error: OSError | Unavailable) -> None:
        """Return when it may be tried again. Raises Unavailable."""
        now = self._loop.time()
        if self._until is None:
            silent_s = self._quiet_s if isinstance(error, TimeoutError) else 0.0
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
