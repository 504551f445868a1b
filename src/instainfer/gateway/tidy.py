"""The server's memory is looked through for garbage at moments at which nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from instainfer import garbage

EVERY_S = 300.0
QUIET_S = 2.0  # without a request: more are not likely to come in the hundredth of that which it takes


class Busy(Protocol):
    """Of the controller, what tells whether somebody waits."""

    @property
    def last_request(self) -> int: ...

    @property
    def under_way(self) -> int: ...


async def keep_tidy(controller: Busy, *, pause: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
    """For ever. Functions, containers and records that came since the last time then live for good; a server that
    is never quiet has its young objects looked at, as always, and those alone."""
    while True:
        await pause(EVERY_S)
        before = -1
        while controller.under_way or controller.last_request != before:
            before = controller.last_request
            await pause(QUIET_S)
        garbage.settle()
