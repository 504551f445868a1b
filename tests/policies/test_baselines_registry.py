"""Policies by name and settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from instainfer.core import events as ev
from instainfer.errors import BadSettings
from instainfer.policies.keepalive.fixed import Fixed
from instainfer.policies.keepalive.pressure import Pressure
from instainfer.policies.predict.poisson import SlidingWindowPoisson
from instainfer.policies.preload.timers import TimerPreload
from instainfer.policies.registry import KEEP_ALIVES, MODES, PREDICTORS, Spec, keep_alive, predictor, preload
from tests.core.world import World, function, platform


class TestSpec:
    @pytest.mark.parametrize(
        ("text", "name", "settings"),
        [
            ("tyche", "tyche", {}),
            ("tyche()", "tyche", {}),
            (" tyche ( p_load = 0.1 , p_offload=.9 ) ", "tyche", {"p_load": 0.1, "p_offload": 0.9}),
            ("fixed(seconds=1e3)", "fixed", {"seconds": 1000.0}),
        ],
    )
    def test_what_is_read(self, text: str, name: str, settings: dict[str, float]) -> None:
        assert Spec.of(text) == (name, settings)

    @pytest.mark.parametrize(
        "text",
        ["", "(a=1)", "tyche(", "tyche)", "tyche(p_load)", "tyche(p_load=)", "tyche(=1)", "tyche(p_load=x)",
         "tyche(p_load=nan)", "tyche(p_load=inf)", "tyche(p_load=1e999)", "tyche(a=1,a=2)", "tyche(a=1,)",
         "tyche(a=1_0)", "tyche(a=1)(b=2)", "ty che"],
    )  # fmt: skip
    def test_what_is_not(self, text: str) -> None:
        with pytest.raises(BadSettings) as found:
            Spec.of(text)
        assert found.value.hint == "write a name, or a name and its settings, such as tyche(p_load=0.1)"

    def test_one_way_to_write_it(self) -> None:
        assert Spec.of("tyche( p_offload=0.90, p_load=1e-1 )").text == "tyche(p_load=0.1,p_offload=0.9)"
        assert Spec.of("lru()").text == "lru"


class TestSettings:
    def test_of_each_kind(self) -> None:
        poisson, fixed = predictor("poisson(window=20)"), keep_alive("fixed(seconds=60)")
        tyche = preload("tyche(p_load=0.1,p_offload=0.9)")
        assert isinstance(poisson, SlidingWindowPoisson) and poisson.window == 20
        assert isinstance(fixed, Fixed) and (fixed.seconds, fixed.grace_s) == (60.0, 0.0)
        assert isinstance(tyche.policy, TimerPreload) and (tyche.policy.p_load, tyche.policy.p_offload) == (
            0.1,
            0.9,
        )
        assert tyche.predictor == "poisson"

    def test_by_name_too_and_those_win(self) -> None:
        fixed = keep_alive("fixed(seconds=60,grace_s=1)", seconds=30.0)
        assert isinstance(fixed, Fixed) and (fixed.seconds, fixed.grace_s) == (30.0, 1.0)

    @pytest.mark.parametrize(
        ("make", "spec", "said", "hint"),
        [
            (preload, "tyche(p=0.1)", "mode of pre-loading 'tyche' has no setting 'p'",
             "it takes p_load, p_offload"),
            (preload, "lru(p=0.1)", "mode of pre-loading 'lru' has no setting 'p'", "it takes no settings"),
            (keep_alive, "fixed(ttl=1)", "keep-alive policy 'fixed' has no setting 'ttl'",
             "it takes seconds, grace_s"),
            (keep_alive, "fixed(seconds=-1)", "seconds of keep-alive policy 'fixed' is -1", "give 0 or more"),
            (keep_alive, "faascache(whole=2)", "whole of keep-alive policy 'faascache' is 2", "give 0 or 1"),
            (keep_alive, "openwhisk(stem_cells=1.5)", "stem_cells of keep-alive policy 'openwhisk' is 1.5",
             "give a whole number"),
            (predictor, "poisson(window=0)", "predictor 'poisson': a window of 0 arrivals has no gap",
             "give other settings"),
            (predictor, "oracle(window=1)", "there is no predictor 'oracle'",
             f"these exist: {', '.join(PREDICTORS)}"),
        ],
    )  # fmt: skip
    def test_errors_name_what_is_taken(
        self, make: Callable[[str], object], spec: str, said: str, hint: str
    ) -> None:
        with pytest.raises(BadSettings) as found:
            make(spec)
        assert (found.value.message, found.value.hint) == (said, hint)

    def test_what_is_left_out_is_as_usual(self) -> None:
        usual, said = preload("tyche").policy, preload("tyche(p_load=0.06)").policy
        assert isinstance(usual, TimerPreload) and isinstance(said, TimerPreload)
        assert (usual.p_load, usual.p_offload) == (said.p_load, said.p_offload) == (0.06, 0.94)


def test_time_limits_lru_and_gdsf_are_keep_alives() -> None:
    assert {"fixed", "lru", "gdsf"} <= set(KEEP_ALIVES)
    assert not isinstance(keep_alive("lru"), Pressure)
    assert isinstance(keep_alive("gdsf"), Pressure)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keeper", [*KEEP_ALIVES, "openwhisk(stem_cells=1)"])
def test_any_keep_alive_goes_with_any_mode(keeper: str, mode: str) -> None:
    """Two functions in turn, in memory for three containers, until everything has ended that ends by time."""
    w = World(platform(mode, keeper), memory=1600 << 20)
    for name in ("ns/f", "ns/g"):
        w.fed(ev.FunctionDeployed(function=function(name)))
    for name in ("ns/f", "ns/g", "ns/f", "ns/f"):
        request = w.serve(name)
        assert w.ended[request] == "ok"
        for timer in sorted(one for one in w.timers if one.startswith("expire:")):
            w.fire(timer)
        w.settle()
