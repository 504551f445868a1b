"""Who may speak to a server, where it listens, and when it refuses to start."""

from __future__ import annotations

import socket
import stat
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from instainfer.client import PREFIX, Client
from instainfer.errors import NotAllowed
from tests.live.server_helpers import ECHO, Process, Server, calls, eventually, refused


def test_admin_socket(server: Server) -> None:
    path = server.data / "admin.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Client(data_dir=server.data) as local:
        assert local.status()["version"]


@pytest.mark.slow
def test_api_key(tmp_path: Path) -> None:
    with Server(tmp_path, "--memory", "1GB", variables={"INSTAINFER_SERVER__API_KEY": "a secret"}) as locked:
        locked.deploy("n", "f", ECHO)
        assert locked.result("n", "f", {"a": 1}) == {"a": 1}
        with httpx.Client(base_url=locked.url, trust_env=False) as anyone:
            assert anyone.get("/livez").status_code == 200
            assert anyone.get("/healthz").status_code == 200
            requests: list[tuple[str, str, dict[str, Any]]] = [
                ("POST", "/f/n/f", {"json": {}}),
                ("GET", "/metrics", {}),
                ("GET", "/openapi.json", {}),
                ("GET", f"{PREFIX}/status", {}),
                ("DELETE", f"{PREFIX}/functions/n/f", {}),
            ]
            for method, path, options in requests:
                for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "a secret"}):
                    response = anyone.request(method, path, headers=headers, **options)
                    assert response.status_code == 401, (path, headers)
                    assert response.json()["type"] == "urn:instainfer:error:not_allowed"
                    assert response.json()["hint"]
        with Client(locked.url, "wrong") as client, pytest.raises(NotAllowed):
            client.status()
        with Client(data_dir=locked.data) as local:
            assert local.function("n", "f")["version"] == 1


@pytest.mark.slow
def test_a_second_server_is_refused(server: Server, tmp_path: Path) -> None:
    said = refused(server.directory, "--port", "0")
    assert f"another server uses {server.data}" in said
    assert "hint:" in said
    port = server.url.rpartition(":")[2]
    said = refused(tmp_path, "--port", port)
    assert f"127.0.0.1:{port} cannot be listened on" in said
    assert "--port" in said
    assert server.http.get("/healthz").status_code == 200


@pytest.mark.slow
def test_reachable_without_a_key_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, "--port", "0", "--host", "0.0.0.0")
    assert "there is no key" in said
    assert "INSTAINFER_SERVER__API_KEY" in said


@pytest.mark.slow
def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 20) / ("deep" * 20)
    said = refused(tmp_path, "--port", "0", "--data-dir", str(deep))
    assert "too long" in said and "--data-dir" in said
    assert not deep.exists()


@pytest.mark.slow
def test_ipv6(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with Server(tmp_path, "--host", "::1", "--memory", "1GB") as server:
        assert server.url.startswith("http://[::1]:")
        assert server.client.status()["version"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"INSTAINFER_SERVER__COLOUR": "red"}, "colour"),
        ({"INSTAINFER_LIMITS__LOAD_S": "soon"}, "load_s"),
        ({"INSTAINFER_POLICY__MODE": "psychic"}, "psychic"),
        ({"INSTAINFER_POLICY__KEEP_ALIVE": "forever"}, "forever"),
        ({"INSTAINFER_SANDBOX__KIND": "castle"}, "castle"),
    ],
)
def test_impossible_settings(tmp_path: Path, variables: dict[str, str], said: str) -> None:
    flags = () if "INSTAINFER_SANDBOX__KIND" not in variables else ("--sandbox", "castle")
    text = refused(tmp_path, "--port", "0", *flags, **variables)
    assert said in text
    assert "hint:" in text


@pytest.mark.slow
def test_slow_and_silent_clients_are_let_go(tmp_path: Path) -> None:
    """They hold nothing that others need, and not their connection either; whoever only waits keeps its own."""
    variables = {"INSTAINFER_LIMITS__READ_S": "0.4"}
    with Server(tmp_path, "--memory", "1GB", variables=variables) as server:
        server.deploy("n", "f", ECHO)
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        beginnings = (
            b"",
            b"POST /f/n/f HT",
            b"POST /f/n/f HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{",
            b"GET /livez HTTP/1.1\r\nhost: localhost\r\n",
        )
        silent = [socket.create_connection(address, 20) for _ in beginnings]
        for client, beginning in zip(silent, beginnings, strict=True):
            client.sendall(beginning)
        assert server.result("n", "f", {"a": 1}) == {"a": 1}
        for client in silent:
            assert client.recv(1000) == b""  # closed by the server
            client.close()
        assert server.result("n", "f", {"a": 2}) == {"a": 2}
        # one that takes nothing of its answer, which waits for it in memory
        server.deploy("n", "large", "def handler(event):\n    return b'x' * 12_000_000\n")
        assert len(server.call("n", "large").content) == 12_000_000
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(address)
            port = deaf.getsockname()[1]
            deaf.sendall(b"POST /f/n/large HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")
            eventually(lambda: port in answering(server))
            eventually(lambda: port not in answering(server))
        assert server.result("n", "f", {"a": 3}) == {"a": 3}


def answering(server: Server) -> set[int]:
    """Ports of the clients that it is connected with."""
    return {one.raddr.port for one in Process(server.process.pid).net_connections("tcp") if one.raddr}


ENDLESS = [
    b"POST /f/n/f HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 100_000,
    b"GET /livez HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 1_000_000,
    b"GET /" + b"x" * 1_000_000,
    b"POST /f/n/f HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 100_000,
]


@pytest.mark.parametrize("head", ENDLESS, ids=["headers", "header", "address", "trailers"])
def test_a_head_without_end_is_not_kept(server: Server, head: bytes) -> None:
    where, _, port = server.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((where, int(port)), 20) as client:
        try:
            client.sendall(head)
            said = client.recv(1 << 16)
        except ConnectionError:  # it was closed while we spoke
            said = b""
    assert said == b"" or said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ")), said
    assert server.http.get("/livez").status_code == 200
    assert "Traceback" not in server.errors()


def test_several_requests_at_once_are_answered_in_order(server: Server, ns: str) -> None:
    """A client need not wait, and what comes in one piece is no long head."""
    server.deploy(ns, "f", ECHO)
    where, _, port = server.url.removeprefix("http://").rpartition(":")
    many = 3000
    one = f"POST /f/{ns}/f HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n17".encode()
    with socket.create_connection((where, int(port)), 20) as client:
        sender = threading.Thread(target=client.sendall, args=(one * many,))
        sender.start()
        said = b""
        while said.count(b"HTTP/1.1 200") < many and (more := client.recv(1 << 20)):
            said += more
        sender.join()
    assert said.count(b"HTTP/1.1 200") == many == said.count(b"HTTP/1.1")


@pytest.mark.slow
def test_no_more_than_so_many_requests(tmp_path: Path) -> None:
    sleeper = "import time\ndef handler(event):\n    time.sleep(event.get('s', 0))\n    return 1\n"
    with Server(tmp_path, "--memory", "1GB", variables={"INSTAINFER_LIMITS__REQUESTS": "2"}) as server:
        server.deploy("n", "f", sleeper)
        with calls() as flight:
            for _ in range(2):
                flight.add(server, "n", "f", {"s": 2})
            eventually(lambda: server.running("n", "f"))
            eventually(lambda: server.call("n", "f").status_code == 503)
            refused = server.call("n", "f")
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert {response.status_code for response in flight.responses()} == {200}
        assert server.result("n", "f") == 1
