"""Bounds as runs: `simulate --policies KEEP,JIT,HAZARD` in the pool world, beside the policies that they bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from instainfer.errors import BadInput, BadSettings
from instainfer.lab import bounds
from instainfer.lab.bounds import Bound
from instainfer.lab.costs import latencies_s, sizes_mb
from instainfer.lab.pool import PoolTrace
from instainfer.sim.costs import Workload
from instainfer.sim.tally import Tally
from instainfer.traces import recipe
from instainfer.traces.base import Trace
from instainfer.units import MB

#: Unlike any policy's, which are in small letters.
BOUNDS = ("KEEP", "JIT", "HAZARD")


def check(name: str, path: Path, *, whole: bool) -> None:
    """`whole`: all minutes of the trace and all its calls are simulated. Raises BadSettings, and BadInput for a
    path that cannot be read."""
    if name != "HAZARD":
        return
    if not recipe.is_recipe(path):
        raise BadSettings(
            f"HAZARD needs known hazards, and {path.name} has none",
            hint='a synthetic trace has: a file with {"synthetic": "mixed", "functions": 40, "hours": 8}',
        )
    if not whole:
        raise BadSettings(
            "HAZARD is of a whole trace", hint="leave out --minutes and --cap-per-minute: its calls depend on all"
        )


def row(name: str, path: Path, work: Workload, budget: int, warmup_s: float) -> dict[str, Any]:
    """The part of a row that a run decides (see `Tally.row`): `saved_fraction` is the bound, of which at most
    `gap_fraction` is out of reach (see `Bound.gap`), and what no bound says is None. Raises BadInput."""
    pool = _pool(work, warmup_s)
    found = _bound(name, path, pool, budget / MB)
    unknown = dict.fromkeys(Tally(0.0, 0.0).row(), None)
    return {
        **unknown,
        "invocations": int(np.count_nonzero(pool.counted)),
        "rejected": 0,
        "saved_fraction": found.fraction,
        "gap_fraction": max(0.0, found.gap),
        "step_ms": found.step_s * 1e3,
    }


def _bound(name: str, path: Path, pool: PoolTrace, budget_mb: float) -> Bound:
    if name == "KEEP":
        return bounds.keep(pool, budget_mb)
    if name == "JIT":
        return bounds.jit(pool, budget_mb)
    known = recipe.hazards(path, pool.trace)
    return bounds.hazard(known, pool.size_mb, pool.latency_s, budget_mb, warmup_s=pool.warmup_s)


def _pool(work: Workload, warmup_s: float) -> PoolTrace:
    costs = [function.costs for function in work.functions]
    if partly := [f.name for f in work.functions if f.costs.import_s and f.costs.imported_bytes]:
        raise BadInput(
            f"bounds know functions that are loaded or not, and {partly[0]} may have its libraries alone",
            hint="take --profiles paper, or leave imported_mb out of the profiles",
        )
    trace = Trace(
        names=tuple(function.name.partition("/")[2] for function in work.functions),
        times=np.array(work.times),
        functions=np.array(work.which, np.int32),
        length_s=work.end,
    )
    return PoolTrace(trace=trace, size_mb=sizes_mb(costs), latency_s=latencies_s(costs), warmup_s=warmup_s)
