"""An agent as a process of its own, which outlives whoever started it.

In its data directory it leaves `agent.json` (who and where it is) while it serves, `agent.log`, and `epoch`, the
latest controller's that it has obeyed. A lock says whether it lives.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import uvloop

from instainfer import __version__, anew, ending, lock, outliving, tls
from instainfer.agent.compose import ARTIFACTS, compose
from instainfer.agent.http_server import serving
from instainfer.artifacts.shelf import Shelf, in_folders
from instainfer.config import Settings
from instainfer.errors import BadSettings

log = logging.getLogger("instainfer")

START_S = 60.0  # a sandbox removes what an earlier one left, and tries what works
ABOUT = "agent.json"
LOG = "agent.log"


class About(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    node: str
    url: str
    version: str


def address(listen: str) -> tuple[str, int]:
    """HOST:PORT or PORT. Raises BadSettings."""
    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise BadSettings(
            f"--listen {listen!r} is no HOST:PORT", hint="such as 10.0.0.7:3234; port 0 takes a free one"
        )
    return host.strip("[]") or "127.0.0.1", int(port)


def run(settings: Settings, *, node: str, listen: str, key: str, ready: Callable[[About], None]) -> None:
    """Serve until SIGTERM or SIGINT, which end everything on the node, after `cluster.drain_s` at most for it to
    stand elsewhere; a second one ends at once. `ready` is
    called when a controller can join."""
    again = uvloop.run(_run(settings, node, *address(listen), key, ready))
    if again:
        anew.begin("--listen", again)


async def _run(
    settings: Settings, node: str, host: str, port: int, key: str, ready: Callable[[About], None]
) -> str:
    """Where it is to listen again, if its controller told it to begin anew."""
    stop = ending.told()
    again: list[str] = []
    data = settings.server.data_dir
    with lock.alone(data):
        agent = await compose(settings, node, key=key)
        encrypted = tls.answering(settings.tls)
        epoch = data / "epoch"
        known = int(epoch.read_text()) if epoch.exists() else 0
        remember = lambda number: outliving.write(epoch, str(number).encode())  # noqa: E731
        shelf = Shelf(in_folders(data / ARTIFACTS))

        def restart() -> None:
            again.append(url.partition("://")[2])
            stop.set()

        async with serving(
            agent,
            host,
            port,
            key,
            epoch=known,
            remember=remember,
            shelf=shelf,
            restart=restart,
            tls=encrypted,
            leaves_s=settings.cluster.drain_s,
        ) as url:
            about = About(pid=os.getpid(), node=node, url=url, version=__version__)
            outliving.write(data / ABOUT, msgspec.json.encode(about))
            log.info("agent %s serves at %s", node, url)
            ready(about)
            await stop.wait()
            log.info("stopping: what runs here ends, when it stands elsewhere")
        (data / ABOUT).unlink(missing_ok=True)
    return again[0] if again else ""


def find(data: Path) -> About | None:
    """The agent that lives in this data directory."""
    return outliving.find(data, ABOUT, About)


def ensure(data: Path, arguments: Sequence[str], environ: dict[str, str] | None = None) -> About:
    """The agent that lives there, or one that is started with these arguments of `instainfer agent`, in a session
    of its own. Blocks. Raises Unavailable."""
    command = [sys.executable, "-m", "instainfer.cli", "agent", "--data-dir", str(data), *arguments]
    return outliving.ensure(data, ABOUT, About, LOG, command, environ, START_S)
