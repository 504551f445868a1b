"""A controller's nodes in step with a cluster that deals in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from msgspec.structs import replace

from instainfer import membership
from instainfer.agent.base import Agent
from instainfer.cluster.base import Change, Joined, Member, Resized
from instainfer.controller import Controller
from instainfer.core.events import NodeJoined
from instainfer.membership import Membership

GB = 1_000_000_000


class Backend:
    """Of one host."""

    def __init__(self) -> None:
        self.member = Member(node="a", warm=2 * GB)
        self.changes: asyncio.Queue[Change] = asyncio.Queue()
        self.asked: list[str] = []
        self.released = asyncio.Event()

    async def start(self) -> None:
        self.changes.put_nowait(Joined(member=self.member))

    def members(self) -> dict[str, Member]:
        return {"a": self.member}

    async def ensure_agent(self, node: str) -> Agent:
        return cast(Agent, SimpleNamespace(node=node))

    async def release(self, node: str) -> None:
        self.asked.append("release")
        self.released.set()
        self.has(4 * GB)  # what it advertises: nothing of it is ours

    async def reserve(self, node: str) -> None:
        self.asked.append("reserve")
        self.has(1 * GB)

    def has(self, warm: int) -> None:
        self.member = replace(self.member, warm=warm)
        self.changes.put_nowait(Resized(member=self.member))

    async def watch(self) -> AsyncIterator[Change]:
        while True:
            yield await self.changes.get()

    async def aclose(self) -> None:
        pass


class Nodes:
    """As much of a controller as membership asks for."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeJoined] = {}
        self.draining: set[str] = set()
        self.sizes: list[int] = []
        self.changed = asyncio.Event()
        self.platform = SimpleNamespace(
            state=SimpleNamespace(
                containers={}, closed=set(), leaving={}, ledger=SimpleNamespace(promised=lambda node: 0)
            )
        )

    async def join(self, agent: Agent, most: int = 0) -> None:
        self.nodes[agent.node] = NodeJoined(node=agent.node, memory=2 * GB)

    def resize_node(self, node: str, memory: int) -> None:
        if node in self.nodes:
            self.sizes.append(memory)
            self.changed.set()

    def drain_node(self, node: str) -> None:
        self.draining.add(node)

    def open_node(self, node: str) -> None:
        self.draining.discard(node)

    async def until(self, size: int) -> None:
        async with asyncio.timeout(30):
            while not self.sizes or self.sizes[-1] != size:
                self.changed.clear()
                await self.changed.wait()


def test_memory_follows_the_cluster_and_a_drained_node_gives_it_back(monkeypatch: Any) -> None:
    monkeypatch.setattr(membership, "TEND_S", 0.001)

    async def scenario() -> None:
        backend, nodes = Backend(), Nodes()
        subject = Membership(cast(Controller, nodes), backend)
        await subject.start()
        await nodes.until(2 * GB)
        backend.has(GB // 2)
        await nodes.until(GB // 2)
        assert subject.drain("a")["state"] == "drained"
        async with asyncio.timeout(30):
            await backend.released.wait()
        before = list(nodes.sizes)
        subject.drain("a", undo=True)
        await nodes.until(1 * GB)
        assert nodes.sizes[len(before) :] == [1 * GB], "what it advertises while nothing is ours is not its size"
        assert backend.asked == ["release", "reserve"]
        await subject.aclose()

    asyncio.run(scenario())
