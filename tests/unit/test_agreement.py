"""What the comparison of a live run with a simulated one makes of its figures."""

from __future__ import annotations

from typing import Any

import pytest

from instainfer.bench import agreement
from instainfer.bench.models import choose


def call(function: str, start: str, error: str = "", **phases: float) -> dict[str, Any]:
    return {"namespace": "n", "function": function, "start": start, "error": error, "phases": phases}


def test_costs_as_cold_starts_turned_out() -> None:
    profiles: list[dict[str, Any]] = [
        {"function": "n/a", "import_ms": 100.0, "load_ms": 10.0, "memory_mb": 5.0},
        {"function": "n/b"},
    ]
    calls = [
        call("a", "cold", import_ms=200.0, container_ms=30.0),
        call("a", "cold", import_ms=400.0, extract_ms=50.0, inference_ms=7.0),
        call("a", "cold", "HTTP 502", import_ms=9000.0),
        call("a", "attached", import_ms=1.0),
        call("a", "forked", extract_ms=9.0, import_ms=1.0, load_ms=20.0),
        call("a", "warm", inference_ms=1.0),
        call("c", "cold", import_ms=1.0),
    ]
    assert agreement.seen(profiles, calls) == [
        {
            "function": "n/a",
            "import_ms": 300.0,
            "load_ms": 20.0,
            "memory_mb": 5.0,
            "container_ms": 30.0,
            "start_ms": 50.0,
            "fork_ms": 10.0,
            "cores": 0,
        },
        {"function": "n/b", "cores": 0},
    ]


@pytest.mark.parametrize(
    ("wait", "warm", "within"),
    [(100.0, 0.5, True), (114.0, 0.529, True), (116.0, 0.5, False), (100.0, 0.54, False)],
)
def test_the_aim(wait: float, warm: float, within: bool) -> None:
    def row(wait: float, warm: float) -> dict[str, Any]:
        return {"warming_loading_mean_ms": wait, "warm_fraction": warm, "preloaded_fraction": 0.25}

    assert agreement.near(row(100.0, 0.5), row(wait, warm)) is within


def test_the_models_are_there() -> None:
    assert len(choose(agreement.MODELS)) == 8
