"""One server at a time on a database that several can reach.

What a server knows of functions, keys and waiting jobs it keeps in memory, so a database is one server's. It holds
a lease on it, by the database's clock, and every write of it shows the lease's number (the fence): a server that
was taken for dead and comes back changes nothing. A server that cannot renew its lease stops what others would
begin again, before they may.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from instainfer.errors import InstaInferError, Unavailable

log = logging.getLogger("instainfer.store")

LOOK_S = 0.5  # between two looks at somebody else's lease


class Leased(Protocol):
    def take_lease(self, holder: str, about: str, seconds: float) -> tuple[str, float] | None:
        """None: it is ours now, for so long, and what we write from now on is fenced by it. Else who has it, and
        for how many seconds yet. One that `holder` had is its own."""
        ...

    def renew_lease(self, seconds: float) -> bool:
        """False: it is somebody else's."""
        ...

    def release_lease(self) -> None: ...


def holder(lock: Path) -> str:
    """Names whoever holds this lock file: two servers with one name cannot run at once."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    started = boot.read_text().strip() if boot.exists() else ""
    about = lock.stat()
    return f"{socket.gethostname()}:{started}:{lock.absolute()}:{about.st_dev}:{about.st_ino}"


class Lease:
    """`pause` and `resume`: what is said when it is about to run out unrenewed, and when it is good again; `lost`:
    when it is somebody else's."""

    def __init__(self, store: Leased, lock: Path, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._holder = holder(lock)
        self._about = f"process {os.getpid()} on {socket.gethostname()}, data directory {lock.absolute().parent}"
        self._until = 0.0  # by the loop's clock

    async def take(self, *, standby: bool) -> None:
        """Waits until one that nobody renews has run out. Raises Unavailable when somebody does, and `standby`
        is not to wait for their end."""
        loop = asyncio.get_running_loop()
        first = None
        while True:
            began = loop.time()
            found = await asyncio.to_thread(self._store.take_lease, self._holder, self._about, self._seconds)
            if found is None:
                self._until = began + self._seconds
                return
            about, left = found
            if first is None:
                first = began + left
                log.info("the database is %s's, for %.1f s yet: waiting", about, left)
            elif began > first and not standby:
                raise Unavailable(
                    f"another server uses this database: {about}",
                    hint="stop it, give this one its own store.url, or have it wait with store.standby",
                )
            await asyncio.sleep(min(LOOK_S, max(left, 0.01)))

    async def keep(
        self, *, pause: Callable[[], None], resume: Callable[[], None], lost: Callable[[], None]
    ) -> None:
        """For as long as the server runs."""
        loop = asyncio.get_running_loop()
        paused = False
        asked: asyncio.Task[bool] | None = None
        began = 0.0
        while True:
            if asked is None:
                await asyncio.sleep(min(self._seconds / 4, max(self._until - loop.time(), 0.0) + LOOK_S))
                began = loop.time()
                asked = asyncio.create_task(asyncio.to_thread(self._store.renew_lease, self._seconds))
            # a fifth before its end: what is stopped then is over when another server may begin it
            left = self._until - self._seconds / 5 - loop.time()
            await asyncio.wait({asked}, timeout=LOOK_S if paused else max(left, 0.0))
            renewed: bool | None = None
            if asked.done():
                with contextlib.suppress(InstaInferError):
                    renewed = asked.result()
                asked = None
            if renewed:
                self._until = began + self._seconds
                if paused:
                    log.warning("the lease on the database is renewed: going on with jobs")
                    paused = False
                    resume()
            elif renewed is False:
                pause()
                log.error("another server has taken over the database: this one ends")
                lost()
                return
            elif not paused and loop.time() >= self._until - self._seconds / 5:
                log.error("the lease on the database cannot be renewed: jobs wait, those that run are stopped")
                paused = True
                pause()

    async def release(self) -> None:
        with contextlib.suppress(InstaInferError):
            await asyncio.to_thread(self._store.release_lease)
