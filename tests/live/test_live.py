"""The live feed: what it says is what the API says, once, to whom it may, and nobody who looks costs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from instainfer.client import PREFIX, Client
from instainfer.errors import Unavailable
from tests.live.server_helpers import ECHO, PATIENCE_S, Server, eventually

FAIL = "def handler(event):\n    raise ValueError('<b>no</b>')\n"


def until(feed: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Events until they have told of so many invocations."""
    events = []
    for event in feed:
        events.append(event)
        if sum(len(one["invocations"]) for one in events) >= count:
            return events
    raise AssertionError("the feed ended")


def told(events: list[dict[str, Any]]) -> list[str]:
    return [one["id"] for event in events for one in event["invocations"]]


def test_it_tells_each_invocation_once_and_as_the_api_does(own: Server) -> None:
    own.deploy("n", "f", ECHO)
    own.deploy("n", "bad", FAIL)
    with closing(own.client.live()) as feed:
        first = next(feed)
        assert (first["anew"], first["invocations"], first["who"]) == (
            True,
            [],
            {"namespace": "", "role": "admin"},
        )
        assert first["now"]["rates"]["hit_fraction"] is None
        calls = [own.call("n", name) for name in ("f", "f", "bad", "f")]
        events = until(feed, 4)
        assert not any(event["anew"] for event in events)
        ids = told(events)
        assert ids == [call.headers["x-instainfer-activation"] for call in calls] or len(set(ids)) == 4
        for event in events:
            for row in event["invocations"]:
                shown = own.client.activation(row["id"])
                assert row | {"hint": shown["hint"], "trace": shown["trace"]} == shown
        last = next(feed)
        rates = last["now"]["rates"]
        assert (rates["invocations"], rates["failed"]) == (4, 1)
        assert rates["starts"] == {"cold": 2, "warm": 2}
        assert rates["hit_fraction"] == 0.5
        took = sorted(one["e2e_ms"] for one in own.client.activations(namespace="n") if one["status"] == "ok")
        assert rates["p50_ms"] == pytest.approx(took[1])
        assert rates["p99_ms"] == pytest.approx(took[2])
        there = own.client.containers()
        assert [one["id"] for one in last["now"]["containers"]] == [one["id"] for one in there["containers"]]
        assert last["now"]["node"] == there["node"]
        assert {one["function"]: one["state"] for one in last["now"]["functions"]}["n/f"] == "warm"
        cursor = last["id"]
    own.call("n", "f")
    with closing(own.client.live(cursor)) as feed:
        (*_, event) = again = until(feed, 1)
        assert not any(one["anew"] for one in again)
        assert len(event["invocations"]) == 1
    with closing(own.client.live()) as feed:  # a new reader gets the last minute
        assert len(told([next(feed)])) == 5


def test_marks_tell_what_was_done_and_why(own: Server) -> None:
    own.deploy("n", "a", ECHO)
    own.deploy("n", "b", ECHO)
    own.call("n", "a")
    own.client.preload("n", "b")
    eventually(lambda: own.state("n", "b") == "preloaded")
    own.client.offload("n", "b")
    eventually(lambda: own.state("n", "b") == "cold")
    with closing(own.client.live()) as feed:
        marks = [mark for mark in next(feed)["marks"] if mark["function"] == "b"]
    assert [mark["what"] for mark in marks] == ["preload", "loaded", "offload"]
    assert marks[0]["why"] == marks[2]["why"] == "by hand"
    assert marks[1]["ms"] > 0
    assert {mark["container"] for mark in marks} == {own.containers("n")[0]["id"]}


@pytest.mark.slow
def test_after_a_restart_everything_begins_anew(own: Server) -> None:
    own.deploy("n", "f", ECHO)
    own.call("n", "f")
    with closing(own.client.live()) as feed:
        events = until(feed, 1)
    own.term()
    own.start()
    with closing(own.client.live(events[-1]["id"])) as feed:
        first = next(feed)
    assert first["anew"]
    assert told([first]) == told(events)  # what the reader is to drop is in it


def test_the_feed_ends_with_the_server(own: Server) -> None:
    with closing(own.client.live()) as feed:
        next(feed)
        assert own.term() == 0
        with pytest.raises(Unavailable):
            list(feed)


@pytest.mark.slow
def test_a_key_sees_its_own_namespace_until_it_is_revoked(tmp_path: Path) -> None:
    with Server(tmp_path, "--memory", "1GB", variables={"INSTAINFER_SERVER__API_KEY": "k" * 40}) as server:
        for namespace in ("mine", "other"):
            server.deploy(namespace, "f", ECHO)
        key = server.client.add_namespace("mine", "invoke")["auth"]
        for namespace in ("other", "mine", "other"):
            server.call(namespace, "f")
        assert httpx.get(f"{server.url}{PREFIX}/live", trust_env=False).status_code == 401
        with Client(server.url, key) as mine, closing(mine.live()) as feed:
            first = next(feed)
            assert first["who"] == {"namespace": "mine", "role": "invoke"}
            assert "other" not in json.dumps(first)
            assert len(first["invocations"]) == first["now"]["rates"]["invocations"] == 1
            assert first["now"]["deployed"] == 1
            assert {mark["namespace"] for mark in first["marks"]} == {"mine"}
            assert not {"policy", "preloads", "wasted_gb_s"} & first["now"].keys()
            assert "memory_mb" not in first["now"]["node"]
            server.client.revoke("mine", key.partition(":")[0])
            with pytest.raises(Unavailable):
                list(feed)


def test_so_many_look_on_and_no_more(own: Server) -> None:
    with httpx.Client(base_url=own.url, timeout=PATIENCE_S, trust_env=False) as http:
        places = [http.stream("GET", f"{PREFIX}/live") for _ in range(64)]
        opened = [place.__enter__() for place in places]
        assert {one.status_code for one in opened} == {200}
        assert opened[0].headers["content-type"].startswith("text/event-stream")
        full = http.get(f"{PREFIX}/live")
        assert full.status_code == 503
        assert full.json()["hint"]
        for place in places:
            place.__exit__(None, None, None)

    def free() -> bool:
        with own.http.stream("GET", f"{PREFIX}/live") as response:
            return response.status_code == 200

    eventually(free)


@pytest.mark.parametrize("since", ["", "x", "..", "0.1", "\u0661.\u0661", "9" * 500])
def test_an_id_that_it_never_gave_is_none(server: Server, since: str) -> None:
    with closing(server.client.live(since)) as feed:
        assert next(feed)["anew"]
