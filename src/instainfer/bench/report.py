"""What a benchmark says while it runs and at its end: progress on stderr, a table, the rows as JSON."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from instainfer.config import machine_memory
from instainfer.errors import BadInput

PIPE_WIDTH = 140  # of a table where there is no terminal to ask


class Report:
    """Use as a context manager: a SIGTERM then unwinds, so that no server stays behind."""

    def __init__(self, command: str, json_path: Path | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.machine: dict[str, Any] = machine()
        self._command = command
        self._json = json_path
        tables = sys.stderr if json_path == Path("-") else sys.stdout
        self._console = Console(file=tables, width=None if tables.isatty() else PIPE_WIDTH, highlight=False)
        self._live = sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not self._live,
        )
        self._task = self._progress.add_task(command, total=None)
        self._before: Any = None

    def __enter__(self) -> Self:
        if json_path := self._json:  # found out now, not after minutes of measuring
            writable(json_path)
        self._before = signal.signal(signal.SIGTERM, _terminated)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        signal.signal(signal.SIGTERM, self._before)

    def steps(self, count: int) -> None:
        """So many `step`s are to come."""
        self._progress.update(self._task, total=count)

    def say(self, what: str) -> None:
        """What is being done now."""
        self._progress.update(self._task, description=what)
        if not self._live:
            print(what, file=sys.stderr, flush=True)

    def step(self, what: str) -> None:
        """The next of the announced steps begins."""
        self.say(what)
        self._progress.advance(self._task)

    def table(
        self, title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str]
    ) -> None:
        """Print it. The first column is text, the others numbers."""
        self._progress.stop()
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for number, header in enumerate(headers):
            table.add_column(header, justify="right" if number else "left", no_wrap=number == 0)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)
        for note in notes:
            self._console.print(note, style="dim", markup=False)

    def finish(self) -> None:
        """Write the JSON, where it is wanted."""
        if self._json is None:
            return
        document = {"version": 1, "command": self._command, "machine": self.machine, "rows": self.rows}
        text = json.dumps(document, indent=2) + "\n"
        if self._json == Path("-"):
            sys.stdout.write(text)
        else:
            self._json.write_text(text, encoding="utf-8")


def machine() -> dict[str, Any]:
    """`sandbox` is filled in once a server says which it uses."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mb": machine_memory() / 1e6,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sandbox": "",
    }


def cores(found: Mapping[str, Any]) -> str:
    return f"{found['cpus']} cores, shared by server, instances and load generator (one thread); nothing is pinned"


def between(median: float, least: float, greatest: float, digits: int = 2) -> str:
    """median (min–max)."""
    return f"{median:.{digits}f} ({least:.{digits}f}–{greatest:.{digits}f})"


def writable(path: Path) -> None:
    if path != Path("-") and not os.access(path.absolute().parent, os.W_OK):
        raise BadInput(f"{path} cannot be written", hint="give --json a file in a folder that you may write to")


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
