"""The papers' models in turn, and profile files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from instainfer.errors import BadInput
from instainfer.lab.costs import costs_of, latencies_s, sizes_mb
from instainfer.lab.simulate import Settings, cores_of, of_trace
from instainfer.traces.base import Trace


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
        ([measured("f", fork_ms=-1)], "below zero"),
        ([measured("f", concurrency=0)], "below zero"),
    ],
)
def test_what_is_no_profile_file(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        costs_of(["x"], written(tmp_path, content))


def test_what_a_server_measured_of_zygotes_and_clones_is_simulated(tmp_path: Path) -> None:
    """Two functions of one environment share its libraries; a third cannot be forked."""
    shared = {"libraries": "n|env", "libraries_mb": 40, "fork_ms": 12, "forked_mb": 15, "imported_mb": 40}
    path = written(
        tmp_path,
        [
            measured("a", **shared, warmup_ms=30, start_ms=80),  # type: ignore[arg-type] # a text among numbers
            measured("b", **shared, clone_ms=9, cloned_mb=3, limit_mb=200, concurrency=2),  # type: ignore[arg-type]
            measured("c", first_ms=25),
        ],
    )
    trace = Trace(names=("x", "b", "z"), times=np.arange(6.0), functions=np.array([0, 1, 2] * 2, np.int32))
    work = of_trace(trace, Settings(profiles=str(path)))
    a, b, c = work.functions
    assert (a.libraries, a.forkable, a.cloneable, a.memory, a.concurrency) == ("n|env", True, False, 75_000_000, 1)
    assert (b.libraries, b.forkable, b.cloneable, b.memory, b.concurrency) == ("n|env", True, True, 200_000_000, 2)
    assert (c.libraries, c.forkable, c.cloneable) == ("", False, False)
    assert a.costs.libraries_bytes == 40_000_000 and a.costs.forked_bytes == 15_000_000
    assert (a.costs.fork_s, b.costs.clone_s, b.costs.cloned_bytes) == (0.012, 0.009, 3_000_000)
    assert (a.costs.start_s, b.costs.start_s) == (0.08, 0.0)
    assert (a.costs.first_s, b.costs.first_s, c.costs.first_s) == (0.03, 0.02, 0.025)
    wide = of_trace(trace, Settings(profiles=str(path), headroom=1.0))
    assert [one.memory for one in wide.functions] == [100_000_000] * 3


def test_the_cores_of_the_node_that_was_measured_are_shared_unless_settings_say_otherwise(tmp_path: Path) -> None:
    trace = Trace(names=("x", "y"), times=np.arange(2.0), functions=np.array([0, 1], np.int32))
    said = str(written(tmp_path, [measured("x", cores=2)]))
    work = of_trace(trace, Settings(profiles=said))
    assert (cores_of(Settings(), work), cores_of(Settings(cores=0), work), cores_of(Settings(cores=8), work)) == (
        2,
        0,
        8,
    )
    papers = of_trace(trace, Settings())
    assert cores_of(Settings(), papers) == 0


def test_a_profile_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        costs_of(["x"], tmp_path / "none.json")
