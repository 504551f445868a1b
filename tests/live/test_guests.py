"""Several functions in one container: who may be there, who executes, and what they can do to each other."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.live.server_helpers import ECHO, SANDBOX, Server, alive, calls, eventually, gone

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(SANDBOX != "linux", reason="the process sandbox does not keep guests apart"),
]

#: Its thread notes the time every few milliseconds for as long as it executes at all.
TICKING = """
import os
import threading
import time

ticks = []
secret = os.environ.get("SECRET", "")

def tick():
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.002)

threading.Thread(target=tick, daemon=True).start()

def handler(event):
    return {"ticks": list(ticks), "pid": os.getpid()}
"""

RUNNING = """
import time

def handler(event):
    began = time.monotonic()
    time.sleep(event.get("s", 0))
    return {"began": began, "ended": time.monotonic()}
"""

SPY = """
import ctypes
import os
import signal
from pathlib import Path

def attempt(do, *arguments):
    try:
        return do(*arguments)
    except OSError as error:
        return type(error).__name__

def kill(pid, number):
    os.kill(pid, number)
    return "sent"

def memory(pid):
    with open(f"/proc/{pid}/mem", "rb") as file:
        file.seek(0x1000)
        return "opened"

def attach(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    PTRACE_SEIZE = 0x4206
    return "attached" if libc.ptrace(PTRACE_SEIZE, pid, None, None) == 0 else "refused"

def handler(event):
    pid = event["pid"]
    return {
        "package": attempt(os.listdir, event["package"]),
        "source": attempt(Path(event["package"], "main.py").read_text),
        "scratch": [attempt(Path(path).read_text) for path in event["scratch"]],
        "spoil": [attempt(Path(path).write_text, "spoilt") for path in event["scratch"]],
        "remove": [attempt(os.unlink, path) for path in event["scratch"]],
        "memory": attempt(memory, pid),
        "environ": attempt(Path(f"/proc/{pid}/environ").read_bytes),
        "maps": attempt(Path(f"/proc/{pid}/maps").read_text),
        "fds": attempt(os.listdir, f"/proc/{pid}/fd"),
        "cwd": attempt(os.readlink, f"/proc/{pid}/cwd"),
        "signals": [attempt(kill, pid, number) for number in (0, signal.SIGCONT, signal.SIGKILL)],
        "manager": [attempt(kill, 1, number) for number in (0, signal.SIGKILL)],
        "all": attempt(kill, -1, signal.SIGKILL) if event.get("all") else None,
        "ptrace": attach(pid),
        "uid": os.getuid(),
    }
"""

KEEPER_OF_SECRETS = """
import os
import tempfile
from pathlib import Path

made = Path(tempfile.mkdtemp()) / "in a directory"
made.write_text("secret")
plain = Path(tempfile.gettempdir()) / "plain"
plain.write_text("secret")
shm = Path("/dev/shm/plain")
shm.write_text("secret")

def handler(event):
    scratch = [str(made), str(plain), str(shm)]
    return {
        "pid": os.getpid(),
        "uid": os.getuid(),
        "package": os.path.dirname(__file__),
        "scratch": scratch,
        "contents": [Path(path).read_text() if os.path.exists(path) else None for path in scratch],
    }
"""


def together(server: Server, ns: str, host: str, guest: str) -> dict[str, Any]:
    """Call `host`, then pre-load `guest` by hand into its container: the container."""
    server.result(ns, host)
    (container,) = server.containers(ns)
    assert container["id"] in server.client.preload(ns, guest)["message"]
    eventually(lambda: server.state(ns, guest) == "preloaded")
    return container


def members(server: Server, ns: str) -> list[tuple[str, int]]:
    """(function, version) of every instance in the one container of the namespace."""
    (container,) = server.containers(ns)
    return sorted((one["function"].partition("/")[2], one["version"]) for one in container["instances"])


def test_a_guest_is_loaded_by_hand(server: Server, ns: str) -> None:
    """And costs the container nothing: there are no more of them, its limit and its idle time stay."""
    server.deploy(ns, "a", ECHO, memory="128MB")
    server.deploy(ns, "b", ECHO)
    before = together(server, ns, "a", "b")
    (after,) = server.containers(ns)
    same = "id", "owner", "limit_mb", "pinned", "expires_in_s"
    assert [after[key] for key in same] == [before[key] for key in same]
    assert after["idle_s"] > before["idle_s"], "a pre-load is no use"
    assert members(server, ns) == [("a", 1), ("b", 1)]
    response = server.call(ns, "b", {"x": 1})
    assert (response.json(), response.headers["x-instainfer-start"]) == ({"x": 1}, "preloaded")
    record = server.client.activation(response.headers["x-instainfer-activation"])
    assert record["container"] == before["id"]
    assert "already" in server.client.preload(ns, "b")["message"]


@pytest.mark.slow
def test_ownership_passes_to_who_ran_last(server: Server, ns: str) -> None:
    server.deploy(ns, "a", ECHO, memory="128MB")
    server.deploy(ns, "b", ECHO, memory="96MB")
    together(server, ns, "a", "b")
    for name, limit in (("b", 96.0), ("a", 128.0), ("b", 96.0)):
        server.call(ns, name)
        (container,) = server.containers(ns)
        assert (container["owner"], container["limit_mb"]) == (f"{ns}/{name}", limit)
        assert members(server, ns) == [("a", 1), ("b", 1)]
        files = [
            *Path("/sys/fs/cgroup").glob(f"**/instainfer-*/{container['id']}/memory.limit_in_bytes"),
            *Path("/sys/fs/cgroup").glob(f"**/instainfer-*/{container['id']}/memory.max"),
        ]
        state = (server.data / "sandbox" / "owner").read_text().strip()
        limits = {int(file.read_text()) for file in files if state in str(file)}
        assert {value // 1_000_000 for value in limits} <= {int(limit), int(limit) - 1}, "page-aligned at most"


@pytest.mark.slow
def test_the_platform_does_it_itself(tmp_path: Path) -> None:
    """B's own container ends by the keep-alive policy; B is then loaded into what A does not use."""
    flags = "--memory", "1GB", "--keep-alive", "fixed", "--keep-alive-seconds", "1"
    large = "held = b'x' * 80_000_000\n"  # A never fits into B's
    with Server(tmp_path, *flags) as server:
        server.deploy("n", "b", ECHO)
        first = server.call("n", "b")
        assert first.headers["x-instainfer-start"] == "cold"
        server.deploy("n", "a", large + ECHO, memory="256MB")
        server.client.pin("n", "a")
        eventually(lambda: server.state("n", "a") == "preloaded")
        (keeper,) = [one for one in server.containers("n") if one["owner"] == "n/a"]
        eventually(lambda: [one["id"] for one in server.containers("n")] == [keeper["id"]])
        eventually(lambda: server.state("n", "b") == "preloaded")
        (container,) = server.containers("n")
        assert (container["id"], container["limit_mb"]) == (keeper["id"], keeper["limit_mb"])
        second = server.call("n", "b", {"x": 1})
        assert (second.json(), second.headers["x-instainfer-start"]) == ({"x": 1}, "preloaded")
        records = [server.client.activation(one.headers["x-instainfer-activation"]) for one in (first, second)]
        assert records[0]["container"] != keeper["id"]
        assert records[1]["container"] == keeper["id"]


@pytest.mark.slow
def test_the_others_are_frozen_while_one_runs(server: Server, ns: str) -> None:
    server.deploy(ns, "a", TICKING, memory="128MB")
    server.deploy(ns, "b", RUNNING)
    together(server, ns, "a", "b")
    first = server.result(ns, "a")
    run = server.result(ns, "b", {"s": 0.2})
    second = server.result(ns, "a")
    assert second["pid"] == first["pid"]
    assert len(first["ticks"]) > 0
    during = [tick for tick in second["ticks"] if run["began"] <= tick <= run["ended"]]
    assert during == []
    assert second["ticks"][-1] > run["ended"], "it goes on afterwards"


@pytest.mark.slow
def test_a_guest_does_not_execute_beside_its_host(server: Server, ns: str) -> None:
    """The other way round: loaded ahead, it is frozen during its host's run."""
    server.deploy(ns, "a", RUNNING, memory="128MB")
    server.deploy(ns, "b", TICKING)
    together(server, ns, "a", "b")
    run = server.result(ns, "a", {"s": 0.2})
    guest = server.result(ns, "b")
    assert [tick for tick in guest["ticks"] if run["began"] <= tick <= run["ended"]] == []


@pytest.mark.slow
def test_two_functions_of_one_container_take_turns(server: Server, ns: str) -> None:
    server.deploy(ns, "a", RUNNING, memory="128MB")
    server.deploy(ns, "b", RUNNING)
    container = together(server, ns, "a", "b")
    with calls() as flight:
        for _ in range(6):
            for name in ("a", "b"):
                flight.add(server, ns, name, {"s": 0.01})
        responses = flight.responses()
    runs: dict[str, list[tuple[float, float]]] = {}
    for response in responses:
        assert response.status_code == 200, response.text
        record = server.client.activation(response.headers["x-instainfer-activation"])
        runs.setdefault(record["container"], []).append((response.json()["began"], response.json()["ended"]))
    assert container["id"] in runs
    for inside in runs.values():
        inside.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(inside))


@pytest.mark.slow
def test_strict_isolation_ends_the_others_first(server: Server, ns: str) -> None:
    server.deploy(ns, "a", TICKING, memory="128MB")
    slow = "import time\ntime.sleep(0.2)\n"  # so that no second container is worth it while the first is cleared
    server.deploy(ns, "b", slow + RUNNING, isolation="strict")
    together(server, ns, "a", "b")
    (host,) = server.instances("a")
    run = server.result(ns, "b", {"s": 0})
    assert run["ended"] >= run["began"]
    assert members(server, ns) == [("b", 1)]
    assert not alive(host)


def test_a_guest_can_do_nothing_to_its_host(server: Server, ns: str) -> None:
    server.deploy(ns, "a", KEEPER_OF_SECRETS, memory="128MB", zygote=False, env={"SECRET": "in the environment"})
    server.deploy(ns, "b", SPY, zygote=False)  # in one pid namespace with its host
    together(server, ns, "a", "b")
    host = server.result(ns, "a")
    (process,) = server.instances("a")
    seen = server.result(ns, "b", host)
    denied = {"PermissionError", "FileNotFoundError", "ProcessLookupError"}
    for key in ("package", "source", "memory", "environ", "maps", "fds", "cwd"):
        assert isinstance(seen[key], str), (key, seen[key])
        assert seen[key] in denied, (key, seen[key])
    assert set(seen["signals"]) <= denied
    assert set(seen["manager"]) <= denied
    assert seen["ptrace"] == "refused"
    assert seen["uid"] != host["uid"]
    assert set(seen["scratch"]) <= denied, "what it wrote to its scratch is for itself"
    assert set(seen["spoil"]) <= denied
    assert set(seen["remove"]) <= denied
    after = server.result(ns, "a")
    assert after["pid"] == host["pid"]
    assert after["contents"] == ["secret"] * 3
    assert server.instances("a") == [process]


def test_a_guest_that_signals_everybody_ends_alone(server: Server, ns: str) -> None:
    server.deploy(ns, "a", KEEPER_OF_SECRETS, memory="128MB")
    server.deploy(ns, "b", SPY)
    together(server, ns, "a", "b")
    host = server.result(ns, "a")
    server.call(ns, "b", {**host, "all": True})
    assert server.result(ns, "a")["pid"] == host["pid"]


def test_a_new_version_retires_the_old_guest(server: Server, ns: str) -> None:
    server.deploy(ns, "a", ECHO, memory="128MB")
    server.deploy(ns, "b", "def handler(event):\n    return 1\n")
    together(server, ns, "a", "b")
    (old,) = server.instances("b")
    server.deploy(ns, "b", "def handler(event):\n    return 2\n")
    gone([old])
    eventually(lambda: ("b", 1) not in [pair for one in server.containers(ns) for pair in members_of(one)])
    assert server.result(ns, "b") == 2
    assert server.result(ns, "a", 3) == 3


def members_of(container: dict[str, Any]) -> list[tuple[str, int]]:
    return [(one["function"].partition("/")[2], one["version"]) for one in container["instances"]]


def test_deleting_a_guest_leaves_its_host(server: Server, ns: str) -> None:
    server.deploy(ns, "a", "import os\n\ndef handler(event):\n    return os.getpid()\n", memory="128MB")
    server.deploy(ns, "b", ECHO)
    together(server, ns, "a", "b")
    pid = server.result(ns, "a")
    server.client.delete(ns, "b")
    eventually(lambda: members(server, ns) == [("a", 1)])
    assert server.result(ns, "a") == pid


@pytest.mark.slow
def test_namespaces_share_no_container(server: Server, ns: str) -> None:
    server.deploy(ns, "a", ECHO, memory="256MB")
    server.call(ns, "a")
    other = ns + "-other"
    server.deploy(other, "b", "import os\n\ndef handler(event):\n    return os.listdir(event)\n")
    try:
        server.call(other, "b", "/")
        assert len(server.containers(ns)) == len(server.containers(other)) == 1
        parent = str(server.data / "packages")
        assert server.result(other, "b", parent) == [other]
        assert Path(parent, ns).is_dir()
    finally:
        server.client.delete(other, "b")
