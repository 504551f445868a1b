"""agent, cluster: many machines."""

from __future__ import annotations

import os
import socket
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instainfer.cli.output import print_json, table
from instainfer.cli.session import Session, Usage, command
from instainfer.errors import BadSettings
from instainfer.units import say_mb

if TYPE_CHECKING:
    from instainfer.agent.process import About


@command(
    "agent", example="instainfer agent --node a --listen 10.0.0.7:3234 --key-file /etc/instainfer/cluster.key"
)
def agent(
    session: Session,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="The node's name [the host's].")] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where controllers reach it; port 0 takes a free one.")
    ] = "127.0.0.1:3234",
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key that controllers have to know [cluster.key].")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="For all its containers together [70% of this machine's].")
    ] = None,
    sandbox: Annotated[
        str | None, typer.Option(metavar="KIND", help="auto, linux or process [auto: the strictest that works].")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings [INSTAINFER_CONFIG, then ./instainfer.toml].")
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="Start it in a session of its own, unless it runs; return when it can be joined."
        ),
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="End the one of this --data-dir, and what it runs.")
    ] = False,
) -> None:
    """Run this machine's containers for a controller elsewhere.

    It outlives its controller: what rests is there for the next one. SIGTERM ends it and all that it runs. One
    --data-dir is one node.
    """
    from instainfer import config as settings
    from instainfer import outliving
    from instainfer.agent import process

    flags: dict[str, dict[str, Any]] = {
        "server": {"data_dir": session.data_dir},
        "node": {"memory": memory},
        "sandbox": {"kind": sandbox},
    }
    try:
        chosen = settings.load(config, flags=flags)
        data = chosen.server.data_dir
        if stop:
            told = outliving.stop(data)
            _say(session, {"stopped": told}, "it has ended" if told else "there is none")
            return
        process.address(listen)
        key = key_file.read_text("utf-8").strip() if key_file is not None else chosen.cluster.key
        if not key:
            raise BadSettings("an agent needs a key", hint="--key-file FILE, or INSTAINFER_CLUSTER__KEY")
        name = node or socket.gethostname()
        if detach:
            given = {"--config": config, "--memory": memory, "--sandbox": sandbox}
            passed = [
                str(part) for option, value in given.items() if value is not None for part in (option, value)
            ]
            environ = {**os.environ, "INSTAINFER_CLUSTER__KEY": key}
            about = process.ensure(data, ["--node", name, "--listen", listen, *passed], environ)
            _announce(session, about)
            return
        process.run(chosen, node=name, listen=listen, key=key, ready=lambda about: _announce(session, about))
    except OSError as error:
        raise Usage(f"{error.filename}: {error.strerror}") from None
    except BadSettings as error:
        raise Usage(error.message, hint=error.hint) from None


def _announce(session: Session, about: About) -> None:
    shown = {"node": about.node, "url": about.url, "pid": about.pid, "version": about.version}
    _say(session, shown, f"instainfer agent {about.node} serves at {about.url}")


def _say(session: Session, found: dict[str, Any], text: str) -> None:
    if session.json:
        print_json(found)
    else:
        typer.echo(text)


class Do(StrEnum):
    UP = "up"
    STATUS = "status"
    DRAIN = "drain"
    RESTART = "restart"
    KEEP = "keep"
    DOWN = "down"


@command("cluster", example="instainfer cluster up --nodes 3")
def cluster(
    session: Session,
    do: Annotated[Do, typer.Argument(help="up, status, drain NODE, restart, keep, or down.")],
    node: Annotated[str, typer.Argument(metavar="[NODE]", help="drain, restart: which.")] = "",
    nodes: Annotated[int, typer.Option(metavar="N", min=1, max=32, help="up: how many.")] = 3,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="up: of each, for its containers.")] = "1GB",
    port: Annotated[
        int, typer.Option(metavar="PORT", help="up: of the gateway, keep: of the server; 0 takes a free one.")
    ] = 3233,
    sandbox: Annotated[str, typer.Option(metavar="KIND", help="up, keep: auto, linux or process.")] = "auto",
    undo: Annotated[bool, typer.Option("--undo", help="drain, keep: take it back.")] = False,
) -> None:
    """Nodes, and a cluster on this machine to try it with.

    `up` starts Ray on this machine as if it were several, with token authentication, an agent on each of its
    nodes, a server that Ray keeps running, and a gateway in front; `down` ends all of it. Both keep what they need
    in --data-dir [./instainfer-cluster].

    `status`, `drain` and `restart` work with any server. `restart` is a rolling one, of the agents one after the
    other and then of the server, or of NODE alone; behind a gateway no request fails by it. `keep` has Ray keep
    one server running, on whichever host there is, with the settings of this environment.
    """
    if do is Do.UP or do is Do.DOWN:
        from instainfer import trial

        data = (session.data_dir or Path("instainfer-cluster")).absolute()
        if do is Do.UP:
            found = trial.up(data, nodes=nodes, memory=memory, port=port, sandbox=sandbox)
            _say(session, found, f"instainfer serves at {found['url']}, on {nodes} nodes")
        else:
            ended = trial.down(data)
            _say(session, {"ended": ended}, f"{ended} processes have ended")
    elif do is Do.STATUS:
        shown, about = session.client.nodes(), session.client.status()
        if session.json:
            print_json({"nodes": shown, "server": about.get("server", {}), "gateways": about.get("gateways", [])})
        else:
            _show(shown)
            _show_front(about)
    elif do is Do.KEEP:
        _keep(session, port, sandbox, undo=undo)
    elif do is Do.RESTART:
        from instainfer import rolling

        for said in rolling.restart(session.client, [node] if node else (), server=not node):
            _say(session, {"done": said}, said)
    else:
        if not node:
            raise Usage("drain which node?", hint="`instainfer cluster status` shows them")
        one = session.client.drain(node, undo=undo)
        _say(session, one, f"{node} is {one['state']}")


def _keep(session: Session, port: int, sandbox: str, *, undo: bool) -> None:
    from instainfer import config
    from instainfer.cluster import keeping

    chosen = config.load(flags={"server": {"data_dir": session.data_dir}})
    kind, _, address = (chosen.cluster.address or "ray").partition("://")
    if kind != "ray":
        raise Usage(
            f"cluster.address = {chosen.cluster.address!r} is no Ray cluster's", hint="ray, or ray://HOST:PORT"
        )
    if undo:
        there = keeping.release(address)
        _say(session, {"released": there}, "it has ended" if there else "there is none")
        return
    found = keeping.keep(address, chosen.server.data_dir, ["--port", str(port), "--sandbox", sandbox])
    _say(session, found, f"instainfer serves at {found['url']}, on {found['node']}")


def _show_front(about: dict[str, Any]) -> None:
    server = about.get("server") or {}
    if server:
        typer.echo(
            f"\nserver {server['url']}: process {server['pid']} on {server['host']}, number {server['number']}"
        )
    gateways = about.get("gateways") or []
    if gateways:
        headers = ("GATEWAY", "AT", "HELD", "SENT AGAIN", "REFUSED", "INTERRUPTED")
        keys = ("held", "sent_again", "refused", "interrupted")
        rows = [(one["name"], one["url"], *(str(one.get(key, "")) for key in keys)) for one in gateways]
        table(headers, rows, right=headers[2:])


def _show(nodes: list[dict[str, Any]]) -> None:
    headers = ("NODE", "STATE", "CLUSTER", "MEMORY", "COMMITTED", "CONTAINERS", "INSTANCES", "PROBLEM")
    rows = [
        (
            *(one["node"], one["state"], one["cluster"], say_mb(one["memory_mb"]), say_mb(one["committed_mb"])),
            *(str(one["containers"]), str(one["instances"]), one["problem"]),
        )
        for one in nodes
    ]
    table(headers, rows, right=("MEMORY", "COMMITTED", "CONTAINERS", "INSTANCES"))
