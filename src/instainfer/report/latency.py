"""Sections on the calls themselves: by class, their distribution, one after the other, live beside simulated."""

from __future__ import annotations

from collections.abc import Callable

from instainfer.report import commands, published
from instainfer.report.charts import Axis, Columns, Dots, Group, Line, Lines, Phases, Range, Timeline
from instainfer.report.parts import CHANGE, COUNT, MS, POINTS, SHARE, TEXT, Figure, Section, Table, Unit
from instainfer.report.policies import chief, setting
from instainfer.report.reading import Part, Results, Run

_CLASSES = (*published.CLASSES, "other")
#: Calls of a timeline: more are thinner than a line.
_CALLS = 120
_PANELS = 4
_PERCENTILES = "p10–p90 of calls"

#: How near live and simulated are meant to be.
_WITHIN, _POINTS = 0.15, 3.0


def by_class(results: Results) -> Section | None:
    figures, runs = [], []
    for kind, label, value, spread in (
        ("e2e_ms", "mean time of a call", lambda part: part.e2e_mean_ms, _e2e_spread),
        ("warming_loading_ms", "mean warming + loading", lambda part: part.warming_loading_mean_ms, _wait_spread),
    ):
        made, of = _by_class(results, Axis(label, MS), value, kind, spread)
        figures += made
        runs += of
    if not figures:
        return None
    text = (
        "Functions by how regular their calls are: the coefficient of variation of the gaps between them is below "
        "1 (predictable), up to 4 (normal) or above (bursty); others were called less than ten times. Warming + "
        "loading is all that a call took but its inference."
    )
    if any("p10" in name for figure in figures for name, _ in figure.table.columns):
        text += " Bars are means; the line across each goes from the 10th to the 90th percentile of its calls."
    return Section("Latency by class", (text,), figures, (published.latencies(runs),))


def rates(results: Results) -> Section | None:
    figures, runs = _by_class(results, Axis("pre-loading rate", SHARE), lambda part: part.rate, "rate")
    if not figures:
        return None
    text = "Calls that found their function loaded: by a pre-load, or by a call before."
    return Section("Pre-loading rate by class", (text,), figures, (published.rates(runs),))


def _by_class(
    results: Results,
    y: Axis,
    value: Callable[[Part], float | None],
    kind: str,
    spread: Callable[[Part], Range] = lambda part: None,
) -> tuple[list[Figure], list[Run]]:
    figures, runs = [], []
    for family in chief(results):
        found = [run for run in results.ordered(family.runs) if run.detail and run.detail.classes]
        places = tuple(name for name in _CLASSES if any(name in _called(run) for run in found))
        if not places:
            continue
        groups = []
        for run in found:
            parts = _called(run)
            values = tuple(value(parts[name]) if name in parts else None for name in places)
            ranges = tuple(spread(parts[name]) if name in parts else None for name in places)
            beside = _beside(run, kind, places)
            groups.append(Group(results.name(run), values, beside, ranges if any(ranges) else ()))
        told = _PERCENTILES if any(group.ranges for group in groups) else ""
        title = f"{y.label.capitalize()}: {setting(family)}"
        figures.append(Figure(title, Columns(places, y, groups, told), commands.of(found)))
        runs += found
    return figures, runs


def _e2e_spread(part: Part) -> Range:
    low, high = part.e2e_p10_ms, part.e2e_p90_ms
    return None if low is None or high is None else (low, high)


def _wait_spread(part: Part) -> Range:
    low, high = part.warming_loading_p10_ms, part.warming_loading_p90_ms
    return None if low is None or high is None else (low, high)


def _called(run: Run) -> dict[str, Part]:
    """Classes of which there was a call."""
    return {name: part for name, part in run.detail.classes.items() if part.invocations} if run.detail else {}


def _beside(run: Run, kind: str, places: tuple[str, ...]) -> tuple[float | None, ...]:
    like = published.like(run)
    values = getattr(like, kind) if like else None
    if not values:
        return ()
    scale = 0.01 if kind == "rate" else 1.0
    by_class = dict(zip(published.CLASSES, values, strict=True))
    return tuple(by_class[name] * scale if name in by_class else None for name in places)


def distribution(results: Results) -> Section | None:
    figures = []
    for family in chief(results):
        found = [run for run in results.ordered(family.runs) if run.detail and run.detail.cdf.get("e2e_ms")]
        if found:
            lines = [_cdf(results.name(run), run) for run in found]
            chart = Lines(Axis("time of a call", MS, log=True), Axis("share of calls", SHARE), lines, smooth=True)
            figures.append(Figure(setting(family), chart, commands.of(found)))
    if not figures:
        return None
    text = "How many calls took at most so long, end to end. Further left and higher is better."
    return Section("Distribution of the time of a call", (text,), figures)


def _cdf(name: str, run: Run) -> Line:
    assert run.detail is not None
    times = run.detail.cdf["e2e_ms"]
    return Line(name, tuple((max(ms, 0.001), at / 100) for at, ms in enumerate(times)))


def timeline(results: Results) -> Section | None:
    figures = []
    for family in chief(results):
        found = [run for run in results.ordered(family.runs) if run.detail and run.detail.timeline]
        if not found:
            continue
        shown = _telling(found)
        panels = []
        for run in shown:
            assert run.detail is not None
            calls = sorted(run.detail.timeline, key=lambda call: (call.arrived_s, call.function))[:_CALLS]
            phases = (
                Phases(
                    call.function,
                    call.start,
                    call.warming_ms,
                    call.loading_ms,
                    call.inference_ms,
                    max(0.0, call.e2e_ms - call.warming_ms - call.loading_ms - call.inference_ms),
                )
                for call in calls
            )
            panels.append((results.name(run), tuple(phases)))
        note = f"{len(shown)} of {len(found)} policies." if len(shown) < len(found) else ""
        figures.append(Figure(setting(family), Timeline(panels), commands.of(shown), note))
    if not figures:
        return None
    text = (
        f"The first {_CALLS} calls that were counted, one bar each, split into what it waited for and what it "
        "came for. The papers show the same for theirs in Fig. 7."
    )
    return Section("Call by call", (text,), figures)


def _telling(runs: list[Run]) -> list[Run]:
    """Four at most: no pre-loading, the paper's, ours, then others by their order."""
    first = [run for name in ("none", "instainfer", "tyche", "hazard") for run in runs if run.row.policy == name]
    chosen = (first + [run for run in runs if run not in first])[:_PANELS]
    return [run for run in runs if run in chosen]


def live(results: Results) -> Section | None:
    """Replays beside the simulation of the same trace under the same policy."""
    figures = []
    for run in results.runs:
        simulated = _simulation_of(run, results.runs) if run.command == "replay" else None
        if simulated is None:
            continue
        ours, theirs = run.row, simulated.row
        times: list[tuple[str, float | None, float | None]] = [
            ("warming + loading, mean", ours.warming_loading_mean_ms, theirs.warming_loading_mean_ms),
            ("E2E, mean", ours.e2e_mean_ms, theirs.e2e_mean_ms),
            ("E2E, 99th percentile", ours.e2e_p99_ms, theirs.e2e_p99_ms),
        ]
        shares = [
            ("pre-loading rate", ours.rate, theirs.rate),
            ("of it pre-loaded", ours.preloaded_fraction, theirs.preloaded_fraction),
            ("loading latency saved", ours.saved_fraction, theirs.saved_fraction),
        ]
        rows = [_compared(name, a, b, MS, CHANGE) for name, a, b in times]
        rows += [_compared(name, a, b, SHARE, POINTS) for name, a, b in shares]
        rows.append(_compared("calls", ours.invocations, theirs.invocations, COUNT, CHANGE))
        columns = (("measure", TEXT), ("live", TEXT), ("simulated", TEXT), ("difference", TEXT))
        shown = [one for one in times if one[1] is not None and one[2] is not None]
        names = tuple(name for name, _, _ in shown)
        kinds = (Group("live", tuple(a for _, a, _ in shown)), Group("simulated", tuple(b for _, _, b in shown)))
        title = f"{run.spec} on {ours.trace}"
        chart = Dots(names, Axis("time of a call", MS, log=True), kinds) if shown else None
        note = " ".join((_verdict(run, simulated), *_unlike(run, simulated)))
        table = Table(columns, tuple(rows))
        figures.append(Figure(title, chart, commands.of((run, simulated)), note, table))
        figures += _live_details(title, run, simulated)
    if not figures:
        return None
    text = (
        "The same trace sent to a live server and simulated. The aim is mean warming + loading within "
        f"{_WITHIN:.0%} and the pre-loading rate within {_POINTS:.0f} points."
    )
    return Section("Live beside simulated", (text,), figures)


def _live_details(title: str, live: Run, simulated: Run) -> list[Figure]:
    """By class and as distributions, where both runs have them."""
    pair = (("live", live), ("simulated", simulated))
    figures = []
    shared = [name for name in _CLASSES if all(name in _called(run) for _, run in pair)]
    measures: tuple[tuple[Axis, Callable[[Part], float | None]], ...] = (
        (Axis("mean warming + loading", MS), lambda part: part.warming_loading_mean_ms),
        (Axis("pre-loading rate", SHARE), lambda part: part.rate),
    )
    for y, value in measures:
        groups = [Group(name, tuple(value(_called(run)[one]) for one in shared)) for name, run in pair]
        if shared:
            chart = Columns(tuple(shared), y, groups)
            figures.append(Figure(f"{title}: {y.label}", chart, commands.of((live, simulated))))
    lines = [_cdf(name, run) for name, run in pair if run.detail and run.detail.cdf.get("e2e_ms")]
    if len(lines) == 2:
        cdf = Lines(Axis("time of a call", MS, log=True), Axis("share of calls", SHARE), lines, smooth=True)
        figures.append(Figure(f"{title}: distribution", cdf, commands.of((live, simulated))))
    return figures


def _simulation_of(run: Run, runs: list[Run]) -> Run | None:
    """Of the same trace and policy, in the setting nearest to the live one."""
    same = [
        other
        for other in runs
        if other.command == "simulate"
        and other.row.trace == run.row.trace
        and other.row.policy == run.row.policy
        and run.row.predictor in ("", other.row.predictor)
    ]

    def far(other: Run) -> tuple[bool, bool, bool, float]:
        a, b = run.row, other.row
        return (
            b.world != "containers",
            b.keep_alive != a.keep_alive,
            b.nodes != a.nodes,
            abs((a.budget_mb or 0.0) - (b.budget_mb or 0.0)),
        )

    return min(same, key=far, default=None)


def _compared(name: str, live: float | None, simulated: float | None, unit: Unit, apart: Unit) -> tuple[str, ...]:
    said = [
        f"{unit.say(v)} {unit.name}".strip() if unit is MS and v is not None else unit.say(v)
        for v in (live, simulated)
    ]
    if live is None or simulated is None or (apart is CHANGE and not simulated):
        return (name, *said, "–")
    far = (live - simulated) * 100 if apart is POINTS else live / simulated - 1
    return (name, *said, f"{apart.say(far)} points" if apart is POINTS else apart.say(far))


def _verdict(live: Run, simulated: Run) -> str:
    a, b = live.row.warming_loading_mean_ms, simulated.row.warming_loading_mean_ms
    near = a is not None and b and abs(a / b - 1) <= _WITHIN
    x, y = live.row.rate, simulated.row.rate
    close = x is not None and y is not None and abs(x - y) * 100 <= _POINTS
    if near and close:
        return "Within the aim."
    missed = [name for name, met in (("warming + loading", near), ("the pre-loading rate", close)) if not met]
    return f"Outside the aim: {' and '.join(missed)}."


def _unlike(live: Run, simulated: Run) -> list[str]:
    """What else tells the two apart, and what the replay says of itself."""
    a, b = live.row, simulated.row
    told = []
    if a.budget_mb and b.budget_mb and abs(a.budget_mb / b.budget_mb - 1) > 0.01:
        told.append(f"Memory: {a.budget_mb:,.0f} MB live, {b.budget_mb:,.0f} MB simulated.")
    if a.keep_alive != b.keep_alive:
        told.append(f"Keep-alive: {a.keep_alive or 'unknown'} live, {b.keep_alive or 'none'} simulated.")
    if a.late_fraction:
        told.append(f"{a.late_fraction:.1%} of the calls were sent late.")
    if a.errors:
        told.append(f"{a.errors} calls failed.")
    return told
