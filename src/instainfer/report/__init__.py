"""Tables and figures of what runs left: a page that needs nothing else, and Markdown with its figures beside it.

A section is a function of `Results` that gives a `Section`, or None where its data is not there. What both writers
need is in the section; what only one needs is in that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from instainfer import __version__
from instainfer.errors import BadInput
from instainfer.report import benchmarks, commands, latency, log, means, nodes, policies
from instainfer.report.parts import COUNT, MS, NUMBER, SHARE, TEXT, Figure, Section, Table
from instainfer.report.reading import Results, read

Maker = Callable[[Results], Section | None]

#: In the order in which one reads them.
SECTIONS: tuple[Maker, ...] = (
    policies.best,
    policies.savings,
    latency.by_class,
    latency.rates,
    latency.distribution,
    latency.timeline,
    policies.memory,
    policies.ablation,
    policies.predictors,
    policies.sensitivity,
    policies.scaling,
    nodes.section,
    policies.harm,
    latency.live,
)
_LISTED = 8  # of names in the head: the tables have all


class Written(NamedTuple):
    html: Path
    markdown: Path
    figures: int


def sections(results: Results, wanted: Iterable[Maker] = SECTIONS) -> list[Section]:
    """All that the data allows; `wanted`: of those on runs."""
    together = means.merged(results)
    made = [section for make in wanted if (section := make(together)) is not None]
    made += log.sections(results)
    made += benchmarks.sections(results)
    return [*_distinct(made), _rows(results)] if results.runs else _distinct(made)


def write(paths: Iterable[Path], output: Path, *, title: str = "", wanted: Iterable[Maker] = SECTIONS) -> Written:
    """Read results under `paths`, write `output`/report.html, report.md and figures/. The same results give the
    same bytes. `title`: of the page, if not the usual one; `wanted`: sections on runs, in this order. Raises
    BadInput for what cannot be read, and for a folder that cannot be written."""
    try:
        from instainfer.report.drawing import Artist, standalone
    except ImportError as error:
        raise BadInput(
            f"figures need {error.name}, which is not installed", hint="pip install 'instainfer[lab]'"
        ) from None
    from instainfer.report import html, markdown

    results = read(paths)
    made = sections(results, wanted)
    artist = Artist(results.names)
    drawn, files = {}, {}
    for section in made:
        for at, figure in enumerate(section.figures, 1):
            if figure.chart is not None:
                ident = f"{section.slug}-{at}"
                drawn[ident] = artist.draw(figure.chart, prefix=f"{ident}-", title=figure.title)
                files[ident] = f"figures/{ident}.svg"
    facts = _facts(results)
    title = title or _title(results)
    written = Written(output / "report.html", output / "report.md", len(drawn))
    try:
        (output / "figures").mkdir(parents=True, exist_ok=True)
        for ident, svg in drawn.items():
            (output / files[ident]).write_text(standalone(svg), encoding="utf-8")
        written.html.write_text(html.page(title, made, drawn, facts), encoding="utf-8")
        written.markdown.write_text(markdown.document(title, made, files, facts), encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"{output} cannot be written: {error.strerror}", hint="name another folder with -o"
        ) from None
    return written


def _title(results: Results) -> str:
    if results.runs:
        return "Pre-loading policies, compared"
    return "Benchmarks" if results.benches else "Calls of a live server"


def _facts(results: Results) -> list[tuple[str, str]]:
    facts = []
    if results.runs:
        calls = sum(run.row.invocations for run in results.runs)
        facts += [
            ("Runs", f"{len(results.runs):,} ({calls:,} calls)"),
            ("Traces", _listed(run.row.trace for run in results.runs)),
            ("Policies", _listed(results.names)),
            ("Seeds", _listed(str(run.row.seed) for run in results.runs if run.row.seed is not None)),
        ]
    for told in results.logs:
        facts.append(("Calls", f"{len(told.records):,} in {told.file}, {log.period(told)}"))
    if results.benches:
        facts.append(("Benchmarks", _listed(bench.command for bench in results.benches)))
    for machine in results.machines:
        said = ", ".join(
            f"{key.removesuffix('_mb')} {_said(key, value)}" for key, value in machine.items() if value
        )
        facts.append(("Machine", said))
    facts.append(("From", _listed(results.sources)))
    facts.append(("Made by", f"instainfer {__version__}"))
    return [(name, value) for name, value in facts if value]


def _said(key: str, value: object) -> str:
    return f"{value:,.0f} MB" if key.endswith("_mb") and isinstance(value, int | float) else str(value)


def _listed(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(found[:_LISTED]) + more


def _rows(results: Results) -> Section:
    """Everything, as it was read."""
    columns = (
        *(
            ("trace", TEXT),
            ("policy", TEXT),
            ("world", TEXT),
            ("nodes", COUNT),
            ("budget", NUMBER),
            ("MB", NUMBER),
        ),
        *(("calls", COUNT), ("saved", SHARE), ("pre-loaded", SHARE), ("warm", SHARE), ("cold", SHARE)),
        *(("warming + loading", MS), ("E2E", MS), ("E2E p99", MS)),
    )
    rows = tuple(
        (
            *(run.row.trace, results.name(run), run.row.world, run.row.nodes, run.row.budget_fraction),
            *(run.row.budget_mb, run.row.invocations, run.row.saved_fraction, run.row.preloaded_fraction),
            *(run.row.warm_fraction, run.row.cold_fraction, run.row.warming_loading_mean_ms),
            *(run.row.e2e_mean_ms, run.row.e2e_p99_ms),
        )
        for run in results.runs
    )
    figure = Figure("Every run", data=Table(columns, rows), commands=commands.of(results.runs))
    return Section("All runs", (), [figure])


def _distinct(made: list[Section]) -> list[Section]:
    """No two with one title: links and ids are made of it."""
    seen: dict[str, int] = {}
    distinct = []
    for section in made:
        number = seen[section.slug] = seen.get(section.slug, 0) + 1
        title = section.title if number == 1 else f"{section.title} ({number})"
        distinct.append(Section(title, section.text, section.figures, section.published))
    return distinct
