"""What is placed is moved about, so that gaps come together to where something more fits.

Best fit leaves a gap in each room that nothing fits into; together they are much. Local search by exchange: of two
functions in two rooms the larger goes to where the difference is to spare, and the gap that it leaves takes one
more function, or a better one in place of the worst.

No mode asks for it by itself: it fills memory better in one go, but of each plan only one load per container is
carried out before the next, and in simulations that gave now more and now fewer cold starts.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from instainfer.model import Level
from instainfer.policies.base import Held
from instainfer.policies.placement.rooms import Option, Pool, Room, Spot, worth

#: Budget, in operations and never in time: the same input must give the same answer anywhere.
ROUNDS = 4  # how often each room is looked at
WIDTH = 50  # rooms that exchange with each other in one go; of more, every second one, every third one …
#: Fewer that were placed are not worth it: a pass that changes a little follows one that filled memory, and the
#: next may follow in a twentieth of a second.
ENOUGH = 16

_STAYS = -1 - WIDTH
_LEAST = 1e-9  # of the greatest value: what gains less is a matter of rounding

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


def improve(
    pool: Pool,
    rooms: list[Room],
    spots: dict[str, Spot],
    options: Mapping[str, Option],
    price: float,
    *,
    stay: Container[str],
) -> None:
    """Changes `spots` in rooms of one shared pool, and the rooms with them. Who is in `stay` and who needs mounts
    neither moves nor comes; nothing more that is held goes for it, and what each displaces remains worth less than
    it, times `price`."""
    if len(pool.by_free) < 2:
        return
    namespace = rooms[pool.by_free[0][1]].bin.namespace
    free = {
        name: one
        for name, one in options.items()
        if one.namespace == namespace and not one.mounts and name not in stay
    }
    outside = _Outside(free.values(), spots)
    count = -(-len(pool.by_free) // WIDTH)
    idle = 0
    for number in range(ROUNDS * count):
        some = [rooms[index] for _, index in pool.by_free[number % count :: count]]
        idle = 0 if _Round(some, spots, free, outside, price).exchange() else idle + 1
        if idle == count:
            return


class _Outside:
    """What may be placed, at either level, by size; of it, what is not placed."""

    def __init__(self, options: Iterable[Option], spots: Mapping[str, Spot]) -> None:
        found: list[tuple[int, float, str, Level, Option]] = []
        for one in options:
            if one.part_value > 0.0:
                found.append((one.part_weight, one.part_value, one.name, Level.IMPORTED, one))
            if one.level and one.more_value > 0.0:
                value = one.part_value + one.more_value
                found.append((one.part_weight + one.more_weight, value, one.name, one.level, one))
        found.sort(key=itemgetter(0, 1, 2, 3))
        self.all = found
        self._weights = np.array([one[0] for one in found], dtype=float)
        self._values = np.array([one[1] for one in found])
        self._absent = np.array([one[2] not in spots for one in found], dtype=bool)
        self._places: dict[str, list[int]] = {}
        for place, (_, _, name, _, _) in enumerate(found):
            self._places.setdefault(name, []).append(place)
        self.look_again()

    def mark(self, name: str, *, absent: bool) -> None:
        for place in self._places[name]:
            self._absent[place] = absent

    def look_again(self) -> None:
        """After marks."""
        self._at = self._absent.nonzero()[0]
        self._sizes = self._weights[self._at]
        values = self._values[self._at]
        self._most = np.maximum.accumulate(values)  # value of the best of those up to each,
        self._best = np.maximum.accumulate(np.where(values == self._most, np.arange(len(values)), 0))  # and which

    def fitting(self, room: _Floats) -> tuple[_Floats, _Ints]:
        """Value of the best that each of these sizes has room for, 0.0 where there is none; its place in `all`."""
        if not len(self._at):
            return np.zeros(len(room)), np.zeros(len(room), dtype=np.int64)
        last = np.searchsorted(self._sizes, room, side="right") - 1
        inside = np.maximum(last, 0)
        return np.where(last >= 0, self._most[inside], 0.0), self._at[self._best[inside]]


class _Round:
    """The best moves, each room in one of them only."""

    def __init__(
        self,
        rooms: list[Room],
        spots: dict[str, Spot],
        free: Mapping[str, Option],
        outside: _Outside,
        price: float,
    ) -> None:
        self.spots = spots
        self.free = free
        self.outside = outside
        self.price = price
        self.rooms = rooms
        self.touched: set[int] = set()
        column = {room.index: number for number, room in enumerate(self.rooms)}
        self.names = sorted(name for name, spot in spots.items() if spot.room.index in column and name in free)
        mine = [spots[name] for name in self.names]
        self.where = np.array([column[spot.room.index] for spot in mine], dtype=np.int64)
        self.weights = np.array([spot.weight for spot in mine], dtype=float)
        self.values = np.array([spot.value for spot in mine])
        self.gaps = np.array([room.free for room in self.rooms], dtype=float)

    def exchange(self) -> bool:
        """Was there any?"""
        if not self.names:
            return False
        used: set[str] = set()
        for moved, partner, dropped, place in self._moves():
            _, _, name, level, option = self.outside.all[place]
            if name not in used and self._make(moved, partner, dropped, option, level):
                used.add(name)
                if len(self.touched) >= len(self.rooms) - 1:
                    break
        self.outside.look_again()
        return bool(used)

    def _moves(self) -> list[tuple[int, int, int, int]]:
        """Those that gain, the best first: whose room gets more to spare; with whom it changes rooms (-1 - the
        room, where it changes with nobody; `_STAYS`); who goes altogether (-1: nobody); which comes."""
        where, weights, values, gaps = self.where, self.weights, self.values, self.gaps
        more = weights[:, None] - weights
        larger, smaller = ((more > 0.0) & (more <= gaps[where]) & (where[:, None] != where)).nonzero()
        lone, into = ((weights[:, None] <= gaps) & (where[:, None] != np.arange(len(gaps)))).nonzero()
        moved = np.concatenate((larger, lone))
        partner = np.concatenate((smaller, -1 - into))
        room = gaps[where[moved]] + np.concatenate((more[larger, smaller], weights[lone]))
        worst = self._worst()[where[moved]]
        everyone = np.arange(len(weights))
        gain, place = self.outside.fitting(room)
        better, instead = self.outside.fitting(room + weights[worst])
        better = np.where(worst == moved, 0.0, better - values[worst])
        simply, alone = self.outside.fitting(gaps[where] + weights)
        gains = np.concatenate((gain, better, simply - values))
        found = (gains > _LEAST * values.max()).nonzero()[0]
        found = found[(-gains[found]).argsort(kind="stable")]
        columns = (
            np.concatenate((moved, moved, everyone)),
            np.concatenate((partner, partner, np.full(len(weights), _STAYS))),
            np.concatenate((np.full(len(moved), -1), worst, everyone)),
            np.concatenate((place, instead, alone)),
        )
        return list(zip(*(column[found].tolist() for column in columns), strict=True))

    def _worst(self) -> _Ints:
        """Of each room the least valuable in it, or anything where there is nothing."""
        worst = np.zeros(len(self.rooms), dtype=np.int64)
        order = np.lexsort((self.values, self.where))[::-1]
        worst[self.where[order]] = order  # the last one written is the least
        return worst

    def _make(self, moved: int, partner: int, dropped: int, option: Option, level: Level) -> bool:
        """If neither room was in a move before, nor would hold a function twice."""
        room = self.rooms[self.where[moved]]
        if room.index in self.touched or not room.takes(option):
            return False
        if partner != _STAYS:
            other = self.rooms[self.where[partner] if partner >= 0 else -1 - partner]
            if other.index in self.touched or not other.takes(self.free[self.names[moved]]):
                return False
            theirs = self.spots[self.names[partner]] if partner >= 0 else None
            if theirs is not None and not room.takes(self.free[self.names[partner]]):
                return False
            if not self._swap(self.spots[self.names[moved]], theirs, other):
                return False
            self.touched.add(other.index)
        displaced: list[Held] = []
        if dropped >= 0:
            gone = self.spots.pop(self.names[dropped])
            displaced = gone.displaced  # worth less than it, which is worth less than what comes
            room.resize(gone.weight)
            self.outside.mark(self.names[dropped], absent=True)
        weight, value = option.part_weight, option.part_value
        if level > Level.IMPORTED:
            weight, value = weight + option.more_weight, value + option.more_value
        room.resize(-weight)
        self.spots[option.name] = Spot(room, level, value, weight, displaced)
        self.outside.mark(option.name, absent=False)
        self.touched.add(room.index)
        return True

    def _swap(self, mine: Spot, theirs: Spot | None, other: Room) -> bool:
        """They change rooms. What they displaced stays so, by the one that comes: not if it is worth more."""
        room = mine.room
        if theirs is None:
            if mine.displaced:
                return False
        elif (
            worth(mine.displaced) * self.price >= theirs.value
            or worth(theirs.displaced) * self.price >= mine.value
        ):
            return False
        room.resize(mine.weight)
        if theirs is not None:
            other.resize(theirs.weight)
            room.resize(-theirs.weight)
            theirs.room = room
            mine.displaced, theirs.displaced = theirs.displaced, mine.displaced
        other.resize(-mine.weight)
        mine.room = other
        return True
