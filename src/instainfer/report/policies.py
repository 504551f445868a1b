"""Sections that compare policies with each other: savings, predictors, ablation, settings, memory, harm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from instainfer.report import commands, published
from instainfer.report.charts import Axis, Bars, Group, Line, Lines, Range
from instainfer.report.parts import COUNT, GB_S, MS, NUMBER, SHARE, TEXT, TIMES, Figure, Section, Table
from instainfer.report.reading import Family, Results, Run, at_one_budget, families, main, spec_of, without
from instainfer.units import say_mb

POLICY = ("policy", "predictor", "keep_alive")
#: Their values where a policy does not say them.
USUAL = {"p_load": 0.06, "p_offload": 0.94, "window": 10.0}
_USUAL_OF = {"instainfer": {"p_load": 0.05, "p_offload": 0.85}}
_CALLED = {"p_load": "P_load", "p_offload": "P_offload", "window": "window of arrivals"}


def setting(family: Family) -> str:
    """What the runs of a family have in common, for a title."""
    run, same = family.runs[0].row, family.setting
    parts = [run.trace] if "trace" in same else []
    if family.runs[0].command == "replay":
        parts.append("live")
    elif run.world:
        parts.append(f"{run.world} world")
    parts += [f"keep-alive {run.keep_alive}"] if "keep_alive" in same and run.keep_alive else []
    parts += [f"{run.nodes} nodes"] if "nodes" in same and run.nodes > 1 else []
    if same.get("budget") is not None:
        parts.append(f"memory {_budget(family.runs[0])}")
    return ", ".join(parts)


def chief(results: Results) -> list[Family]:
    """What a section on single calls or on memory shows: the main settings at their middle budget. A replay whose
    trace was simulated too is shown beside that, in a section of its own."""
    simulated = {run.row.trace for run in results.runs if run.command == "simulate"}
    runs = [run for run in results.policies if run.command == "simulate" or run.row.trace not in simulated]
    return at_one_budget(main(families(runs, "budget", *POLICY)))


def best(results: Results) -> Section | None:
    """Who saves most, at every budget."""
    rows, runs = [], []
    won: Counter[str] = Counter()
    decided = 0
    every = [
        one
        for family in main(families(results.policies, "budget", *POLICY))
        for one in families(family.runs, *POLICY)
    ]
    for family in every:
        ranked = sorted(
            (run for run in family.runs if not run.is_bound and run.row.saved_fraction is not None),
            key=lambda run: -(run.row.saved_fraction or 0.0),
        )
        if len(ranked) < 2:
            continue
        runs += ranked
        first = ranked[0]
        row, said = first.row, SHARE.say(first.row.saved_fraction)
        level = [run for run in ranked if SHARE.say(run.row.saved_fraction) == said]  # nobody sees a difference
        after = ranked[len(level)] if len(level) < len(ranked) else None
        if said != SHARE.say(0.0):  # where none saves anything, nobody has won
            decided += 1
            won.update(results.name(run) for run in level)
        rows.append(
            (
                row.trace,
                "live" if first.command == "replay" else row.world,
                _budget(first),
                _some([results.name(run) for run in level]),
                row.saved_fraction,
                results.name(after) if after else "–",
                after.row.saved_fraction if after else None,
                _bounds(family.runs),
            )
        )
    if not rows:
        return None
    columns = (("trace", TEXT), ("world", TEXT), ("memory", TEXT), ("best", TEXT), ("saved", SHARE))
    more = (("next", TEXT), ("saved by it", SHARE), ("at most possible", TEXT))
    if any(row[-1] for row in rows):
        table = Table((*columns, *more), tuple(rows))
    else:
        table = Table((*columns, *more[:-1]), tuple(row[:-1] for row in rows))
    text = (
        _winners(won, decided, len(rows)),
        "Of all the time that calls would have waited for imports and models, the share that they did not wait, "
        "for the policies that save most. Memory is a share of what all functions take together. Policies that "
        "are equal to a tenth of a per cent are named together.",
    )
    return Section(
        "At a glance", text, [Figure("The best policy at each budget", None, commands.of(runs), data=table)]
    )


def _winners(won: Counter[str], decided: int, settings: int) -> str:
    if not won:
        return "No policy saves anything: there is too little memory for a model, or nothing was called again."
    times = max(won.values())
    names = [name for name, count in won.items() if count == times]
    verb = "saves" if len(names) == 1 else "save"
    few = "" if decided == settings else f" In {settings - decided} more nobody saves anything."
    of = f"{times} of {decided} settings" if len(names) == 1 else f"{times} of {decided} settings each"
    return f"{_some(names)} {verb} most, or as much as the best, in {of}.{few}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _bounds(runs: list[Run]) -> str:
    """What no policy can pass, as far as it is known."""
    return ", ".join(f"{run.row.policy} {SHARE.say(run.row.saved_fraction)}" for run in runs if run.is_bound)


def savings(results: Results) -> Section | None:
    figures = []
    for family in families(results.policies, "budget", *POLICY):
        lines = _lines(results, family.runs, lambda run: run.row.saved_fraction)
        if len({x for line in lines for x, _ in line.points}) < 2:
            continue
        whole = family.runs[0].row.budget_fraction is not None
        x = Axis("memory, of what all functions take" if whole else "memory", SHARE if whole else NUMBER, log=True)
        chart = Lines(x, Axis("loading latency saved", SHARE), lines, bands="from–to")
        figures.append(Figure(setting(family), chart, commands.of(family.runs)))
    if not figures:
        return None
    text = [
        "The share of loading latency (imports, models, the excess of a first inference) that calls were spared."
    ]
    if bounds := [run for run in results.runs if run.is_bound]:
        told = (
            "Dotted lines are bounds: KEEP is the most that demand loading can save, knowing the future; JIT the "
            "most that anything can; HAZARD the most, on average, that a policy without foresight can."
        )
        if any(run.row.gap_fraction for run in bounds):
            told += " Where a band hangs from one, only its lower edge is proven to be within reach."
        text.append(told)
    if seeds := max((len(run.members) for run in results.policies), default=0):
        text.append(f"Lines are means of {seeds} seeds, bands the least and the most of them.")
    return Section("Savings by policy and budget", tuple(text), figures)


def memory(results: Results) -> Section | None:
    figures, runs = [], []
    for family in chief(results):
        found = [run for run in results.ordered(family.runs) if run.row.memory_gb_s is not None]
        if not found:
            continue
        without = {run.row.keep_alive: run.row.memory_gb_s for run in found if run.row.policy == "none"}
        names = tuple(results.name(run) for run in found)
        wasted = tuple(run.row.wasted_gb_s or 0.0 for run in found)
        used = tuple(
            max(0.0, (run.row.memory_gb_s or 0.0) - waste) for run, waste in zip(found, wasted, strict=True)
        )
        parts = [Group("held", used), Group("of it pre-loaded in vain", wasted)]
        if any(run.row.zygote_gb_s for run in found):
            parts.append(Group("library zygotes", tuple(run.row.zygote_gb_s or 0.0 for run in found)))
        chart = Bars(names, Axis("memory held", GB_S), parts)
        rows = tuple(
            (
                name,
                run.row.memory_gb_s,
                run.row.wasted_gb_s,
                _over(run.row.wasted_gb_s, run.row.memory_gb_s),
                _over(run.row.memory_gb_s, without.get(run.row.keep_alive)),
                run.row.zygote_gb_s,
            )
            for name, run in zip(names, found, strict=True)
        )
        columns = (
            ("policy", TEXT),
            ("held", GB_S),
            ("in vain", GB_S),
            ("in vain, share", SHARE),
            ("to no pre-loading", TIMES),
            ("library zygotes", GB_S),
        )
        figures.append(Figure(setting(family), chart, commands.of(found), data=Table(columns, rows)))
        runs += found
    if not figures:
        return None
    text = (
        "Memory over time: what containers (in the pool world: copies) held, and of that the pre-loads that no "
        "call ever used; library zygotes come on top. The policy none does not pre-load: it is what the "
        "keep-alive policy costs alone."
    )
    told = "Pre-loading costs no memory beyond what the keep-alive policy holds anyway."
    return Section("Memory cost", (text,), figures, (published.claims(published.TYCHE, runs, told),))


def ablation(results: Results) -> Section | None:
    names = ("tyche", *published.ABLATION)
    figures, runs = [], []
    for family in at_one_budget(families(results.policies, "budget", "policy", "predictor")):
        found = {run.row.policy: run for run in family.runs if run.row.policy in names}
        if "tyche" not in found or len(found) < 2:
            continue
        there = [found[name] for name in names if name in found]
        whole = found["tyche"].row.e2e_mean_ms
        chart = Bars(
            tuple(results.name(run) for run in there),
            Axis("mean time of a call", MS),
            (Group("mean E2E", tuple(run.row.e2e_mean_ms for run in there)),),
        )
        rows = []
        for run in there:
            low, high = published.ABLATION.get(run.row.policy, (1.0, 1.0))
            ratio = _over(run.row.e2e_mean_ms, whole)
            theirs = f"{low:.2f}–{high:.2f}" if run.row.policy != "tyche" else "1"
            rows.append((results.name(run), run.row.e2e_mean_ms, ratio, theirs, run.row.rate))
        columns = (
            ("policy", TEXT),
            ("mean E2E", MS),
            ("to tyche", TIMES),
            ("published, ×", TEXT),
            ("pre-loading rate", SHARE),
        )
        figures.append(Figure(setting(family), chart, commands.of(there), data=Table(columns, tuple(rows))))
        runs += there
    if not figures:
        return None
    text = (
        "Tyche without its predictor (tyche_np), without its scheduler (tyche_ns) and without either (tyche_nps)."
    )
    told = [
        f"{name}: {low:.2f} to {high:.2f} times the time of Tyche."
        for name, (low, high) in published.ABLATION.items()
    ]
    return Section("Ablation", (text,), figures, (published.claims(published.TYCHE, runs, *told),))


def predictors(results: Results) -> Section | None:
    figures, runs = [], []
    for family in at_one_budget(families(results.runs, "budget", "predictor")):
        found = {run.row.predictor: run for run in family.runs if run.row.predictor and not _settings(run)}
        if len(found) < 2 or family.setting["policy"] == "none":
            continue
        there = [found[name] for name in sorted(found)]
        chart = Bars(
            tuple(found_name for found_name in sorted(found)),
            Axis("loading latency saved", SHARE),
            (Group("saved", tuple(run.row.saved_fraction for run in there)),),
        )
        classes = [name for name in published.CLASSES if any(_class_rate(run, name) is not None for run in there)]
        columns = (("predictor", TEXT), ("saved", SHARE), ("pre-loading rate", SHARE), ("mean E2E", MS))
        rows = tuple(
            (
                run.row.predictor,
                run.row.saved_fraction,
                run.row.rate,
                run.row.e2e_mean_ms,
                *(_class_rate(run, name) for name in classes),
            )
            for run in there
        )
        table = Table((*columns, *((f"rate, {name}", SHARE) for name in classes)), rows)
        title = f"{family.setting['policy']}: {setting(family)}"
        figures.append(Figure(title, chart, commands.of(there), data=table))
        runs += there
    if not figures:
        return None
    text = "The same rule of what to load, asked of different predictors of what will come."
    return Section("Predictors", (text,), figures, (published.predictors(runs),))


def sensitivity(results: Results) -> Section | None:
    keys = sorted({key for run in results.runs for key in _settings(run)})
    figures, runs = [], []
    for key in keys:
        found: dict[str, tuple[Family, dict[float, Run]]] = {}
        for family in at_one_budget(families(results.runs, "budget", "policy", "predictor")):
            for run in family.runs:
                value = _value(run, key)
                if value is not None:
                    policy = without(spec_of(run.row.policy), key)
                    predictor = without(spec_of(run.row.predictor), key)
                    same = f"{family.setting!r} {policy} {predictor}"
                    found.setdefault(same, (family, {}))[1][value] = run
        for family, by_value in found.values():
            if len(by_value) < 2:
                continue
            there = [by_value[value] for value in sorted(by_value)]
            x = Axis(_CALLED.get(key, key), NUMBER)
            points = tuple((value, by_value[value].row.saved_fraction or 0.0) for value in sorted(by_value))
            name = without(spec_of(there[0].row.policy), key)
            columns = ((x.label, NUMBER), ("saved", SHARE), ("pre-loading rate", SHARE), ("warming + loading", MS))
            rows = [
                (value, run.row.saved_fraction, run.row.rate, run.row.warming_loading_mean_ms)
                for value, run in sorted(by_value.items())
            ]
            chart = Lines(x, Axis("loading latency saved", SHARE), (Line(name, points),))
            title = f"{x.label} of {name}: {setting(family)}"
            figures.append(Figure(title, chart, commands.of(there), data=Table(columns, tuple(rows))))
            runs += there
    if not figures:
        return None
    told = (
        "The papers choose P_load = 0.06 and P_offload = 0.94.",
        "They find no sensitivity to windows of 10 to 30.",
    )
    return Section("Sensitivity", (), figures, (published.claims(published.TYCHE, runs, *told),))


def harm(results: Results) -> Section | None:
    figures = []
    for family in chief(results):
        found = [run for run in results.ordered(family.runs) if run.row.harmed_fraction is not None]
        if not any(run.row.harmed_fraction or run.row.rejected for run in found):
            continue
        names = tuple(results.name(run) for run in found)
        chart = Bars(
            names,
            Axis("calls that waited", SHARE),
            (Group("harmed", tuple(run.row.harmed_fraction for run in found)),),
        )
        columns = (("policy", TEXT), ("harmed", SHARE), ("mean wait", MS), ("refused", COUNT))
        rows = tuple(
            (name, run.row.harmed_fraction, run.row.harm_mean_ms, run.row.rejected)
            for name, run in zip(names, found, strict=True)
        )
        figures.append(Figure(setting(family), chart, commands.of(found), data=Table(columns, rows)))
    if not figures:
        return None
    text = (
        "Calls that waited because a guest ran in, or took over, a container that had been their function's, and "
        "for how long. Refused calls waited a minute for an instance. The papers do not report harm."
    )
    return Section("Harm", (text,), figures)


def scaling(results: Results) -> Section | None:
    """By functions and rate; by budget is `savings`, by nodes a section of its own."""
    figures: list[Figure] = []
    told: list[str] = []
    runs: list[Run] = []
    free = ("trace", "functions", "minutes")
    for title, key, value, y, measured, claim in (
        ("functions", free, lambda run: run.row.functions, "E2E", _e2e, _FUNCTIONS),
        ("calls per function and minute, at most", ("cap_per_minute",), _cap, "E2E", _e2e, ""),
    ):
        for family in at_one_budget(families(results.policies, "budget", *POLICY, *key)):
            found = [run for run in family.runs if value(run) is not None and measured(run) is not None]
            lines = [line for line in _lines(results, found, measured, value) if len(line.points) > 1]
            if len({x for line in lines for x, _ in line.points}) < 2:
                continue
            axis = Axis("mean time of a call", MS) if y == "E2E" else Axis("pre-loading rate", SHARE)
            traces = " and ".join(dict.fromkeys(run.row.trace for run in found)) if "trace" in key else ""
            common = ", ".join(filter(None, (traces, setting(family))))
            chart = Lines(Axis(title, NUMBER, log=True), axis, lines)
            figures.append(Figure(f"By {title}: {common}", chart, commands.of(found)))
            told += [claim] if claim and claim not in told else []
            runs += found
    if not figures:
        return None
    beside = (published.claims(published.TYCHE, runs, *told),) if told else ()
    return Section("Scaling", (), figures, beside)


_FUNCTIONS = (
    "1,000 functions: 2.49 times as fast as OpenWhisk; pre-loading rates of 73% (50 busy functions), 28% (150 "
    "called once a minute) and under 1% (800 rare ones)."
)


def _e2e(run: Run) -> float | None:
    return run.row.e2e_mean_ms


def _cap(run: Run) -> float | None:
    cap = run.setting.get("cap_per_minute")
    return cap if isinstance(cap, int) else None


def _lines(
    results: Results,
    runs: list[Run],
    measured: Callable[[Run], float | None],
    at: Callable[[Run], float | None] = lambda run: run.budget,
) -> list[Line]:
    """One for each name, bounds last."""
    named: dict[str, dict[float, float]] = {}
    ranges: dict[str, dict[float, Range]] = {}
    bounds = {results.name(run) for run in runs if run.is_bound}
    for run in runs:
        x, y = at(run), measured(run)
        if x is not None and y is not None:
            name = results.name(run)
            named.setdefault(name, {})[x] = y
            gap = run.row.gap_fraction if run.is_bound else None
            ranges.setdefault(name, {})[x] = (y - gap, y) if gap else run.spread(measured)
    lines = []
    for name in (name for name in (*results.names, *sorted(bounds)) if name in named):
        band = tuple(ranges[name][x] for x in sorted(named[name]))
        lines.append(Line(name, tuple(sorted(named[name].items())), name in bounds, band if any(band) else ()))
    return lines


def _settings(run: Run) -> dict[str, float]:
    return spec_of(run.row.policy).settings | spec_of(run.row.predictor).settings


def _value(run: Run, key: str) -> float | None:
    """Of a setting of its policy or predictor, said or usual; None where it has none such."""
    said = _settings(run).get(key)
    mode, predictor = spec_of(run.row.policy).name, spec_of(run.row.predictor).name
    if said is not None:
        return said
    timers = mode in ("tyche", "tyche_ns", "instainfer") and key in ("p_load", "p_offload")
    window = predictor == "poisson" and key == "window"
    return _USUAL_OF.get(mode, USUAL).get(key, USUAL.get(key)) if timers or window else None


def _class_rate(run: Run, name: str) -> float | None:
    part = run.detail.classes.get(name) if run.detail else None
    return part.rate if part and part.invocations else None


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _budget(run: Run) -> str:
    if run.row.budget_fraction is not None:
        return f"{run.row.budget_fraction * 100:.3g}%"
    return say_mb(run.row.budget_mb) if run.row.budget_mb is not None else "–"
