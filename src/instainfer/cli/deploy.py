"""deploy: a folder, a file or a zip becomes a function; or an earlier version becomes the current one."""

from __future__ import annotations

import mimetypes
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from instainfer.cli.functions import print_profile
from instainfer.cli.output import is_terminal, print_json
from instainfer.cli.session import Session, Usage, command, split_name, split_pairs

if TYPE_CHECKING:
    from rich.progress import TaskID

Many = list[str] | None


@command("deploy", example="instainfer deploy examples/magika --memory 512MB --sample photo.jpg")
def deploy(
    session: Session,
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A function folder, a .py file or a zip; with --version, a NAME.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="NAME or NAMESPACE/NAME [the folder's or file's].")
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Limit of its container: 512MB, 2GB.")] = None,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="Of one call: 30s, 5m.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests at a time in one instance.")
    ] = None,
    param: Annotated[Many, typer.Option(metavar="K=V", help="A default parameter; may be repeated.")] = None,
    sample: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One real input: every load ends with a call of it.")
    ] = None,
    sample_type: Annotated[
        str | None, typer.Option("--sample-type", metavar="TYPE", help="Its content type [by its name].")
    ] = None,
    env: Annotated[Many, typer.Option(metavar="K=V", help="An environment variable; may be repeated.")] = None,
    python: Annotated[
        str | None, typer.Option(metavar="VERSION", help='"3.11", or the path of an interpreter.')
    ] = None,
    requirement: Annotated[
        Many, typer.Option(metavar="LINE", help="Instead of the function's own; may be repeated.")
    ] = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="Build and measure it, but keep the current version.")
    ] = False,
    version: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Make version N of the function NAME current.")
    ] = None,
) -> None:
    """Deploy a function, and measure it.

    Its environment is built, then it is loaded and called once. Settings
    come from the folder's function.toml or pyproject.toml; options win over them.
    """
    overrides: dict[str, Any] = {
        "memory": memory,
        "timeout": timeout,
        "concurrency": concurrency,
        "params": split_pairs(param, "--param") if param else None,
        "env": split_pairs(env, "--env") if env else None,
        "python": python,
        "requirements": requirement or None,
        "hold": hold or None,
    }
    overrides = {key: value for key, value in overrides.items() if value is not None}
    if version is not None:
        if overrides or sample or name:
            raise Usage(
                "--version takes an earlier version as it was", hint=f"instainfer deploy NAME --version {version}"
            )
        _rollback(session, path, version)
        return
    from instainfer.packing import pack

    source = Path(path)
    namespace, function = split_name(name or _name_of(source))
    package = pack(source)
    sent = _read(sample) if sample else None
    kind = sample_type or (mimetypes.guess_type(sample.name)[0] if sample else None) or ""
    events = session.client.deploy(namespace, function, package, overrides, sample=sent, sample_type=kind)
    with _progress(session.json) as progress:
        deployed = _follow(events, progress)
    if session.json:
        print_json({"function": deployed["function"], "profile": deployed.get("profile")})
        return
    spec = deployed["function"]
    key = f"{spec['namespace']}/{spec['name']}"
    held = " and held: the current version stays" if hold else ""
    typer.echo(f"{key} version {spec['version']} is deployed{held}")
    if deployed.get("profile"):
        print_profile(deployed["profile"])
    if hold:
        typer.echo(f"put it in force: instainfer deploy {key} --version {spec['version']}", err=True)


def _rollback(session: Session, name: str, version: int) -> None:
    answer = session.client.rollback(*split_name(name), version)
    if session.json:
        print_json(answer)
    else:
        typer.echo(answer.get("message") or f"{name} is at version {version}")


def _name_of(path: Path) -> str:
    """A function's name from its path: what cannot stand in a name becomes a dash."""
    whole = path.resolve()
    stem = whole.stem if whole.is_file() else whole.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")
    if not name:
        raise Usage(f"{path} gives the function no name", hint="give one with --name")
    return name


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Usage(f"{file} cannot be read: {error.strerror}", hint="give --sample an existing file") from None


class _Progress(Protocol):
    def phase(self, name: str, message: str) -> None: ...


def _follow(events: Iterable[dict[str, Any]], progress: _Progress) -> dict[str, Any]:
    """The `deployed` event, after showing every other. The client raises when there is none."""
    last: dict[str, Any] = {}
    for last in events:
        if last.get("event") == "progress":
            progress.phase(last["phase"], last["message"])
    return last


class _Silent:
    def phase(self, name: str, message: str) -> None: ...


class _Lines:
    """For logs and pipes: a line per event, on stderr."""

    def phase(self, name: str, message: str) -> None:
        typer.echo(f"{name}: {message}", err=True)


class _Live:
    """For a terminal: a line per phase with a clock, the present one spinning."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.drawn = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.fields[phase]}", style="bold"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._phase = ""
        self._task: TaskID | None = None

    def phase(self, name: str, message: str) -> None:
        if name != self._phase or self._task is None:
            self.finish()
            self._phase = name
            self._task = self.drawn.add_task(message, total=1, phase=f"{name:<11}")
        self.drawn.update(self._task, description=message)

    def finish(self) -> None:
        if self._task is not None:
            self.drawn.update(self._task, completed=1)


@contextmanager
def _progress(quiet: bool) -> Iterator[_Progress]:
    if quiet or not is_terminal(sys.stderr):
        yield _Silent() if quiet else _Lines()
        return
    live = _Live()
    with live.drawn:
        yield live
        live.finish()
