"""bench cluster: its rows, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instainfer import bench
from instainfer.bench import cluster, nodes
from instainfer.bench.cluster import Size, decision, hit_rate
from instainfer.bench.report import Report


@pytest.mark.slow
def test_rows_as_others_expect_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "QUICK", (Size(40, 6, 3, 30.0, 30.0),))
    monkeypatch.setattr(cluster, "FUNCTIONS", 30)
    monkeypatch.setattr(cluster, "LENGTH_S", 2400.0)
    monkeypatch.setattr(nodes, "measure", lambda report, quick: None)
    bench.run("cluster", tmp_path / "c.json", quick=True)
    document = json.loads((tmp_path / "c.json").read_text("utf-8"))
    assert document["version"] == 1 and document["command"] == "bench cluster"
    found = {row["name"]: row for row in document["rows"]}
    assert found["decision_40x6x3"]["unit"] == "ms" and found["decision_40x6x3"]["n"] > 10
    assert found["hit_rate_4"]["unit"] == "fraction"
    assert 0.0 < found["hit_rate_4_instainfer"]["value"] < found["hit_rate_4"]["value"] <= 1.0
    assert {f"scheduling_4{told}" for told in ("", "_tyche", "_instainfer")} < set(found)
    assert [size.name for size in cluster.DECISIONS] == ["decision_1000x100x16", "decision_10000x1000x64"]


@pytest.mark.slow
def test_what_real_nodes_add_and_how_soon_a_lost_one_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "CALLS", 5)
    with Report("bench cluster") as report:
        nodes.measure(report, quick=True)
    found = {row["name"]: row for row in report.rows}
    hop = found.pop("remote_hop")
    assert (hop["unit"], hop["n"]) == ("ms", 10)
    assert hop["value"] == hop["remote_p50_ms"] - hop["embedded_p50_ms"]
    for lost in found.values():  # where functions may share a container
        assert lost["name"] == "node_loss_recovery" and lost["unit"] == "s"
        assert lost["n"] == 1 and lost["functions"] >= 1 and lost["value"] > 0.0


def test_the_same_seed_decides_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FUNCTIONS", 20)
    monkeypatch.setattr(cluster, "WARM_UP_S", 60.0)
    first, second = hit_rate("hazard", 2, 600.0), hit_rate("hazard", 2, 600.0)
    assert first[0] == second[0] and len(first[1]) == len(second[1])
    assert len(decision(Size(40, 6, 3, 30.0, 30.0))) > 10
