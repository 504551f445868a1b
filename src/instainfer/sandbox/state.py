"""The directory in which a sandbox keeps what must survive a kill -9 of its server."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from instainfer.errors import Unavailable


class State:
    """Held by one server at a time, through a lock that the kernel drops whatever ends the server.

    `id` is the directory's own, random, made once: everything this sandbox creates carries it in its name, so
    that the next server finds all of it, and nothing of a server that uses another directory. `run` is new
    each time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = ""
        self.run = secrets.token_hex(4)
        self._lock: int | None = None

    @property
    def name(self) -> str:
        return f"{self.id}-{self.run}"

    @property
    def root(self) -> Path:
        """An empty directory to mount on, each container in a mount namespace of its own."""
        return self.path / "root"

    def take(self) -> None:
        """Idempotent. Raises Unavailable while another live server holds it."""
        if self._lock is not None:
            return
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(self.path / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(
                f"the sandbox cannot use {self.path}: {error.strerror}",
                hint="give the server a data directory that it may write to",
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise Unavailable(
                f"another server is using {self.path}", hint="stop it, or choose another --data-dir"
            ) from None
        known = os.read(lock, 64).decode(errors="replace").strip()
        if len(known) != 16 or not known.isalnum():
            known = secrets.token_hex(8)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{known}\n".encode(), 0)
            os.fsync(lock)  # before anything carries the name
        self.id = known
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
