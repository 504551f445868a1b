"""Thread counts of what this process has loaded; torch's are checked by `torch_intercept_checks.py`."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from instainfer.runtime import threads


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process as it was, afterwards."""
    for name in threads.VARIABLES:
        monkeypatch.setenv(name, "1")
    yield
    threads.set_counts(1)


def blas() -> dict[str, int]:
    """Threads of each OpenBLAS that is loaded, as it says itself."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = {}
    for path in {"/" + line.partition("/")[2] for line in lines if "openblas" in line}:
        library = ctypes.CDLL(path)
        for function in threads.RUNTIMES[0][1]:
            get = getattr(library, function.replace("_set_", "_get_"), None)
            if get is not None:
                found[Path(path).name] = get()
                break
    return found


def test_numpys_own_runtime_is_told(counts: None) -> None:
    assert np.ones((4, 4)) @ np.ones(4) is not None
    known = blas()
    assert known, "numpy's wheels carry an OpenBLAS"
    for n in (2, 1):
        done = threads.set_counts(n)
        assert blas() == dict.fromkeys(known, n)
        assert {name: done[name] for name in known} == dict.fromkeys(known, n)


def test_variables_are_set_for_what_is_loaded_later(counts: None) -> None:
    done = threads.set_counts(3)
    for name in threads.VARIABLES:
        assert os.environ[name] == "3"
        assert done[name] == 3


def test_nothing_is_imported_for_it(counts: None) -> None:
    before = set(sys.modules)
    done = threads.set_counts(1)
    assert set(sys.modules) - before <= {"ctypes", "_ctypes", "ctypes._endian"}
    assert "torch" not in done or "torch" in before


def test_a_library_that_refuses_is_not_reported(
    counts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tt_counts.py").write_text(
        "got = []\n"
        "def set_num_threads(n): got.append(n)\n"
        "def set_num_interop_threads(n): raise RuntimeError('too late')\n"
    )
    import tt_counts  # type: ignore[import-not-found]  # written above

    monkeypatch.setitem(sys.modules, "torch", tt_counts)
    done = threads.set_counts(2)
    assert tt_counts.got == [2]
    assert done["torch"] == 2
    assert "torch interop" not in done
