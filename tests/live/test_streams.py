"""Answers that come in parts."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.live.server_helpers import Server, eventually

pytestmark = pytest.mark.slow

STREAMS = """
import time

GONE = []

def handler(event):
    kind = event["kind"]
    if kind == "plain":
        return {"gone": GONE}
    if kind == "async":
        return letters()
    return stream(event, kind)

async def letters():
    for letter in "abc":
        yield letter

def stream(event, kind):
    try:
        for n in range(event.get("count", 3)):
            if n == event.get("fail"):
                raise ValueError("no more")
            if n and event.get("pause"):
                time.sleep(event["pause"])
            yield {"bytes": b"%d," % n, "text": "%d," % n, "events": {"n": n}, "mixed": [b"a", "b"][n % 2]}[kind]
    finally:
        GONE.append(event.get("name"))
"""


@pytest.fixture
def f(server: Server, ns: str) -> str:
    server.deploy(ns, "f", STREAMS)
    return f"/f/{ns}/f"


def streamed(server: Server, path: str, event: dict[str, Any]) -> tuple[httpx.Response, list[bytes]]:
    with server.http.stream("POST", path, json=event) as response:
        return response, list(response.iter_raw())


def test_parts_as_they_come(server: Server, f: str) -> None:
    response, _ = streamed(server, f, {"kind": "bytes"})
    assert response.status_code == 200
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.headers["x-instainfer-start"]
    assert server.http.post(f, json={"kind": "bytes"}).content == b"0,1,2,"
    text = server.http.post(f, json={"kind": "text"})
    assert (text.text, text.headers["content-type"]) == ("0,1,2,", "text/plain; charset=utf-8")
    assert server.http.post(f, json={"kind": "async"}).text == "abc"
    events = server.http.post(f, json={"kind": "events"})
    assert events.headers["content-type"] == "text/event-stream"
    assert events.text == "".join(f'data: {{"n":{n}}}\n\n' for n in range(3))
    # by the long way too: a query is none of the short one's
    assert server.http.post(f"{f}?x=1", json={"kind": "text"}).text == "0,1,2,"
    assert server.http.post(f, json={"kind": "text", "count": 0}).content == b""


def test_the_first_part_does_not_wait_for_the_last(server: Server, f: str) -> None:
    with server.http.stream("POST", f, json={"kind": "text", "count": 2, "pause": 50}) as response:
        assert next(response.iter_raw()) == b"0,"
        namespace = f.split("/")[2]
        assert server.running(namespace, "f")


def test_a_stream_that_nobody_reads_any_more_ends(server: Server, f: str) -> None:
    with (
        httpx.Client(base_url=server.url, trust_env=False, timeout=30) as other,
        other.stream("POST", f, json={"kind": "text", "count": 1000, "pause": 0.05, "name": "left"}) as response,
    ):
        next(response.iter_raw())
    namespace = f.split("/")[2]
    eventually(lambda: not server.running(namespace, "f"))
    assert server.http.post(f, json={"kind": "plain"}).json()["gone"][-1] == "left"


def test_an_error_in_the_middle(server: Server, f: str) -> None:
    events = server.http.post(f, json={"kind": "events", "fail": 1})
    first, last, _ = events.text.split("\n\n")
    assert first == 'data: {"n":0}'
    kind, data = last.split("\n")
    assert kind == "event: error"
    assert "no more" in json.loads(data.removeprefix("data: "))["detail"]
    for path in (f, f"{f}?x=1"):
        with pytest.raises(httpx.RemoteProtocolError):
            server.http.post(path, json={"kind": "text", "fail": 1})
    before = server.http.post(f, json={"kind": "text", "fail": 0})  # nothing was sent yet: an ordinary error
    assert before.status_code == 502
    with pytest.raises(httpx.RemoteProtocolError):
        server.http.post(f, json={"kind": "mixed"})
    assert server.http.post(f, json={"kind": "text"}).text == "0,1,2,"


def test_a_stream_that_is_fetched_later_is_whole(server: Server, f: str) -> None:
    begun = server.http.post(f, json={"kind": "text"}, headers={"prefer": "respond-async"}).json()
    found = server.client.result(begun["id"])
    assert found is not None
    assert (found.body, found.type) == (b"0,1,2,", "text/plain; charset=utf-8")
