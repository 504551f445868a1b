"""replay against a real server: what it writes is what the server says of the same calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from instainfer.cli import app
from instainfer.lab.costs import read_profiles

from .server_helpers import ECHO, Server

FAILS = """
def handler(event):
    raise ValueError("never")
"""
CALLS = 12
#: Of a function's record, what the answer says too.
SAME = ("namespace", "function", "start")


def trace(folder: Path, *names: str) -> Path:
    """Each is called every 60 ms, twelve times."""
    pytest.importorskip("polars")
    file = folder / "trace.csv"
    rows = (f"{60 * call},{name}\n" for call in range(CALLS) for name in names)
    file.write_text("t_ms,func\n" + "".join(rows), encoding="utf-8")
    return file


def run(*line: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*line, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_server_and_the_replay_say_the_same(server: Server, ns: str, tmp_path: Path) -> None:
    server.deploy(ns, "first", ECHO)
    server.deploy(ns, "second", ECHO)
    at = "--url", server.url, "--namespace", ns
    out = tmp_path / "live"
    file = trace(tmp_path, "second", "other")  # one by its name, one in its turn
    document = run("replay", str(file), *at, "--warmup", "0", "--speed", "2", "-o", str(out))
    (row,) = document["rows"]
    assert (row["functions"], row["errors"], row["rejected"], row["unsent"]) == (1, 0, 0, 0)
    assert row["invocations"] == 2 * CALLS
    shares = ("warm", "preloaded", "cold", "attached", "partial")
    assert sum(row[f"{share}_fraction"] for share in shares) == pytest.approx(1.0)
    assert row["policy"] == server.client.status()["policy"]["mode"]
    assert row["warming_loading_mean_ms"] < row["e2e_mean_ms"]

    lines = [json.loads(line) for line in (out / "calls.jsonl").read_text("utf-8").splitlines()]
    assert [line["trace_function"] for line in lines].count("other") == CALLS
    records = {record["id"]: record for record in server.client.activations(namespace=ns, limit=100)}
    assert {line["id"] for line in lines} == set(records)
    for line in lines:
        record = records[line["id"]]
        assert {key: line[key] for key in SAME} == {key: record[key] for key in SAME}
        for phase, taken in line["phases"].items():
            assert taken == pytest.approx(record["phases"][phase], abs=0.002)
        assert line["e2e_ms"] > sum(line["phases"].values())
        assert abs(line["wall"] - record["wall"]) < 5.0


def test_what_fails_is_no_invocation(server: Server, ns: str, tmp_path: Path) -> None:
    server.deploy(ns, "works", ECHO)
    server.deploy(ns, "breaks", FAILS)
    file = trace(tmp_path, "works", "breaks")
    (row,) = run("replay", str(file), "--url", server.url, "-n", ns, "--warmup", "0", "--speed", "4")["rows"]
    assert (row["invocations"], row["errors"]) == (CALLS, CALLS)


def test_the_simulator_reads_what_was_sent(server: Server, ns: str, tmp_path: Path) -> None:
    """The same calls when they went out, of the functions that were called, at their own costs."""
    server.deploy(ns, "works", ECHO)
    at = "--url", server.url, "--namespace", ns
    out, costs = tmp_path / "live", tmp_path / "costs.json"
    run("replay", str(trace(tmp_path, "x", "y")), *at, "--warmup", "0", "--speed", "4", "-o", str(out))
    run("profile", "export", *at, "-o", str(costs))
    assert [one.function for one in read_profiles(costs)] == [f"{ns}/works"]
    line = ["--profiles", str(costs), "--world", "containers", "--policies", "hazard", "--budgets", "50"]
    (row,) = run("simulate", str(out / "calls.jsonl"), *line, "--warmup", "0", "--trace-durations")["rows"]
    assert (row["functions"], row["invocations"], row["rejected"]) == (1, 2 * CALLS, 0)


def test_over_the_admin_socket(server: Server, ns: str, tmp_path: Path) -> None:
    server.deploy(ns, "works", ECHO)
    file = trace(tmp_path, "works")
    line = ["--data-dir", str(server.data), "-n", ns, "--warmup", "0", "--speed", "4"]
    assert run("replay", str(file), *line)["rows"][0]["invocations"] == CALLS
