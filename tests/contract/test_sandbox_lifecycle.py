"""The contract of sandboxes, continued: how containers come, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import uvloop

from instainfer.errors import Unavailable
from tests.contract.sandbox_helpers import MAKE, Contract, Server, World, alive, mounts, traces, until

contract = Contract()
ECHO = "while True: say(hear())"


@contract()
async def destroys_everything(world: World) -> None:
    before = mounts()
    pids = []
    for id_ in ("c1", "c2", "c3"):
        box = await world.box(id_)
        for name in ("i1", "i2"):
            child = await box.run(name, "os.fork()\nsay(1)\nhear()")
            assert [await child.hear(), await child.hear()] == [1, 1]
            pids.append(child.spawned.pid)
        await box.container.freeze("i2")
    await asyncio.gather(*(box.container.destroy() for box in world.boxes[:2]))
    await world.boxes[0].container.destroy()  # idempotent
    assert [alive(pid) for pid in pids] == [False] * 4 + [True] * 2
    await world.sandbox.aclose()
    assert not any(alive(pid) for pid in pids)
    assert traces(world.path / "state") == []
    assert mounts() == before


@contract()
async def creates_many_at_once(world: World) -> None:
    boxes = await asyncio.gather(*(world.box(f"c{n}") for n in range(8)))
    children = await asyncio.gather(*(box.run("i1", ECHO) for box in boxes))
    assert await asyncio.gather(*(child.ask(n) for n, child in enumerate(children))) == list(range(8))
    assert len({child.spawned.pid for child in children}) == 8


@contract()
async def has_one_server_at_a_time(world: World) -> None:
    other = MAKE[world.variant](world.path / "state")
    with pytest.raises(Unavailable, match="another server is using"):
        await other.start()


@contract()
async def leaves_other_servers_alone(world: World) -> None:
    box = await world.box()
    child = await box.run("i1", ECHO)
    other = MAKE[world.variant](world.path / "another")
    await other.start()
    await other.aclose()
    assert await child.ask(1) == 1


@contract()
async def leaves_nothing_when_its_server_is_killed(world: World) -> None:
    state = world.path / "killed"
    server = Server(world.variant, state)
    assert all(alive(pid) for pid in server.pids)
    server.kill()
    await until(lambda: not any(alive(pid) for pid in server.pids), "all instances are gone")
    await until(lambda: traces(state) == [], "nothing is left")
    if server.launcher is not None:
        await until(lambda: not alive(server.launcher or 0), "the launcher is gone")


@contract()
async def cleans_up_after_a_killed_server_and_launcher(world: World) -> None:
    state = world.path / "killed"
    server = Server(world.variant, state)
    if server.launcher is not None:
        os.kill(server.launcher, signal.SIGKILL)
    server.kill()
    following = MAKE[world.variant](state)
    await following.start()
    await until(lambda: not any(alive(pid) for pid in server.pids), "all instances are gone")
    await following.aclose()
    assert traces(state) == []


@pytest.mark.parametrize(("variant", "scenario"), contract.cases())
def test_contract(variant: str, scenario: str) -> None:
    contract.play(variant, scenario)


@pytest.mark.parametrize("scenario", ["creates_many_at_once", "destroys_everything"])
@pytest.mark.parametrize("variant", ["process", pytest.param("linux", marks=pytest.mark.root)])
def test_contract_on_uvloop(variant: str, scenario: str) -> None:
    contract.play(variant, scenario, uvloop.new_event_loop)
