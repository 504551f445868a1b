"""In which order functions are tried, kept from one placement pass to the next."""

from __future__ import annotations

from collections.abc import Sequence
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


#: If of so many items none was there before, none is looked for: all values move at once, or hardly any does.
_PROBE = 16

#: Rank (the best is the least), function, what is tried; its namespace, value and bytes. No two begin alike.
Turn = tuple[float, str, Step, str, float, int]


class Ranking:
    """The turns of a pass, best first, without those of what is worth nothing, and without those of raising, which
    depend on what is where.

    Between two passes few items change, and those that did not are the very same objects: only the functions of
    others are looked at anew. What comes of it is what a new Ranking would say. Knows nothing that it could not
    find out again, so none of it is kept in a checkpoint.
    """

    def __init__(self, by_value: bool = False) -> None:
        self.by_value = by_value
        self.turns: list[Turn] = []
        self._items: Sequence[Item] = ()  # of the last pass: kept, so that no other object can have the id of one
        self._parts: dict[str, Item] = {}  # by function
        self._models: dict[str, Item] = {}
        self._options: dict[str, Option] = {}  # of those that were asked for: few turns come to anything

    def __reduce__(self) -> tuple[type[Ranking], tuple[bool]]:
        return Ranking, (self.by_value,)

    @property
    def options(self) -> dict[str, Option]:
        """Of all functions."""
        for name in self._parts.keys() | self._models.keys():
            self.option(name)
        return self._options

    def __contains__(self, name: str) -> bool:
        return name in self._models or name in self._parts

    def option(self, name: str) -> Option:
        """KeyError for a function that has no item."""
        known = self._options.get(name)
        if known is None:
            part, model = self._parts.get(name), self._models.get(name)
            item = self._models[name] if part is None else part
            known = self._options[name] = Option(name, item.namespace, item.mounts)
            if part is not None:
                known.part_value, known.part_weight = part.value, part.weight
            if model is not None:
                known.level, known.more_value, known.more_weight = model.level, model.value, model.weight
                known.more_score = self._score(model.value, model.weight)
        return known

    def _score(self, value: float, weight: int) -> float:
        return value if self.by_value else value / (weight or 1)

    def update(self, items: Sequence[Item]) -> None:
        """There is at most one item of a function and level."""
        before, self._items = self._items, tuple(items)
        if any(map(self._knows, items[:_PROBE])):
            old, new = (dict(zip(map(id, some), some, strict=True)) for some in (before, items))
            changed = old.keys() ^ new.keys()
            if not changed:
                return
            if 4 * len(changed) <= len(items):
                concerned = {(new.get(one) or old[one]).function for one in changed}
                for name in concerned:
                    for known in (self._parts, self._models, self._options):
                        known.pop(name, None)
                self.turns = [turn for turn in self.turns if turn[1] not in concerned]
                self._add([item for item in items if item.function in concerned])
                return
        self._parts, self._models, self._options, self.turns = {}, {}, {}, []
        self._add(items)

    def _knows(self, item: Item) -> bool:
        name = item.function
        return self._models.get(name) is item or self._parts.get(name) is item

    def _add(self, items: Sequence[Item]) -> None:
        parts = {item.function: item for item in items if item.level == Level.IMPORTED}
        models = {item.function: item for item in items if item.level != Level.IMPORTED}
        self._parts |= parts
        self._models |= models
        by_value, step = self.by_value, Step.WHOLE
        turns: list[Turn] = [
            (-score, name, step, one.namespace, one.value, one.weight)
            for name, one in models.items()
            if name not in parts and (score := one.value if by_value else one.value / (one.weight or 1)) > 0.0
        ]
        for name, part in parts.items():
            value, weight = part.value, part.weight
            score = self._score(value, weight)
            if (rest := models.get(name)) is not None:
                more = self._score(rest.value, rest.weight)
                if more >= score:
                    both = value + rest.value, weight + rest.weight
                    if (first := self._score(*both)) > 0.0:
                        turns.append((-first, name, Step.WHOLE, part.namespace, *both))
                elif more > 0.0:
                    turns.append((-more, name, Step.JOIN, part.namespace, rest.value, rest.weight))
            if score > 0.0:
                turns.append((-score, name, Step.PART, part.namespace, value, weight))
        self.turns += turns
        self.turns.sort()
