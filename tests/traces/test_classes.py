"""CoV, classes, and seeded samples of them."""

from __future__ import annotations

import numpy as np
import pytest

from instainfer.errors import BadInput
from instainfer.traces.base import Trace, gather
from instainfer.traces.classes import Regularity, classify, cov, sample, sample_sets


def of(gaps: dict[str, list[float]]) -> Trace:
    times = [np.concatenate([[1.0], 1.0 + np.cumsum(each)]) for each in gaps.values()]
    functions = np.repeat(np.arange(len(times), dtype=np.int32), [len(each) for each in times])
    return gather(list(gaps), np.concatenate(times), functions)


def test_cov_is_std_over_mean_of_the_gaps() -> None:
    gaps = {"even": [5.0] * 9, "odd": [1.0, 2.0, 4.0] * 5, "few": [1.0] * 8, "at once": [0.0] * 9}
    found = cov(of(gaps))
    assert found[0] == 0
    assert found[1] == pytest.approx(float(np.std(gaps["odd"]) / np.mean(gaps["odd"])))
    assert np.isnan(found[2])
    assert found[3] == 0


def test_classes_by_the_papers_limits() -> None:
    bursts = [1.0] * 40 + [100_000.0]
    trace = of({"p": [5.0] * 9, "n": [1.0] * 8 + [9.0, 9.0, 20.0], "b": bursts, "few": [1.0]})
    assert classify(trace) == [Regularity.PREDICTABLE, Regularity.NORMAL, Regularity.BURSTY, None]


def test_a_sample_is_the_seeds_and_in_the_traces_order() -> None:
    trace = of({f"p{at}": [5.0] * (9 + at) for at in range(30)})
    first = sample(trace, Regularity.PREDICTABLE, 8, seed=1)
    assert first.names == sample(trace, Regularity.PREDICTABLE, 8, seed=1).names
    assert first.names != sample(trace, Regularity.PREDICTABLE, 8, seed=2).names
    assert list(first.names) == sorted(first.names, key=trace.names.index)
    assert len(set(first.names)) == 8
    few = sample(trace, Regularity.PREDICTABLE, 3, arrivals=(12, 14))
    assert few.names == ("p2", "p3", "p4")
    with pytest.raises(BadInput, match="the trace has 3"):
        sample(trace, Regularity.PREDICTABLE, 4, arrivals=(12, 14))
    with pytest.raises(BadInput, match="bursty"):
        sample_sets(of({"p": [5.0] * 9, "n": [1.0] * 8 + [9.0, 9.0, 20.0]}), 1)
