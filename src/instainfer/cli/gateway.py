"""gateway: in front of servers that come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from instainfer.cli.output import print_json
from instainfer.cli.session import Session, Usage, command
from instainfer.errors import BadSettings


@command("gateway", example="instainfer gateway --server http://10.0.0.7:3233 --server http://10.0.0.8:3233")
def gateway(
    session: Session,
    servers: Annotated[
        list[str] | None,
        typer.Option("--server", metavar="URL", help="One that may serve; several times, or with commas."),
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="The servers' database: who has it says there where it is.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [3233]; 0 takes a free one.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings [INSTAINFER_CONFIG, then ./instainfer.toml].")
    ] = None,
) -> None:
    """Pass callers' requests on to whichever server serves.

    While none does, since it is restarted or another one takes over, requests wait here. What had not been begun
    is sent to the next server, and so is what has an idempotency key or is answered later; nothing is begun twice.
    Any number of gateways may run, anywhere.
    """
    from instainfer import config as settings

    named = ",".join(servers) if servers else None
    flags: dict[str, dict[str, Any]] = {"gateway": {"servers": named, "store": store, "host": host, "port": port}}
    try:
        chosen = settings.load(config, flags=flags)
        from instainfer import telemetry
        from instainfer.front import process

        telemetry.configure(as_json=chosen.server.log == "json")
        process.run(chosen, lambda url: _announce(session, url))
    except BadSettings as error:
        raise Usage(error.message, hint=error.hint) from None


def _announce(session: Session, url: str) -> None:
    if session.json:
        print_json({"url": url})
    else:
        print(f"instainfer gateway at {url}", flush=True)
