"""Greedy multiple knapsack by density, with displacement.

Source: Tyche (TPDS 2026), "Pre-loading Scheduler": sort by value per weight, put each where it fits. Beyond
it: levels as steps of one function, held items that give way to better ones, and best fit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import inf

from instainfer.model import Level
from instainfer.policies.base import Assignment, Bin, Held, Item
from instainfer.policies.placement.ranking import Ranking, Step
from instainfer.policies.placement.rooms import Option, Pool, Room, Spot, density

_OPEN = 1 << 63  # bytes: more than anything weighs


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

    Between two calls the ranking is kept, and of it only what items changed is made anew: a call answers what it
    would answer if it were the first.
    """

    def __init__(self, churn: float = 0.1, *, by_value: bool = False, exchange_from: int | None = None) -> None:
        """`by_value` ranks by raw value, as InstaInfer's published code does against its paper. `exchange_from`:
        where at least so many are placed, they are moved about until more fits (see exchange.py); None: never, as
        in the papers."""
        self.churn = churn
        self.by_value = by_value
        self.exchange_from = exchange_from
        self._ranking = Ranking(by_value)
        if exchange_from is not None:
            from instainfer.policies.placement.exchange import (
                improve,
            )  # brings numpy, which a server can do without

            self._improve = improve

    def place(self, bins: Sequence[Bin], items: Sequence[Item]) -> list[Assignment]:
        self._ranking.update(items)
        made = _Pass(bins, 1.0 + self.churn)
        made.fill(self._ranking)
        if self.exchange_from is not None and len(made.spots) >= self.exchange_from:
            for (pool,) in made.shared.values():
                options = self._ranking.options
                self._improve(pool, made.rooms, made.spots, options, made.price, stay=made.raisable)
        return made.assignments()


class _Pass:
    """One placement."""

    def __init__(self, bins: Sequence[Bin], price: float) -> None:
        self.price = price
        self.rooms: list[Room] = []
        self.shared: dict[str, tuple[Pool]] = {}  # by namespace
        self.own: dict[str, Pool] = {}  # by function
        self.raisable: dict[str, list[tuple[Room, Held]]] = {}
        self.spots: dict[str, Spot] = {}
        for bin in sorted((bin for bin in bins if bin.open), key=lambda bin: bin.container):
            if bin.own:
                pool = self.own.setdefault(bin.own, Pool())
            else:
                (pool,) = self.shared.setdefault(bin.namespace, (Pool(),))
            room = Room(bin, len(self.rooms), pool)
            self.rooms.append(room)
            room.enter()
            if Level.IMPORTED in [one.level for one in bin.held]:
                beyond = {one.function for one in bin.held if one.level > Level.IMPORTED}.union(bin.fixed)
                for one in room.held:
                    if one.level == Level.IMPORTED and one.function not in beyond:
                        self.raisable.setdefault(one.function, []).append((room, one))

    def fill(self, ranking: Ranking) -> None:
        turns, raisable, spots, price = ranking.turns, self.raisable, self.spots, self.price
        if raisable:
            found = [ranking.option(name) for name in raisable if name in ranking]
            turns = turns + [
                (-one.more_score, one.name, Step.RAISE, one.namespace, one.more_value, one.more_weight)
                for one in found
                if one.level and one.more_score > 0.0
            ]
            turns.sort()
        gates: dict[str, tuple[int, float]] = {}
        for _, name, step, namespace, value, weight in turns:
            if step is Step.JOIN:
                spot = spots.get(name)
                if spot is not None and spot.level < (option := ranking.option(name)).level:
                    self._join(option, spot)
                    gates = {}
                continue
            if name in raisable:
                # Room may have come free since its own turn, which may also be still to come.
                if name in spots:
                    continue
                option = ranking.option(name)
                if option.more_value > 0.0 and self._raise(option):
                    gates = {}
                    continue
                if step is Step.RAISE:
                    continue
            gate = gates.get(namespace)
            if gate is None:
                gate = gates[namespace] = self._gate(namespace)
            free, cheapest = gate
            if weight > free and cheapest * (weight - free) >= value / price:
                continue  # most of them, once memory is full
            if name not in spots:
                option = ranking.option(name)
                if self._put(option, option.level if step is Step.WHOLE else Level.IMPORTED, value, weight):
                    gates = {}

    def _gate(self, namespace: str) -> tuple[int, float]:
        """The most that is free in one room, and the least density held: nothing gets in that weighs more and is
        not worth the cheapest bytes of what it is short of."""
        if self.own:
            return _OPEN, inf  # some may have a room that no other has
        free, cheapest = -1, inf
        for pool in self.shared.get(namespace, ()):
            free = pool.by_free[-1][0]
            if pool.by_cheapest:
                cheapest = pool.by_cheapest[0][0]
        return free, cheapest

    def _pools(self, option: Option) -> Sequence[Pool]:
        """That it may use; its own first, as nobody else can."""
        shared = self.shared.get(option.namespace, ())
        return [self.own[option.name], *shared] if self.own and option.name in self.own else shared

    def _put(self, option: Option, level: Level, value: float, weight: int) -> bool:
        pools = self._pools(option)
        room = self._fit(pools, option, weight)
        victims: list[Held] = []
        if room is None:
            limit = value / self.price
            for pool in pools:
                found = pool.make_room(self.rooms, option, weight, limit)
                if found is not None:
                    limit, room, victims = found
            if room is None:
                return False
        self._take(option.name, Spot(room, level, value, weight, victims))
        return True

    def _raise(self, option: Option) -> bool:
        """Where it is, if room can be had; the first such container by id."""
        whole = option.part_weight + option.more_weight
        for room, held in self.raisable[option.name]:
            if held not in room.held or not room.admits(option):
                continue  # gave way to something better, or what it needs has changed since
            weight = max(whole - held.bytes, 0)
            victims = room.victims(weight - room.free, option.more_value / self.price, option.name)
            if victims is not None:
                self._take(option.name, Spot(room, option.level, option.more_value, weight, victims, True))
                room.drop([held])  # what is being raised cannot give way,
                room.resize(-held.bytes)  # nor has it made room
                return True
        return False

    def _join(self, option: Option, spot: Spot) -> None:
        """The model joins its libraries where they were put, else both move to where they fit."""
        room, more = spot.room, option.more_weight
        spot_value, spot_weight = spot.value + option.more_value, spot.weight + more
        if room.free < more and not spot.displaced:
            other = self._fit(self._pools(option), option, spot_weight)
            if other is not None:
                room.resize(spot.weight)
                self._take(option.name, Spot(other, option.level, spot_value, spot_weight, []))
                return
        victims = room.victims(more - room.free, option.more_value / self.price, option.name)
        if victims is not None:
            if victims:
                room.drop(victims)
            room.resize(-more)
            self.spots[option.name] = Spot(room, option.level, spot_value, spot_weight, spot.displaced + victims)

    def _take(self, name: str, spot: Spot) -> None:
        self.spots[name] = spot
        if spot.displaced:
            spot.room.drop(spot.displaced)
        spot.room.resize(-spot.weight)

    def _fit(self, pools: Sequence[Pool], option: Option, weight: int) -> Room | None:
        for pool in pools:
            order = pool.by_free
            if order[-1][0] < weight:
                continue
            for position in range(bisect_left(order, (weight, -1)), len(order)):
                room = self.rooms[order[position][1]]
                if room.takes(option):
                    return room
        return None

    def assignments(self) -> list[Assignment]:
        """Best density first, but each only once the room that it needs is there."""
        waiting = [(-density(spot.value, spot.weight), name) for name, spot in self.spots.items()]
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
