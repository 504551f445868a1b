"""CSV columns as arrays, with every row that cannot be used counted and named.

A clean file goes through polars in one piece: a day of 50,000 functions by 1,440 minutes in about two seconds. A
file in which anything is odd (a field too many, a number that is none) is read again row by row, to say which row
and why; the columns that come out are the same.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from instainfer.errors import BadInput, Unavailable
from instainfer.traces.base import REASONS_KEPT, Floats, Ints, TraceReport

_GZIP = b"\x1f\x8b"
_INT32 = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What is wanted of a file. A row without one of these, or with one that is no number where a number is
    due, is malformed. Numbers are finite, counts whole and not negative."""

    text: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    signed: bool = False  # numbers below zero are allowed


@dataclass(frozen=True, kw_only=True)
class Table:
    text: dict[str, list[str]]
    numbers: dict[str, Floats]
    counts: NDArray[np.int32]  # rows x columns, column-major
    rows: Ints  # the line in the file on which each row starts
    report: TraceReport


def header(path: Path) -> list[str]:
    """The names in the first line. Raises BadInput for a file that cannot be read or is no text."""
    with opened(path) as file:
        return [name.strip() for name in next(csv.reader(file), [])]


def read(path: Path, wanted: Columns) -> Table:
    """Raises BadInput for a file that cannot be read, that lacks a column, or none of whose rows can be used."""
    names = header(path)
    for name in (*wanted.text, *wanted.numbers, *wanted.counts):
        if names.count(name) != 1:
            problem = "no" if name not in names else "more than one"
            raise BadInput(
                f"{path} has {problem} column {name!r}", hint=f"its columns are {', '.join(names[:12])}"
            )
    table = _whole(path, names, wanted)
    if table is None:
        table = _by_row(path, names, wanted)
    if table.report.malformed and table.report.malformed == table.report.rows:
        raise BadInput(f"no row of {path} can be used", hint=table.report.reasons[0])
    return table


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """For reading as text, unpacked if gzip. Raises BadInput with the file's name."""
    try:
        with path.open("rb") as probe:
            packed = probe.read(2) == _GZIP
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if packed
            else path.open("r", encoding="utf-8-sig", newline="") as file
        ):
            yield file
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {error.strerror or error}", hint="name a file of a trace"
        ) from error
    except (UnicodeDecodeError, EOFError, csv.Error) as error:
        raise BadInput(
            f"{path} is no text that can be read: {error}", hint="a trace is CSV or JSON lines"
        ) from error


def _whole(path: Path, names: Sequence[str], wanted: Columns) -> Table | None:
    """None where any row is odd."""
    try:
        import polars
    except ModuleNotFoundError as error:
        raise Unavailable("reading traces needs polars", hint="pip install 'instainfer[lab]'") from error
    types: dict[str, polars.DataType] = {name: polars.String() for name in names}
    types |= {name: polars.Float64() for name in wanted.numbers}
    types |= {name: polars.Int32() for name in wanted.counts}
    if len(set(names)) < len(names):
        return None
    # The last column is looked at in any case: where a row ends early, it is empty.
    chosen = list(dict.fromkeys([*wanted.text, *wanted.numbers, *wanted.counts, names[-1]]))
    try:
        frame = polars.read_csv(path, columns=chosen, schema=types, ignore_errors=True).select(chosen)
    except (polars.exceptions.PolarsError, OSError):
        return None
    if any(frame.null_count().row(0)) if frame.height else True:
        return None
    numbers = {name: frame[name].to_numpy() for name in wanted.numbers}
    counts = frame.select(wanted.counts).to_numpy() if wanted.counts else np.empty((frame.height, 0), np.int32)
    if any(not np.isfinite(x).all() or (not wanted.signed and (x < 0).any()) for x in numbers.values()):
        return None
    if counts.size and counts.min() < 0:
        return None
    text = {name: [value.strip() for value in frame[name].to_list()] for name in wanted.text}
    if not all(all(values) for values in text.values()):
        return None
    return Table(
        text=text,
        numbers=numbers,
        counts=counts,
        rows=np.arange(frame.height) + 2,
        report=TraceReport(rows=frame.height),
    )


def _by_row(path: Path, names: Sequence[str], wanted: Columns) -> Table:
    text: dict[str, list[str]] = {name: [] for name in wanted.text}
    numbers: dict[str, list[float]] = {name: [] for name in wanted.numbers}
    counts: list[NDArray[np.int32]] = []
    rows: list[int] = []
    reasons: list[str] = []
    read = malformed = 0
    at = {name: place for place, name in enumerate(names)}
    counted = [(name, at[name]) for name in wanted.counts]
    with opened(path) as file:
        reader = csv.reader(file)
        next(reader, None)
        line = reader.line_num + 1
        for row in reader:
            begins, line = line, reader.line_num + 1
            if not row:
                continue
            read += 1
            try:
                if len(row) != len(names):
                    raise ValueError(f"{len(row)} fields where the header has {len(names)}")
                words = [_word(row[at[name]], name) for name in wanted.text]
                values = [_number(row[at[name]], name, wanted.signed) for name in wanted.numbers]
                whole = np.array([_count(row[place], name) for name, place in counted], np.int32)
            except ValueError as error:
                malformed += 1
                if len(reasons) < REASONS_KEPT:
                    reasons.append(f"{path.name}, row {begins}: {error}")
                continue
            for name, word in zip(wanted.text, words, strict=True):
                text[name].append(word)
            for name, value in zip(wanted.numbers, values, strict=True):
                numbers[name].append(value)
            counts.append(whole)
            rows.append(begins)
    return Table(
        text=text,
        numbers={name: np.array(values) for name, values in numbers.items()},
        counts=np.asfortranarray(np.stack(counts)) if counts else np.empty((0, len(counted)), np.int32),
        rows=np.array(rows, np.int64),
        report=TraceReport(rows=read, malformed=malformed, reasons=tuple(reasons)),
    )


def _word(text: str, column: str) -> str:
    if not (word := text.strip()):
        raise ValueError(f"nothing in column {column!r}")
    return word


def _number(text: str, column: str, signed: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} in column {column!r} is no number")
    if value < 0 and not signed:
        raise ValueError(f"{text!r} in column {column!r} is below zero")
    return value


def _count(text: str, column: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()) or int(digits) > _INT32:
        raise ValueError(f"{text!r} in column {column!r} is no count")
    return int(digits)
