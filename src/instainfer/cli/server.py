"""serve, status, version."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from instainfer import __version__
from instainfer.cli.output import facts, print_json
from instainfer.cli.session import Session, Usage, command
from instainfer.errors import BadSettings
from instainfer.units import say_mb, say_s


@command("serve", example="instainfer serve --memory 8GB --port 3233")
def serve(
    session: Session,
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Port to listen on [3233]; 0 takes a free one.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where packages, environments and records are kept.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="For all containers together [70% of this machine's].")
    ] = None,
    zygote_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of it, for library zygotes; 0 starts none [half of the memory]."),
    ] = None,
    sandbox: Annotated[
        str | None, typer.Option(metavar="KIND", help="auto, linux or process [auto: the strictest that works].")
    ] = None,
    policy: Annotated[str | None, typer.Option(metavar="MODE", help="Pre-loading mode [hazard].")] = None,
    keep_alive: Annotated[str | None, typer.Option(metavar="POLICY", help="Keep-alive policy [pressure].")] = None,
    keep_alive_seconds: Annotated[
        str | None, typer.Option(metavar="TIME", help="For keep-alive policies with a time [600].")
    ] = None,
    shadow: Annotated[
        str | None, typer.Option(metavar="A,B", help="Modes that decide beside it and never act: see `policies`.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Nodes: ray, ray://HOST:PORT, or a=http://HOST:PORT,… [this machine alone]."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings [INSTAINFER_CONFIG, then ./instainfer.toml].")
    ] = None,
    detach: Annotated[
        bool, typer.Option(help="Start it in a session of its own, unless it runs; return when it serves.")
    ] = False,
) -> None:
    """Start the platform on this machine, or in front of a cluster.

    It stays until interrupted. Every setting is also a key of instainfer.toml and an environment variable
    INSTAINFER_SECTION__KEY; options win over the environment, the environment over the file.
    """
    from instainfer import config as settings

    flags: dict[str, dict[str, Any]] = {
        "server": {
            "host": host,
            "port": port,
            "data_dir": data_dir or session.data_dir,
            "api_key": session.api_key,
        },
        "node": {"memory": memory, "zygote_memory": zygote_memory},
        "cluster": {"address": cluster},
        "sandbox": {"kind": sandbox},
        "policy": {"mode": policy, "keep_alive": keep_alive, "keep_alive_s": keep_alive_seconds, "shadow": shadow},
    }
    try:
        chosen = settings.load(config, flags=flags)
        if detach:
            given = {
                "--host": host,
                "--port": port,
                "--memory": memory,
                "--zygote-memory": zygote_memory,
                "--sandbox": sandbox,
                "--policy": policy,
                "--keep-alive": keep_alive,
                "--keep-alive-seconds": keep_alive_seconds,
                "--shadow": shadow,
                "--cluster": cluster,
                "--config": config.absolute() if config is not None else None,
            }
            line = [str(part) for option, value in given.items() if value is not None for part in (option, value)]
            _detach(session, chosen.server.data_dir.absolute(), line)
            return
        from instainfer.gateway import serve as run

        run(chosen)
    except BadSettings as error:  # also a policy's, whose names and numbers only the server knows
        raise Usage(error.message, hint=error.hint) from None


def _detach(session: Session, data: Path, line: list[str]) -> None:
    from instainfer.gateway import about

    key = {"INSTAINFER_SERVER__API_KEY": session.api_key} if session.api_key else {}
    found = about.ensure(data, line, {**os.environ, **key})
    if session.json:
        print_json({"pid": found.pid, "url": found.url, "version": found.version, "number": found.number})
    else:
        typer.echo(f"instainfer serves at {found.url}")


@command("status", example="instainfer status --json")
def status(session: Session) -> None:
    """Show the server's version, sandbox, policy and memory."""
    found = session.client.status()
    if session.json:
        print_json(found)
        return
    policy = found.get("policy") or {}
    facts(
        {
            "server": session.client.where,
            "version": str(found.get("version", "")),
            "up for": say_s(found.get("uptime_s", 0.0)),
            "memory": say_mb(found.get("memory_mb", 0.0)),
            "sandbox": str(found.get("sandbox", "")),
            "policy": ", ".join(f"{key}={value}" for key, value in policy.items()),
        }
    )
    for missing in found.get("missing", ()):
        typer.echo(typer.style("not isolated:", fg="yellow") + f" {missing}")


@command("version", example="instainfer version")
def version(session: Session) -> None:
    """Show this program's version; `status` shows the server's."""
    if session.json:
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        typer.echo(f"instainfer {__version__} (Python {platform.python_version()})")
