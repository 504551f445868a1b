"""Loads beyond a node's slots slow each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from instainfer.sim.engine import Engine
from instainfer.sim.loads import Job, Loads

from .helpers import Run, function, node, workload


class Bench:
    """An engine without a core: only calls."""

    def __init__(self, slots: int) -> None:
        self.engine = Run(workload([function()], [(0.0, 0)]), node()).engine
        self.engine = Engine(self.engine.platform)
        self.loads = Loads(self.engine, slots)
        self.ends: dict[str, float] = {}

    def job(self, name: str, work_s: float) -> Job:
        return Job(work_s, lambda: self.ends.__setitem__(name, self.engine.now))

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.engine.call(when, what)

    def go(self) -> dict[str, float]:
        while self.engine.step():
            pass
        return {name: round(at, 6) for name, at in self.ends.items()}


def test_within_the_slots_each_has_full_speed() -> None:
    bench = Bench(2)
    for name, work in (("a", 1.0), ("b", 2.0)):
        bench.loads.resume(bench.job(name, work))
    assert bench.go() == {"a": 1.0, "b": 2.0}


def test_three_on_two_slots_take_turns() -> None:
    """At 2/3 speed until the first two end at 1.5 s, the third then has a slot of its own."""
    bench = Bench(2)
    for name, work in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        bench.loads.resume(bench.job(name, work))
    assert bench.go() == {"a": 1.5, "b": 1.5, "c": 2.5}


def test_a_suspended_one_gives_its_share_and_goes_on_later() -> None:
    bench = Bench(1)
    a, b = bench.job("a", 2.0), bench.job("b", 1.0)
    bench.loads.resume(a)
    bench.loads.resume(b)
    bench.at(1.0, lambda: bench.loads.suspend(a))  # a did 0.5 of its 2; b ends alone at 1.5
    bench.at(5.0, lambda: bench.loads.resume(a))
    assert bench.go() == {"b": 1.5, "a": 6.5}
    assert a.spent_s == pytest.approx(2.5)
    assert b.spent_s == pytest.approx(1.5)


def test_one_that_is_stopped_for_good_never_ends() -> None:
    bench = Bench(2)
    a = bench.job("a", 1.0)
    bench.loads.resume(a)
    bench.at(0.5, lambda: bench.loads.suspend(a))
    bench.at(0.6, lambda: bench.loads.suspend(a))
    assert bench.go() == {}
    assert a.left_s == pytest.approx(0.5)
