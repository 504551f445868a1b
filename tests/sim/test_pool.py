"""The `pool` world: the budget holds, the caches are the plain ones, and policies stand in the order that is
known of real traces."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from instainfer.lab import pool as plain
from instainfer.lab.simulate import Policy, Settings, policy_of, workload
from instainfer.model import Level
from instainfer.policies import registry
from instainfer.sim import pool
from instainfer.sim.caches import CACHES
from instainfer.sim.costs import Workload
from instainfer.sim.pool import OnMiss, Planned, Pool, PoolPolicy
from instainfer.sim.tally import Tally
from instainfer.traces.base import Trace

from . import helpers
from .helpers import MB, function, mixed

#: A real trace (per-minute counts of Azure 2019) is not the project's to ship: name one to try the order on it.
AZURE = os.environ.get("INSTAINFER_TEST_TRACE", "")


class Watched(Pool):
    """Looks at the budget after every change."""

    most = 0

    def load(self, function: int, level: Level, now: float, *, ahead: bool) -> None:
        super().load(function, level, now, ahead=ahead)
        held = sum(self.bytes_at(one, at) for one, at in self.level.items())
        assert held == self.size - self.free
        self.most = max(self.most, held)


def policy(name: str, memory: Pool, work: Workload) -> PoolPolicy:
    if name in CACHES:
        return CACHES[name](memory)
    chosen: Policy = policy_of(name, "pool")
    names = [one.name for one in work.functions]
    return Planned(memory, names, registry.preload(chosen.mode).policy, registry.predictor(chosen.predictor))


def run(
    work: Workload,
    name: str,
    share: float,
    *,
    on_miss: OnMiss = OnMiss.WEIGH,
    step_s: float = 10.0,
    warmup: float = 0.25,
) -> tuple[Tally, Watched]:
    tally = Tally(warmup * work.end, work.end)
    memory = Watched(work, int(share * work.total_bytes), tally, on_miss)
    pool.run(work, memory, policy(name, memory, work), step_s=step_s)
    return tally, memory


@pytest.mark.parametrize("on_miss", OnMiss)
@pytest.mark.parametrize("name", [*CACHES, *registry.MODES])
def test_the_budget_holds(name: str, on_miss: OnMiss) -> None:
    work = mixed()
    tally, memory = run(work, name, 0.3, on_miss=on_miss, warmup=0.0)
    assert tally.invocations == len(work.times)
    assert tally.memory_byte_s > 0.0
    assert (memory.most > memory.size) == (on_miss is OnMiss.LINGER)
    if on_miss is not OnMiss.LINGER:
        assert tally.memory_byte_s <= memory.size * work.end


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_lru_and_gdsf_are_the_plain_ones(share: float) -> None:
    """Against an implementation that shares no line with this one."""
    work = mixed()
    trace = Trace(
        names=tuple(one.name for one in work.functions),
        times=np.array(work.times),
        functions=np.array(work.which, np.int32),
        length_s=work.end,
    )
    arrays = plain.PoolTrace(
        trace=trace,
        size_mb=np.array([one.costs.loaded_bytes / MB for one in work.functions]),
        latency_s=np.array([one.costs.loading_s for one in work.functions]),
        warmup_s=0.25 * work.end,
    )
    budget = share * float(arrays.size_mb.sum())
    assert run(work, "lru", share)[0].saved == pytest.approx(arrays.saved_fraction(plain.lru(arrays, budget)))
    remembered = arrays.saved_fraction(plain.gdsf(arrays, budget, remember=True))
    assert run(work, "gdsf", share)[0].saved == pytest.approx(remembered, abs=0.005)  # equal priorities differ


def test_without_pressure_only_first_calls_are_missed() -> None:
    work = mixed()
    called = len(set(work.which))
    for name in ("lru", "gdsf", "hazard", "none"):
        tally, _ = run(work, name, 1.0, warmup=0.0)
        assert round(tally.row()["cold_fraction"] * tally.invocations) == called, name


def test_a_timer_is_loaded_ahead_of_its_calls() -> None:
    """Room for one of two functions that take turns: whoever keeps on demand misses every time."""
    functions = [function("t/a"), function("t/b")]
    calls = [*((300.0 * n, 0) for n in range(60)), *((300.0 * n + 150.0, 1) for n in range(60))]
    work = helpers.workload(functions, calls)
    assert run(work, "lru", 0.5)[0].saved == 0.0
    hazard, _ = run(work, "hazard", 0.5)
    assert hazard.saved > 0.9
    assert hazard.row()["preloaded_fraction"] > 0.9


def test_a_preload_that_nobody_used_is_waste() -> None:
    work = helpers.workload([function("t/a"), function("t/b")], [(10.0, 0), (1000.0, 1)], 1000.0)
    tally = Tally(0.0, work.end)
    memory = Pool(work, 150 * MB, tally)
    memory.load(0, Level.LOADED, 100.0, ahead=True)
    memory.drop(0, 300.0)
    assert tally.wasted_byte_s == tally.memory_byte_s == 200.0 * 100 * MB
    memory.load(0, Level.IMPORTED, 300.0, ahead=True)
    assert not memory.call(0, 400.0, 0.1)  # its libraries only: it had to load the rest
    assert tally.saved == pytest.approx(0.4)
    memory.load(0, Level.LOADED, 400.0, ahead=False)
    memory.finish(1000.0)
    assert tally.memory_byte_s == pytest.approx((200 * 100 + 100 * 40 + 600 * 100) * MB)
    with pytest.raises(ValueError, match="bytes needed"):
        memory.load(1, Level.LOADED, 1000.0, ahead=False)


@pytest.mark.slow
def test_the_known_order_on_a_synthetic_trace() -> None:
    work = mixed(seed=3, functions=60, end=6 * 3600.0)
    saved = {name: run(work, name, 0.25)[0].saved for name in ("lru", "instainfer", "tyche", "hazard")}
    assert saved["hazard"] > saved["tyche"] > saved["instainfer"] > saved["lru"]
    ample = {name: run(work, name, 0.8)[0].saved for name in ("lru", "tyche", "hazard")}
    assert ample["hazard"] > ample["lru"] > ample["tyche"]  # off-loading while memory is free


@pytest.mark.slow
def the_known_order_on_a_real_trace() -> None:
    """Ten-second decisions between which called functions linger, as in the laboratory's table."""
    work = workload(Settings(cap_per_minute=6, minutes="0:120"), Path(AZURE))
    saved = {
        (name, share): run(work, name, share, on_miss=OnMiss.LINGER)[0].saved
        for share in (0.1, 0.7)
        for name in ("lru", "gdsf", "instainfer", "tyche", "hazard")
    }
    assert saved["hazard", 0.1] > saved["gdsf", 0.1] > saved["tyche", 0.1] > saved["instainfer", 0.1]
    assert saved["instainfer", 0.1] > saved["lru", 0.1]
    assert saved["hazard", 0.7] > saved["lru", 0.7] > saved["tyche", 0.7] > saved["instainfer", 0.7]
    assert saved["gdsf", 0.7] > saved["lru", 0.7]


if AZURE:
    test_the_known_order_on_a_real_trace = the_known_order_on_a_real_trace
