"""A live server's own records: JSON lines of activations, or what `instainfer activations --json` prints.

Every record is an arrival, whatever became of it; its duration is that of its inference, unknown where it was
never run. Functions are named "namespace/function". The clock starts at the earliest record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from instainfer.errors import BadInput
from instainfer.traces import table
from instainfer.traces.base import REASONS_KEPT, Trace, TraceReport, gather

_EXPECTED = (
    "write what `instainfer activations --json --limit 2000` prints, or lines such as "
    '{"namespace": "default", "function": "f", "wall": 1700000000.5}; '
    'a synthetic trace is {"synthetic": "mixed", "functions": 40, "hours": 8}'
)


class _Phases(msgspec.Struct):
    inference_ms: float = 0.0


class _Record(msgspec.Struct):
    namespace: str
    function: str
    wall: float  # seconds since 1970, when accepted
    phases: _Phases = msgspec.field(default_factory=_Phases)


class _Listing(msgspec.Struct):
    activations: list[msgspec.Raw]


def is_records(path: Path) -> bool:
    """By its first character."""
    with table.opened(path) as file:
        return file.read(1024).lstrip()[:1] in ("{", "[")


def read(path: Path) -> Trace:
    """Raises BadInput."""
    records: list[_Record] = []
    reasons: list[str] = []
    rows = malformed = 0
    for row, text in _rows(path):
        rows += 1
        try:
            record = msgspec.json.decode(text, type=_Record)
            if not 0 <= record.wall < 1e11:
                raise msgspec.ValidationError(f"wall time {record.wall} is no number of seconds since 1970")
        except msgspec.MsgspecError as error:
            malformed += 1
            if len(reasons) < REASONS_KEPT:
                reasons.append(f"{path.name}, row {row}: {error}")
        else:
            records.append(record)
    if not records:
        why = f": {reasons[0]}" if reasons else ": it is empty"
        raise BadInput(f"{path} has no activation that can be used{why}", hint=_EXPECTED)
    walls = np.array([record.wall for record in records])
    order = np.argsort(walls, kind="stable")  # a server lists the newest first
    places: dict[str, int] = {}
    functions = np.empty(len(records), np.int32)
    for at in order:
        name = f"{records[at].namespace}/{records[at].function}"
        functions[at] = places.setdefault(name, len(places))
    took = np.array([record.phases.inference_ms / 1e3 or np.nan for record in records], np.float32)
    return gather(
        list(places),
        walls - walls.min(),
        functions,
        took,
        source=path.name,
        report=TraceReport(rows=rows, malformed=malformed, reasons=tuple(reasons)),
    )


def _rows(path: Path) -> list[tuple[int, Any]]:
    """(row number, JSON text of one record)."""
    with table.opened(path) as file:
        text = file.read()
    try:
        if text.lstrip().startswith("["):
            return list(enumerate(msgspec.json.decode(text, type=list[msgspec.Raw]), start=1))
        return list(enumerate(msgspec.json.decode(text, type=_Listing).activations, start=1))
    except msgspec.MsgspecError:
        return [(row, line) for row, line in enumerate(text.splitlines(), start=1) if line.strip()]
