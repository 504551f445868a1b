"""How the owner of a server that asks for keys gets in without one: by the port's name, to its admin socket.

A server with keys leaves a link from its port to its admin socket in the user's runtime directory; who may open
the socket is the file system's business.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from instainfer.config import is_loopback


def directory() -> Path | None:
    """Of this user, or None where there is none that is nobody else's."""
    if os.geteuid() == 0:
        return Path("/run/instainfer")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "instainfer" if runtime else None


def publish(port: int, admin: Path) -> None:
    """Leave the link, if that can be: without it one needs a key, or --data-dir, on the command line."""
    folder = directory()
    if folder is None:
        return
    link = folder / f"{port}.sock"
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob("*.sock"):  # by servers that were killed
            if left == link or left.readlink() == admin or not left.exists():
                left.unlink(missing_ok=True)
        link.symlink_to(admin)


def withdraw(port: int) -> None:
    if (folder := directory()) is not None:
        with suppress(OSError):
            (folder / f"{port}.sock").unlink(missing_ok=True)


def find(url: str) -> Path | None:
    """The admin socket of this user's server at `url`, if that is on this machine, asks for keys and answers."""
    folder = directory()
    try:
        parts = urlsplit(url)
        port = parts.port or 80
        if folder is None or not is_loopback(parts.hostname or ""):
            return None
        link = folder / f"{port}.sock"
        about = folder.stat()
        if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o022:
            return None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as attempt:
            attempt.connect(str(link))
        return link.resolve()
    except (OSError, ValueError):
        return None
