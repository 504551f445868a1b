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
from instainfer.cli.simulate import Missed, _measured
from instainfer.errors import BadSettings
from instainfer.lab import simulate as lab
from instainfer.lab.bounding import BOUNDS
from instainfer.lab.costs import read_profiles
from instainfer.policies import registry
from instainfer.sim import alone
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


def test_bounds_are_rows_among_the_policies(tmp_path: Path) -> None:
    recipe = tmp_path / "mixed.json"
    recipe.write_text('{"synthetic": "mixed", "functions": 8, "hours": 3, "seed": 1}')
    names = ["lru", "hazard", "KEEP", "JIT", "HAZARD"]
    result = run(str(recipe), "--policies", ",".join(names), "--budgets", "0.3", "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    found = dict(zip(names, rows(tmp_path / "out"), strict=True))
    assert [row["policy"] for row in found.values()] == names
    saved = {name: row["saved_fraction"] for name, row in found.items()}
    assert 0.0 < saved["lru"] <= saved["KEEP"] <= saved["JIT"] <= 1.0
    assert 0.0 < saved["HAZARD"] <= saved["JIT"]
    for name in ("KEEP", "JIT", "HAZARD"):
        row = found[name]
        assert set(found["lru"]) <= set(row)
        assert row["invocations"] == found["lru"]["invocations"]
        assert 0.0 <= row["gap_fraction"] < 0.2 and row["step_ms"] >= 0.0
        assert row["preloaded_fraction"] is None and row["e2e_mean_ms"] is None
    assert result.stdout.splitlines()[3].split()[-5:] == ["-"] * 5
    again = run(str(recipe), "--policies", ",".join(names), "--budgets", "0.3", "-o", str(tmp_path / "out"))
    assert again.stderr.count("there already") == len(names)


def test_bounds_say_where_they_do_not_hold(trace: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "timers.json"
    recipe.write_text('{"synthetic": "timers", "functions": 3, "hours": 1}')
    for line, said in (
        ((str(trace), "--policies", "HAZARD"), "hour.csv has none"),
        ((str(recipe), "--policies", "HAZARD", "--minutes", "0:30"), "whole trace"),
        ((str(recipe), "--policies", "KEEP", "--world", "containers"), "in the pool only"),
    ):
        result = run(*line, "--budgets", "0.5")
        assert result.exit_code == 2 and said in result.stderr
    profiles = tmp_path / "profiles.json"
    measured = {"function": "a", "import_ms": 100, "load_ms": 50, "memory_mb": 90, "inference_ms": 1}
    profiles.write_text(json.dumps([{**measured, "imported_mb": 30}]))
    result = run(str(recipe), "--policies", "KEEP", "--budgets", "0.5", "--profiles", str(profiles))
    assert result.exit_code == 1 and "libraries alone" in result.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--policies", "lru,luck"], ", ".join(dict.fromkeys(["lru", "gdsf", *registry.MODES, *BOUNDS]))),
        (["--policies", "lru,luck", "--world", "containers"], ", ".join(registry.MODES)),
        (["--policies", "tyche(p_lode=0.1)"], "p_load, p_offload"),
        (["--policies", "tyche(p_load=0.99)"], "in order"),
        (["--policies", "tyche(p_load=much)"], "tyche(p_load=0.1)"),
        (["--policies", "tyche:poisson(window=2.5)"], "whole number"),
        (["--policies", "none(x=1)"], "no settings"),
        (["--policies", "lru(x=1)"], "write lru"),
        (["--policies", "tyche("], "tyche(p_load=0.1)"),
        (["--policies", "hazard:luck"], ", ".join(registry.PREDICTORS)),
        (["--world", "containers", "--zygote-memory", "120%"], "50%"),
        (["--world", "containers", "--zygote-memory", "much"], "50%"),
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


def test_rows_that_are_left_out_are_said(trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "odd.csv"
    file.write_text(trace.read_text("utf-8") + "noon,f0\n", encoding="utf-8")
    result = run(str(file), "--policies", "lru", "--budgets", "0.5")
    assert result.exit_code == 0
    assert "1 of " in result.stderr and "'noon' in column 't_ms' is no number" in result.stderr


def test_a_trace_that_is_none_is_said_before_another_has_run(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("t_ms,func\n", encoding="utf-8")
    result = run(str(trace), str(tmp_path / "none.csv"), "--policies", "lru", "--budgets", "0.5")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no call in none.csv")


def test_an_option_of_the_other_world_is_said_to_have_no_effect(trace: Path) -> None:
    result = run(str(trace), "--policies", "lru", "--budgets", "0.5", "--keep-alive", "fixed")
    assert result.exit_code == 0
    assert result.stderr.startswith("--keep-alive: without effect")


def test_a_container_that_no_node_can_hold_is_said(trace: Path) -> None:
    result = run(str(trace), "--world", "containers", "--budgets", "0.1", "--policies", "none")
    assert result.exit_code == 1
    assert "--headroom" in result.stderr


def test_choices_are_the_worlds() -> None:
    """Repeated on the command line, which must not import the laboratory to start."""
    assert [choice.value for choice in Missed] == [choice.value for choice in OnMiss]


def test_a_policy_is_named_as_one_asks_for_it() -> None:
    for text in ("lru", "hazard", "hazard:poisson", "tyche", "none", "tyche(p_load=0.1,p_offload=0.9)"):
        for world in ("pool", "containers"):
            policy = lab.policy_of(text, world)
            assert lab.label({"policy": policy.mode, "predictor": policy.predictor}) == text
    policy = lab.policy_of(" tyche ( p_offload=.9, p_load=0.10 ) : poisson(window=20) ", "pool")
    assert policy == ("tyche(p_load=0.1,p_offload=0.9)", "poisson(window=20)")
    assert lab.policy_of("gdsf", "pool").predictor == ""
    assert lab.policy_of("gdsf", "containers").predictor == "frequency"
    mode, predictor = lab.made(policy)
    assert (mode.p_load, mode.p_offload, predictor.window) == (0.1, 0.9, 20)  # type: ignore[attr-defined] # of these


def test_zygotes_have_a_share_or_a_size() -> None:
    for text, found in (("50%", 500), ("0.25", 250), ("0", 0), ("300", 300), ("1KB", 1000), ("2GB", 1000)):
        assert lab.zygote_memory(lab.Settings(zygote_memory=text), 1000) == found
    for text in ("120%", "-1", "x", "nan"):
        with pytest.raises(BadSettings):
            lab.zygote_memory(lab.Settings(zygote_memory=text), 1000)


# files of single runs


def details(folder: Path) -> list[dict[str, Any]]:
    found = sorted((folder / "runs").iterdir(), key=lambda file: int(file.stem))
    return [json.loads(file.read_text("utf-8")) for file in found]


@pytest.mark.parametrize(
    "line", [["--policies", "lru,tyche"], ["--world", "containers", "--policies", "none,hazard", "--seed", "3"]]
)
def test_every_run_has_a_file(trace: Path, tmp_path: Path, line: list[str]) -> None:
    assert run(str(trace), *line, "--budgets", "0.6", "-o", str(tmp_path)).exit_code == 0
    found = details(tmp_path)
    assert [one["row"] for one in found] == rows(tmp_path)
    assert len({one["key"] for one in found}) == 2
    for one in found:
        assert one["version"] == 1 and one["settings"]["warmup"] == 0.25
        row, classes = one["row"], one["classes"]
        assert list(classes) == ["predictable", "normal", "bursty", "other"]
        assert sum(part["invocations"] for part in classes.values()) == row["invocations"] > 0
        assert classes["predictable"]["invocations"] > classes["bursty"]["invocations"] == 0
        for part in classes.values():
            spread = [name for name in part if name not in row]
            assert set(part) > {"saved_fraction", "memory_gb_s", "harmed_fraction"}
            assert len(spread) == (6 if part["invocations"] else 0)
            for least, _, most in zip(spread[::3], spread[1::3], spread[2::3], strict=True):
                assert least.endswith("_p10_ms") and most.endswith("_p90_ms") and part[least] <= part[most]
        for key in ("memory_gb_s", "wasted_gb_s"):
            assert sum(part[key] for part in classes.values()) == pytest.approx(row[key])
        e2e, waited = one["cdf"]["e2e_ms"], one["cdf"]["warming_loading_ms"]
        assert len(e2e) == len(waited) == 101 and sorted(e2e) == e2e and sorted(waited) == waited
        assert e2e[99] <= row["e2e_p99_ms"] <= e2e[100] and waited[0] >= 0.0
        calls = one["timeline"]
        assert len(calls) == min(400, row["invocations"])
        assert [call["arrived_s"] for call in calls] == sorted(call["arrived_s"] for call in calls)
        assert calls[0]["arrived_s"] >= 900.0 and calls[0]["function"].startswith("trace/f")
        for call in calls:
            parts = call["warming_ms"] + call["loading_ms"] + call["inference_ms"]
            assert -1e-6 <= call["e2e_ms"] - parts <= 60_000.0
            assert call["inference_ms"] == pytest.approx(200.0)
        cold = [call for call in calls if call["start"] == "cold"]
        assert cold and all(call["loading_ms"] > 100.0 for call in cold)
        if row["world"] == "containers":
            assert any(call["warming_ms"] == pytest.approx(300.0) for call in cold)


def test_a_second_start_reuses_what_is_there(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["--policies", "lru,hazard", "--budgets", "0.3,0.6", "-o", str(tmp_path)]
    assert run(str(trace), *line).exit_code == 0
    files = {file.name: file.read_bytes() for file in (tmp_path / "runs").iterdir()}
    results = (tmp_path / "results.json").read_bytes()
    (tmp_path / "runs" / "2.json").unlink()
    (tmp_path / "runs" / "1.json").write_text('{"version": 1, "key": ', encoding="utf-8")  # a half of one
    (tmp_path / "results.json").unlink()
    ran: list[lab.Case] = []
    simulate = lab.details

    def counted(settings: lab.Settings, case: lab.Case, *rest: Any) -> dict[str, Any]:
        ran.append(case)
        return simulate(settings, case, *rest)

    monkeypatch.setattr(lab, "details", counted)
    again = run(str(trace), *line)
    assert again.exit_code == 0 and again.stderr.count("there already") == 2
    assert [(case.policy, case.budget) for case in ran] == [("hazard", 0.3), ("lru", 0.6)]
    assert {file.name: file.read_bytes() for file in (tmp_path / "runs").iterdir()} == files
    assert (tmp_path / "results.json").read_bytes() == results
    ran.clear()
    more = ["--policies", "gdsf,hazard, lru", "--budgets", "0.6,0.3", "-o", str(tmp_path)]
    assert run(str(trace), *more).exit_code == 0
    assert [(case.policy, case.budget) for case in ran] == [("gdsf", 0.6), ("gdsf", 0.3)]
    assert [one["row"] for one in details(tmp_path)] == rows(tmp_path)
    ran.clear()
    assert run(str(trace), *more, "--warmup", "0.5").exit_code == 0  # another setting
    assert len(ran) == 6
    ran.clear()
    trace_too = tmp_path / trace.name
    trace_too.write_text(trace.read_text("utf-8") + "3599999,f0\n", encoding="utf-8")
    assert run(str(trace_too), *more, "--warmup", "0.5").exit_code == 0  # another trace of the same name
    assert len(ran) == 6


@pytest.mark.slow
def test_an_error_in_another_process_is_said(trace: Path, tmp_path: Path) -> None:
    line = ["--world", "containers", "--policies", "none", "--budgets", "0.6,0.1", "--jobs", "2"]
    result = run(str(trace), *line, "-o", str(tmp_path))
    assert result.exit_code == 1 and "--headroom" in result.stderr
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_the_same_bytes_whatever_the_processes_and_the_hash_seed(trace: Path, tmp_path: Path) -> None:
    found = []
    for seed, jobs in (("0", "1"), ("1", "2"), ("2", "1")):
        for world, extra in (("pool", "lru,gdsf,hazard,tyche"), ("containers", "hazard,tyche,gdsf,none")):
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
            files = sorted((out / "runs").iterdir())
            assert len(files) == 2 * len(extra.split(","))
            found.append((world, (out / "results.json").read_bytes(), *(file.read_bytes() for file in files)))
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


def test_libraries_and_clones_of_a_profile_are_exported() -> None:
    path = {"used": True, "reason": ""}
    profile = {**FUNCTION["profile"], "fork_ms": 11.0, "libraries_mb": 90.0, "clone_ms": 7.0}
    function = {**FUNCTION, "environment": "", "python": "/usr/bin/python3", "memory_mb": 512.0, "concurrency": 4}
    forked = _measured({**function, "profile": {**profile, "paths": {"zygote": path, "clone": path}}})
    assert forked["libraries"] == "default|/usr/bin/python3"
    assert (forked["fork_ms"], forked["clone_ms"], forked["limit_mb"], forked["concurrency"]) == (
        11.0,
        7.0,
        512.0,
        4,
    )
    apart = _measured({**function, "network": True, "profile": {**profile, "paths": {"zygote": path}}})
    assert apart["libraries"] == "default+network|/usr/bin/python3" and "clone_ms" not in apart
    plain = _measured(
        {**function, "profile": {**profile, "paths": {"zygote": {"used": False, "reason": "tasks"}}}}
    )
    assert "libraries" not in plain


def test_profiles_of_a_folder_that_is_not_there(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTAINFER_URL", stub.url)
    result = CliRunner().invoke(app, ["profile", "export", "-o", "/no/such/folder/x.json"])
    assert result.exit_code == 1
    assert "name another file" in result.stderr


def test_nodes_that_decide_alone_share_the_requests_and_nothing_else(trace: Path, tmp_path: Path) -> None:
    line = ["--world", "containers", "--policies", "tyche,instainfer", "--budgets", "3", "--warmup", "0"]
    found = []
    for nodes in (1, 4):
        assert run(str(trace), *line, "--nodes", str(nodes), "-o", str(tmp_path / f"{nodes}")).exit_code == 0
        found += rows(tmp_path / f"{nodes}")
    one, alone_one, four, alone_four = found
    assert len({row["invocations"] for row in found}) == 1 and not any(row["rejected"] for row in found)

    def rate(row: dict[str, Any]) -> float:
        return float(row["preloaded_fraction"] + row["warm_fraction"])

    assert rate(four) > rate(one) - 0.02
    assert rate(alone_four) < rate(alone_one) - 0.1  # each sees a quarter of the arrivals, and loads for itself
    assert alone_four["cold_fraction"] > alone_one["cold_fraction"]
    detail = json.loads(next((tmp_path / "4" / "runs").glob("1*.json")).read_text("utf-8"))
    arrived = [call["arrived_s"] for call in detail["timeline"]]
    assert arrived == sorted(arrived) and len(arrived) == min(400, alone_four["invocations"])


def test_every_request_goes_to_one_node(trace: Path) -> None:
    settings = lab.Settings(world="containers", nodes=3)
    work = lab.workload(settings, trace)
    shares = list(alone.dealt(work, 3, seed=7))
    assert sorted(number for share in shares for number in share.numbers) == list(range(len(work.times)))
    assert shares == list(alone.dealt(work, 3, seed=7)) != list(alone.dealt(work, 3, seed=8))
    for share in shares:
        assert list(share.work.times) == [work.times[number] for number in share.numbers]
        assert list(share.work.which) == [work.which[number] for number in share.numbers]
        assert len(work.times) / 6 < len(share.numbers) < len(work.times) / 2


@pytest.mark.parametrize("text", ["", ",", "abc", "-1", "0", "nan", "1e9", "200GB"])
def test_a_budget_that_is_none_says_what_one_is(trace: Path, text: str) -> None:
    result = run(str(trace), "--policies", "lru", "--budgets", text)
    assert result.exit_code == 2
    assert "budget" in result.stderr and "hint: write" in result.stderr
