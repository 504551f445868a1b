"""The client against a stub of the HTTP API on a real socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from instainfer.client import ADMIN_SOCKET, Client, parse_timing
from instainfer.errors import (
    BuildFailed,
    Conflict,
    InstaInferError,
    InvocationFailed,
    NotAllowed,
    NotFound,
    Unavailable,
)

from .stub_server import ACTIVATION, FUNCTION, LOGS, PROFILE, Stub, serving


@pytest.fixture(scope="module")
def running() -> Iterator[Stub]:
    with serving(Stub()) as stub:
        yield stub


@pytest.fixture
def stub(running: Stub) -> Stub:
    running.seen.clear()
    return running


@pytest.fixture
def client(stub: Stub) -> Iterator[Client]:
    with Client(stub.url) as made:
        yield made


def test_invoke_passes_the_body_through_and_reads_the_headers(client: Client, stub: Stub) -> None:
    answer = client.invoke("team", "magika", b"\x00\xff", "image/png")
    assert stub.seen == [("POST", "/f/team/magika", ("image/png", b"\x00\xff"))]
    assert answer.json() == {"label": "png"}
    assert (answer.start, answer.activation, answer.type) == ("preloaded", ACTIVATION, "application/json")
    assert answer.phases == {"queue": 0.2, "inference": 12.5}


def test_invoke_raises_what_the_function_did(client: Client) -> None:
    with pytest.raises(InvocationFailed) as caught:
        client.invoke("default", "broken")
    assert caught.value.detail == "Traceback: main.py line 3"
    assert f"instainfer why {ACTIVATION}" in caught.value.hint


def test_deploy_streams_events_and_sends_everything(client: Client, stub: Stub) -> None:
    events = list(
        client.deploy("default", "ocr", b"PK", {"memory": "1GB"}, sample=b"\x89PNG", sample_type="image/png")
    )
    assert [event["event"] for event in events] == ["progress", "progress", "progress", "deployed"]
    assert events[-1]["profile"] == PROFILE
    ((method, path, sent),) = stub.seen
    assert (method, path) == ("PUT", "/instainfer/v1/functions/default/ocr")
    assert json.loads(sent.pop("settings")) == {"memory": "1GB"}
    assert sent == {"package": b"PK", "sample": b"\x89PNG", "sample_type": "image/png"}


def test_deploy_raises_what_failed_it(client: Client) -> None:
    with pytest.raises(BuildFailed) as caught:
        list(client.deploy("default", "broken", b"PK"))
    assert (caught.value.detail, caught.value.phase) == ("No matching distribution", "build")
    with pytest.raises(Conflict):
        list(client.deploy("default", "full", b"PK"))


def test_deploy_notices_a_stream_without_result(client: Client) -> None:
    with pytest.raises(Unavailable, match="without a result"):
        list(client.deploy("default", "cut", b"PK"))


def test_every_other_call(client: Client, stub: Stub) -> None:
    assert client.functions("default") == [FUNCTION]
    assert client.function("default", "magika")["versions"][0]["current"] is True
    client.delete("default", "magika")
    client.rollback("default", "magika", 2)
    for verb in (client.preload, client.offload, client.pin, client.unpin):
        verb("default", "magika")
    assert client.hint("default", "magika", 30.0, 0.5) == {"message": "did hint"}
    assert client.logs("default", "magika", limit=5) == LOGS
    assert client.activations(function="magika", limit=2, since=1.5)[0]["id"] == ACTIVATION
    assert client.activation(ACTIVATION)["start"] == "cold"
    assert client.activation_logs(ACTIVATION) == LOGS
    assert client.why(ACTIVATION)["advice"] == ["pin magika"]
    assert client.containers()["node"]["sandbox"] == "process"
    assert client.status()["version"] == "0.1.0"
    function = "functions/default/magika"
    assert stub.seen == [
        ("GET", "functions?namespace=default", None),
        ("GET", function, None),
        ("DELETE", function, None),
        ("POST", f"{function}/rollback", {"version": 2}),
        ("POST", f"{function}/preload", {}),
        ("POST", f"{function}/offload", {}),
        ("POST", f"{function}/pin", {}),
        ("POST", f"{function}/unpin", {}),
        ("POST", f"{function}/hint", {"in_s": 30.0, "probability": 0.5}),
        ("GET", f"{function}/logs?limit=5", None),
        ("GET", "activations?function=magika&limit=2&since=1.5", None),
        ("GET", f"activations/{ACTIVATION}", None),
        ("GET", f"activations/{ACTIVATION}/logs", None),
        ("GET", f"activations/{ACTIVATION}/why", None),
        ("GET", "containers", None),
        ("GET", "status", None),
    ]


def test_names_cannot_leave_their_place_in_the_path(client: Client, stub: Stub) -> None:
    with pytest.raises(InstaInferError):
        client.function("default", "../../status?x")
    assert all(path != "status" for _, path, _ in stub.seen)


def test_problems_become_errors(client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        client.function("default", "nothing")
    assert caught.value.hint == "`instainfer ls` lists what there is"


def test_keys_and_their_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Stub(api_key="s3cret")) as stub:
        with Client(stub.url) as client, pytest.raises(NotAllowed):
            client.status()
        with Client(stub.url, "wrong") as client, pytest.raises(NotAllowed):
            client.status()
        with Client(stub.url, "s3cret") as client:
            assert client.status()["version"] == "0.1.0"
        monkeypatch.setenv("INSTAINFER_API_KEY", "s3cret")
        monkeypatch.setenv("INSTAINFER_URL", stub.url)
        with Client() as client:
            assert client.status()["version"] == "0.1.0"


def test_data_dir_means_its_admin_socket(tmp_path: Path) -> None:
    with serving(Stub(), unix=str(tmp_path / ADMIN_SOCKET)), Client(data_dir=tmp_path) as client:
        assert client.status()["version"] == "0.1.0"


def test_nobody_answers(tmp_path: Path) -> None:
    with socket.socket() as reserved:  # bound but not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        with (
            Client(f"http://127.0.0.1:{reserved.getsockname()[1]}") as client,
            pytest.raises(Unavailable) as caught,
        ):
            client.status()
    assert "instainfer serve" in caught.value.hint
    with Client(data_dir=tmp_path) as client, pytest.raises(Unavailable, match=ADMIN_SOCKET):
        client.status()


@pytest.mark.parametrize("url", ["127.0.0.1:3233", "http://[::1", "ftp://127.0.0.1"])
def test_impossible_addresses(url: str) -> None:
    with pytest.raises(Unavailable, match="no server's address") as caught, Client(url) as client:
        client.status()
    assert "http://" in caught.value.hint


def test_another_server_on_the_port(stub: Stub) -> None:
    with Client(f"{stub.url}/redirected") as client:
        with pytest.raises(Unavailable, match="not an instainfer server"):
            client.status()
        with pytest.raises(InstaInferError, match="HTTP 4"):
            client.invoke("default", "magika")


def test_a_proxy_is_not_asked_for_this_machine(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with Client(stub.url) as client:
        assert client.status()["version"] == "0.1.0"


@pytest.mark.parametrize(
    ("header", "phases"),
    [
        ("", {}),
        ("queue;dur=1.5", {"queue": 1.5}),
        ('load ; dur="2", total;desc="all";dur=3', {"load": 2.0, "total": 3.0}),
        ("miss, odd;dur=x, warm;DUR=1", {"warm": 1.0}),
    ],
)
def test_parse_timing(header: str, phases: dict[str, float]) -> None:
    assert parse_timing(header) == phases
