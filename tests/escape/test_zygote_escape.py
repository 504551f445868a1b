"""A library that wants more than the functions that import it. It runs in a zygote, which may become each of them,
and in what is forked from it; nobody else's packages, snapshots, scratch, memory or processes may be in reach."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from instainfer.core import events
from instainfer.model import Style
from tests.contract.agent_helpers import UID_BASE, World
from tests.contract.fast_helpers import (
    MODULE,
    container,
    function,
    library,
    loaded,
    player,
    provided,
    run,
    start_zygote,
    zygote,
    zygotes,
)
from tests.contract.test_snapshots import deployed, file_of, model
from tests.escape.test_linux_escape import CALLS

pytestmark = pytest.mark.root

OWN, MATE, STRANGER = 1, 2, 3  # numbers of functions: two of the library's environment, one of another
REFUSED = {"EPERM", "EACCES", "EINVAL", "ENOENT", "ESRCH", "EROFS", "ENOSPC"}

#: What the library does at its import, in the zygote; `said` is found by each fork.
HOSTILE = (
    CALLS
    + """
import os, socket
said = {}
def read(path):
    return open(path, "rb").read(1)
def become(uid):
    os.setresuid(uid, uid, uid)
def as_other(uid, do, *args):
    "In a child, to stay who we are: what came of it."
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresgid(uid, uid, uid)
            become(uid)
            outcome = result(do, *args)
        except OSError as error:
            outcome = "not " + errno.errorcode[error.errno]
        except BaseException as error:
            outcome = repr(error)
        os.write(writing, outcome.encode())
        os._exit(0)
    os.close(writing)
    outcome = os.read(reading, 4096).decode()
    os.close(reading)
    os.waitpid(pid, 0)
    return outcome
"""
)


def hostile(path: Path, code: str) -> dict[str, Any]:
    """Settings of a function that imports it."""
    return {"python": library(path, hostile=HOSTILE + code), "libraries": "key", "modules": ("hostile",)}


def package_of(path: Path, number: int) -> Path:
    """Where the agent puts the package of the function `f<number>`."""
    of, _ = function(name=f"f{number}", number=number)
    return path / "packages" / "ns" / f"{of.name}-{of.digest.rpartition(':')[2][:24]}"


async def imported(w: World, path: Path, code: str) -> Any:
    """What the library's `said` is, at its import in a zygote."""
    of = await provided(w, function(number=OWN, **hostile(path, code)))
    await container(w, of)
    await zygote(w, of)
    assert await loaded(w, "i1", of) == "forked"
    return await run(w, "i1", "import hostile; out = hostile.said")


def test_it_becomes_nobody_else(tmp_path: Path) -> None:
    code = f"""
for uid in (1000 + {STRANGER}, 1000 + {MATE}, 1, 65534, 998, {UID_BASE}, {UID_BASE + 1003}, 2**32 - 2):
    said["uid %d" % uid] = as_other(uid, os.getpid)
    said["gid %d" % uid] = result(os.setresgid, uid, uid, uid)
said["groups"] = result(os.setgroups, [1000 + {STRANGER}])
said["map"] = result(lambda: os.write(os.open("/proc/self/uid_map", os.O_WRONLY), b"0 0 1"))
said["user namespace"] = call("unshare", 0x10000000)
said["mount namespace"] = call("unshare", 0x20000)
said["mount"] = call("mount", b"none", b"/tmp", b"tmpfs", 0, None)
said["chroot"] = result(os.chroot, "/tmp")
said["device"] = result(os.mknod, "/tmp/disk", 0o60666, os.makedev(254, 0))
"""

    @player("linux", tmp_path)
    async def scenario(w: World) -> None:
        said = await imported(w, tmp_path, code)
        for what, outcome in said.items():
            assert outcome.removeprefix("not ") in REFUSED, (what, outcome)


def test_as_root_of_its_room_it_is_nobody(tmp_path: Path) -> None:
    """Uid 0 is there, since the room's manager has it. To become it gives no capability, by an exec neither, and
    nothing is its own."""
    environment = str(tmp_path / "environments" / "ns" / "e" / "new")
    packages = [str(package_of(tmp_path, number)) for number in (STRANGER, STRANGER + 1)]  # the second runs
    code = f"""
import subprocess, sys, json
program = '''
import json, os, ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def result(do, *args):
    try:
        do(*args)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
status = open("/proc/self/status").read()
words = {{line.split(":")[0]: line.split(":")[1].strip() for line in status.splitlines()}}
print(json.dumps({{
    "ids": os.getresuid(),
    "capabilities": [int(words[n], 16) & ~0xC0 for n in ("CapEff", "CapPrm", "CapInh", "CapAmb")],
    "manager's memory": result(lambda: open("/proc/1/mem", "rb").read(1)),
    "manager's descriptors": result(os.listdir, "/proc/1/fd"),
    "manager's environment": result(lambda: open("/proc/1/environ").read()),
    "trace": "done" if libc.ptrace(16, 1, None, None) == 0 else errno.errorcode[ctypes.get_errno()],
    "mount": result(os.chroot, "/tmp"),
    "packages": [result(os.listdir, there) for there in {packages!r}],
    "environment": result(lambda: open({environment!r}, "w")),
}}))
'''
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    os.dup2(writing, 1)
    try:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        os.execv(sys.executable, [sys.executable, "-S", "-c", program])
    except OSError as error:
        os.write(1, json.dumps(error.errno).encode())
    os._exit(0)
os.close(writing)
text = b""
while more := os.read(reading, 65536):
    text += more
os.close(reading)
os.waitpid(pid, 0)
said = json.loads(text)
"""

    @player("linux", tmp_path)
    async def scenario(w: World) -> None:
        await provided(w, function(name=f"f{STRANGER}", number=STRANGER))
        other = await provided(w, function(name=f"f{STRANGER + 1}", number=STRANGER + 1))
        await container(w, other, "c9")
        await loaded(w, "i9", other, "c9")
        said = await imported(w, tmp_path, code)
        if isinstance(said, int):
            return  # it could not become root at all: better still
        assert said.pop("ids") == [0, 0, 0]
        assert set(said.pop("capabilities")) == {0}, "more than what the zygote had"
        assert set(said.pop("packages")) == {"EACCES"}
        assert set(said.values()) <= REFUSED, said
        assert await run(w, "i9", "out = 1") == 1


def test_it_reads_nothing_of_other_functions(tmp_path: Path) -> None:
    """As a fork of its zygote, and as whoever the zygote may become."""

    @player("linux", tmp_path)
    async def scenario(w: World) -> None:
        victim = await deployed(w, model(name="v", number=STRANGER), "c8")
        await loaded(w, "v1", victim, "c8")
        await run(w, "v1", "import os; open(os.environ['HOME'] + '/secret', 'w').write('secret'); out = 0")
        snapshot = file_of(w)
        (package,) = (tmp_path / "packages" / "ns").glob("v-*")
        code = f"""
targets = {{
    "package": {str(package / "main.py")!r},
    "snapshot": {str(snapshot)!r},
    "scratch": "/tmp/f{1000 + STRANGER}/secret",
}}
for who in (999, 0, 1000 + {OWN}):
    for name, path in targets.items():
        said["%s as %d" % (name, who)] = as_other(who, read, path)
said["processes"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
said["me"] = os.getpid()
"""
        said = await imported(w, tmp_path, code)
        me = said.pop("me")
        # the manager, itself, and perhaps a process that erases
        assert set(said.pop("processes")) <= set(range(1, me + 1))
        assert {outcome.removeprefix("not ") for outcome in said.values()} <= {"EACCES", "EPERM", "ENOENT"}, said
        fork = await run(
            w,
            "i1",
            f"""
import hostile, os, signal
out = {{
    "package": hostile.result(hostile.read, {str(package / "main.py")!r}),
    "snapshot": hostile.result(hostile.read, {str(snapshot)!r}),
    "scratch": hostile.result(hostile.read, "/tmp/f{1000 + STRANGER}/secret"),
    "zygote": hostile.result(hostile.read, "/proc/%d/mem" % os.getppid()),
    "zygote's descriptors": hostile.result(os.listdir, "/proc/%d/fd" % os.getppid()),
    "signal": hostile.result(os.kill, os.getppid(), signal.SIGKILL),
    "uid": hostile.result(hostile.become, 1000 + {STRANGER}),
    "root": hostile.result(hostile.become, 0),
    "back": hostile.result(hostile.become, 999),
}}
""",
        )
        assert set(fork.values()) <= REFUSED, fork
        assert await run(w, "v1", "import os; out = open(os.environ['HOME'] + '/secret').read()") == "secret"


def test_it_reaches_no_process_outside(tmp_path: Path) -> None:
    code = """
import signal
outcomes = set()
def sweep(act):
    for pid in range(1, 5000):
        if pid != os.getpid():
            try:
                act(pid)
                outcomes.add(pid)
            except OSError:
                pass
sweep(lambda pid: os.kill(pid, 0))
said["signalled"] = sorted(outcomes)
outcomes.clear()
sweep(lambda pid: read("/proc/%d/environ" % pid))
sweep(lambda pid: read("/proc/%d/mem" % pid))
said["read"] = sorted(outcomes)
said["traced"] = call("ptrace", 16, 1, None, None)
pidfd = libc.syscall(434, 1, 0)
said["taken"] = call("syscall", 438, pidfd, 3, 0) if pidfd >= 0 else "EPERM"
if pidfd >= 0:
    os.close(pidfd)
try:
    os.kill(-1, signal.SIGKILL)
except OSError:
    pass
"""

    @player("linux", tmp_path)
    async def scenario(w: World) -> None:
        other = await provided(w, function(name="h", number=STRANGER))
        await container(w, other, "c9")
        await loaded(w, "i9", other, "c9")
        said = await imported(w, tmp_path, code)
        assert said["signalled"] == []
        assert said["read"] == []
        assert {said["traced"], said["taken"]} <= REFUSED
        assert await run(w, "i9", "out = 1") == 1


def test_it_writes_nowhere_and_reaches_no_network(tmp_path: Path) -> None:
    code = f"""
environment = os.path.dirname(__file__)
def write(path):
    open(path, "w").close()
for who in (999, 0, 1000 + {OWN}):
    said["new file as %d" % who] = as_other(who, write, environment + "/new.py")
    said["own file as %d" % who] = as_other(who, write, __file__)
    said["mode as %d" % who] = as_other(who, os.chmod, environment, 0o777)
    said["snapshots as %d" % who] = as_other(who, write, {str(tmp_path / "snapshots" / "ns" / "new")!r})
    said["packages as %d" % who] = as_other(who, write, {str(tmp_path / "packages" / "ns" / "new")!r})
    said["runtime as %d" % who] = as_other(who, write, sys.modules["_instainfer_runtime.manager"].__file__)
    said["host as %d" % who] = as_other(who, write, "/etc/new")
said["abroad"] = result(socket.create_connection, ("192.0.2.1", 80), 1)
said["raw"] = result(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
"""

    @player("linux", tmp_path)
    async def scenario(w: World) -> None:
        said = await imported(w, tmp_path, "import sys\n" + code)
        assert said.pop("abroad") == "ENETUNREACH"
        assert {outcome.removeprefix("not ") for outcome in said.values()} <= REFUSED, said
        assert not list((tmp_path / "environments").rglob("new*"))


def test_what_it_leaves_running_and_open_goes_with_it(tmp_path: Path) -> None:
    """A process that it left behind as another uid, and descriptors that it kept for the function that comes."""
    code = f"""
import signal, time
keep = os.open("/dev/null", os.O_RDWR)
for fd in range(200, 220):
    os.dup2(keep, fd)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        become(1000 + {OWN})
        time.sleep(1000)
    os._exit(0)
os.wait()
"""

    @player("linux", tmp_path)
    async def scenario(w: World) -> None:
        of = await provided(w, function(number=OWN, **hostile(tmp_path, code)))
        await container(w, of)
        start_zygote(w, of)
        await w.until(events.ZygoteReady, zygote="z1")
        assert await loaded(w, "i1", of) == "forked"
        [head] = zygotes()
        head.kill()
        await w.until(events.ZygoteLost, zygote="z1")
        assert await run(w, "i1", "out = 1") == 1

    # and `player` looks that nothing is left


def test_two_environments_do_not_meet(tmp_path: Path) -> None:
    """Functions of one namespace in one container: the fork of a hostile library and a function without it."""

    @player("linux", tmp_path)
    async def scenario(w: World) -> None:
        of = await provided(w, function(number=OWN, **hostile(tmp_path, "")))
        other = await provided(w, function(MODULE, name="h", number=STRANGER, style=Style.MODULE))
        await container(w, of)
        await loaded(w, "i9", other)
        await run(w, "i9", "import os; os.environ['SECRET'] = '1'; out = 0")
        await zygote(w, of)
        assert await loaded(w, "i1", of) == "forked"
        there = await run(w, "i9", "import os; out = os.getpid()")
        seen = await run(
            w,
            "i1",
            f"""
import hostile, os, signal
out = [hostile.result(hostile.read, "/proc/{there}/mem"), hostile.result(os.kill, {there}, signal.SIGSTOP),
       hostile.result(os.listdir, "/proc/{there}/fd")]
""",
        )
        assert set(seen) <= {"ENOENT", "ESRCH", "EPERM", "EACCES"}
        assert await run(w, "i9", "out = 1") == 1


def test_the_attempts_would_succeed_without_a_sandbox() -> None:
    """A check of the tests: the same code as root, on the host, becomes another and reads the file."""
    assert os.geteuid() == 0
    scope: dict[str, Any] = {}
    exec(HOSTILE, scope)
    assert scope["as_other"](1003, os.getpid) == "done"
    assert scope["as_other"](1003, scope["read"], "/etc/shadow") == "EACCES"
    assert scope["as_other"](0, scope["read"], "/etc/passwd") == "done"
