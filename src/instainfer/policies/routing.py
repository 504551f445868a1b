"""On which node a function gets a further container: near its home, so that what it needs is found there again.

Rendezvous hashing (Thaler and Ravishankar, 1998): every node draws a number from the function's name and its own,
and the function walks them from the largest down. A node that comes or goes moves only what is its own, as with
a ring, and there is no ring to keep. Load is bounded as in Mirrokni, Thorup, Zadimoghaddam (2018): a node far
fuller than the mean is passed over.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import msgspec

SLACK = 0.25  # a node may be so much fuller than the mean


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """A node on which the container fits now. Bytes."""

    node: str
    promised: int
    memory: int
    loaded: bool = False  # an instance there can be cloned
    libraries: bool = False  # are imported there


def choose(function: str, rooms: Sequence[Room], mean: float) -> str:
    """Of at least one. `mean`: the share of their memory that all nodes have promised."""
    within = [room for room in rooms if room.promised <= (1.0 + SLACK) * mean * room.memory] or rooms
    return min(within, key=lambda room: (not room.loaded, not room.libraries, -draw(function, room.node))).node


@functools.lru_cache(maxsize=1 << 14)
def home(function: str, nodes: tuple[str, ...]) -> str:
    """Where it goes as long as there is room and nothing of it is elsewhere; "" where there is no node."""
    return max(nodes, key=lambda node: draw(function, node), default="")


def draw(function: str, node: str) -> int:
    digest = hashlib.blake2b(f"{function}\n{node}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
