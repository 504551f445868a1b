"""What a placement fills: idle memory as rooms, and what is put where."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from instainfer.model import Level
from instainfer.policies.base import Bin, Held

_FEW = 8  # held by one room: what each of them is worth says something of what it can give


@dataclass(slots=True)
class Option:
    """A function, with what its libraries take and bring (`part`) and what its model adds (`more`)."""

    name: str
    namespace: str
    mounts: tuple[str, ...]
    level: Level = Level.NONE  # of the model's item, if there is one
    part_value: float = 0.0
    part_weight: int = 0
    more_value: float = 0.0
    more_weight: int = 0
    more_score: float = 0.0  # rank of the model by itself


@dataclass(slots=True)
class Pool:
    """The rooms that one namespace shares, or that only one function may use, in two orders."""

    by_free: list[tuple[int, int]] = field(default_factory=list)  # (free bytes, index), ascending
    by_cheapest: list[tuple[float, int]] = field(default_factory=list)  # (least density held, index), likewise

    def make_room(
        self, rooms: list[Room], option: Option, weight: int, limit: float
    ) -> tuple[float, Room, list[Held]] | None:
        """The room and the held items whose displacement loses least, and less than `limit`; of equals the one
        that holds the cheapest bytes, then the first."""
        found: tuple[float, Room, list[Held]] | None = None
        least_short = weight - self.by_free[-1][0]
        for cheapest, index in self.by_cheapest:
            if cheapest * least_short >= limit:
                break  # here and further on even the cheapest bytes cost too much
            room = rooms[index]
            short = weight - room.free
            if cheapest * short >= limit or room.hopeless(short, limit) or not room.takes(option):
                continue
            victims = room.victims(short, limit, option.name)
            if victims is not None:
                limit = worth(victims)
                found = limit, room, victims
        return found


class Room:
    """An open bin while it is being filled."""

    __slots__ = ("bin", "free", "freed", "held", "index", "mounts", "pool", "present", "values")

    def __init__(self, bin: Bin, index: int, pool: Pool) -> None:
        self.bin = bin
        self.index = index
        self.pool = pool
        self.free = bin.free
        self.held = sorted(bin.held, key=held_order)  # least density first
        #: Functions that are there at a level, and so are not placed again.
        self.present = {one.function for one in self.held if one.level}
        self.present.update(bin.fixed)
        self.mounts = frozenset(bin.mounts)

    def enter(self) -> None:
        self.values: list[float] = []  # of what is held, the least first, and bytes of so many of them
        self.freed: list[int] = []  # empty: not looked at yet
        insort(self.pool.by_free, (self.free, self.index))
        if self.held:
            insort(self.pool.by_cheapest, (held_order(self.held[0])[0], self.index))

    def leave(self) -> None:
        order = self.pool.by_free
        del order[bisect_left(order, (self.free, self.index))]
        if self.held:
            cheapest = self.pool.by_cheapest
            del cheapest[bisect_left(cheapest, (held_order(self.held[0])[0], self.index))]

    def resize(self, by: int) -> None:
        order = self.pool.by_free
        del order[bisect_left(order, (self.free, self.index))]
        self.free += by
        insort(order, (self.free, self.index))

    def drop(self, victims: Sequence[Held]) -> None:
        """They are gone, and their bytes free."""
        self.leave()
        for held in victims:
            self.held.remove(held)
            self.free += held.bytes
        self.enter()

    def takes(self, option: Option) -> bool:
        return option.name not in self.present and self.admits(option)

    def admits(self, option: Option) -> bool:
        bin = self.bin
        return (
            bin.namespace == option.namespace
            and (not bin.own or bin.own == option.name)
            and (not option.mounts or self.mounts.issuperset(option.mounts))
        )

    def hopeless(self, short: int, limit: float) -> bool:
        """Is there not so much held by those that are worth less than `limit` by themselves? `victims` would say
        None, at ten times the price. Of a room that holds many nothing is said: there hardly ever."""
        if len(self.held) > _FEW:
            return False
        values, freed = self.values, self.freed
        if not freed:
            known = sorted([(one.value, one.bytes) for one in self.held])
            values += [value for value, _ in known]
            freed += accumulate([size for _, size in known], initial=0)
        return freed[bisect_left(values, limit)] < short

    def victims(self, short: int, limit: float, spared: str) -> list[Held] | None:
        """Held items that free `short` bytes and are worth less than `limit` together, or None."""
        if short <= 0:
            return []
        freed, cost = 0, 0.0
        chosen: list[Held] = []
        single: Held | None = None
        for held in self.held:
            if held.function == spared and held.level:
                continue  # what is to be raised cannot give way
            if freed < short:
                if cost >= limit:
                    return None  # no others free as much for less: these are the cheapest bytes
                chosen.append(held)
                freed += held.bytes
                cost += held.value
            elif held.value * short >= cost * held.bytes:
                break  # from here on one alone costs more
            if held.bytes >= short and (single is None or held.value < single.value):
                single = held
        if freed < short:
            return None
        for held in sorted(chosen, key=lambda one: (-one.value, one.instance)):
            if freed - held.bytes >= short:  # a later, larger one made it superfluous
                chosen.remove(held)
                freed -= held.bytes
        lost = worth(chosen)
        if single is not None and single.value < lost:
            chosen, lost = [single], single.value
        return chosen if lost < limit else None


@dataclass(slots=True)
class Spot:
    """Where a function has been placed, and at what price."""

    room: Room
    level: Level
    value: float
    weight: int
    displaced: list[Held]
    raised: bool = False  # there are libraries of it already: it can go nowhere else


def density(value: float, weight: int) -> float:
    return value / (weight or 1)


def worth(held: Sequence[Held]) -> float:
    return sum(one.value for one in held)


def held_order(held: Held) -> tuple[float, str]:
    return held.value / (held.bytes or 1), held.instance
