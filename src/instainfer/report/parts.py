"""What a report is made of: sections of figures with their tables. Both writers read these and nothing else."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Unit(NamedTuple):
    """How the values of a column or an axis are written. `form` is a format, or "" for text."""

    name: str
    form: str = ""

    @property
    def numeric(self) -> bool:
        return bool(self.form)

    def say(self, value: Any) -> str:
        """For a cell; "–" where there is none."""
        if value is None:
            return "–"
        if not self.form or isinstance(value, str):
            return str(value)
        if self.form == "digits":  # about three that count, and never an exponent
            return f"{value:,.0f}" if abs(value) >= 100 else f"{float(f'{value:.3g}'):.10g}"
        return format(value, self.form)


TEXT = Unit("")
SHARE = Unit("%", ".1%")
WHOLE_SHARE = Unit("%", ".4g")  # of values that are percent already
MS = Unit("ms", "digits")
GB_S = Unit("GB·s", "digits")
COUNT = Unit("", ",d")
NUMBER = Unit("", "digits")
TIMES = Unit("×", ".2f")
POINTS = Unit("points", "+.1f")
RANGE = Unit("", "range")  # of texts: "1–2"
CHANGE = Unit("%", "+.1%")


class Table(NamedTuple):
    """`columns` are (header, unit). A None among the values is a cell without one."""

    columns: tuple[tuple[str, Unit], ...]
    rows: tuple[tuple[Any, ...], ...]

    @property
    def headers(self) -> list[str]:
        return [f"{name}, {unit.name}" if unit.name and unit.name != "%" else name for name, unit in self.columns]

    @property
    def cells(self) -> list[list[str]]:
        units = [unit for _, unit in self.columns]
        return [[unit.say(value) for unit, value in zip(units, row, strict=True)] for row in self.rows]

    @property
    def csv(self) -> str:
        """For a program: numbers unrounded, shares as fractions, nothing where there is no value."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_cell(header) for header in self.headers)
        writer.writerows([_cell(value) for value in row] for row in self.rows)
        return file.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is told to be a text: names are from outside."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


class Chart(Protocol):
    """What a figure shows; `instainfer.report.charts` has them."""

    def table(self) -> Table:
        """Every value that is drawn."""
        ...

    def told(self) -> str:
        """The figure in words, for who cannot see it."""
        ...


@dataclass(frozen=True)
class Figure:
    """A chart, the numbers in it and the commands that made them. Without a chart it is its table."""

    title: str
    chart: Chart | None = None
    commands: tuple[str, ...] = ()
    note: str = ""
    data: Table | None = None  # where it says more than the chart's own

    @property
    def table(self) -> Table:
        if self.data is not None:
            return self.data
        assert self.chart is not None, self.title
        return self.chart.table()


class Published(NamedTuple):
    """Figures of the papers to be read beside ours: where they are from, and why they may differ."""

    source: str
    difference: str
    table: Table | None = None
    claims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    title: str
    text: tuple[str, ...] = ()
    figures: Sequence[Figure] = ()
    published: tuple[Published, ...] = ()

    @property
    def slug(self) -> str:
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())
