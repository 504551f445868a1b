"""The papers' models in turn, and profile files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instainfer.errors import BadInput
from instainfer.lab.costs import costs_of, latencies_s, sizes_mb


def test_the_papers_models_are_taken_in_turn() -> None:
    costs = costs_of([f"f{at}" for at in range(10)])
    assert sizes_mb(costs).tolist() == [923, 1648, 957, 649, 907, 1348, 1027, 1333, 923, 1648]
    assert latencies_s(costs).round(6).tolist() == [
        0.671,
        2.41,
        2.281,
        0.21,
        0.486,
        1.18,
        1.351,
        2.078,
        0.671,
        2.41,
    ]
    assert {(one.container_s, one.warm_s, one.first_s) for one in costs} == {(0.3, 0.2, 0.2)}


def measured(function: str, **more: float) -> dict[str, object]:
    return {"function": function, "import_ms": 400, "load_ms": 100, "memory_mb": 50, "inference_ms": 20, **more}


def written(folder: Path, content: object) -> Path:
    path = folder / "profiles.json"
    path.write_text(json.dumps(content))
    return path


def test_a_profile_file_by_name_and_else_in_turn(tmp_path: Path) -> None:
    path = written(tmp_path, [measured("n/f", memory_mb=70, first_ms=35), measured("g", unknown=1)])
    costs = costs_of(["x", "y", "n/f", "z"], path)
    assert sizes_mb(costs).tolist() == [70, 50, 70, 50]
    assert latencies_s(costs).round(6).tolist() == [0.515, 0.5, 0.515, 0.5]
    assert costs_of(["x"], str(path))[0].loaded_bytes == 70_000_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no profile"),
        ({"a": 1}, "no profiles: Expected `array`"),
        ([{"function": "f"}], "missing required field"),
        ([measured("f"), measured("g", load_ms=-1)], r"entry 1 \(g\)"),
        ([measured("f", memory_mb=0)], "below zero"),
    ],
)
def test_what_is_no_profile_file(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        costs_of(["x"], written(tmp_path, content))


def test_a_profile_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        costs_of(["x"], tmp_path / "none.json")
