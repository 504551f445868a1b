"""Agents that somebody else starts and names: `a=http://10.0.0.7:3234,b=http://10.0.0.8:3234`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator

from instainfer.agent.base import Agent
from instainfer.agent.http_client import HttpAgent
from instainfer.cluster.base import Change, Joined, Member
from instainfer.errors import BadSettings, Unavailable


class Fixed:
    """Their loss is their link's business: the list does not change."""

    def __init__(
        self, address: str, key: str, *, epoch: int, lost_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        """Raises BadSettings."""
        self._urls: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in address.split(","))):
            node, _, url = part.partition("=")
            if not url or not node or node in self._urls:
                raise BadSettings(
                    f"cluster.address: {part!r} is no agent's", hint="a=http://HOST:PORT,b=http://HOST:PORT"
                )
            HttpAgent(node, url, key)
            self._urls[node] = url
        self._key, self._epoch, self._lost_s, self._tls = key, epoch, lost_s, tls

    async def start(self) -> None:
        pass

    def members(self) -> dict[str, Member]:
        return {node: Member(node=node) for node in self._urls}

    async def ensure_agent(self, node: str) -> Agent:
        if node not in self._urls:
            raise Unavailable(f"there is no member {node}", hint="cluster.address names them")
        return HttpAgent(
            node,
            self._urls[node],
            self._key,
            lost_s=self._lost_s,
            epoch=self._epoch,
            stays=True,
            tls=self._tls,
        )

    async def release(self, node: str) -> None:
        """Nobody else asks for it."""

    async def reserve(self, node: str) -> None:
        """Nobody else asks for it."""

    async def watch(self) -> AsyncIterator[Change]:
        for member in self.members().values():
            yield Joined(member=member)
        await asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        pass
