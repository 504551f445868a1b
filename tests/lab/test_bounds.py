"""Bounds: against enumeration, in their order, by hand, and never above what is possible."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instainfer.lab import bounds, intervals, linear
from instainfer.lab.pool import Budget, PoolTrace, Steps, gdsf, least_budget, lru
from instainfer.traces.base import gather
from instainfer.traces.generate import KINDS, Poisson, Timer, generate, synthetic

NEAR = 1e-6


def pool_of(calls: list[tuple[float, int]], sizes: list[float], latencies: list[float]) -> PoolTrace:
    times = np.array([at for at, _ in calls], np.float64)
    return PoolTrace(
        trace=gather([str(at) for at in range(len(sizes))], times, np.array([f for _, f in calls], np.int32)),
        size_mb=np.array(sizes, np.float64),
        latency_s=np.array(latencies, np.float64),
    )


def enumerated(choices: intervals.Intervals, budget: Budget) -> float:
    """Value of the best subset that fits at every moment."""
    edges = np.unique(np.concatenate([choices.starts, choices.ends, [0.0, 1e6]]))
    room = least_budget(budget, edges)
    covers = (choices.starts[:, None] <= edges[:-1]) & (edges[1:] <= choices.ends[:, None])
    best = 0.0
    for subset in range(1 << len(choices)):
        chosen = np.array([subset >> bit & 1 for bit in range(len(choices))], np.bool_)
        if (choices.sizes[chosen] @ covers[chosen] <= room + 1e-9).all():
            best = max(best, float(choices.values[chosen].sum()))
    return best


@st.composite
def pools(draw: st.DrawFn, calls: int = 10, equal: bool = False) -> PoolTrace:
    kinds = draw(st.integers(1, 4))
    made = draw(
        st.lists(st.tuples(st.integers(0, 12).map(float), st.integers(0, kinds - 1)), min_size=1, max_size=calls)
    )
    size = st.just(2.0) if equal else st.integers(1, 5).map(float)
    sizes = draw(st.lists(size, min_size=kinds, max_size=kinds))
    latencies = draw(st.lists(st.integers(1, 9).map(float), min_size=kinds, max_size=kinds))
    return pool_of(made, sizes, latencies)


@given(pools(), st.integers(0, 12))
@settings(max_examples=50, deadline=None)
def test_keep_lies_above_the_best_choice_and_its_packing_below(pool: PoolTrace, budget: int) -> None:
    best = enumerated(intervals.kept(pool), budget)
    bound = bounds.keep(pool, budget)
    assert bound.step_s == 0
    assert bound.reached_s - NEAR <= best <= bound.saved_s + NEAR
    assert bound.saved_s <= bound.total_s == pool.total_s


@given(pools(equal=True), st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_keep_is_exact_where_sizes_are_equal(pool: PoolTrace, copies: int) -> None:
    """Intervals of one size: the program's corners are whole."""
    best = enumerated(intervals.kept(pool), 2.0 * copies)
    assert bounds.keep(pool, 2.0 * copies).saved_s == pytest.approx(best, abs=NEAR)


@given(pools(calls=40), st.integers(1, 12), st.floats(0.3, 7))
@settings(max_examples=30, deadline=None)
def test_the_order_of_bounds_and_policies(pool: PoolTrace, budget: int, step_s: float) -> None:
    demand = [pool.values[hits].sum() for hits in (lru(pool, budget), gdsf(pool, budget))]
    demand += [pool.values[gdsf(pool, budget, remember=r, bypass=True)].sum() for r in (False, True)]
    keep, jit = bounds.keep(pool, budget), bounds.jit(pool, budget)
    assert max(demand) <= keep.saved_s + NEAR
    assert keep.saved_s <= jit.saved_s + NEAR
    assert jit.reached_s <= jit.saved_s + NEAR
    some, one = bounds.jit(pool, budget, concurrent=2), bounds.jit(pool, budget, concurrent=1)
    assert keep.saved_s <= one.saved_s + NEAR
    assert one.saved_s <= some.saved_s + NEAR
    assert some.saved_s <= jit.saved_s + NEAR
    # coarser steps only loosen it
    assert keep.saved_s <= bounds.keep(pool, budget, step_s=step_s).saved_s + NEAR


@given(pools(calls=25), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_a_budget_in_steps_lies_between(pool: PoolTrace, first: int, second: int) -> None:
    steps = Steps(times=np.array([0.0, 5.5]), mb=np.array([first, second], np.float64))
    found = bounds.keep(pool, steps)
    assert bounds.keep(pool, min(first, second)).saved_s <= found.saved_s + NEAR
    assert found.saved_s <= bounds.keep(pool, max(first, second)).saved_s + NEAR
    assert found.reached_s <= found.saved_s + NEAR


@given(pools(calls=8), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_keep_with_a_budget_in_steps_against_enumeration(pool: PoolTrace, first: int, second: int) -> None:
    steps = Steps(times=np.array([0.0, 5.5]), mb=np.array([first, second], np.float64))
    kept = intervals.kept(pool)
    edges = np.unique(np.concatenate([kept.starts, kept.ends, [0.0, 5.5, 1e6]]))
    best = 0.0
    covers = (kept.starts[:, None] <= edges[:-1]) & (edges[1:] <= kept.ends[:, None])
    for subset in range(1 << len(kept)):
        chosen = np.array([subset >> bit & 1 for bit in range(len(kept))], np.bool_)
        if (kept.sizes[chosen] @ covers[chosen] <= least_budget(steps, edges) + 1e-9).all():
            best = max(best, float(kept.values[chosen].sum()))
    bound = bounds.keep(pool, steps)
    assert bound.reached_s - NEAR <= best <= bound.saved_s + NEAR


def test_keep_by_hand() -> None:
    # a is needed over [0, 10] and [10, 12], b over [1, 11]: both only fit with 3 MB
    pool = pool_of([(0, 0), (1, 1), (10, 0), (11, 1), (12, 0)], [1, 2], [1.0, 1.5])
    assert bounds.keep(pool, 3).saved_s == pytest.approx(3.5)
    assert bounds.keep(pool, 2).saved_s == pytest.approx(2.75)  # half of b beside all of a
    assert bounds.keep(pool, 2).reached_s == pytest.approx(2)
    assert bounds.keep(pool, 2).fraction == pytest.approx(2.75 / 6)
    assert bounds.keep(pool, 0).saved_s == pytest.approx(0, abs=NEAR)
    assert bounds.keep(replace(pool, warmup_s=11), 3).saved_s == pytest.approx(2.5)
    assert bounds.keep(replace(pool, warmup_s=11), 3).total_s == pytest.approx(2.5)
    assert bounds.keep(replace(pool, warmup_s=50), 3).fraction == 0


def test_jit_by_hand() -> None:
    pool = pool_of([(5, 0), (6, 1), (20, 0)], [2, 2], [2.0, 2.0])
    assert bounds.jit(pool, 4).saved_s == pytest.approx(6)  # first calls too
    # with 2 MB, [3, 5] and [4, 6] share the memory from 4 to 5
    assert bounds.jit(pool, 2).saved_s == pytest.approx(4)
    assert bounds.jit(pool, 2, load_s=np.zeros(2)).saved_s == pytest.approx(6)
    assert bounds.jit(pool, 2, load_s=np.array([1.0, 1.0])).saved_s == pytest.approx(6)


def test_jit_with_few_loads_at_a_time() -> None:
    # twelve functions are called at once, two seconds after the start; a load takes one
    pool = pool_of([(2, at) for at in range(12)], [1.0] * 12, [1.0] * 12)
    assert bounds.jit(pool, 100).saved_s == pytest.approx(12)
    assert bounds.jit(pool, 100, concurrent=20).saved_s == pytest.approx(12)
    # The true answer is two loads a slot. Spans are aligned: four are allowed, those of [0, 4].
    assert 2 <= bounds.jit(pool, 100, concurrent=1).saved_s <= 4 + NEAR
    assert bounds.jit(pool, 100, concurrent=2).saved_s <= 8 + NEAR
    # a function called again was kept: no load
    again = pool_of([(2, at) for at in range(12)] + [(2.5, at) for at in range(12)], [1.0] * 12, [1.0] * 12)
    assert bounds.jit(again, 100, concurrent=1).saved_s >= 12


def test_long_traces_are_bounded_by_steps_and_the_gap_is_said() -> None:
    made = synthetic("mixed", 30, 8 * 3600.0, seed=2).trace
    rng = np.random.default_rng(1)
    pool = PoolTrace(trace=made, size_mb=rng.uniform(1, 9, 30), latency_s=rng.uniform(0.1, 2, 30))
    budget = pool.share(0.2)
    exact = bounds.keep(pool, budget, step_s=0)
    coarse = bounds.keep(pool, budget, entries=20_000)
    assert exact.step_s == 0 < coarse.step_s
    assert exact.saved_s <= coarse.saved_s + NEAR
    assert 0 <= exact.gap <= coarse.gap + 0.01
    assert coarse.gap < 0.15
    assert pool.values[gdsf(pool, budget)].sum() <= exact.saved_s + NEAR
    assert 0 < exact.reached_s <= exact.saved_s


def test_a_solution_that_is_none_still_gives_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of([(0, 0), (1, 1), (10, 0), (11, 1), (12, 0)], [1, 2], [1.0, 1.5])
    best = bounds.keep(pool, 2).saved_s
    monkeypatch.setattr(linear, "_solve", lambda v, m, room, scale: (np.zeros(len(v)), np.full(len(room), 0.3)))
    assert best <= bounds.keep(pool, 2).saved_s <= pool.total_s


def test_knapsack_by_hand() -> None:
    values = np.array([[6.0, 10.0, 12.0], [0.0, 0.0, 1.0]])
    assert bounds.knapsack(values, np.array([1.0, 2.0, 3.0]), np.array([5.0, 1.5])).tolist() == [24.0, 0.5]


def test_hazard_of_poisson_functions_by_hand() -> None:
    """Constant hazards: the knapsack of rate x latency, whatever arrived."""
    made = generate({"a": Poisson(0.01), "b": Poisson(0.02), "c": Poisson(0.001)}, 5000, seed=1)
    sizes, latencies = np.array([2.0, 1.0, 1.0]), np.array([3.0, 1.0, 5.0])
    found = bounds.hazard(made, sizes, latencies, 2.0, warmup_s=1000)
    # a .030 (.015 a MB), b .020, c .005: all of b, half of a
    assert found.total_s == pytest.approx(4000 * 0.055)
    assert found.saved_s == pytest.approx(4000 * (0.02 + 0.015))
    assert found.gap == pytest.approx(0, abs=1e-9)
    assert bounds.hazard(made, sizes, latencies, 4.0).fraction == pytest.approx(1)
    assert bounds.hazard(made, sizes, latencies, 0.0).fraction == 0
    assert bounds.hazard(made, sizes, latencies, 2.0, warmup_s=5000).fraction == 0


def test_hazard_of_timers_that_never_meet_is_all() -> None:
    """Each is due when no other is, so memory for one suffices."""
    apart = generate({"a": Timer(100, 0, 20), "b": Timer(100, 50, 20)}, 10_000, seed=1)
    sizes, latencies = np.ones(2), np.array([1.0, 2.0])
    assert bounds.hazard(apart, sizes, latencies, 1.0).fraction == pytest.approx(1)
    # where they are due at the same time with the same hazards, half is lost at each moment before the first fires
    together = generate({"a": Timer(100, 0, 20), "b": Timer(100, 0, 20)}, 20_000, seed=1)
    found = bounds.hazard(together, sizes, np.ones(2), 1.0, step_s=1)
    # either is first with chance 1/2, and is hit with chance 1/2; the other, due alone, always
    assert found.fraction == pytest.approx(0.75, abs=0.03)
    assert 0 <= found.gap < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_no_policy_without_foresight_passes_hazard_and_foresight_may(kind: str) -> None:
    made = synthetic(kind, 20, 6 * 3600.0, seed=3)
    rng = np.random.default_rng(2)
    pool = PoolTrace(trace=made.trace, size_mb=rng.uniform(1, 9, 20), latency_s=rng.uniform(0.1, 2, 20))
    budget = pool.share(0.3)
    found = bounds.hazard(made, pool.size_mb, pool.latency_s, budget, step_s=20)
    assert 0 <= found.gap < 0.02
    for hits in (lru(pool, budget), gdsf(pool, budget)):
        assert pool.saved_fraction(hits) < found.fraction + 0.05  # it holds on average only
    assert found.fraction < bounds.jit(pool, budget).fraction + 0.05
    assert found.total_s == pytest.approx(pool.total_s, rel=0.25)
