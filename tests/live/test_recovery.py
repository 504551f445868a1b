"""What is killed comes back, and leaves nothing behind."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import httpx
import pytest

from instainfer.client import PREFIX
from tests.live.server_helpers import (
    ECHO,
    MEMORY,
    SANDBOX,
    Process,
    Server,
    calls,
    eventually,
    gone,
    package,
    undeployed,
)

SLEEPER = """
import os
import time

def handler(event):
    print("begun", flush=True)
    time.sleep(event.get("s", 0))
    return {"pid": os.getpid()}
"""


# ---- parts of it ----------------------------------------------------------------------------------------------


def test_an_instance_killed_during_a_call(server: Server, ns: str) -> None:
    server.deploy(ns, "f", SLEEPER)
    server.call(ns, "f")
    with calls() as flight:
        flight.add(server, ns, "f", {"s": 60})
        eventually(lambda: server.running(ns, "f"))
        (process,) = server.instances("f")
        process.kill()
        (response,) = flight.responses()
    assert response.status_code == 502
    problem = response.json()
    assert problem["type"] == "urn:instainfer:error:instance_crashed"
    assert (problem["function"], problem["phase"]) == (f"{ns}/f", "inference")
    assert "SIGKILL" in problem["detail"]
    again = server.call(ns, "f")
    assert again.status_code == 200
    assert again.headers["x-instainfer-start"] != "warm"


def test_an_instance_killed_before_it_reads_a_call(server: Server, ns: str) -> None:
    server.deploy(ns, "f", SLEEPER)
    server.call(ns, "f")
    (process,) = server.instances("f")
    process.suspend()
    with calls() as flight:
        flight.add(server, ns, "f")
        eventually(lambda: server.running(ns, "f"))
        process.kill()
        (response,) = flight.responses()
    assert response.status_code == 200
    assert response.headers["x-instainfer-start"] != "warm"


def test_an_idle_instance_killed(server: Server, ns: str) -> None:
    server.deploy(ns, "f", SLEEPER)
    server.call(ns, "f")
    (process,) = server.instances("f")
    process.kill()
    gone([process])
    assert server.call(ns, "f").status_code in (200, 502)  # it may be told of it only while it asks
    assert server.call(ns, "f").status_code == 200


def test_an_instance_killed_during_its_load(server: Server, ns: str) -> None:
    source = (
        "import time\nfrom pathlib import Path\nif Path(__file__).with_name('slow').exists(): time.sleep(60)\n"
    )
    server.deploy(ns, "f", source + ECHO)
    slow = server.package(ns, "f") / "slow"
    slow.touch()
    with calls() as flight:
        flight.add(server, ns, "f")
        (process,) = eventually(lambda: server.instances("f"))
        eventually(lambda: server.state(ns, "f") == "loading")
        process.kill()
        (response,) = flight.responses()
    assert response.status_code == 502
    assert response.json()["type"] == "urn:instainfer:error:instance_crashed"
    assert response.json()["phase"] == "load"
    slow.unlink()
    assert server.result(ns, "f", {"a": 1}) == {"a": 1}


def manager_of(process: Process) -> Process:
    parent = process.parent()
    assert parent is not None
    assert any("manager.py" in word for word in parent.cmdline())
    return parent


def test_a_manager_killed_during_a_call(server: Server, ns: str) -> None:
    server.deploy(ns, "f", SLEEPER)
    server.call(ns, "f")
    (container,) = server.containers(ns)
    with calls() as flight:
        flight.add(server, ns, "f", {"s": 60})
        eventually(lambda: server.running(ns, "f"))
        (process,) = server.instances("f")
        manager = manager_of(process)
        manager.kill()
        (response,) = flight.responses()
    assert response.status_code == 502
    assert response.json()["type"] == "urn:instainfer:error:instance_crashed"
    gone([process, manager])
    again = server.call(ns, "f")
    assert again.status_code == 200
    assert again.headers["x-instainfer-start"] != "warm"
    assert container["id"] not in [one["id"] for one in server.containers(ns)]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif(SANDBOX != "linux", reason="only the linux sandbox has a launcher")
def test_a_data_directory_that_cannot_be_written(own: Server) -> None:
    blobs = own.data / "blobs"
    blobs.write_text("not a directory")
    said = undeployed(own, "ns", package(own.directory, ECHO), "unavailable", 503, "package")
    assert "data directory" in said
    blobs.unlink()
    own.deploy("ns", "f", ECHO)
    assert own.result("ns", "f", {"a": 1}) == {"a": 1}


def test_the_launcher_killed(own: Server) -> None:
    for name in ("f", "g"):
        own.deploy("n", name, SLEEPER)
    own.call("n", "f")
    (launcher,) = [one for one in own.named("launcher") if one.ppid() == own.process.pid]
    with calls() as flight:
        flight.add(own, "n", "f", {"s": 0.5})
        eventually(lambda: own.running("n", "f"))
        launcher.kill()
        gone([launcher])
        (response,) = flight.responses()
    assert response.status_code in (200, 502)
    for name in ("f", "g", "f", "g"):
        eventually(lambda name=name: own.call("n", name).status_code == 200, seconds=20)  # type: ignore[misc]
    assert own.http.get("/healthz").status_code == 200


# ---- all of it ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_server_killed_during_calls(own: Server) -> None:
    own.deploy("n", "f", SLEEPER)
    own.deploy("n", "g", ECHO)
    own.deploy("n", "g", "def handler(event):\n    return 2\n")
    for name in ("f", "g"):
        own.call("n", name)
    kept = own.call("n", "g").headers["x-instainfer-activation"]
    assert own.client.activations(namespace="n", function="g")  # asking has it written
    with calls() as flight:
        for _ in range(3):
            flight.add(own, "n", "f", {"s": 60})
        eventually(lambda: own.running("n", "f"))
        own.kill()
        answers = flight.answers()
    assert all(isinstance(answer, httpx.TransportError) for answer in answers)
    own.start()
    assert sorted((f["name"], f["version"]) for f in own.client.functions("n")) == [("f", 1), ("g", 2)]
    assert own.result("n", "g") == 2
    assert own.call("n", "f").status_code == 200
    assert own.client.activation(kept)["function"] == "g"


@pytest.mark.slow
def test_nothing_is_left_after_kills(own: Server) -> None:
    """Neither after a stop nor, once the next server has started, after a kill -9 with containers in use."""
    own.deploy("n", "f", SLEEPER)
    for _ in range(2):
        with calls() as flight:
            flight.add(own, "n", "f", {"s": 60})
            eventually(lambda: own.running("n", "f"))
            own.kill()
            flight.answers()
        own.start()
        assert own.call("n", "f").status_code == 200
    assert own.term() == 0
    assert own.leftovers() == []
    assert sorted(path.name for path in own.data.iterdir()) == [
        "artifacts",
        "blobs",
        "environments",
        "events",
        "instainfer.db",
        "lock",
        "packages",
        "sandbox",
        "snapshots",
    ]


@pytest.mark.slow
def test_containers_end_with_a_killed_server(own: Server) -> None:
    """Without waiting for a next one."""
    own.deploy("n", "f", SLEEPER)
    own.call("n", "f")
    family = own.family()
    own.kill()
    gone(family)
    own.start()  # for what lies in the data directory


@pytest.mark.slow
def test_a_stop_lets_calls_end(own: Server) -> None:
    own.deploy("n", "f", SLEEPER)
    own.call("n", "f")
    with calls() as flight:
        flight.add(own, "n", "f", {"s": 1})
        eventually(lambda: own.running("n", "f"))
        assert own.term() == 0
        (response,) = flight.responses()
    assert response.status_code == 200
    assert own.leftovers() == []
    own.start()
    record = own.client.activations(namespace="n", function="f")[0]
    assert (record["id"], record["status"]) == (response.headers["x-instainfer-activation"], "ok")


@pytest.mark.slow
def test_a_stop_does_not_wait_for_ever(tmp_path: Path) -> None:
    with Server(tmp_path, "--memory", "1GB", variables={"INSTAINFER_SERVER__DRAIN_S": "0.3"}) as own:
        own.deploy("n", "f", SLEEPER)
        own.call("n", "f")
        with calls() as flight:
            flight.add(own, "n", "f", {"s": 60})
            eventually(lambda: own.running("n", "f"))
            flight.add(own, "n", "f", {"s": 60})  # waits for the first
            assert own.term() == 0
            responses = flight.responses()
        for response in responses:
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
        ran, waited = responses
        assert ran.json()["type"] == "urn:instainfer:error:unavailable"
        assert "x-instainfer-again" not in ran.headers
        assert waited.json()["type"] == "urn:instainfer:error:stopping"  # it was not begun
        assert waited.headers["x-instainfer-again"] == "safe"
        assert own.leftovers() == []


@pytest.mark.slow
def test_a_stop_during_a_load(own: Server) -> None:
    source = "import time\nfrom pathlib import Path\nif Path(__file__).with_name('slow').exists(): time.sleep(1)\n"
    own.deploy("n", "f", source + ECHO)
    (own.package("n", "f") / "slow").touch()
    with calls() as flight:
        flight.add(own, "n", "f", 5)
        eventually(lambda: own.state("n", "f") == "loading")
        assert own.term() == 0
        (response,) = flight.responses()
    assert (response.status_code, response.json()) == (200, 5)


@pytest.mark.slow
def test_a_deployment_cut_off_by_a_kill(own: Server) -> None:
    """What was deployed before goes on serving; the same package can be deployed again."""
    own.deploy("n", "f", "def handler(event):\n    return 1\n")
    slow = package(own.directory, "import time\ntime.sleep(2)\n\ndef handler(event):\n    return 2\n")
    measuring = threading.Event()
    url = f"{own.url}{PREFIX}/functions/n/f"

    def deploy() -> None:
        files = {"package": ("package.zip", slow, "application/zip")}
        settings = {"settings": json.dumps({"memory": MEMORY})}
        try:
            with httpx.stream("PUT", url, data=settings, files=files, timeout=60, trust_env=False) as response:
                for line in response.iter_lines():
                    if json.loads(line).get("phase") == "measure":
                        measuring.set()
        except httpx.TransportError:
            pass  # what the kill is for

    thread = threading.Thread(target=deploy)
    thread.start()
    assert measuring.wait(30)
    own.kill()
    thread.join(30)
    assert not thread.is_alive()
    own.start()
    assert own.client.function("n", "f")["version"] == 1
    assert own.result("n", "f") == 1
    events = own.put("n", "f", slow)
    assert events[-1]["event"] == "deployed", events[-1]
    assert own.result("n", "f") == 2


@pytest.mark.slow
def test_a_caller_who_leaves_a_deployment_ends_it(server: Server, ns: str) -> None:
    slow = package(server.directory, "import time\ntime.sleep(2)\n" + ECHO)
    files = {"package": ("package.zip", slow, "application/zip")}
    with server.http.stream("PUT", f"{PREFIX}/functions/{ns}/f", files=files) as response:
        for line in response.iter_lines():
            if json.loads(line).get("phase") == "measure":
                break
    eventually(lambda: not server.instances("f"))
    assert server.client.functions(ns) == []
    server.deploy(ns, "f", ECHO)
    assert server.result(ns, "f", 1) == 1
