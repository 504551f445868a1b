"""Trace: order, windows, caps, selections."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instainfer.errors import BadInput
from instainfer.traces.base import Trace, gather


def of(*arrivals: tuple[float, int], names: str = "abc", length_s: float = 0.0) -> Trace:
    times = np.array([at for at, _ in arrivals], np.float64)
    return gather(tuple(names), times, np.array([f for _, f in arrivals], np.int32), length_s=length_s)


ARRIVALS = st.lists(st.tuples(st.floats(0, 300), st.integers(0, 2)), max_size=60)


@given(ARRIVALS)
@settings(deadline=None)
def test_arrivals_ascend_ties_in_order_of_function(arrivals: list[tuple[float, int]]) -> None:
    trace = of(*arrivals)
    assert list(zip(trace.times.tolist(), trace.functions.tolist(), strict=True)) == sorted(arrivals)


@given(ARRIVALS)
@settings(deadline=None)
def test_previous_is_the_same_functions_call_before(arrivals: list[tuple[float, int]]) -> None:
    trace = of(*arrivals)
    latest: dict[int, int] = {}
    for at, function in enumerate(trace.functions.tolist()):
        assert trace.previous[at] == latest.get(function, -1)
        latest[function] = at


@given(ARRIVALS, st.integers(1, 5))
@settings(deadline=None)
def test_a_cap_leaves_so_many_a_minute_and_counts_the_rest(arrivals: list[tuple[float, int]], most: int) -> None:
    trace = of(*arrivals)
    capped = trace.cap_per_minute(most)

    def per_minute(of: Trace) -> dict[tuple[int, int], int]:
        counts: dict[tuple[int, int], int] = {}
        for at, function in zip(of.times.tolist(), of.functions.tolist(), strict=True):
            key = (function, int(at // 60))
            counts[key] = counts.get(key, 0) + 1
        return counts

    assert per_minute(capped) == {key: min(count, most) for key, count in per_minute(trace).items()}
    assert capped.report.dropped_by_cap == len(trace) - len(capped)
    assert capped.length_s == trace.length_s


def test_what_a_cap_leaves_spreads_over_the_minute() -> None:
    trace = of(*((float(second), 0) for second in range(60)))
    assert trace.cap_per_minute(4).times.tolist() == [0, 15, 30, 45]


def test_a_window_is_half_open_counts_from_its_start_and_keeps_every_function() -> None:
    trace = of((10, 0), (20, 1), (30, 2), length_s=100).window(10, 30)
    assert trace.times.tolist() == [0, 10]
    assert trace.names == ("a", "b", "c")
    assert trace.length_s == 20
    assert of((10, 0), length_s=100).window(50, 300).length_s == 50


def test_select_and_at_least_renumber() -> None:
    trace = of((1, 0), (1, 2), (2, 2), (3, 1))
    chosen = trace.select(["c", "a"])
    assert chosen.names == ("c", "a")
    assert chosen.functions.tolist() == [0, 1, 0]  # the tie at 1 s is in the new order
    assert trace.at_least(2).names == ("c",)
    assert trace.at_least(2).functions.tolist() == [0, 0]
    with pytest.raises(BadInput, match="no function 'd'"):
        trace.select(["d"])


def test_gaps() -> None:
    trace = of((1, 0), (4, 1), (3, 0), (8, 0))
    assert trace.gaps("a").tolist() == [2, 5]
    assert trace.gaps(1).tolist() == []


def test_the_length_left_out_is_the_end_of_the_last_minute() -> None:
    assert of((61, 0)).length_s == 120
    assert of().length_s == 0


def test_what_is_no_trace_is_refused() -> None:
    def made(times: list[float], functions: list[int], length_s: float = 0.0) -> Trace:
        return Trace(
            names=("a",),
            times=np.array(times),
            functions=np.array(functions, np.int32),
            length_s=length_s,
        )

    with pytest.raises(ValueError, match="ascend"):
        made([2.0, 1.0], [0, 0])
    with pytest.raises(ValueError, match="no name"):
        made([1.0], [1])
    with pytest.raises(ValueError, match="in a trace of 1"):
        made([2.0], [0], 1.0)
    with pytest.raises(ValueError, match="read-only"):
        made([1.0], [0]).times[0] = 3
    for window in ((5.0, 5.0), (-1.0, 2.0)):
        with pytest.raises(BadInput, match="empty"):
            made([1.0], [0]).window(*window)
    with pytest.raises(BadInput, match="leaves none"):
        made([1.0], [0]).cap_per_minute(0)
