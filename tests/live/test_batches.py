"""Requests that come together are one call."""

from __future__ import annotations

import pytest

from instainfer.errors import BadSettings
from tests.live.server_helpers import Server, calls, package

pytestmark = pytest.mark.slow

TOGETHER = """
import time

class Model:
    def load(self):
        self.sizes = []

    def predict(self, items):
        assert isinstance(items, list)
        if any(item.get("slow") for item in items):
            time.sleep(1.0)
        if any(item.get("short") for item in items):
            return []
        if "one" in items[0]:
            return items[0]["one"]
        self.sizes.append(len(items))
        return [ValueError("not this one") if item.get("bad") else {"n": item.get("n"), "of": len(items)}
                for item in items]
"""


def test_a_batch(server: Server, ns: str) -> None:
    server.deploy(ns, "f", TOGETHER, batch={"max": 4, "wait_ms": 2000})
    assert server.result(ns, "f", {"n": 1, "slow": False}) == {"n": 1, "of": 1}
    with calls() as flight:
        for n in range(4):
            flight.add(server, ns, "f", {"n": n, "bad": n == 2})
        responses = flight.responses()
    good = [response.json() for response in responses if response.status_code == 200]
    assert sorted(found["n"] for found in good) == [0, 1, 3]
    assert {found["of"] for found in good} == {4}
    (bad,) = [response for response in responses if response.status_code != 200]
    assert bad.status_code == 502
    assert "not this one" in bad.json()["detail"]


def test_what_cannot_be_read_is_refused_alone(server: Server, ns: str) -> None:
    server.deploy(ns, "f", TOGETHER, batch={"max": 2, "wait_ms": 1000})
    server.result(ns, "f")
    with calls() as flight:
        flight.add(server, ns, "f", {"n": 5})
        broken = server.http.post(f"/f/{ns}/f", content=b"{", headers={"content-type": "application/json"})
        (response,) = flight.responses()
    assert broken.status_code == 400
    assert response.json()["n"] == 5


def test_an_answer_of_the_wrong_length_is_everybodys_error(server: Server, ns: str) -> None:
    server.deploy(ns, "f", TOGETHER, batch=3)
    response = server.call(ns, "f", {"short": True})
    assert response.status_code == 502
    assert "0 values" in response.json()["detail"]
    for one, name in (("x", "str"), ({"0": 1}, "dict"), (None, "NoneType"), (5, "int")):
        response = server.call(ns, "f", {"one": one})
        assert response.status_code == 502
        assert f"a batch of 1 was answered with a {name}; return a list" in response.json()["detail"]
    assert server.result(ns, "f", {"n": 2}) == {"n": 2, "of": 1}


@pytest.mark.parametrize(
    "batch", [0, True, "8", {"max": 8, "size": 3}, {"wait_ms": 5}, {"max": 2, "wait_ms": -1}, {"max": 1 << 20}]
)
def test_impossible_batches(server: Server, ns: str, batch: object) -> None:
    with pytest.raises(BadSettings, match="batch"):
        list(server.client.deploy(ns, "f", package(server.directory, TOGETHER), {"batch": batch}))


def test_a_batch_is_no_concurrency_and_no_script(server: Server, ns: str) -> None:
    data = package(server.directory, TOGETHER)
    with pytest.raises(BadSettings, match="concurrency"):
        list(server.client.deploy(ns, "f", data, {"batch": 2, "concurrency": 2}))
    script = package(server.directory, "import sys\nfor line in sys.stdin:\n    print('1')\n")
    with pytest.raises(BadSettings, match="script"):
        list(server.client.deploy(ns, "f", script, {"batch": 2}))
