"""What is wrong with a function or a request is said clearly, and harms nobody else."""

from __future__ import annotations

import gzip
import os
import socket
import stat

import pytest

from instainfer.client import PREFIX
from tests.live.server_helpers import (
    ECHO,
    SANDBOX,
    Server,
    answered,
    calls,
    eventually,
    gone,
    package,
    undeployed,
)

pytestmark = pytest.mark.usefixtures("neighbour")
KERNEL = pytest.mark.skipif(SANDBOX != "linux", reason="only the linux sandbox holds these limits")

NULL = "import ctypes\nctypes.string_at(0)\n"
FAILING = """
import os

def handler(event):
    print("called", event)
    if event: return os.getpid()
    {body}
"""

SWITCHED = """
import os
from pathlib import Path

print("importing")

class Model:
    def load(self):
        print("loading")
        if Path(__file__).with_name("broken").exists():
            {fault}

    def predict(self, payload):
        return payload
"""


def printed(server: Server, ns: str, name: str = "bad") -> str:
    """The function's log."""
    return "".join(line["text"] for line in server.client.logs(ns, name))


# ---- imports and loads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "phase", "said"),
    [
        ("import no_such_module\n" + ECHO, "import", "No module named 'no_such_module'"),
        ("import helper\n" + ECHO, "import", "SyntaxError"),
        ("print('seen')\nraise ValueError('at module level')\n" + ECHO, "load", "at module level"),
        (
            "class M:\n def load(self): raise OSError('no weights')\n def predict(self, p): pass\n",
            "load",
            "no weights",
        ),
        ("import sys\nsys.exit(3)\n" + ECHO, "load", "SystemExit"),
    ],
    ids=["missing module", "syntax", "module level", "load", "exit"],
)
def test_a_load_that_raises(server: Server, ns: str, source: str, phase: str, said: str) -> None:
    data = package(server.directory, source, {"helper.py": "def ("})
    text = undeployed(server, ns, data, "load_failed", 502, phase)
    assert said in text
    assert "seen" not in source or "seen" in text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (NULL + ECHO, "SIGSEGV"),
        ("import os\nos.abort()\n" + ECHO, "SIGABRT"),
        ("import os\nprint('last words')\nos._exit(7)\n" + ECHO, "exited with status 7"),
    ],
    ids=["null", "abort", "_exit"],
)
def test_a_load_that_crashes(server: Server, ns: str, source: str, said: str) -> None:
    text = undeployed(server, ns, package(server.directory, source), "instance_crashed", 502, "load")
    assert said in text
    assert ("Fatal Python error" in text) == ("SIG" in said)
    assert "last words" not in source or "last words" in text


@pytest.mark.slow
def test_a_load_without_end(server: Server, ns: str) -> None:
    data = package(server.directory, "print('begun')\nwhile True:\n    pass\n" + ECHO)
    text = undeployed(server, ns, data, "timed_out", 504, "load")
    assert "time limit of 3 s" in text
    assert "begun" in text


def test_a_sample_it_fails_on(server: Server, ns: str) -> None:
    source = "def handler(event):\n    return event['absent']\n"
    data = package(server.directory, source, {"sample.json": "{}"})
    assert "KeyError" in undeployed(server, ns, data, "load_failed", 502, "warmup", sample="sample.json")


@pytest.mark.parametrize(
    ("fault", "code", "status", "said"),
    [
        ("raise OSError('the disk is gone')", "load_failed", 502, "the disk is gone"),
        ("os.abort()", "instance_crashed", 502, "SIGABRT"),
        pytest.param("while True: pass", "timed_out", 504, "time limit of 3 s", marks=pytest.mark.slow),
    ],
    ids=["raises", "crashes", "hangs"],
)
def test_a_load_that_fails_after_the_deployment(
    server: Server, ns: str, fault: str, code: str, status: int, said: str
) -> None:
    """It worked when it was deployed and does not when it is called; then it does again."""
    server.deploy(ns, "bad", SWITCHED.format(fault=fault))
    broken = server.package(ns, "bad") / "broken"
    broken.touch()
    with calls() as flight:
        for _ in range(3):
            flight.add(server, ns, "bad")
        for response in flight.responses():
            assert said in answered(response, code, status, f"{ns}/bad", "load")
    record = server.client.activation(response.headers["x-instainfer-activation"])
    assert (record["status"], record["error_phase"]) == (code, "load")
    log = printed(server, ns)
    assert "loading" in log
    assert said in log
    broken.unlink()
    assert server.result(ns, "bad", {"a": 1}) == {"a": 1}


# ---- calls ----------------------------------------------------------------------------------------------------


def test_unknown_function(server: Server, ns: str) -> None:
    for path in (f"/f/{ns}/nobody", "/f/nobody", "/f/", f"/f/{ns}/no/body"):
        response = server.http.post(path, json={})
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem["type"] == "urn:instainfer:error:not_found"
        assert problem["hint"]
    answered(server.call(ns, "nobody"), "not_found", 404, f"{ns}/nobody", "request")


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"[NaN]", b'{"a": 1} x', b"[" * 100_000])
def test_malformed_json(server: Server, ns: str, body: bytes) -> None:
    server.deploy(ns, "f", ECHO)
    response = server.http.post(f"/f/{ns}/f", content=body, headers={"content-type": "application/json"})
    if body:
        assert "JSON" in answered(response, "bad_input", 400, f"{ns}/f", "request")
    else:
        assert response.json() == {}
    assert server.result(ns, "f", {"a": 1}) == {"a": 1}


def test_an_encoding_that_a_function_is_not_told_of(server: Server, ns: str) -> None:
    server.deploy(ns, "f", ECHO)
    body = gzip.compress(b'{"a": 1}')
    headers = {"content-type": "application/json", "content-encoding": "GZIP"}
    for more in ({}, {"prefer": "respond-async"}):
        response = server.http.post(f"/f/{ns}/f", content=body, headers={**headers, **more})
        assert "gzip" in answered(response, "bad_input", 400, f"{ns}/f", "request")
    assert server.http.post(f"/f/{ns}/f", content=body).content == body
    headers["content-encoding"] = "identity"
    assert server.http.post(f"/f/{ns}/f", content=b"[1]", headers=headers).json() == [1]


def test_wrong_method(server: Server, ns: str) -> None:
    server.deploy(ns, "f", ECHO)
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        response = server.http.request(method, f"/f/{ns}/f")
        assert answered(response, "wrong_method", 405, f"{ns}/f", "request")
        assert "POST" in response.json()["hint"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", f"{PREFIX}/status"), ("GET", f"{PREFIX}/nothing"), ("GET", "/")]
)
def test_unknown_places_are_problems_too(server: Server, method: str, path: str) -> None:
    response = server.http.request(method, path)
    assert response.status_code in (404, 405)
    assert response.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "hint"} <= response.json().keys()


def test_body_over_the_limit(server: Server, ns: str) -> None:
    server.deploy(ns, "f", ECHO)
    kind = {"content-type": "application/octet-stream"}
    body = bytes(12_000_001)
    whole = server.http.post(f"/f/{ns}/f", content=body, headers=kind)
    assert "12 MB" in answered(whole, "too_large", 413, f"{ns}/f", "request")
    pieces = (body[at : at + 1_000_000] for at in range(0, len(body), 1_000_000))
    chunked = server.http.post(f"/f/{ns}/f", content=pieces, headers=kind)
    assert "12 MB" in answered(chunked, "too_large", 413, f"{ns}/f", "request")
    assert server.result(ns, "f", 1) == 1


def test_a_caller_who_hangs_up(server: Server, ns: str) -> None:
    """In the middle of its body, and while it waits for an answer."""
    server.deploy(ns, "f", "import time\n\ndef handler(event):\n    time.sleep(event)\n    return event\n")
    host, _, port = server.url.removeprefix("http://").partition(":")
    head = f"POST /f/{ns}/f HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    for sent in (head + "content-length: 100\r\n\r\n0", head + "content-length: 3\r\n\r\n0.2"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent.encode())
            if sent.endswith("0.2"):
                eventually(lambda: server.running(ns, "f"))
    assert server.result(ns, "f", 0) == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('of its own')", "ValueError: of its own"),
        ("return object()", "builtins.object"),
        ("return float('nan')", "NaN"),
        ("return bytes(13_000_000)", "over the limit of 12000000"),
        ("return 'x' * 13_000_000", "over the limit of 12000000"),
        ("import sys; sys.exit('good bye')", "SystemExit"),
        ("import no_such_module", "no_such_module"),
        ("return handler(event)", "RecursionError"),
    ],
    ids=["raises", "object", "nan", "large bytes", "large json", "exit", "import", "recursion"],
)
def test_a_call_that_fails(server: Server, ns: str, body: str, said: str) -> None:
    server.deploy(ns, "bad", FAILING.format(body=body), memory="128MB")
    before = server.result(ns, "bad", 1)
    response = server.call(ns, "bad")
    assert said in answered(response, "invocation_failed", 502, f"{ns}/bad", "inference")
    id_ = response.headers["x-instainfer-activation"]
    assert response.json()["activation"] == id_
    record = server.client.activation(id_)
    assert (record["status"], record["error_phase"]) == ("invocation_failed", "inference")
    assert said in record["error"] + record["trace"]
    assert "called {}" in "".join(line["text"] for line in server.client.activation_logs(id_))
    assert server.result(ns, "bad", 1) == before, "a failed call must not cost the instance"


@pytest.mark.parametrize(
    ("body", "said", "logged"),
    [
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV", "Fatal Python error"),
        ("os.abort()", "SIGABRT", "Fatal Python error"),
        ("os._exit(3)", "exited with status 3", "called"),
        ("os.kill(os.getpid(), 9)", "SIGKILL", "called"),
    ],
    ids=["null", "abort", "_exit", "kill"],
)
def test_a_call_that_crashes(server: Server, ns: str, body: str, said: str, logged: str) -> None:
    server.deploy(ns, "bad", FAILING.format(body=body))
    assert server.result(ns, "bad", 1)
    response = server.call(ns, "bad")
    assert said in answered(response, "instance_crashed", 502, f"{ns}/bad", "inference")
    assert logged in printed(server, ns)
    log = server.client.activation_logs(response.headers["x-instainfer-activation"])
    assert logged in "".join(line["text"] for line in log), "what it said last belongs to the call that it died in"
    again = server.call(ns, "bad", 1)
    assert again.status_code == 200
    assert again.headers["x-instainfer-start"] != "warm"


@pytest.mark.slow
def test_an_endless_call_is_killed_alone(server: Server, ns: str) -> None:
    """Its guest in the same container survives."""
    server.deploy(
        ns, "bad", "def handler(event):\n    while event: pass\n    return 1\n", timeout="1s", memory="128MB"
    )
    server.deploy(ns, "guest", "import os\n\ndef handler(event):\n    return os.getpid()\n")
    server.result(ns, "bad", 0)
    server.client.preload(ns, "guest")
    eventually(lambda: server.state(ns, "guest") == "preloaded")
    (process,) = server.instances("guest")
    response = server.call(ns, "bad", 1)
    assert "time limit of 1 s" in answered(response, "timed_out", 504, f"{ns}/bad", "inference")
    assert server.client.activation(response.headers["x-instainfer-activation"])["status"] == "timed_out"
    guest = server.call(ns, "guest")
    assert guest.headers["x-instainfer-start"] == "preloaded"
    assert server.instances("guest") == [process]
    assert server.result(ns, "bad", 0) == 1


@KERNEL
@pytest.mark.root
@pytest.mark.slow
def test_a_memory_hog_is_killed_alone(server: Server, ns: str) -> None:
    hog = "def handler(event):\n    held = [b'x' * 1_000_000 for _ in range(event)]\n    return len(held)\n"
    server.deploy(ns, "bad", hog, memory="48MB", timeout="20s")
    server.deploy(ns, "guest", "import os\n\ndef handler(event):\n    return os.getpid()\n", memory="32MB")
    server.result(ns, "bad", 1)
    server.client.preload(ns, "guest")
    eventually(lambda: server.state(ns, "guest") == "preloaded")
    (process,) = server.instances("guest")
    response = server.call(ns, "bad", 500)
    text = answered(response, "instance_crashed", 502, f"{ns}/bad", "inference")
    assert "memory limit of 48 MB" in text
    assert server.instances("guest") == [process]
    assert server.call(ns, "guest").headers["x-instainfer-start"] == "preloaded"
    assert server.result(ns, "bad", 1) == 1


@KERNEL
@pytest.mark.root
@pytest.mark.slow
def test_a_load_that_takes_too_much_memory(server: Server, ns: str) -> None:
    data = package(server.directory, "held = [b'x' * 1_000_000 for _ in range(500)]\n" + ECHO)
    text = undeployed(server, ns, data, "instance_crashed", 502, "load", memory="48MB")
    assert "memory limit of" in text


FORK_BOMB = """
import os
import time

def handler(event):
    forks = 0
    while event:
        try:
            if os.fork() == 0 and event == "sleeping":
                time.sleep(60)
                os._exit(0)
            forks += 1
        except OSError:
            if event == "sleeping":
                return forks
    return os.getpid()
"""


@KERNEL
@pytest.mark.root
@pytest.mark.slow
def test_a_fork_bomb_is_held(server: Server, ns: str) -> None:
    server.deploy(ns, "bad", FORK_BOMB, timeout="1s")
    server.result(ns, "bad")
    forks = server.result(ns, "bad", "sleeping")
    assert 20 < forks < 64
    children = server.instances("bad")
    assert len(children) == forks + 1
    assert server.http.get("/livez").status_code == 200
    server.client.offload(ns, "bad")
    gone(children)
    answered(server.call(ns, "bad", "spinning"), "timed_out", 504, f"{ns}/bad", "inference")
    eventually(lambda: len(server.instances("bad")) <= 1)
    assert server.result(ns, "bad") > 0


def test_output_without_end_is_cut(server: Server, ns: str) -> None:
    server.deploy(ns, "f", "def handler(event):\n    print('x' * 1_000_000)\n    return 1\n")
    response = server.call(ns, "f")
    assert response.json() == 1
    text = "".join(
        line["text"] for line in server.client.activation_logs(response.headers["x-instainfer-activation"])
    )
    assert 65_536 <= len(text) < 70_000
    assert "was dropped" in text


GARBAGE = """
import os

def handler(event):
    for fd in os.listdir("/proc/self/fd") if event else ():
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                os.write(int(fd), b"\\xff" * 64)
        except OSError:
            pass
    return os.getpid()
"""


def test_an_instance_that_lies_on_its_socket(server: Server, ns: str) -> None:
    """A function can write to the platform's socket; that must end it, not the server."""
    server.deploy(ns, "bad", GARBAGE)
    server.result(ns, "bad", 0)
    response = server.call(ns, "bad", 1)
    assert "protocol" in answered(response, "instance_crashed", 502, f"{ns}/bad", "inference")
    assert server.result(ns, "bad", 0)


def test_files_of_the_server_are_its_own(server: Server) -> None:
    for path in (server.data, server.data / "blobs", server.data / "events"):
        assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0, path  # noqa: PTH116 - the mode as it is
