"""A section for each file of `bench` and `demo`: its rows, and a chart where its form is known."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from instainfer.report import published
from instainfer.report.charts import Axis, Dots, Group, Range
from instainfer.report.parts import MS, NUMBER, SHARE, TEXT, Figure, Published, Section, Table, Unit
from instainfer.report.reading import Bench, Results

#: Of each command: what names a row, and then either what names a mark and its value, or the values themselves.
_DRAWN: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "bench overhead": (("name", "sandbox", "clients"), (), ("p50_ms", "p99_ms")),
    "bench service": (("system", "clients"), (), ("p50_ms", "p99_ms")),
    "bench load": (("model",), ("mode", "path"), ("e2e_ms",)),
    "bench starts": (("model",), (), ("e2e_cold_ms", "e2e_ms", "e2e_warm_ms")),
    "demo": (("function",), ("start",), ("e2e_ms",)),
}
_CLAIMS = {
    "bench overhead": (
        "A pre-loaded start adds 3 ms in the pre-loader and 2 to 11 ms for clearing memory to each call.",
        "Theirs are measured with models of 45 to 549 MB on OpenWhisk; ours with a function that does nothing.",
    ),
    "bench load": (
        "Pre-loading removes up to 93% of the loading latency.",
        "Theirs are the papers' eight models on their cluster, where a miss is loaded plainly; ours those of the "
        "table, on the machine named above.",
    ),
}
_ROUNDS = "least–most of the rounds"
_UNITS = {"_ms": MS, "_fraction": SHARE}


def sections(results: Results) -> list[Section]:
    return [_section(bench) for bench in results.benches if bench.rows]


def _section(bench: Bench) -> Section:
    command = f"instainfer {bench.command} --json {shlex.quote(bench.file)}"
    chart = _chart(bench)
    figure = Figure(bench.file, chart, (command,), data=_table(bench.rows))
    beside: tuple[Published, ...] = ()
    if bench.command in _CLAIMS:
        claim, difference = _CLAIMS[bench.command]
        beside = (Published(published.TYCHE, difference, claims=(claim,)),)
    title = bench.command.removeprefix("bench ").capitalize()
    return Section(f"Benchmark: {title}" if bench.command != "demo" else "Demo", (), [figure], beside)


def _chart(bench: Bench) -> Dots | None:
    if bench.command not in _DRAWN:
        return None
    naming, marking, keys = _DRAWN[bench.command]
    found: dict[str, dict[str, float]] = {}
    ranges: dict[str, dict[str, Range]] = {}
    for row in bench.rows:
        name = ", ".join(
            f"{row[key]} {key}" if key == "clients" else str(row[key]) for key in naming if key in row
        )
        mark = " ".join(str(row[key]) for key in marking if row.get(key))
        for key in keys:
            value = row.get(key)
            if isinstance(value, int | float) and value > 0:
                kind = mark or key.removesuffix("_ms").replace("_", " ")
                found.setdefault(name, {})[kind] = float(value)
                low, high = (row.get(key.replace("_ms", f"_{end}_ms")) for end in ("min", "max"))
                if isinstance(low, int | float) and isinstance(high, int | float) and 0 < low <= high:
                    ranges.setdefault(name, {})[kind] = (float(low), float(high))
    marks = list(dict.fromkeys(mark for values in found.values() for mark in values))
    if not marks:
        return None
    kinds = []
    for mark in marks:
        across = tuple(ranges.get(name, {}).get(mark) for name in found)
        values = tuple(of.get(mark) for of in found.values())
        kinds.append(Group(mark, values, ranges=across if any(across) else ()))
    return Dots(tuple(found), Axis("time of a call", MS, log=True), kinds, _ROUNDS if ranges else "")


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    """Every key of every row; what is a list or an object of its own is left to the file."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if _flat(rows, key)]
    units = [_unit(rows, key) for key in keys]
    columns = tuple((_header(key, unit), unit) for key, unit in zip(keys, units, strict=True))
    return Table(columns, tuple(tuple(row.get(key) for key in keys) for row in rows))


def _flat(rows: Sequence[dict[str, Any]], key: str) -> bool:
    return all(not isinstance(row.get(key), list | dict) for row in rows)


def _unit(rows: Sequence[dict[str, Any]], key: str) -> Unit:
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values or any(isinstance(value, str | bool) for value in values):
        return TEXT
    return next((unit for ending, unit in _UNITS.items() if key.endswith(ending)), NUMBER)


def _header(key: str, unit: Unit) -> str:
    for ending, known in _UNITS.items():
        if unit is known:
            key = key.removesuffix(ending)
    return key.replace("_", " ")
