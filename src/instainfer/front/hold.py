"""What a gateway keeps for callers: requests that wait for a server, and bodies that may have to be sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from instainfer.errors import NoServer
from instainfer.front.servers import Server, Servers


class Hold:
    """`most` requests wait, for `seconds` each; bodies take `memory` bytes."""

    def __init__(self, servers: Servers, *, most: int, memory: int, seconds: float) -> None:
        self.held = 0
        self.kept = 0  # bytes
        self.refused = 0
        self._servers = servers
        self._most = most
        self._memory = memory
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()

    def until(self) -> float:
        """By the loop's clock, the end of a wait that begins now."""
        return self._loop.time() + self._seconds

    def keep(self, size: int, *, in_any_case: bool) -> bool:
        """Whether so many bytes more can be kept; then they are, until they are `dropped`."""
        if self.kept + size > self._memory and not in_any_case:
            return False
        self.kept += size
        return True

    def dropped(self, size: int) -> None:
        self.kept -= size

    async def wait(self, until: float, leaving: Callable[[Callable[[], object]], None]) -> Server:
        """The server that serves. `leaving`: told what to call when the caller goes away, which raises
        CancelledError here. Raises NoServer."""
        if self.kept > self._memory:
            raise self.refuse(f"no server serves, and requests of {self.kept / 1e6:.0f} MB wait for one")
        if self.held >= self._most:
            raise self.refuse(f"no server serves, and {self.held} requests wait for one")
        found = self._servers.found()
        leaving(found.cancel)
        self.held += 1
        try:
            async with asyncio.timeout_at(until):
                return await found
        except TimeoutError:
            raise self.refuse(f"no server serves: it waited {self._seconds:g} s for one") from None
        finally:
            self.held -= 1

    def refuse(self, said: str) -> NoServer:
        self.refused += 1
        return NoServer(said, hint="send it again; `instainfer cluster status` asks the server", retry_after_s=5.0)
