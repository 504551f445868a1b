"""HTTP servers inside a running loop: bind first, serve until told otherwise, leave signals to others."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from instainfer.errors import Unavailable

SHUTDOWN_S = 5
LONGEST_HEAD = 64 << 10  # bytes of a request's names and values of headers
LONGEST_UNREAD = 512 << 10  # bytes that came of a head which is not whole; several whole ones may come at once
LEAST = 1 << 10  # bytes of a request that have to come within the time that a silent client has
MOST_DESCRIPTORS = 65_536


def bind(host: str, port: int) -> socket.socket:
    """A bound socket (`port` 0: any free one). Raises Unavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            hint = "another server may be running there: choose another `--port`"
        elif error.errno == errno.EACCES:
            hint = "ports below 1024 are for root: choose another `--port`"
        else:
            hint = "`--host` has to be an address of this machine, such as 127.0.0.1"
        raise Unavailable(f"{host}:{port} cannot be listened on: {error.strerror}", hint=hint) from None
    return bound


def url(bound: socket.socket, *, tls: bool = False) -> str:
    host, port = bound.getsockname()[:2]
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"https://{where}" if tls else f"http://{where}"


def reached(bound: socket.socket, *, tls: bool = False) -> str:
    """The same for other machines, where it listens on all addresses: by this one's name."""
    host, port = bound.getsockname()[:2]
    if host not in ("0.0.0.0", "::"):
        return url(bound, tls=tls)
    return f"{'https' if tls else 'http'}://{socket.gethostname()}:{port}"


class Swept(HttpToolsProtocol):
    """A connection of uvicorn's that does not wait for ever for a request that is not whole, nor for a client that
    takes nothing of its answer. `most`: connections at a time."""

    def __init__(self, *args: Any, most: int = 1 << 30, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most = most
        self._since: float | None = None  # of a request that is not whole: when it was begun, or went on enough
        self._came = 0  # bytes since then
        self._of_head = 0  # bytes of a head that is not whole
        self._in_body = False
        self._unread = (0, 0.0)  # bytes that the client has not taken yet, and since when it has taken none

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        if len(self.connections) > self._most:  # the rest of the descriptors is for what they ask for
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._since is None:
            self._since = self.loop.time()
        self._came += len(data)
        super().data_received(data)
        self._weigh(len(data))

    def _weigh(self, came: int) -> None:
        """A head that goes on and on is kept by the parser, which tells us nothing of it before its end."""
        if self._since is None or self._in_body:
            return
        self._of_head += came
        if self._of_head > LONGEST_UNREAD and not self.transport.is_closing():
            self.send_400_response("A request's head is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._of_head += len(name) + len(value)
        if self._of_head > LONGEST_HEAD:
            raise ValueError("the head is too long")  # 400, and the connection is closed
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.head_is_whole()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.is_whole()
        super().on_message_complete()

    def head_is_whole(self) -> None:
        self._of_head = 0
        self._in_body = True

    def is_whole(self) -> None:
        self._since, self._came, self._of_head, self._in_body = None, 0, 0, False

    def let_go(self, before: float) -> None:
        """Close the connection if its client began a request and sends nothing, or next to nothing, since then, or
        takes nothing of its answer: it would cost a descriptor and memory for as long as it likes."""
        if self._since is not None and self._since < before and not self.flow.read_paused:
            if self._came < LEAST or not self._in_body:  # a head is short
                self.transport.close()
                return
            self._since, self._came = self.loop.time(), 0
        left, since = self._unread
        now_left = self.transport.get_write_buffer_size()
        if not now_left or now_left != left:
            self._unread = now_left, self.loop.time()
        elif since < before:
            self.transport.abort()


async def sweep(connections: set[Any], seconds: float) -> None:
    """Let clients go that went silent. `connections`: Swept ones."""
    while True:
        await asyncio.sleep(seconds / 4)
        before = asyncio.get_running_loop().time() - seconds
        for connection in tuple(connections):
            connection.let_go(before)


def most_connections() -> int:
    """Half as many as this process may have descriptors: containers need some, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return (MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft) // 2


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
