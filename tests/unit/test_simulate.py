"""simulate and profile on the command line, and the rows they write."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from instainfer.cli import app
from instainfer.cli.simulate import Missed
from instainfer.errors import BadSettings
from instainfer.lab import simulate as lab
from instainfer.lab.costs import read_profiles
from instainfer.policies import registry
from instainfer.sim.pool import OnMiss

from .stub_server import FUNCTION, Stub, serving

#: As other programs expect them.
KEYS = (
    *("trace", "world", "policy", "predictor", "keep_alive", "nodes", "budget_fraction", "budget_mb", "functions"),
    *("invocations", "saved_fraction", "preloaded_fraction", "warm_fraction", "cold_fraction"),
    *("warming_loading_mean_ms", "e2e_mean_ms", "e2e_p99_ms", "memory_gb_s", "wasted_gb_s", "seed"),
)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight functions for an hour; half of them timers."""
    pytest.importorskip("polars")
    draw = random.Random(1)
    calls: list[tuple[int, str]] = []
    for function in range(8):
        at = draw.random() * 300.0
        while at < 3600.0:
            calls.append((int(at * 1000), f"f{function}"))
            at += 300.0 if function % 2 else draw.expovariate(1 / 120.0)
    file = tmp_path_factory.mktemp("traces") / "hour.csv"
    file.write_text("t_ms,func\n" + "".join(f"{at},{name}\n" for at, name in sorted(calls)), encoding="utf-8")
    return file


def run(*line: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *line])


def rows(folder: Path) -> list[dict[str, Any]]:
    document = json.loads((folder / "results.json").read_text("utf-8"))
    assert document["version"] == 1 and document["command"] == "simulate" and document["machine"]["cpus"]
    found: list[dict[str, Any]] = document["rows"]
    return found


def test_a_row_for_every_policy_and_budget(trace: Path, tmp_path: Path) -> None:
    line = ["--policies", "lru,hazard,hazard:poisson", "--budgets", "20%,0.5", "-o", str(tmp_path / "new" / "out")]
    result = run(str(trace), *line)
    assert result.exit_code == 0, result.output
    found = rows(tmp_path / "new" / "out")
    assert [(row["policy"], row["predictor"], row["budget_fraction"]) for row in found] == [
        (policy, predictor, budget)
        for budget in (0.2, 0.5)
        for policy, predictor in (("lru", ""), ("hazard", "hazard"), ("hazard", "poisson"))
    ]
    for row in found:
        assert set(KEYS) <= set(row)
        assert row["world"] == "pool" and row["trace"] == "hour.csv" and row["functions"] == 8
        assert row["budget_mb"] == pytest.approx(row["budget_fraction"] * 8792.0)
        assert 0.0 <= row["saved_fraction"] <= 1.0
        assert row["preloaded_fraction"] + row["warm_fraction"] + row["cold_fraction"] == pytest.approx(1.0)
    table = result.stdout.splitlines()
    assert len(table) == 7 and table[0].startswith("POLICY")
    assert table[3].startswith("hazard:poisson")
    assert "6/6" in result.stderr


def test_containers_have_keep_alive_and_nodes(trace: Path, tmp_path: Path) -> None:
    line = ["--world", "containers", "--policies", "none,hazard", "--budgets", "0.6", "--nodes", "2"]
    result = run(str(trace), *line, "--keep-alive", "fixed", "--keep-alive-seconds", "2m", "-o", str(tmp_path))
    assert result.exit_code == 0, result.output
    none, hazard = rows(tmp_path)
    assert none["keep_alive"] == "fixed" and none["nodes"] == 2 and none["world"] == "containers"
    assert none["preloaded_fraction"] == 0.0
    assert hazard["warming_loading_mean_ms"] > 0.0 and hazard["e2e_p99_ms"] > hazard["e2e_mean_ms"] > 200.0
    assert 0.0 < hazard["memory_gb_s"] <= hazard["budget_mb"] / 1e3 * 0.75 * 3600.0


def test_json_prints_the_document(trace: Path) -> None:
    result = run(str(trace), "--policies", "lru", "--budgets", "0.5", "--json")
    assert [row["policy"] for row in json.loads(result.stdout)["rows"]] == ["lru"]


def test_options_of_the_trace_are_taken(trace: Path, tmp_path: Path) -> None:
    def calls(*line: str) -> int:
        assert run(str(trace), "--policies", "lru", "--budgets", "1", "-o", str(tmp_path), *line).exit_code == 0
        return int(rows(tmp_path)[0]["invocations"])

    every = calls("--warmup", "0")
    assert calls("--warmup", "0.5") < 0.7 * every
    assert calls("--warmup", "0", "--minutes", "0:20") < 0.5 * every
    assert calls("--warmup", "0", "--cap-per-minute", "1") < every
    assert calls("--warmup", "0", "--min-calls", "20") < every


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--policies", "lru,luck"], "lru, gdsf, " + ", ".join(registry.MODES)),
        (["--policies", "hazard:luck"], ", ".join(registry.PREDICTORS)),
        (["--policies", "lru", "--world", "containers"], "--keep-alive"),
        (["--world", "containers", "--keep-alive", "luck"], ", ".join(registry.KEEP_ALIVES)),
        (["--policies", "lru:poisson"], "write lru"),
        (["--budgets", "much"], "5%"),
        (["--budgets", "0"], "share"),
        (["--warmup", "1"], "0.25"),
        (["--step", "often"], "--step"),
        (["--nodes", "2"], "--world containers"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_there_is(line: list[str], said: str) -> None:
    result = run("/no/such/trace.csv", *line)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_trace_that_is_none_fails(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    assert run(str(tmp_path / "missing.csv")).exit_code == 1
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    assert run(str(tmp_path / "other.csv")).exit_code == 1


def test_a_container_that_no_node_can_hold_is_said(trace: Path) -> None:
    result = run(str(trace), "--world", "containers", "--budgets", "0.1", "--policies", "none")
    assert result.exit_code == 1
    assert "--headroom" in result.stderr


def test_choices_are_the_worlds() -> None:
    """Repeated on the command line, which must not import the laboratory to start."""
    assert [choice.value for choice in Missed] == [choice.value for choice in OnMiss]


def test_a_policy_is_named_as_one_asks_for_it() -> None:
    for text in ("lru", "hazard", "hazard:poisson", "tyche", "none"):
        policy = lab.policy_of(text, "pool")
        assert lab.label({"policy": policy.mode, "predictor": policy.predictor}) == text
    with pytest.raises(BadSettings):
        lab.policy_of("gdsf", "containers")


@pytest.mark.slow
def test_the_same_bytes_whatever_the_processes_and_the_hash_seed(trace: Path, tmp_path: Path) -> None:
    found = []
    for seed, jobs in (("0", "1"), ("1", "2"), ("2", "1")):
        for world, extra in (("pool", "lru,gdsf,hazard,tyche"), ("containers", "hazard,tyche,none")):
            out = tmp_path / f"{world}{seed}"
            line = [
                sys.executable,
                "-m",
                "instainfer.cli",
                "simulate",
                str(trace),
                "--world",
                world,
                "-o",
                str(out),
            ]
            subprocess.run(
                [*line, "--policies", extra, "--budgets", "0.4,0.6", "--jobs", jobs],
                check=True,
                capture_output=True,
                env={**os.environ, "PYTHONHASHSEED": seed},
            )
            found.append((world, (out / "results.json").read_bytes()))
    assert len(found) == 6 and len(set(found)) == 2


# profile


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with serving(Stub()) as running:
        yield running


def test_a_servers_profiles_are_read_by_the_simulator(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INSTAINFER_URL", stub.url)
    file = tmp_path / "profiles.json"
    result = CliRunner().invoke(app, ["profile", "export", "-o", str(file)])
    assert result.exit_code == 0, result.output
    assert str(file) in result.stdout
    printed = json.loads(CliRunner().invoke(app, ["profile", "export"]).stdout)
    assert printed == json.loads(file.read_text("utf-8"))
    first = printed[0]
    profile = FUNCTION["profile"]
    assert first["function"] == "default/magika"
    assert first["loaded_mb"] == first["memory_mb"] == profile["loaded_mb"]
    assert first["inference_ms"] == profile["warm_ms"]
    costs = read_profiles(file)[0].costs()
    assert costs.import_s == pytest.approx(profile["import_ms"] / 1e3)
    assert costs.warmup_s == pytest.approx(profile["warmup_ms"] / 1e3)
    assert costs.loaded_bytes == round(profile["loaded_mb"] * 1e6)


def test_profiles_of_a_folder_that_is_not_there(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTAINFER_URL", stub.url)
    result = CliRunner().invoke(app, ["profile", "export", "-o", "/no/such/folder/x.json"])
    assert result.exit_code == 1
    assert "name another file" in result.stderr
