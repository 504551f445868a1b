"""What it costs to make room: which rooms are worth looking into, of many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from instainfer.policies.placement.rooms import Room

_POINTS = 64  # of the sizes that costs are known for
_ROUNDED = 1.0 - 1e-9  # of a bound that is a sum in another order than what it bounds


class MakingRoom:
    """Of each room and a row of sizes the least value of held items that have to go for so many bytes to come
    free, if items could be cut: a bound below what `Room.victims` asks, and mostly close to it."""

    def __init__(self, rooms: list[Room]) -> None:
        self.changed: list[Room] = list(rooms)
        self._rooms = rooms  # of one pool
        self._column = {room.index: column for column, room in enumerate(rooms)}
        self._top = max(room.free + sum(held.bytes for held in room.held) for room in rooms)
        self._sizes = np.array([self._top * point // (_POINTS - 1) for point in range(_POINTS)], dtype=float)
        self._costs = np.empty((_POINTS, len(rooms)))
        self._least: list[float] = []

    def below(self, weight: int, limit: float) -> list[tuple[float, Room]]:
        """Rooms where `weight` bytes might come free for less than `limit`, and what they cost at least; the
        cheapest first."""
        if weight > self._top:
            return []
        if self.changed:
            self._look_again()
        point = weight * (_POINTS - 1) // self._top if self._top else 0
        if self._least[point] >= limit:
            return []
        costs = self._costs[point]
        found = (costs < limit).nonzero()[0]
        if len(found) > 1:
            found = found[costs[found].argsort(kind="stable")]
        rooms = self._rooms
        return list(zip(costs[found].tolist(), [rooms[column] for column in found.tolist()], strict=True))

    def _look_again(self) -> None:
        for index, room in {room.index: room for room in self.changed}.items():
            freed, lost = [0], [0.0]
            for held in room.held:  # the cheapest bytes first
                if held.bytes > 0:
                    freed.append(freed[-1] + held.bytes)
                    lost.append(lost[-1] + held.value * _ROUNDED)
            self._costs[:, self._column[index]] = np.interp(self._sizes - room.free, freed, lost, right=np.inf)
        self.changed.clear()
        self._least = self._costs.min(axis=1).tolist()
