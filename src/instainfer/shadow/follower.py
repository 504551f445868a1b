"""One shadow: a policy in the simulator's `containers` world, on a live server's arrivals.

Pure: it knows no clock and no pipe. What it counts of a log is what `simulate` counts of it, since both drive
the same engine, world and core; only the distribution of end-to-end times is left out, which would grow with
every request for as long as a server lives.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.events import AnyEvent
from instainfer.core.platform import Platform
from instainfer.core.state import State
from instainfer.model import StartKind
from instainfer.policies import registry
from instainfer.policies.predict.forecast import Forecast
from instainfer.shadow.messages import FOLLOWED, Start
from instainfer.sim.costs import Node, Workload
from instainfer.sim.engine import Engine
from instainfer.sim.tally import Tally
from instainfer.sim.world import Containers


def wanted(
    names: tuple[str, ...], *, keep_alive: str, keep_alive_s: float, queue_limit: int, give_up_s: float
) -> list[Start]:
    """A Start for each "MODE" or "MODE:PREDICTOR", either with settings; what is named twice is one. Raises
    BadSettings, and Unavailable where a predictor's library is missing."""
    found: dict[str, Start] = {}
    for name in names:
        mode, _, predictor = name.strip().partition(":")
        one = Start(
            mode=mode,
            predictor=predictor or registry.preload(mode).predictor,
            keep_alive=keep_alive,
            keep_alive_s=keep_alive_s,
            queue_limit=queue_limit,
            give_up_s=give_up_s,
        )
        state_of(one)
        found[one.name] = one
    return list(found.values())


def state_of(start: Start) -> State:
    """Of a core with these policies that has seen nothing yet. Raises BadSettings."""
    mode = registry.preload(start.mode)
    timed = {"seconds": start.keep_alive_s} if start.keep_alive == "fixed" else {}
    keep_alive = registry.keep_alive(start.keep_alive, **timed)
    forecast = Forecast(registry.predictor(start.predictor))
    return State(forecast, keep_alive, mode.policy, queue_limit=start.queue_limit)


class Follower:
    """Feed it what comes from outside, in the order of time, and ask for its figures at any moment."""

    def __init__(self, start: Start, nodes: list[Node] | None = None) -> None:
        """`nodes`: those that are there from the beginning; others join by their event."""
        self.engine = Engine(Platform(state_of(start)))
        self.tally = Sums()
        self.world = _Outside(self.engine, self.tally)
        self.engine.join(self.world)
        self.events = 0
        self._start = start.at
        self._give_up_s = start.give_up_s
        for node in nodes or ():
            self.world.join(node)

    def follow(self, now: float, event: AnyEvent) -> None:
        """An event of the live server's. Those that its own policy brought about change nothing here."""
        if type(event) not in FOLLOWED:
            return
        at = max(0.0, now - self._start)
        self.events += 1
        engine = self.engine
        engine.advance(at)
        if isinstance(event, ev.RequestArrived):
            self.world.arrived[event.request] = at
            engine.arrive(event.request, event.function, give_up_s=self._give_up_s)
        elif isinstance(event, ev.NodeJoined):
            self.world.join(
                Node(
                    name=event.node,
                    memory=event.memory,
                    guests=event.guests,
                    load_slots=event.load_slots,
                    zygote_memory=event.zygote_memory,
                )
            )
        elif isinstance(event, ev.NodeLost):
            self.world.leave(event.node)
        elif isinstance(event, ev.FunctionDeployed):
            self.world.deploy(event.function)
        elif not isinstance(event, ev.RequestCancelled) or event.code == "cancelled":
            engine.feed(event)  # a wait that was over was over in the live world; here another one counts

    def advance(self, now: float) -> None:
        """Let happen what is due by then."""
        self.engine.advance(max(0.0, now - self._start))

    def row(self) -> dict[str, Any]:
        """The figures at the moment that it has been advanced to."""
        tally = copy.copy(self.tally)
        self.world.hold(tally, self.engine.now)
        return tally.row()


class Sums(Tally):
    """The same counts without a list of all requests."""

    def __init__(self) -> None:
        super().__init__(0.0, math.inf)
        self.answered = 0
        self.e2e_s = 0.0

    def served(
        self, arrived: float, start: StartKind, e2e_s: float, inference_s: float, loading_s: float, paid_s: float
    ) -> None:
        self.answered += 1
        self.starts[start] += 1
        self.e2e_s += e2e_s
        self._waited_s += e2e_s - inference_s
        self._loading_s += loading_s
        self._paid_s += paid_s

    def row(self) -> dict[str, Any]:
        """Named as in a row of `simulate`; `saved_s` is the loading latency that requests were spared."""
        return figures(
            self.starts,
            rejected=self.rejected,
            e2e_s=self.e2e_s,
            waited_s=self._waited_s,
            loading_s=self._loading_s,
            paid_s=self._paid_s,
            wasted_byte_s=self.wasted_byte_s,
        ) | {
            "memory_gb_s": self.memory_byte_s / 1e9,
        }


_PARTIAL = (StartKind.IMPORTED, StartKind.FORKED, StartKind.CLONED)


def figures(
    starts: dict[StartKind, int],
    *,
    rejected: int,
    e2e_s: float,
    waited_s: float,
    loading_s: float,
    paid_s: float,
    wasted_byte_s: float,
) -> dict[str, Any]:
    """What is told of a policy, live or shadow. Shares are of the requests answered."""
    invocations = sum(starts.values())
    count = max(invocations, 1)
    return {
        "invocations": invocations,
        "rejected": rejected,
        "preloaded_fraction": starts[StartKind.PRELOADED] / count,
        "warm_fraction": starts[StartKind.WARM] / count,
        "cold_fraction": starts[StartKind.COLD] / count,
        "attached_fraction": starts[StartKind.ATTACHED] / count,
        "partial_fraction": sum(starts[kind] for kind in _PARTIAL) / count,
        "warming_loading_mean_ms": waited_s / count * 1e3,
        "e2e_mean_ms": e2e_s / count * 1e3,
        "saved_s": loading_s - paid_s,
        "saved_fraction": 1.0 - paid_s / loading_s if loading_s else 0.0,
        "wasted_gb_s": wasted_byte_s / 1e9,
    }


class _Outside(Containers):
    """The world of functions and requests that are not known before they come."""

    def __init__(self, engine: Engine, tally: Tally) -> None:
        super().__init__(engine, [], Workload(functions=[], times=[], which=[], end=0.0), tally)
        self.arrived: dict[int, float] = {}  # of requests that are not settled
        self._times = self.arrived  # type: ignore[assignment] # by request, as a list of all would be

    def _dispatch(self, action: act.Dispatch, now: float) -> None:
        super()._dispatch(action, now)
        del self.arrived[action.request]

    def _reject(self, action: act.Reject, now: float) -> None:
        super()._reject(action, now)
        self.arrived.pop(action.request, None)
