"""Policies on traces: every policy at every memory budget, one row of results each.

The same traces, settings and seed give the same bytes, whatever the number of processes.
"""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from instainfer.config import machine_memory
from instainfer.core.platform import Platform
from instainfer.core.state import State
from instainfer.errors import BadInput, BadSettings
from instainfer.lab.costs import PAPER, costs_of
from instainfer.model import Function
from instainfer.policies import registry
from instainfer.policies.predict.forecast import Forecast
from instainfer.sim import pool
from instainfer.sim.caches import CACHES
from instainfer.sim.costs import HOP_S, Node, Workload
from instainfer.sim.engine import Engine
from instainfer.sim.pool import OnMiss
from instainfer.sim.tally import Tally
from instainfer.sim.world import Containers
from instainfer.traces.base import Trace
from instainfer.traces.open import open_trace
from instainfer.units import MB

World = Literal["pool", "containers"]

NAMESPACE = "trace"
#: How long a request waits for an instance before it is given up: the server's default.
QUEUE_S = 60.0
#: Of a simulated node's memory, for each load that it can run at full speed: what clouds rent per core.
BYTES_PER_SLOT = 4_000_000_000
#: What a policy has to read before its first load: calls of a function.
_MIN_CALLS = 2


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Of all rows of one command. `minutes` is "A:B", positions; `warmup` the share of the trace that is
    simulated and not counted."""

    world: World = "pool"
    profiles: str = PAPER
    warmup: float = 0.25
    minutes: str | None = None
    cap_per_minute: int | None = None
    min_calls: int = _MIN_CALLS  # functions called less often in these minutes are left out
    trace_durations: bool = False  # inference times from the trace, where it has them
    seed: int = 0
    step_s: float = 10.0  # pool: between two decisions; 0: at every call
    on_miss: OnMiss = OnMiss.WEIGH  # pool
    keep_alive: str = "pressure"  # the others: containers
    keep_alive_s: float = 600.0
    nodes: int = 1
    load_slots: int = 0  # per node; 0: see BYTES_PER_SLOT
    headroom: float = 0.5  # a container's limit beyond its function's size, as a share of that
    tick_s: float = 0.0  # grain of placement passes; 0: as the live server


class Case(NamedTuple):
    trace: Path
    policy: str
    budget: float  # as a share of all functions' size


class Policy(NamedTuple):
    mode: str  # or one of CACHES
    predictor: str


def policy_of(text: str, world: World) -> Policy:
    """ "hazard", "hazard:poisson" (another predictor than the mode's own) or, in the pool, "lru" and "gdsf".
    Raises BadSettings with what there is."""
    mode, colon, predictor = text.strip().partition(":")
    if mode in CACHES:
        if world == "containers":
            raise BadSettings(
                f"{mode} is a policy of the pool world",
                hint="here a container's life is the keep-alive policy's: --policies none with --keep-alive "
                "pressure (greedy-dual) or fixed (least recently used goes first)",
            )
        if colon:
            raise BadSettings(f"{mode} asks no predictor", hint=f"write {mode}")
        return Policy(mode, "")
    known = (*CACHES, *registry.MODES) if world == "pool" else registry.MODES
    if mode not in known:
        raise BadSettings(f"there is no policy {mode!r}", hint=f"these exist: {', '.join(known)}")
    chosen = predictor or registry.preload(mode).predictor
    registry.predictor(chosen)
    return Policy(mode, chosen)


def label(row: dict[str, Any]) -> str:
    """The policy of a row as one would ask for it."""
    mode, predictor = row["policy"], row["predictor"]
    usual = mode in CACHES or registry.preload(mode).predictor == predictor
    return str(mode) if usual else f"{mode}:{predictor}"


def check(settings: Settings, cases: list[Case]) -> None:
    """Raises BadSettings for what no run could be made of."""
    for case in cases:
        policy_of(case.policy, settings.world)
        if not 0.0 < case.budget <= 100.0:
            raise BadSettings(f"a budget of {case.budget}", hint="a share of all functions' size, such as 0.1")
    if not 0.0 <= settings.warmup < 1.0:
        raise BadSettings(f"a warm-up of {settings.warmup}", hint="a share of the trace, such as 0.25")
    if settings.world == "containers":
        keep_alive_of(settings)
        if settings.nodes < 1:
            raise BadSettings(f"{settings.nodes} nodes", hint="1 or more")
    elif settings.nodes != 1:
        raise BadSettings("the pool world is one node", hint="--world containers has many")


def keep_alive_of(settings: Settings) -> Any:
    timed = {"seconds": settings.keep_alive_s} if settings.keep_alive == "fixed" else {}
    return registry.keep_alive(settings.keep_alive, **timed)


def run(
    settings: Settings, cases: list[Case], *, jobs: int = 1, progress: Callable[[int, float], None] | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each case, in their order. `progress` gets a case's number and the share of it that is done,
    where one process runs them. Raises BadSettings, and BadInput for a trace that cannot be read."""
    check(settings, cases)
    if jobs > 1 and len(cases) > 1:
        # Fresh processes: a forked one could hold a lock of a thread that it does not have.
        with ProcessPoolExecutor(min(jobs, len(cases)), mp_context=get_context("spawn")) as processes:
            yield from processes.map(_row, [settings] * len(cases), cases)
        return
    for number, case in enumerate(cases):
        told = None if progress is None else _share(progress, number, len(workload(settings, case.trace).times))
        yield row(settings, case, progress=told)


def _share(progress: Callable[[int, float], None], number: int, count: int) -> Callable[[int], None]:
    return lambda done: progress(number, done / max(count, 1))


def _row(settings: Settings, case: Case) -> dict[str, Any]:
    return row(settings, case)


def row(settings: Settings, case: Case, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Simulate one case."""
    work = workload(settings, case.trace)
    budget = int(case.budget * work.total_bytes)
    tally = Tally(settings.warmup * work.end, work.end)
    policy = policy_of(case.policy, settings.world)
    simulate = _in_pool if settings.world == "pool" else _in_containers
    with _rare_collections():
        simulate(settings, work, policy, budget, tally, progress)
    counted = tally.row()
    return {
        "trace": case.trace.name,
        "world": settings.world,
        "policy": policy.mode,
        "predictor": policy.predictor,
        "keep_alive": settings.keep_alive if settings.world == "containers" else "",
        "nodes": settings.nodes,
        "budget_fraction": case.budget,
        "budget_mb": budget / MB,
        "functions": len(work.functions),
        **counted,
        "seed": settings.seed,
    }


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Every decision makes thousands of short-lived views, and a collection walks through a million arrivals: it
    costs a sixth of a run where it happens at its usual pace."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _in_pool(
    settings: Settings,
    work: Workload,
    policy: Policy,
    budget: int,
    tally: Tally,
    progress: Callable[[int], None] | None,
) -> None:
    memory = pool.Pool(work, budget, tally, settings.on_miss)
    made: pool.PoolPolicy
    if policy.mode in CACHES:
        made = CACHES[policy.mode](memory)
    else:
        names = [function.name for function in work.functions]
        mode = registry.preload(policy.mode).policy
        made = pool.Planned(memory, names, mode, registry.predictor(policy.predictor))
    pool.run(work, memory, made, step_s=settings.step_s, progress=progress)


def _in_containers(
    settings: Settings,
    work: Workload,
    policy: Policy,
    budget: int,
    tally: Tally,
    progress: Callable[[int], None] | None,
) -> None:
    each = budget // settings.nodes
    largest = max(work.functions, key=lambda function: function.memory)
    if largest.memory > each:
        raise BadSettings(
            f"a node of {each / MB:.0f} MB cannot hold the container of {largest.memory / MB:.0f} MB "
            f"that {largest.name} needs",
            hint="give a larger budget, less --headroom, or fewer nodes",
        )
    nodes = [
        Node(
            name=f"n{number}",
            memory=each,
            load_slots=settings.load_slots or max(2, each // BYTES_PER_SLOT),
            hop_s=HOP_S if settings.nodes > 1 else 0.0,
        )
        for number in range(settings.nodes)
    ]
    forecast = Forecast(registry.predictor(policy.predictor))
    mode = registry.preload(policy.mode).policy
    engine = Engine(Platform(State(forecast, keep_alive_of(settings), mode)), tick_s=settings.tick_s)
    world = Containers(engine, nodes, work, tally)
    engine.join(world)
    world.begin()
    names = [function.name for function in work.functions]
    engine.run(work.times, [names[one] for one in work.which], give_up_s=QUEUE_S, progress=progress)
    world.finish()


@lru_cache(maxsize=2)
def workload(settings: Settings, path: Path) -> Workload:
    """A trace with what its functions cost."""
    trace = open_trace(
        path, minutes=settings.minutes, cap_per_minute=settings.cap_per_minute, seed=settings.seed
    ).at_least(settings.min_calls)
    if not len(trace):
        raise BadInput(
            f"{path.name} has no function that is called {settings.min_calls} times in these minutes",
            hint="take more --minutes, or a lower --min-calls",
        )
    return of_trace(trace, settings)


def of_trace(trace: Trace, settings: Settings) -> Workload:
    costs = costs_of(trace.names, settings.profiles)
    functions = [
        Function(
            name=f"{NAMESPACE}/{name}",
            revision=f"{NAMESPACE}/{name}@1:0",
            memory=int(one.loaded_bytes * (1.0 + settings.headroom)),
            costs=one,
        )
        for name, one in zip(trace.names, costs, strict=True)
    ]
    durations: list[float] = []
    if settings.trace_durations and len(trace.durations):
        usual = np.array([one.warm_s for one in costs])[trace.functions]
        known = trace.durations.astype(np.float64)
        durations = np.where(np.isnan(known), usual, known).tolist()
    return Workload(
        functions=functions,
        times=trace.times.tolist(),
        which=trace.functions.tolist(),
        durations=durations,
        end=trace.length_s,
    )


def document(command: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As `results.json` has it."""
    machine = {
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mb": machine_memory() / MB,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    return {"version": 1, "command": command, "machine": machine, "rows": rows}
