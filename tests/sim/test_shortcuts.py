"""What is left out because it cannot change anything does not."""

from __future__ import annotations

import random

import pytest

from instainfer.model import Level
from instainfer.policies.base import ContainerView, FunctionView, Plan, Predictor, ResidentView, Snapshot
from instainfer.policies.placement.greedy import Greedy
from instainfer.policies.predict.forecast import Forecast
from instainfer.policies.predict.hazard import Hazard
from instainfer.policies.preload import hazard as mode
from instainfer.policies.preload.hazard import TICK_S, HazardPreload
from instainfer.sim.pool import Step


def known(draw: random.Random, names: list[str], until: float) -> Hazard:
    forecast = Hazard()
    calls = [(draw.random() * until, name) for name in names for _ in range(draw.choice((0, 1, 3, 20)))]
    for at, name in sorted(calls):
        forecast.observe(name, at)
    return forecast


def snapshot(draw: random.Random, names: list[str]) -> Snapshot:
    """Containers that are nearly full of some functions, at one level or the other."""
    size = {name: draw.randrange(20, 120) for name in names}
    libraries = {name: draw.choice((0, size[name] // 2)) for name in names}
    left, containers = draw.sample(names, len(names)), []
    ready = dict.fromkeys(names, Level.NONE)
    for number in range(draw.randrange(1, 5)):
        residents: list[ResidentView] = []
        for name in [left.pop() for _ in range(min(draw.randrange(4), len(left)))]:
            level = Level.IMPORTED if libraries[name] and draw.random() < 0.3 else Level.LOADED
            ready[name] = level
            residents.append(
                ResidentView(
                    instance=f"i-{name}",
                    function=name,
                    level=level,
                    bytes=libraries[name] if level is Level.IMPORTED else size[name],
                    evictable=draw.random() < 0.9,
                    stale=draw.random() < 0.05,
                )
            )
        free = draw.choice((0, 5, 15, 40))
        containers.append(
            ContainerView(
                id=f"c{number}",
                node="n",
                namespace="t",
                owner="t/f0",
                limit=free + sum(one.bytes for one in residents),
                free=free,
                idle=draw.random() < 0.8,
                created=0.0,
                last_used=0.0,
                uses=1,
                residents=tuple(residents),
            )
        )
    functions = tuple(
        FunctionView(
            name=name,
            namespace="t",
            libraries="",
            mounts=(),
            import_s=0.5 if libraries[name] else 0.0,
            load_s=draw.choice((0.2, 2.0)),
            imported_bytes=libraries[name],
            loaded_bytes=size[name],
            ready=ready[name],
        )
        for name in names
    )
    guests = {"n": draw.random() < 0.8}
    return Snapshot(functions=functions, containers=tuple(containers), load_slots={"n": 4}, guests=guests)


def test_a_pass_in_which_nothing_can_enter_is_known_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(7)
    names = [f"t/f{i}" for i in range(12)]
    cases = [(snapshot(draw, names), known(draw, names, 3600.0)) for _ in range(400)]

    def plans() -> list[Plan]:
        return [HazardPreload(Greedy()).plan(seen, forecast, 3700.0) for seen, forecast in cases]

    spared = 0
    asked = mode._may_enter

    def counted(*given: object) -> bool:
        nonlocal spared
        answer = asked(*given)  # type: ignore[arg-type]
        spared += not answer
        return answer

    monkeypatch.setattr(mode, "_may_enter", counted)
    short = plans()
    monkeypatch.setattr(mode, "_may_enter", lambda *given: True)
    assert short == plans()
    assert 40 < spared < 360


class Asked(Hazard):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def rate(self, function: str, now: float) -> float:
        self.asked.append(function)
        return super().rate(function, now)


def test_between_two_ticks_only_functions_that_were_called_are_asked_for_again() -> None:
    names = ["t/a", "t/b"]
    seen = snapshot(random.Random(1), names)
    policy, base = HazardPreload(Greedy()), Asked()
    forecast = Forecast(base)
    for name in names:
        forecast.observe(name, 0.0)

    def asked(now: float) -> list[str]:
        base.asked.clear()
        policy.plan(seen, forecast, now)
        return base.asked

    assert asked(10.0) == names
    assert asked(10.0 + 0.4 * TICK_S) == []
    forecast.observe("t/b", 10.0 + 0.5 * TICK_S)
    assert asked(10.0 + 0.6 * TICK_S) == ["t/b"]
    assert asked(10.0 + 1.1 * TICK_S) == names
    assert asked(5.0) == names  # another clock


def test_in_the_pool_a_rate_holds_until_the_next_decision_or_call() -> None:
    base = Asked()
    step: Predictor = Step(base, ["a", "b"])
    assert isinstance(step, Step)
    for name in ("a", "b"):
        step.observe(name, 0.0)
    first = step.rate("a", 10.0)
    assert step.rate("a", 15.0) == first and base.asked == ["a"]
    step.observe("a", 16.0)
    assert step.rate("a", 17.0) != first and base.asked == ["a", "a"]
    step.renew()
    step.rate("a", 20.0)
    step.rate("b", 20.0)
    assert base.asked == ["a", "a", "a", "b"]


def test_in_the_pool_the_rates_of_the_default_predictor_are_taken_together() -> None:
    """And those of any other one by one."""
    for base in (Hazard(), Asked()):
        step = Step(base, ["a", "b", "c"])
        for at in (0.0, 30.0, 61.0):
            step.observe("a", at)
        step.observe("b", 5.0)
        step.renew()
        assert step.rates(["b", "a", "c"], 70.0) == {name: base.rate(name, 70.0) for name in "abc"}
        step.observe("a", 71.0)
        held = step.rates(["a", "b", "c"], 72.0)
        assert held["a"] == base.rate("a", 72.0) and held["b"] == base.rate("b", 70.0)
