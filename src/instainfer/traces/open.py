"""Which reader a path is for: by what is in it, never by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from instainfer.errors import BadInput
from instainfer.traces import activations, azure2019, azure2021, csvfile, recipe, table
from instainfer.traces.base import MINUTE_S, Trace, few

_EXPECTED = (
    "a trace is an Azure 2019 invocations file (HashFunction, then one column a minute) or a folder of its files, "
    "an Azure 2021 file (app,func,end_timestamp,duration), a CSV with t_ms,func, a server's activations as "
    "JSON lines, or a recipe of a synthetic one"
)
YEAR_S = 365.25 * 86_400
#: No public trace is longer. Times since 1970, or in other units, are; to simulate those would never end.
LONGEST_S = 2 * YEAR_S
_MINUTES = re.compile(r"(\d*):(\d*)", re.ASCII)


def open_trace(
    path: Path | str | Sequence[Path],
    *,
    minutes: tuple[int, int] | str | None = None,
    cap_per_minute: int | None = None,
    only: Collection[str] | None = None,
    seed: int = 0,
) -> Trace:
    """`path`: a file, a folder, or the files of several days. `minutes`: positions "A:B", half-open, counted
    from the trace's start; "A:" and ":B" leave one end open. `cap_per_minute`: at most so many arrivals of a
    function a minute. `only`: names of the functions to keep, as `Trace.only` does. `seed` places arrivals
    differently inside their minutes, where the source does not say (a recipe has a seed of its own).

    Raises BadInput, with what a trace looks like, for anything else.
    """
    if cap_per_minute is not None and cap_per_minute < 1:
        raise BadInput(f"a cap of {cap_per_minute} arrivals a minute leaves none", hint="give 1 or more")
    files = [Path(path)] if isinstance(path, str | Path) else list(path)
    folders = [file for file in files if file.is_dir()]
    if folders:
        files = [file for file in files if file not in folders]
        files += sorted(file for folder in folders for file in folder.iterdir() if _maybe(file))
        if not files:
            raise BadInput(f"{folders[0]} holds no trace", hint=_EXPECTED)
    if not files:
        raise BadInput("no file is named", hint=_EXPECTED)
    recipes = [file for file in files if recipe.is_recipe(file)]
    records = [file for file in files if file not in recipes and activations.is_records(file)]
    headers = {file: table.header(file) for file in files if file not in recipes and file not in records}
    if counted := [file for file in headers if azure2019.is_invocations(headers[file])]:
        watched = sum(name.isdigit() for file in counted for name in headers[file])
        return azure2019.read(
            counted,
            durations=[file for file in headers if azure2019.is_durations(headers[file])],
            memory=[file for file in headers if azure2019.is_memory(headers[file])],
            minutes=parse_minutes(minutes, watched) if isinstance(minutes, str) else minutes,
            cap_per_minute=cap_per_minute,
            only=only,
            seed=seed,
        )
    trace = _single(files, recipes, records, headers)
    if minutes is not None:
        length = -(-trace.length_s // MINUTE_S)
        start, end = parse_minutes(minutes, int(length)) if isinstance(minutes, str) else minutes
        if not 0 <= start < end <= length:
            raise BadInput(
                f"minutes {start}:{end} are not within a trace of {length:.0f} minutes",
                hint=f"give positions A:B from 0 to {length:.0f}",
            )
        trace = trace.window(start * MINUTE_S, end * MINUTE_S)
    if only is not None:
        trace = trace.only(only)
    return trace if cap_per_minute is None else trace.cap_per_minute(cap_per_minute)


def parse_minutes(text: str, length: int) -> tuple[int, int]:
    """ "480:960", "480:" or ":60" of a trace of so many minutes. Raises BadInput."""
    found = _MINUTES.fullmatch(text.strip())
    if found is None:
        raise BadInput(f"{text!r} names no minutes", hint="write A:B, such as 0:240 for the first four hours")
    return int(found[1] or 0), int(found[2] or length)


def _single(files: list[Path], recipes: list[Path], records: list[Path], headers: dict[Path, list[str]]) -> Trace:
    known: list[tuple[Path, Callable[[Path], Trace]]] = [
        *((file, lambda file: recipe.read(file).trace) for file in recipes),
        *((file, activations.read) for file in records),
        *((file, azure2021.read) for file in headers if azure2021.is_invocations(headers[file])),
        *((file, csvfile.read) for file in headers if csvfile.is_arrivals(headers[file])),
    ]
    if len(known) > 1:
        raise BadInput(
            f"{len(known)} traces in one: {few([file.name for file, _ in known])}", hint="name one of them"
        )
    if not known:
        what = (
            f"{files[0]} is no trace: {_begins(headers.get(files[0]))}"
            if len(files) == 1
            else f"none of {few([f.name for f in files])} is a trace"
        )
        raise BadInput(what, hint=_EXPECTED)
    file, read = known[0]
    trace = read(file)
    if trace.length_s > LONGEST_S:
        raise BadInput(
            f"the calls of {file.name} are spread over {trace.length_s / YEAR_S:,.0f} years from its start",
            hint="times count from the trace's start, t_ms in milliseconds: convert or shift them",
        )
    return trace


def _begins(header: Sequence[str] | None) -> str:
    text = ",".join(header or ())
    return f"it begins with {text[:60]!r}" if text else "it is empty"


def _maybe(file: Path) -> bool:
    return file.is_file() and file.name.removesuffix(".gz").endswith((".csv", ".jsonl", ".ndjson"))
