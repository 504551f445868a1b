"""Clones: further instances forked from a loaded one that never serves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from instainfer.core import actions, events
from instainfer.model import Style
from tests.contract.agent_helpers import MB, World, destroy, managers, offload
from tests.contract.fast_helpers import (
    CLASS,
    MODULE,
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
    runtimes,
    zygote,
)
from tests.contract.test_zygotes import OPEN, SELF, opened, until

MODEL = """
import os, random, time

LOADED = []

class Model:
    def load(self):
        LOADED.append(os.getpid())
        self.served = []
        self.weights = bytearray(range(256)) * 64

    def predict(self, event):
        self.served.append(1)
        scope = {"self": self, "LOADED": LOADED}
        exec(event.get("code", "out = len(self.weights)"), scope)
        return scope.get("out")
"""
LOADED = "out = LOADED"


@pytest.fixture(params=SANDBOXES)
def sandbox(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def play(sandbox: str, tmp_path: Path) -> Play:
    return player(sandbox, tmp_path)


def model(source: str = MODEL, **settings: Any) -> Any:
    defaults: dict[str, Any] = {"style": Style.CLASS, "entry": "main:Model", "clone": True}
    return function(source, **{**defaults, **settings})


async def two(w: World, **settings: Any) -> Any:
    """A function with an instance i1, that its template came with, and a further one."""
    of = await provided(w, model(**settings))
    await container(w, of)
    await loaded(w, "i1", of)
    assert await loaded(w, "i2", of) == "cloned"
    return of


@pytest.mark.parametrize(
    ("source", "style", "entry"),
    [
        pytest.param(MODULE, Style.MODULE, "main:handler", id="module"),
        pytest.param(CLASS, Style.CLASS, "main:Model", id="class"),
    ],
)
def test_a_clone_is_what_would_have_been_loaded(
    play: Play, sandbox: str, tmp_path: Path, source: str, style: Style, entry: str
) -> None:
    settings: dict[str, Any] = {"python": library(tmp_path, lib=""), "libraries": "key", "modules": ("lib",)}

    @play
    async def scenario(w: World) -> None:
        plain = await provided(w, function(source, "g", 2, style=style, entry=entry))
        of = await provided(w, function(source, style=style, entry=entry, clone=True, **settings))
        await container(w, plain)
        await loaded(w, "i0", plain)
        assert await loaded(w, "i1", of) == "spawned"
        assert await loaded(w, "i2", of) == "cloned"
        w.send(offload("i1"))
        await w.until(events.InstanceLost, instance="i1")
        await zygote(w, of)
        assert await loaded(w, "i3", of) == "forked"
        assert await loaded(w, "i4", of) == "cloned"
        said = {name: await run(w, name, SELF) for name in ("i0", "i2", "i3", "i4")}
        descriptors = {name: sorted((await run(w, name, OPEN)).values()) for name in said}
        assert said["i2"] == said["i3"] == said["i4"]
        assert descriptors["i0"] == descriptors["i2"] == descriptors["i3"] == descriptors["i4"]
        for key, value in said["i0"].items():  # what differs by function or interpreter apart
            if key not in ("argv", "main", "cwd", "environ", "environ of C", "ids", "home", "path", "executable"):
                assert said["i4"][key] == value, key
        if sandbox == "linux":
            assert said["i4"]["ids"] == [[1001] * 3, [1001] * 3, []]
            assert {int(word, 16) for word in said["i4"]["capabilities"][:4]} == {0}
        assert await run(w, "i4", "state['seen'] += 1; out = state['seen']") == 1


def test_nobody_sees_what_another_changes_and_the_template_serves_nobody(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await two(w)
        one, other = await run(w, "i1", LOADED), await run(w, "i2", LOADED)
        assert one == other
        assert len(one) == 1  # in the template alone
        assert await run(w, "i1", "import os; out = os.getpid()") != one[0]
        await run(w, "i1", "self.weights[0] = 99; self.extra = 1; out = 0")
        assert await run(w, "i2", "out = [self.weights[0], hasattr(self, 'extra'), len(self.served)]") == [
            0,
            False,
            2,
        ]
        assert await loaded(w, "i3", of) == "cloned"
        assert await run(w, "i3", "out = [self.weights[0], hasattr(self, 'extra'), len(self.served)]") == [
            0,
            False,
            1,
        ]
        assert await run(w, "i1", "out = self.weights[0]") == 99


def test_siblings_draw_different_numbers(play: Play) -> None:
    code = "import random, uuid, tempfile\nout = [random.random(), str(uuid.uuid4()), tempfile.mktemp()]"

    @play
    async def scenario(w: World) -> None:
        of = await two(w, source=MODEL.replace("LOADED.append", "random.random(), LOADED.append"))
        await loaded(w, "i3", of)
        drawn = [await run(w, name, code) for name in ("i1", "i2", "i3")]
        for same in zip(*drawn, strict=True):
            assert len(set(same)) == 3, drawn


def test_a_clone_in_another_container(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(w, model())
        await container(w, of)
        await loaded(w, "i1", of)
        await container(w, of, "c2")
        assert await loaded(w, "i2", of, "c2") == "cloned"
        w.send(actions.Freeze(instance="i2"))
        w.send(destroy("c2"))
        await w.until(events.ContainerLost, container="c2")
        await until(lambda: len(runtimes()) == 2)
        await container(w, of, "c3")
        assert await loaded(w, "i3", of, "c3") == "cloned"
        w.send(destroy("c1"))  # the template's home
        await w.until(events.ContainerLost, container="c1")
        await w.until(events.InstanceLost, instance="i3")
        assert await loaded(w, "i4", of, "c3") == "spawned"
        assert await run(w, "i4", "out = 1") == 1


def test_a_killed_template_leaves_its_clones(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await two(w)
        [template] = await run(w, "i1", LOADED)
        killed(template)
        assert await run(w, "i1", "out = 1") == await run(w, "i2", "out = 1") == 1
        await until(lambda: len(runtimes()) == 2)
        assert await loaded(w, "i3", of) == "spawned"
        assert await loaded(w, "i4", of) == "cloned"
        assert await run(w, "i4", "out = 1") == 1
        assert not w.reports.all(events.InstanceLost)


def test_the_template_goes_with_its_instance(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await two(w)
        assert len(runtimes()) == 3
        w.send(offload("i1"))
        await w.until(events.InstanceLost, instance="i1")
        await until(lambda: len(runtimes()) == 1)
        assert await run(w, "i2", "out = 1") == 1
        assert await loaded(w, "i3", of) == "spawned"
        w.send(offload("i2"), offload("i3"))
        await w.until(events.InstanceLost, instance="i3")
        await w.until(events.InstanceLost, instance="i2")
        await until(lambda: not runtimes() and len(managers()) == 1)


def test_clones_obey_their_container(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await two(w, timeout_s=3.0)
        w.send(actions.Freeze(instance="i1"))
        first = w.invoke("i1", {"code": "out = 1"})
        assert await run(w, "i2", "out = 2") == 2
        assert await loaded(w, "i3", of) == "cloned"  # its template is not frozen with it
        assert not any(getattr(report, "request", None) == first for report in w.reports.seen)
        w.send(actions.Thaw(instance="i1"))
        assert await run(w, "i1", "out = 3") == 3
        hanging = w.invoke("i2", {"code": "import time; time.sleep(1000)"})
        lost = await w.until(events.InstanceLost, instance="i2")
        assert (lost.code, lost.request) == ("timed_out", hanging)
        w.invoke("i3", {"code": "import os; os._exit(5)"})
        assert "status 5" in (await w.until(events.InstanceLost, instance="i3")).reason
        assert await loaded(w, "i4", of) == "cloned"


@pytest.mark.slow
def test_out_of_memory_ends_that_clone_only(play: Play) -> None:
    greedy = "import os, time\nkeep = [os.urandom(1 << 20) * 16 for _ in range(40)]\ntime.sleep(30)\nout = 0"

    @play
    async def scenario(w: World) -> None:
        of = await two(w, memory=168_000_000)
        w.invoke("i2", {"code": greedy})
        lost = await w.until(events.InstanceLost, instance="i2")
        assert "memory limit of 168 MB" in lost.reason
        assert await run(w, "i1", "out = 2") == 2
        assert await loaded(w, "i3", of) == "cloned"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "word"),
    [
        pytest.param(
            "import threading\n        threading.Thread(target=time.sleep, args=(999,), daemon=True).start()",
            "thread",
            id="thread",
        ),
        pytest.param("import socket\n        self.socket = socket.socket()", "socket", id="socket"),
    ],
)
def test_what_cannot_be_forked_is_no_template(play: Play, more: str, word: str) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await provided(w, model(MODEL.replace("LOADED.append", f"{more}\n        LOADED.append")))
        profile = await measured(w, of)
        assert word in profile.paths["clone"], profile.paths
        # and if it is tried all the same (what a load leaves behind may hang on more than its code), it serves
        await container(w, of)
        assert await loaded(w, "i1", of) == await loaded(w, "i2", of) == "spawned"
        assert await run(w, "i2", "out = 1") == 1
        assert not w.reports.all(events.InstanceFailed)
        assert not w.reports.all(events.InstanceLost)


@pytest.mark.slow
def test_its_costs_are_measured(play: Play) -> None:
    source = MODEL.replace("self.served = []", "self.served = []; self.big = os.urandom(1 << 20) * 48")

    @play
    async def scenario(w: World) -> None:
        of = await provided(w, model(source, sample="sample.json", sample_type="application/json"))
        profile = await measured(w, of)
        assert profile.paths["clone"] == "", profile.paths
        assert profile.costs.clone_s > 0
        assert profile.costs.cloned_bytes < profile.costs.loaded_bytes - 32 * MB


@pytest.mark.slow
def test_a_hundred_clones_leave_nothing(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await two(w)
        [template] = [p for p in runtimes() if len(p.children()) == 2]

        async def cycle(number: int) -> None:
            name = f"n{number}"
            assert await loaded(w, name, of) == "cloned"
            w.send(offload(name))
            await w.until(events.InstanceLost, instance=name)

        def held() -> list[int]:
            return [opened("self"), opened(template.pid), len(template.children()), len(asyncio.all_tasks())]

        for number in range(5):
            await cycle(number)
        before = held()
        for number in range(5, 105):
            await cycle(number)
        # What the first cycles had still open may have been closed since.
        await until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))


def test_a_load_that_is_interrupted_goes_on(play: Play) -> None:
    """A freeze while a template loads is one of what it becomes."""
    slow = MODEL.replace("LOADED.append", "time.sleep(0.5), LOADED.append")

    @play
    async def scenario(w: World) -> None:
        of = await provided(w, model(slow))
        other = await provided(w, model(name="g", number=2))
        await container(w, of)
        await loaded(w, "i0", other)
        load(w, "i1", of)
        w.send(actions.Freeze(instance="i1"))
        assert await run(w, "i0", "out = 1") == 1
        w.send(actions.Thaw(instance="i1"))
        await w.until(events.InstanceReady, instance="i1")
        assert json.loads((await w.answer("i1", {})).body) == 256 * 64


def killed(pid: int) -> None:
    """-9 to the template that has this number in its container."""
    for process in runtimes():
        status = Path(f"/proc/{process.pid}/status").read_text()
        inner = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
        if int(inner) == pid and process.children():
            process.kill()
            return
    raise AssertionError(f"no template {pid} among {runtimes()}")
