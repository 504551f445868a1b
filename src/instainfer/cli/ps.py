"""ps: containers, the instances in them, and what those are forked from."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instainfer.cli.output import bar, drawn, is_terminal, narrowed, print_json, safe, table
from instainfer.cli.session import Session, Usage, command
from instainfer.errors import Unavailable
from instainfer.units import say_mb, say_s

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDTH = 24
_EVERY_S = 1.0
#: Of containers, where a terminal is narrow: the bar says in a picture what its neighbours say.
_SPARE = ("SHARES", "AGE")


#: Headers, rows, and the headers of numbers.
Part = tuple[list[str], list[list[str]], Sequence[str]]


@command("ps", example="instainfer ps --watch")
def ps(
    session: Session,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay, and show it anew every second.")] = False,
) -> None:
    """List containers, their memory, and what is loaded in them.

    And library zygotes. In the bar of a container: full is its owner, shaded its guests (pre-loaded into memory
    that the owner was not using), light is idle. With --watch and --json: a document a line, every second.
    """
    if watch:
        _watch(session)
        return
    found = session.client.containers()
    if session.json:
        print_json(found)
        return
    typer.echo(_summary(found))
    for headers, rows, right in _parts(found, bars=is_terminal()):
        typer.echo()
        table(headers, rows, right=right, spare=_SPARE)


def _watch(session: Session) -> None:
    """Until it is interrupted; a server that is away is waited for."""
    if session.json:
        while True:
            print_json(session.client.containers())
            sys.stdout.flush()
            time.sleep(_EVERY_S)
    if not is_terminal():
        raise Usage("--watch needs a terminal", hint="with --json it prints a document a line anywhere")
    from rich.live import Live

    shown: RenderableType = ""
    with Live(screen=True, auto_refresh=False) as screen:
        while True:
            try:
                shown = picture(session.client.containers())
                screen.update(shown, refresh=True)
            except Unavailable as error:
                screen.update(away(shown, error), refresh=True)
            time.sleep(_EVERY_S)


def picture(found: dict[str, Any]) -> RenderableType:
    """What `ps` prints on a terminal, in one piece."""
    from rich.console import Console, Group
    from rich.text import Text

    width = Console().width
    drawn_parts = [
        drawn(*narrowed(headers, rows, _SPARE, width), right) for headers, rows, right in _parts(found, bars=True)
    ]
    return Group(Text(safe(_summary(found))), *(one for part in drawn_parts for one in (Text(), part)))


def away(shown: RenderableType, error: Unavailable) -> RenderableType:
    """What was there, and that nobody answers now."""
    from rich.console import Group
    from rich.text import Text

    return Group(Text(f"{safe(error.message)}; trying again", style="bold red"), Text(), shown)


def _summary(found: dict[str, Any]) -> str:
    node, zygotes = found.get("node") or {}, found.get("zygotes") or []
    containers = found.get("containers") or []
    given = f"{len(containers)} container{'s' * (len(containers) != 1)}"
    if zygotes:
        given += f" and {len(zygotes)} zygote{'s' * (len(zygotes) != 1)}"
    return (
        f"{say_mb(node.get('committed_mb', 0))} of {say_mb(node.get('memory_mb', 0))} "
        f"given to {given}, sandbox {node.get('sandbox', '')}"
    )


def _parts(found: dict[str, Any], *, bars: bool) -> Iterator[Part]:
    if zygotes := found.get("zygotes"):
        rows = [
            [z["id"], z["state"], say_mb(z["bytes_mb"]), say_s(z["age_s"]), ", ".join(z["functions"])]
            for z in zygotes
        ]
        yield ["ZYGOTE", "STATE", "MEMORY", "AGE", "FOR"], rows, ("MEMORY", "AGE")
    containers = found.get("containers")
    if not containers:
        return
    headers = ["CONTAINER", "OWNER", "STATE", "USED BY OWNER", "BY GUESTS", "IDLE", "LIMIT", "AGE", "EXPIRES"]
    rows = [_container(container, bars) for container in containers]
    yield [*headers, "SHARES"] if bars else headers, rows, headers[3:]
    yield (
        ["INSTANCE", "CONTAINER", "FUNCTION", "VERSION", "LEVEL", "STATE", "MEMORY", "SERVED"],
        [_instance(one, container) for container in containers for one in container.get("instances", ())],
        ("MEMORY", "SERVED", "VERSION"),
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
