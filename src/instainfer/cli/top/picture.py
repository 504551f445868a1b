"""What the live feed has told so far, within bounds; no terminal and no clock in here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

#: Invocations and marks: more than any terminal shows.
KEPT = 5_000
SORTS = ("latest", "name", "calls", "slowest")

Invocation = dict[str, Any]  # as in `/activations`
Mark = dict[str, Any]  # what the platform did besides


@dataclass
class Row:
    """One function within a window of time. `marks` and `invocations`, oldest first."""

    function: str
    invocations: list[Invocation] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def latest(self) -> float:
        return max((one["wall"] for one in (*self.invocations, *self.marks)), default=0.0)

    def slowest(self) -> float:
        return max((one["e2e_ms"] for one in self.invocations), default=0.0)


class Picture:
    """`trouble`: why the feed does not come at the moment, "" while it does."""

    def __init__(self) -> None:
        self.now: dict[str, Any] = {}
        self.trouble = "connecting"
        self.left_out = 0  # warm invocations that were too many to be told
        self.invocations: deque[Invocation] = deque(maxlen=KEPT)
        self.marks: deque[Mark] = deque(maxlen=KEPT)

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of the feed; where it begins anew, so does everything here."""
        if event.get("anew"):
            self.invocations.clear()
            self.marks.clear()
            self.left_out = 0
        self.now = event["now"]
        self.trouble = ""
        self.left_out += event.get("left_out", 0)
        self.invocations.extend(event.get("invocations", ()))
        self.marks.extend(event.get("marks", ()))

    def lost(self, why: str) -> None:
        self.trouble = why

    def copy(self) -> Self:
        """As it is now, whatever it is told afterwards."""
        other = type(self)()
        other.now, other.trouble, other.left_out = self.now, self.trouble, self.left_out
        other.invocations, other.marks = self.invocations.copy(), self.marks.copy()
        return other

    # ---- what of it is wanted ------------------------------------------------------------------------------

    @property
    def wall(self) -> float:
        """The server's time of day: the only one that its records can be compared with."""
        return float(self.now.get("wall", 0.0))

    def containers(self, wanted: str = "") -> list[dict[str, Any]]:
        """Those in which a function is that has the text in its name; all for ""."""
        found = self.now.get("containers", ())
        return [one for one in found if matches(wanted, *_inside(one))]

    def nodes(self) -> list[dict[str, Any]]:
        """Of the cluster, where there is more than one and the key is the owner's."""
        found = self.now.get("nodes") or []
        return found if len(found) > 1 else []

    def zygotes(self, wanted: str = "") -> list[dict[str, Any]]:
        return [one for one in self.now.get("zygotes", ()) if matches(wanted, *one["functions"])]

    def calls(self, wanted: str = "", limit: int = 200) -> list[Invocation]:
        """Newest first."""
        found = []
        for one in reversed(self.invocations):
            if matches(wanted, name(one)):
                found.append(one)
                if len(found) == limit:
                    break
        return found

    def changes(self, wanted: str = "", over_s: float = 60.0) -> list[Mark]:
        """Newest first."""
        old = self.wall - over_s
        return [one for one in reversed(self.marks) if one["wall"] >= old and matches(wanted, name(one))]

    def rows(self, over_s: float, wanted: str = "", sort: str = "latest") -> list[Row]:
        """Of functions of which there is something to be seen in the window, or in memory now."""
        begin = self.wall - over_s
        rows: dict[str, Row] = {}

        def row(function: str) -> Row:
            return rows.setdefault(function, Row(function))

        for one in self.now.get("functions", ()):
            row(one["function"])
        for call in self.invocations:
            if call["wall"] + call["e2e_ms"] / 1e3 >= begin:
                row(name(call)).invocations.append(call)
        for mark in self.marks:
            if mark["wall"] >= begin and mark.get("function"):
                row(name(mark)).marks.append(mark)
        found = sorted(
            (one for one in rows.values() if matches(wanted, one.function)), key=lambda one: one.function
        )
        if sort == "calls":
            found.sort(key=lambda one: -len(one.invocations))
        elif sort == "slowest":
            found.sort(key=lambda one: -one.slowest())
        elif sort == "latest":
            found.sort(key=lambda one: -one.latest())
        return found


def name(of: Mapping[str, Any]) -> str:
    """NAMESPACE/NAME of whatever has both; the namespace alone where there is no function."""
    return f"{of['namespace']}/{of['function']}" if of.get("function") else str(of.get("namespace", ""))


def key(container: Mapping[str, Any], function: str) -> str:
    """NAMESPACE/NAME of a function in a container, however it is written there."""
    return function if "/" in function or not function else f"{container['namespace']}/{function}"


def _inside(container: Mapping[str, Any]) -> Iterable[str]:
    yield key(container, container["owner"])
    for instance in container.get("instances", ()):
        yield key(container, instance["function"])


def matches(wanted: str, *names: str) -> bool:
    return not wanted or any(wanted.casefold() in one.casefold() for one in names)
