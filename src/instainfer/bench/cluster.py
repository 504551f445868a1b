"""Many nodes: what a placement pass takes, and what share of the requests finds its function loaded.

Simulated, with the policies and the core that the server runs: nodes of one cluster share a budget, whatever their
number. What takes processes (the way to another node, the loss of one) is measured with some, see nodes.py.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from instainfer import garbage
from instainfer.bench import nodes as real_nodes
from instainfer.bench.report import Report
from instainfer.core import events as ev
from instainfer.core.actions import AnyAction
from instainfer.core.platform import Platform
from instainfer.core.state import State
from instainfer.model import Costs, Function
from instainfer.policies import registry
from instainfer.policies.predict.forecast import Forecast
from instainfer.sim import alone
from instainfer.sim.costs import HOP_S, Node, Workload
from instainfer.sim.engine import Engine
from instainfer.sim.tally import Tally
from instainfer.sim.world import Containers
from instainfer.traces.generate import Synthetic, synthetic

POLICIES = ("hazard", "tyche", "instainfer")  # the first is ours: its rows have no policy in their names
NODES = (4, 8, 16)
MB = 1_000_000


class Size(NamedTuple):
    functions: int
    containers: int
    nodes: int
    settle_s: float  # of virtual time before the first pass that counts
    measure_s: float

    @property
    def name(self) -> str:
        return f"decision_{self.functions}x{self.containers}x{self.nodes}"


DECISIONS = (Size(1_000, 100, 16, 300.0, 120.0), Size(10_000, 1_000, 64, 60.0, 20.0))
TICK_S = 1.0  # of a decision's passes: as warm traffic asks for them
QUICK = (Size(100, 10, 4, 120.0, 20.0),)
#: Of the hit rate: functions, hours that count after half an hour of warm-up, memory as a share of all their size.
FUNCTIONS, LENGTH_S, WARM_UP_S, BUDGET = 200, 3 * 3600.0, 1800.0, 0.4
GIVE_UP_S = 60.0
LIMIT = 1_800 * MB  # of every container of a decision
SEED = 0


class Timed(Platform):
    """Times its placement passes by this thread's processor time, so that a busy machine counts for little."""

    def __init__(self, state: State, since: float) -> None:
        super().__init__(state)
        self.took: list[float] = []
        self._since = since

    def handle(self, event: ev.Event, now: float) -> list[AnyAction]:
        if now < self._since or not isinstance(event, ev.TimerFired) or event.timer != "placement":
            return super().handle(event, now)
        began = time.thread_time()
        actions = super().handle(event, now)
        self.took.append(time.thread_time() - began)
        return actions


def measure(report: Report, *, quick: bool = False) -> None:
    sizes = QUICK if quick else DECISIONS
    nodes = NODES[:1] if quick else NODES
    report.steps(len(sizes) + len(nodes) * len(POLICIES))
    for size in sizes:
        report.step(f"placement passes, {size.functions} functions in {size.containers} containers")
        report.rows.append(_row(size.name, decision(size)))
    real_nodes.measure(report, quick=quick)
    length_s = LENGTH_S / 4 if quick else LENGTH_S
    for number in nodes:
        for policy in POLICIES:
            report.step(f"hit rate, {number} nodes, {policy}")
            told = "" if policy == POLICIES[0] else f"_{policy}"
            rate, took = hit_rate(policy, number, length_s)
            report.rows.append({"name": f"hit_rate_{number}{told}", "value": rate, "unit": "fraction"})
            report.rows.append(_row(f"scheduling_{number}{told}", took))
    report.table(
        "Many nodes",
        ["what", "value", "p99", "n"],
        [
            [
                row["name"],
                f"{row['value']:.1%}" if row["unit"] == "fraction" else f"{row['value']:.2f} {row['unit']}",
                f"{row['p99_ms']:.2f} ms" if "p99_ms" in row else "-",
                str(row.get("n", "-")),
            ]
            for row in report.rows
        ],
        [
            "remote_hop: what an agent in another process adds to a warm no-op call; node_loss_recovery: until all"
            " that a killed agent had loaded is loaded elsewhere.",
            "decision, scheduling: median processor time of a placement pass, snapshot included.",
            f"hit_rate: requests that found their function loaded; {FUNCTIONS} functions, memory for"
            f" {BUDGET:.0%} of them on all nodes together. instainfer: a pass is one node's.",
        ],
    )


def _row(name: str, took: Sequence[float]) -> dict[str, Any]:
    p50, p99 = (float(np.percentile(took, share) * 1e3) for share in (50, 99))
    return {"name": name, "value": p50, "unit": "ms", "p99_ms": p99, "n": len(took)}


def decision(size: Size) -> list[float]:
    """Seconds of each pass. All containers are there at once: memory holds no more of them, and functions that are
    called take them from each other."""
    rng = np.random.default_rng(SEED)
    end = size.settle_s + size.measure_s
    work = _workload(rng, synthetic("mixed", size.functions, end, seed=SEED), limit=LIMIT)
    each, more = divmod(size.containers, size.nodes)
    nodes = [_node(number, (each + (number < more)) * LIMIT, size.nodes) for number in range(size.nodes)]
    return _run(POLICIES[0], nodes, work, Tally(0.0, end), size.settle_s, tick_s=TICK_S)


def hit_rate(policy: str, nodes: int, length_s: float) -> tuple[float, list[float]]:
    """Share of the requests that are answered by what was loaded, and seconds of each pass."""
    rng = np.random.default_rng(SEED)
    work = _workload(rng, synthetic("mixed", FUNCTIONS, WARM_UP_S + length_s, seed=SEED))
    memory = int(BUDGET * work.total_bytes) // nodes
    tally = Tally(WARM_UP_S, work.end)
    took: list[float] = []
    if policy in alone.MODES:
        for share in alone.dealt(work, nodes, SEED):
            took += _run(policy, [_node(0, memory, nodes)], share.work, tally, WARM_UP_S)
    else:
        took += _run(policy, [_node(number, memory, nodes) for number in range(nodes)], work, tally, WARM_UP_S)
    found = tally.row()
    answered = found["invocations"] / max(found["invocations"] + found["rejected"], 1)
    return (found["preloaded_fraction"] + found["warm_fraction"]) * answered, took


def _run(
    policy: str, nodes: list[Node], work: Workload, tally: Tally, since: float, *, tick_s: float = 0.0
) -> list[float]:
    mode = registry.preload(policy)
    platform = Timed(
        State(Forecast(registry.predictor(mode.predictor)), registry.keep_alive(), mode.policy), since
    )
    engine = Engine(platform, tick_s=tick_s)
    world = Containers(engine, nodes, work, tally)
    engine.join(world)
    world.begin()
    names = [function.name for function in work.functions]
    with garbage.settled():  # as in the server
        engine.run(work.times, [names[one] for one in work.which], give_up_s=GIVE_UP_S, linger_s=GIVE_UP_S)
    return platform.took


def _node(number: int, memory: int, nodes: int) -> Node:
    return Node(name=f"n{number}", memory=memory, load_slots=2, hop_s=HOP_S if nodes > 1 else 0.0)


def _workload(rng: np.random.Generator, drawn: Synthetic, *, limit: int = 0) -> Workload:
    """Functions of 0.1 to 1.6 GB, half of it libraries, that take 0.2 to 2.5 s to load: as the papers' models."""
    trace = drawn.trace
    functions = []
    for name in trace.names:
        size = int(rng.uniform(100, 1_600)) * MB
        loading_s = float(rng.uniform(0.2, 2.5))
        functions.append(
            Function(
                name=f"bench/{name}",
                revision=f"bench/{name}@1:0",
                memory=limit or size * 3 // 2,
                costs=Costs(
                    container_s=0.3,
                    import_s=loading_s / 2,
                    load_s=loading_s / 2,
                    first_s=0.2,
                    warm_s=0.2,
                    imported_bytes=size // 2,
                    loaded_bytes=size,
                ),
            )
        )
    return Workload(
        functions=functions,
        times=array("d", trace.times.tobytes()),
        which=array("i", trace.functions.tobytes()),
        end=trace.length_s,
    )
