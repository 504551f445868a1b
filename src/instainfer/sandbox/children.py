"""Waiting for processes by descriptor: no thread, no SIGCHLD handler to fight over with an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal


class Exit:
    """Tells when the process behind a pidfd has ended. Owns the descriptor."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = loop.create_future()
        loop.add_reader(pidfd, self._ended)

    def send(self, number: int) -> None:
        """Does nothing once it has ended."""
        if not self._over.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> None:
        await asyncio.shield(self._over)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self._over.done():
            self._over.set_result(None)
