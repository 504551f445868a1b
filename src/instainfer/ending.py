"""How a process learns that it is to end."""

from __future__ import annotations

import asyncio
import os
import signal


def told() -> asyncio.Event:
    """Set by SIGINT or SIGTERM. A second one ends the process at once: what it leaves behind is removed by the
    sandbox's launcher, or by the next start."""
    stop = asyncio.Event()

    def signalled() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled)
    return stop
