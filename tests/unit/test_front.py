"""The gateway, with servers that do what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from instainfer.errors import BadSettings
from instainfer.front.forward import Forward, Protocol
from instainfer.front.hold import Hold
from instainfer.front.line import Line, Origin
from instainfer.front.servers import Server, Servers
from instainfer.listening import bind, serving, url

App = Callable[[Any, Any, Any], Awaitable[None]]
PATIENCE_S = 30.0


def alive(number: int = 0, *, serves: str = "yes", keys: str = "none") -> list[tuple[bytes, bytes]]:
    return [
        (b"x-instainfer-serving", serves.encode()),
        (b"x-instainfer-number", b"%d" % number),
        (b"x-instainfer-keys", keys.encode()),
        (b"content-length", b"0"),
    ]


async def answer(send: Any, status: int, headers: list[tuple[bytes, bytes]], *parts: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def body_of(receive: Any) -> bytes:
    found: bytes = b""
    while True:
        message = await receive()
        found += message.get("body", b"")
        if not message.get("more_body", False):
            return found


@contextlib.asynccontextmanager
async def server(app: App, headers: list[tuple[bytes, bytes]] | None = None, port: int = 0) -> AsyncIterator[str]:
    """Its URL; `app` gets all but /livez."""
    told = alive() if headers is None else headers

    async def route(scope: Any, receive: Any, send: Any) -> None:
        await (answer(send, 200, told) if scope["path"] == "/livez" else app(scope, receive, send))

    listening = bind("127.0.0.1", port)
    async with serving(route, listening, end_s=0.0):
        yield url(listening)
    listening.close()


class Gateway:
    def __init__(self, servers: Servers, hold: Hold, forward: Forward, http: httpx.AsyncClient) -> None:
        self.servers, self.hold, self.forward, self.http = servers, hold, forward, http


@contextlib.asynccontextmanager
async def gateway(
    *urls: str, public: bool = False, most: int = 100, memory: int = 1 << 24, seconds: float = PATIENCE_S
) -> AsyncIterator[Gateway]:
    servers = Servers([Server(one) for one in urls], public=public, hello=lambda: {"name": "g"})
    hold = Hold(servers, most=most, memory=memory, seconds=seconds)
    forward = Forward(servers, hold)
    listening = bind("127.0.0.1", 0)
    servers.start()
    try:
        async with (
            serving(forward, listening, http=Protocol, end_s=0.0, date_header=False),
            httpx.AsyncClient(base_url=url(listening), timeout=PATIENCE_S, trust_env=False, verify=False) as http,
        ):
            yield Gateway(servers, hold, forward, http)
    finally:
        await servers.aclose()
        listening.close()
        assert hold.kept == 0 and hold.held == 0


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 # it looks at what tells nobody of its changes
            await asyncio.sleep(0.005)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(work: Awaitable[None]) -> None:
    async def whole() -> None:
        await work

    asyncio.run(whole())
    gc.collect()


# ---- what passes through -----------------------------------------------------------------------------------


def test_a_request_and_its_answer_pass_unchanged_but_for_what_is_of_one_connection() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(
            (scope["method"], scope["raw_path"], scope["query_string"], scope["headers"], await body_of(receive))
        )
        headers = [(b"x-answer", b"\xe4"), (b"connection", b"x-hop"), (b"content-length", b"3")]
        await answer(send, 418, headers, b"abc")

    async def work() -> None:
        async with server(app) as there, gateway(there) as g:
            said = {
                "authorization": "Bearer k",
                "traceparent": "00-1-2-01",
                "connection": "x-mine",
                "x-mine": "1",
                "x-forwarded-for": "10.0.0.1",
                "host": "models.example",
                "content-type": "application/octet-stream",
            }
            got = await g.http.post("/f/a%20b/c?d=%2F&e", content=b"\0\xff", headers=said)
            assert (got.status_code, got.content) == (418, b"abc")
            assert got.headers["x-answer"] == "ä"
            assert "date" in got.headers and len(got.headers.get_list("date")) == 1
        method, path, query, headers, body = seen[0]
        assert (method, path, query, body) == ("POST", b"/f/a%20b/c", b"d=%2F&e", b"\0\xff")
        told = dict(headers)
        assert told[b"authorization"] == b"Bearer k" and told[b"traceparent"] == b"00-1-2-01"
        assert told[b"host"] == b"models.example" and told[b"x-forwarded-for"] == b"10.0.0.1, 127.0.0.1"
        assert b"x-mine" not in told and b"connection" not in told
        assert told[b"content-length"] == b"2" and len(headers) == len(told)

    run(work())


def test_bodies_larger_than_any_buffer_pass_in_both_directions() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200, [(b"content-type", b"x/y")], await body_of(receive))

    async def work() -> None:
        data = random.Random(1).randbytes(3_000_000)

        async def parts() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 70_000):
                yield data[at : at + 70_000]

        async with server(app) as there, gateway(there, memory=1 << 19) as g:  # which cannot keep it
            for chunked in (False, True, False, True):  # and again, on what is kept of connections
                got = await g.http.post("/f/a/b", content=parts() if chunked else data)
                assert got.content == data
            assert g.hold.kept == 0

    run(work())


def test_parts_pass_as_they_come_and_head_has_no_body() -> None:
    async def work() -> None:
        go = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["method"] == "HEAD":
                await answer(send, 200, [(b"content-length", b"7")])
                return
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
            )
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await go.wait()
            await send({"type": "http.response.body", "body": b"last"})

        async with server(app) as there, gateway(there) as g:
            async with g.http.stream("POST", "/f/a/b") as got:
                parts = got.aiter_raw()
                assert await anext(parts) == b"first"
                go.set()
                assert b"".join([one async for one in parts]) == b"last"
            head = await g.http.head("/x")
            assert head.headers["content-length"] == "7"
            assert (await g.http.get("/livez")).json() == {"status": "alive"}

    run(work())


def test_a_caller_who_leaves_takes_his_request_with_him() -> None:
    async def work() -> None:
        came, left = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await body_of(receive)
            came.set()
            assert (await receive())["type"] == "http.disconnect"
            left.set()

        async with server(app) as there, gateway(there) as g:
            calling = asyncio.create_task(g.http.post("/f/a/b", content=b"x"))
            async with asyncio.timeout(PATIENCE_S):
                await came.wait()
                calling.cancel()
                await left.wait()

    run(work())


def test_an_answer_waits_with_its_sender_for_a_caller_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 30_000_000  # more than the kernel's buffers of all connections on the way take

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200, [(b"content-length", b"%d" % size)], *[bytes(100_000)] * (size // 100_000))

    lines: list[Line] = []
    made = Line.connection_made

    def connection_made(self: Line, transport: Any) -> None:
        lines.append(self)
        made(self, transport)

    monkeypatch.setattr(Line, "connection_made", connection_made)

    async def work() -> None:
        async with server(app) as there, gateway(there) as g:
            reader, writer = await asyncio.open_connection(
                g.http.base_url.host, g.http.base_url.port, limit=1 << 16
            )
            writer.write(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: any(line._paused for line in lines))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"200 OK" in head
            assert len(await reader.readexactly(size)) == size
            writer.close()

    run(work())


# ---- who gets it -------------------------------------------------------------------------------------------


def test_the_latest_server_gets_it_and_one_that_stops_does_not() -> None:
    async def says(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200, [], scope["server"][1].__repr__().encode())

    async def work() -> None:
        async with (
            server(says, alive(7)) as first,
            server(says, alive(9, serves="no")) as stops,
            server(says, alive(8)) as second,
            gateway(first, stops, second) as g,
        ):
            await until(lambda: g.servers.serving and g.servers.serving.number == 8)
            assert second.endswith((await g.http.get("/")).text)

    run(work())


def test_an_earlier_server_gets_nothing_when_the_latest_goes() -> None:
    async def says(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200, [], b"x")

    async def work() -> None:
        async with (
            server(says, alive(7)) as first,
            server(says, alive(8)) as second,
            gateway(first, second, seconds=0.2) as g,
        ):
            await until(lambda: g.servers.serving and g.servers.serving.number == 8)
            g.servers.all.pop()
            g.servers.doubt(g.servers.serving or g.servers.all[0])
            refused = await g.http.get("/")
            assert refused.status_code == 503 and refused.headers["x-instainfer-again"] == "safe"

    run(work())


def test_a_gateway_that_others_reach_gives_nothing_to_a_server_without_keys() -> None:
    async def says(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200, [], b"x")

    async def work() -> None:
        async with server(says) as open_to_all, gateway(open_to_all, public=True, seconds=0.1) as g:
            assert (await g.http.get("/")).status_code == 503
            assert "asks for no key" in g.servers.all[0].problem
        async with server(says, alive(keys="asked")) as guarded, gateway(guarded, public=True) as g:
            assert (await g.http.get("/")).status_code == 200

    run(work())


@pytest.mark.parametrize("address", ["ftp://x", "http://", "http://h:0", "http://h:99999", "http://h/path", "x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadSettings):
        Origin(address)


# ---- what waits --------------------------------------------------------------------------------------------


def test_requests_wait_for_a_server_as_many_as_there_is_room_for() -> None:
    async def says(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200, [], await body_of(receive))

    async def work() -> None:
        port = free_port()
        async with gateway(f"http://127.0.0.1:{port}", most=3) as g:
            waiting = [asyncio.create_task(g.http.post("/f/a/b", content=b"%d" % n)) for n in range(3)]
            await until(lambda: g.hold.held == 3)
            full = await g.http.post("/f/a/b", content=b"x")
            assert full.status_code == 503 and full.headers["retry-after"] == "5"
            assert full.json()["type"] == "urn:instainfer:error:no_server"
            whisk = await g.http.post("/api/v1/namespaces/_/actions/x")
            assert (whisk.status_code, whisk.json()["code"]) == (503, "no_server")
            v2 = await g.http.post("/v2/models/x/infer", content=b"{}")
            assert v2.status_code == 503 and set(v2.json()) == {"error"} and "retry-after" in v2.headers
            assert (await g.http.get("/readyz")).status_code == 503  # at once
            waiting[2].cancel()
            await until(lambda: g.hold.held == 2)
            async with server(says, port=port):
                assert [(await one).text for one in waiting[:2]] == ["0", "1"]

    run(work())


def test_a_wait_ends_and_bodies_have_their_bounds() -> None:
    async def work() -> None:
        nowhere = f"http://127.0.0.1:{free_port()}"
        async with gateway(nowhere, seconds=0.05) as g:
            assert "waited" in (await g.http.post("/f/a/b")).json()["detail"]
        async with gateway(nowhere, memory=200_000) as g:
            assert "too large" in (await g.http.post("/f/a/b", content=bytes(1_000_000))).json()["detail"]
            waiting = asyncio.create_task(g.http.post("/f/a/b", content=bytes(190_000)))
            await until(lambda: g.hold.held == 1)
            assert "MB wait" in (await g.http.post("/f/a/b", content=bytes(50_000))).json()["detail"]
            waiting.cancel()
            await until(lambda: g.hold.held == 0)

    run(work())


# ---- what is sent again ------------------------------------------------------------------------------------


async def raw(reply: Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]) -> Any:
    """A server that answers /livez, and does with a connection what it is told for anything else."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /livez"):
                    lines = b"".join(b"%b: %b\r\n" % one for one in alive())
                    writer.write(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n")
                else:
                    await reply(reader, writer, head)

    return await asyncio.start_server(serve, "127.0.0.1", 0)


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


KINDS: list[tuple[str, str, dict[str, str], bool]] = [
    ("POST", "/f/a/b", {}, False),
    ("POST", "/f/a/b", {"idempotency-key": "k"}, True),
    ("POST", "/f/a/b", {"prefer": "wait=5, Respond-Async"}, True),
    ("GET", "/instainfer/v1/status", {}, True),
    ("DELETE", "/instainfer/v1/functions/a/b", {}, False),
    ("POST", "/v2/models/b/infer", {"idempotency-key": "k"}, False),  # which means nothing there
    ("POST", "/f/a/b", {"connection": "idempotency-key", "idempotency-key": "k"}, False),
]


def test_what_was_read_and_not_answered_is_sent_again_only_if_it_may_run_twice() -> None:
    heads: list[bytes] = []

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        heads.append(head)
        if len(heads) == 1:
            writer.close()  # it has read all there was: an end of stream
        else:
            writer.write(OK)

    async def work() -> None:
        there = await raw(reply)
        async with there, gateway(url(there.sockets[0])) as g:
            for method, path, headers, again in KINDS:
                heads.clear()
                g.forward.sent_again = g.forward.interrupted = 0
                got = await g.http.request(method, path, headers=headers)
                assert g.forward.sent_again == again and g.forward.interrupted == (not again)
                if again:
                    assert got.text == "ok" and heads[0] == heads[1]  # with the key that the gateway made, too
                    assert b"idempotency-key" in heads[0] or method == "GET"
                else:
                    assert got.status_code == 502 and "may have been begun" in got.text
                    assert "x-instainfer-again" not in got.headers
        there.close()

    run(work())


def test_what_was_not_read_is_sent_again() -> None:
    tries: list[bytes] = []

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        tries.append(head)
        if len(tries) == 1:  # its body is never read
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            await reader.readexactly(3)
            writer.write(OK)

    async def work() -> None:
        there = await raw(reply)
        async with there, gateway(url(there.sockets[0])) as g:
            assert (await g.http.post("/f/a/b", content=b"abc")).text == "ok"
            assert len(tries) == 2 and g.forward.sent_again == 1
        there.close()

    run(work())


def test_what_came_only_in_part_is_sent_again_whole() -> None:
    tries: list[bytes] = []

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        tries.append(head)
        if len(tries) == 1:
            await reader.readexactly(1000)
            writer.close()
        else:
            tries.append(await reader.readexactly(2000))
            writer.write(OK)

    async def work() -> None:
        there = await raw(reply)
        go = asyncio.Event()

        async def parts() -> AsyncIterator[bytes]:
            yield b"a" * 1000
            await go.wait()
            yield b"b" * 1000

        async with there, gateway(url(there.sockets[0])) as g:
            calling = asyncio.create_task(g.http.post("/f/a/b", content=parts()))
            await until(lambda: g.forward.sent_again)
            go.set()
            assert (await calling).text == "ok"
            assert b"transfer-encoding: chunked" in tries[0] and b"content-length: 2000" in tries[1]
            assert tries[2] == b"a" * 1000 + b"b" * 1000
        there.close()

    run(work())


def test_a_server_that_stops_says_that_it_may_be_sent_again() -> None:
    tries: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tries.append(await body_of(receive))
        if len(tries) == 1:
            await answer(send, 503, [(b"x-instainfer-again", b"safe")], b"later")
        else:
            await answer(send, 200, [], b"now")

    async def work() -> None:
        async with server(app) as there, gateway(there) as g:
            got = await g.http.post("/f/a/b", content=b"x" * 1000)
            assert (got.status_code, got.text, tries) == (200, "now", [b"x" * 1000] * 2)

    run(work())


def test_an_answer_that_breaks_off_is_not_taken_for_whole() -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        kind = b"text/plain" if b"plain" in head else b"text/event-stream"
        start = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
        writer.write(start + b"3\r\nabc\r\n")
        writer.close()

    async def work() -> None:
        there = await raw(reply)
        async with there, gateway(url(there.sockets[0])) as g:
            with pytest.raises(httpx.RemoteProtocolError):
                await g.http.post("/f/a/plain", headers={"idempotency-key": "k"})
            got = await g.http.post("/f/a/events")
            assert got.text.startswith("abcevent: error\ndata: {")
            assert "urn:instainfer:error:interrupted" in got.text
        there.close()

    run(work())


def test_what_a_superseded_server_never_answers_goes_to_the_next_if_it_may_run_twice() -> None:
    async def work() -> None:
        heard: list[str] = []

        async def never(scope: Any, receive: Any, send: Any) -> None:
            heard.append(scope["path"])
            await body_of(receive)
            await receive()  # until the gateway goes away

        async def says(scope: Any, receive: Any, send: Any) -> None:
            await answer(send, 200, [], await body_of(receive))

        port = free_port()
        async with server(never, alive(1)) as first, gateway(first, f"http://127.0.0.1:{port}") as g:
            keyed = asyncio.create_task(g.http.post("/f/a/b", content=b"x", headers={"idempotency-key": "k"}))
            plain = asyncio.create_task(g.http.post("/f/a/c", content=b"y"))
            await until(lambda: len(heard) == 2)
            async with server(says, alive(2), port):
                assert (await keyed).text == "x"
                assert not plain.done() and (await g.http.post("/f/a/c", content=b"z")).text == "z"
                plain.cancel()

    run(work())


@pytest.mark.slow
def test_servers_that_are_killed_begin_nothing_twice_and_no_caller_is_refused(tmp_path: Path) -> None:
    """Kernel, uvicorn and process ends as they are: one server after the other on one port, killed under load."""
    notes, port = tmp_path / "notes", free_port()
    script = Path(__file__).with_name("front_server.py")

    async def begin(number: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, str(script), str(port), str(notes), str(number)
        )

    async def work() -> None:
        failed: list[tuple[str, Any]] = []
        answered = 0
        stop = False
        async with gateway(f"http://127.0.0.1:{port}") as g:

            async def client(who: int) -> None:
                nonlocal answered
                n = 0
                headers = {"idempotency-key": "k"} if who == 0 else {}
                while not stop:
                    n += 1
                    content = json.dumps({"n": f"{who}-{n}", "more": "x" * (100_000 if who == 1 else 10)})
                    got = await g.http.post("/f/a/b", content=content, headers=headers)
                    if got.status_code == 200:
                        assert got.json()["n"] == f"{who}-{n}"
                        answered += 1
                    else:
                        failed.append((f"{who}-{n}", got.json()["type"]))

            async def further(count: int) -> None:
                more = answered + count
                await until(lambda: answered >= more or any(one.done() for one in clients))

            process = await begin(1)
            clients = [asyncio.create_task(client(who)) for who in range(8)]
            for number in (2, 3):
                await further(100)
                process.kill()
                await process.wait()
                process = await begin(number)
            await further(100)
            stop = True
            await asyncio.gather(*clients)
            process.kill()
            await process.wait()
        begun: dict[str, int] = {}
        for line in notes.read_text().splitlines():
            _, n, keyed = line.split()
            begun[n] = begun.get(n, 0) + 1
            assert begun[n] == 1 or keyed == "True", n
        for n, kind in failed:  # only what had been begun, and is no keyed one
            assert kind == "urn:instainfer:error:interrupted" and begun.get(n, 0) <= 1 and not n.startswith("0-")

    run(work())
