"""The plain form: `t_ms,func`, one row an arrival, in any order; a column `duration_ms` may follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instainfer.traces import table
from instainfer.traces.base import Trace, gather

_TIME, _FUNCTION, _DURATION = "t_ms", "func", "duration_ms"


def is_arrivals(header: Sequence[str]) -> bool:
    return {_TIME, _FUNCTION} <= set(header)


def read(path: Path) -> Trace:
    """Raises BadInput."""
    timed = _DURATION in table.header(path)
    numbers = (_TIME, _DURATION) if timed else (_TIME,)
    found = table.read(path, table.Columns(text=(_FUNCTION,), numbers=numbers))
    places: dict[str, int] = {}
    functions = np.array([places.setdefault(name, len(places)) for name in found.text[_FUNCTION]], np.int32)
    return gather(
        list(places),
        found.numbers[_TIME] / 1e3,
        functions,
        (found.numbers[_DURATION] / 1e3).astype(np.float32) if timed else None,
        source=path.name,
        report=found.report,
    )


def write(trace: Trace, path: Path) -> None:
    """So that `read` gives it back, to the microsecond; functions without arrivals are lost."""
    timed = len(trace.durations) > 0 and not np.isnan(trace.durations).any()
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join((_TIME, _FUNCTION, _DURATION) if timed else (_TIME, _FUNCTION)) + "\n")
        for at in range(len(trace)):
            row = f"{trace.times[at] * 1e3:.3f},{quoted(trace.names[trace.functions[at]])}"
            file.write(f"{row},{trace.durations[at] * 1e3:.3f}\n" if timed else f"{row}\n")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if set(name) & set(',"\r\n') else name
