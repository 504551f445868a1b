"""report: what is read, which sections there are, what they say, and that nobody's text becomes markup."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer.main
from markdown_it import MarkdownIt
from typer.testing import CliRunner, Result

pytest.importorskip("matplotlib")

from instainfer.cli import app
from instainfer.errors import BadInput
from instainfer.lab import simulate as lab
from instainfer.policies import registry
from instainfer.report import Written, commands, html, markdown, published, sections, write
from instainfer.report.parts import SHARE, TEXT, Section, Table
from instainfer.report.policies import USUAL
from instainfer.report.reading import Results, read, spec_of, without
from instainfer.report.text import plain

from . import sample
from .sample import row

#: As a trace, a function or a policy could be called.
HOSTILE = (
    "</svg></style><script>alert(1)</script>",
    '" onload="alert(1)" x="',
    "| a | `b` | ![c](http://evil.example/x.png) [d](javascript:alert(1)) |",
    "```\n# heading\n```",
    "_$\\nosuch{1}$ (touch x); `id` && 'q' \x00\x1b[31m\u202e<!--",
)


class Page(HTMLParser):
    """Tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    pytest.importorskip("polars")
    return sample.full(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def written(everything: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(everything, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def results(everything: list[Path]) -> Results:
    return read(everything)


@pytest.fixture(scope="module")
def made(results: Results) -> dict[str, Section]:
    return {section.title: section for section in sections(results)}


def cells(section: Section, figure: int = 0) -> list[list[str]]:
    return section.figures[figure].table.cells


# ---- sections ------------------------------------------------------------------------------------------------


def test_everything_is_shown_where_its_data_is_there(made: dict[str, Section]) -> None:
    assert list(made) == [
        "At a glance",
        "Savings by policy and budget",
        "Latency by class",
        "Pre-loading rate by class",
        "Distribution of the time of a call",
        "Call by call",
        "Memory cost",
        "Ablation",
        "Predictors",
        "Sensitivity",
        "Scaling",
        "Many nodes",
        "Harm",
        "Live beside simulated",
        "Benchmark: Cluster",
        "Benchmark: Load",
        "Benchmark: Overhead",
        "All runs",
    ]


def test_and_only_there(tmp_path: Path) -> None:
    found = read([sample.write(tmp_path, [row(), row(policy="gdsf", saved_fraction=0.7)])])
    assert [section.title for section in sections(found)] == ["At a glance", "Memory cost", "All runs"]


def test_savings_are_the_rows_with_bounds_apart(made: dict[str, Section], everything: list[Path]) -> None:
    figure = made["Savings by policy and budget"].figures[0]
    raw = json.loads((everything[0] / "results.json").read_text("utf-8"))["rows"]
    hazard = [one["saved_fraction"] for one in raw if one["policy"] == one["predictor"] == "hazard"]
    header = [name for name, _ in figure.table.columns]
    assert header[1:] == ["hazard", "tyche", "lru", "gdsf", "KEEP"]  # what has settings of its own is elsewhere
    assert [values[1] for values in figure.table.rows] == hazard
    chart: Any = figure.chart
    assert [line.name for line in chart.lines if line.bound] == ["KEEP"]
    assert "--policies" in figure.commands[0] and "KEEP" in figure.commands[0]


def test_published_figures_stand_beside_runs_that_are_set_up_alike(made: dict[str, Section]) -> None:
    by_policy = {cell[0]: cell for cell in cells(made["Latency by class"], 1)}
    assert by_policy["tyche"][5:8] == ["468", "552", "618"]
    assert by_policy["none"][5:8] == ["2,553", "3,017", "2,624"]
    assert by_policy["hazard"][5:8] == ["–", "–", "–"]
    for title in ("Latency by class", "Memory cost", "Ablation", "Predictors", "Sensitivity", "Scaling"):
        for beside in made[title].published:
            assert "Sui" in beside.source and "Theirs are measurements" in beside.difference


def test_ablation_is_told_as_ratios(made: dict[str, Section]) -> None:
    rows = {values[0]: values for values in made["Ablation"].figures[0].table.rows}
    assert list(rows) == ["tyche", "tyche_np", "tyche_ns", "tyche_nps"]
    for name, values in rows.items():
        assert values[2] == pytest.approx(values[1] / rows["tyche"][1])
        assert values[3] == {"tyche": "1", "tyche_np": "1.16–1.28", "tyche_ns": "1.21–1.49"}.get(name, "1.48–1.73")


def test_sensitivity_has_the_usual_value_among_those_that_were_said(made: dict[str, Section]) -> None:
    by_title = {figure.title.partition(":")[0]: figure for figure in made["Sensitivity"].figures}
    assert [values[0] for values in by_title["P_load of tyche"].table.rows] == [0.02, 0.06, 0.2, 0.4]
    assert [values[0] for values in by_title["window of arrivals of tyche"].table.rows] == [5, 10, 20, 40]
    assert USUAL["p_load"] == 0.06  # as `registry` has Tyche's


def test_scaling_is_along_one_thing_at_a_time(made: dict[str, Section]) -> None:
    found = {figure.title.partition(":")[0]: figure.table.rows for figure in made["Scaling"].figures}
    assert [values[0] for values in found["By functions"]] == [4, 8, 16]
    assert [values[0] for values in found["By calls per function and minute, at most"]] == [1, 3]


def test_many_nodes_have_rate_time_and_the_cost_of_a_pass(made: dict[str, Section]) -> None:
    section = made["Many nodes"]
    found = {figure.title.partition(":")[0]: figure.table.rows for figure in section.figures}
    assert list(found) == ["Pre-loading rate by nodes", "Time of a call by nodes", "Placement pass by nodes"]
    assert [values[0] for values in found["Pre-loading rate by nodes"]] == [1, 2]
    assert found["Placement pass by nodes"] == ((4, 2.9, 0.9), (8, 3.1, 0.6))
    (beside,) = section.published
    assert beside.table is not None and beside.table.rows[0][:3] == ("InstaInfer, many nodes", 61, 821)
    assert "55% to about 25%" in beside.claims[0]


def test_live_beside_simulated(tmp_path: Path) -> None:
    simulated = row(world="containers", policy="hazard", predictor="hazard", keep_alive="pressure")
    other = {**simulated, "keep_alive": "fixed", "warming_loading_mean_ms": 1.0}
    live = {**simulated, "world": "live", "warming_loading_mean_ms": 500.0, "warm_fraction": 0.51}
    paths = [
        sample.write(tmp_path / "sim", [other, simulated]),
        sample.write(tmp_path / "live", [{**live, "late_fraction": 0.25}], command="replay"),
    ]
    section = next(one for one in sections(read(paths)) if one.title == "Live beside simulated")
    told = {cell[0]: cell[1:] for cell in cells(section)}
    assert told["warming + loading, mean"] == ["500 ms", "400 ms", "+25.0%"]
    assert told["pre-loading rate"] == ["51.0%", "50.0%", "+1.0 points"]
    assert section.figures[0].note == "Outside the aim: warming + loading. 25.0% of the calls were sent late."


def test_runs_of_several_seeds_are_one_with_its_spread(tmp_path: Path) -> None:
    paths = []
    for seed, saved in ((0, 0.5), (1, 0.6), (2, 0.55)):
        rows = [row(policy="lru", seed=seed, saved_fraction=saved, budget_fraction=b) for b in (0.1, 0.2)]
        rows.append(row(policy="gdsf", seed=seed, saved_fraction=saved))
        paths.append(sample.write(tmp_path / str(seed), rows))
    made = {section.title: section for section in sections(read(paths))}
    table = made["Savings by policy and budget"].figures[0].table
    assert table.headers[1:] == ["lru", "gdsf", "lru, from–to", "gdsf, from–to"]
    assert table.cells[0][1:] == ["55.0%", "55.0%", "50.0%–60.0%", "50.0%–60.0%"]
    assert "3 seeds" in made["Savings by policy and budget"].text[-1]
    (command, *others) = made["Savings by policy and budget"].figures[0].commands
    assert [other.partition("--seed ")[2][:1] for other in (command, *others)] == ["", "1", "2"]
    assert len(made["All runs"].figures[0].table.rows) == 9
    assert cells(made["At a glance"])[0][3:5] == ["lru, gdsf", "55.0%"]  # equal: neither is the best alone
    assert made["At a glance"].text[0].startswith("lru, gdsf save most, or as much as the best, in 1 of 1")


def test_nobody_has_won_where_nothing_is_saved(tmp_path: Path) -> None:
    small = [row(policy=policy, budget_fraction=0.01, saved_fraction=0.0) for policy in ("lru", "hazard")]
    large = [row(policy="lru", saved_fraction=0.4), row(policy="hazard", saved_fraction=0.5)]
    for name, rows, said in (
        ("small", small, "No policy saves anything"),
        ("both", [*small, *large], "hazard saves most, or as much as the best, in 1 of 1 settings. In 1 more"),
    ):
        sample.write(tmp_path / name, rows)
        made = {section.title: section for section in sections(read([tmp_path / name]))}
        assert made["At a glance"].text[0].startswith(said)


def test_a_mean_over_calls_has_their_percentiles_beside_it(tmp_path: Path) -> None:
    one = row()
    sample.write(tmp_path, [one])
    part = {"invocations": 9, "e2e_mean_ms": 50.0, "e2e_p10_ms": 10.0, "e2e_p90_ms": 120.0}
    sample.detail(tmp_path, 0, one, {}, classes={"normal": part})
    section = next(one for one in sections(read([tmp_path])) if one.title == "Latency by class")
    assert cells(section) == [["lru", "50", "10–120"]]
    assert "90th percentile" in section.text[0]


def test_what_bears_on_a_difference_to_the_papers_is_said(made: dict[str, Section]) -> None:
    (beside,) = made["Latency by class"].published
    assert beside.claims[0].startswith("tyche against none, over pagurus: predictable 5.5 times as fast there, ")
    assert "of the calls here start cold" in beside.claims[0]


def test_rounds_of_a_benchmark_are_drawn_from_the_least_to_the_most(tmp_path: Path) -> None:
    one = {"model": "m", "e2e_ms": 5.0, "e2e_min_ms": 4.0, "e2e_max_ms": 9.0, "e2e_cold_ms": 50.0}
    document = {"version": 1, "command": "bench starts", "rows": [one]}
    (tmp_path / "starts.json").write_text(json.dumps(document), encoding="utf-8")
    (section,) = sections(read([tmp_path]))
    chart: Any = section.figures[0].chart
    assert {kind.name: kind.ranges for kind in chart.kinds} == {"e2e cold": (), "e2e": ((4.0, 9.0),)}
    assert write([tmp_path], tmp_path / "out").figures == 1


# ---- the live log --------------------------------------------------------------------------------------------


def call(number: int, start: str = "warm", **other: Any) -> dict[str, Any]:
    loading = {"cold": 900.0, "preloaded": 0.0}.get(start, 0.0)
    one = {"id": f"{number:032x}", "namespace": "n", "function": "f", "wall": 1e9 + number, "start": start}
    phases = {"queue_ms": 1.0, "container_ms": loading / 9, "load_ms": loading, "inference_ms": 4.0}
    return one | {"status": "ok", "e2e_ms": 5.0 + loading, "phases": phases} | other


def test_a_report_on_the_calls_of_a_live_server(tmp_path: Path) -> None:
    calls = [call(0, "cold"), *(call(at) for at in range(1, 9)), call(9, "preloaded"), call(10, status="failed")]
    calls.append(call(11, function="g", start="", status="failed", phases={}))
    (tmp_path / "calls.jsonl").write_text(json.dumps({"activations": calls[::-1]}), encoding="utf-8")
    (section,) = sections(read([tmp_path]))  # a folder of nothing but logs
    assert section.title == "Live log: calls.jsonl"
    assert section.text[1].startswith("2 of 12 calls failed")
    header = section.figures[0].table.headers
    first, second = (dict(zip(header, one, strict=True)) for one in cells(section))
    assert first["function"] == "n/f" and first["calls"] == "11" and first["failed"] == "1"
    assert first["cold"] == "9.1%" and first["preloaded"] == "9.1%" and first["warm"] == "81.8%"
    assert first["mean loading, ms"] == "90" and first["latency removed"] == "90.0%"
    assert second["none"] == "100.0%" and second["median, ms"] == "–"
    over_time = section.figures[2].table
    assert sum(value for values in over_time.rows for value in values[1:]) == 12
    assert cells(section, 3)[0][1:] == ["n/f", "cold", "100", "900", "4", "0"]  # the earliest first
    assert section.figures[0].commands[0] == "instainfer activations --json --limit 12 > calls.jsonl"
    assert write([tmp_path], tmp_path / "out").figures == 4


def test_a_log_beside_results_and_one_with_lines_that_are_none(tmp_path: Path) -> None:
    folder = sample.write(tmp_path / "live", [row()], command="replay")
    lines = [json.dumps(call(at, namespace="")) for at in range(3)] + ["{", json.dumps(call(3, wall=1e300))]
    (folder / "calls.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert not read([folder]).logs  # its calls stand in its results
    found = read([folder, folder / "calls.jsonl"])
    assert [(len(log.records), log.skipped) for log in found.logs] == [(3, 2)]
    assert "Live log: calls.jsonl" in [section.title for section in sections(found)]
    (folder / "calls.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match="has no call"):
        read([folder / "calls.jsonl"])


def test_names_in_a_log_are_text(tmp_path: Path) -> None:
    calls = [call(at, function=name, start=name, wall=1e9 + at * 1e5) for at, name in enumerate(HOSTILE)]
    (tmp_path / "calls.jsonl").write_text(json.dumps({"activations": calls}), encoding="utf-8")
    page = Page(write([tmp_path], tmp_path).html.read_text("utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "\x1b" not in page.text and "\u202e" not in page.text


def test_a_run_that_is_there_twice_counts_once_and_two_of_a_name_are_told_apart(tmp_path: Path) -> None:
    before = sample.write(tmp_path / "before", [row()])
    after = sample.write(tmp_path / "after", [row(saved_fraction=0.6)])
    assert len(read([before, before, before / "results.json"]).runs) == 1
    assert read([before, after]).names == ["lru [after]", "lru [before]"]


def test_keep_alive_policies_are_named_where_they_differ(tmp_path: Path) -> None:
    rows = [
        row(world="containers", policy="none", predictor="hazard", keep_alive=one) for one in ("lru", "pagurus")
    ]
    assert read([sample.write(tmp_path, rows)]).names == ["none + lru", "none + pagurus"]


def test_the_detail_of_a_former_command_belongs_to_no_row(tmp_path: Path) -> None:
    sample.write(tmp_path, [row(), row(policy="gdsf")])
    sample.detail(tmp_path, 0, row(policy="gdsf"), {"seed": 0})
    sample.detail(tmp_path, 7, row(policy="gdsf", seed=9), {"seed": 9})
    assert [run.detail is not None for run in read([tmp_path]).runs] == [False, True]


def test_benchmarks_alone(tmp_path: Path) -> None:
    folder = sample.benchmarks(tmp_path / "bench")
    assert [one.title for one in sections(read([folder]))] == [
        "Benchmark: Cluster",
        "Benchmark: Load",
        "Benchmark: Overhead",
    ]
    assert [one.title for one in sections(read([folder / "load.json"]))] == ["Benchmark: Load"]


def test_a_file_without_calls_is_no_division_by_nothing(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("saved_fraction", "e2e_mean_ms", "memory_gb_s", "wasted_gb_s"), 0.0)
    rows = [row(policy=one, invocations=0, **nothing) for one in ("lru", "none", "tyche", "tyche_np")]
    sample.write(tmp_path, rows)
    for number, one in enumerate(rows):
        sample.detail(tmp_path, number, one, {}, classes={}, cdf={"e2e_ms": []}, timeline=[])
    assert write([tmp_path], tmp_path / "out").figures


def test_a_folder_of_the_simulator(tmp_path: Path) -> None:
    """As it is, and not as these tests make one up."""
    pytest.importorskip("polars")
    cases = [lab.Case(sample.trace(tmp_path, 3), policy, 2.0) for policy in ("none", "tyche(p_load=0.2)", "tyche")]
    settings = lab.Settings(world="containers", keep_alive="openwhisk")
    rows = list(lab.run(settings, cases, folder=tmp_path / "out"))
    (tmp_path / "out" / "results.json").write_text(json.dumps(lab.document("simulate", rows)), encoding="utf-8")
    found = read([tmp_path / "out"])
    assert all(run.detail and run.detail.timeline and run.detail.classes for run in found.runs)
    titles = [section.title for section in sections(found)]
    assert {"Latency by class", "Distribution of the time of a call", "Call by call", "Sensitivity"} <= set(titles)
    assert commands.of(found.runs) == (
        "instainfer simulate hour3.csv --keep-alive openwhisk --world containers"
        " --policies 'none,tyche(p_load=0.2),tyche' --budgets 2",
    )


def test_phases_of_a_call_make_up_its_time(tmp_path: Path) -> None:
    one = row()
    sample.write(tmp_path, [one])
    call = {"function": "f", "start": "cold", "warming_ms": 300.0, "loading_ms": 900.0, "inference_ms": 200.0}
    sample.detail(tmp_path, 0, one, {}, timeline=[{**call, "e2e_ms": 1500.0}])
    section = next(one for one in sections(read([tmp_path])) if one.title == "Call by call")
    assert cells(section) == [["1", "f", "cold", "300", "900", "200", "100"]]


# ---- commands ------------------------------------------------------------------------------------------------


def test_commands_say_what_differs_from_the_usual(results: Results) -> None:
    nodes = [run for run in results.runs if run.row.nodes == 2]
    assert commands.of(nodes) == (
        "instainfer simulate hour8.csv --keep-alive pagurus --nodes 2 --world containers"
        " --policies tyche,hazard --budgets 2",
    )
    live = [run for run in results.runs if run.command == "replay"]
    assert commands.of(live) == ("instainfer replay hour8.csv --speed 10.0 --url http://127.0.0.1:3233",)


@pytest.mark.parametrize("verb", ["simulate", "replay"])
def test_commands_know_the_options_of_their_verb(verb: str) -> None:
    group: Any = typer.main.get_command(app)
    there = {option for parameter in group.commands[verb].params for option in parameter.opts}
    settings = commands._defaults(verb)
    assert len(settings) > 5
    assert {commands.SPELLED.get(key, "--" + key.replace("_", "-")) for key in settings} <= there


def test_commands_quote_what_a_shell_would_read(tmp_path: Path) -> None:
    rows = [row(trace=name) for name in ("-x.csv", "$(touch x).csv")]
    lines = [commands.of([run])[0] for run in read([sample.write(tmp_path, rows)]).runs]
    assert [line.partition(" --")[0] for line in lines] == [
        "instainfer simulate ./-x.csv",
        "instainfer simulate '$(touch x).csv'",
    ]


# ---- writers -------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(written: Written) -> None:
    text = written.html.read_text("utf-8")
    page = Page(text)
    assert "default-src 'none'" in text
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object", "base")]
    for _, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "xlink:href"):
                assert value.startswith("#") or ("download" in attributes and value.startswith("data:text/csv"))
    assert "url(http" not in text and "@import" not in text


def test_every_figure_has_words_data_and_a_command(written: Written, made: dict[str, Section]) -> None:
    page = Page(written.html.read_text("utf-8"))
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawn) == written.figures == len(list((written.html.parent / "figures").iterdir()))
    words = {element.attrib["id"]: element.text or "" for element in _svg_words(written.html)}
    for one in drawn:
        assert one["role"] == "img" and words[one["aria-labelledby"]] and len(words[one["aria-describedby"]]) > 40
    files = {one["download"]: one["href"] for tag, one in page.tags if tag == "a" and "download" in one}
    for section in made.values():
        for at, figure in enumerate(section.figures, 1):
            assert figure.table.rows and figure.commands, (section.title, figure.title)
            text = unquote(files.pop(f"{section.slug}-{at}.csv").partition(",")[2])
            assert text == figure.table.csv
            header, *rows = csv.reader(text.splitlines())
            assert header == figure.table.headers and len(rows) == len(figure.table.rows)
    assert not files


def _svg_words(page: Path) -> list[ElementTree.Element]:
    found = re.findall(r"<svg.*?</svg>", page.read_text("utf-8"), re.DOTALL)
    every = [element for svg in found for element in ElementTree.fromstring(svg).iter()]
    return [element for element in every if element.tag.rpartition("}")[2] in ("title", "desc")]


def test_numbers_of_a_file_are_whole_and_names_are_no_formulas() -> None:
    table = Table((("name", TEXT), ("saved", SHARE)), (("=1+1", 0.98765), ("@x, y", None), ("-", 1.0)))
    assert table.csv == "name,saved\n'=1+1,0.98765\n\"'@x, y\",\n'-,1.0\n"


def test_the_page_is_sound(written: Written) -> None:
    page = Page(written.html.read_text("utf-8"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [one["href"] for tag, one in page.tags if tag == "a" and "download" not in one]
    assert len(links) > 10 and all(link[1:] in ids for link in links)
    used = [attributes["xlink:href"] for tag, attributes in page.tags if "xlink:href" in attributes]
    assert used and all(one[1:] in ids for one in used)
    regions = [attributes for tag, attributes in page.tags if attributes.get("role") == "region"]
    assert regions and all(one["tabindex"] == "0" and one["aria-label"] for one in regions)


def test_figures_beside_markdown_are_files_that_stand_alone(written: Written) -> None:
    text = written.markdown.read_text("utf-8")
    named = re.findall(r"\]\((figures/[\w-]+\.svg)\)", text)
    assert len(named) == written.figures
    for name in named:
        svg = (written.markdown.parent / name).read_text("utf-8")
        ElementTree.fromstring(svg)
        assert "var(--" not in svg


def test_markdown_has_the_tables_of_the_page(written: Written, made: dict[str, Section]) -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(written.markdown.read_text("utf-8"))
    shown = sum(
        len(section.figures) + sum(one.table is not None for one in section.published) for section in made.values()
    )
    assert sum(token.type == "table_open" for token in tokens) == shown


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(everything: list[Path], written: Written, tmp_path: Path) -> None:
    again = write(everything, tmp_path)
    assert again.html.read_bytes() == written.html.read_bytes()
    assert again.markdown.read_bytes() == written.markdown.read_bytes()
    for file in (tmp_path / "figures").iterdir():
        assert file.read_bytes() == (written.html.parent / "figures" / file.name).read_bytes()


# ---- hostile names -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Every name a hostile one, in every place that one can stand."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = []
    for at, name in enumerate(HOSTILE):
        for budget in (0.1, 0.4):
            one = row(trace=HOSTILE[0], policy=name, predictor=HOSTILE[at - 1], keep_alive=HOSTILE[at - 2])
            rows.append(one | {"world": HOSTILE[2], "budget_fraction": budget, "harmed_fraction": 0.1})
            rows.append({**rows[-1], "policy": f"tyche(p_load={at / 10},{name})"})
    sample.write(folder / "a", rows)
    for number, one in enumerate(rows):
        sample.detail(folder / "a", number, one, {"profiles": HOSTILE[4]}, **sample.made_up(one, HOSTILE))
    sample.write(folder / "b", [{**rows[0], "errors": 1}], command="replay")
    bench = {"version": 1, "command": f"bench {HOSTILE[0]}", "machine": {HOSTILE[1]: HOSTILE[2]}, "rows": []}
    bench["rows"] = [{name: name for name in HOSTILE} | {"x_ms": 1.0}]
    (folder / "x.json").write_text(json.dumps(bench), encoding="utf-8")
    load = {"version": 1, "command": "bench load", "rows": [{"model": n, "mode": n, "e2e_ms": 2} for n in HOSTILE]}
    (folder / "<b>.json").write_text(json.dumps(load), encoding="utf-8")
    return write([folder / "a", folder / "b", folder / "x.json", folder / "<b>.json"], folder / "out")


def test_names_are_text_in_the_page(hostile: Written) -> None:
    page = Page(hostile.html.read_text("utf-8"))
    ours = {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "a",
            "header",
            "h1",
            "h2",
            "h3",
            "dl",
            "div",
            "dt",
            "dd",
        ),
        *("nav", "ol", "ul", "li", "main", "section", "p", "figure", "figcaption", "details", "summary", "table"),
        *("thead", "tbody", "tr", "th", "td", "pre", "code", "aside"),
        *("svg", "g", "defs", "path", "use", "text", "clippath", "rect", "pattern", "tspan", "desc"),
    }
    assert {tag for tag, _ in page.tags} <= ours
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on") or key == 'x"']
    assert "<script>alert(1)</script>" in page.text  # shown as it is
    assert "\x1b" not in page.text and "\u202e" not in page.text


def test_names_are_text_in_figures(hostile: Written) -> None:
    files = list((hostile.html.parent / "figures").iterdir())
    assert files
    for file in files:
        tags = {
            element.tag.rpartition("}")[2] for element in ElementTree.fromstring(file.read_text("utf-8")).iter()
        }
        drawn = {"svg", "g", "defs", "path", "use", "text", "clipPath", "rect", "pattern", "tspan"}
        assert tags <= drawn | {"title", "desc"}


def test_names_are_text_in_markdown(hostile: Written) -> None:
    text = hostile.markdown.read_text("utf-8")
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    inside = [child for token in tokens for child in token.children or []]
    assert not [token for token in (*tokens, *inside) if "html" in token.type]
    assert {token.attrs["src"] for token in inside if token.type == "image"} == {
        f"figures/{file.name}" for file in (hostile.markdown.parent / "figures").iterdir()
    }
    assert not [token for token in inside if token.type in ("link_open", "code_inline", "s_open")]
    assert not [token for token in tokens if token.type == "inline" and token.content.startswith("heading")]
    tables = [token for token in tokens if token.type in ("th_open", "tr_open")]
    assert tables
    assert all(len(line) - len(line.lstrip("#")) <= 3 for line in text.splitlines())


@pytest.mark.parametrize(
    "written_as",
    [
        *HOSTILE,
        "1. a",
        "12) a",
        "- a",
        "+ a",
        "# a",
        "> a",
        "=",
        "---",
        "***",
        "~~~",
        "&lt;b&gt;",
        "<b>",
        "http://evil.example",
        "a\\",
        "[a]: /b",
        "![a",
        "a_b_c",
        "$x$",
    ],
)
def test_text_is_read_in_markdown_as_it_was(written_as: str) -> None:
    said = plain(written_as)
    parser = MarkdownIt("gfm-like", {"linkify": False})
    inline, *others = [token for token in parser.parse(markdown.text(said)) if token.type == "inline"]
    assert not others
    assert "".join(child.content for child in inline.children or []) == said
    row = parser.parse(f"| {markdown.text(said)} | b |\n| --- | --- |\n")
    assert [token.content != "" for token in row if token.type == "inline"] == [True, True]


def test_tags_escape_all_but_markup() -> None:
    inside = html.tag("b", "<i>", id='"')
    assert html.tag("p", inside, "&") == '<p><b id="&quot;">&lt;i&gt;</b>&amp;</p>'


def test_what_cannot_be_seen_is_shown() -> None:
    assert plain("a\x00b\u202ec\ud800") == "a\ufffdb\ufffdc\ufffd"
    assert len(plain("x" * 10_000)) == 200


# ---- what cannot be read -------------------------------------------------------------------------------------


def damaged(folder: Path, damage: Callable[[dict[str, Any]], object], file: str = "results.json") -> Path:
    sample.write(folder, [row()])
    sample.detail(folder, 0, row(), {})
    document = json.loads((folder / file).read_text("utf-8"))
    damage(document)
    (folder / file).write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("damage", "file", "said"),
    [
        (lambda d: d.update(version=2), "results.json", "is of version 2"),
        (lambda d: d.pop("rows"), "results.json", "no file of results"),
        (lambda d: d.pop("command"), "results.json", "missing required field `command`"),
        (lambda d: d.update(rows={}), "results.json", "Expected `array`"),
        (lambda d: d["rows"][0].pop("policy"), "results.json", "row 1 is not as it should be: Object missing"),
        (lambda d: d["rows"][0].update(saved_fraction="x"), "results.json", "Expected `float | null`"),
        (lambda d: d.update(rows=[]), "results.json", "there is no result in"),
        (lambda d: d.update(version=2), "runs/0.json", "is of version 2"),
        (lambda d: d.update(cdf={"e2e_ms": [1.0]}), "runs/0.json", "1 percentiles, not 101"),
        (lambda d: d["timeline"][3].pop("start"), "runs/0.json", "missing required field `start`"),
    ],
)
def test_malformed_results_say_which_file_and_what_to_do(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], file: str, said: str
) -> None:
    folder = damaged(tmp_path / "r", damage, file)
    with pytest.raises(BadInput) as caught:
        read([folder])
    assert said in caught.value.message and str(folder / file) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "{", '{"version": 1, "rows": [NaN]}', "\xff", "[" * 100_000])
def test_files_that_are_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=r"results\.json is not JSON"):
        read([tmp_path])


def test_folders_that_hold_no_results(tmp_path: Path) -> None:
    (tmp_path / "profiles.json").write_text("[]", encoding="utf-8")
    for path, said in ((tmp_path, "has no results.json"), (tmp_path / "no", "is not there")):
        with pytest.raises(BadInput, match=said):
            read([path])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BadInput, match="cannot be written"):
        write([sample.write(tmp_path / "r", [row()])], tmp_path / "file")


# ---- small parts ---------------------------------------------------------------------------------------------


def test_specs_of_policies() -> None:
    assert spec_of("tyche(p_load=0.1, p_offload=0.9)") == ("tyche", {"p_load": 0.1, "p_offload": 0.9})
    assert spec_of("tyche(<b>)") == ("tyche(<b>)", {})
    assert without(spec_of("tyche(p_load=0.1,p_offload=0.9)"), "p_load") == "tyche(p_offload=0.9)"
    assert without(spec_of("tyche"), "p_load") == "tyche"


def test_published_systems_are_those_of_policies_that_there_are() -> None:
    for mode, keep_alive, _ in published._LIKE:
        assert mode in registry.MODES and keep_alive in registry.KEEP_ALIVES
    assert set(published.ABLATION) <= set(registry.MODES)


# ---- command line --------------------------------------------------------------------------------------------


def run(*line: str) -> Result:
    return CliRunner().invoke(app, ["report", *line])


def test_the_verb_writes_beside_the_results_or_where_it_is_told(tmp_path: Path) -> None:
    folder = sample.write(tmp_path / "r", [row(), row(policy="gdsf")])
    result = run(str(folder))
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(folder / "report.html"), str(folder / "report.md")]
    told = json.loads(run(str(folder), "-o", str(tmp_path / "new" / "out"), "--json").stdout)
    assert told == {
        "html": str(tmp_path / "new" / "out" / "report.html"),
        "markdown": str(tmp_path / "new" / "out" / "report.md"),
        "figures": 1,
    }
    assert Path(told["html"]).is_file() and Path(told["markdown"]).is_file()


def test_the_verb_fails_with_a_hint(tmp_path: Path) -> None:
    result = run(str(tmp_path))
    assert result.exit_code == 1
    assert "has no results.json" in result.stderr and "hint:" in result.stderr
