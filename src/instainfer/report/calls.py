"""The calls of a live server: what `instainfer activations --json` prints, or JSON lines as a replay writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from instainfer.errors import BadInput
from instainfer.report.text import plain, plain_values

READS = (
    "a report is made of folders that `simulate -o` and `replay -o` wrote, of files of `bench --json`, and of "
    "what `instainfer activations --json --limit 2000` prints"
)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One call, as a server's `activations` or a replay's `calls.jsonl` has it. Milliseconds; `wall` is seconds
    since 1970."""

    function: str
    wall: float
    namespace: str = ""
    start: str = ""
    status: str | int = "ok"
    e2e_ms: float = 0.0
    phases: dict[str, float] = {}

    def __post_init__(self) -> None:
        if not 0 <= self.wall < 1e11:
            raise ValueError(f"wall time {self.wall} is no number of seconds since 1970")

    @property
    def name(self) -> str:
        """As the traces' reader calls its function."""
        return f"{self.namespace}/{self.function}" if self.namespace else self.function

    @property
    def failed(self) -> bool:
        return self.status != "ok" and self.status != 200

    def took(self, *phases: str) -> float:
        return sum(self.phases.get(f"{phase}_ms", 0.0) for phase in phases)


class Log(NamedTuple):
    """Calls of a live server, the earliest first; `skipped` lines made no sense."""

    file: str
    records: list[Record]
    skipped: int


def log(file: Path) -> Log | None:
    """Calls of a server: what `instainfer activations --json` prints, or JSON lines of such. None for a file that
    is something else. Raises BadInput where not one line of it is a call."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}", hint="check its permissions") from None
    try:
        raws: list[Any] = msgspec.json.decode(content, type=_Listing).activations
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        if file.suffix not in (".jsonl", ".ndjson"):
            return None
        raws = [line for line in content.splitlines() if line.strip()]
    records, why = [], ""
    for raw in raws:
        try:
            record = msgspec.json.decode(raw, type=Record)
            records.append(msgspec.convert(plain_values(msgspec.to_builtins(record)), Record))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            why = why or str(error)
    if not records:
        raise BadInput(f"{file} has no call: {why or 'it is empty'}", hint=READS)
    return Log(plain(file.name), sorted(records, key=lambda record: record.wall), len(raws) - len(records))


class _Listing(msgspec.Struct):
    activations: list[msgspec.Raw]
