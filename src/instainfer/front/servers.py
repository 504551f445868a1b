"""Who serves now, of the servers that there may be.

Each is asked what it says of itself (`/livez`). The one with the highest number wins: it is the latest that was
given the database, and what an earlier one still accepts, its agents and its store refuse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from instainfer.front.line import Gone, Line, Origin

log = logging.getLogger("instainfer.gateway")

LOOK_S = 1.0  # between two looks at a server while there is one that serves
SEEK_S = 0.1  # … while there is none
ANSWER_S = 3.0  # a server that says nothing for so long is not there
STALE_S = 60.0  # so long after a later server was there, an earlier one is none


class Server(Origin):
    """`problem`: why it gets nothing."""

    def __init__(self, url: str, tls: Any = None) -> None:
        super().__init__(url, tls)
        self.number = 0
        self.serves = False
        self.problem = "it was not asked yet"
        self.look = asyncio.Event()  # now
        self.asked: Line | None = None
        self.pending: set[Line] = set()  # with requests that a later server may have instead


class Servers:
    """`public`: machines other than this can reach us, so that a server that asks for no key would be anybody's.
    `hello`: what we say of ourselves when we ask."""

    def __init__(self, servers: Sequence[Server], *, public: bool, hello: Callable[[], dict[str, Any]]) -> None:
        self.all = list(servers)
        self.serving: Server | None = None
        self._public = public
        self._hello = hello
        self._waiting: set[asyncio.Future[Server]] = set()
        self._tasks: dict[Server, asyncio.Task[None]] = {}
        self._latest = 0
        self._latest_at = 0.0
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        for server in self.all:
            self._watch(server)

    def add(self, server: Server) -> None:
        """One more that there may be."""
        self.all.append(server)
        self._watch(server)

    def drop(self, server: Server) -> None:
        """It is none any more."""
        self.all.remove(server)
        self._tasks.pop(server).cancel()
        server.serves = False
        self._choose()
        if server.asked is not None:
            server.asked.abort()

    def _watch(self, server: Server) -> None:
        self._tasks[server] = self._loop.create_task(self._keep_asking(server))

    async def aclose(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for server in self.all:
            server.close()
            if server.asked is not None:
                server.asked.abort()
        self.stop_waiting()

    def stop_waiting(self) -> None:
        """Whoever waits is told that there will be none."""
        for waiting in tuple(self._waiting):
            waiting.cancel()

    def doubt(self, server: Server) -> None:
        """It did not answer: nothing goes there before it has."""
        if server.serves:
            server.serves, server.problem = False, "it went away with a request"
            self._choose()
        server.look.set()

    def found(self) -> asyncio.Future[Server]:
        """Done when one serves; cancelled when there will be none."""
        future: asyncio.Future[Server] = self._loop.create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    # ---- looking

    async def _keep_asking(self, server: Server) -> None:
        while True:
            server.look.clear()
            problem = await self._ask(server)
            if problem != server.problem and problem:
                log.warning("server %s: %s", server.url, problem)
            server.serves, server.problem = not problem, problem
            self._choose()
            try:
                async with asyncio.timeout(LOOK_S if self.serving is not None else SEEK_S):
                    await server.look.wait()
            except TimeoutError:
                pass

    async def _ask(self, server: Server) -> str:
        """ "" where it serves; its number is known then."""
        try:
            async with asyncio.timeout(ANSWER_S):
                if server.asked is None or not server.asked.alive:
                    server.asked = await server.open()
                status, headers = await server.asked.ask(self._question(server), whole=True)
                while await server.asked.part():
                    pass
        except TimeoutError:
            if server.asked is not None:
                server.asked.abort()
            return "it does not answer"
        except OSError as error:
            return f"it cannot be reached: {error.strerror or error}"
        except Gone as error:
            return f"it ended the connection: {error}"
        said = dict(headers)
        if status != 200 or b"x-instainfer-serving" not in said:
            return f"it is no instainfer server, or one of an earlier version (status {status})"
        if said[b"x-instainfer-serving"] != b"yes":
            return "it is stopping"
        if self._public and said.get(b"x-instainfer-keys") != b"asked":
            return "it asks for no key, and other machines reach this gateway: anyone could run code there"
        number = said.get(b"x-instainfer-number", b"0")
        server.number = int(number) if number.isdigit() else 0
        return ""

    def _question(self, server: Server) -> bytes:
        hello = urlencode(self._hello())
        return f"GET /livez HTTP/1.1\r\nhost: {server.name}\r\nx-instainfer-gateway: {hello}\r\n\r\n".encode()

    def _choose(self) -> None:
        now = self._loop.time()
        best = max((one for one in self.all if one.serves), key=lambda one: one.number, default=None)
        if best is not None and best.number >= self._latest:
            self._latest, self._latest_at = best.number, now
        elif best is not None and now - self._latest_at <= STALE_S:
            best = None
        elif best is not None:
            self._latest = best.number
        if best is self.serving:
            return
        if self.serving is not None:
            self.serving.close()
        self.serving = best
        if best is None:
            log.warning("no server serves: requests wait")
            for server in self.all:
                server.look.set()
            return
        log.info("server %s serves (number %d)", best.url, best.number)
        for server in self.all:
            if server.number < best.number:  # it may never answer: it has nothing to say any more
                for line in tuple(server.pending):
                    line.abort()
        for waiting in tuple(self._waiting):
            if not waiting.done():
                waiting.set_result(best)
