"""The plain caches: by hand, and call for call against libCacheSim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instainfer.lab.pool import PoolTrace, Steps, gdsf, least_budget, lru, mean_budget
from instainfer.traces.base import gather


def pool_of(calls: str, sizes: dict[str, float], latency: dict[str, float] | None = None) -> PoolTrace:
    """One call a second."""
    names = list(sizes)
    functions = np.array([names.index(name) for name in calls], np.int32)
    return PoolTrace(
        trace=gather(names, np.arange(len(calls), dtype=np.float64), functions),
        size_mb=np.array(list(sizes.values()), np.float64),
        latency_s=np.array([(latency or {}).get(name, 1.0) for name in names]),
    )


def shown(hits: np.ndarray) -> str:
    return "".join("+" if hit else "-" for hit in hits)


def test_lru_by_hand() -> None:
    assert shown(lru(pool_of("abcab", {"a": 1, "b": 1, "c": 1}), 2)) == "-----"
    assert shown(lru(pool_of("abacab", {"a": 1, "b": 1, "c": 1}), 2)) == "--+-+-"
    assert shown(lru(pool_of("abcabx", {"a": 1, "b": 1, "c": 2, "x": 9}), 4)) == "---++-"
    assert shown(lru(pool_of("xaxa", {"x": 9, "a": 1}), 4)) == "---+"  # what never fits disturbs nobody


def test_gdsf_by_hand() -> None:
    sizes = {"a": 1.0, "b": 1.0, "c": 1.0}
    # a has 2 calls: b, with 1, makes room for c; then c, as old as its call, for b
    assert shown(gdsf(pool_of("aabcab", sizes), 2)) == "-+--+-"
    # a goes (clock 2), c enters at 3, b goes (clock 3), a is back at 3 + 1 or, remembered, at 3 + 3; c rises to 5
    again = pool_of("bbbaacacbc", sizes)
    assert shown(gdsf(again, 2)) == "-++-+--+-+"
    assert shown(gdsf(again, 2, remember=True)) == "-++-+--+--"
    # the dear one stays though it is called less
    dear = pool_of("abbca", sizes, {"a": 10.0})
    assert shown(gdsf(dear, 2)) == "--+-+"
    # a newcomer that is the lowest itself does not stay
    assert shown(gdsf(pool_of("aabbcab", sizes), 2, bypass=True)) == "-+-+-++"
    assert shown(gdsf(pool_of("aabbcab", sizes), 2)) == "-+-+---"


def test_a_warm_up_is_not_counted() -> None:
    calls = pool_of("aaab", {"a": 1, "b": 1}, {"a": 2.0, "b": 5.0})
    late = PoolTrace(trace=calls.trace, size_mb=calls.size_mb, latency_s=calls.latency_s, warmup_s=2.0)
    assert calls.saved_fraction(lru(calls, 2)) == 4 / 11
    assert late.saved_fraction(lru(late, 2)) == 2 / 7
    assert late.share(0.5) == 1


def test_sizes_that_are_none() -> None:
    with pytest.raises(ValueError, match="above zero"):
        pool_of("a", {"a": 0})


def test_a_budget_in_steps() -> None:
    budget = Steps(times=np.array([0.0, 10.0, 20.0]), mb=np.array([4.0, 1.0, 7.0]))
    edges = np.array([0.0, 5.0, 15.0, 20.0, 30.0])
    assert mean_budget(budget, edges).tolist() == [4, 2.5, 1, 7]
    assert least_budget(budget, edges).tolist() == [4, 1, 1, 7]
    assert least_budget(budget, np.array([5.0, 25.0])).tolist() == [1]
    assert mean_budget(3, edges).tolist() == least_budget(3, edges).tolist() == [3, 3, 3, 3]


CALLS = st.lists(st.integers(0, 7), min_size=1, max_size=120)
SIZES = st.lists(st.integers(1, 9), min_size=8, max_size=8)


@given(CALLS, SIZES, st.integers(5, 30))
@settings(deadline=None)
def test_against_libcachesim(calls: list[int], sizes: list[int], budget: int) -> None:
    """Its GDSF puts a newcomer in first and knows no latency: all are one second."""
    theirs = pytest.importorskip("libcachesim")
    pool = PoolTrace(
        trace=gather(
            [str(at) for at in range(8)], np.arange(len(calls), dtype=np.float64), np.array(calls, np.int32)
        ),
        size_mb=np.array(sizes, np.float64),
        latency_s=np.ones(8),
    )
    for kind, ours in (("LRU", lru(pool, budget)), ("GDSF", gdsf(pool, budget, bypass=True))):
        cache = getattr(theirs, kind)(budget, hashpower=10)
        found = []
        for at, function in enumerate(calls):
            request = theirs.Request()
            request.obj_id, request.obj_size, request.clock_time = function + 1, sizes[function], at
            found.append(cache.get(request))
        assert (kind, shown(np.array(found))) == (kind, shown(ours))
