"""What a server does for its users, over HTTP."""

from __future__ import annotations

import json
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from instainfer.client import PREFIX, parse_timing
from instainfer.errors import Conflict, InstaInferError, NotFound
from instainfer.packing import pack
from tests.live.server_helpers import ECHO, SANDBOX, Server, calls, eventually, package

VERSIONED = """
def handler(event):
    return {version}
"""

CLASS = """
class Model:
    def load(self):
        self.loads = getattr(self, "loads", 0) + 1

    def predict(self, payload):
        return {"style": "class", "loads": self.loads, "payload": payload}
"""

SCRIPT = """
import json
import sys

while line := sys.stdin.readline():
    print(json.dumps({"style": "script", "payload": json.loads(line)}), flush=True)
"""

#: Says how many were inside at most while it ran; with "meet" only four together get out again.
MEETING = """
import os
import threading

lock = threading.Lock()
inside = 0
barrier = threading.Barrier(4)

def handler(event):
    global inside
    with lock:
        inside += 1
        seen = inside
    place = barrier.wait(20) if event.get("meet") else 0
    with lock:
        seen = max(seen, inside)
        inside -= 1
    return {"pid": os.getpid(), "seen": seen, "place": place}
"""

SLOW_LOAD = """
import os
import time

class Model:
    loads = 0

    def load(self):
        Model.loads += 1
        time.sleep(0.7)

    def predict(self, payload):
        return {"loads": Model.loads, "pid": os.getpid()}
"""


# ---- deploying ------------------------------------------------------------------------------------------------


def test_deploy_list_get_delete(server: Server, ns: str) -> None:
    done = server.deploy(ns, "echo", ECHO, timeout="7s", concurrency=2)
    assert (done["function"]["version"], done["function"]["style"]) == (1, "module")
    assert done["profile"]["loaded_mb"] > 0
    listed = server.client.functions(ns)
    assert [one["name"] for one in listed] == ["echo"]
    got = server.client.function(ns, "echo")
    assert (got["entry"], got["timeout_s"], got["concurrency"], got["memory_mb"]) == ("main:handler", 7.0, 2, 64.0)
    assert got["state"] == "cold"
    assert [(one["version"], one["current"]) for one in got["versions"]] == [(1, True)]
    server.client.delete(ns, "echo")
    assert server.client.functions(ns) == []
    assert server.call(ns, "echo").status_code == 404
    with pytest.raises(NotFound):
        server.client.delete(ns, "echo")


@pytest.mark.parametrize(
    ("settings", "status", "said"),
    [
        ('{"env": {"A": "\\ud800"}}', 400, "settings is not JSON"),
        ('{"params": {"A": "\\ud800"}}', 400, "settings is not JSON"),
        ("[" * 100_000, 400, "settings is not JSON"),
        ('{"timeout": %s}' % ("1" * 5000), 400, "settings is not JSON"),
        ('{"env": {"A": "x\\u0000"}}', 200, "A is no value of a variable"),
        (json.dumps({"env": {"A": "x" * 200_000}}), 200, "A is no value of a variable"),
    ],
    ids=["half a character", "in params", "deep", "long number", "zero byte", "long variable"],
)
def test_settings_that_cannot_be_kept(server: Server, ns: str, settings: str, status: int, said: str) -> None:
    response = server.http.put(
        f"{PREFIX}/functions/{ns}/f",
        data={"settings": settings},
        files={"package": ("package.zip", package(server.directory, ECHO), "application/zip")},
    )
    assert response.status_code == status
    assert said in response.text.splitlines()[-1]
    assert server.client.functions(ns) == []


def test_progress_is_told_in_order(server: Server, ns: str) -> None:
    data = server.directory / "one.py"
    data.write_text(ECHO)
    events = list(server.client.deploy(ns, "f", pack(data), {"entry": "one:handler", "memory": "64MB"}))
    phases = [event["phase"] for event in events if event["event"] == "progress"]
    assert list(dict.fromkeys(phases)) == ["package", "environment", "measure", "publish"]
    assert [event["event"] for event in events].count("deployed") == 1


def test_versions_rollback_hold(server: Server, ns: str) -> None:
    for version in (1, 2):
        server.deploy(ns, "f", VERSIONED.format(version=version))
        assert server.result(ns, "f") == version
    server.deploy(ns, "f", VERSIONED.format(version=3), hold=True)
    assert server.result(ns, "f") == 2
    assert {v["version"]: v["current"] for v in server.client.function(ns, "f")["versions"]} == {
        1: False,
        2: True,
        3: False,
    }
    for version in (3, 1):
        assert server.client.rollback(ns, "f", version)["function"]["version"] == version
        assert server.result(ns, "f") == version
    with pytest.raises(NotFound, match="9"):
        server.client.rollback(ns, "f", 9)
    assert server.result(ns, "f") == 1


def test_a_namespace_does_not_see_another(server: Server, ns: str) -> None:
    server.deploy(ns, "mine", ECHO)
    assert server.call(ns + "x", "mine").status_code == 404
    assert "mine" not in [one["name"] for one in server.client.functions(ns + "x")]


# ---- calling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "style", "answer"),
    [
        (ECHO, "module", {"a": 1}),
        ("def main(args):\n    return {'got': args}\n", "module", {"got": {"a": 1}}),
        (CLASS, "class", {"style": "class", "loads": 1, "payload": {"a": 1}}),
        (SCRIPT, "script", {"style": "script", "payload": {"a": 1}}),
    ],
    ids=["handler", "main", "class", "script"],
)
def test_styles(server: Server, ns: str, source: str, style: str, answer: object) -> None:
    assert server.deploy(ns, "f", source)["function"]["style"] == style
    assert [server.result(ns, "f", {"a": 1}) for _ in range(2)] == [answer, answer]


def test_bodies_in_and_out(server: Server, ns: str) -> None:
    server.deploy(ns, "f", "def handler(event):\n    return event if isinstance(event, bytes) else [event]\n")

    def send(body: bytes, kind: str) -> httpx.Response:
        response = server.http.post(f"/f/{ns}/f", content=body, headers={"content-type": kind})
        assert response.status_code == 200, response.text
        return response

    assert send(b'{"a": [1, null, "\xc3\xa9"]}', "application/json").json() == [{"a": [1, None, "é"]}]
    assert send("grüße".encode(), "text/plain; charset=utf-8").json() == ["grüße"]
    assert send("grüße".encode("latin-1"), "text/plain; charset=latin-1").json() == ["grüße"]
    answer = send(bytes(range(256)), "image/png")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content == bytes(range(256))


def test_ten_megabytes_come_back_identical(server: Server, ns: str) -> None:
    server.deploy(ns, "f", ECHO, memory="256MB")
    body = bytes(range(251)) * (10_000_000 // 251 + 1)
    kind = {"content-type": "application/octet-stream"}
    whole = server.http.post(f"/f/{ns}/f", content=body, headers=kind)
    chunks = server.http.post(
        f"/f/{ns}/f", content=(body[at : at + 65_521] for at in range(0, len(body), 65_521)), headers=kind
    )
    assert len(body) > 10_000_000
    assert whole.content == body
    assert chunks.content == body


def test_parameters_and_variables(server: Server, ns: str) -> None:
    source = "import os\n\ndef handler(event):\n    return [event, os.environ.get('COLOUR'), sorted(os.environ)]\n"
    server.deploy(ns, "f", source, params={"k": "default", "other": "kept"}, env={"COLOUR": "red"})
    event, colour, names = server.result(ns, "f", {"k": "given"})
    assert (event, colour) == ({"k": "given", "other": "kept"}, "red")
    assert not [name for name in names if name.startswith("INSTAINFER_") and name != "INSTAINFER_SANDBOX"]


def test_a_sample_warms_up(server: Server, ns: str) -> None:
    source = "calls = []\n\ndef handler(event):\n    calls.append(event)\n    return calls\n"
    done = server.deploy(ns, "f", source, files={"sample.json": '{"warm": 1}'}, sample="sample.json")
    assert done["profile"]["answer"].startswith('[{"warm":1}')
    assert server.result(ns, "f", {"n": 1}) == [{"n": 1}]  # who waits for a load brings the first call himself


def test_a_sample_is_sent_apart(server: Server, ns: str) -> None:
    source = "seen = []\n\ndef handler(event):\n    seen.append(event)\n    return str(seen[0])\n"
    data = package(server.directory, source)
    *_, last = server.client.deploy(
        ns, "f", data, {"memory": "64MB"}, sample=b"\x00\x01", sample_type="application/octet-stream"
    )
    assert last["event"] == "deployed"
    assert r"\x00\x01" in last["profile"]["answer"].replace("\\\\", "\\")


def test_headers_and_record_agree(server: Server, ns: str) -> None:
    server.deploy(ns, "f", ECHO)
    cold, warm = server.call(ns, "f"), server.call(ns, "f")
    assert [one.headers["x-instainfer-start"] for one in (cold, warm)] == ["cold", "warm"]
    phases = parse_timing(cold.headers["server-timing"])
    assert {"queue", "container", "extract", "load", "inference"} <= phases.keys()
    assert parse_timing(warm.headers["server-timing"]).keys() == {"queue", "inference"}
    for response in (cold, warm):
        record = server.client.activation(response.headers["x-instainfer-activation"])
        assert (record["function"], record["namespace"], record["status"]) == ("f", ns, "ok")
        assert record["start"] == response.headers["x-instainfer-start"]
        shown = parse_timing(response.headers["server-timing"])
        assert {k: v for k, v in record["phases"].items() if v} == pytest.approx(
            {f"{name}_ms": value for name, value in shown.items() if value}, abs=0.001
        )
        assert record["e2e_ms"] >= record["phases"]["inference_ms"]
    listed = server.client.activations(namespace=ns, function="f")
    assert [one["id"] for one in listed] == [one.headers["x-instainfer-activation"] for one in (warm, cold)]
    with pytest.raises(NotFound):
        server.client.activation("f" * 32)


def test_output_belongs_to_its_activation(server: Server, ns: str) -> None:
    source = """
    import sys
    print("at import")

    def handler(event):
        print("out", event["n"])
        print("err", event["n"], file=sys.stderr)
    """
    server.deploy(ns, "f", source)
    ids = [server.call(ns, "f", {"n": n}).headers["x-instainfer-activation"] for n in range(3)]
    for n, id_ in enumerate(ids):
        lines = server.client.activation_logs(id_)
        assert {(line["stream"], line["text"]) for line in lines} == {
            ("stdout", f"out {n}\n"),
            ("stderr", f"err {n}\n"),
        }
    everything = "".join(line["text"] for line in server.client.logs(ns, "f"))
    assert "at import" in everything
    assert all(f"out {n}" in everything for n in range(3))


# ---- many at once ---------------------------------------------------------------------------------------------


def test_concurrency_lets_four_in(server: Server, ns: str) -> None:
    server.deploy(ns, "f", MEETING, concurrency=4)
    server.call(ns, "f")  # there is one instance from now on
    with calls() as flight:
        for _ in range(4):
            flight.add(server, ns, "f", {"meet": True})
        answers = [response.json() for response in flight.responses()]
    assert sorted(answer["place"] for answer in answers) == [0, 1, 2, 3]
    assert len({answer["pid"] for answer in answers}) == 1


def test_concurrency_one_never_overlaps(server: Server, ns: str) -> None:
    slow = "    place = time.sleep(0.02)"
    server.deploy(
        ns,
        "f",
        "import time\n" + MEETING.replace('    place = barrier.wait(20) if event.get("meet") else 0', slow),
    )
    with calls() as flight:
        for _ in range(8):
            flight.add(server, ns, "f")
        assert {response.json()["seen"] for response in flight.responses()} == {1}


@pytest.mark.slow
def test_single_flight(server: Server, ns: str) -> None:
    server.deploy(ns, "f", SLOW_LOAD)
    with calls() as flight:
        for _ in range(5):
            flight.add(server, ns, "f")
        responses = flight.responses()
    answers = [response.json() for response in responses]
    starts = sorted(response.headers["x-instainfer-start"] for response in responses)
    assert {answer["loads"] for answer in answers} == {1}
    assert len({answer["pid"] for answer in answers}) == 1
    assert starts.count("cold") == 1
    assert set(starts) == {"attached", "cold"}


# ---- by hand --------------------------------------------------------------------------------------------------


def test_preload_needs_a_warm_container(server: Server, ns: str) -> None:
    server.deploy(ns, "f", ECHO)
    with pytest.raises(Conflict, match="pre-loading never creates one") as refusal:
        server.client.preload(ns, "f")
    assert refusal.value.hint
    assert server.containers(ns) == []


def test_preload_needs_room(server: Server, ns: str) -> None:
    hold = "held = bytearray(48_000_000)\nheld[::4096] = b'x' * len(held[::4096])\n"
    server.deploy(ns, "small", ECHO, memory="32MB")
    server.deploy(ns, "large", hold + ECHO, memory="128MB")
    server.call(ns, "small")
    with pytest.raises(
        Conflict, match=r"no warm container of namespace \S+ has \d+ MB idle \(the most is \d+ MB\)"
    ):
        server.client.preload(ns, "large")
    assert len(server.containers(ns)) == 1


def test_offload(server: Server, ns: str) -> None:
    server.deploy(ns, "f", ECHO)
    server.call(ns, "f")
    assert server.state(ns, "f") == "warm"
    assert "1 instance" in server.client.offload(ns, "f")["message"]
    eventually(lambda: server.state(ns, "f") != "warm")


def test_pin_makes_a_container_and_unpin_ends_that(server: Server, ns: str) -> None:
    server.deploy(ns, "f", ECHO)
    server.client.pin(ns, "f")
    eventually(lambda: server.state(ns, "f") == "preloaded")
    assert server.client.function(ns, "f")["pinned"]
    assert [one["pinned"] for one in server.containers(ns)] == [True]
    assert server.call(ns, "f").headers["x-instainfer-start"] == "preloaded"
    server.client.unpin(ns, "f")
    assert not server.client.function(ns, "f")["pinned"]
    assert [one["pinned"] for one in server.containers(ns)] == [False]


@pytest.mark.slow
def test_a_pin_survives_a_restart(own: Server) -> None:
    own.deploy("n", "f", ECHO)
    own.client.pin("n", "f")
    own.term()
    own.start()
    assert own.client.function("n", "f")["pinned"]
    eventually(lambda: own.state("n", "f") == "preloaded")
    assert own.call("n", "f").headers["x-instainfer-start"] == "preloaded"


@pytest.mark.slow
def test_a_hint_loads_it(server: Server, ns: str) -> None:
    server.deploy(ns, "keeper", ECHO, memory="256MB")
    server.deploy(ns, "f", ECHO)
    server.call(ns, "keeper")
    assert "5 s" in server.client.hint(ns, "f", 5)["message"]
    eventually(lambda: server.state(ns, "f") == "preloaded")
    assert server.call(ns, "f").headers["x-instainfer-start"] == "preloaded"


@pytest.mark.parametrize("verb", ["preload", "offload", "pin", "unpin", "hint"])
def test_by_hand_on_an_unknown_function(server: Server, ns: str, verb: str) -> None:
    response = server.http.post(f"{PREFIX}/functions/{ns}/nobody/{verb}", json={"in_s": 1})
    assert response.status_code == 404
    assert response.json()["type"] == "urn:instainfer:error:not_found"


# ---- about itself ---------------------------------------------------------------------------------------------


def test_metrics(server: Server, ns: str) -> None:
    server.deploy(ns, "f", ECHO)
    for _ in range(3):
        server.call(ns, "f")
    families = {family.name: family for family in text_string_to_metric_families(server.http.get("/metrics").text)}
    counted = {
        sample.labels["start"]: sample.value
        for sample in families["instainfer_invocations"].samples
        if sample.labels.get("namespace") == ns
    }
    assert counted == {"cold": 1, "warm": 2}
    assert {"instainfer_containers", "instainfer_idle_bytes", "instainfer_queue_depth"} <= families.keys()
    (depth,) = families["instainfer_queue_depth"].samples
    assert depth.value == 0


def test_openapi(server: Server) -> None:
    document = server.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert document["info"]["title"] == "instainfer"
    text = server.http.get("/openapi.json").text
    components = document["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in components
    seen = set()
    for path, methods in document["paths"].items():
        placeholders = set(re.findall(r"{(\w+)}", path))
        for method, operation in methods.items():
            assert operation["responses"], (path, method)
            assert operation["operationId"] not in seen
            seen.add(operation["operationId"])
            named = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert named == placeholders, (path, method)
    assert f"{PREFIX}/functions/{{namespace}}/{{name}}" in document["paths"]


def test_health(server: Server) -> None:
    assert server.http.get("/livez").json() == {"status": "alive"}
    for path in ("/readyz", "/healthz"):
        response = server.http.get(path)
        assert response.status_code == 200
        assert response.json() == {"ready": True, "parts": {"server": "ok", "store": "ok", "node": "ok"}}


def test_status_says_what_is_not_isolated(server: Server) -> None:
    status = server.client.status()
    assert status["sandbox"] == SANDBOX
    assert bool(status["missing"]) == (SANDBOX == "process")
    assert status["memory_mb"] == 4000.0


def test_errors_reach_the_client_as_what_they_were(server: Server, ns: str) -> None:
    with pytest.raises(NotFound) as missing:
        server.client.invoke(ns, "nobody")
    assert isinstance(missing.value, InstaInferError)
    assert missing.value.hint
