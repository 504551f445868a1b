"""A server as a process that outlives whoever has it started: found, started and ended by its data directory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from instainfer import outliving

FILE = "server.json"  # in its data directory while it serves
LOG = "server.log"  # of one that was detached
START_S = 120.0


class About(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    url: str
    version: str
    number: int = 0


def tell(data: Path, about: About) -> None:
    outliving.write(data / FILE, msgspec.json.encode(about))


def find(data: Path) -> About | None:
    return outliving.find(data, FILE, About)


def ensure(
    data: Path, arguments: Sequence[str], environ: dict[str, str] | None = None, seconds: float = START_S
) -> About:
    """The server that lives there, or one that is started with these arguments of `instainfer serve`. Blocks.
    Raises Unavailable where none serves in time; one that stands by goes on doing so."""
    command = [sys.executable, "-m", "instainfer.cli", "serve", "--data-dir", str(data), *arguments]
    return outliving.ensure(data, FILE, About, LOG, command, environ, seconds)
