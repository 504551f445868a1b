"""Processors that loads and inferences share: by hand."""

from __future__ import annotations

from math import inf

import msgspec
import pytest

from instainfer.sim.engine import Engine
from instainfer.sim.loads import Job, Loads
from instainfer.sim.tally import Timeline

from .helpers import MB, Run, function, node, workload

#: f is called at 0 (container 0.3, load 1, and 2 of inference) and at 10, as is g for the first time.
CALLS = [(0.0, 0), (10.0, 0), (10.0, 1)]


def served(
    cores: int, *, durations: tuple[float, ...] = (), first_s: float = 0.1
) -> dict[int, tuple[float, float, float]]:
    """Of each request: loading, inference, and when it was answered."""
    functions = [function("t/f", warm_s=2.0, first_s=2.0), function("t/g", first_s=first_s)]
    work = msgspec.structs.replace(workload(functions, CALLS, 20.0), durations=durations)
    timeline = Timeline(range(len(CALLS)))
    run = Run(work, node(cores=cores), timeline=timeline)
    assert run.world.running == 0
    return {
        call.request: (
            round(call.loading_s, 9),
            round(call.inference_s, 9),
            round(call.arrived_s + call.e2e_s, 9),
        )
        for call in timeline.ordered()
    }


@pytest.mark.parametrize("cores", [0, 2])
def test_with_a_processor_each_nobody_waits(cores: int) -> None:
    assert served(cores) == {0: (1.0, 2.0, 3.3), 1: (0.0, 2.0, 12.0), 2: (1.0, 0.1, 11.4)}


def test_a_load_and_an_inference_on_one_processor_slow_each_other() -> None:
    """From 10.3 on both go at half speed: g has loaded at 12.3 and has run at 12.5; f, which had done 0.3 by then
    and 1.1 since, has 0.6 left."""
    assert served(1) == {0: (1.0, 2.0, 3.3), 1: (0.0, 3.1, 13.1), 2: (2.0, 0.2, 12.5)}


def test_the_excess_of_a_first_inference_is_slowed_with_it() -> None:
    """g runs from 12.3: 0.3 more than usual and 0.1, at half speed, until 13.1. f then has 0.7 - 0.4 left."""
    assert served(1, first_s=0.4) == {0: (1.0, 2.0, 3.3), 1: (0.0, 3.4, 13.4), 2: (2.6, 0.2, 13.1)}


def test_inferences_as_long_as_in_the_trace_slow_loads_only() -> None:
    """f runs until 12.0 in any case; g loads 0.85 until then, and ends at 12.15."""
    found = served(1, durations=(2.0, 2.0, 0.1))
    assert found == {0: (1.0, 2.0, 3.3), 1: (0.0, 2.0, 12.0), 2: (1.85, 0.1, 12.25)}


def test_work_that_is_ended_from_outside_takes_its_share_until_then() -> None:
    engine = Engine(Run(workload([function()], [(0.0, 0)]), node()).engine.platform)
    loads = Loads(engine, 1)
    ends: list[float] = []
    job, other = Job(2.0, lambda: ends.append(engine.now)), Job(inf, lambda: ends.append(-1.0))
    loads.resume(other)
    loads.resume(job)
    engine.call(2.0, lambda: loads.suspend(other))
    while engine.step():
        pass
    assert ends == [pytest.approx(3.0)]
    assert job.slowed == pytest.approx(1.5) and other.spent_s == pytest.approx(2.0)


def test_all_calls_are_answered_where_there_are_more_than_a_processor_can_do_in_time() -> None:
    """More calls than one processor can do in time: each is answered, and none before its work is done."""
    functions = [function(f"t/{name}", memory=150 * MB, warm_s=1.0, first_s=1.0) for name in "abc"]
    calls = [(60.0 * turn + 0.1 * at, at) for turn in range(5) for at in range(3)]
    run = Run(workload(functions, calls), node(cores=1), mode="hazard")
    assert run.tally.invocations == len(calls)
    assert run.tally.row()["e2e_mean_ms"] > 2000.0
