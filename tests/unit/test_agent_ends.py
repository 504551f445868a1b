"""What goes wrong while something ends, or where a disk takes nothing: whoever waits is told all the same."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from instainfer.agent import base
from instainfer.agent.container import ContainerHost
from instainfer.agent.environments import Environments
from instainfer.agent.instance import InstanceHost, Output
from instainfer.agent.local import LocalAgent
from instainfer.agent.room import Room
from instainfer.agent.zygotes import Zygote
from instainfer.core import actions, events
from instainfer.model import Level, Origin, Style
from instainfer.runtime import frames
from instainfer.sandbox.base import Container, Sandbox

WHY = actions.Why(rule="the test says so")
REVISION = base.Revision(
    id="ns/f@1:00", namespace="ns", name="f", number=1, uid_base=1, digest="sha256:00", style=Style.MODULE,
    entry="main:handler", python="/python",
)  # fmt: skip


class Stubborn:
    """A container that the kernel does not let go of."""

    id = "c1"

    def __init__(self, error: OSError) -> None:
        self.control, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._error = error

    async def destroy(self) -> None:
        raise self._error

    def kill(self, instance: str) -> None:
        raise self._error

    def oom_killed(self, instance: str) -> bool:
        raise self._error


ERRORS = [TimeoutError(), OSError(errno.ENODEV, "No such device")]


@pytest.mark.parametrize("error", ERRORS, ids=["timeout", "gone"])
def test_a_container_that_does_not_end_is_lost_all_the_same(
    error: OSError, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        told: list[base.Report] = []
        ended: list[str] = []

        class Node:
            def ended(self, container: str) -> None:
                ended.append(container)

        stubborn = Stubborn(error)
        host = ContainerHost(cast(Container, stubborn), told.append, cast(Any, Node()), apart=False)
        await host.close("the test")
        assert [(type(report), report.container) for report in told] == [(events.ContainerLost, "c1")]  # type: ignore[union-attr] # it has one
        assert ended == ["c1"]
        stubborn.other.close()

    asyncio.run(main())
    assert "given up" in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize("error", ERRORS, ids=["timeout", "gone"])
def test_a_zygotes_room_that_does_not_end_is_closed_all_the_same(error: OSError) -> None:
    async def main() -> None:
        stubborn = Stubborn(error)
        zygote = Zygote("z1", "numpy", frozenset())
        zygote._room = Room(cast(Container, stubborn), on_lost=lambda reason: None)
        zygote.end(zygote._why("it ended"))
        await zygote.close()
        await asyncio.wait_for(zygote.closed.wait(), 20)
        assert zygote.lost.result() == "it ended"
        stubborn.other.close()

    asyncio.run(main())


def on_a_full_disk(tmp_path: Path, scenario: Callable[[LocalAgent, asyncio.Queue[Any]], Awaitable[None]]) -> None:
    async def main() -> None:
        told: asyncio.Queue[Any] = asyncio.Queue()
        for kind in ("packages", "environments", "snapshots"):  # where a namespace's directory should come
            (tmp_path / kind).mkdir()
            (tmp_path / kind / "ns").touch()
        kept = SimpleNamespace(directory=lambda namespace: tmp_path / "environments" / namespace)
        agent = LocalAgent(
            cast(Sandbox, Nothing()), cast(Environments, kept), tmp_path, memory=1 << 30, load_slots=1
        )
        agent._loop, agent._report = asyncio.get_running_loop(), told.put_nowait
        agent._zygotes = agent._new_zygotes()
        agent.send(base.Provide(revision=REVISION))
        assert isinstance(await asyncio.wait_for(told.get(), 20), base.Missing)
        await asyncio.wait_for(scenario(agent, told), 20)

    asyncio.run(main())


class Nothing:
    """A sandbox that is never asked for a container."""

    enforces = SimpleNamespace(function_uids=False, filesystem=True, network=True)

    async def create(self, spec: object) -> Any:
        raise AssertionError("a container is made")


def test_a_container_that_has_no_place_is_told(tmp_path: Path) -> None:
    async def scenario(agent: LocalAgent, told: asyncio.Queue[Any]) -> None:
        agent.send(
            actions.CreateContainer(
                container="c1", node="local", function="ns/f", revision=REVISION.id, limit=1 << 26, why=WHY
            )
        )
        lost = await told.get()
        assert isinstance(lost, events.ContainerLost) and lost.container == "c1"
        agent.send(
            actions.StartZygote(
                zygote="z1",
                node="local",
                libraries="l",
                revisions=(REVISION.id,),
                limit=1,
                why=WHY,
            )
        )
        lost = await told.get()
        assert isinstance(lost, events.ZygoteLost) and lost.zygote == "z1"

    on_a_full_disk(tmp_path, scenario)


def test_a_package_that_has_no_place_is_asked_for_again(tmp_path: Path) -> None:
    async def scenario(agent: LocalAgent, told: asyncio.Queue[Any]) -> None:
        agent.send(base.Deliver(revision=REVISION.id, package=b"PK"))
        with pytest.raises(Exception, match="could not be extracted"):
            await agent.revision(REVISION.id)
        waits = asyncio.create_task(agent.revision(REVISION.id))  # the next load tries once more
        again = await told.get()
        assert isinstance(again, base.Missing) and again.revision == REVISION.id
        assert not waits.done()
        waits.cancel()

    on_a_full_disk(tmp_path, scenario)


@pytest.mark.parametrize(
    "said",
    ["text/plain\r\nset-cookie: a=b", "text/plain\n", "a\0b", "x" * 256, "text/plän", 5, None],
)
@pytest.mark.parametrize("kind", [frames.RESULT, frames.PART])
def test_a_content_type_is_one_header(said: object, kind: int) -> None:
    """An instance is a tenant's: it must not write headers, nor answers to others' requests."""

    async def main() -> None:
        told: list[Any] = []
        expired: list[str] = []
        read, write = os.pipe()
        other, also = os.pipe()
        output = Output(read, other, 1000)
        host = InstanceHost(
            "i1", REVISION, "/package", Origin.SPAWNED, output, told.append, lambda why, *_: expired.append(why)
        )
        host.wanted = Level.LOADED
        host.invoke(1, "a", "text/plain", b"")
        host.data_received(frames.encode(kind, 1, {"type": said, "s": 0.0}, b"body"))
        assert not told
        assert len(expired) == 1 and "content type" in expired[0]
        assert host.busy, "the request is still its own: it ends with it"
        host.data_received(frames.encode(kind, 1, {"type": "text/plain; charset=utf-8"}, b"body"))
        assert told[0].content_type == "text/plain; charset=utf-8"
        host.close()
        os.close(write)
        os.close(also)

    asyncio.run(main())
