"""Results to report on: rows of real small simulations, with details of the form that `runs/` has."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from instainfer.lab import simulate as lab

MACHINE = {"cpus": 2, "memory_mb": 8000.0, "kernel": "6.1", "python": "3.11"}


def write(folder: Path, rows: Sequence[dict[str, Any]], *, command: str = "simulate", version: int = 1) -> Path:
    """`results.json` of these rows. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"version": version, "command": command, "machine": MACHINE, "rows": list(rows)}
    (folder / "results.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def row(**other: Any) -> dict[str, Any]:
    """A row as the simulator writes it."""
    usual: dict[str, Any] = {"trace": "t.csv", "world": "pool", "policy": "lru", "predictor": "", "keep_alive": ""}
    usual |= {
        "nodes": 1,
        "budget_fraction": 0.1,
        "budget_mb": 800.0,
        "functions": 8,
        "invocations": 100,
        "seed": 0,
    }
    usual |= {"saved_fraction": 0.5, "preloaded_fraction": 0.0, "warm_fraction": 0.5, "cold_fraction": 0.5}
    usual |= {"warming_loading_mean_ms": 400.0, "e2e_mean_ms": 600.0, "e2e_p99_ms": 2000.0}
    return usual | {"memory_gb_s": 100.0, "wasted_gb_s": 0.0} | other


def detail(folder: Path, number: int, row: dict[str, Any], settings: dict[str, Any], **more: Any) -> None:
    """`runs/<number>.json` of a row; `more` replaces parts of it."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    document = {"version": 1, "key": f"k{number}", "settings": settings, "row": row, **made_up(row), **more}
    (folder / "runs" / f"{number}.json").write_text(json.dumps(document), encoding="utf-8")


def made_up(row: dict[str, Any], names: Sequence[str] = ("f0", "f1", "f2")) -> dict[str, Any]:
    """Classes, distribution and timeline that a row like this could have had."""
    draw = random.Random(json.dumps(row, sort_keys=True))
    wait, rate = row["warming_loading_mean_ms"], row["preloaded_fraction"] + row["warm_fraction"]
    classes = {}
    for at, name in enumerate(("predictable", "normal", "bursty", "other")):
        classes[name] = {
            **{key: row[key] for key in ("invocations", "saved_fraction", "cold_fraction")},
            "preloaded_fraction": row["preloaded_fraction"] * (1 - 0.1 * at),
            "warm_fraction": row["warm_fraction"] * (1 - 0.05 * at),
            "warming_loading_mean_ms": wait * (1 + 0.2 * at),
            "e2e_mean_ms": wait * (1 + 0.2 * at) + 200.0,
        }
    slow = sorted(draw.expovariate(1 / 1500.0) + 400.0 for _ in range(101))
    e2e = [200.0 + at / 10 if at < rate * 100 else slow[at] + 200.0 for at in range(101)]
    calls = []
    for at in range(400):
        hit = draw.random() < rate
        warming, loading = (0.0, 2.0) if hit else (300.0, draw.choice((671.0, 1180.0, 2410.0)))
        calls.append(
            {
                "function": names[at % len(names)],
                "arrived_s": at * 3.0,
                "start": "warm" if hit else "cold",
                "warming_ms": warming,
                "loading_ms": loading,
                "inference_ms": 200.0,
                "e2e_ms": warming + loading + 200.0,
            }
        )
    return {"classes": classes, "cdf": {"e2e_ms": sorted(e2e), "warming_loading_ms": e2e}, "timeline": calls}


@cache
def trace(folder: Path, functions: int) -> Path:
    """An hour of so many functions; every other one is a timer."""
    file = folder / f"hour{functions}.csv"
    draw = random.Random(1)
    calls: list[tuple[int, str]] = []
    for function in range(functions):
        at = draw.random() * 300.0
        while at < 3600.0:
            calls.append((int(at * 1000), f"f{function}"))
            at += 200.0 if function % 2 else draw.expovariate(1 / 120.0)
    file.write_text("t_ms,func\n" + "".join(f"{at},{name}\n" for at, name in sorted(calls)), encoding="utf-8")
    return file


def simulated(
    folder: Path, policies: Sequence[str], budgets: Sequence[float], functions: int = 8, **settings: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings as a detail has them, and rows of the real simulator on an hour of that many functions."""
    import msgspec

    made = lab.Settings(**settings)
    file = trace(folder, functions)
    cases = [lab.Case(file, policy, budget) for budget in budgets for policy in policies]
    return msgspec.to_builtins(made), list(lab.run(made, cases))


def with_details(folder: Path, found: tuple[dict[str, Any], list[dict[str, Any]]], **more: Any) -> Path:
    settings, rows = found
    write(folder, rows)
    for number, row in enumerate(rows):
        detail(folder, number, row, settings, **more)
    return folder


def full(folder: Path) -> list[Path]:
    """One of everything that a report can show."""
    pool = simulated(
        folder, ("lru", "gdsf", "tyche", "hazard", "hazard:poisson", "hazard:histogram"), (0.1, 0.2, 0.4)
    )
    bounds = [
        {**row, "policy": "KEEP", "predictor": "", "saved_fraction": min(1.0, row["saved_fraction"] + 0.05)}
        for row in pool[1]
        if row["policy"] == "hazard" and row["predictor"] == "hazard"
    ]
    varied = [
        {**row, "policy": f"tyche(p_load={p_load})", "saved_fraction": row["saved_fraction"] - p_load / 4}
        for row in pool[1]
        if row["policy"] == "tyche"
        for p_load in (0.02, 0.2, 0.4)
    ]
    windows = [
        {**row, "predictor": f"poisson(window={window})", "saved_fraction": row["saved_fraction"] - 1 / window / 9}
        for row in pool[1]
        if row["policy"] == "tyche"
        for window in (5, 20, 40)
    ]
    pools = with_details(folder / "pool", (pool[0], pool[1] + bounds + varied + windows))
    ablation = ("none", "instainfer", "tyche", "tyche_np", "tyche_ns", "tyche_nps", "hazard")
    world = simulated(folder, ablation, (2.0,), world="containers", keep_alive="pagurus")
    world[1][-1].update(harmed_fraction=0.012, harm_mean_ms=84.0, rejected=1)
    containers = with_details(folder / "containers", world)
    paths = [pools, containers]
    for number in (4, 16):
        more = simulated(folder, ("tyche", "hazard"), (2.0,), number, world="containers", keep_alive="pagurus")
        paths.append(with_details(folder / f"functions{number}", more))
    nodes = simulated(folder, ("tyche", "hazard"), (2.0,), world="containers", keep_alive="pagurus", nodes=2)
    capped = simulated(folder, ("tyche", "hazard"), (0.2,), cap_per_minute=1)
    twice = simulated(folder, ("tyche", "hazard"), (0.2,), cap_per_minute=3)
    for name, found in (("nodes", nodes), ("capped", capped), ("twice", twice)):
        paths.append(with_details(folder / name, found))
    paths.append(replayed(folder / "live", world[1][-1]))
    paths.append(benchmarks(folder / "bench"))
    return paths


def replayed(folder: Path, like: dict[str, Any]) -> Path:
    row = {
        **like,
        "world": "live",
        "warming_loading_mean_ms": like["warming_loading_mean_ms"] * 1.08,
        "e2e_mean_ms": like["e2e_mean_ms"] * 1.02,
        "warm_fraction": like["warm_fraction"] - 0.01,
        "late_fraction": 0.002,
        "errors": 0,
        "speed": 10.0,
    }
    write(folder, [row], command="replay")
    detail(folder, 0, row, {"speed": 10.0, "url": "http://127.0.0.1:3233"})
    return folder


def benchmarks(folder: Path) -> Path:
    folder.mkdir(parents=True)
    load = [
        {"model": model, "mode": mode, "path": path, "e2e_ms": ms, "removed_fraction": removed, "n": 5}
        for model, scale in (("resnet50", 1.0), ("bert", 2.2))
        for mode, path, ms, removed in (
            ("plain", "miss", 2400.0 * scale, 0.0),
            ("ours", "miss_zygote", 150.0 * scale, 0.94),
            ("ours", "hit", 41.0 * scale, 0.998),
        )
    ]
    overhead = [
        {
            "name": "warm_noop",
            "sandbox": "linux",
            "clients": 1,
            "p50_ms": 0.42,
            "p99_ms": 0.9,
            "requests_per_s": 2100.0,
        },
        {
            "name": "warm_noop",
            "sandbox": "linux",
            "clients": 16,
            "p50_ms": 2.9,
            "p99_ms": 4.7,
            "requests_per_s": 5400.0,
        },
    ]
    cluster = [
        {"name": f"scheduling_{nodes}{told}", "value": ms, "unit": "ms"}
        for told, found in (("", {4: 2.9, 8: 3.1}), ("_instainfer", {4: 0.9, 8: 0.6}))
        for nodes, ms in found.items()
    ]
    for name, rows in (("bench load", load), ("bench overhead", overhead), ("bench cluster", cluster)):
        document = {"version": 1, "command": name, "machine": MACHINE, "rows": rows}
        (folder / f"{name.split()[1]}.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "profiles.json").write_text("[]", encoding="utf-8")  # lies there, and is no result
    return folder
