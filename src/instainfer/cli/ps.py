"""ps: containers, the instances in them, and what those are forked from."""

from __future__ import annotations

from typing import Any

import typer

from instainfer.cli.output import bar, is_terminal, print_json, table
from instainfer.cli.session import Session, command
from instainfer.units import say_mb, say_s

_WIDTH = 24


@command("ps", example="instainfer ps")
def ps(session: Session) -> None:
    """List containers, their memory, the instances in them, and library zygotes.

    In the bar of a container: full is its owner, shaded its guests (pre-loaded into memory that the owner
    was not using), light is idle.
    """
    found = session.client.containers()
    if session.json:
        print_json(found)
        return
    node, containers = found.get("node") or {}, found.get("containers") or []
    zygotes = found.get("zygotes") or []
    given = f"{len(containers)} container{'s' * (len(containers) != 1)}"
    if zygotes:
        given += f" and {len(zygotes)} zygote{'s' * (len(zygotes) != 1)}"
    typer.echo(
        f"{say_mb(node.get('committed_mb', 0))} of {say_mb(node.get('memory_mb', 0))} "
        f"given to {given}, sandbox {node.get('sandbox', '')}"
    )
    if zygotes:
        typer.echo()
        rows = [
            [z["id"], z["state"], say_mb(z["bytes_mb"]), say_s(z["age_s"]), ", ".join(z["functions"])]
            for z in zygotes
        ]
        table(["ZYGOTE", "STATE", "MEMORY", "AGE", "FOR"], rows, right=("MEMORY", "AGE"))
    if not containers:
        return
    typer.echo()
    headers = ["CONTAINER", "OWNER", "STATE", "USED BY OWNER", "BY GUESTS", "IDLE", "LIMIT", "AGE", "EXPIRES"]
    drawn = is_terminal()
    rows = [_container(container, drawn) for container in containers]
    table([*headers, "MEMORY"] if drawn else headers, rows, right=headers[3:])
    typer.echo()
    right = ("MEMORY", "SERVED", "VERSION")
    table(
        ["INSTANCE", "CONTAINER", "FUNCTION", "VERSION", "LEVEL", "STATE", "MEMORY", "SERVED"],
        [
            _instance(instance, container)
            for container in containers
            for instance in container.get("instances", ())
        ],
        right=right,
    )


def _container(container: dict[str, Any], drawn: bool) -> list[str]:
    """`used_mb` is measured for the whole container, so what no instance accounts for (the manager, scratch
    files) is counted to the owner."""
    owner = _key(container, container["owner"])
    guests = sum(i["bytes_mb"] for i in container.get("instances", ()) if _key(container, i["function"]) != owner)
    guests = min(guests, container["used_mb"])
    own, idle = container["used_mb"] - guests, container["idle_mb"]
    expires = container.get("expires_in_s")
    row = [
        container["id"],
        owner,
        container["state"],
        say_mb(own),
        say_mb(guests),
        say_mb(idle),
        say_mb(container["limit_mb"]),
        say_s(container["age_s"]),
        "pinned" if container.get("pinned") else "-" if expires is None else say_s(expires),
    ]
    return [*row, bar([(own, "█"), (guests, "▓"), (idle, "░")], _WIDTH)] if drawn else row


def _instance(instance: dict[str, Any], container: dict[str, Any]) -> list[str]:
    return [
        instance["id"],
        container["id"],
        _key(container, instance["function"]),
        str(instance["version"]),
        instance["level"],
        instance["state"] + (" (frozen)" if instance.get("frozen") else ""),
        say_mb(instance["bytes_mb"]),
        str(instance["served"]),
    ]


def _key(container: dict[str, Any], function: str) -> str:
    return function if "/" in function or not function else f"{container['namespace']}/{function}"
