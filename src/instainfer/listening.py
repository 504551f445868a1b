"""HTTP servers inside a running loop: bind first, serve until told otherwise, leave signals to others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from instainfer.errors import Unavailable

SHUTDOWN_S = 5


def bind(host: str, port: int) -> socket.socket:
    """A bound socket (`port` 0: any free one). Raises Unavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise Unavailable(
            f"{host}:{port} cannot be listened on: {error.strerror}",
            hint="another server may be running there: choose another `--port`",
        ) from None
    return bound


def url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Swept(HttpToolsProtocol):
    """A connection of uvicorn's that knows when it heard something last of a request that is not whole."""

    _heard: float | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._heard = self.loop.time()

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)

    def on_message_complete(self) -> None:
        self._heard = None
        super().on_message_complete()

    def let_go(self, before: float) -> None:
        """Close the connection if its client began a request and has sent nothing since then: it would cost a
        descriptor for as long as it likes."""
        if self._heard is not None and self._heard < before:
            self.transport.close()


async def sweep(connections: set[Any], seconds: float) -> None:
    """Let clients go that began a request and went silent. `connections`: Swept ones."""
    while True:
        await asyncio.sleep(seconds / 4)
        before = asyncio.get_running_loop().time() - seconds
        for connection in tuple(connections):
            connection.let_go(before)


class _Server(uvicorn.Server):
    """Several may run in one loop, so signals are left to whoever runs it. `up` is set once it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(
    app: Any, bound: socket.socket, *, http: Any = "httptools", end_s: float = SHUTDOWN_S, **options: Any
) -> AsyncIterator[set[Any]]:
    """Serve the ASGI app on the socket within the context, which gets the set of its connections; `http` and
    `options` are uvicorn's. At its end what is under way has `end_s` more."""
    server = _Server(
        uvicorn.Config(
            app,
            http=http,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=int(end_s),
            **options,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[bound]))
    up = asyncio.create_task(server.up.wait())
    await asyncio.wait({task, up}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        up.cancel()
        task.result()
        raise Unavailable("the HTTP server ended at once")
    try:
        yield server.server_state.connections
    finally:
        server.should_exit = True
        await task
