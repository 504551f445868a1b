"""On which node a function gets a further container: near its home, so that what it needs is found there again.

Rendezvous hashing (Thaler and Ravishankar, 1998): every node draws a number from the function's name and its own,
and the function walks them from the largest down. A node that comes or goes moves only what is its own, as with
a ring, and there is no ring to keep. Load is bounded as in Mirrokni, Thorup, Zadimoghaddam (2018): a node far
fuller than the mean is passed over.

A function that is called so often that it needs several containers at once has as many homes: the first nodes of
its walk. One call more or less than expected moves one home, at the end of the walk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from math import ceil

import msgspec

from instainfer.model import Level

SLACK = 0.25  # a node may be so much fuller than the mean


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """A node on which the container fits now. Bytes."""

    node: str
    promised: int
    memory: int
    level: Level = (
        Level.NONE
    )  # that a further instance there begins at: of a device or a host to clone, of a zygote
    files: bool = False  # its files were read there lately, and that is known to save something
    own: int = 0  # containers that it has there, or that are being created

    @property
    def free(self) -> int:
        return self.memory - self.promised


def homes(rate: float, service_s: float, concurrency: int) -> int:
    """How many containers a function needs at once: calls that are under way in the mean (Little), by how many one
    instance takes; at least one."""
    return max(1, ceil(rate * service_s / max(concurrency, 1)))


def choose(function: str, rooms: Sequence[Room], mean: float, wanted: int = 1) -> str:
    """Of at least one. `mean`: the share of their memory that all nodes have promised; `wanted`: its homes. Where
    it begins furthest comes first: cloned on a device, then in memory, then forked; then where its files are; then
    its homes, of these where it has fewest of its own, and then where most room is."""
    within = [room for room in rooms if room.promised <= (1.0 + SLACK) * mean * room.memory] or rooms
    walk = sorted(within, key=lambda room: -draw(function, room.node))
    places = {room.node: max(place - wanted + 1, 0) for place, room in enumerate(walk)}

    def order(room: Room) -> tuple[int, bool, int, int, int, int]:
        own, free = (room.own, -room.free) if not places[room.node] else (0, 0)
        return -room.level, not room.files, places[room.node], own, free, -draw(function, room.node)

    return min(walk, key=order).node


@lru_cache(maxsize=1 << 14)
def home(function: str, nodes: tuple[str, ...]) -> str:
    """The first of its walk, where it goes if nothing speaks for another node; "" where there is no node."""
    return max(nodes, key=lambda node: draw(function, node), default="")


@lru_cache(maxsize=65536)
def draw(function: str, node: str) -> int:
    digest = hashlib.blake2b(f"{function}\n{node}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
