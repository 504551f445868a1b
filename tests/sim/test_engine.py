"""Time in the simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.platform import Platform
from instainfer.sim.engine import Engine

from .helpers import Run, function, node, workload


class Script(Platform):
    """In place of the core: notes what it is told and answers with what a test says."""

    def __init__(self, answers: dict[str, list[act.AnyAction]] | None = None) -> None:
        self.heard: list[tuple[float, str]] = []
        self._answers = answers or {}

    def handle(self, event: ev.Event, now: float) -> list[act.AnyAction]:
        name = getattr(event, "timer", None) or getattr(event, "container", None) or type(event).__name__
        self.heard.append((now, name))
        return self._answers.pop(name, [])


class Idle:
    """A world in which requests wait for ever."""

    def __init__(self) -> None:
        self.settled = self.running = 0
        self.carry_out: dict[type[act.Action], Callable[[Any, float], None]] = {}


def drive(script: Script, *, tick_s: float = 0.0) -> Engine:
    engine = Engine(script, tick_s=tick_s)
    engine.join(Idle())
    return engine


def fact(name: str) -> ev.ContainerLost:
    return ev.ContainerLost(container=name)


def timer(name: str, at: float) -> act.SetTimer:
    return act.SetTimer(timer=name, at=at)


def test_at_one_moment_facts_come_before_timers_and_requests_last() -> None:
    script = Script({"start": [timer("t", 5.0)]})
    engine = drive(script)
    engine.post(0.0, fact("start"))
    engine.post(5.0, fact("first"))
    engine.post(5.0, fact("second"))
    engine.run([1.0, 5.0], ["f", "f"], give_up_s=100.0)
    assert script.heard[:6] == [
        (0.0, "start"),
        (1.0, "RequestArrived"),
        (5.0, "first"),
        (5.0, "second"),
        (5.0, "t"),
        (5.0, "RequestArrived"),
    ]


def test_a_timer_that_is_set_again_fires_once_at_the_new_time() -> None:
    script = Script({"start": [timer("t", 5.0)], "later": [timer("t", 9.0)]})
    engine = drive(script)
    engine.post(0.0, fact("start"))
    engine.post(2.0, fact("later"))
    engine.run([20.0], ["f"], give_up_s=1.0)
    assert [entry for entry in script.heard if entry[1] == "t"] == [(9.0, "t")]


def test_a_grain_delays_placement_passes_and_nothing_else() -> None:
    script = Script({"start": [timer("placement", 3.2), timer("expire:c", 3.2)]})
    engine = drive(script, tick_s=10.0)
    engine.post(0.0, fact("start"))
    engine.run([20.0], ["f"], give_up_s=1.0)
    assert script.heard[1:3] == [(3.2, "expire:c"), (10.0, "placement")]
    assert engine.passes == 1


def test_a_request_that_waits_is_taken_back() -> None:
    script = Script()
    drive(script).run([1.0], ["f"], give_up_s=60.0)
    assert script.heard == [(1.0, "RequestArrived"), (61.0, "RequestCancelled")]


def test_progress_is_told() -> None:
    told: list[int] = []
    work = workload([function()], [(1.0, 0)])
    run = Run(work, node())
    run.engine.run([], [], give_up_s=1.0, progress=told.append)
    assert told == []
    drive(Script()).run([1.0], ["f"], give_up_s=1.0, progress=told.append)
    assert told == [0]
