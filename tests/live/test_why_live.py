"""`why`: the log of a live run replayed through the core comes to the decisions that were made."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.live.server_helpers import ECHO, Server, calls, eventually
from tests.unit.test_eventlog import other_predictor, rewritten, without

SLOW = "import time\ntime.sleep(0.5)\n" + ECHO


def why(server: Server, response: httpx.Response) -> dict[str, Any]:
    """Its explanation, which must be the replay's own."""
    told = server.client.why(response.headers["x-instainfer-activation"])
    assert told["reproduced"] is True, told
    assert told["start"] == response.headers["x-instainfer-start"] == told["activation"]["start"]
    assert told["activation"]["id"] == response.headers["x-instainfer-activation"]
    assert told["predictor"] == "hazard"
    return told


def decisions(told: dict[str, Any]) -> list[str]:
    return [one["what"] for one in told["decisions"]]


def check_cold(told: dict[str, Any]) -> None:
    create, load = told["decisions"][-2:]
    assert create["what"].startswith("create container")
    assert load["what"].startswith("load ")
    assert "a request waits" in load["why"]
    assert create["ago_s"] <= 0
    assert any("first arrival ever seen" in line for line in told["advice"])


def check_warm(told: dict[str, Any]) -> None:
    assert told["advice"] == []
    assert told["last_s"] is not None


def check_preloaded(told: dict[str, Any]) -> None:
    (load,) = [one for one in told["decisions"] if one["what"].startswith("pre-load")]
    assert load["why"] == "by hand"
    assert load["ago_s"] > 0
    assert load["weight_mb"] > 0
    assert "owned by" in load["what"]
    assert told["advice"] == []


@pytest.mark.slow
def test_every_start_is_reproduced(server: Server, ns: str) -> None:
    server.deploy(ns, "a", SLOW, memory="128MB")
    server.deploy(ns, "b", ECHO)
    with calls() as flight:
        for _ in range(2):
            flight.add(server, ns, "a")
        pair = flight.responses()
    by_start = {one.headers["x-instainfer-start"]: one for one in pair}
    assert by_start.keys() == {"cold", "attached"}
    check_cold(why(server, by_start["cold"]))
    attached = why(server, by_start["attached"])
    assert any("joined a load" in line for line in attached["advice"])
    warm = server.call(ns, "a")
    check_warm(why(server, warm))
    server.client.preload(ns, "b")
    eventually(lambda: server.state(ns, "b") == "preloaded")
    preloaded = server.call(ns, "b")
    assert preloaded.headers["x-instainfer-start"] == "preloaded"
    check_preloaded(why(server, preloaded))


def test_a_failed_call_is_explained(server: Server, ns: str) -> None:
    server.deploy(ns, "f", "import os\n\ndef handler(event):\n    os.abort()\n")
    response = server.call(ns, "f")
    assert response.status_code == 502
    assert decisions(why(server, response))[-1].startswith("load ")


def test_a_load_that_failed_is_explained(server: Server, ns: str) -> None:
    source = (
        "from pathlib import Path\nif Path(__file__).with_name('broken').exists(): raise OSError('gone')\n" + ECHO
    )
    server.deploy(ns, "f", source)
    broken = server.package(ns, "f") / "broken"
    broken.touch()
    response = server.call(ns, "f")
    assert response.status_code == 502
    told = why(server, response)
    assert told["start"] == ""
    assert any("failed" in what for what in decisions(told))
    broken.unlink()


def test_an_offload_is_named(server: Server, ns: str) -> None:
    server.deploy(ns, "f", ECHO)
    server.call(ns, "f")
    server.client.offload(ns, "f")
    eventually(lambda: server.state(ns, "f") != "warm")
    told = why(server, server.call(ns, "f"))
    assert any(what.startswith("off-load") for what in decisions(told))
    assert [one["why"] for one in told["decisions"] if one["what"].startswith("off-load")] == ["by hand"]


@pytest.mark.slow
def test_it_is_told_after_a_restart(own: Server) -> None:
    """By what is on disk alone; after a kill -9 too, for records that were written before."""
    own.deploy("n", "f", ECHO)
    own.deploy("n", "g", ECHO)
    first = own.call("n", "f")
    second = own.call("n", "f")
    own.client.preload("n", "g")
    eventually(lambda: own.state("n", "g") == "preloaded")
    third = own.call("n", "g")
    own.term()
    own.start()
    check_cold(why(own, first))
    check_warm(why(own, second))
    check_preloaded(why(own, third))
    fourth = own.call("n", "f")
    assert decisions(why(own, fourth))[-1].startswith("load ")
    assert len(own.client.activations(namespace="n")) == 4  # which waits until they are
    own.kill()
    own.start()
    for response in (first, second, third, fourth):
        why(own, response)


@pytest.mark.slow
def test_an_upgrade_loses_old_reasons_and_nothing_else(own: Server) -> None:
    """A run that this version cannot replay, left by a killed server of another: functions, pins, keys of requests
    and records are there, and what was accepted runs."""
    own.deploy("n", "f", ECHO)
    own.deploy("n", "slow", SLOW)
    first = own.call("n", "f")
    assert why(own, first)
    own.client.pin("n", "f")
    later = {"prefer": "respond-async", "idempotency-key": "one"}
    job = own.http.post("/f/n/slow", json={"n": 1}, headers=later).json()["id"]
    assert len(own.client.activations(namespace="n")) >= 1  # which waits until they are written
    own.kill()
    for path in (own.data / "events").glob("*.log"):
        rewritten(path, without(other_predictor))
    own.start()
    eventually(lambda: own.client.job(job)["state"] == "done")
    assert own.http.post("/f/n/slow", json={"n": 1}, headers={"idempotency-key": "one"}).json() == {"n": 1}
    eventually(lambda: own.state("n", "f") in ("preloaded", "warm"))
    told = own.client.why(first.headers["x-instainfer-activation"])
    assert (told["reproduced"], told["start"]) == (False, "cold")
    assert "version" in told["advice"][0]
    assert why(own, own.call("n", "f"))
    assert "cannot be replayed" in own.errors() and "Traceback" not in own.errors()
