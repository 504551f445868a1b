"""The load generator: a process of its own, one thread, kept connections, closed loop.

    python -m instainfer.bench.loadgen http://127.0.0.1:3233/f/default/hello --clients 16 --requests 4000

Prints one JSON object. Each client sends its next request when its last one was answered; what is counted are
answers with status 200, everything else is an error. Its own ceiling is what it reaches against `echo`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from typing import Any

from instainfer.bench.http import parse, render
from instainfer.errors import InstaInferError, Unavailable

STALL_S = 60.0  # without any answer the run ends and what is under way counts as errors


def quantile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank, of values in ascending order (at least one)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Load:
    """One run: what may still be sent, and what came back. `requests` answers are counted, or those of `seconds`;
    the first `discard` ones are not."""

    def __init__(self, request: bytes, clients: int, *, requests: int, seconds: float, discard: int) -> None:
        self.request = request
        self.clients = clients
        self.latencies = array("d")
        self.starts: dict[str, int] = {}
        self.errors = 0
        self.began = self.last = time.perf_counter()
        self._left = requests + discard if requests else sys.maxsize
        self._seconds = seconds
        self._discard = discard

    @property
    def over(self) -> bool:
        """Nothing more is to be sent."""
        return self._left <= 0 or bool(
            self._seconds and not self._discard and self.last - self.began >= self._seconds
        )

    def sent(self) -> float:
        """One more request goes out; returns now."""
        self._left -= 1
        return time.perf_counter()

    def answered(self, sent: float, status: int, start: str) -> None:
        now = self.last = time.perf_counter()
        if self._discard:
            self._discard -= 1
            self.began = now
        elif status == 200:
            self.latencies.append(now - sent)
            self.starts[start] = self.starts.get(start, 0) + 1
        else:
            self.errors += 1

    def give_up(self) -> None:
        self._left = 0

    def failed(self) -> None:
        self.last = time.perf_counter()
        self.errors += 1

    def result(self) -> dict[str, Any]:
        ordered = sorted(self.latencies)
        count, elapsed = len(ordered), self.last - self.began
        shares = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}
        return {
            "clients": self.clients,
            "n": count,
            "errors": self.errors,
            "seconds": elapsed,
            "requests_per_s": count / elapsed if elapsed > 0 else 0.0,
            "mean_ms": sum(ordered) / count * 1e3 if count else None,
            **{key: quantile(ordered, share) * 1e3 if count else None for key, share in shares.items()},
            "starts": self.starts,
        }


class Connection(asyncio.Protocol):
    """A client. `ended` is set when it has nothing more to send or its connection is gone."""

    def __init__(self, load: Load) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._load = load
        self._buffer = b""
        self._sent = 0.0
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's transports are not asyncio's subclasses

    def go(self) -> None:
        """Send the next request, or end."""
        if self._load.over:
            self._transport.close()
            return
        self._waiting = True
        self._sent = self._load.sent()
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        try:
            reply = parse(data)
        except ValueError:
            self._transport.abort()
            return
        if reply is None:
            self._buffer = data
            return
        self._buffer = b""
        self._waiting = False
        self._load.answered(self._sent, reply.status, reply.start)
        if reply.keep:
            self.go()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._load.failed()
        if not self.ended.done():
            self.ended.set_result(None)

    def abort(self) -> None:
        self._transport.abort()


class Clients:
    """All connections of one load."""

    def __init__(self, load: Load, host: str, port: int) -> None:
        self._load = load
        self._where = host, port
        self._open: set[Connection] = set()
        self._timer: asyncio.TimerHandle

    async def run(self) -> dict[str, Any]:
        """The load, to its end. Raises OSError when nobody listens there at the beginning."""
        first = [await self._connect() for _ in range(self._load.clients)]
        self._load.began = self._load.last = time.perf_counter()
        self._watch()
        await asyncio.gather(*map(self._client, first))
        self._timer.cancel()
        return self._load.result()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self._load), *self._where)
        self._open.add(connection)
        return connection

    async def _client(self, connection: Connection) -> None:
        """Use this connection, and after it others for as long as there is something to send."""
        while True:
            connection.go()
            await connection.ended
            self._open.discard(connection)
            if self._load.over:
                return
            try:
                connection = await self._connect()
            except OSError:
                self._load.failed()
                return

    def _watch(self) -> None:
        """End a run that gets no answers any more."""
        left = STALL_S - (time.perf_counter() - self._load.last)
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._watch)
            return
        self._load.give_up()
        for connection in list(self._open):
            connection.abort()


def generate(
    url: str,
    *,
    clients: int,
    requests: int = 0,
    seconds: float = 0.0,
    discard: int = 0,
    body: bytes = b"{}",
    content_type: str = "application/json",
) -> dict[str, Any]:
    """One load in this process: `requests` or `seconds` ends it, whichever is above 0 (and comes first). Raises
    Unavailable."""
    import uvloop

    host, port, request = render(url, body, content_type)
    load = Load(request, clients, requests=requests, seconds=seconds, discard=discard)
    gc.collect()
    gc.disable()  # its pauses would be the platform's p99
    try:
        return uvloop.run(Clients(load, host, port).run())
    except OSError as error:
        raise Unavailable(f"no server answers at {url} ({error})", hint="start one first") from None
    finally:
        gc.enable()


def spawn(url: str, **options: float | bytes | str) -> dict[str, Any]:
    """`generate` in a process of its own, with the same options. Raises what it raised."""
    command = [sys.executable, "-m", "instainfer.bench.loadgen", url]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", value.decode() if isinstance(value, bytes) else str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"the load generator failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m instainfer.bench.loadgen", description="Send requests, measure."
    )
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=1, help="connections, each with one request at a time [1]")
    parser.add_argument("--requests", type=int, default=0, help="end after so many")
    parser.add_argument("--seconds", type=float, default=0.0, help="end after so long")
    parser.add_argument("--discard", type=int, default=0, help="answers at the beginning that are not counted [0]")
    parser.add_argument("--body", default="{}", help="of every request [{}]")
    parser.add_argument("--content-type", default="application/json")
    given = parser.parse_args(args)
    if given.clients < 1 or given.requests < 0 or given.discard < 0 or not (given.requests or given.seconds > 0):
        parser.error("--requests or --seconds above 0 is needed, and at least one client")
    try:
        result = generate(**{**vars(given), "body": given.body.encode()})
    except InstaInferError as error:
        print(f"{error.message}; {error.hint}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
