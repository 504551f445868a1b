"""The tables of docs/results: one row of each is made from scratch, and all rows are there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from instainfer.report import policies, remake, tables
from instainfer.report.reading import read

RESULTS = Path(__file__).parents[2] / "docs" / "results"
#: Public traces are not part of this project: where a folder has them, tables of them are checked too.
FOLDERS = [
    RESULTS / remake.RECIPES,
    Path(os.environ.get("INSTAINFER_TRACES", RESULTS.parents[2] / "shared" / "traces")),
]
MADE = [name for name in tables.TABLES if (RESULTS / name).exists()]


def committed(name: str) -> list[dict[str, Any]]:
    document = json.loads((RESULTS / name / "results.json").read_bytes())
    found: list[dict[str, Any]] = document["rows"]
    assert len(document["details"]) == len(found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_a_row_made_from_scratch_is_the_committed_one(name: str) -> None:
    """Every key is decided by the program and the trace alone. If policies were changed on purpose, make the table
    again: the command is in docs/results/README.md."""
    pytest.importorskip("polars")
    table = tables.TABLES[name]
    if not any((folder / table.check.trace).exists() for folder in FOLDERS):
        pytest.skip(f"{table.check.trace} is not here: set INSTAINFER_TRACES")
    row = remake.row_of(table, table.check, FOLDERS)
    assert row in committed(name)


@pytest.mark.parametrize("name", MADE)
def test_what_is_committed_is_all_of_the_table(name: str) -> None:
    table = tables.TABLES[name]
    rows = committed(name)
    wanted = [
        (Path(trace).name, budget, part.settings.nodes)
        for part in table.parts
        for trace in part.traces
        for budget in part.budgets
        for _ in part.policies
    ]
    assert [(row["trace"], row["budget_fraction"], row["nodes"]) for row in rows] == wanted
    assert len(read([RESULTS / name / "results.json"]).runs) == len(rows)
    checked = table.parts[table.check.part]
    assert table.check.trace in checked.traces and table.check.policy in checked.policies
    assert table.check.budget in checked.budgets
    page = (RESULTS / name / "README.md").read_text("utf-8")
    assert page.startswith("# ")
    for figure in (RESULTS / name / "figures").glob("*.svg"):
        assert f"figures/{figure.name}" in page
    index = (RESULTS / "README.md").read_text("utf-8")
    assert f"({name}/README.md)" in index


def test_no_result_is_large() -> None:
    assert all(file.stat().st_size < 300_000 for file in RESULTS.rglob("*") if file.is_file())


def test_a_table_is_made_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "some.json").write_text('{"synthetic": "timers", "functions": 3, "hours": 1}')
    part = tables.Part(("some.json",), ("lru", "hazard"), (0.4, 0.7))
    made = tables.Table("Some", (policies.savings,), (part,), tables.Check("some.json", "lru", 0.4))
    monkeypatch.setitem(tables.TABLES, "some", made)
    assert remake.main(["some", "-o", str(tmp_path)]) == 0
    first = (tmp_path / "some" / "results.json").read_bytes()
    rows = json.loads(first)["rows"]
    assert [(row["policy"], row["budget_fraction"]) for row in rows] == [
        ("lru", 0.4), ("hazard", 0.4), ("lru", 0.7), ("hazard", 0.7)
    ]  # fmt: skip
    assert remake.row_of(made, made.check, [tmp_path / "traces"]) == rows[0]
    page = (tmp_path / "some" / "README.md").read_text("utf-8")
    assert page.startswith("# Some\n") and "Savings by policy" in page and "At a glance" not in page
    assert len(list((tmp_path / "some" / "figures").iterdir())) == 1
    assert remake.main(["some", "-o", str(tmp_path), "--draw"]) == 0
    assert (tmp_path / "some" / "results.json").read_bytes() == first
    assert remake.main(["azure-2021", "-o", str(tmp_path)]) == 1  # the trace is in none of the folders
