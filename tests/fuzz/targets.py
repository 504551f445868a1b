"""What reads bytes of strangers, as functions of bytes. Each returns, and swallows what its parser may raise: what
comes out of one is a bug. `TARGETS` has good inputs to start from, and those that were bugs once.

`test_fuzz.py` runs them under hypothesis, `with_atheris.py` under a fuzzer that follows coverage.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import uvicorn
from uvicorn.server import ServerState

from instainfer import packages, telemetry, wire
from instainfer.agent import base
from instainfer.books import Ticket
from instainfer.core import events as ev
from instainfer.errors import BadInput, BadSettings, InstaInferError, NotFound
from instainfer.gateway import actions, inference, openwhisk
from instainfer.gateway.access import OWNER, Principal
from instainfer.gateway.direct import Protocol
from instainfer.gateway.invoke import Invoke
from instainfer.model import FunctionSpec
from instainfer.runtime import frames, payloads, tensors
from instainfer.sandbox import egress
from instainfer.settings import settings_from

SMALL = 1 << 16


def split(data: bytes) -> list[bytes]:
    """In pieces, as a socket gives them: the first byte says where."""
    cut = data[0] % (len(data) + 1) if data else 0
    return [data[:cut], data[cut:]]


def frames_of_an_instance(data: bytes) -> None:
    decoder = frames.Decoder(SMALL)
    try:
        for piece in split(data):
            for kind, request, meta, body in decoder.feed(piece):
                assert len(body) <= SMALL
                assert frames.Decoder().feed(frames.encode(kind, request, meta, body))
    except ValueError:
        pass


def frames_of_the_platform(data: bytes) -> None:
    if len(data) >= 4 and int.from_bytes(data[:4], "big") > SMALL:
        return  # the platform is trusted with sizes
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data[:SMALL])
        ours.shutdown(socket.SHUT_WR)
        try:
            while frames.read_frame(theirs) is not None:
                pass
        except ValueError:
            pass


def messages_of_an_agent(data: bytes) -> None:
    for union in (base.Report, base.Command):
        decoder: wire.Decoder[Any] = wire.Decoder(union, SMALL)
        try:
            for piece in split(data):
                decoder.feed(piece)
        except BadInput:
            pass


def package(data: bytes) -> None:
    try:
        found = packages.open_package(data, limit_files=100, limit_bytes=SMALL)
    except InstaInferError:
        return
    with contextlib.suppress(InstaInferError):
        settings = packages.read_settings(found)
        packages.find_entry(found, settings)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "in" / "it"
        found.extract(target)
        assert [path.name for path in Path(folder).iterdir()] == ["in"]
        assert [path.name for path in target.parent.iterdir()] == ["it"]
        for path in target.rglob("*"):
            assert path.resolve().is_relative_to(target.resolve())


def function_toml(data: bytes) -> None:
    with contextlib.suppress(BadSettings):
        settings_from(packages._toml(data, "it"), "it")


def python_source(data: bytes) -> None:
    with contextlib.suppress(InstaInferError):
        packages._defined(data.decode("utf-8", "replace"), "main.py", "f")


def request_of_tensors(data: bytes) -> None:
    kind, _, body = data.partition(b"\n")
    try:
        request = tensors.Request(kind.decode("latin-1"), body)
        request.lists()
        request.encode(request.arrays(), SMALL)
    except (payloads.BadPayload, payloads.BadAnswer):
        pass


def payload(data: bytes) -> None:
    kind, _, body = data.partition(b"\n")
    for read in (payloads.decode, payloads.decode_line):
        with contextlib.suppress(payloads.BadPayload):
            read(kind.decode("latin-1"), body, {})


def headers_of_inference(data: bytes) -> None:
    name, _, value = data.partition(b":")
    with contextlib.suppress(BadInput):
        inference._wishes([(name, value), (inference.HEADER, value), (b"content-encoding", name)])
    with contextlib.suppress(BadInput):
        inference._wish(data)
    assert inference._header_of(data.decode("latin-1"), 10) in (None, *range(11))


def traceparent(data: bytes) -> None:
    found = telemetry.parent(data.decode("latin-1"))
    assert found is None or all(part >= 0 for part in found)


def action(data: bytes) -> None:
    """An OpenWhisk action that is put."""
    with contextlib.suppress(InstaInferError):
        wanted = openwhisk._object(data)
        made, settings = actions.package(wanted, None, None, namespace="n", name="f", api_host="")
        settings_from(settings, "it")
        packages.open_package(made)


def request_to_the_proxy(data: bytes) -> None:
    try:
        host, port, first = egress.target(data)
    except egress.Refused as refused:
        assert egress.answer(refused.status, str(refused))
        return
    assert 0 < port < 65536
    assert "\r" not in host and first.count(b"\r\n\r\n") <= 1
    egress.Rules(["*.a:1"]).permit(host, port)
    egress.Rules(["*"]).reachable(host, frozenset())


class _Hot:
    """An `Invoke` that answers every request with itself, or not at all."""

    max_body = 1000
    traced = True
    access = None

    def __init__(self) -> None:
        self.controller = self
        self.begun = 0

    def find(self, who: Principal, path: str, size: int) -> FunctionSpec:
        if size > self.max_body or "no" in path:
            raise NotFound("nothing here")
        return cast(FunctionSpec, None)

    def submit(
        self, spec: FunctionSpec, content_type: str, body: bytes, done: Callable[[Ticket], None], **_: str
    ) -> Ticket:
        ticket = Ticket(1, spec, content_type, body, done)
        self.begun += 1
        done(ticket)
        return ticket

    def response(self, ticket: Ticket) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        return 200, [(b"content-length", b"%d" % len(ticket.body))], ticket.body

    def cancel(self, ticket: Ticket) -> None: ...


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed or not data
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None:
        self.closed = True


async def _application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


CONFIG = uvicorn.Config(_application, http="httptools", ws="none", lifespan="off", log_config=None)
CONFIG.load()


def http(data: bytes) -> None:
    """A connection of the server's, on both of its ways."""

    async def talk() -> None:
        hot, transport, state = _Hot(), _Transport(), ServerState()
        protocol = Protocol(config=CONFIG, server_state=state, app_state={}, hot=cast(Invoke, hot), asks=False)
        protocol.connection_made(transport)
        for piece in split(data):
            if not transport.closed:
                protocol.data_received(piece)
        while state.tasks:
            await asyncio.wait(state.tasks)
        protocol.connection_lost(None)
        assert not transport.written or transport.written.startswith(b"HTTP/1.1 ")
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(talk())


def _zip(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in files.items():
            out.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return made.getvalue()


_CALL = frames.encode(frames.CALL, 7, {"type": "application/json", "activation": "a"}, b'{"n": 1}')
_TENSORS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}]}
_HEAD = json.dumps(_TENSORS).encode()
_POST = b"POST /f/n/f HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_EXEC = {"kind": "python:3", "code": "def main(args):\n    return args\n"}

Target = Callable[[bytes], None]
TARGETS: dict[Target, list[bytes]] = {
    frames_of_an_instance: [_CALL, _CALL + _CALL, frames.encode(frames.STOP)],
    frames_of_the_platform: [_CALL, frames.encode(frames.GO, 0, {"a": [1]})],
    messages_of_an_agent: [
        wire.encode(base.Missing(revision="n/f@1:00")),
        wire.encode(base.TaskFailed(token=1, problem={"a": [{}]})) + wire.BEAT,
        wire.encode(ev.ContainerReady(container="c1", seconds=0.5)),
        wire.HEAD.pack(30_000 + len(deep := wire.encode(base.TaskFailed(token=1, problem={"a": 1}))[4:-1]))
        + deep
        + b"\x91" * 30_000,
    ],
    package: [
        _zip({"main.py": b"def handler(event):\n    return event\n", "function.toml": b'memory = "64MB"\n'}),
        _zip({"a/b.txt": b"x" * 1000, "main.py": b"import a\n"}),
    ],
    function_toml: [b'entry = "main:f"\nnetwork = ["a.b:1"]\n[env]\nA = "b"\n', b"params = " + b"[" * 5000],
    python_source: [b"def handler(event):\n    return event\n", b"x = " + b"(" * 500, b"-" * 20_000 + b"1", b"\0"],
    request_of_tensors: [
        b"%s; header=%d\n" % (payloads.TENSORS.encode(), len(_HEAD)) + _HEAD + b"\0" * 8,
        b"%s\n" % payloads.TENSORS.encode() + b'{"inputs": [' + b"[" * 5000,
    ],
    payload: [
        b'application/json\n{"n": 1}',
        b"text/plain; charset=utf-16\nab",
        b"x/y\n\xff",
        b"json\n" + b"[" * 9999,
    ],
    headers_of_inference: [b"Inference-Header-Content-Length: 12", b'{"parameters": {}}', b"[" * 5000],
    traceparent: [b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"],
    action: [
        msgspec.json.encode({"exec": _EXEC, "parameters": [{"key": "a", "value": 1}], "limits": {"memory": 256}}),
        msgspec.json.encode({"exec": {**_EXEC, "binary": True, "code": "UEsFBgAAAAAAAAAAAAAAAAAAAAAAAA=="}}),
        b'{"exec": ' + b"[" * 5000,
        b'{"\x80": 1}',
    ],
    request_to_the_proxy: [
        b"CONNECT a.example:443 HTTP/1.1\r\n\r\n",
        b"GET http://[::1]:80/x HTTP/1.0\r\nHost: b\r\n\r\n",
    ],
    http: [
        _POST,
        _POST + _POST,
        b"POST /f/n/f HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"POST /f/n/f HTTP/1.1\r\nHost: h\r\nPrefer: wait\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n1",
    ],
}
__all__ = ["OWNER", "TARGETS", "Target"]
