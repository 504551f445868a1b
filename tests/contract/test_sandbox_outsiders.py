"""The contract of sandboxes, continued: instances that another container's zygote has forked (outsiders). They
live in its namespaces and belong to their container all the same."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from instainfer.sandbox.base import Mount
from tests.contract.sandbox_helpers import MB, Box, Child, Contract, Talker, World, alive, parent, traces, until

contract = Contract()
ECHO = "while True: say(hear())"
GREEDY = "kept = []\nwhile True:\n    kept.append(bytearray(b'x') * (hear() << 20))\n    say(len(kept))"
COUNT = """
    import mmap
    file = open(hear(), "r+b")
    page = mmap.mmap(file.fileno(), 16)
    at = 0 if os.fork() else 8
    say("counting")
    n = 0
    while True:
        n += 1
        page[at:at + 8] = n.to_bytes(8, "little")
"""


async def two(world: World, *, ballast: int = 64, mounts: list[Mount] | None = None) -> tuple[Box, Box, Child]:
    """A room, a container, and the zygote in the room."""
    room = await world.box("room", mounts=mounts or [])
    return room, await world.box("c1"), await room.zygote(ballast)


def places(pid: int) -> set[str]:
    """The groups of a process in the hierarchies that ours are made in."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return {f"{kind}:{path}" for _, kind, path in lines if "instainfer-" in path}


async def weight(box: Box, name: str) -> int:
    return (await asyncio.to_thread(box.container.usage)).instances[name]


@contract()
async def takes_who_comes_through_the_doors(world: World) -> None:
    _, box, zygote = await two(world)
    outsider = await box.fork("o1", zygote, "say(entered)\n" + ECHO)
    entered = await outsider.hear()
    assert entered == [1] * len(entered)
    assert await outsider.ask("here") == "here"
    inside = await box.run("o2", ECHO)  # of the same container, by its own manager
    assert {place.replace("/o1", "/o2") for place in places(outsider.pid)} == places(inside.pid)
    assert (await asyncio.to_thread(box.container.usage)).instances.keys() == {"o1", "o2"}


@contract()
async def takes_who_did_not_come_through_the_doors(world: World) -> None:
    _, box, zygote = await two(world)
    moved = await box.fork("o1", zygote, ECHO, doors=False)
    through = await box.fork("o2", zygote, ECHO)
    assert {place.replace("/o1", "/o2") for place in places(moved.pid)} == places(through.pid)


@contract()
async def refuses_who_is_gone(world: World) -> None:
    _, box, zygote = await two(world)
    outsider = await box.fork("o1", zygote, "say(1)")
    await outsider.hear()
    await until(lambda: not alive(outsider.pid), "it has ended by itself")
    await box.container.detach("o1")
    box.container.doors("o2", limit=MB)
    with pytest.raises(ProcessLookupError):
        box.container.attach("o2", outsider.pid, limit=MB)
    await box.container.detach("o2")


@contract()
async def freezes_and_thaws_an_outsider(world: World) -> None:
    world.directory("shared").chmod(0o755)
    room, box, zygote = await two(world, mounts=[Mount(world.path / "shared", writable=True)])
    count = await counting(world, box, zygote)
    other = await box.fork("o2", zygote, ECHO)
    beside = await room.run("i1", ECHO)
    for _ in range(3):
        await box.container.freeze("o1")
        stopped = count()
        for number in range(50):  # time in which it would count, and in which others go on
            assert await other.ask(number) == number
            assert await beside.ask(number) == number
        assert count() == stopped
        box.container.thaw("o1")
        await until(lambda: min(a - b for a, b in zip(count(), stopped, strict=True)) > 0, "both go on")  # noqa: B023 # awaited here


async def counting(world: World, box: Box, zygote: Child) -> Callable[[], tuple[int, int]]:
    """An outsider o1 that counts, and its child that does too, in a file that is read here."""
    page = world.path / "shared" / "o1"
    page.write_bytes(bytes(16))
    page.chmod(0o666)
    outsider = await box.fork("o1", zygote, COUNT)
    assert await outsider.ask(str(page)) == "counting"
    assert await outsider.hear() == "counting"

    def read() -> tuple[int, int]:
        data = page.read_bytes()
        return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")

    await until(lambda: min(read()) > 0, "both count")
    return read


@contract()
async def kills_a_frozen_outsider(world: World) -> None:
    world.directory("shared").chmod(0o755)
    _, box, zygote = await two(world, mounts=[Mount(world.path / "shared", writable=True)])
    count = await counting(world, box, zygote)
    outsider = box.outsiders[0]
    await box.container.freeze("o1")
    box.container.kill("o1")
    await until(lambda: not alive(outsider.pid), "it is killed")
    await box.container.detach("o1")
    stopped = count()
    box.container.kill("o1")  # idempotent
    await box.container.detach("o1")
    again = await box.fork("o1", zygote, ECHO)  # the name is free and the zygote well
    for number in range(50):
        assert await again.ask(number) == number
    assert count() == stopped


@contract("descendants")
async def ends_descendants_of_an_outsider_that_ran_away(world: World) -> None:
    _, box, zygote = await two(world)
    outsider = await box.fork(
        "o1",
        zygote,
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                say(1)
                hear()
            os._exit(0)
        hear()
        """,
    )
    await outsider.hear()
    group = box.container._groups  # type: ignore[attr-defined] # the only witness of who is in it
    await until(lambda: len(group.pids("c1", "o1")) == 2, "parent and runaway")
    everyone = group.pids("c1", "o1")
    box.container.kill("o1")
    await box.container.detach("o1")
    assert not any(alive(pid) for pid in everyone)


@contract("pids")
async def counts_processes_of_outsiders(world: World) -> None:
    zygote = await (await world.box("room")).zygote()
    box = await world.box("c1", pids=20)
    for doors in (True, False):
        outsider = await box.fork(
            f"o{doors}",
            zygote,
            """
            n = 0
            try:
                while n < 100:
                    if os.fork() == 0:
                        signal.pause()
                    n += 1
            except BlockingIOError:
                pass
            say(n)
            hear()
            """,
            doors=doors,
        )
        assert 10 <= await outsider.hear() < 20
        box.container.kill(outsider.name)
        await box.container.detach(outsider.name)


TOUCH = "while True:\n    for at in range(0, hear() << 20, 4096): ballast[at] = 1\n    say('touched')"


@contract()
async def weighs_what_an_outsider_made(world: World) -> None:
    room, box, zygote = await two(world, ballast=64)
    first = await box.fork("o1", zygote, "say(sum(ballast[::4096]))\n" + TOUCH)
    await box.fork("o2", zygote, TOUCH)
    assert await first.hear() == 64 * 256 * ord("x")
    assert await weight(box, "o1") < 8 * MB
    assert await weight(box, "o2") < 8 * MB
    before = await asyncio.to_thread(box.container.usage)
    await first.ask(32)
    after = await asyncio.to_thread(box.container.usage)
    assert after.instances["o1"] - before.instances["o1"] == pytest.approx(32 * MB, rel=0.05)
    assert after.anonymous - before.anonymous == pytest.approx(32 * MB, rel=0.05)
    assert after.instances["o2"] < 8 * MB
    # its zygote has what it made, however many share it
    assert 60 * MB < await weight(room, "zygote") < 80 * MB


@contract()
async def weighs_what_an_outsider_shares_with_its_children(world: World) -> None:
    _, box, zygote = await two(world, ballast=16)
    outsider = await box.fork("o1", zygote, GREEDY.replace("say", "os.fork() and say"))
    assert await outsider.ask(96) == 1
    assert 90 * MB < await weight(box, "o1") < 130 * MB


@contract("memory_at_once")
async def weighs_no_more_when_the_zygote_is_gone(world: World) -> None:
    room, box, zygote = await two(world, ballast=64)
    outsider = await box.fork("o1", zygote, "while True:\n    hear()\n    say(sum(ballast[::4096]))")
    before = await asyncio.to_thread(box.container.usage)
    room.container.kill("zygote")
    await zygote.exit()
    await room.container.detach("zygote")
    assert await outsider.ask("read it all") == 64 * 256 * ord("x")
    after = await asyncio.to_thread(box.container.usage)
    assert after.instances["o1"] - before.instances["o1"] < MB
    assert after.anonymous - before.anonymous < MB


@contract("memory")
async def kills_an_outsider_that_passes_its_memory_limit(world: World) -> None:
    room, box, zygote = await two(world, ballast=64)
    beside = await room.run("i1", ECHO)
    modest = await box.run("modest", GREEDY, limit=96 * MB)
    brother = await box.fork("brother", zygote, GREEDY, limit=96 * MB)
    greedy = await box.fork("greedy", zygote, GREEDY, limit=96 * MB)
    assert await greedy.ask(16) == await brother.ask(16) == await modest.ask(16) == 1
    greedy.writer.write(b"160\n")
    await until(lambda: not alive(greedy.pid), "it is killed")
    assert box.container.oom_killed("greedy")
    await box.container.detach("greedy")
    assert box.container.oom_killed("greedy")
    assert await brother.ask(16) == await modest.ask(16) == 2
    assert not any(box.container.oom_killed(name) for name in ("brother", "modest"))
    assert await beside.ask(1) == 1
    assert await (await box.fork("next", zygote, ECHO)).ask(1) == 1  # by the same zygote
    assert not room.lost.done()
    assert not box.lost.done()


@contract("memory")
async def counts_outsiders_towards_the_limit_of_the_container(world: World) -> None:
    zygote = await (await world.box("room", limit=1024 * MB)).zygote(64)
    box = await world.box("c1", limit=128 * MB)
    outsider = await box.fork("o1", zygote, GREEDY, limit=1024 * MB)
    assert await outsider.ask(64) == 1
    outsider.writer.write(b"160\n")
    await until(lambda: not alive(outsider.pid), "it is killed")
    assert not box.lost.done()
    assert await (await box.fork("o2", zygote, ECHO)).ask(1) == 1


@contract()
async def ends_outsiders_with_their_container(world: World) -> None:
    _, box, zygote = await two(world)
    outsiders = [await box.fork(name, zygote, "os.fork()\nsay(1)\n" + ECHO) for name in ("o1", "o2")]
    await box.container.freeze("o2")
    await box.container.destroy()
    assert not any(alive(outsider.pid) for outsider in outsiders)
    assert await after_that(world, zygote) == "well"


@contract()
async def ends_outsiders_of_a_container_whose_manager_was_killed(world: World) -> None:
    _, box, zygote = await two(world)
    inside = await box.run("i1", ECHO)
    outsiders = [await box.fork(name, zygote, ECHO) for name in ("o1", "o2")]
    await box.container.freeze("o2")
    os.kill(parent(inside.pid), signal.SIGKILL)
    await asyncio.wait_for(box.lost, 10)
    await box.container.destroy()
    assert not any(alive(outsider.pid) for outsider in outsiders)
    assert await after_that(world, zygote) == "well"


@contract("filesystem")  # those that have a launcher
async def ends_outsiders_of_a_container_whose_launcher_was_killed(world: World) -> None:
    _, box, zygote = await two(world)
    outsider = await box.fork("o1", zygote, ECHO)
    await box.container.freeze("o1")
    os.kill(world.sandbox._launcher._process.pid, signal.SIGKILL)  # type: ignore[attr-defined] # known to nobody else
    await box.container.destroy()
    assert not alive(outsider.pid)
    assert await after_that(world, zygote) == "well"


async def after_that(world: World, zygote: Child) -> object:
    return await (await (await world.box("c2")).fork("o1", zygote, ECHO)).ask("well")


@contract()
async def ends_outsiders_with_their_room(world: World) -> None:
    room, box, zygote = await two(world)
    outsiders = [await box.fork(name, zygote, ECHO) for name in ("o1", "o2")]
    inside = await box.run("i1", ECHO)
    await box.container.freeze("o2")
    await room.container.destroy()
    await left_without(box, outsiders, inside)


@contract()
async def ends_outsiders_of_a_room_whose_manager_was_killed(world: World) -> None:
    room, box, zygote = await two(world)
    outsiders = [await box.fork(name, zygote, ECHO) for name in ("o1", "o2")]
    inside = await box.run("i1", ECHO)
    await box.container.freeze("o2")
    os.kill(parent(zygote.pid), signal.SIGKILL)
    await asyncio.wait_for(room.lost, 10)
    await room.container.destroy()
    await left_without(box, outsiders, inside)


async def left_without(box: Box, outsiders: list[Talker], inside: Child) -> None:
    assert not any(alive(outsider.pid) for outsider in outsiders)
    assert await inside.ask(1) == 1
    for outsider in outsiders:
        box.container.kill(outsider.name)
        await box.container.detach(outsider.name)
    assert not box.lost.done()


@contract()
async def leaves_nothing_of_outsiders(world: World) -> None:
    _, box, zygote = await two(world)
    outsider = await box.fork("o1", zygote, ECHO)
    await box.container.freeze("o1")
    await world.sandbox.aclose()
    assert not any(alive(pid) for pid in (outsider.pid, zygote.pid))
    assert traces(world.path / "state") == []


@pytest.mark.parametrize(("variant", "scenario"), contract.cases())
def test_contract(variant: str, scenario: str) -> None:
    contract.play(variant, scenario)
