"""Azure Functions 2019 (Shahrad et al., ATC'20): one row a function, one count a minute, one file a day.

Durations and memory come as percentiles in files of their own; an invocations file alone is a valid trace. A
file is known by its columns, never by its name. The data set's files hold applications' memory, others a
function's: with a HashFunction column it is the function's, else it is divided evenly over the functions of
the application that the trace has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from instainfer.errors import BadInput
from instainfer.traces import placement, table
from instainfer.traces.base import MINUTE_S, Floats, Ints, Singles, Trace, TraceReport

_FUNCTION, _APP, _OWNER, _TRIGGER = "HashFunction", "HashApp", "HashOwner", "Trigger"
_PERCENTS = (0, 1, 25, 50, 75, 99, 100)
_DURATIONS = tuple(f"percentile_Average_{percent}" for percent in _PERCENTS)
_MEMORY = "AverageAllocatedMb"
_DAY = re.compile(r"\bd(\d\d)\b")
_DURATION_STREAM = 2  # placement uses 0 and 1

Key = tuple[str, ...]


def is_invocations(header: Sequence[str]) -> bool:
    return _FUNCTION in header and bool(_minutes(header))


def is_durations(header: Sequence[str]) -> bool:
    return _FUNCTION in header and set(_DURATIONS) <= set(header)


def is_memory(header: Sequence[str]) -> bool:
    return _MEMORY in header and (_FUNCTION in header or _APP in header)


def names(path: Path) -> list[str]:
    """The functions of one invocations file, in order, without reading its counts: to choose from before
    `read(only=…)`."""
    wanted = tuple(name for name in (_OWNER, _APP, _FUNCTION) if name in table.header(path))
    found = table.read(path, table.Columns(text=wanted))
    registry = _Registry()
    for key in zip(*(found.text[name] for name in wanted), strict=True):
        registry.place(key)
    return registry.names()


def read(
    invocations: Sequence[Path],
    *,
    durations: Sequence[Path] = (),
    memory: Sequence[Path] = (),
    minutes: tuple[int, int] | None = None,
    cap_per_minute: int | None = None,
    only: Collection[str] | None = None,
    seed: int = 0,
) -> Trace:
    """`invocations`: one file a day, days in a row, in any order if their names say d01, d02, …. `minutes` A, B:
    positions A <= m < B counted from the first file's first minute column. `cap_per_minute` cuts a function's
    count before its arrivals are placed. `only`: functions to keep; the others cost next to nothing. `seed`
    other than 0: other places within the minutes.

    Raises BadInput for files that cannot be read or fit no such trace.
    """
    days = _in_order(invocations)
    columns = [_minutes(table.header(day)) for day in days]
    watched = sum(map(len, columns))
    start, end = minutes or (0, watched)
    if not 0 <= start < end <= watched:
        raise BadInput(
            f"minutes {start}:{end} of a trace of {watched}",
            hint=f"give positions A:B with 0 <= A < B <= {watched}",
        )
    registry = _Registry()
    report = TraceReport()
    triggers: dict[int, str] = {}
    parts: list[tuple[Floats, Ints, Ints, Ints]] = []
    first = 0
    for day, minute_columns in zip(days, columns, strict=True):
        found = table.read(day, _columns(day, minute_columns))
        report += found.report
        keys = list(
            zip(*(found.text[name] for name in (_OWNER, _APP, _FUNCTION) if name in found.text), strict=True)
        )
        seen: dict[int, int] = {}
        functions, seeds = [], []
        for key in keys:
            at = registry.place(key)
            again = seen[at] = seen.get(at, -1) + 1  # a second row of one function: more arrivals, other places
            functions.append(at)
            seeds.append(placement.seed_of(key[-1], seed) + again & 2**64 - 1)
        kinds = found.text.get(_TRIGGER, [""] * len(keys))
        for at, kind in zip(functions, kinds, strict=True):
            triggers.setdefault(at, kind)
        low, high = max(start - first, 0), min(end - first, len(minute_columns))
        if low < high:
            chosen = np.arange(len(keys))
            if only is not None:
                labels = registry.names()
                chosen = np.array([row for row in chosen if labels[functions[row]] in only], np.int64)
            counts = found.counts[chosen, low:high] if only is not None else found.counts[:, low:high]
            if cap_per_minute is not None:
                capped = np.minimum(counts, cap_per_minute)
                dropped = int(counts.sum(dtype=np.int64) - capped.sum(dtype=np.int64))
                report += TraceReport(dropped_by_cap=dropped)
                counts = capped
            times, rows, minute, rank = placement.place(
                counts,
                np.array(seeds, np.uint64)[chosen],
                np.array([kinds[row] == "timer" for row in chosen], np.bool_),
                first_minute=first + low,
            )
            at_s = times + (first + low - start) * MINUTE_S
            indices = np.array(functions, np.int64)[chosen]
            parts.append((at_s, indices[rows], minute + first + low, rank))
        first += len(minute_columns)
    at_s, functions_of, minute, rank = (np.concatenate(column) for column in zip(*parts, strict=True))
    measured, more = _durations(durations, registry, functions_of, minute, rank, seed)
    report += more
    sizes, more = _memory(memory, registry)
    report += more
    trace = Trace(
        names=tuple(registry.names()),
        times=at_s,
        functions=functions_of.astype(np.int32),
        durations=measured,
        memory_mb=sizes,
        triggers=tuple(triggers[at] for at in range(len(triggers))) if any(triggers.values()) else (),
        length_s=(end - start) * MINUTE_S,
        source=f"Azure Functions 2019: {', '.join(day.name for day in days)}",
        report=report,
    )
    return trace if only is None else trace.only(only)


class _Registry:
    """Functions in the order of their first row. A name is the function's hash; where two applications have a
    function of the same hash, the later one's is longer."""

    def __init__(self) -> None:
        self._places: dict[Key, int] = {}
        self._names: dict[str, int] = {}
        self.by_function: dict[str, list[int]] = {}
        self.by_app: dict[Key, list[int]] = {}

    def place(self, key: Key) -> int:
        if (at := self._places.get(key)) is not None:
            return at
        at = self._places[key] = len(self._places)
        name = key[-1] if key[-1] not in self._names else "/".join(key)
        self._names[name] = at
        self.by_function.setdefault(key[-1], []).append(at)
        self.by_app.setdefault(key[:-1], []).append(at)
        return at

    def find(self, key: Key) -> int | None:
        """By its full key, or by its hash alone where that says which."""
        if (at := self._places.get(key)) is not None:
            return at
        same = self.by_function.get(key[-1], ())
        return same[0] if len(same) == 1 else None

    def names(self) -> list[str]:
        return list(self._names)

    def __len__(self) -> int:
        return len(self._places)


def _minutes(header: Sequence[str]) -> list[str]:
    """The names of its minute columns. Raises BadInput where they do not run on by one."""
    found = [name for name in header if name.isascii() and name.isdigit()]
    if [int(name) for name in found] != list(range(int(found[0]), int(found[0]) + len(found))) if found else False:
        raise BadInput(
            "the minute columns do not run on by one", hint="an invocations file has columns 1, 2, 3, …"
        )
    return found


def _columns(day: Path, minute_columns: Sequence[str]) -> table.Columns:
    header = table.header(day)
    text = tuple(name for name in (_OWNER, _APP, _FUNCTION, _TRIGGER) if name in header)
    return table.Columns(text=text, counts=tuple(minute_columns))


def _in_order(invocations: Sequence[Path]) -> list[Path]:
    numbers = [int(found[1]) if (found := _DAY.search(path.name)) else None for path in invocations]
    if len(invocations) == 1:
        return list(invocations)
    if None in numbers:
        raise BadInput(
            f"which day comes first of {', '.join(path.name for path in invocations)}?",
            hint="name several days' files …d01.csv, …d02.csv, as the data set does, or give one file",
        )
    days = sorted(zip((number or 0 for number in numbers), invocations, strict=True))
    for (before, _), (after, path) in pairwise(days):
        if after != before + 1:
            raise BadInput(
                f"{path.name} does not follow day {before:02}", hint="give days in a row, one file each"
            )
    return [path for _, path in days]


def _durations(
    files: Sequence[Path], registry: _Registry, functions: Ints, minute: Ints, rank: Ints, seed: int
) -> tuple[Singles, TraceReport]:
    """Of each arrival: drawn from its function's percentiles, linear between them."""
    if not files:
        return np.empty(0, np.float32), TraceReport()
    report = TraceReport()
    levels = np.full((len(registry), len(_PERCENTS)), np.nan)
    for path in files:
        keyed = tuple(name for name in (_OWNER, _APP, _FUNCTION) if name in table.header(path))
        found = table.read(path, table.Columns(text=keyed, numbers=_DURATIONS))
        report += found.report
        values = np.stack([found.numbers[name] for name in _DURATIONS], axis=1)
        for row, key in enumerate(zip(*(found.text[name] for name in keyed), strict=True)):
            at = registry.find(key)
            if at is None or not np.isnan(levels[at, 0]):  # not in this trace; or an earlier file, or row, had it
                continue
            if np.any(np.diff(values[row]) < 0):
                reason = f"{path.name}, row {found.rows[row]}: its percentiles do not ascend"
                report += TraceReport(malformed=1, reasons=(reason,))
                continue
            levels[at] = values[row] / 1e3
    seeds = np.array([placement.seed_of(name, seed) for name in registry.names()], np.uint64)
    drawn = placement.uniform(seeds[functions], minute, rank, stream=_DURATION_STREAM)
    shares = np.array(_PERCENTS) / 100
    part = np.clip(np.searchsorted(shares, drawn, "right") - 1, 0, len(shares) - 2)
    low, high = levels[functions, part], levels[functions, part + 1]
    inside = (drawn - shares[part]) / (shares[part + 1] - shares[part])
    return (low + (high - low) * inside).astype(np.float32), report


def _memory(files: Sequence[Path], registry: _Registry) -> tuple[Singles, TraceReport]:
    if not files:
        return np.empty(0, np.float32), TraceReport()
    report = TraceReport()
    sizes = np.full(len(registry), np.nan, np.float32)
    for path in files:
        keyed = tuple(name for name in (_OWNER, _APP, _FUNCTION) if name in table.header(path))
        found = table.read(path, table.Columns(text=keyed, numbers=(_MEMORY,)))
        report += found.report
        for key, size in zip(
            zip(*(found.text[name] for name in keyed), strict=True), found.numbers[_MEMORY], strict=True
        ):
            if keyed[-1] == _FUNCTION:
                places = [at] if (at := registry.find(key)) is not None else []
            else:
                places = registry.by_app.get(key, [])
            for at in places:
                if np.isnan(sizes[at]):
                    sizes[at] = size / len(places)
    return sizes, report
