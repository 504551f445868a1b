"""Policies on traces: every policy at every memory budget, one row of results each.

The same traces, settings and seed give the same bytes, whatever the number of processes.
"""

from __future__ import annotations

import os
import platform
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from math import inf
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

import instainfer
from instainfer import garbage
from instainfer.config import machine_memory
from instainfer.core.platform import Platform
from instainfer.core.state import State
from instainfer.errors import BadInput, BadSettings
from instainfer.lab import bounding
from instainfer.lab.bounding import BOUNDS
from instainfer.lab.costs import BUILT_IN, PAPER, profiles_of
from instainfer.lab.runs import VERSION, Folder, detail, key
from instainfer.model import Function
from instainfer.policies import registry
from instainfer.policies.base import Predictor, PreloadPolicy
from instainfer.policies.predict.forecast import Forecast
from instainfer.sim import alone, pool
from instainfer.sim.caches import CACHES
from instainfer.sim.costs import HOP_S, Node, Workload
from instainfer.sim.engine import Engine
from instainfer.sim.pool import OnMiss
from instainfer.sim.tally import ByClass, Timeline
from instainfer.sim.world import Containers
from instainfer.traces.base import Trace
from instainfer.traces.classes import Regularity, classify
from instainfer.traces.open import open_trace
from instainfer.units import MB, parse_bytes

World = Literal["pool", "containers"]

NAMESPACE = "trace"
#: How long a request waits for an instance before it is given up: the server's default.
QUEUE_S = 60.0
#: Of a simulated node's memory, for each load that it can run at full speed: what clouds rent per core.
BYTES_PER_SLOT = 4_000_000_000
#: What a policy has to read before its first load: calls of a function.
_MIN_CALLS = 2
#: A container's limit beyond its function's size, where its profile does not say the limit.
HEADROOM = 0.5
#: Calls of a run's timeline.
TIMELINE = 400
#: The class of functions that are called too seldom to have one.
OTHER = "other"
CLASSES = (*(str(kind) for kind in Regularity), OTHER)


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
    load_slots: int = 0  # per node; 0: as many as cores, or see BYTES_PER_SLOT
    cores: int | None = None  # see Node; None: as the profiles say, and of the papers' models none do
    headroom: float | None = None  # a container's limit beyond its function's size, as a share of that
    zygote_memory: str = "50%"  # per node, of its memory: a share or a size
    tick_s: float = 0.0  # grain of placement passes; 0: as the live server


class Case(NamedTuple):
    trace: Path
    policy: str
    budget: float  # as a share of all functions' size


class Policy(NamedTuple):
    """Each with its settings, if it was given any."""

    mode: str  # or one of CACHES, or of BOUNDS
    predictor: str


def policy_of(text: str, world: World) -> Policy:
    """ "hazard", "hazard:poisson" (another predictor than the mode's own), "tyche(p_load=0.1)" and, in the pool,
    "lru" and "gdsf" as the plain caches that they are, and bounds. Raises BadSettings with what there is."""
    mode_text, colon, predictor_text = text.partition(":")
    mode = registry.Spec.of(mode_text)
    if world == "pool" and mode.name in (*CACHES, *BOUNDS):
        if colon or mode.settings:
            raise BadSettings(f"{mode.name} asks no predictor and takes no settings", hint=f"write {mode.name}")
        return Policy(mode.name, "")
    if mode.name not in registry.MODES:
        if mode.name in BOUNDS:
            raise BadSettings(
                f"{mode.name} bounds policies in the pool only", hint="leave it out, or --world pool"
            )
        known = dict.fromkeys((*CACHES, *registry.MODES, *BOUNDS) if world == "pool" else registry.MODES)
        raise BadSettings(f"there is no policy {mode.name!r}", hint=f"these exist: {', '.join(known)}")
    usual = registry.preload(mode.text).predictor
    predictor = registry.Spec.of(predictor_text if colon else usual)
    registry.predictor(predictor.text)
    return Policy(mode.text, predictor.text)


def made(policy: Policy) -> tuple[PreloadPolicy, Predictor]:
    """What does it, with nothing seen yet."""
    return registry.preload(policy.mode).policy, registry.predictor(policy.predictor)


def label(row: dict[str, Any]) -> str:
    """The policy of a row as one would ask for it."""
    mode, predictor = str(row["policy"]), row["predictor"]
    usual = not predictor or registry.preload(registry.Spec.of(mode).name).predictor == predictor
    return mode if usual else f"{mode}:{predictor}"


def check(settings: Settings, cases: list[Case]) -> None:
    """Raises BadSettings for what no run could be made of, and BadInput for a trace that cannot be read."""
    for case in cases:
        mode = policy_of(case.policy, settings.world).mode
        if mode in BOUNDS:
            whole = settings.minutes is None and settings.cap_per_minute is None
            bounding.check(mode, case.trace, whole=whole)
        if not 0.0 < case.budget <= 100.0:
            raise BadSettings(
                f"a budget of {case.budget:g} is no share of all functions' size that can be simulated",
                hint="write one above 0 and up to 100, such as 0.1 or 10%",
            )
    if not 0.0 <= settings.warmup < 1.0:
        raise BadSettings(
            f"a warm-up of {settings.warmup:g} leaves nothing to count",
            hint="give a share of the trace, such as 0.25",
        )
    if settings.world == "containers":
        keep_alive_of(settings)
        zygote_memory(settings, 0)
        if settings.headroom is not None and settings.headroom < 0.0:
            raise BadSettings(
                f"a headroom of {settings.headroom}", hint="a share of a function's size, such as 0.5"
            )
        if settings.nodes < 1:
            raise BadSettings(f"{settings.nodes} nodes", hint="1 or more")
    elif settings.nodes != 1:
        raise BadSettings("the pool world is one node", hint="--world containers has many")


def keep_alive_of(settings: Settings) -> Any:
    timed = {"seconds": settings.keep_alive_s} if settings.keep_alive == "fixed" else {}
    return registry.keep_alive(settings.keep_alive, **timed)


def cores_of(settings: Settings, work: Workload) -> int:
    """Of a node. See Node."""
    return work.cores if settings.cores is None else settings.cores


def zygote_memory(settings: Settings, memory: int) -> int:
    """Bytes that library zygotes may take of a node's. Raises BadSettings."""
    text = settings.zygote_memory.strip()
    percent = text.endswith("%")
    try:
        share = float(text.removesuffix("%")) / (100.0 if percent else 1.0)
    except ValueError:
        share = -1.0
    if 0.0 <= share <= 1.0:
        return int(share * memory)
    try:
        if not percent:
            return min(parse_bytes(text), memory)
    except ValueError:
        pass
    raise BadSettings(f"zygotes cannot have {text!r} of a node", hint="give a share, such as 50%, or a size, 2GB")


class Run(NamedTuple):
    number: int  # its case's
    row: dict[str, Any]
    reused: bool = False


def run(
    settings: Settings,
    cases: list[Case],
    *,
    jobs: int = 1,
    progress: Callable[[int, float], None] | None = None,
    folder: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """A row for each case, in their order; for the rest see `runs`."""
    rows = {one.number: one.row for one in runs(settings, cases, jobs=jobs, progress=progress, folder=folder)}
    yield from (rows[number] for number in range(len(cases)))


def runs(
    settings: Settings,
    cases: list[Case],
    *,
    jobs: int = 1,
    progress: Callable[[int, float], None] | None = None,
    folder: Path | None = None,
) -> Iterator[Run]:
    """Each case as it ends. With a `folder` every run has a file in it (see runs.py), and what is there already is
    not run again. `progress` gets a case's number and the share of it that is done, where one process runs them.
    Raises BadSettings, and BadInput for a trace that cannot be read or a folder that cannot be written."""
    check(settings, cases)
    files = Folder(folder) if folder is not None else None
    left: list[tuple[int, Case]] = []
    found: list[tuple[int, dict[str, Any]]] = []
    for number, case in enumerate(cases):
        there = files.load(key_of(settings, case)) if files is not None else None
        if there is None:
            left.append((number, case))
        else:
            found.append((number, there))
    for number, there in found:  # after all are read: one may have another one's number
        if files is not None:
            files.save(number, there)
        yield Run(number, there["row"], reused=True)
    if jobs > 1 and len(left) > 1:
        # Fresh processes: a forked one could hold a lock of a thread that it does not have.
        with ProcessPoolExecutor(min(jobs, len(left)), mp_context=get_context("spawn")) as processes:
            going = {processes.submit(_run, settings, case, number, folder): number for number, case in left}
            try:
                for future in as_completed(going):
                    yield Run(going[future], future.result())
            finally:
                processes.shutdown(wait=False, cancel_futures=True)
        return
    for number, case in left:
        told = None if progress is None else _share(progress, number, len(workload(settings, case.trace).times))
        yield Run(number, _run(settings, case, number, folder, told))


def _share(progress: Callable[[int, float], None], number: int, count: int) -> Callable[[int], None]:
    return lambda done: progress(number, done / max(count, 1))


def _run(
    settings: Settings,
    case: Case,
    number: int,
    folder: Path | None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Its row; its file is written."""
    if folder is None:
        return row(settings, case, progress)
    known = key_of(settings, case)  # of the trace as it is before it is read
    found = details(settings, case, progress)
    Folder(folder).save(number, {"version": VERSION, "key": known, **found})
    whole: dict[str, Any] = found["row"]
    return whole


def key_of(settings: Settings, case: Case) -> str:
    """Of all that decides this run. Raises BadInput for a trace that cannot be read."""
    policy = policy_of(case.policy, settings.world)
    given = [msgspec.to_builtins(settings), case.trace.name, policy, case.budget]
    content = [case.trace] if settings.profiles in BUILT_IN else [case.trace, Path(settings.profiles)]
    return key(given, *content)


def row(settings: Settings, case: Case, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Simulate one case."""
    whole: dict[str, Any] = details(settings, case, progress)["row"]
    return whole


def details(settings: Settings, case: Case, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Simulate one case: its row, and what a run file has beside."""
    work = workload(settings, case.trace)
    budget = int(case.budget * work.total_bytes)
    since = settings.warmup * work.end
    tally = ByClass(CLASSES, work.classes, since, work.end)
    first = bisect_left(work.times, since)
    timeline = Timeline(range(first, first + TIMELINE))
    policy = policy_of(case.policy, settings.world)
    decided: dict[str, Any] | None = None
    if policy.mode in BOUNDS:
        decided = bounding.row(policy.mode, case.trace, work, budget, since)
    else:
        simulate = _in_pool if settings.world == "pool" else _in_containers
        with garbage.settled():  # it walks through a million arrivals else: a sixth of a run
            simulate(settings, case.trace, policy, budget, tally, timeline, progress)
    total = tally.total()
    row = {
        "trace": case.trace.name,
        "world": settings.world,
        "policy": policy.mode,
        "predictor": policy.predictor,
        "keep_alive": settings.keep_alive if settings.world == "containers" else "",
        "nodes": settings.nodes,
        "budget_fraction": case.budget,
        "budget_mb": budget / MB,
        "functions": len(work.functions),
        **(decided or total.row()),
        "seed": settings.seed,
    }
    calls = [
        {
            "function": work.functions[call.function].name,
            "arrived_s": call.arrived_s,
            "start": call.start.value,
            "warming_ms": call.warming_s * 1e3,
            "loading_ms": call.loading_s * 1e3,
            "inference_ms": call.inference_s * 1e3,
            "e2e_ms": call.e2e_s * 1e3,
        }
        for call in timeline.ordered()
    ]
    classes = {} if decided else {name: one.row() | one.spread() for name, one in tally.tallies.items()}
    return detail(msgspec.to_builtins(settings), row, classes, total, calls)


def _in_pool(
    settings: Settings,
    path: Path,
    policy: Policy,
    budget: int,
    tally: ByClass,
    timeline: Timeline,
    progress: Callable[[int], None] | None,
) -> None:
    work = workload(settings, path)
    memory = pool.Pool(work, budget, tally, settings.on_miss, timeline)
    decides: pool.PoolPolicy
    if policy.mode in CACHES:
        decides = CACHES[policy.mode](memory)
    else:
        names = [function.name for function in work.functions]
        decides = pool.Planned(memory, names, *made(policy))
    pool.run(work, memory, decides, step_s=settings.step_s, progress=progress)


def _in_containers(
    settings: Settings,
    path: Path,
    policy: Policy,
    budget: int,
    tally: ByClass,
    timeline: Timeline,
    progress: Callable[[int], None] | None,
) -> None:
    work = workload(settings, path)
    usual = array("d", [inf]) * len(work.times)  # nobody waits longer for a guest where there are none
    if registry.Spec.of(policy.mode).name != "none":
        usual = _waits_without(settings, path, budget)
    if settings.nodes > 1 and registry.Spec.of(policy.mode).name in alone.MODES:
        begun = 0
        for share in alone.dealt(work, settings.nodes, settings.seed):
            part = alone.part_of(timeline, share)
            own = array("d", [usual[number] for number in share.numbers])
            world = _world(settings, share.work, policy, budget, tally, part, own, single=True)
            _live(world, share.work, progress and _behind(progress, begun))
            alone.gather(timeline, part, share)
            begun += len(share.numbers)
        return
    world = _world(settings, work, policy, budget, tally, timeline, usual)
    _live(world, work, progress)


def _behind(progress: Callable[[int], None], begun: int) -> Callable[[int], None]:
    return lambda done: progress(begun + done)


@lru_cache(maxsize=2)
def _waits_without(settings: Settings, path: Path, budget: int) -> array[float]:
    """What each request waits in the same world without pre-loading; infinite, where it is refused."""
    work = workload(settings, path)
    unused = ByClass(CLASSES, work.classes, inf, inf)
    world = _world(settings, work, policy_of("none", settings.world), budget, unused, Timeline(), ())
    world.waits.extend(array("d", [inf]) * len(work.times))
    _live(world, work, None)
    return world.waits


def _world(
    settings: Settings,
    work: Workload,
    policy: Policy,
    budget: int,
    tally: ByClass,
    timeline: Timeline,
    usual: Sequence[float],
    *,
    single: bool = False,
) -> Containers:
    """All nodes, or (`single`) one of them."""
    each = budget // settings.nodes
    largest = max(work.functions, key=lambda function: function.memory)
    if largest.memory > each:
        raise BadSettings(
            f"a node of {each / MB:.0f} MB cannot hold the container of {largest.memory / MB:.0f} MB "
            f"that {largest.name} needs",
            hint="give a larger budget, less --headroom, or fewer nodes",
        )
    cores = cores_of(settings, work)
    nodes = [
        Node(
            name=f"n{number}",
            memory=each,
            load_slots=settings.load_slots or cores or max(2, each // BYTES_PER_SLOT),
            cores=cores,
            zygote_memory=zygote_memory(settings, each),
            hop_s=HOP_S if settings.nodes > 1 else 0.0,
        )
        for number in range(1 if single else settings.nodes)
    ]
    mode, predictor = made(policy)
    state = State(Forecast(predictor), keep_alive_of(settings), mode)
    engine = Engine(Platform(state), tick_s=settings.tick_s)
    world = Containers(engine, nodes, work, tally, timeline, usual)
    engine.join(world)
    return world


def _live(world: Containers, work: Workload, progress: Callable[[int], None] | None) -> None:
    world.begin()
    names = [function.name for function in work.functions]
    world.engine.run(work.times, [names[one] for one in work.which], give_up_s=QUEUE_S, progress=progress)
    world.finish()


@lru_cache(maxsize=1)
def trace_of(settings: Settings, path: Path) -> Trace:
    """What of it is simulated; its `report` says which rows were left out. Raises BadInput."""
    trace = open_trace(path, minutes=settings.minutes, cap_per_minute=settings.cap_per_minute, seed=settings.seed)
    called = trace.at_least(settings.min_calls)
    where = f"{path.name} in these minutes" if settings.minutes else path.name
    if not len(trace):
        raise BadInput(f"there is no call in {where}", hint="name another trace, or other --minutes")
    if not len(called):
        raise BadInput(
            f"there is no function in {where} that is called {settings.min_calls} times",
            hint="take more --minutes, or a lower --min-calls",
        )
    return called


@lru_cache(maxsize=2)
def workload(settings: Settings, path: Path) -> Workload:
    """A trace with what its functions cost."""
    return of_trace(trace_of(settings, path), settings)


def of_trace(trace: Trace, settings: Settings) -> Workload:
    profiles = profiles_of(trace.names, settings.profiles)
    functions = []
    for name, profile in zip(trace.names, profiles, strict=True):
        costs = profile.costs()
        limit = int(costs.loaded_bytes * (1.0 + (HEADROOM if settings.headroom is None else settings.headroom)))
        if settings.headroom is None and profile.limit_mb:
            limit = round(profile.limit_mb * MB)
        functions.append(
            Function(
                name=f"{NAMESPACE}/{name}",
                revision=f"{NAMESPACE}/{name}@1:0",
                memory=limit,
                concurrency=profile.concurrency,
                libraries=profile.libraries,
                forkable=bool(profile.libraries),
                cloneable=profile.clone_ms > 0.0,
                costs=costs,
            )
        )
    durations: array[float] = array("d")
    if settings.trace_durations and len(trace.durations):
        usual = np.array([one.costs.warm_s for one in functions])[trace.functions]
        known = trace.durations.astype(np.float64)
        durations.frombytes(np.where(np.isnan(known), usual, known).tobytes())
    times, which = array("d"), array("i")
    times.frombytes(trace.times.tobytes())
    which.frombytes(trace.functions.tobytes())
    return Workload(
        functions=functions,
        times=times,
        which=which,
        durations=durations,
        end=trace.length_s,
        cores=max(profile.cores for profile in profiles),
        classes=[str(kind or OTHER) for kind in classify(trace)],
    )


def _processor() -> str:
    """Its model, where the system says it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.machine()


def document(command: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As `results.json` has it."""
    machine = {
        "cpu": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mb": machine_memory() / MB,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "instainfer": instainfer.__version__,
    }
    return {"version": 1, "command": command, "machine": machine, "rows": rows}
