"""Library zygotes: what is forked from one is what would have been spawned, and nothing of either is left."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from instainfer.agent.base import Logged
from instainfer.agent.local import LocalAgent
from instainfer.core import actions, events
from instainfer.model import FunctionSpec, Level, Style
from tests.contract.agent_helpers import MB, World, destroy, lift, managers, offload, world
from tests.contract.fast_helpers import (
    CLASS,
    MODULE,
    SANDBOXES,
    SCRIPT,
    Play,
    container,
    end_zygote,
    function,
    library,
    load,
    loaded,
    player,
    provided,
    run,
    runtimes,
    start_zygote,
    zygote,
    zygotes,
)

LIBRARY = """
import os, random, uuid, tempfile, json
made_in = os.getpid()
kept = list(range(50_000))
"""

STYLES = [
    pytest.param(MODULE, Style.MODULE, "main:handler", id="module"),
    pytest.param(CLASS, Style.CLASS, "main:Model", id="class"),
    pytest.param(SCRIPT, Style.SCRIPT, "main.py", id="script"),
]

#: Who and what a process is, but for its numbers.
SELF = """
import ctypes, gc, io, locale, os, resource, signal, socket, stat, sys, threading
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
main = sys.modules["__main__"]
environ = {name: value for name, value in os.environ.items() if name != "INSTAINFER_SANDBOX"}
umask = os.umask(0)
os.umask(umask)
out = {
    "argv": sys.argv,
    "main": [main.__name__, getattr(main, "__file__", None), "state" in vars(main)],
    "cwd": os.getcwd(),
    "environ": environ,
    "environ of C": {name: libc.getenv(name.encode()).decode() for name in environ},
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "capabilities": [status[name].strip() for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")],
    "privileges": status["NoNewPrivs"],
    "seccomp": status.get("Seccomp"),
    "signals": [status[name] for name in ("SigBlk", "SigIgn")],
    "handlers": {s.name: str(signal.getsignal(s)) for s in signal.Signals if s.name not in ("SIGKILL", "SIGSTOP")},
    "wakeup": signal.set_wakeup_fd(-1),
    "threads": [status["Threads"], threading.active_count(), threading.current_thread() is threading.main_thread(),
                threading.main_thread().native_id == os.getpid()],
    "leads": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
    "umask": umask,
    "limits": {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")},
    "nice": os.nice(0),
    "oom": open("/proc/self/oom_score_adj").read(),
    "stdin": os.readlink("/proc/self/fd/0"),
    "streams": [[s.encoding, s.errors, s.line_buffering] for s in (sys.__stdout__, sys.__stderr__)],
    "path": sys.path,
    "flags": str(sys.flags),
    "bytecode": sys.dont_write_bytecode,
    "executable": sys.executable,
    "locale": locale.setlocale(locale.LC_ALL),
    "gc": [gc.isenabled(), gc.get_threshold()],
    "home": [oct(os.stat(os.environ["HOME"]).st_mode), os.stat(os.environ["HOME"]).st_uid],
    "dumpable": os.stat("/proc/self/maps").st_uid == os.getuid(),
    "recursion": sys.getrecursionlimit(),
    "exception hook": sys.excepthook is sys.__excepthook__,
    "being handled": str(sys.exc_info()[0]),
    "group": open("/proc/self/cgroup").read().count("\\n"),
}
"""

#: Open descriptors: what each is.
OPEN = """
import os
out = {}
for name in os.listdir("/proc/self/fd"):
    try:
        out[name] = os.readlink("/proc/self/fd/" + name).partition(":")[0]
    except OSError:
        pass
"""


@pytest.fixture(params=SANDBOXES)
def sandbox(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def play(sandbox: str, tmp_path: Path) -> Play:
    return player(sandbox, tmp_path)


@pytest.fixture
def lib(tmp_path: Path) -> dict[str, Any]:
    """Settings of a revision that uses an environment with a library."""
    return {"python": library(tmp_path, lib=LIBRARY), "libraries": "key", "modules": ("lib",)}


# ---- being what would have been spawned ------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "style", "entry"), STYLES)
def test_a_fork_is_what_would_have_been_spawned(
    play: Play, lib: dict[str, Any], sandbox: str, source: str, style: Style, entry: str
) -> None:
    @play
    async def scenario(w: World) -> None:
        made = function(source, style=style, entry=entry, variables={"MINE": "1", "OMP_NUM_THREADS": "3"}, **lib)
        of = await provided(w, made)
        await container(w, of)
        assert await loaded(w, "i1", of) == "spawned"
        await zygote(w, of)
        assert await loaded(w, "i2", of) == "forked"
        spawned, forked = await run(w, "i1", SELF), await run(w, "i2", SELF)
        assert forked == spawned
        assert forked["environ"]["MINE"] == "1"
        assert forked["leads"] == [True, True]
        if sandbox == "linux":
            assert forked["ids"] == [[1001] * 3, [1001] * 3, []]
            assert {int(word, 16) for word in forked["capabilities"][:4]} == {0}
            assert forked["privileges"] == "1"
        first, second = await run(w, "i1", OPEN), await run(w, "i2", OPEN)
        assert sorted(second.values()) == sorted(first.values()), (first, second)
        answer = "import lib; state['seen'] += 1; out = [state['seen'], len(lib.kept)]"
        assert await run(w, "i1", answer) == await run(w, "i2", answer) == [1, 50_000]
        # it was the zygote that imported: the parent's number is what the library noted
        assert await run(w, "i2", "import lib, os; out = lib.made_in not in (os.getpid(), 0)")


def test_over_http_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with world("http", "process", tmp_path) as w:
            of = await provided(w, function(python=library(tmp_path, lib=""), libraries="key", modules=("lib",)))
            await container(w, of)
            await zygote(w, of)
            assert await loaded(w, "i1", of) == "forked"
            w.send(end_zygote())
            assert (await w.until(events.ZygoteLost, zygote="z1")).reason == "the test says so"

    asyncio.run(main())
    assert not managers()


def test_siblings_draw_different_numbers(play: Play, lib: dict[str, Any]) -> None:
    code = """
import random, tempfile, uuid, os
out = [random.random(), str(uuid.uuid4()), str(uuid.uuid1()), tempfile.mktemp(), os.urandom(4).hex(),
       os.path.basename(tempfile.NamedTemporaryFile().name), random.SystemRandom().random()]
"""

    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(**lib))
        await container(w, of)
        await zygote(w, of)
        drawn = []
        for name in ("i1", "i2", "i3"):
            assert await loaded(w, name, of) == "forked"
            drawn.append(await run(w, name, code))
        for same in zip(*drawn, strict=True):
            assert len(set(same)) == 3, drawn


def test_a_module_of_the_package_wins_over_one_of_the_environment(play: Play, tmp_path: Path) -> None:
    """One of the standard library too, where not every interpreter has it. And nothing else of the package: what a
    zygote has imported cannot be imported once more where it is native code."""
    python = library(
        tmp_path,
        helper="whose = 'the environment'",
        json5="whose = 'the environment'",
        weights="import os\nmade_in = os.getpid()",
        folder="import os\nmade_in = os.getpid()",
        user="import colorsys",
    )
    source = """
import colorsys, folder, helper, json5, os, weights

def handler(event):
    native = weights.made_in == folder.made_in != os.getpid()
    return [native, helper.whose, json5.whose, getattr(colorsys, "whose", "Python")]
"""
    files = {
        "helper.py": "whose = 'the package'",
        "json5/__init__.py": "whose = 'the package'",
        "colorsys.py": "whose = 'the package'",
        "weights.json": "{}",
        "folder/weights": "",
        "os.py": "raise RuntimeError('os is there already')",
    }

    @play
    async def scenario(w: World) -> None:
        modules = ("helper", "json5", "weights", "folder", "user")
        of = await provided(w, function(source, files=files, python=python, libraries="key", modules=modules))
        await container(w, of)
        await loaded(w, "i1", of)
        await zygote(w, of)
        assert await loaded(w, "i2", of) == "forked"
        spawned, forked = [json.loads((await w.answer(name, {})).body) for name in ("i1", "i2")]
        assert spawned == [False, *["the package"] * 3]
        assert forked == [True, *["the package"] * 3]


def test_a_zygote_forks_only_what_it_is_for(play: Play, lib: dict[str, Any]) -> None:
    @play
    async def scenario(w: World) -> None:
        one = await provided(w, function(**lib))
        other = await provided(w, function(name="g", number=2, **{**lib, "libraries": "other"}))
        late = await provided(w, function(name="h", number=3, **lib))
        await container(w, one)
        await zygote(w, one)
        assert await loaded(w, "i1", one) == "forked"
        assert await loaded(w, "i2", other) == "spawned"
        assert await loaded(w, "i3", late) == "spawned"
        await zygote(w, one, late, name="z2")
        assert await loaded(w, "i4", late) == "forked"


def test_other_variables_other_libraries() -> None:
    """What a library does at its import may hang on them."""
    made = FunctionSpec(
        namespace="ns",
        name="f",
        version=1,
        digest="sha256:0",
        style=Style.MODULE,
        entry="main:handler",
        memory=1,
        timeout_s=1,
        concurrency=1,
        environment="e",
        python="3.11",
    )

    def key(**changes: Any) -> str:
        return FunctionSpec(**{name: getattr(made, name) for name in made.__struct_fields__} | changes).libraries

    keys = [
        key(),
        key(variables={"A": "1"}),
        key(variables={"A": "2"}),
        key(variables={"A": "1", "B": ""}),
        key(network=True),
        key(environment="other"),
        key(namespace="other"),
    ]
    assert len({*keys}) == len(keys)
    assert key(zygote=False) == ""
    assert key(name="g", digest="sha256:1") == key()


def test_a_fork_is_raised(play: Play, lib: dict[str, Any]) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(**lib))
        await container(w, of)
        await zygote(w, of)
        assert await loaded(w, "i1", of, level=Level.IMPORTED) == "forked"
        w.send(lift("i1"))
        raised = await w.until(events.InstanceReady, instance="i1")
        assert (raised.level, str(raised.origin)) == (Level.LOADED, "forked")
        assert await run(w, "i1", "import lib; out = len(lib.kept)") == 50_000


def test_a_load_that_fails_in_a_fork_says_so(play: Play, lib: dict[str, Any]) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(
            w, function("import lib\nraise RuntimeError('no weights')\ndef handler(e): ...", **lib)
        )
        await container(w, of)
        await zygote(w, of)
        load(w, "i1", of)
        failed = await w.until(events.InstanceFailed, instance="i1")
        assert (failed.phase, failed.reason.splitlines()[0]) == ("load", "RuntimeError: no weights")


# ---- under the container's rule --------------------------------------------------------------------------------


def test_a_fork_obeys_its_container(play: Play, lib: dict[str, Any]) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(timeout_s=15.0, **lib))
        await container(w, of)
        await zygote(w, of)
        for name in ("i1", "i2", "i3"):
            assert await loaded(w, name, of) == "forked"
        w.send(actions.Freeze(instance="i1"))
        first = w.invoke("i1", {"code": "out = 1"})
        assert await run(w, "i2", "out = 2") == 2
        assert not any(getattr(report, "request", None) == first for report in w.reports.seen)
        w.send(actions.Thaw(instance="i1"))
        await w.until(type(await w.answer("i2", {"code": "out = 2"})), request=first)
        w.send(actions.Freeze(instance="i3"), offload("i3"))
        lost = await w.until(events.InstanceLost, instance="i3")
        assert lost.reason == "the test says so"
        # a descendant that left the session is frozen and ended with it
        w.send(offload("i2"))
        await w.until(events.InstanceLost, instance="i2")
        assert await run(w, "i1", "out = 3") == 3


def test_time_limits_of_a_fork(play: Play, tmp_path: Path) -> None:
    python = library(tmp_path, lib="")

    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(timeout_s=0.5, python=python, libraries="key", modules=("lib",)))
        hanging = await provided(
            w,
            function(
                "import time\ntime.sleep(1000)\ndef handler(e): ...",
                "g",
                2,
                load_timeout_s=2.0,
                python=python,
                libraries="key",
                modules=("lib",),
            ),
        )
        await container(w, of)
        await zygote(w, of, hanging)
        assert await loaded(w, "i1", of) == "forked"
        request = w.invoke("i1", {"code": "import time; time.sleep(1000)"})
        lost = await w.until(events.InstanceLost, instance="i1")
        assert (lost.code, lost.request) == ("timed_out", request)
        load(w, "i2", hanging)
        assert (await w.until(events.InstanceLost, instance="i2")).code == "timed_out"
        assert await loaded(w, "i3", of) == "forked"
        assert not w.reports.all(events.ZygoteLost)


@pytest.mark.slow
def test_out_of_memory_ends_that_fork_only(play: Play, lib: dict[str, Any]) -> None:
    greedy = "import os, time\nkeep = [os.urandom(1 << 20) * 16 for _ in range(40)]\ntime.sleep(30)\nout = 0"

    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(**{**lib, "memory": 168_000_000}))
        await container(w, of)
        await zygote(w, of)
        for name in ("i1", "i2"):
            assert await loaded(w, name, of) == "forked"
        w.invoke("i1", {"code": greedy})
        lost = await w.until(events.InstanceLost, instance="i1")
        assert "memory limit of 168 MB" in lost.reason
        assert await run(w, "i2", "out = 2") == 2
        assert await loaded(w, "i3", of) == "forked"
        assert not w.reports.all(events.ZygoteLost)


def test_a_crash_of_a_fork_is_told_as_any(play: Play, lib: dict[str, Any]) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(**lib))
        await container(w, of)
        await zygote(w, of)
        await loaded(w, "i1", of)
        w.invoke("i1", {"code": "import os; os.abort()"})
        lost = await w.until(events.InstanceLost, instance="i1")
        assert (lost.code, "SIGABRT" in lost.reason) == ("instance_crashed", True)
        await loaded(w, "i2", of)
        w.invoke("i2", {"code": "import os; os._exit(7)"})
        assert "status 7" in (await w.until(events.InstanceLost, instance="i2")).reason


def test_what_a_fork_prints_is_its_own(play: Play, tmp_path: Path) -> None:
    """Nothing that the zygote printed or kept in a buffer comes out of a child again."""
    python = library(tmp_path, lib="import sys\nprint('at import', end='')\nsys.stderr.write('and this')")

    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(python=python, libraries="key", modules=("lib",)))
        await container(w, of)
        await zygote(w, of)
        await loaded(w, "i1", of)
        answered = await w.answer("i1", {"code": "print('mine')"})
        assert answered.logs == (("stdout", "mine\n"),)
        w.send(offload("i1"))
        await w.until(events.InstanceLost, instance="i1")
        assert not w.reports.all(Logged)


# ---- ends ------------------------------------------------------------------------------------------------------


def test_a_killed_zygote_leaves_its_forks(play: Play, lib: dict[str, Any]) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(**lib))
        await container(w, of)
        await zygote(w, of)
        assert await loaded(w, "i1", of) == await loaded(w, "i2", of) == "forked"
        [head] = zygotes()
        head.kill()
        lost = await w.until(events.ZygoteLost, zygote="z1")
        assert lost.reason
        assert not lost.refused
        assert await run(w, "i1", "out = 1") == 1
        assert await loaded(w, "i3", of) == "spawned"
        assert len(managers()) == 2  # the room is there as long as they are
        for name in ("i1", "i2"):
            w.send(offload(name))
            await w.until(events.InstanceLost, instance=name)
        await gone(1)
        assert await run(w, "i3", "out = 1") == 1


def test_an_ended_zygote_leaves_its_forks(play: Play, lib: dict[str, Any]) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(**lib))
        await container(w, of)
        await zygote(w, of)
        await loaded(w, "i1", of)
        w.send(end_zygote())
        lost = await w.until(events.ZygoteLost, zygote="z1")
        assert (lost.reason, lost.refused) == ("the test says so", False)
        assert await run(w, "i1", "out = 1") == 1
        w.invoke("i1", {"code": "import os; os._exit(3)"})
        await w.until(events.InstanceLost, instance="i1")
        await gone(1)
        await zygote(w, of, name="z2")
        assert await loaded(w, "i2", of) == "forked"
        w.send(end_zygote("z2"), end_zygote("nobody"))
        await w.until(events.ZygoteLost, zygote="nobody")


def test_an_idle_zygote_that_is_ended_takes_its_room_along(play: Play, lib: dict[str, Any]) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(**lib))
        await zygote(w, of)
        w.send(end_zygote())
        await w.until(events.ZygoteLost, zygote="z1")
        await gone(0)


def test_a_killed_room_loses_its_forks_and_no_container(play: Play, lib: dict[str, Any]) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(**lib))
        await container(w, of)
        [containers] = managers()
        await loaded(w, "i0", of)
        await zygote(w, of)
        await loaded(w, "i1", of)
        [room] = [process for process in managers() if process != containers]
        room.kill()
        await w.until(events.ZygoteLost, zygote="z1")
        await w.until(events.InstanceLost, instance="i1")
        assert await run(w, "i0", "out = 1") == 1
        assert await loaded(w, "i2", of) == "spawned"
        assert not w.reports.all(events.ContainerLost)
        await gone(1)


def test_a_destroyed_container_ends_its_forks_and_no_zygote(play: Play, lib: dict[str, Any]) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(**lib))
        await container(w, of)
        await zygote(w, of)
        await loaded(w, "i1", of)
        frozen = await loaded(w, "i2", of)
        assert frozen == "forked"
        w.send(actions.Freeze(instance="i2"))
        w.send(destroy("c1"))
        await w.until(events.ContainerLost, container="c1")
        await until(lambda: len(runtimes()) == 1)
        await container(w, of, "c2")
        assert await loaded(w, "i3", of, "c2") == "forked"
        assert await run(w, "i3", "out = 1") == 1
        assert not w.reports.all(events.ZygoteLost)


def test_the_agents_end_is_the_end_of_all(play: Play, lib: dict[str, Any]) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(**lib))
        await container(w, of)
        await zygote(w, of)
        await loaded(w, "i1", of)
        w.send(actions.Freeze(instance="i1"))
        w.send(end_zygote())
        await w.until(events.ZygoteLost, zygote="z1")
        await zygote(w, of, name="z2")
        await loaded(w, "i2", of)
        start_zygote(w, of, name="z3")
        await w.agent.aclose()
        assert not managers()
        assert not runtimes()


# ---- libraries that cannot be forked ---------------------------------------------------------------------------

THREADS = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        pytest.param(THREADS, ["bad", "thread"], id="thread"),
        pytest.param("import socket\nkeep = socket.socket()\n", ["socket"], id="socket"),
        pytest.param("import os\nkeep = os.pipe()\n", ["pipe"], id="pipe"),
    ],
)
def test_libraries_that_cannot_be_forked_are_refused(
    play: Play, tmp_path: Path, source: str, words: list[str]
) -> None:
    python = library(tmp_path, good="", bad=source)

    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(python=python, libraries="key", modules=("good", "bad")))
        start_zygote(w, of)
        lost = await w.until(events.ZygoteLost, zygote="z1")
        assert lost.refused
        assert all(word in lost.reason for word in words), lost.reason
        assert not w.reports.all(events.ZygoteReady)
        await gone(0)
        await container(w, of)
        assert await loaded(w, "i1", of) == "spawned"


def test_a_library_that_raises_is_nobody_elses_trouble(play: Play, tmp_path: Path) -> None:
    python = library(tmp_path, good="x = 1", bad="raise SystemExit(3)", worse="raise KeyboardInterrupt")

    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(python=python, libraries="key", modules=("bad", "worse", "none", "good")))
        await zygote(w, of)
        await container(w, of)
        assert await loaded(w, "i1", of) == "forked"
        assert await run(w, "i1", "import sys; out = ['good' in sys.modules, 'bad' in sys.modules]") == [
            True,
            False,
        ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        pytest.param("import os; print('so be it', flush=True); os._exit(0)", "so be it", id="exit"),
        pytest.param("import os; os.kill(os.getpid(), 11)", "", id="crash"),
        pytest.param("import time; time.sleep(1000)", "nothing in 2 s", id="hang"),
        pytest.param("import os; os.fork() or os._exit(0)\nimport time; time.sleep(0)", "", id="child"),
    ],
)
def test_a_library_that_ends_or_hangs_the_zygote(play: Play, tmp_path: Path, source: str, words: str) -> None:
    python = library(tmp_path, bad=source)

    @play
    async def scenario(w: World) -> None:
        of = await provided(
            w, function(python=python, libraries="key", modules=("bad",), load_timeout_s=2.0, name="f")
        )
        start_zygote(w, of)
        if words or "fork" not in source:
            lost = await w.until(events.ZygoteLost, zygote="z1")
            assert not lost.refused
            assert words in lost.reason, lost.reason
            await gone(0)
        else:  # it is well, but for a child that is gone
            await w.until(events.ZygoteReady, zygote="z1")


@pytest.mark.slow
def test_a_library_larger_than_the_limit(play: Play, tmp_path: Path) -> None:
    python = library(
        tmp_path, big="import os, time\nkeep = [os.urandom(1 << 20) * 16 for _ in range(12)]\ntime.sleep(3)"
    )

    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(python=python, libraries="key", modules=("big",)))
        start_zygote(w, of, limit=96 * MB)
        lost = await w.until(events.ZygoteLost, zygote="z1")
        assert "memory limit" in lost.reason
        await gone(0)


def test_a_zygote_of_nothing(play: Play) -> None:
    """Its interpreter and the runtime alone are worth a fork."""

    @play
    async def scenario(w: World) -> None:
        of = await provided(w, function(libraries="key"))
        await zygote(w, of)
        await container(w, of)
        assert await loaded(w, "i1", of) == "forked"


# ---- nothing is left -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_lives_leave_nothing(play: Play, lib: dict[str, Any], sandbox: str) -> None:
    cycles = 1000

    @play
    async def scenario(w: World) -> None:
        assert isinstance(w.agent, LocalAgent)
        of = await provided(w, function(**lib))
        await container(w, of)
        await zygote(w, of)
        [head] = zygotes()
        own = group_of(head.pid)

        async def cycle(number: int) -> None:
            name = f"i{number}"
            assert await loaded(w, name, of) == "forked"
            w.send(offload(name))
            await w.until(events.InstanceLost, instance=name)

        def held() -> dict[str, object]:
            return {
                "ours": opened("self"),
                "the zygote's": opened(head.pid),
                "children": [child.pid for child in head.children(recursive=True)],
                "tasks": len(asyncio.all_tasks()),
                "groups": len([path for path, _, _ in os.walk("/sys/fs/cgroup") if own in path]),
                "managers": [opened(one.pid) for one in managers()],
            }

        for number in range(10):
            await cycle(number)
        before = held()
        for number in range(10, 10 + cycles):
            await cycle(number)
        assert held() == before
        assert await loaded(w, "last", of) == "forked"


def opened(pid: object) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def group_of(pid: int) -> str:
    """The control group of the sandbox that a process is in; of the process sandbox's there is none."""
    parts = Path(f"/proc/{pid}/cgroup").read_text().split("/")
    return next((part for part in parts if "instainfer-" in part), "no group")


async def gone(left: int) -> None:
    """Wait until only so many containers (rooms are some) are left."""
    await until(lambda: len(managers()) == left)


async def until(probe: Any) -> None:
    async with asyncio.timeout(20):
        while not probe():  # noqa: ASYNC110 # it looks at other processes
            await asyncio.sleep(0.01)
