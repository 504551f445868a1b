"""What tests of zygotes, snapshots and clones share: cheap environments, functions that run what they are sent."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil  # type: ignore[import-untyped] # ships no types
import pytest
import uvloop

from instainfer.agent.base import Deliver, Measure, Measured, Missing, Provide, Revision
from instainfer.core import actions, events
from instainfer.model import Level, Profile
from tests.contract.agent_helpers import (
    MB,
    PYTHON,
    WHY,
    World,
    children,
    disregard,
    managers,
    package,
    revision,
    world,
)

Scenario = Callable[[World], Awaitable[None]]
Play = Callable[[Scenario], None]

#: Of agents in process: what is over HTTP differs in nothing that these tests look at.
SANDBOXES = [
    pytest.param("process", id="process"),
    pytest.param("linux", id="linux", marks=pytest.mark.root),
]

#: Runs what it is sent and answers with what that calls `out`.
MODULE = """
import sys

state = {"seen": 0}

def handler(event):
    scope = {"state": state}
    exec(event["code"], scope)
    return scope.get("out")
"""

CLASS = """
class Model:
    def load(self):
        self.state = {"seen": 0}

    def predict(self, event):
        scope = {"state": self.state}
        exec(event["code"], scope)
        return scope.get("out")
"""

SCRIPT = """
import json, sys

state = {"seen": 0}
for line in iter(sys.stdin.readline, ""):
    scope = {"state": state}
    exec(json.loads(line)["code"], scope)
    print(json.dumps(scope.get("out")))
"""


def player(kind: str, path: Path) -> Play:
    def run(scenario: Scenario) -> None:
        disregard()

        async def main() -> None:
            async with world("local", kind, path) as made:
                await scenario(made)

        uvloop.run(main())
        assert not managers()
        assert not runtimes()

    return run


def library(path: Path, name: str = "e", **modules: str) -> str:
    """The interpreter of an environment of namespace `ns` with these modules. Written by hand: a venv is no more
    than this, and takes a second to make."""
    root = path / "environments" / "ns" / name
    site = root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "bin" / "python").symlink_to(PYTHON)
    (root / "pyvenv.cfg").write_text(f"home = {Path(PYTHON).parent}\ninclude-system-site-packages = false\n")
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)
    for directory in (path / "environments", path / "environments" / "ns", root):
        directory.chmod(0o755)
    return str(root / "bin" / "python")


def function(source: str = MODULE, name: str = "f", number: int = 1, **more: Any) -> tuple[Revision, bytes]:
    files = more.pop("files", {})
    data = package(**{"main.py": source, **files})
    as_written = {key: more.pop(key) for key in ("style", "entry") if key in more}
    return msgspec.structs.replace(revision(name, number, data, **more), **as_written), data


async def provided(w: World, made: tuple[Revision, bytes]) -> Revision:
    return await w.provide(*made)


async def known(w: World, made: tuple[Revision, bytes]) -> Revision:
    """Provide what may be on the node already."""
    of, data = made
    before = len(w.reports.all(Missing))
    w.send(Provide(revision=of))
    if len(w.reports.all(Missing)) > before:
        w.send(Deliver(revision=of.id, package=data))
    return of


def start_zygote(w: World, *of: Revision, name: str = "z1", limit: int = 256 * MB) -> None:
    w.send(
        actions.StartZygote(
            zygote=name,
            node=w.agent.node,
            libraries=of[0].libraries,
            revisions=tuple(one.id for one in of),
            limit=limit,
            why=WHY,
        )
    )


async def zygote(w: World, *of: Revision, name: str = "z1", limit: int = 256 * MB) -> events.ZygoteReady:
    start_zygote(w, *of, name=name, limit=limit)
    ready = await w.until(events.ZygoteReady, zygote=name)
    assert ready.bytes > 0
    return ready


def end_zygote(name: str = "z1") -> actions.EndZygote:
    return actions.EndZygote(zygote=name, why=WHY)


async def container(w: World, of: Revision, name: str = "c1") -> None:
    w.create(name, of)
    await w.until(events.ContainerReady, container=name)


def load(
    w: World, instance: str, of: Revision, into: str = "c1", level: Level = Level.LOADED, *, ahead: bool = False
) -> None:
    w.send(
        actions.Load(
            instance=instance,
            container=into,
            function=f"{of.namespace}/{of.name}",
            revision=of.id,
            level=level,
            ahead=ahead,
            why=WHY,
        )
    )


async def loaded(w: World, instance: str, of: Revision, into: str = "c1", **more: Any) -> str:
    """How it came to be."""
    load(w, instance, of, into, **more)
    ready = await w.until(events.InstanceReady, instance=instance)
    assert ready.level == more.get("level", Level.LOADED)
    return str(ready.origin)


async def run(w: World, instance: str, code: str) -> Any:
    """What the code calls `out` in the instance."""
    answered = await w.answer(instance, {"code": code})
    assert not answered.problem, answered.problem
    return json.loads(answered.body)


async def measured(w: World, of: Revision, token: int = 1) -> Profile:
    w.send(Measure(token=token, revision=of.id))
    return (await w.until(Measured, token=token)).profile


def runtimes(role: str = "") -> list[Any]:
    """Processes of ours that run the runtime's code: zygotes, instances and what was forked from either."""
    found = []
    for process in children():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if any(word.endswith("/boot.py") for word in line) and (not role or role in line):
                found.append(process)
    return found


def zygotes() -> list[Any]:
    """What was started as a zygote: its forks have its command line, and another parent."""
    found = runtimes("zygote")
    pids = {process.pid for process in found}
    heads = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            if process.ppid() not in pids and os.getpgid(process.pid) == process.pid and _is_head(process):
                heads.append(process)
    return heads


def _is_head(process: Any) -> bool:
    """A fork that its zygote has left behind has the room's manager for a parent, as the zygote had, but stands in
    a package."""
    return str(process.cwd()) == "/"


def cgroups() -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").glob("**/instainfer-*")]
