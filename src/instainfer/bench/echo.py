"""The least server there is: what the load generator reaches against it is the generator's own ceiling.

    python -m instainfer.bench.echo

Prints its address, then answers every request with the body it carried, until its stdin ends.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from instainfer.errors import Unavailable


class Echo(asyncio.Protocol):
    """Trusts its one client: requests are whole, headers in lower case, nothing is pipelined."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's transports are not asyncio's subclasses

    def data_received(self, data: bytes) -> None:
        body = data.partition(b"\r\n\r\n")[2]
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    over = loop.create_future()

    def ended() -> None:
        if not os.read(sys.stdin.fileno(), 1 << 16) and not over.done():
            over.set_result(None)

    loop.add_reader(sys.stdin.fileno(), ended)
    await over
    server.close()


@contextmanager
def running() -> Iterator[str]:
    """One in a process of its own; yields its URL."""
    command = [sys.executable, "-m", "instainfer.bench.echo"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise Unavailable("the echo server ended at once")
            yield url
        finally:
            process.stdin.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve())
