"""The only readers of clocks."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds on a clock that never steps and goes on through a suspend."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, for people to read."""
        ...


class BootClock:
    """CLOCK_BOOTTIME: monotonic and, unlike CLOCK_MONOTONIC, advancing while the machine is suspended, so
    that an idle gap across a suspend is seen as long as it was."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        return time.time()
