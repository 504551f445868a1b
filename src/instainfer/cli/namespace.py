"""namespace: who may use the server, and how much of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from instainfer.cli.output import clock, print_json, table
from instainfer.cli.session import Session, Usage, command
from instainfer.model import Role
from instainfer.units import parse_bytes, say_mb


class Do(StrEnum):
    ADD = "add"
    LS = "ls"
    LIMIT = "limit"
    REVOKE = "revoke"


@command("namespace", example="instainfer namespace add vision --json")
def namespace(
    session: Session,
    do: Annotated[Do, typer.Argument(help="add a key, ls, limit what it may use, or revoke a key.")],
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The namespace.")] = "",
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="revoke: the key's id.")] = "",
    role: Annotated[Role, typer.Option(help="add: what the key is for.")] = Role.ADMIN,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="limit: of all its containers; 0: no limit.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="limit: requests under way; 0: no limit.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="limit: of calls; 0: no limit.")
    ] = None,
    functions: Annotated[int | None, typer.Option(metavar="N", min=0, help="limit: of them; 0: no limit.")] = None,
    stored: Annotated[
        str | None, typer.Option(metavar="SIZE", help="limit: of its packages, all versions; 0: no limit.")
    ] = None,
) -> None:
    """Namespaces, their keys and quotas.

    `add` makes a key for a namespace, and the namespace if it is new; the key is shown once. As soon as there is
    one key, requests need one, but for the server's owner on its own machine.
    """
    if do is Do.LS:
        _list(session, name)
        return
    if not name:
        raise Usage(f"{do.value} which namespace?", hint=f"`instainfer namespace {do.value} NAME`")
    if do is Do.ADD:
        found = session.client.add_namespace(name, role.value)
        if session.json:
            print_json(found)
        else:
            typer.echo(found["auth"])
            typer.echo(f"a key of {name} for {role.value}; it is not shown again", err=True)
    elif do is Do.REVOKE:
        if not key:
            raise Usage("revoke which key?", hint="`instainfer namespace ls` shows their ids")
        _say(session, session.client.revoke(name, key))
    else:
        quota = {
            "memory": _size("--memory", memory),
            "concurrency": concurrency,
            "requests_per_minute": requests_per_minute,
            "functions": functions,
            "stored_bytes": _size("--stored", stored),
        }
        given = {kind: value for kind, value in quota.items() if value is not None}
        if not given:
            raise Usage("no limit was given", hint="such as --memory 4GB --requests-per-minute 600")
        found = session.client.limit(name, given)
        if session.json:
            print_json(found)
        else:
            _show([found])


def _list(session: Session, name: str) -> None:
    found = [one for one in session.client.namespaces() if name in ("", one["namespace"])]
    if session.json:
        print_json({"namespaces": found})
        return
    _show(found)
    keys = [
        [key["id"], one["namespace"], key["role"], clock(key["created"])] for one in found for key in one["keys"]
    ]
    if keys:
        typer.echo()
        table(["KEY", "NAMESPACE", "ROLE", "CREATED"], keys)


def _show(found: list[dict[str, Any]]) -> None:
    headers = ["NAMESPACE", "KEYS", "MEMORY", "CONCURRENCY", "PER MINUTE", "FUNCTIONS", "STORED"]
    rows = []
    for one in found:
        quota = one["quota"]
        sizes = {kind: say_mb(quota[kind] / 1e6) if quota[kind] else "-" for kind in ("memory", "stored_bytes")}
        counts = [str(quota[kind] or "-") for kind in ("concurrency", "requests_per_minute", "functions")]
        rows.append([one["namespace"], str(len(one["keys"])), sizes["memory"], *counts, sizes["stored_bytes"]])
    table(headers, rows, right=headers[1:])


def _say(session: Session, found: dict[str, Any]) -> None:
    if session.json:
        print_json(found)
    else:
        typer.echo(found["message"])


def _size(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise Usage(f"{option} {error}") from None
