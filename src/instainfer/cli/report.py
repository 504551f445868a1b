"""report: tables and figures of what simulate, replay and bench left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instainfer.cli.output import print_json
from instainfer.cli.session import Session, command


@command("report", example="instainfer report results -o report")
def report(
    session: Session,
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="What simulate -o and replay -o wrote; files of bench --json and activations --json.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where the report goes [the first DIR].")
    ] = None,
) -> None:
    """Write tables and figures of results, or of a server's calls.

    report.html needs nothing else: no network, light and dark, fit for print and phones, each figure with its
    data as a file and the command that makes it. report.md has its figures beside it.
    """
    from instainfer.report import write

    first = results[0]
    written = write(results, output or (first if first.is_dir() else first.parent))
    if session.json:
        print_json({"html": str(written.html), "markdown": str(written.markdown), "figures": written.figures})
    else:
        typer.echo(f"{written.html}\n{written.markdown}")
