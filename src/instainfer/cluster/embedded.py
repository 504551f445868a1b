"""This machine alone, its agent in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from instainfer.agent.base import Agent
from instainfer.cluster.base import Change, Joined, Member
from instainfer.errors import Unavailable


class Embedded:
    def __init__(self, agent: Agent, memory: int) -> None:
        """`memory`: bytes that its containers may take."""
        self._agent = agent
        cpus = float(len(os.sched_getaffinity(0)))
        self._members = {agent.node: Member(node=agent.node, cpus=cpus, memory=memory, warm=memory)}

    async def start(self) -> None:
        pass

    def members(self) -> dict[str, Member]:
        return dict(self._members)

    async def ensure_agent(self, node: str) -> Agent:
        if node not in self._members:
            raise Unavailable(f"there is no member {node}", hint="this machine is alone")
        return self._agent

    async def release(self, node: str) -> None:
        """Nobody else asks for it."""

    async def reserve(self, node: str) -> None:
        """Nobody else asks for it."""

    async def watch(self) -> AsyncIterator[Change]:
        for member in self._members.values():
            yield Joined(member=member)
        await asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        pass
