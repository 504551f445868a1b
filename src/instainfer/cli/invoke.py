"""invoke: call a function and see how it started."""

from __future__ import annotations

import itertools
import json as jsons
import mimetypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from instainfer.cli.functions import Name
from instainfer.cli.output import STYLES, full_block, is_terminal, phase_lines, print_json
from instainfer.cli.session import Command, Session, Usage, command, split_name
from instainfer.units import say_ms

if TYPE_CHECKING:
    from instainfer.client import Answer

JSON = "application/json"
_JOIN = "\0"  # the one character that no argument of a process can hold


class _PairsCommand(Command):
    """`-p KEY VALUE`, repeated: the parser below knows options of two values only when given once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined, left = [], iter(args)
        for argument in left:
            joined.append(argument)
            if argument == "--":
                break
            if argument in ("-p", "--param"):
                pair = list(itertools.islice(left, 2))
                if pair:
                    joined.append(_JOIN.join(pair))
        return super().parse_args(ctx, [*joined, *left])


@command("invoke", example="instainfer invoke hello -p name Ada", cls=_PairsCommand)
def invoke(
    session: Session,
    name: Name,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--param", metavar="KEY VALUE", help="A parameter; a VALUE that is JSON is sent as such."
        ),
    ] = None,
    param_file: Annotated[
        Path | None, typer.Option("-P", "--param-file", metavar="FILE", help="A JSON object of parameters.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="JSON|@FILE|-", help="The whole body; - reads stdin.")
    ] = None,
    type_: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="Content type of --data [by the file's name, or JSON]."),
    ] = None,
    result: Annotated[bool, typer.Option("--result", help="Print only the answer's bytes, as they are.")] = False,
    later: Annotated[
        bool, typer.Option("--async", help="Return as soon as it is committed; `jobs` has its answer later.")
    ] = False,
    key: Annotated[
        str, typer.Option("--key", metavar="KEY", help="--async: one answer for all requests with this key.")
    ] = "",
) -> None:
    """Call a function. The answer goes to stdout; how it started and where the time went, to stderr."""
    body, kind = _request(param or [], param_file, data, type_)
    if later:
        job = session.client.begin(*split_name(name), body, kind, key=key)
        if session.json:
            print_json(job)
        else:
            typer.echo(job["id"])
            typer.echo(f"`instainfer jobs {job['id']} --wait` gives its answer", err=True)
        return
    if key:
        raise Usage("--key is for --async", hint="add --async")
    say(session, session.client.invoke(*split_name(name), body, kind), result=result)


def say(session: Session, answer: Answer, *, result: bool) -> None:
    """An answer, as all that get one print it."""
    if result:
        sys.stdout.buffer.write(answer.body)
        sys.stdout.buffer.flush()
        return
    if session.json:
        print_json(_document(answer))
        return
    _print_body(answer)
    _print_story(answer)


def _request(params: list[str], file: Path | None, data: str | None, kind: str | None) -> tuple[bytes, str]:
    """The body to send and its content type."""
    if data is not None:
        if params or file:
            raise Usage("--data is the whole body: -p and -P cannot add to it", hint="leave one of them out")
        return _body(data, kind)
    event: dict[str, Any] = {}
    if file:
        try:
            event = jsons.loads(_read(file))
        except ValueError as error:
            raise Usage(f"{file} is not JSON: {error}", hint=f"send other content with --data @{file}") from None
        if not isinstance(event, dict):
            raise Usage(f"{file} holds no JSON object", hint=f"send it whole with --data @{file}")
    for pair in params:
        key, joined, text = pair.partition(_JOIN)
        if not joined:
            raise Usage(f"-p {key} has no value", hint="write -p KEY VALUE")
        try:
            event[key] = jsons.loads(text)
        except ValueError:
            event[key] = text
    return jsons.dumps(event).encode(), kind or JSON


def _body(data: str, kind: str | None) -> tuple[bytes, str]:
    if data == "-":
        body = sys.stdin.buffer.read()
        return body, kind or (JSON if _is_json(body) else "application/octet-stream")
    if data.startswith("@"):
        file = Path(data[1:])
        return _read(file), kind or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    body = data.encode()
    if kind is None and not _is_json(body):
        raise Usage(
            "--data is not JSON", hint="say what it is with --type text/plain, or send a file with --data @FILE"
        )
    return body, kind or JSON


def _is_json(body: bytes) -> bool:
    try:
        jsons.loads(body)
    except ValueError:  # UnicodeDecodeError too
        return False
    return True


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Usage(f"{file} cannot be read: {error.strerror}", hint="give the path of an existing file") from None


def _content(answer: Answer) -> Any:
    """The answer for a JSON document: its value, its text, or its bytes in base64."""
    import base64

    if answer.type.partition(";")[0].strip() in (JSON, ""):
        try:
            return jsons.loads(answer.body)
        except ValueError:
            pass
    try:
        return answer.body.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(answer.body).decode()}


def _document(answer: Answer) -> dict[str, Any]:
    return {
        "answer": _content(answer),
        "type": answer.type,
        "start": answer.start,
        "activation": answer.activation,
        "phases": {f"{name}_ms": ms for name, ms in answer.phases.items()},
    }


def _print_body(answer: Answer) -> None:
    content = _content(answer)
    if isinstance(content, dict) and set(content) == {"base64"} and not _is_json(answer.body):
        if is_terminal():
            typer.echo(f"({len(answer.body)} bytes of {answer.type}; write them to a file with --result > FILE)")
        else:
            sys.stdout.buffer.write(answer.body)
            sys.stdout.buffer.flush()
    elif isinstance(content, str):
        typer.echo(content)
    else:
        typer.echo(jsons.dumps(content, indent=2 if is_terminal() else None, ensure_ascii=False))


def _print_story(answer: Answer) -> None:
    total = answer.phases.get("total") or sum(answer.phases.values())
    start = typer.style(answer.start, fg=STYLES.get(answer.start), bold=True)
    typer.echo(f"{start} start, {say_ms(total)}, activation {answer.activation}", err=True)
    for line in phase_lines(answer.phases, full=full_block(sys.stderr)):
        typer.echo(f"  {line}", err=True)
