"""Who is in the cluster, whatever it runs on. One contract suite for all (tests/contract/test_cluster.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from instainfer.agent.base import Agent


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A host. Its name stays its own when it comes back."""

    node: str
    cpus: float = 0.0
    memory: int = 0  # bytes, of the host; 0: not known
    warm: int = 0  # of it, bytes that the cluster lets us have now; 0: it does not say
    most: int = 0  # bytes that it may ever let us have; 0: it does not say


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """It is there, for the first time or again."""

    member: Member


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster does not hear of it. Its agent may go on: whoever has a link to that knows better."""

    node: str


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster has given it up."""

    node: str


class Resized(msgspec.Struct, frozen=True, kw_only=True):
    """It is there as before; the cluster lets us have another amount of its memory (`warm`)."""

    member: Member


Change = Joined | Suspect | Lost | Resized


class ClusterBackend(Protocol):
    async def start(self) -> None:
        """Raises BadSettings, Unavailable."""
        ...

    def members(self) -> dict[str, Member]:
        """By name, those that were said to have joined and not to be lost."""
        ...

    async def ensure_agent(self, node: str) -> Agent:
        """The agent of this member, not joined: the one that runs there, or one that is started now. Raises
        Unavailable. From now on its memory is held for us, where the cluster deals in that."""
        ...

    async def release(self, node: str) -> None:
        """Give its memory back to the cluster, until `reserve`: it is drained."""
        ...

    async def reserve(self, node: str) -> None:
        """Have its memory held for us again, as much as is left of it; a Resized tells how much."""
        ...

    def watch(self) -> AsyncIterator[Change]:
        """What changes, beginning with those that are there. For one reader."""
        ...

    async def aclose(self) -> None:
        """Agents go on, but for one in this very process."""
        ...
