"""An agent behind HTTP: commands come in batches, reports go out as one long stream.

A *session* is one controller's use of the node. It begins when a reader asks with an unknown name: whatever an
earlier session left running is ended first, and the first report is NodeJoined, with what is left at rest. Within
it nothing is lost or doubled: reports are numbered from 1 and kept until the controller says that it has them,
batches of commands are numbered from 1 and one that came before is not carried out again.

    GET  /agent/reports?session=S&after=N             200, then reports N+1, N+2, … until it is cut
    POST /agent/commands?session=S&batch=B&after=N    204; reports up to N need not be kept
    POST /agent/close?session=S                       204 when everything on the node has ended
    POST /agent/restart?session=S                     the same, then its process begins anew
    GET  /artifacts/DIGEST                            of no session: for other nodes (artifacts/shelf.py)

Every request carries its controller's `epoch`, too, a number that is larger the later the controller began (0
where it is not said). Once a later one has had the node, an earlier one gets nothing done here any more.

A session that is given a `lease` (milliseconds) is to be heard of that often: when it is not, what runs on the
node is ended, so that its controller may begin the same work elsewhere once that time is over. `beat`: how often a
stream with nothing to say says that.

409: the session is over (another controller took the node, the server started anew or stops, or more was to be
kept than may be): all that ran in it is lost to the one who asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

import msgspec

from instainfer import listening, wire
from instainfer.agent.base import Agent, Carried, Command, Keeps, Report, Sink
from instainfer.artifacts.peer import PREFIX
from instainfer.artifacts.shelf import Shelf
from instainfer.core.actions import CreateContainer
from instainfer.core.events import ContainerLost, InstanceLost, NodeClosed, NodeJoined
from instainfer.errors import BadInput, BadSettings, Conflict, InstaInferError, NotAllowed, NotFound, Unavailable

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between looks at whether the controller of a node that leaves is heard of
BEAT_S = 2.0  # a stream with nothing to say beats this often
KEPT = 256 << 20  # bytes of reports kept for a controller that does not take them


class Session:
    """One controller's: what it has been told, and what it has told us."""

    def __init__(self, name: str, kept: int, *, beat_s: float = BEAT_S, lease_s: float = 0.0) -> None:
        self.name = name
        self.beat_s = beat_s
        self.lease_s = lease_s
        self.heard = asyncio.get_running_loop().time()  # of its controller
        self.batch = 0  # the last one carried out
        self.over = ""  # why it is, if so
        self.closing = False  # nothing will follow what is kept
        self.wake = asyncio.Event()
        self.reader = 0  # which one it is that may read: the last that came
        self.readers = 0  # that are here
        self.containers: set[str] = set()  # that it has had made and that are not gone, or came with it
        self.news = asyncio.Event()  # one of them is gone, or a reader is, or it is over
        self._kept = kept
        self._reports: dict[int, bytes] = {}  # by number, in order: those not taken yet
        self._bytes = 0
        self._last = 0

    def report(self, report: Report | NodeJoined) -> None:
        if self.over:
            return
        if isinstance(report, InstanceLost | ContainerLost):
            self._keep(wire.encode(Carried(batch=self.batch)))
        if isinstance(report, NodeJoined):
            self.containers.update(held.container for held in report.held)
        elif isinstance(report, ContainerLost):
            self.containers.discard(report.container)
            self.news.set()
        self._keep(wire.encode(report))
        if self._bytes > self._kept and len(self._reports) > 1:
            self.end(f"more than {self._kept >> 20} MB of reports were not taken")
        self.wake.set()

    def _keep(self, message: bytes) -> None:
        self._last += 1
        self._reports[self._last] = message
        self._bytes += len(message)

    def took(self, after: int) -> None:
        """Reports up to this number have arrived. Raises Conflict when those behind it are no longer here."""
        first = next(iter(self._reports), self._last + 1)
        for number in range(first, min(after, self._last) + 1):
            self._bytes -= len(self._reports.pop(number))
        if after > self._last:
            raise Conflict(f"report {after} was never sent in this session")

    def behind(self, after: int) -> list[bytes]:
        return [self._reports[number] for number in range(after + 1, self._last + 1)]

    def end(self, why: str) -> None:
        self.over = self.over or why
        self._reports.clear()
        self._bytes = 0
        self.wake.set()
        self.news.set()

    def read_by(self, reader: int) -> bool:
        return self.reader == reader and not self.over

    @property
    def live(self) -> bool:
        return not self.over and not self.closing

    @property
    def wanted(self) -> bool:
        """Does it have something here, and is its controller there?"""
        silent_s = asyncio.get_running_loop().time() - self.heard
        there = self.readers > 0 and (not self.lease_s or silent_s < self.lease_s)
        return self.live and there and bool(self.containers)

    def missed(self, after: int) -> bool:
        """Whether a report that follows `after` is no longer kept."""
        return after + 1 < next(iter(self._reports), self._last + 1)


class AgentServer:
    """The ASGI app of a node. The agent is started by the first session, and started again, after it has ended
    everything, by a session that takes the node over."""

    def __init__(
        self,
        agent: Agent,
        key: str,
        *,
        kept: int = KEPT,
        epoch: int = 0,
        remember: Callable[[int], None] = lambda epoch: None,
        shelf: Shelf | None = None,
        restart: Callable[[], None] | None = None,
    ) -> None:
        """`epoch`: of the latest controller that has had the node; `remember` is told of a later one; `shelf`:
        artifacts that other nodes may pull; `restart` is called to begin anew, where that can be. Raises
        BadSettings without a key: who reaches this app can run anything on the node."""
        if not key:
            raise BadSettings("an agent needs a key", hint="give the same one to the controller and its nodes")
        self._agent = agent
        self._expected = f"Bearer {key}".encode()
        self._kept = kept
        self._shelf = shelf
        self._restart = restart
        self._session: Session | None = None
        self._epoch = epoch
        self._remember = remember
        self._changing = asyncio.Lock()  # sessions begin and end one at a time
        self._watching: asyncio.Task[None] | None = None
        self._unsure = False  # whether the agent is as it should be: the last beginning did not work
        self._stopped = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        try:
            await self._route(scope, receive, send)
        except InstaInferError as error:
            body = msgspec.json.encode(error.problem())
            await _answer(send, error.status, body)

    async def _route(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, self._expected):
            raise NotAllowed("no key, or a wrong one", hint="controller and agents have to share one key")
        if self._shelf is not None and scope["path"].startswith(PREFIX):
            await self._shelf(scope, receive, send)
            return
        query = parse_qs(scope["query_string"].decode("latin-1"))
        name = query.get("session", [""])[0]
        asked = f"{scope['method']} {scope['path']}"
        if not name:
            raise BadInput("which session?")
        epoch = _number(query, "epoch", 0)
        if epoch < self._epoch:
            log.warning("a controller of epoch %d is refused: one of epoch %d has the node", epoch, self._epoch)
            raise Conflict(
                f"a later controller (epoch {self._epoch}) has this node: epoch {epoch} has no say here"
            )
        if asked == "POST /agent/commands":
            commands = await _commands(receive)
            self._carry_out(name, _number(query, "batch"), _number(query, "after"), commands)
            await _answer(send, 204)
        elif asked == "GET /agent/reports":
            await self._stream(name, epoch, query, receive, send)
        elif asked == "POST /agent/close":
            await self._close(name)
            await _answer(send, 204)
        elif asked == "POST /agent/restart" and self._restart is not None:
            await self._close(name)
            await _answer(send, 204)
            self._restart()
        else:
            raise NotFound(f"there is no {asked}")

    async def leave(self, seconds: float) -> None:
        """Have the controller see that what is here stands elsewhere, and wait until it has ended all of it; so
        long at most, and as long as it is there."""
        session = self._session
        if session is None or not seconds or not session.wanted:
            return
        log.info("the node leaves: waiting up to %g s until what is here stands elsewhere", seconds)
        session.report(NodeClosed(node=self._agent.node, drain=True, within_s=seconds))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while session.wanted:
                    session.news.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await session.news.wait()

    async def aclose(self) -> None:
        """End everything on the node. Streams end when they have said so."""
        self._stopped = True
        async with self._changing:
            if self._session is not None and not self._session.closing:
                await self._end(self._session)
            self._watch(None)

    # ---- commands

    def _carry_out(self, name: str, batch: int, after: int, commands: list[Command]) -> None:
        session = self._current(name)
        session.heard = asyncio.get_running_loop().time()
        session.took(after)
        if batch <= session.batch:
            return  # it came before; its answer was lost
        if batch > session.batch + 1:
            raise Conflict(f"batch {batch} after {session.batch}: one is missing")
        session.batch = batch
        for command in commands:
            if isinstance(command, CreateContainer):
                session.containers.add(command.container)
            self._agent.send(command)

    def _current(self, name: str) -> Session:
        session = self._session
        if session is None or session.name != name:
            raise Conflict("another controller has taken this node, or it started anew")
        if session.over:
            raise Conflict(session.over)
        return session

    # ---- sessions

    async def _join(self, name: str, epoch: int, query: dict[str, list[str]]) -> Session:
        """The session of this name, which begins now unless it is the present one. Raises Unavailable."""
        async with self._changing:
            if self._stopped:
                raise Unavailable("the node is stopping")
            earlier = self._session
            if earlier is not None and earlier.name == name:
                return earlier
            if epoch > self._epoch:
                self._remember(epoch)
                self._epoch = epoch
            if earlier is not None:
                log.info("another controller takes the node")
                earlier.end("another controller has taken this node")
                self._session = None
            beat_s, lease_s = _number(query, "beat", int(BEAT_S * 1e3)) / 1e3, _number(query, "lease", 0) / 1e3
            session = Session(name, self._kept, beat_s=max(beat_s, 0.01), lease_s=lease_s)
            early: list[Report] = []  # reported before it could say that it has joined
            sink = early.append

            def report(report: Report) -> None:
                sink(report)

            joined = await self._begin(report, running=earlier is not None and not earlier.closing)
            session.report(joined)
            for each in early:
                session.report(each)
            sink = session.report
            self._session = session
            self._watch(session)
            return session

    async def _begin(self, report: Sink, *, running: bool) -> NodeJoined:
        unsure, self._unsure = self._unsure, True  # until this has worked
        if running and not unsure and isinstance(self._agent, Keeps):
            joined = await self._agent.hand_over(report)
        else:
            if running or unsure:
                await self._agent.aclose()
            joined = await self._agent.start(report)
        self._unsure = False
        return joined

    def _watch(self, session: Session | None) -> None:
        """See that this one is heard of, from now on."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        if session is not None and session.lease_s and isinstance(self._agent, Keeps):
            self._watching = asyncio.create_task(self._look_after(session, self._agent))

    async def _look_after(self, session: Session, agent: Keeps) -> None:
        loop = asyncio.get_running_loop()
        while session.live:
            left = session.heard + session.lease_s - loop.time()
            if left > 0:
                await asyncio.sleep(left)
                continue
            log.warning("nothing was heard of the controller for %g s: what runs here ends", session.lease_s)
            try:
                async with self._changing:
                    if session.live:
                        await agent.rest("its controller was not heard of")
            except (OSError, InstaInferError):
                log.exception("what runs here could not be ended")
            await asyncio.sleep(session.lease_s)

    async def _close(self, name: str) -> None:
        async with self._changing:
            session = self._current(name)
            if not session.closing:
                await self._end(session)

    async def _end(self, session: Session) -> None:
        await self._agent.aclose()
        session.closing = True
        session.wake.set()
        session.news.set()

    # ---- reports

    async def _stream(self, name: str, epoch: int, query: dict[str, list[str]], receive: Any, send: Any) -> None:
        after = _number(query, "after")
        session = await self._join(name, epoch, query) if after == 0 else self._current(name)
        if session.over or session.missed(after):
            raise Conflict(session.over or f"the reports after {after} are not kept any more")
        session.took(after)
        if session.closing and not session.behind(after):
            raise Conflict("the node has stopped")
        session.reader += 1
        session.wake.set()  # whoever reads now makes room
        reader = session.reader
        session.wake = wake = asyncio.Event()
        headers = [(b"content-type", b"application/octet-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        left = asyncio.create_task(_left(receive, wake))
        session.readers += 1
        try:
            while session.read_by(reader) and not left.done():
                wake.clear()
                if messages := session.behind(after):
                    after += len(messages)
                    for message in _joined(messages):
                        await send({"type": "http.response.body", "body": message, "more_body": True})
                elif session.closing:
                    break
                else:
                    try:
                        async with asyncio.timeout(session.beat_s):
                            await wake.wait()
                    except TimeoutError:
                        await send({"type": "http.response.body", "body": wire.BEAT, "more_body": True})
        finally:
            left.cancel()
            session.readers -= 1
            session.news.set()
        await send({"type": "http.response.body", "body": b""})


def _joined(messages: list[bytes]) -> Iterator[bytes]:
    """Small ones together, so that one write carries them; large ones as they are."""
    run: list[bytes] = []
    for message in messages:
        if len(message) < 1 << 16:
            run.append(message)
            continue
        if run:
            yield b"".join(run)
            run = []
        yield message
    if run:
        yield b"".join(run)


async def _left(receive: Any, wake: asyncio.Event) -> None:
    """Return when the other end is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    wake.set()


async def _commands(receive: Any) -> list[Command]:
    """All of a batch or nothing. Raises BadInput."""
    decoder: wire.Decoder[Command] = wire.Decoder(Command)
    commands: list[Command] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadInput("it was cut off")
        commands += decoder.feed(message.get("body", b""))
        if not message.get("more_body", False):
            break
    if not decoder.whole:
        raise BadInput("it ends within a message")
    return commands


def _number(query: dict[str, list[str]], name: str, unsaid: int | None = None) -> int:
    text = query.get(name, [""])[0]
    if not text and unsaid is not None:
        return unsaid
    if not text.isdecimal() or len(text) > 18:
        raise BadInput(f"{name} is a number, not {text!r}")
    return int(text)


async def _answer(send: Any, status: int, body: bytes = b"") -> None:
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers if body else []})
    await send({"type": "http.response.body", "body": body})


# ---- serving -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(
    agent: Agent,
    host: str,
    port: int,
    key: str,
    *,
    kept: int = KEPT,
    epoch: int = 0,
    remember: Callable[[int], None] = lambda epoch: None,
    shelf: Shelf | None = None,
    restart: Callable[[], None] | None = None,
    tls: dict[str, Any] | None = None,
    leaves_s: float = 0.0,
) -> AsyncIterator[str]:
    """Serve within the context; gives the URL (`port` 0: any free one). Its end ends everything on the node, after
    the controller has had `leaves_s` to have it stand elsewhere.
    `tls`: options of uvicorn's. Raises BadSettings without a key, Unavailable where it cannot listen."""
    app = AgentServer(agent, key, kept=kept, epoch=epoch, remember=remember, shelf=shelf, restart=restart)
    with listening.bind(host, port) as bound:
        async with listening.serving(app, bound, access_log=False, **(tls or {})):
            try:
                yield listening.url(bound, tls=bool(tls))
                await app.leave(leaves_s)
            finally:
                await app.aclose()
