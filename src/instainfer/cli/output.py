"""What commands print: tables and bars for people, plain columns for pipes, JSON for programs.

On a terminal rich draws; in a pipe there is no colour, no box and no cut text, so that grep, cut and awk
see every value on a line of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import typer

from instainfer.units import say_ms

if TYPE_CHECKING:
    from rich.table import Table

#: Order of the phases of an invocation.
PHASES = ("queue", "container", "extract", "import", "load", "device", "warmup", "inference")

STYLES = {
    "warm": "green",
    "preloaded": "green",
    "attached": "cyan",
    "cloned": "cyan",
    "imported": "yellow",
    "forked": "yellow",
    "cold": "red",
    "ok": "green",
}


def print_json(value: Any) -> None:
    """One document, indented for a terminal, on one line for a pipe."""
    import msgspec

    text = msgspec.json.encode(value)
    typer.echo(msgspec.json.format(text, indent=2 if is_terminal() else -1).decode())


def safe(text: str) -> str:
    """A line that a terminal shows as it is: what would move its cursor, change its colours, or hide or turn
    around what is beside it is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_terminal(stream: Any = None) -> bool:
    return bool((stream or sys.stdout).isatty())


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), spare: Sequence[str] = ()
) -> None:
    """Rows under headers; columns named in `right` are numbers. Prints the headers even above no rows. A terminal
    that is too narrow for all gets none of the first of `spare`, and is told so."""
    rows = [[str(cell) for cell in row] for row in rows]
    if not is_terminal():
        _plain(headers, rows, right)
        return
    from rich.console import Console

    console = Console()
    kept, cells = narrowed(headers, rows, spare, console.width)
    console.print(drawn(kept, cells, right))
    if missing := [header for header in headers if header not in kept]:
        said = f"too narrow for {', '.join(missing)}: widen the terminal, or ask for --json"
        typer.echo(typer.style(said, dim=True), err=True)


def narrowed(
    headers: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str], width: int
) -> tuple[list[str], list[list[str]]]:
    """Headers and rows without as few of `spare` as lets the rest stand on a line so wide."""
    widths = {header: max([len(header), *(len(row[at]) for row in rows)]) for at, header in enumerate(headers)}
    kept = list(headers)
    for header in filter(widths.__contains__, spare):
        if sum(widths[one] for one in kept) + 2 * (len(kept) - 1) <= width:
            break
        kept.remove(header)
    places = [headers.index(header) for header in kept]
    return kept, [[row[place] for place in places] for row in rows]


def drawn(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> Table:
    """As `table` prints it on a terminal."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for number, header in enumerate(headers):
        # The first column is what one copies into the next command: it is never broken.
        justify: Literal["left", "right"] = "right" if header in right else "left"
        made.add_column(header, justify=justify, overflow="fold", no_wrap=number == 0)
    for row in rows:
        made.add_row(*(Text(safe(cell), style=STYLES.get(cell, "")) for cell in row))
    return made


def _plain(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        cells = (
            cell.rjust(width) if header in right else cell.ljust(width)
            for cell, width, header in zip(row, widths, headers, strict=True)
        )
        typer.echo("  ".join(cells).rstrip())


def facts(pairs: Mapping[str, str]) -> None:
    """`name  value` lines; empty values are left out."""
    shown = {name: value for name, value in pairs.items() if value}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        typer.echo(f"{typer.style(name.ljust(width), dim=True)}  {value}")


def bar(parts: Sequence[tuple[float, str]], width: int) -> str:
    """A bar `width` wide, split in proportion; each part drawn in its own character. Always sums up to
    `width` unless everything is 0."""
    total = sum(size for size, _ in parts)
    if total <= 0:
        return ""
    drawn, seen = "", 0.0
    for size, character in parts:
        seen += size
        drawn += character * (round(seen / total * width) - len(drawn))
    return drawn


def phase_lines(phases: Mapping[str, float], *, width: int = 40, full: str = "█") -> list[str]:
    """One line per phase that took time: name, milliseconds, bar from where it began to where it ended.
    `phases` are milliseconds by name, with or without `_ms`."""
    taken = {name.removesuffix("_ms"): ms for name, ms in phases.items()}
    order = [name for name in PHASES if taken.get(name)]
    order += sorted(name for name in taken if name not in PHASES and name != "total" and taken[name])
    total = sum(taken[name] for name in order)
    lines, seen = [], 0.0
    for name in order:
        begin = min(round(seen / total * width), width - 1)
        seen += taken[name]
        length = max(1, round(seen / total * width) - begin)
        lines.append(f"{name:<10} {say_ms(taken[name]):>9}  {' ' * begin}{full * length}")
    return lines


def full_block(stream: Any = None) -> str:
    """The character of a bar: a block where one can be drawn, else a letter of ASCII."""
    stream = stream or sys.stdout
    return "█" if is_terminal(stream) and "utf" in (getattr(stream, "encoding", "") or "").lower() else "#"


def clock(wall: float) -> str:
    """Local time of day, with the date when it is not of today."""
    then, today = time.localtime(wall), time.localtime()
    same = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M:%S", then)
