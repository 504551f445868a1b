"""activations, logs."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

import typer

from instainfer.cli.output import clock, print_json, table
from instainfer.cli.session import Session, Usage, command, split_name
from instainfer.errors import NotFound
from instainfer.units import parse_seconds, say_ms

# Ids are hexadecimal and as long as a UUID without dashes (OpenWhisk's shape); a function that is named
# like one can still be written NAMESPACE/NAME.
_ACTIVATION = re.compile(r"[0-9a-f]{32}")


@command("activations", example="instainfer activations magika --since 10m --limit 50")
def activations(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this function's.")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Only this one's.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many.")] = 20,
    skip: Annotated[int, typer.Option(metavar="N", min=0, help="Pass over so many of the latest.")] = 0,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Not older than this: 30s, 10m, 1d.")] = None,
) -> None:
    """List the latest invocations, and where their time went."""
    function = None
    if name is not None:
        namespace, function = split_name(f"{namespace}/{name}" if namespace and "/" not in name else name)
    try:
        after = time.time() - parse_seconds(since) if since else None
    except ValueError as error:
        raise Usage(f"--since {error}") from None
    found = session.client.activations(
        namespace=namespace, function=function, limit=limit, skip=skip or None, since=after
    )
    if session.json:
        print_json({"activations": found})
        return
    timed = ("TOTAL", "QUEUE", "CONTAINER", "IMPORT", "LOAD", "INFERENCE")
    headers = ["ACTIVATION", "FUNCTION", "WHEN", "START", "STATUS", *timed]
    table(
        headers, map(_row, found), right=timed, spare=("INFERENCE", "QUEUE", "IMPORT", "LOAD", "CONTAINER", "WHEN")
    )


def _row(activation: dict[str, Any]) -> list[str]:
    phases = activation.get("phases") or {}

    def took(*names: str) -> str:
        ms = sum(phases.get(f"{name}_ms") or 0.0 for name in names)
        return say_ms(ms) if ms else "-"

    return [
        activation["id"],
        f"{activation['namespace']}/{activation['function']}",
        clock(activation["wall"]),
        activation["start"],
        activation["status"],
        say_ms(activation["e2e_ms"]),
        took("queue"),
        took("container", "extract"),
        took("import"),
        took("load", "device", "warmup"),
        took("inference"),
    ]


@command("logs", example="instainfer logs magika")
def logs(
    session: Session,
    what: Annotated[str, typer.Argument(metavar="NAME|ACTIVATION", help="A function, or one activation's id.")],
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many lines of a function.")] = 200,
) -> None:
    """Show what a function, or one activation of it, printed."""
    if _ACTIVATION.fullmatch(what):
        found = session.client.activation_logs(what)
    else:
        try:
            found = session.client.logs(*split_name(what), limit=limit)
        except NotFound as missing:
            try:  # an id of another shape
                found = session.client.activation_logs(what)
            except NotFound:
                raise missing from None
    if session.json:
        print_json({"logs": found})
        return
    if not found:
        typer.echo(f"{what} printed nothing that is kept", err=True)
    for line in found:
        head = f"{clock(line['wall'])} {line['activation'][:8]} {line['stream']}"
        for text in line["text"].splitlines() or [""]:
            typer.echo(f"{typer.style(head, dim=True)}  {text}")
