"""Which libraries are kept imported: those that save most per byte, on every node that has room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from instainfer.policies.base import Import, LibrariesView, Predictor, ShelfView, ZygoteView

#: Arrivals per second that a function is worth at least: about one in twelve days. The libraries of one that was
#: never called come too, once all others have theirs.
NEVER_CALLED = 1e-6


class MostSaved:
    """Value of libraries = sum over their functions of arrivals per second x seconds that a fork saves a start;
    less on each further node, as one start needs them once. Greedy by value per byte.

    A zygote ends for another one only if that saves more by over `churn`, per byte and in all: an import costs a
    core a second or more. Whatever gives way being less dense, it cannot take its room back first.
    """

    def __init__(self, churn: float = 0.5) -> None:
        self.price = 1.0 + churn

    def value(self, libraries: LibrariesView, forecast: Predictor, now: float) -> float:
        return sum((forecast.rate(name, now) + NEVER_CALLED) * saves_s for name, saves_s in libraries.functions)

    def plan(
        self, libraries: Sequence[LibrariesView], shelves: Sequence[ShelfView], forecast: Predictor, now: float
    ) -> list[Import]:
        values = {view.name: self.value(view, forecast, now) for view in libraries}
        copies = Counter(zygote.libraries for shelf in shelves for zygote in _kept(shelf))
        imports: list[Import] = []
        for shelf in shelves:
            there = {zygote.libraries for zygote in _kept(shelf)}
            worth = {name: value / (1 + copies[name] - (name in there)) for name, value in values.items()}
            chosen = self._fill(shelf, libraries, worth)
            copies.update(one.libraries for one in chosen if one.libraries not in there)
            imports += chosen
        return imports

    def _fill(self, shelf: ShelfView, libraries: Sequence[LibrariesView], worth: dict[str, float]) -> list[Import]:
        def density(name: str, bytes: int) -> float:
            return worth.get(name, 0.0) / (bytes or 1)

        kept = sorted(_kept(shelf), key=lambda zygote: (density(zygote.libraries, zygote.bytes), zygote.zygote))
        there = {zygote.libraries for zygote in kept}
        able = [view for view in libraries if shelf.node not in view.not_on and worth[view.name] > 0.0]
        able.sort(key=lambda view: (-density(view.name, view.bytes), view.name))
        room = min(shelf.free, shelf.cap - sum(zygote.bytes for zygote in shelf.zygotes))
        room += sum(zygote.bytes for zygote in shelf.zygotes if zygote.ending)  # it is back before long
        chosen: list[Import] = []
        for view in able:
            if view.name in there or len(chosen) >= shelf.slots:
                continue
            least = density(view.name, view.bytes) / self.price
            cheap = [zygote for zygote in kept if density(zygote.libraries, zygote.bytes) < least]
            victims = _cover(view.bytes - room, cheap)
            if (
                victims is None
                or sum(worth.get(v.libraries, 0.0) for v in victims) * self.price >= worth[view.name]
            ):
                continue
            kept = [zygote for zygote in kept if zygote not in victims]
            room += sum(zygote.bytes for zygote in victims) - view.bytes
            chosen.append(_import(view, shelf.node, victims, worth[view.name], "value per byte"))
        lacking = {zygote.libraries for zygote in kept if not zygote.complete}
        for view in able:
            if view.name in lacking and len(chosen) < shelf.slots and view.bytes <= room:
                room -= view.bytes
                chosen.append(
                    _import(view, shelf.node, [], worth[view.name], "newly deployed functions import more")
                )
        return chosen


def _kept(shelf: ShelfView) -> list[ZygoteView]:
    return [zygote for zygote in shelf.zygotes if not zygote.ending]


def _cover(short: int, cheap: list[ZygoteView]) -> list[ZygoteView] | None:
    """The first of `cheap` that together hold `short` bytes, without those that others make superfluous."""
    victims: list[ZygoteView] = []
    for zygote in cheap:
        if short > 0:
            victims.append(zygote)
            short -= zygote.bytes
    for zygote in reversed(victims):
        if short + zygote.bytes <= 0:
            victims.remove(zygote)
            short += zygote.bytes
    return None if short > 0 else victims


def _import(view: LibrariesView, node: str, victims: list[ZygoteView], worth: float, rule: str) -> Import:
    count = len(view.functions)
    saves_s = max(saves_s for _, saves_s in view.functions)
    return Import(
        libraries=view.name,
        node=node,
        displaced=tuple(zygote.zygote for zygote in victims),
        rule=f"{rule}: {count} function{'s' * (count > 1)} start up to {saves_s:.2f} s sooner, "
        f"{view.bytes / (1 << 20):.0f} MB once",
        value=worth,
        saves_s=saves_s,
        weight=view.bytes,
    )
