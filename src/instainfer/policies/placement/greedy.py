"""Greedy multiple knapsack by density, with displacement.

Source: Tyche (TPDS 2026), "Pre-loading Scheduler": sort by value per weight, put each where it fits. Beyond
it: levels as steps of one function, held items that give way to better ones, and best fit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from instainfer.model import Level
from instainfer.policies.base import Assignment, Bin, Held, Item


class Greedy:
    """Items in order of value per byte, ties by name; each goes into the open bin of its namespace that it
    fills most tightly (best fit: large gaps stay whole for large items, and any bin serves equally well).

    IMPORTED is a prerequisite of LOADED in the same container. When the model is worth more per byte than
    the libraries the two are one item, and the libraries alone its second choice; otherwise the libraries go
    first and the model joins them, there or where both fit, when its turn comes. A LOADED item without an
    IMPORTED one is a whole function. Where a bin holds the function at IMPORTED, raising it takes only the
    bytes that are missing, and comes before any further copy. A `Held` of level NONE is good for nothing (of
    an older revision).

    If no bin has room, held items give way in the one bin where least value is lost, if that value times
    (1 + churn) is less than what the item brings: `churn` is the hysteresis that keeps two items of like
    value from taking turns. An assignment that needs room which another one makes comes after it, whatever
    its density: the list can be carried out in its order.
    """

    def __init__(self, churn: float = 0.1, *, by_value: bool = False) -> None:
        """`by_value` ranks by raw value, as InstaInfer's published code does against its paper."""
        self.churn = churn
        self.by_value = by_value

    def place(self, bins: Sequence[Bin], items: Sequence[Item]) -> list[Assignment]:
        options: dict[str, _Option] = {}
        for item in items:
            option = options.get(item.function)
            if option is None:
                option = options[item.function] = _Option(item.function, item.namespace, item.mounts)
            if item.level == Level.IMPORTED:
                option.part_value, option.part_weight = item.value, item.weight
            else:
                option.level, option.more_value, option.more_weight = item.level, item.value, item.weight
        return _Pass(bins, 1.0 + self.churn).run(list(options.values()), self.by_value)


@dataclass(slots=True)
class _Option:
    """A function, with what its libraries take and bring (`part`) and what its model adds (`more`)."""

    name: str
    namespace: str
    mounts: tuple[str, ...]
    level: Level = Level.NONE  # of the model's item, if there is one
    part_value: float = 0.0
    part_weight: int = 0
    more_value: float = 0.0
    more_weight: int = 0
    pools: Sequence[_Pool] = ()  # that it may use


class _Step(IntEnum):
    """What is tried when its turn comes."""

    RAISE = 0  # an instance that is there at IMPORTED
    WHOLE = 1  # up to the highest level at once
    PART = 2  # the libraries alone
    JOIN = 3  # the model, to libraries placed before


_RAISE, _WHOLE, _PART, _JOIN = _Step


@dataclass(slots=True)
class _Pool:
    """The rooms that one namespace shares, or that only one function may use, in two orders."""

    by_free: list[tuple[int, int]] = field(default_factory=list)  # (free bytes, index), ascending
    by_cheapest: list[tuple[float, int]] = field(default_factory=list)  # (least density held, index), likewise


@dataclass(slots=True)
class _Room:
    """An open bin while it is being filled."""

    bin: Bin
    index: int
    pool: _Pool
    free: int
    held: list[Held]  # least density first
    present: set[str]  # functions that are there at a level, and so are not placed again
    mounts: frozenset[str]

    def enter(self) -> None:
        insort(self.pool.by_free, (self.free, self.index))
        if self.held:
            insort(self.pool.by_cheapest, (_held_order(self.held[0])[0], self.index))

    def leave(self) -> None:
        order = self.pool.by_free
        del order[bisect_left(order, (self.free, self.index))]
        if self.held:
            cheapest = self.pool.by_cheapest
            del cheapest[bisect_left(cheapest, (_held_order(self.held[0])[0], self.index))]

    def resize(self, by: int) -> None:
        order = self.pool.by_free
        del order[bisect_left(order, (self.free, self.index))]
        self.free += by
        insort(order, (self.free, self.index))

    def drop(self, victims: list[Held]) -> None:
        """They are gone, and their bytes free."""
        self.leave()
        for held in victims:
            self.held.remove(held)
            self.free += held.bytes
        self.enter()

    def takes(self, option: _Option) -> bool:
        return option.name not in self.present and self.admits(option)

    def admits(self, option: _Option) -> bool:
        bin = self.bin
        return (
            bin.namespace == option.namespace
            and (not bin.own or bin.own == option.name)
            and (not option.mounts or self.mounts.issuperset(option.mounts))
        )

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
        lost = _worth(chosen)
        if single is not None and single.value < lost:
            chosen, lost = [single], single.value
        return chosen if lost < limit else None


@dataclass(slots=True)
class _Spot:
    """Where a function has been placed, and at what price."""

    room: _Room
    level: Level
    value: float
    weight: int
    displaced: list[Held]


class _Pass:
    """One placement."""

    def __init__(self, bins: Sequence[Bin], price: float) -> None:
        self.price = price
        self.rooms: list[_Room] = []
        self.shared: dict[str, _Pool] = {}  # by namespace
        self.own: dict[str, _Pool] = {}  # by function
        self.raisable: dict[str, list[tuple[_Room, Held]]] = {}
        self.spots: dict[str, _Spot] = {}
        for bin in sorted((bin for bin in bins if bin.open), key=lambda bin: bin.container):
            pools, key = (self.own, bin.own) if bin.own else (self.shared, bin.namespace)
            pool = pools.setdefault(key, _Pool())
            held = sorted(bin.held, key=_held_order)
            present = {one.function for one in held if one.level}.union(bin.fixed)
            room = _Room(bin, len(self.rooms), pool, bin.free, held, present, frozenset(bin.mounts))
            self.rooms.append(room)
            room.enter()
            imported = [one for one in held if one.level == Level.IMPORTED]
            if imported:
                beyond = {one.function for one in held if one.level > Level.IMPORTED}.union(bin.fixed)
                for one in imported:
                    if one.function not in beyond:
                        self.raisable.setdefault(one.function, []).append((room, one))

    def run(self, options: list[_Option], by_value: bool) -> list[Assignment]:
        steps: list[tuple[float, str, _Step, _Option]] = []
        shared = {namespace: [pool] for namespace, pool in self.shared.items()}
        own, raisable = self.own, self.raisable
        for option in options:
            name, part, more = option.name, option.part_value, option.more_value
            option.pools = shared.get(option.namespace, ())
            if name in own:  # first, as nobody else can use them
                option.pools = [own[name], *option.pools]
            if by_value:
                part_score, more_score, both_score = part, more, part + more
            else:
                part_weight, more_weight = option.part_weight, option.more_weight
                part_score, more_score = part / (part_weight or 1), more / (more_weight or 1)
                both_score = (part + more) / ((part_weight + more_weight) or 1)
            if option.level:
                if name in raisable:
                    steps.append((-more_score, name, _RAISE, option))
                if more_score >= part_score:
                    steps.append((-both_score, name, _WHOLE, option))
                else:
                    steps.append((-more_score, name, _JOIN, option))
            if part > 0.0:
                steps.append((-part_score, name, _PART, option))
        steps.sort()  # never compares options: name and step differ
        spots = self.spots
        for score, name, step, option in steps:
            if score >= 0.0:
                break  # what is worth nothing
            spot = spots.get(name)
            if step is _JOIN:
                if spot is not None and spot.level < option.level:
                    self._join(option, spot)
            elif spot is None:
                if option.more_value > 0.0 and name in raisable and self._raise(option):
                    continue  # room may have come free since its own turn, which may also be still to come
                if step is _WHOLE:
                    value, weight = option.part_value + option.more_value, option.part_weight + option.more_weight
                    self._put(option, option.level, value, weight)
                elif step is _PART:
                    self._put(option, Level.IMPORTED, option.part_value, option.part_weight)
        return self._assignments()

    def _put(self, option: _Option, level: Level, value: float, weight: int) -> None:
        limit = value / self.price
        for pool in option.pools:
            short = weight - pool.by_free[-1][0]
            if short <= 0 or (pool.by_cheapest and pool.by_cheapest[0][0] * short < limit):
                break
        else:
            return  # nowhere room, nor any cheap enough: most of them, once memory is full
        room = self._fit(option, weight)
        victims: list[Held] = []
        if room is None:
            found = self._cheapest_way(option, value, weight)
            if found is None:
                return
            room, victims = found
        self._take(option.name, _Spot(room, level, value, weight, victims))

    def _raise(self, option: _Option) -> bool:
        """Where it is, if room can be had; the first such container by id."""
        whole = option.part_weight + option.more_weight
        for room, held in self.raisable[option.name]:
            if held not in room.held or not room.admits(option):
                continue  # gave way to something better, or what it needs has changed since
            weight = max(whole - held.bytes, 0)
            victims = room.victims(weight - room.free, option.more_value / self.price, option.name)
            if victims is not None:
                self._take(option.name, _Spot(room, option.level, option.more_value, weight, victims))
                room.drop([held])  # what is being raised cannot give way,
                room.resize(-held.bytes)  # nor has it made room
                return True
        return False

    def _join(self, option: _Option, spot: _Spot) -> None:
        """The model joins its libraries where they were put, else both move to where they fit."""
        room, more = spot.room, option.more_weight
        spot_value, spot_weight = spot.value + option.more_value, spot.weight + more
        if room.free < more and not spot.displaced:
            other = self._fit(option, spot_weight)
            if other is not None:
                room.resize(spot.weight)
                self._take(option.name, _Spot(other, option.level, spot_value, spot_weight, []))
                return
        victims = room.victims(more - room.free, option.more_value / self.price, option.name)
        if victims is not None:
            if victims:
                room.drop(victims)
            room.resize(-more)
            self.spots[option.name] = _Spot(room, option.level, spot_value, spot_weight, spot.displaced + victims)

    def _take(self, name: str, spot: _Spot) -> None:
        self.spots[name] = spot
        if spot.displaced:
            spot.room.drop(spot.displaced)
        spot.room.resize(-spot.weight)

    def _fit(self, option: _Option, weight: int) -> _Room | None:
        for pool in option.pools:
            order = pool.by_free
            if order[-1][0] < weight:
                continue
            for position in range(bisect_left(order, (weight, -1)), len(order)):
                room = self.rooms[order[position][1]]
                if room.takes(option):
                    return room
        return None

    def _cheapest_way(self, option: _Option, value: float, weight: int) -> tuple[_Room, list[Held]] | None:
        """The bin and the held items whose displacement loses least, if that is worth it."""
        limit = value / self.price
        found: tuple[_Room, list[Held]] | None = None
        for pool in option.pools:
            least_short = weight - pool.by_free[-1][0]
            for cheapest, index in pool.by_cheapest:
                if cheapest * least_short >= limit:
                    break  # here and further on even the cheapest bytes cost too much
                room = self.rooms[index]
                short = weight - room.free
                if cheapest * short >= limit or not room.takes(option):
                    continue
                victims = room.victims(short, limit, option.name)
                if victims is not None:
                    limit = _worth(victims)
                    found = room, victims
        return found

    def _assignments(self) -> list[Assignment]:
        """Best density first, but each only once the room that it needs is there."""
        waiting = [(-_density(spot.value, spot.weight), name) for name, spot in self.spots.items()]
        waiting.sort()
        free = [room.bin.free for room in self.rooms]
        result: list[Assignment] = []
        while waiting:
            later: list[tuple[float, str]] = []
            for entry in waiting:
                spot = self.spots[entry[1]]
                room = spot.room
                left = free[room.index] - spot.weight
                if spot.displaced:
                    left += sum(held.bytes for held in spot.displaced)
                if left < 0:
                    later.append(entry)
                    continue
                free[room.index] = left
                result.append(
                    Assignment(
                        function=entry[1],
                        level=spot.level,
                        container=room.bin.container,
                        displaced=tuple(held.instance for held in spot.displaced),
                        value=spot.value,
                        weight=spot.weight,
                    )
                )
            if len(later) == len(waiting):
                break  # each needs the other's room first: the next pass will see to them
            waiting = later
        return result


def _density(value: float, weight: int) -> float:
    return value / (weight or 1)


def _held_order(held: Held) -> tuple[float, str]:
    return held.value / (held.bytes or 1), held.instance


def _worth(held: list[Held]) -> float:
    return sum(one.value for one in held)
