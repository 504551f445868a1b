"""Object snapshots through an agent: written and verified at deploy, restored later, and whatever is wrong with
one ends in a plain load."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from instainfer.agent.base import Measure, Provide, Retain, Revision, TaskFailed
from instainfer.agent.local import LocalAgent
from instainfer.agent.snapshots import Snapshots
from instainfer.core import events
from instainfer.model import Level, Style
from tests.contract.agent_helpers import MB, UID_BASE, World, destroy, lift, offload
from tests.contract.fast_helpers import (
    SANDBOXES,
    Play,
    container,
    function,
    library,
    load,
    loaded,
    measured,
    player,
    provided,
    run,
    zygote,
)

pytestmark = pytest.mark.slow  # each deploys

#: Loading takes so long that restoring is shorter on any machine. `LOADS` tells which of the two it was.
MODEL = """
import os, time

LOADS = []

class Model:
    def load(self):
        time.sleep(0.4)
        LOADS.append(os.getpid())
        self.table = {n: str(n) * 3 for n in range(500)}
        self.blob = bytes(range(256)) * 1024
        self.more()

    def more(self):
        pass

    def predict(self, event):
        if "code" not in event:
            return [event["n"], self.table[event["n"]], len(self.blob)]
        scope = {"self": self, "LOADS": LOADS}
        exec(event["code"], scope)
        return scope.get("out")
"""

#: Module style: what is declared is the model.
DECLARED = """
import os, time

LOADS = []

def make():
    time.sleep(0.4)
    LOADS.append(os.getpid())
    return {n: str(n) * 3 for n in range(500)}

class Table:
    def __init__(self, rows):
        self.rows = rows

model = Table(make())

def handler(event):
    if "code" not in event:
        return [event["n"], model.rows[event["n"]]]
    scope = {"LOADS": LOADS}
    exec(event["code"], scope)
    return scope.get("out")
"""

LOADS = "out = len(LOADS)"


@pytest.fixture(params=SANDBOXES)
def sandbox(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def play(sandbox: str, tmp_path: Path) -> Play:
    return player(sandbox, tmp_path)


@pytest.fixture
def process(tmp_path: Path) -> Play:
    """For what is the runtime's or the agent's doing, whatever the sandbox."""
    return player("process", tmp_path)


def model(more: str = "pass", **settings: Any) -> tuple[Revision, bytes]:
    """`more`: what its load does besides."""
    source = MODEL.replace(
        "    def more(self):\n        pass\n", f"    def more(self):\n{textwrap.indent(more, ' ' * 8)}\n"
    )
    return raw(source, **settings)


def raw(source: str, **settings: Any) -> tuple[Revision, bytes]:
    defaults: dict[str, Any] = {
        "style": Style.CLASS,
        "entry": "main:Model",
        "snapshot": True,
        "sample": "sample.json",
        "sample_type": "application/json",
    }
    return function(source, **{**defaults, **settings})


async def deployed(w: World, made: tuple[Revision, bytes], name: str = "c1") -> Revision:
    """Measured, with a snapshot, and a container to load it in."""
    of = await provided(w, made)
    profile = await measured(w, of)
    assert profile.paths["snapshot"] == "", profile.paths
    assert profile.snapshot_bytes > 0
    assert profile.costs.load_s < profile.plain_load_s
    await container(w, of, name)
    return of


async def refused(w: World, made: tuple[Revision, bytes]) -> str:
    """Why it has none; it serves all the same, and nothing of a snapshot is left."""
    of = await provided(w, made)
    profile = await measured(w, of)
    assert profile.paths["snapshot"]
    assert profile.snapshot_bytes == 0
    await container(w, of)
    await loaded(w, "i1", of)
    assert await run(w, "i1", LOADS) == 1
    assert isinstance(w.agent, LocalAgent)
    assert list(w.agent.snapshots.directory("ns").iterdir()) == []
    assert not w.reports.all(events.InstanceFailed)
    assert not w.reports.all(events.InstanceLost)
    return profile.paths["snapshot"]


def file_of(w: World) -> Path:
    assert isinstance(w.agent, LocalAgent)
    (found,) = w.agent.snapshots.directory("ns").glob("*.snap")
    return found


# ---- restoring -------------------------------------------------------------------------------------------------


def test_a_load_restores(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await deployed(w, model())
        for name, ahead in (("i1", False), ("i2", True)):
            assert await loaded(w, name, of, ahead=ahead) == "spawned"
            assert await run(w, name, LOADS) == 0
            assert json.loads((await w.answer(name, {"n": 7})).body) == [7, "777", 256 * 1024]
        assert await loaded(w, "i3", of, level=Level.IMPORTED) == "spawned"
        w.send(lift("i3"))
        await w.until(events.InstanceReady, instance="i3")
        assert await run(w, "i3", LOADS) == 0
        # what one changes is its own
        await run(w, "i1", "self.table[7] = 'changed'; out = 0")
        assert await run(w, "i2", "out = self.table[7]") == "777"
        await loaded(w, "i4", of)
        assert await run(w, "i4", "out = self.table[7]") == "777"


def test_a_fork_restores(play: Play, tmp_path: Path) -> None:
    python = library(tmp_path, lib="import json")

    @play
    async def scenario(w: World) -> None:
        of = await provided(w, model(python=python, libraries="key"))
        profile = await measured(w, of)
        assert (profile.paths["zygote"], profile.paths["snapshot"]) == ("", "")
        of = msgspec.structs.replace(of, modules=profile.modules)
        w.send(Provide(revision=of))
        await container(w, of)
        await zygote(w, of)
        assert await loaded(w, "i1", of) == "forked"
        assert await run(w, "i1", LOADS) == 0


def test_declared_globals_are_restored(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        declared = {"style": Style.MODULE, "entry": "main:handler", "declared": ("model",)}
        of = await deployed(w, raw(DECLARED, **declared))
        await loaded(w, "i1", of)
        assert await run(w, "i1", LOADS) == 0
        assert json.loads((await w.answer("i1", {"n": 7})).body) == [7, "777"]


@pytest.mark.root
def test_nobody_else_reads_it_and_nobody_writes_it(tmp_path: Path) -> None:
    @player("linux", tmp_path)
    async def scenario(w: World) -> None:
        of = await deployed(w, model())
        other = await provided(w, model("self.other = 1", name="g", number=2, snapshot=False))
        path = file_of(w)
        marker = path.with_suffix(".json")
        code = f"""
import errno, os
def result(do, *args):
    try:
        do(*args)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
path, marker = {str(path)!r}, {str(marker)!r}
out = {{
    "read": result(lambda: open(path, "rb").read(1)),
    "list": result(os.listdir, os.path.dirname(path)),
    "write": result(lambda: open(path, "r+b")),
    "append": result(lambda: open(path, "ab")),
    "chmod": result(os.chmod, path, 0o666),
    "chown": result(os.chown, path, os.getuid(), os.getgid()),
    "truncate": result(os.truncate, path, 0),
    "times": result(os.utime, path, (1, 1)),
    "unlink": result(os.unlink, path),
    "rename": result(os.rename, path, path + "x"),
    "marker": result(lambda: open(marker, "w")),
    "link": result(os.link, path, "/tmp/link"),
    "create": result(lambda: open(os.path.dirname(path) + "/more.snap", "w")),
    "through": result(lambda: open("/proc/self/fd/%d" % os.open(path, os.O_RDONLY), "r+b")),
}}
"""
        await loaded(w, "i1", of)
        own = await run(w, "i1", code)
        assert own.pop("read") == "done"
        own.pop("list")
        assert set(own.values()) <= {"EACCES", "EPERM", "EROFS", "EXDEV"}, own
        await loaded(w, "i2", other)
        strange = await run(w, "i2", code)
        strange.pop("list")
        assert set(strange.values()) <= {"EACCES", "EPERM", "EROFS", "EXDEV"}, strange
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, 0o440)
        assert path.stat().st_gid == UID_BASE + 1001
        assert await loaded(w, "i3", of) == "spawned"
        assert await run(w, "i3", LOADS) == 0


# ---- a file that is not the one that was written ---------------------------------------------------------------


def changed_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def unnoticed(path: Path) -> None:
    """A damage that only who reads it notices."""
    was = path.stat()
    with path.open("r+b") as file:
        file.seek(300)
        byte = file.read(1)
        file.seek(300)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def another(path: Path) -> None:
    data = path.read_bytes()
    path.rename(path.with_name("old"))
    path.write_bytes(data)


def linked(path: Path) -> None:
    there = path.with_name("there")
    path.rename(there)
    path.symlink_to(there)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def missing(path: Path) -> None:
    path.unlink()


def without_marker(path: Path) -> None:
    path.with_suffix(".json").unlink()


def marker_is_garbage(path: Path) -> None:
    path.with_suffix(".json").write_bytes(b"\xff{")


def marker_of_another_key(path: Path) -> None:
    marker = path.with_suffix(".json")
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "key": "0" * 64}))


DAMAGES = [
    changed_byte,
    unnoticed,
    truncated,
    another,
    linked,
    fifo,
    directory,
    missing,
    without_marker,
    marker_is_garbage,
    marker_of_another_key,
]


def test_a_damaged_file_is_a_plain_load(process: Play) -> None:
    """Each of a function of its own: one that had a bad file does without until it is deployed again."""

    @process
    async def scenario(w: World) -> None:
        assert isinstance(w.agent, LocalAgent)
        for number, damage in enumerate(DAMAGES, 1):
            of = await provided(w, model(name=f"f{number}", number=number))
            assert (await measured(w, of, number)).paths["snapshot"] == "", damage
            (path,) = w.agent.snapshots.directory("ns").glob(f"f{number}-*.snap")
            damage(path)
            await container(w, of, f"c{number}")
            await loaded(w, f"i{number}", of, f"c{number}")
            assert await run(w, f"i{number}", LOADS) == 1, damage
            w.send(destroy(f"c{number}"))
            await w.until(events.ContainerLost, container=f"c{number}")
        assert not w.reports.all(events.InstanceFailed)
        assert not w.reports.all(events.InstanceLost)


def test_a_spoilt_one_is_not_tried_again_but_a_new_one_is(process: Play) -> None:
    @process
    async def scenario(w: World) -> None:
        of = await deployed(w, model())
        path = file_of(w)
        whole, was = path.read_bytes(), path.stat()
        unnoticed(path)
        await loaded(w, "i1", of)
        assert await run(w, "i1", LOADS) == 1
        with path.open("r+b") as file:
            file.write(whole)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        await loaded(w, "i2", of)
        assert await run(w, "i2", LOADS) == 1
        assert (await measured(w, of, 2)).paths["snapshot"] == ""
        await loaded(w, "i3", of)
        assert await run(w, "i3", LOADS) == 0


def test_other_code_parameters_or_variables_load_plainly(process: Play) -> None:
    @process
    async def scenario(w: World) -> None:
        of = await deployed(w, model())
        changes: list[dict[str, Any]] = [
            {"variables": {"A": "1"}},
            {"params": {"a": 1}},
            {"threads": 2},
            {"environment": "another"},
            {"snapshot": False},
        ]
        for number, change in enumerate(changes):
            other = msgspec.structs.replace(of, **change)
            w.send(Provide(revision=other))
            await loaded(w, f"i{number}", other)
            assert await run(w, f"i{number}", LOADS) == 1, change
        code = await provided(w, model("self.version = 2"))
        await loaded(w, "code", code)
        assert await run(w, "code", LOADS) == 1
        w.send(Provide(revision=of))
        await loaded(w, "same", of)
        assert await run(w, "same", LOADS) == 0


def test_what_nobody_needs_is_swept(process: Play) -> None:
    @process
    async def scenario(w: World) -> None:
        assert isinstance(w.agent, LocalAgent)
        of = await deployed(w, model())
        kept = file_of(w)
        there = w.agent.snapshots.directory("ns")
        (there / "old-0123.snap").write_bytes(b"")
        (there / "old-0123.json").write_bytes(b"")
        (there / ".work-m9").mkdir()
        w.send(Retain(environments=()))
        while {path.name for path in there.iterdir()} != {kept.name, kept.with_suffix(".json").name}:
            await loaded(w, "i1", of)
            w.send(offload("i1"))
            await w.until(events.InstanceLost, instance="i1")


# ---- deployments without one, and why --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param("self.scale = lambda x: x", ["self.scale", "lambda"], id="unpicklable"),
        pytest.param(
            "import threading\nself.parts = {'lock': threading.Lock()}", ["self.parts", "lock"], id="lock"
        ),
        pytest.param("import socket\nself.blob = b''\nglobals()['S'] = socket.socket()", ["socket"], id="socket"),
        pytest.param("globals()['F'] = open(__file__)", ["open descriptor", "main.py"], id="file"),
        pytest.param(
            "import threading\nthreading.Thread(target=time.sleep, args=(99,), name='pump', daemon=True).start()",
            ["thread", "pump"],
            id="thread",
        ),
        pytest.param("self.table[1] = os.urandom(8).hex()", ["differently"], id="random"),
    ],
)
def test_why_there_is_none(process: Play, more: str, words: list[str]) -> None:
    @process
    async def scenario(w: World) -> None:
        said = await refused(w, model(more))
        assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"snapshot": False}, "switched off", id="off"),
        pytest.param({"sample": "", "sample_type": ""}, "no sample", id="sample"),
    ],
)
def test_why_none_is_tried(process: Play, settings: dict[str, Any], words: str) -> None:
    @process
    async def scenario(w: World) -> None:
        assert words in await refused(w, model(**settings))


def test_a_module_must_declare_its_model(process: Play) -> None:
    module = {"style": Style.MODULE, "entry": "main:handler"}

    @process
    async def scenario(w: World) -> None:
        assert 'snapshot = ["model"]' in await refused(w, raw(DECLARED, **module))
        of = await provided(w, raw(DECLARED, name="g", number=2, declared=("nothing",), **module))
        assert "`nothing`" in (await measured(w, of, 2)).paths["snapshot"]


#: An object with a part that does something when it is restored.
TRAP = """
import os, signal, sys, time

class Trap:
    def __getstate__(self):
        return {"set": True}

    def __setstate__(self, state):
        {act}
"""


def trapped(act: str, **settings: Any) -> tuple[Revision, bytes]:
    source = TRAP.replace("{act}", act) + MODEL.replace(
        "    def more(self):\n        pass\n", "    def more(self):\n        self.trap = Trap()\n"
    )
    return raw(source, **settings)


def test_what_is_restored_more_slowly_than_loaded_needs_none(process: Play) -> None:
    """By seconds, so that a busy machine does not turn it round."""

    @process
    async def scenario(w: World) -> None:
        assert "not be faster" in await refused(w, trapped("time.sleep(3)"))


@pytest.mark.parametrize(
    ("act", "words"),
    [
        pytest.param("raise ValueError('not here')", "not here", id="raises"),
        pytest.param("sys.exit(3)", "", id="exits"),
        pytest.param("os._exit(3)", "status 3", id="ends"),
        pytest.param("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV", id="crashes"),
        pytest.param("time.sleep(1000)", "time limit", id="hangs"),
    ],
)
def test_a_restore_that_fails_does_not_fail_the_deployment(process: Play, act: str, words: str) -> None:
    @process
    async def scenario(w: World) -> None:
        of = await provided(w, trapped(act, load_timeout_s=3.0))
        profile = await measured(w, of)
        assert words in profile.paths["snapshot"], profile.paths
        assert profile.paths["snapshot"].startswith("restoring it failed"), profile.paths
        assert profile.snapshot_bytes == 0
        await container(w, of)
        await loaded(w, "i1", of)
        assert await run(w, "i1", LOADS) == 1


def test_a_restore_that_answers_otherwise_is_not_taken(process: Play) -> None:
    @process
    async def scenario(w: World) -> None:
        source = MODEL + "\n    def __getstate__(self):\n        return {**vars(self), 'table': {1: 'else'}}\n"
        assert "otherwise" in await refused(w, raw(source))


FLAGGED = "os.path.exists(os.path.join(os.path.dirname(__file__), 'flag')) and "


@pytest.mark.parametrize(
    "act",
    [
        pytest.param("os._exit(3)", id="ends"),
        pytest.param("os.kill(os.getpid(), signal.SIGSEGV)", id="crashes"),
        pytest.param("1 / 0", id="raises"),
        pytest.param("sys.exit(3)", id="exits"),
        pytest.param("vars(sys.modules[__name__]).update(bad=1)", id="fails its sample"),
    ],
)
def test_a_restore_that_fails_later_is_a_plain_load(play: Play, tmp_path: Path, act: str) -> None:
    """It went well at deploy; within the same Load, and for good."""

    @play
    async def scenario(w: World) -> None:
        made = trapped(FLAGGED + act)
        if "update" in act:
            source = MODEL.replace(
                'if "code" not in event:',
                'if "bad" in globals():\n            1 / 0\n        if "code" not in event:',
            )
            trap = TRAP.replace("{act}", FLAGGED + act)
            made = raw(trap + source.replace("        pass\n", "        self.trap = Trap()\n"))
        of = await deployed(w, made)
        (there,) = (tmp_path / "packages" / "ns").glob("f-*")
        (there / "flag").write_text("")
        (there / "flag").chmod(0o644)
        await loaded(w, "i1", of, ahead=True)
        assert await run(w, "i1", LOADS) == 1
        (there / "flag").unlink()
        await loaded(w, "i2", of)
        assert await run(w, "i2", LOADS) == 1
        assert not w.reports.all(events.InstanceFailed)
        assert not w.reports.all(events.InstanceLost)


def test_a_restore_that_hangs_is_not_tried_again(process: Play, tmp_path: Path) -> None:
    @process
    async def scenario(w: World) -> None:
        of = await deployed(w, trapped(FLAGGED + "time.sleep(1000)", load_timeout_s=3.0))
        (there,) = (tmp_path / "packages" / "ns").glob("f-*")
        (there / "flag").write_text("")
        load(w, "i1", of)
        assert (await w.until(events.InstanceLost, instance="i1")).code == "timed_out"
        await loaded(w, "i2", of)
        assert await run(w, "i2", LOADS) == 1


def test_what_fails_plainly_too_is_told(process: Play, tmp_path: Path) -> None:
    @process
    async def scenario(w: World) -> None:
        source = TRAP.replace("{act}", FLAGGED + "os._exit(3)") + MODEL.replace(
            "    def more(self):\n        pass\n",
            f"    def more(self):\n        self.trap = Trap()\n        {FLAGGED}1 / 0\n",
        )
        of = await deployed(w, raw(source))
        (there,) = (tmp_path / "packages" / "ns").glob("f-*")
        (there / "flag").write_text("")
        load(w, "i1", of)
        failed = await w.until(events.InstanceFailed, instance="i1")
        assert failed.reason.startswith("ZeroDivisionError")


# ---- what a function may leave instead of a snapshot -----------------------------------------------------------


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def test_the_agent_takes_over_files_only(tmp_path: Path) -> None:
    """Whatever lies where the function could write: it neither waits nor follows."""
    of, _ = model(memory=MB)
    snapshots = Snapshots(tmp_path / "snapshots")
    snapshots.directory("ns").mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    makers: list[Callable[[Path], object]] = [
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to(secret),
        lambda path: path.mkdir(),
        sparse,
        lambda path: None,
    ]
    for number, make in enumerate(makers):
        path = tmp_path / f"written{number}"
        make(path)
        with pytest.raises(OSError):
            snapshots.take(path, of, None)
        assert snapshots.find(of) is None
    assert secret.stat().st_mode & 0o444
    assert secret.read_text() == "secret"


def test_a_function_that_fails_is_still_told(process: Play) -> None:
    @process
    async def scenario(w: World) -> None:
        of = await provided(w, model("1 / 0"))
        w.send(Measure(token=1, revision=of.id))
        failed = await w.until(TaskFailed, token=1)
        assert failed.problem["phase"] == "load"
        assert isinstance(w.agent, LocalAgent)
        assert list(w.agent.snapshots.directory("ns").iterdir()) == []
