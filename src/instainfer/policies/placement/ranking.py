"""In which order functions are tried, kept from one placement pass to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum

from instainfer.model import Level
from instainfer.policies.base import Item
from instainfer.policies.placement.rooms import Option


class Step(IntEnum):
    """What is tried when its turn comes."""

    RAISE = 0  # an instance that is there at IMPORTED
    WHOLE = 1  # up to the highest level at once
    PART = 2  # the libraries alone
    JOIN = 3  # the model, to libraries placed before


#: Rank (the best is the least), function, what is tried; its value and bytes. No two are equal before the option.
Turn = tuple[float, str, Step, Option, float, int]


class Ranking:
    """The turns of a pass, best first, without those of what is worth nothing, and without those of raising, which
    depend on what is where.

    Between two passes few items change, and those that did not are the very same objects: only the functions of
    others are looked at anew. What comes of it is what a new Ranking would say. Knows nothing that it could not
    find out again, so none of it is kept in a checkpoint.
    """

    def __init__(self, by_value: bool = False) -> None:
        self.by_value = by_value
        self.options: dict[str, Option] = {}
        self.turns: list[Turn] = []
        self._items: dict[int, Item] = {}  # by id, which nothing else can have while they are here

    def __reduce__(self) -> tuple[type[Ranking], tuple[bool]]:
        return Ranking, (self.by_value,)

    def update(self, items: Sequence[Item]) -> None:
        """There is at most one item of a function and level."""
        before, now = self._items, dict(zip(map(id, items), items, strict=True))
        changed = before.keys() ^ now.keys()
        self._items = now
        if not changed:
            return
        if 4 * len(changed) > len(now):
            self.options = {}
            self.turns = []
            self._add(items)
            return
        concerned = {(now.get(one) or before[one]).function for one in changed}
        for name in concerned:
            self.options.pop(name, None)
        self.turns = [turn for turn in self.turns if turn[1] not in concerned]
        self._add([item for item in items if item.function in concerned])

    def _add(self, items: Iterable[Item]) -> None:
        found: dict[str, Option] = {}
        for item in items:
            name = item.function
            option = found.get(name)
            if option is None:
                option = found[name] = Option(name, item.namespace, item.mounts)
            if item.level == Level.IMPORTED:
                option.part_value, option.part_weight = item.value, item.weight
            else:
                option.level, option.more_value, option.more_weight = item.level, item.value, item.weight
        self.options.update(found)
        turns, by_value = self.turns, self.by_value
        for name, option in found.items():
            part, more = option.part_value, option.more_value
            part_score = part if by_value else part / (option.part_weight or 1)
            if option.level:
                option.more_score = more_score = more if by_value else more / (option.more_weight or 1)
                if more_score >= part_score:
                    both, weight = part + more, option.part_weight + option.more_weight
                    score = both if by_value else both / (weight or 1)
                    if score > 0.0:
                        turns.append((-score, name, Step.WHOLE, option, both, weight))
                elif more_score > 0.0:
                    turns.append((-more_score, name, Step.JOIN, option, more, option.more_weight))
            if part_score > 0.0:
                turns.append((-part_score, name, Step.PART, option, part, option.part_weight))
        turns.sort()
