"""A node that outlives its controller: what rests goes on under the next one, what ran has ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import psutil  # type: ignore[import-untyped] # ships no types
import pytest
import uvloop

from instainfer.agent.base import Answered, Measure, Measured, Progress, Provide, TaskFailed
from instainfer.agent.environments import Environments
from instainfer.agent.http_client import HttpAgent
from instainfer.agent.http_server import serving
from instainfer.agent.installers import Sources
from instainfer.agent.local import LocalAgent
from instainfer.agent.runners import SandboxRunner
from instainfer.core import actions, events
from instainfer.errors import Unavailable
from instainfer.model import Level
from instainfer.sandbox.base import Sandbox
from tests.contract.agent_helpers import (
    KEY,
    MB,
    PATIENCE_S,
    SANDBOXES,
    Reports,
    World,
    managers,
    package,
    revision,
)


class Node(Protocol):
    async def __call__(self, epoch: int, lost_s: float = 10.0) -> tuple[World, events.NodeJoined]: ...


Play = Callable[[Callable[[Node], Awaitable[None]]], None]


@pytest.fixture(params=["process", pytest.param("linux", marks=pytest.mark.root)])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Controllers of ascending epochs join one node, each the last one's successor."""

    def run(scenario: Callable[[Node], Awaitable[None]]) -> None:
        async def main() -> None:
            async with node(SANDBOXES[request.param](tmp_path / "state"), tmp_path) as join:
                await scenario(join)

        uvloop.run(main())
        assert not managers()

    return run


@contextlib.asynccontextmanager
async def node(sandbox: Sandbox, path: Path) -> AsyncIterator[Node]:
    environments = Environments(path / "environments", SandboxRunner(sandbox), sources=Sources(no_index=True))
    local = LocalAgent(sandbox, environments, path, node="n1", memory=2048 * MB, load_slots=2)
    async with serving(local, "127.0.0.1", 0, KEY) as url:

        async def join(epoch: int, lost_s: float = 10.0) -> tuple[World, events.NodeJoined]:
            agent, reports = HttpAgent("n1", url, KEY, epoch=epoch, stays=True, lost_s=lost_s), Reports()
            joined = await agent.start(reports)
            return World(agent, sandbox, reports, None), joined

        yield join


def pid(answered: Answered) -> int:
    found: int = json.loads(answered.body)["pid"]
    return found


def test_what_rests_serves_the_next_controller(play: Play) -> None:
    @play
    async def scenario(join: Node) -> None:
        first, joined = await join(1)
        assert joined.held == ()
        of = await first.opened("c1e1", "i1e1")
        before = pid(await first.answer("i1e1", {}))
        await first.ready("i2e1", "c1e1", of)
        first.send(actions.Freeze(instance="i2e1"))
        await first.answer("i1e1", {})  # what was sent before has been done
        first.send(actions.ResizeContainer(container="c1e1", limit=300 * MB))
        await first.answer("i1e1", {})
        await first.agent.aclose()

        second, joined = await join(2)
        (held,) = joined.held
        assert (held.container, held.function, held.limit) == ("c1e1", "ns/f", 300 * MB)
        rests = {one.instance: (one.level, one.revision, one.frozen) for one in held.instances}
        assert rests == {"i1e1": (Level.LOADED, of.id, False), "i2e1": (Level.LOADED, of.id, True)}
        assert held.instances[0].served == 3
        second.send(Provide(revision=of))
        assert pid(await second.answer("i1e1", {})) == before
        second.send(actions.Freeze(instance="i1e1"), actions.Thaw(instance="i2e1"))
        await second.works("i2e1")
        await second.ready("i3e2", "c1e1", of)
        await second.agent.aclose()


def test_what_runs_ends_before_the_next_controller_begins(play: Play) -> None:
    @play
    async def scenario(join: Node) -> None:
        first, _ = await join(1)
        of = await first.opened("c1e1", "i1e1")
        first.create("c2e1", of)
        await first.until(events.ContainerReady, container="c2e1")
        await first.ready("i2e1", "c2e1", of)
        first.invoke("i2e1", {"do": "hang"})
        await first.answer("i1e1", {})  # so that it has begun
        second, joined = await join(2)
        assert [one.container for one in joined.held] == ["c1e1"]
        assert len(managers()) == 1
        await first.until(events.NodeLost)  # it is told that it has no say any more
        second.send(Provide(revision=of))
        await second.works("i1e1")
        with pytest.raises(Unavailable, match="epoch 2"):
            await join(1)
        await second.works("i1e1")
        await second.agent.aclose()


def test_what_runs_ends_where_the_controller_is_not_heard_of(play: Play) -> None:
    @play
    async def scenario(join: Node) -> None:
        first, _ = await join(1, 1.0)
        of = await first.opened("c1e1", "i1e1")
        (rests,) = managers()
        first.create("c2e1", of)
        await first.until(events.ContainerReady, container="c2e1")
        await first.ready("i2e1", "c2e1", of)
        first.invoke("i2e1", {"do": "hang"})
        await first.answer("i1e1", {})
        runs = [one for one in managers() if one != rests]
        await first.agent.aclose()
        gone, _ = await asyncio.to_thread(psutil.wait_procs, runs, PATIENCE_S)
        assert len(gone) == 1
        assert managers() == [rests]
        second, joined = await join(2)
        assert [one.container for one in joined.held] == ["c1e1"]
        await second.agent.aclose()


def test_a_deployment_of_the_controller_before_tells_the_next_one_nothing(play: Play) -> None:
    @play
    async def scenario(join: Node) -> None:
        first, _ = await join(1)
        data = package(**{"main.py": "import time\ntime.sleep(60)\n"})
        of = await first.provide(revision(data=data), data)
        first.send(Measure(token=1, revision=of.id))
        await first.until(Progress, token=1)
        second, _ = await join(2)
        await second.opened("c1e2", "i1e2")
        assert not [r for r in second.reports.seen if isinstance(r, Progress | Measured | TaskFailed)]
        assert len(managers()) == 1
        await second.agent.aclose()


def test_what_is_provided_again_while_others_are_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is withdrawn when a controller takes the node, and removed by and by; it is provided again meanwhile."""
    removing, on = threading.Event(), threading.Event()
    removed: list[Path] = []

    def remove(path: Path, **_: object) -> None:
        removed.append(path)
        removing.set()
        assert on.wait(PATIENCE_S)

    async def main() -> None:
        sandbox = SANDBOXES["process"](tmp_path / "state")
        environments = Environments(tmp_path / "envs", SandboxRunner(sandbox), sources=Sources(no_index=True))
        agent = LocalAgent(sandbox, environments, tmp_path, node="n1", memory=2048 * MB, load_slots=2)
        await agent.start(Reports())
        try:
            revisions = [revision("f", 1), revision("g", 2)]
            for one in revisions:
                (tmp_path / "packages" / "ns" / f"{one.name}-{one.digest[7:31]}").mkdir(parents=True)
                agent.send(Provide(revision=one))
            monkeypatch.setattr("instainfer.agent.local.shutil.rmtree", remove)
            await agent.hand_over(Reports())
            sweeping = asyncio.create_task(agent._sweep())
            assert await asyncio.to_thread(removing.wait, PATIENCE_S)
            (first,) = removed
            (other,) = [one for one in revisions if f"-{one.name}-{one.digest[7:31]}" not in first.name]
            agent.send(Provide(revision=other))
            on.set()
            await sweeping
            assert (await agent.revision(other.id))[0] == other
            assert removed == [first]
        finally:
            on.set()
            await agent.aclose()

    asyncio.run(main())
