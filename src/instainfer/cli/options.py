"""What simulate and replay take alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from instainfer.cli.session import Usage
from instainfer.units import parse_seconds

if TYPE_CHECKING:
    from instainfer.traces.base import TraceReport

_TOLD = 3  # malformed rows

Minutes = Annotated[str | None, typer.Option(metavar="A:B", help="Only these, counted from the trace's first.")]
CapPerMinute = Annotated[
    int | None, typer.Option(metavar="K", min=1, help="At most K calls of a function a minute.")
]
MinCalls = Annotated[int, typer.Option(metavar="N", min=1, help="Leave out functions that are called less often.")]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Of where in its minute a call falls.")]


def seconds(option: str, text: str) -> float:
    """Raises Usage."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise Usage(f"{option} {error}") from None


def left_out(report: TraceReport) -> str:
    """Of a trace with malformed rows."""
    told = [*report.reasons[:_TOLD], *(["…"] if report.malformed > _TOLD else [])]
    return f"{report.malformed:,} of {report.rows:,} rows are left out: {'; '.join(told)}"
