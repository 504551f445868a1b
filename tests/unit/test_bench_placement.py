"""bench placement: its rows, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instainfer import bench
from instainfer.bench import placement


def test_a_quick_run_writes_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SIZES", ((200, 20), (400, 40)))
    bench.run("placement", tmp_path / "p.json", quick=True)
    document = json.loads((tmp_path / "p.json").read_bytes())
    assert document["version"] == 1 and document["command"] == "bench placement"
    rows = document["rows"]
    assert len(rows) == 3 * 2 * 2 * 2
    assert [(row["name"], row["placement"]) for row in rows[:2]] == [
        ("models_0.25_empty_200x20", "greedy"), ("models_0.25_empty_200x20", "exchange"),
    ]  # fmt: skip
    for row in rows:
        assert (row["n"], row["events"]) == (2, 4)
        assert 0.0 <= row["loss_least_fraction"] <= row["loss_p50_fraction"] <= row["loss_most_fraction"] < 0.2
        assert 0.0 < row["first_least_ms"] <= row["first_most_ms"] and row["event_p50_ms"] > 0.0
    for plain, exchanged in zip(rows[::2], rows[1::2], strict=True):
        assert exchanged["loss_p50_fraction"] <= plain["loss_p50_fraction"]
