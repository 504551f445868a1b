"""Small workloads, and a run of the `containers` world that checks the core's invariants after every event."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import inf

from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.invariants import check
from instainfer.core.platform import Platform
from instainfer.core.state import State
from instainfer.model import Costs, Function
from instainfer.policies import registry
from instainfer.policies.predict.forecast import Forecast
from instainfer.sim.costs import Node, Workload
from instainfer.sim.engine import Engine
from instainfer.sim.tally import ByClass, Tally, Timeline
from instainfer.sim.world import Containers

MB = 1_000_000


def function(name: str = "t/f", *, memory: int = 300 * MB, **changes: object) -> Function:
    """One second to load, 0.1 s a call, 100 MB."""
    values: dict[str, object] = {
        "container_s": 0.3,
        "import_s": 0.4,
        "load_s": 0.6,
        "first_s": 0.1,
        "warm_s": 0.1,
        "imported_bytes": 40 * MB,
        "loaded_bytes": 100 * MB,
    }
    rest = {
        key: changes.pop(key) for key in list(changes) if key not in values and key not in Costs.__annotations__
    }
    costs = Costs(**(values | changes))  # type: ignore[arg-type] # test shorthand
    return Function(name=name, revision=f"{name}@1", memory=memory, costs=costs, **rest)  # type: ignore[arg-type]


def workload(functions: Sequence[Function], calls: Sequence[tuple[float, int]], end: float = 0.0) -> Workload:
    ordered = sorted(calls)
    return Workload(
        functions=list(functions),
        times=[at for at, _ in ordered],
        which=[one for _, one in ordered],
        end=max(end, ordered[-1][0]),
    )


def mixed(seed: int = 1, functions: int = 24, end: float = 4 * 3600.0) -> Workload:
    """A third timers, a third random, a third bursts."""
    draw = random.Random(seed)
    sizes = [draw.choice((60, 100, 160, 240)) * MB for _ in range(functions)]
    made = [
        function(
            f"t/f{i:02}",
            memory=size * 3 // 2,
            loaded_bytes=size,
            imported_bytes=0,
            import_s=0.0,
            load_s=draw.choice((0.3, 1.0, 2.5)),
        )
        for i, size in enumerate(sizes)
    ]
    calls: list[tuple[float, int]] = []
    for i in range(functions):
        period = draw.choice((180.0, 300.0, 600.0, 900.0))
        at = draw.random() * period
        while at < end:
            calls.append((at, i))
            if i % 3 == 0:
                at += period
            elif i % 3 == 1:
                at += draw.expovariate(1.0 / period)
            else:
                at += draw.expovariate(1.0) if draw.random() < 0.8 else draw.expovariate(0.2 / period)
    return workload(made, calls, end)


class Run:
    """The `containers` world under a core that is checked after every event."""

    def __init__(
        self,
        work: Workload,
        *nodes: Node,
        mode: str = "none",
        keep_alive: str = "pressure",
        tick_s: float = 0.0,
        checked: bool = True,
        tally: ByClass | None = None,
        timeline: Timeline | None = None,
        usual: Sequence[float] = (),
    ) -> None:
        chosen = registry.preload(mode)
        forecast = Forecast(registry.predictor(chosen.predictor))
        self.state = State(forecast, registry.keep_alive(keep_alive), chosen.policy)
        self.seen: list[tuple[float, str]] = []
        self.tally = Tally(0.0, work.end)
        self.engine = Engine(_Checked(self) if checked else Platform(self.state), tick_s=tick_s)
        self.world = Containers(self.engine, list(nodes), work, tally or self.tally, timeline, usual)
        self.world.waits.extend([inf] * len(work.times))
        self.engine.join(self.world)
        self.world.begin()
        self.engine.run(work.times, [work.functions[one].name for one in work.which], give_up_s=60.0)
        self.world.finish()


class _Checked(Platform):
    def __init__(self, run: Run) -> None:
        super().__init__(run.state)
        self._run = run
        self._before = -inf

    def handle(self, event: ev.Event, now: float) -> list[act.AnyAction]:
        assert now >= self._before, "time went back"
        self._before = now
        actions = super().handle(event, now)
        check(self.state)
        self._run.seen += [(now, type(one).__name__) for one in (event, *actions)]
        return actions


def node(memory: int = 4000 * MB, **changes: object) -> Node:
    """Platform overheads are 0: times are those of the functions."""
    free: dict[str, object] = dict.fromkeys(
        ("dispatch_s", "hop_s", "freeze_s", "thaw_s", "end_s", "end_s_per_byte", "destroy_s"), 0.0
    )
    return Node(**({"name": "n0", "memory": memory} | free | changes))  # type: ignore[arg-type] # test shorthand
