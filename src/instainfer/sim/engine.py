"""The other shell of the core: a heap in place of an event loop, a virtual clock in place of a real one.

Deterministic: what happens is ordered by (time, priority, sequence), nothing is read from outside, and two
runs of the same workload decide the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, Protocol

from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.platform import Platform

#: At one moment: what the world does comes first, then the facts that it reports, then timers. Requests that
#: arrive in the same moment come last, so that they find what was just finished.
_CALL, _FACT, _TIMER = 0, 1, 2

#: Requests taken from the trace between two calls of `progress`.
_REPORT_EVERY = 4096


class World(Protocol):
    """Carries out what the core decides and reports, with `Engine.post`, what came of it."""

    #: For every kind of action but SetTimer, which is the engine's.
    carry_out: dict[type[act.Action], Callable[[Any, float], None]]

    #: Requests that have been dispatched or refused: the others wait.
    settled: int
    #: Dispatched ones of which it is not known yet how long they will have taken.
    running: int


class Engine:
    """One run. `tick_s` is the clock's grain for placement passes: 0 makes them when the core asks for them,
    as the live server does; a larger one delays each to the next multiple, which makes a long trace cheaper to
    simulate and decisions later."""

    def __init__(self, platform: Platform, *, tick_s: float = 0.0) -> None:
        self.platform = platform
        self.now = 0.0
        self.passes = 0
        self._tick_s = tick_s
        self._heap: list[tuple[float, int, int, Any]] = []
        self._sequence = 0
        self._timers: dict[str, int] = {}  # timer -> the sequence number of its last setting
        self._carry_out: dict[type[act.Action], Callable[[Any, float], None]] = {}
        self._world: World

    def join(self, world: World) -> None:
        """Before the first event."""
        self._world = world
        self._carry_out = {**world.carry_out, act.SetTimer: self._set_timer}

    def post(self, at: float, fact: ev.Event) -> None:
        """The core learns of it at `at`, not before now."""
        self._sequence += 1
        heappush(self._heap, (at, _FACT, self._sequence, fact))

    def call(self, at: float, function: Callable[[], None]) -> None:
        """The world goes on at `at`."""
        self._sequence += 1
        heappush(self._heap, (at, _CALL, self._sequence, function))

    def feed(self, event: ev.Event) -> None:
        """The core handles it now, and the world begins what it decides. Not from within an action: those post."""
        now = self.now
        carry_out = self._carry_out
        for action in self.platform.handle(event, now):
            carry_out[type(action)](action, now)

    def run(
        self,
        times: Sequence[float],
        functions: Sequence[str],
        *,
        give_up_s: float,
        linger_s: float = 3600.0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Let every request of the trace arrive (request number = its position; `times` ascend), then go on
        until all are answered, for `linger_s` at most. One that waits for `give_up_s` is taken back."""
        heap, world, arrive = self._heap, self._world, self.arrive
        for request, at in enumerate(times):
            self.advance(at)
            arrive(request, functions[request], give_up_s=give_up_s)
            if progress is not None and request % _REPORT_EVERY == 0:
                progress(request)
        end = self.now + linger_s
        while heap and (world.settled < len(times) or world.running) and heap[0][0] <= end:
            self.step()

    def advance(self, to: float) -> None:
        """Let happen what is due by then: it is `to` now."""
        heap = self._heap
        while heap and heap[0][0] <= to:
            self.step()
        self.now = to

    def arrive(self, request: int, function: str, *, give_up_s: float) -> None:
        """A request comes now; where it has to wait, it is taken back after `give_up_s`."""
        world = self._world
        settled = world.settled
        self.feed(ev.RequestArrived(request=request, function=function))
        if world.settled == settled:
            cancel = ev.RequestCancelled(request=request, reason="it waited too long", code="overloaded")
            self.post(self.now + give_up_s, cancel)

    def step(self) -> bool:
        """What happens next; False if nothing is left to happen."""
        if not self._heap:
            return False
        at, priority, sequence, what = heappop(self._heap)
        self.now = at
        if priority == _FACT:
            self.feed(what)
        elif priority == _CALL:
            what()
        elif self._timers.get(what) == sequence:
            del self._timers[what]
            if what == "placement":
                self.passes += 1
            self.feed(ev.TimerFired(timer=what))
        return True

    def _set_timer(self, action: act.SetTimer, now: float) -> None:
        at = action.at
        if self._tick_s and action.timer == "placement":
            at = -(-at // self._tick_s) * self._tick_s
        self._sequence += 1
        self._timers[action.timer] = self._sequence
        heappush(self._heap, (at, _TIMER, self._sequence, action.timer))
