"""The policies by name. A mode of pre-loading names the predictor that it is meant for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from instainfer.errors import BadSettings
from instainfer.policies.base import KeepAlive, Predictor, PreloadPolicy
from instainfer.policies.keepalive.fixed import Fixed
from instainfer.policies.keepalive.pressure import Pressure
from instainfer.policies.placement.greedy import Greedy
from instainfer.policies.predict.hazard import Hazard
from instainfer.policies.predict.poisson import SlidingWindowPoisson
from instainfer.policies.preload.hazard import HazardPreload
from instainfer.policies.preload.none import NoPreload
from instainfer.policies.preload.timers import TimerPreload


class Mode(NamedTuple):
    """A way of pre-loading and the name of its predictor."""

    policy: PreloadPolicy
    predictor: str


def _tyche() -> PreloadPolicy:
    return TimerPreload(0.06, 0.94, Greedy(churn=0.0))


def _instainfer() -> PreloadPolicy:
    """Thresholds and ranking of InstaInfer's published code."""
    return TimerPreload(0.05, 0.85, Greedy(churn=0.0, by_value=True))


_PREDICTORS: dict[str, Callable[[], Predictor]] = {"hazard": Hazard, "poisson": SlidingWindowPoisson}

#: `openwhisk` is `fixed` with the ten seconds before a container is paused, after which the minutes count.
_KEEP_ALIVES: dict[str, Callable[..., KeepAlive]] = {
    "pressure": Pressure,
    "fixed": Fixed,
    "openwhisk": lambda: Fixed(600.0, grace_s=10.0),
}

_MODES: dict[str, tuple[Callable[[], PreloadPolicy], str]] = {
    "hazard": (lambda: HazardPreload(Greedy()), "hazard"),
    "tyche": (_tyche, "poisson"),
    "instainfer": (_instainfer, "poisson"),
    "none": (NoPreload, "hazard"),
}

#: Names that exist; the first is the default.
PREDICTORS = tuple(_PREDICTORS)
KEEP_ALIVES = tuple(_KEEP_ALIVES)
MODES = tuple(_MODES)


def predictor(name: str = PREDICTORS[0]) -> Predictor:
    if name not in _PREDICTORS:
        raise _unknown("predictor", name, PREDICTORS)
    return _PREDICTORS[name]()


def keep_alive(name: str = KEEP_ALIVES[0], **settings: float) -> KeepAlive:
    """`fixed` takes `seconds` and `grace_s`; the others take no settings."""
    if name not in _KEEP_ALIVES:
        raise _unknown("keep-alive policy", name, KEEP_ALIVES)
    taken = ("seconds", "grace_s") if name == "fixed" else ()
    for key, value in sorted(settings.items()):
        if key not in taken:
            raise BadSettings(
                f"keep-alive policy {name!r} has no setting {key!r}",
                hint=f"it takes {', '.join(taken)}" if taken else "it takes no settings",
            )
        if not value >= 0.0:
            raise BadSettings(f"{key} of keep-alive policy {name!r} is {value}", hint="give seconds, 0 or more")
    return _KEEP_ALIVES[name](**settings)


def preload(mode: str = MODES[0]) -> Mode:
    if mode not in _MODES:
        raise _unknown("mode of pre-loading", mode, MODES)
    make, predictor_name = _MODES[mode]
    return Mode(make(), predictor_name)


def _unknown(what: str, name: str, known: tuple[str, ...]) -> BadSettings:
    return BadSettings(f"there is no {what} {name!r}", hint=f"these exist: {', '.join(known)}")
