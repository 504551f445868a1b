"""Snapshots, zygotes and clones as a server uses them."""

from __future__ import annotations

import contextlib

import httpx
import pytest

from tests.live.server_helpers import Server, alive, calls, eventually, gone, kill

pytestmark = pytest.mark.slow

SAMPLE = {"sample.json": "{}"}

#: Its imports are worth a zygote; loading takes much longer than restoring; LOADED is known to processes that have
#: loaded themselves.
MODEL = """
import asyncio, concurrent.futures, decimal, http.server, sqlite3, unittest.mock, xmlrpc.client
import os, time

LOADED = []

class Model:
    def load(self):
        time.sleep(1.0)
        LOADED.append(os.getpid())
        self.table = list(range(1000))

    def predict(self, event):
        time.sleep(event.get("seconds", 0))
        return {"sum": sum(self.table)} | ({"pid": os.getpid(), "loaded": LOADED} if event else {})
"""


def settings(**more: object) -> dict[str, object]:
    return {"sample": "sample.json", **more}


def test_a_deployed_function_is_restored(server: Server, ns: str) -> None:
    done = server.deploy(ns, "f", MODEL, files=SAMPLE, clone=False, **settings())
    assert done["profile"]["paths"]["snapshot"]["used"]
    answer = server.result(ns, "f", {"n": 1})
    assert answer["sum"] == 499500
    assert answer["loaded"] == []


def test_it_is_restored_after_a_restart_too(own: Server) -> None:
    own.deploy("ns", "f", MODEL, files=SAMPLE, clone=False, **settings())
    own.kill()
    own.start()
    assert own.result("ns", "f", {"n": 1})["loaded"] == []


def test_what_is_switched_off_is_not_used(server: Server, ns: str) -> None:
    off = {"snapshot": False, "zygote": False, "clone": False, "intercept": False}
    done = server.deploy(ns, "f", MODEL, files=SAMPLE, **{"clone": True, **settings(**off)})
    assert all("switched off" in path["reason"] for path in done["profile"]["paths"].values())
    answer = server.result(ns, "f", {"n": 1})
    assert answer["loaded"] == [answer["pid"]]


def test_further_instances_are_clones(server: Server, ns: str) -> None:
    server.deploy(ns, "f", MODEL, files=SAMPLE, clone=True, **settings(snapshot=False))
    first = server.result(ns, "f", {"n": 1})
    assert first["loaded"]
    with calls() as started:
        for _ in range(3):
            started.add(server, ns, "f", {"seconds": 4})
        responses = started.responses()
    assert {response.status_code for response in responses} == {200}
    answers = [response.json() for response in responses]
    kinds = [response.headers["x-instainfer-start"] for response in responses]
    assert len({answer["pid"] for answer in answers}) > 1, kinds
    assert "cloned" in kinds
    assert all(answer["loaded"] == first["loaded"] for answer in answers), "one load for all"


def test_a_killed_zygote_is_not_noticed(own: Server) -> None:
    own.deploy("ns", "f", MODEL, files=SAMPLE, **settings(snapshot=False, clone=False))
    for process in eventually(lambda: own.named("zygote"), what="a zygote"):
        kill(process)
    assert own.result("ns", "f", {"n": 1})["sum"] == 499500
    assert eventually(lambda: [p for p in own.named("zygote") if alive(p)], what="another zygote")


def test_a_killed_server_leaves_nothing_of_them(own: Server) -> None:
    own.deploy("ns", "f", MODEL, files=SAMPLE, clone=True, **settings(snapshot=False))
    eventually(lambda: own.named("zygote"), what="a zygote")
    own.result("ns", "f", {"n": 1})
    with calls() as started, contextlib.suppress(httpx.HTTPError):
        for _ in range(2):
            started.add(own, "ns", "f", {"seconds": 60})
        eventually(lambda: len(own.instances("f")) > 1, what="a template and an instance")
        family = own.family()
        own.kill()
        gone(family)
    own.start()  # and its end looks that nothing is left
    assert own.result("ns", "f", {"n": 1})["sum"] == 499500
