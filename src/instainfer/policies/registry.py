"""The policies by name. A mode of pre-loading names the predictor that it is meant for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from instainfer.errors import BadSettings
from instainfer.policies.base import KeepAlive, Predictor, PreloadPolicy
from instainfer.policies.keepalive.faascache import FaasCache
from instainfer.policies.keepalive.fixed import Fixed
from instainfer.policies.keepalive.gdsf import Gdsf
from instainfer.policies.keepalive.hybrid import Hybrid
from instainfer.policies.keepalive.lru import Lru
from instainfer.policies.keepalive.pagurus import Pagurus
from instainfer.policies.keepalive.pressure import Pressure
from instainfer.policies.placement.greedy import Greedy
from instainfer.policies.predict.frequency import Frequency
from instainfer.policies.predict.hazard import Hazard
from instainfer.policies.predict.histogram import Histogram
from instainfer.policies.predict.poisson import SlidingWindowPoisson
from instainfer.policies.preload.gdsf import GdsfPreload
from instainfer.policies.preload.hazard import HazardPreload
from instainfer.policies.preload.lru import LruPreload
from instainfer.policies.preload.no_predictor import NoPredictor
from instainfer.policies.preload.no_scheduler import NoScheduler
from instainfer.policies.preload.none import NoPreload
from instainfer.policies.preload.one_to_one import OneToOne
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


_PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "hazard": Hazard,
    "poisson": SlidingWindowPoisson,
    "histogram": Histogram,
    "frequency": Frequency,
}

#: `openwhisk` is `fixed` with the ten seconds before a container is paused, after which the minutes count.
_KEEP_ALIVES: dict[str, Callable[..., KeepAlive]] = {
    "pressure": Pressure,
    "fixed": Fixed,
    "openwhisk": lambda: Fixed(600.0, grace_s=10.0, in_line=True),
    "lru": Lru,
    "gdsf": Gdsf,
    "faascache": lambda whole=0.0, drops=0.0: FaasCache(whole=bool(whole), drops=bool(drops)),
    "hybrid": lambda min_count=1.0: Hybrid(int(min_count)),
    "pagurus": Pagurus,
}

#: What some of them take.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "fixed": ("seconds", "grace_s"),
    "faascache": ("whole", "drops"),
    "hybrid": ("min_count",),
}

_MODES: dict[str, tuple[Callable[[], PreloadPolicy], str]] = {
    "hazard": (lambda: HazardPreload(Greedy()), "hazard"),
    "tyche": (_tyche, "poisson"),
    "instainfer": (_instainfer, "poisson"),
    "none": (NoPreload, "hazard"),
    "tyche_np": (lambda: NoPredictor(Greedy(churn=0.0)), "poisson"),
    "tyche_ns": (lambda: NoScheduler(0.06, 0.94), "poisson"),
    "tyche_nps": (OneToOne, "poisson"),
    "lru": (LruPreload, "hazard"),
    "gdsf": (GdsfPreload, "frequency"),
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
    """`fixed` takes `seconds` and `grace_s`, `faascache` `whole` and `drops` (0 or 1: the ways of the published
    simulator), `hybrid` the `min_count` of idle times; the others take no settings."""
    if name not in _KEEP_ALIVES:
        raise _unknown("keep-alive policy", name, KEEP_ALIVES)
    taken = _SETTINGS.get(name, ())
    for key, value in sorted(settings.items()):
        if key not in taken:
            raise BadSettings(
                f"keep-alive policy {name!r} has no setting {key!r}",
                hint=f"it takes {', '.join(taken)}" if taken else "it takes no settings",
            )
        if not value >= 0.0:
            raise BadSettings(f"{key} of keep-alive policy {name!r} is {value}", hint="give 0 or more")
    return _KEEP_ALIVES[name](**settings)


def preload(mode: str = MODES[0]) -> Mode:
    if mode not in _MODES:
        raise _unknown("mode of pre-loading", mode, MODES)
    make, predictor_name = _MODES[mode]
    return Mode(make(), predictor_name)


def _unknown(what: str, name: str, known: tuple[str, ...]) -> BadSettings:
    return BadSettings(f"there is no {what} {name!r}", hint=f"these exist: {', '.join(known)}")
