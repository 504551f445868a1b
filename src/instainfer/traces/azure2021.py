"""Azure Functions 2021 (Zhang et al., SOSP'21): one row an invocation, with its true end and duration in seconds.

An arrival is the end less the duration. The clock starts at the file's zero, or at the first arrival where that
was earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instainfer.traces import table
from instainfer.traces.base import Trace, gather

_COLUMNS = ("app", "func", "end_timestamp", "duration")


def is_invocations(header: Sequence[str]) -> bool:
    return set(_COLUMNS) <= set(header)


def read(path: Path) -> Trace:
    """Raises BadInput. Functions are named by their hash, or app/hash where two applications share one."""
    found = table.read(path, table.Columns(text=("app", "func"), numbers=("end_timestamp", "duration")))
    places: dict[tuple[str, str], int] = {}
    functions = np.array(
        [places.setdefault(key, len(places)) for key in zip(found.text["app"], found.text["func"], strict=True)],
        np.int32,
    )
    names: dict[str, None] = {}
    for app, func in places:
        names[func if func not in names else f"{app}/{func}"] = None
    durations = found.numbers["duration"]
    times = found.numbers["end_timestamp"] - durations
    if len(times):
        times = times - min(0.0, times.min())
    return gather(
        list(names),
        times,
        functions,
        durations.astype(np.float32),
        source=f"Azure Functions 2021: {path.name}",
        report=found.report,
    )
