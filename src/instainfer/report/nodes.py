"""Many nodes, as Tyche's Fig. 11 has it: pre-loading rate, time of a call and cost of a decision, by nodes."""

from __future__ import annotations

import re
from collections.abc import Callable

from instainfer.report import commands, published
from instainfer.report.charts import Axis, Line, Lines
from instainfer.report.parts import MS, NUMBER, SHARE, TEXT, WHOLE_SHARE, Figure, Published, Section, Table
from instainfer.report.policies import POLICY, setting
from instainfer.report.reading import Results, Run, at_one_budget, families

_PASSES = re.compile(r"scheduling_(\d+)(?:_(\w+))?")
_OURS = "hazard"  # whose rows of `bench cluster` name no policy
_CLAIM = (
    "16 nodes: 1.9 times as fast as InstaInfer, whose pre-loading rate falls from about 55% to about 25%; "
    "scheduling is up to 2.3 times cheaper."
)
_ALONE = (
    "Memory is the same at every number of nodes. `instainfer` decides on each node for itself, by the requests "
    "that an even balancer deals to it; all others decide for all nodes together."
)


def section(results: Results) -> Section | None:
    """None without runs on several numbers of nodes."""
    figures: list[Figure] = []
    runs: list[Run] = []
    for family in at_one_budget(families(results.policies, "budget", *POLICY, "nodes")):
        if len({run.row.nodes for run in family.runs}) < 2:
            continue
        for title, axis, measured in (
            ("Pre-loading rate", Axis("pre-loading rate", SHARE), _rate),
            ("Time of a call", Axis("mean time of a call", MS), _e2e),
        ):
            lines = _lines(results, family.runs, measured)
            if lines:
                chart = Lines(Axis("nodes", NUMBER, log=True), axis, lines)
                figures.append(Figure(f"{title} by nodes: {setting(family)}", chart, commands.of(family.runs)))
        runs += family.runs
    if not figures:
        return None
    figures += _decisions(results)
    return Section("Many nodes", (_ALONE,), figures, (_published(runs),))


def _rate(run: Run) -> float | None:
    return run.row.rate


def _e2e(run: Run) -> float | None:
    return run.row.e2e_mean_ms


def _lines(results: Results, runs: list[Run], measured: Callable[[Run], float | None]) -> list[Line]:
    """Of those that ran on several numbers of nodes, in the order of the report's names."""
    named: dict[str, dict[float, float]] = {}
    for run in runs:
        value = measured(run)
        if value is not None and not run.is_bound:
            named.setdefault(results.name(run), {})[run.row.nodes] = value
    return [
        Line(name, tuple(sorted(named[name].items()))) for name in results.names if len(named.get(name, ())) > 1
    ]


def _decisions(results: Results) -> list[Figure]:
    """Of each file of `bench cluster`."""
    figures = []
    for bench in results.benches:
        if bench.command != "bench cluster":
            continue
        named: dict[str, dict[float, float]] = {}
        for row in bench.rows:
            found = _PASSES.fullmatch(str(row.get("name", "")))
            value = row.get("value")
            if found and isinstance(value, int | float):
                named.setdefault(found[2] or _OURS, {})[int(found[1])] = float(value)
        lines = [Line(name, tuple(sorted(points.items()))) for name, points in named.items() if len(points) > 1]
        if lines:
            chart = Lines(Axis("nodes", NUMBER, log=True), Axis("placement pass", MS), lines)
            figures.append(
                Figure("Placement pass by nodes", chart, (f"instainfer bench cluster --json {bench.file}",))
            )
    return figures


def _published(runs: list[Run]) -> Published:
    rows = [
        (name, *(value for pair in zip(one.rate or (), one.e2e_ms, strict=True) for value in pair))
        for name, one in published.SYSTEMS.items()
        if name.endswith("many nodes")
    ]
    columns = [
        column for name in published.CLASSES for column in ((f"rate, {name}", WHOLE_SHARE), (f"E2E, {name}", MS))
    ]
    return Published(
        f"{published.TYCHE}, Fig. 11 and end-to-end comparison on many nodes",
        published.difference(runs),
        Table((("system", TEXT), *columns), tuple(rows)),
        claims=(_CLAIM,),
    )
