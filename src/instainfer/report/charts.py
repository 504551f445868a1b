"""The kinds of charts: data that knows its table and its description. `drawing` draws them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from instainfer.report.parts import MS, RANGE, TEXT, Table, Unit

Value = float | None
#: The least and the most that a value stands for.
Range = tuple[float, float] | None


class Axis(NamedTuple):
    label: str
    unit: Unit
    log: bool = False

    @property
    def title(self) -> str:
        """With its unit, unless every value carries that itself."""
        return f"{self.label} ({self.unit.name})" if self.unit.name not in ("", "%") else self.label


class Line(NamedTuple):
    name: str
    points: tuple[tuple[float, float], ...]  # by ascending x
    bound: bool = False  # no policy but a limit of what one can reach
    band: tuple[Range, ...] = ()  # for each point, or none


class Lines(NamedTuple):
    x: Axis
    y: Axis
    lines: Sequence[Line]
    smooth: bool = False  # too many points to mark or to list each: a distribution
    bands: str = ""  # what the bands are

    def table(self) -> Table:
        if self.smooth:  # by quantile, which is how one reads a distribution
            wanted = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
            columns = ((self.y.label, self.y.unit), *((line.name, self.x.unit) for line in self.lines))
            by_y = [{round(y, 6): x for x, y in line.points} for line in self.lines]
            return Table(columns, tuple((share, *(found.get(share) for found in by_y)) for share in wanted))
        xs = sorted({x for line in self.lines for x, _ in line.points})
        columns = ((self.x.label, self.x.unit), *((line.name, self.y.unit) for line in self.lines))
        by_x = [dict(line.points) for line in self.lines]
        wide = [line for line in self.lines if any(line.band)]
        pairs = [zip(line.points, line.band, strict=True) for line in wide]
        ranges = [{x: say_range(self.y, of) for (x, _), of in pair} for pair in pairs]
        more = tuple((f"{line.name}, from–to", RANGE) for line in wide)
        rows = ((x, *(found.get(x) for found in by_x), *(found.get(x) for found in ranges)) for x in xs)
        return Table((*columns, *more), tuple(rows))

    def told(self) -> str:
        say = self.x if self.smooth else self.y
        parts = []
        for line in self.lines:
            if self.smooth:
                middle = next((x for x, y in line.points if y >= 0.5), line.points[-1][0])
                parts.append(f"{line.name}: median {_with(say, middle)}, most {_with(say, line.points[-1][0])}")
            else:
                (first, a), (last, b) = line.points[0], line.points[-1]
                at = f"at {_with(self.x, first)}"
                to = f" and {_with(self.y, b)} at {_with(self.x, last)}" if last != first else ""
                parts.append(f"{line.name}: {_with(self.y, a)} {at}{to}")
        return f"Lines, {self.y.label} by {self.x.label}. {_sentence(parts)}"


class Group(NamedTuple):
    """One colour of bars. `beside` are published figures and `ranges` the spread, one for each bar or none."""

    name: str
    values: tuple[Value, ...]
    beside: tuple[Value, ...] = ()
    ranges: tuple[Range, ...] = ()


class Columns(NamedTuple):
    """Upright bars in groups along x, one colour each."""

    places: tuple[str, ...]
    y: Axis
    groups: Sequence[Group]
    spread: str = ""  # what the groups' ranges are

    def table(self) -> Table:
        beside = any(group.beside for group in self.groups)
        columns = [("policy", TEXT), *((place, self.y.unit) for place in self.places)]
        if beside:
            columns += [(f"{place}, published", self.y.unit) for place in self.places]
        if self.spread:
            columns += [(f"{place}, {self.spread}", RANGE) for place in self.places]
        none = (None,) * len(self.places)
        rows = []
        for g in self.groups:
            ranges = [say_range(self.y, of) for of in g.ranges or none] if self.spread else ()
            rows.append((g.name, *g.values, *((g.beside or none) if beside else ()), *ranges))
        return Table(tuple(columns), tuple(rows))

    def told(self) -> str:
        parts = [f"{group.name}: {_listed(self.places, group.values, self.y)}" for group in self.groups]
        return f"Bars, {self.y.label} by {' / '.join(self.places)}. {_sentence(parts)}"


class Bars(NamedTuple):
    """Lying bars, one for each name; the parts of each lie end to end."""

    names: tuple[str, ...]
    x: Axis
    parts: Sequence[Group]
    spread: str = ""  # what the ranges are; of parts that lie end to end there are none
    labels: tuple[int, ...] = ()  # what stands beside each bar, if not its length

    def table(self) -> Table:
        columns = [("name", TEXT), *((part.name, self.x.unit) for part in self.parts)]
        values: list[Sequence[Any]] = [part.values for part in self.parts]
        if self.spread:
            wide = [part for part in self.parts if part.ranges]
            columns += [(f"{part.name}, {self.spread}", RANGE) for part in wide]
            values += [[say_range(self.x, of) for of in part.ranges] for part in wide]
        return Table(tuple(columns), tuple(zip(self.names, *values, strict=True)))

    def told(self) -> str:
        names = [part.name for part in self.parts]
        rows = zip(*(part.values for part in self.parts), strict=True)
        parts = [f"{name}: {_listed(names, row, self.x)}" for name, row in zip(self.names, rows, strict=True)]
        return f"Bars, {self.x.label}. {_sentence(parts)}"


class Dots(NamedTuple):
    """A row for each name and on it a mark for each kind, on one scale: for values of many magnitudes."""

    names: tuple[str, ...]
    x: Axis
    kinds: Sequence[Group]
    spread: str = ""

    def table(self) -> Table:
        return Bars(self.names, self.x, self.kinds, self.spread).table()

    def told(self) -> str:
        return Bars(self.names, self.x, self.kinds).told().replace("Bars", "Dots", 1)


class Phases(NamedTuple):
    """Of one call: where its time went."""

    function: str
    start: str
    warming_ms: float
    loading_ms: float
    inference_ms: float
    waiting_ms: float  # for its turn, and on the platform's own doing


class Timeline(NamedTuple):
    """Call after call, a panel for each policy; everywhere the same calls in the same order."""

    panels: Sequence[tuple[str, tuple[Phases, ...]]]

    def table(self) -> Table:
        columns: list[tuple[str, Unit]] = [("call", TEXT), ("function", TEXT)]
        for name, _ in self.panels:
            columns.append((f"{name}: start", TEXT))
            columns += [(phase, MS) for phase in ("warming", "loading", "inference", "waiting")]
        rows = []
        for number in range(max(len(calls) for _, calls in self.panels)):
            calls = [calls[number] if number < len(calls) else None for _, calls in self.panels]
            function = next(call.function for call in calls if call)
            row: list[Any] = [str(number + 1), function]
            for call in calls:
                row += [call.start, *call[2:]] if call else [None] * 5
            rows.append(tuple(row))
        return Table(tuple(columns), tuple(rows))

    def told(self) -> str:
        parts = []
        for name, calls in self.panels:
            slow = sum(sum(call[2:4]) + call.waiting_ms > call.inference_ms for call in calls)
            parts.append(f"{name}: {slow} of {len(calls)} calls waited longer than they ran")
        return f"Bars, time of each call by phase. {_sentence(parts)}"


def say_range(axis: Axis, of: Range) -> str | None:
    return f"{axis.unit.say(of[0])}–{axis.unit.say(of[1])}" if of else None


def _with(axis: Axis, value: Value) -> str:
    said = axis.unit.say(value)
    return said if axis.unit.form.endswith("%") or not axis.unit.name else f"{said} {axis.unit.name}"


def _listed(names: Sequence[str], values: Iterable[Value], axis: Axis) -> str:
    return ", ".join(f"{name} {_with(axis, value)}" for name, value in zip(names, values, strict=True))


def _sentence(parts: Sequence[str]) -> str:
    return "; ".join(parts) + "."
