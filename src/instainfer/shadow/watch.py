"""The server's side of its shadows: tells each of them what happens, and keeps what they report.

Nothing here waits for a shadow. What is told is appended to memory and written to a pipe once a second; a
shadow that is too far behind, that fails or that ends is out, which is logged and told, and stays out: what it
has missed cannot be made up for. All begin anew with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from instainfer.books import Ticket
from instainfer.clock import Clock
from instainfer.core import events as ev
from instainfer.core.events import AnyEvent
from instainfer.observe import Gauge
from instainfer.shadow.live import Live
from instainfer.shadow.messages import FOLLOWED, LENGTH, Gave, Report, Start, Tick, packed, put, reported

log = logging.getLogger(__name__)

TICK_S = 1.0
MOST_EVENTS = 100_000  # told and not followed yet: some 5 MB
LONGEST_S = 60.0  # from a tick to its report
WAIT_S = 2.0  # of a reader, for the shadows to be up to date
STOP_S = 2.0

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Shadow:
    """One of them, as the server sees it."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.state = "following"  # then, for good: behind, failed or ended
        self.reason = ""
        self.report: Report | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ticks: deque[tuple[int, float, int]] = deque()  # without a report: number, when it was told, events
        self._seen = 0  # events told before the tick reported last
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def following(self) -> bool:
        return self.state == "following"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.following else None

    async def begin(self) -> None:
        """Start its process; one that cannot be started is out."""
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "instainfer.shadow.process", str(os.getpid())),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT},
            )
        except OSError as error:
            self._out("failed", f"its process cannot be started: {error}")
            return
        self._write(packed(self.start))
        self._reader = asyncio.create_task(self._read(self._process))

    def tell(self, data: bytes, tick: int, told: int, now: float) -> None:
        """Events, and the tick after them; `told`: how many events in all."""
        if self.following:
            self._ticks.append((tick, now, told))
            self._write(data)

    def judge(self, told: int, now: float, *, most: int, longest_s: float) -> None:
        """Is it still near enough? `now`: on the loop's clock."""
        if not self.following:
            return
        behind = told - self._seen
        if behind > most:
            self._out("behind", f"it could not keep up: {behind} events behind, where {most} are the most")
        elif self._ticks and now - self._ticks[0][1] > longest_s:
            self._out("behind", f"it could not keep up: over {longest_s:g} s behind")

    def behind_s(self, now: float) -> float:
        """Since when it owes a report."""
        return now - self._ticks[0][1] if self.following and self._ticks else 0.0

    async def reached(self, tick: int) -> None:
        """Until it has reported that tick, or is out."""
        if not self.following or (self.report is not None and self.report.tick >= tick):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((tick, future))
        await future

    async def aclose(self) -> None:
        """End it: it is told, and killed if it does not hear."""
        process, self._process = self._process, None
        if self.following:
            self.state = "ended"
        self._wake()
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._reader is not None:
            await self._reader

    def _write(self, data: bytes) -> None:
        stdin = self._process.stdin if self._process is not None else None
        if stdin is not None and not stdin.is_closing():
            stdin.write(data)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        stdout = process.stdout
        assert stdout is not None
        try:
            while True:
                size = int.from_bytes(await stdout.readexactly(LENGTH), "big")
                message = reported(await stdout.readexactly(size))
                if isinstance(message, Gave):
                    self._out("failed", f"its policy failed: {message.reason}")
                elif self.following:
                    self._reported(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            self._out("ended", f"its process ended: {_ending(await process.wait())}")
        except msgspec.MsgspecError as error:
            self._out("failed", f"its report cannot be read: {error}")

    def _reported(self, report: Report) -> None:
        self.report = report
        while self._ticks and self._ticks[0][0] <= report.tick:
            self._seen = self._ticks.popleft()[2]
        self._wake(report.tick)

    def _out(self, state: str, reason: str) -> None:
        """For good. Its process goes as well."""
        if not self.following:
            return
        self.state, self.reason = state, reason
        self._ticks.clear()
        self._wake()
        log.warning("the shadow %s is out: %s; the server goes on without it", self.start.name, reason)
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _wake(self, tick: int | None = None) -> None:
        waiting, self._waiters = self._waiters, []
        for wanted, future in waiting:
            if tick is not None and wanted > tick:
                self._waiters.append((wanted, future))
            elif not future.done():
                future.set_result(None)


class Shadows:
    """All of a server's, and what became of the requests in truth beside them."""

    def __init__(
        self,
        starts: Sequence[Start],
        clock: Clock,
        live: Live,
        names: dict[str, str],
        *,
        most_events: int = MOST_EVENTS,
        longest_s: float = LONGEST_S,
    ) -> None:
        """`names`: mode, predictor and keep_alive of the policy in force."""
        self._clock = clock
        self._live = live
        self._names = names
        self._most = most_events
        self._longest_s = longest_s
        self._at = clock.now()
        self._wall = clock.wall()
        self.shadows = [Shadow(msgspec.structs.replace(start, at=self._at)) for start in starts]
        self._buffer = bytearray()
        self._told = 0
        self._tick = 0
        self._on = bool(starts)  # somebody follows
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop

    async def begin(self) -> None:
        """Before the first event."""
        self._loop = asyncio.get_running_loop()
        for shadow in self.shadows:
            await shadow.begin()
        self._timer = self._loop.call_later(TICK_S, self._go_on)

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*(shadow.aclose() for shadow in self.shadows))

    # ---- what happens: on the request path -----------------------------------------------------------------

    def follow(self, now: float, event: AnyEvent) -> None:
        if type(event) not in FOLLOWED:
            return
        if type(event) is ev.FunctionDeployed:
            self._live.deployed(event.function)
        if self._on:
            put((now, event), self._buffer)
            self._told += 1

    def finished(self, ticket: Ticket) -> None:
        self._live.finished(ticket)

    # ---- what they make of it ------------------------------------------------------------------------------

    async def rows(self) -> dict[str, Any]:
        """The policy in force and its shadows; those that are not up to date within WAIT_S are told of as they
        were. None where there are no shadows."""
        if not self.shadows:
            return {"since": self._wall, "policies": []}
        self._flush()
        reached = [asyncio.ensure_future(shadow.reached(self._tick)) for shadow in self.shadows]
        _, late = await asyncio.wait(reached, timeout=WAIT_S)
        for task in late:
            task.cancel()
        live = {
            **self._names,
            "shadow": False,
            "state": "live",
            "reason": "",
            "pid": os.getpid(),
            "until": self._clock.wall(),
            "behind_s": 0.0,
            **self._live.row(),
        }
        return {"since": self._wall, "policies": [live, *map(self._row, self.shadows)]}

    def _row(self, shadow: Shadow) -> dict[str, Any]:
        start, report = shadow.start, shadow.report
        until = self._wall if report is None else self._wall + report.now - self._at
        figures = report.row if report is not None else dict.fromkeys(self._live.row())
        return {
            "mode": start.mode,
            "predictor": start.predictor,
            "keep_alive": start.keep_alive,
            "shadow": True,
            "state": shadow.state,
            "reason": shadow.reason,
            "pid": shadow.pid,
            "until": until,
            "behind_s": shadow.behind_s(self._loop.time()),
            **figures,
        }

    def gauges(self) -> list[Gauge]:
        """For a scrape."""
        following: list[tuple[tuple[str, ...], float]]
        following = [((shadow.start.name,), float(shadow.following)) for shadow in self.shadows]
        return [
            ("shadow_following", "Whether a shadow follows: 0 since it dropped out", ("policy",), following),
        ]

    # ---- once a second -------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        self._flush()
        self._on = any(shadow.following for shadow in self.shadows)
        if self._on:
            self._timer = self._loop.call_later(TICK_S, self._go_on)

    def _flush(self) -> None:
        now = self._loop.time()
        for shadow in self.shadows:
            shadow.judge(self._told, now, most=self._most, longest_s=self._longest_s)
        self._tick += 1
        put(Tick(number=self._tick, now=self._clock.now()), self._buffer)
        data = bytes(self._buffer)
        self._buffer.clear()
        for shadow in self.shadows:
            shadow.tell(data, self._tick, self._told, now)


def _ending(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-status).name}"
    return f"signal {-status}"
