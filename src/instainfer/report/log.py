"""Sections on the calls of a live server, as it recorded them: who called what, how each call found its function,
and what that cost.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from statistics import median

from instainfer.model import StartKind
from instainfer.report.calls import Log, Record
from instainfer.report.charts import Axis, Bars, Group, Line, Lines, Phases, Timeline
from instainfer.report.parts import COUNT, MS, NUMBER, SHARE, TEXT, Figure, Section, Table
from instainfer.report.reading import Results
from instainfer.units import say_s

_CALLS = 120  # one by one
_FUNCTIONS = 20  # of a figure; the table has all
_STEPS = 48  # of the time that a log covers
_LEAST = 5  # calls of a kind that have a distribution
_WARMING = ("container", "extract")
_LOADING = ("import", "load", "device", "warmup")
#: From the best to the worst; what is none of them comes last.
_KINDS = tuple(
    kind.value
    for kind in (
        StartKind.WARM,
        StartKind.PRELOADED,
        StartKind.ATTACHED,
        StartKind.CLONED,
        StartKind.IMPORTED,
        StartKind.FORKED,
        StartKind.COLD,
    )
)


def sections(results: Results) -> list[Section]:
    return [_section(log) for log in results.logs]


def period(log: Log) -> str:
    first, last = log.records[0].wall, log.records[-1].wall
    return f"{_clock(first)} to {_clock(last)}, {say_s(last - first)}"


def _section(log: Log) -> Section:
    file = shlex.quote(log.file)
    command: tuple[str, ...] = (f"instainfer report {file}",)
    if any(record.namespace for record in log.records):  # a replay's have none
        command = (f"instainfer activations --json --limit {len(log.records)} > {file}", *command)
    by_name: dict[str, list[Record]] = {}
    for record in log.records:
        by_name.setdefault(record.name, []).append(record)
    names = sorted(by_name, key=lambda name: (-len(by_name[name]), name))
    kinds = _found(log.records)
    figures = [_by_function(names, by_name, kinds, command)]
    figures += _distribution(log.records, kinds, command)
    figures += _over_time(log.records, kinds, command)
    figures.append(_one_by_one(log.records, command))
    failed = sum(record.failed for record in log.records)
    text = [
        "A call is warm or pre-loaded where it found its function loaded, cold where it waited for everything; "
        "the others found a part of it. Times are the server's, from a call's arrival to its answer."
    ]
    if failed:
        text.append(f"{failed:,} of {len(log.records):,} calls failed: counted, but without their times.")
    if log.skipped:
        text.append(f"{log.skipped:,} lines are no calls and were left out.")
    return Section(f"Live log: {log.file}", tuple(text), figures)


def _by_function(
    names: Sequence[str], by_name: dict[str, list[Record]], kinds: Sequence[str], command: tuple[str, ...]
) -> Figure:
    """Shares of how calls started; the table says what that took."""
    shown = names[:_FUNCTIONS]
    counts = {name: Counter(_kind(record) for record in by_name[name]) for name in names}
    parts = [Group(kind, tuple(counts[name][kind] / len(by_name[name]) for name in shown)) for kind in kinds]
    chart = Bars(tuple(shown), Axis("share of calls", SHARE), parts, labels=tuple(len(by_name[n]) for n in shown))
    columns = (
        *(("function", TEXT), ("calls", COUNT), ("failed", COUNT), *((kind, SHARE) for kind in kinds)),
        *(("median", MS), ("p90", MS), ("p99", MS), ("mean loading", MS), ("latency removed", SHARE)),
    )
    rows = []
    for name in names:
        records = by_name[name]
        taken = sorted(record.e2e_ms for record in records if not record.failed)
        shares = (counts[name][kind] / len(records) for kind in kinds)
        loading = [record.took(*_LOADING) for record in records if not record.failed]
        rows.append(
            (
                *(name, len(records), sum(record.failed for record in records), *shares),
                *(_at(taken, 50), _at(taken, 90), _at(taken, 99)),
                *(sum(loading) / len(loading) if loading else None, _removed(records)),
            )
        )
    note = (
        "Beside each bar: its calls. Latency removed: 1 − (mean − warm) / (cold − warm), with the medians of that "
        "function's warm and cold calls; – where there is none of either."
    )
    if len(shown) < len(names):
        note += f" The {len(shown)} functions that are called most; the table has all {len(names)}."
    return Figure("How calls started, by function", chart, command, note, Table(columns, tuple(rows)))


def _removed(records: Iterable[Record]) -> float | None:
    """Of what all calls would have waited, had each been cold, the share that they did not."""
    taken: dict[str, list[float]] = {}
    for record in records:
        if not record.failed:
            taken.setdefault(record.start, []).append(record.e2e_ms)
    if StartKind.WARM.value not in taken or StartKind.COLD.value not in taken:
        return None
    cold, warm = median(taken[StartKind.COLD.value]), median(taken[StartKind.WARM.value])
    every = [ms for of in taken.values() for ms in of]
    return 1.0 - (sum(every) / len(every) - warm) / (cold - warm) if cold > warm else None


def _distribution(records: Sequence[Record], kinds: Sequence[str], command: tuple[str, ...]) -> list[Figure]:
    lines = []
    for kind in kinds:
        taken = sorted(record.e2e_ms for record in records if _kind(record) == kind and not record.failed)
        if len(taken) >= _LEAST:
            points = tuple((max(_at(taken, percent) or 0.0, 0.001), percent / 100) for percent in range(101))
            lines.append(Line(f"{kind} ({len(taken):,})", points))
    if not lines:
        return []
    chart = Lines(Axis("time of a call", MS, log=True), Axis("share of calls", SHARE), lines, smooth=True)
    note = f"How many calls of a kind took at most so long. Kinds with less than {_LEAST} calls are left out."
    return [Figure("Distribution of the time of a call, by how it started", chart, command, note)]


def _over_time(records: Sequence[Record], kinds: Sequence[str], command: tuple[str, ...]) -> list[Figure]:
    first, length = records[0].wall, records[-1].wall - records[0].wall
    if length <= 0:
        return []
    step_s = max(1.0, length / _STEPS)
    unit, scale = ("minutes", 60.0) if length < 3 * 3600 else ("hours", 3600.0)
    counts = Counter((_kind(record), int((record.wall - first) // step_s)) for record in records)
    steps = range(int(length // step_s) + 1)
    lines = [Line(k, tuple((round(at * step_s / scale, 3), float(counts[k, at])) for at in steps)) for k in kinds]
    x = Axis(f"{unit} since {_clock(first)}", NUMBER)
    chart = Lines(x, Axis(f"calls in each {say_s(step_s)}", NUMBER), lines)
    return [Figure("Calls over time, by how they started", chart, command)]


def _one_by_one(records: Sequence[Record], command: tuple[str, ...]) -> Figure:
    shown = [record for record in records if not record.failed][-_CALLS:]
    calls = []
    for record in shown:
        warming, loading = record.took(*_WARMING), record.took(*_LOADING)
        inference = record.took("inference")
        waiting = max(0.0, record.e2e_ms - warming - loading - inference)
        calls.append(Phases(record.name, record.start, warming, loading, inference, waiting))
    chart = Timeline((("calls", tuple(calls)),)) if calls else None
    data = None if calls else Table((("call", TEXT),), ())
    return Figure(f"The last {len(shown)} calls that were answered", chart, command, data=data)


def _kind(record: Record) -> str:
    return record.start or "none"


def _found(records: Iterable[Record]) -> list[str]:
    there = {_kind(record) for record in records}
    return [kind for kind in _KINDS if kind in there] + sorted(there - set(_KINDS))


def _at(taken: Sequence[float], percent: int) -> float | None:
    """Nearest rank."""
    return taken[min(percent * len(taken) // 100, len(taken) - 1)] if taken else None


def _clock(wall: float) -> str:
    return f"{datetime.fromtimestamp(wall, UTC):%Y-%m-%d %H:%M:%S} UTC"
