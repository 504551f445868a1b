"""The policies by name, with settings where some are given: `tyche(p_load=0.1)`, `poisson(window=20)`,
`fixed(seconds=60)`. A mode of pre-loading names the predictor that it is meant for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from inspect import signature
from math import isfinite
from typing import Any, NamedTuple

from instainfer.errors import BadSettings
from instainfer.policies.base import KeepAlive, Predictor, PreloadPolicy
from instainfer.policies.keepalive.faascache import FaasCache
from instainfer.policies.keepalive.fixed import Fixed
from instainfer.policies.keepalive.gdsf import Gdsf
from instainfer.policies.keepalive.hybrid import Hybrid
from instainfer.policies.keepalive.lru import Lru
from instainfer.policies.keepalive.openwhisk import openwhisk
from instainfer.policies.keepalive.pagurus import Pagurus
from instainfer.policies.keepalive.pressure import Pressure
from instainfer.policies.keepalive.rainbowcake import RainbowCake
from instainfer.policies.placement.greedy import Greedy
from instainfer.policies.predict.arima import Arima
from instainfer.policies.predict.forest import Forest
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


class Spec(NamedTuple):
    """A policy as it is asked for."""

    name: str
    settings: dict[str, float]

    @classmethod
    def of(cls, text: str) -> Spec:
        """From NAME or NAME(KEY=NUMBER,...). Raises BadSettings."""
        found = _SPEC.fullmatch(text)
        if found is None:
            raise BadSettings(f"{text!r} is no policy", hint=_HINT)
        settings: dict[str, float] = {}
        for pair in (part.strip() for part in (found[2] or "").split(",")):
            key, _, value = (part.strip() for part in pair.partition("="))
            if not pair and not settings:
                continue
            if not key or not _NUMBER.fullmatch(value) or not isfinite(float(value)):
                raise BadSettings(f"{pair!r} in {text!r} sets nothing", hint=_HINT)
            if key in settings:
                raise BadSettings(f"{text!r} sets {key} twice", hint=_HINT)
            settings[key] = float(value)
        return cls(found[1], settings)

    @property
    def text(self) -> str:
        """The one way to write it, whatever the order and the spaces."""
        given = ",".join(f"{key}={value:.12g}" for key, value in sorted(self.settings.items()))
        return f"{self.name}({given})" if given else self.name


_SPEC = re.compile(r"\s*([\w.-]+)\s*(?:\((.*)\)\s*)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_HINT = "write a name, or a name and its settings, such as tyche(p_load=0.1)"


class Mode(NamedTuple):
    """A way of pre-loading and the name of its predictor."""

    policy: PreloadPolicy
    predictor: str


def _hazard(churn: float = 0.1, exchange: float = 0.0) -> PreloadPolicy:
    """`exchange`: from so many placed functions on they are moved about until more fits; 0: never."""
    return HazardPreload(Greedy(churn, exchange_from=int(exchange) if exchange >= 1.0 else None))


def _tyche(p_load: float = 0.06, p_offload: float = 0.94) -> PreloadPolicy:
    return TimerPreload(p_load, p_offload, Greedy(churn=0.0))


def _instainfer(p_load: float = 0.05, p_offload: float = 0.85) -> PreloadPolicy:
    """Thresholds and ranking of InstaInfer's published code."""
    return TimerPreload(p_load, p_offload, Greedy(churn=0.0, by_value=True))


# What makes a policy takes its settings by name, numbers all; where the default is an int only whole ones, and
# where it is a bool 0 or 1.

_PREDICTORS: dict[str, Callable[..., Predictor]] = {
    "hazard": Hazard,
    "poisson": SlidingWindowPoisson,
    "histogram": Histogram,
    "frequency": Frequency,
    "arima": Arima,
    "forest": Forest,
}

#: `openwhisk` is `fixed` with the ten seconds before a container is paused, after which the minutes count.
_KEEP_ALIVES: dict[str, Callable[..., KeepAlive]] = {
    "pressure": Pressure,
    "fixed": lambda seconds=600.0, grace_s=0.0: Fixed(seconds, grace_s),
    "openwhisk": openwhisk,
    "lru": Lru,
    "gdsf": Gdsf,
    "faascache": FaasCache,
    "hybrid": Hybrid,
    "pagurus": Pagurus,
    "rainbowcake": RainbowCake,
}

_MODES: dict[str, tuple[Callable[..., PreloadPolicy], str]] = {
    "hazard": (_hazard, "hazard"),
    "tyche": (_tyche, "poisson"),
    "instainfer": (_instainfer, "poisson"),
    "none": (NoPreload, "hazard"),
    "tyche_np": (lambda: NoPredictor(Greedy(churn=0.0)), "poisson"),
    "tyche_ns": (lambda p_load=0.06, p_offload=0.94: NoScheduler(p_load, p_offload), "poisson"),
    "tyche_nps": (OneToOne, "poisson"),
    "lru": (LruPreload, "hazard"),
    "gdsf": (GdsfPreload, "frequency"),
}

#: Names that exist; the first is the default.
PREDICTORS = tuple(_PREDICTORS)
KEEP_ALIVES = tuple(_KEEP_ALIVES)
MODES = tuple(_MODES)


def predictor(spec: str = PREDICTORS[0], **settings: float) -> Predictor:
    """`spec`: NAME or NAME(KEY=NUMBER,...), and further settings by name: so for all three. Raises BadSettings,
    and Unavailable where a library is missing."""
    made: Predictor = _made("predictor", _PREDICTORS, spec, settings)
    return made


def keep_alive(spec: str = KEEP_ALIVES[0], **settings: float) -> KeepAlive:
    made: KeepAlive = _made("keep-alive policy", _KEEP_ALIVES, spec, settings)
    return made


def preload(spec: str = MODES[0], **settings: float) -> Mode:
    made: PreloadPolicy = _made(
        "mode of pre-loading", {name: of[0] for name, of in _MODES.items()}, spec, settings
    )
    return Mode(made, _MODES[Spec.of(spec).name][1])


def _made(what: str, known: Mapping[str, Callable[..., Any]], spec: str, settings: dict[str, float]) -> Any:
    asked = Spec.of(spec)
    if asked.name not in known:
        raise BadSettings(f"there is no {what} {asked.name!r}", hint=f"these exist: {', '.join(known)}")
    make, whose = known[asked.name], f"{what} {asked.name!r}"
    defaults = {key: one.default for key, one in signature(make).parameters.items()}
    given: dict[str, float] = {}
    for key, value in sorted({**asked.settings, **settings}.items()):
        if key not in defaults:
            hint = f"it takes {', '.join(defaults)}" if defaults else "it takes no settings"
            raise BadSettings(f"{whose} has no setting {key!r}", hint=hint)
        given[key] = _number(f"{key} of {whose} is {value:g}", value, type(defaults[key]))
    try:
        return make(**given)
    except ValueError as error:
        raise BadSettings(f"{whose}: {error}", hint="give other settings") from None


def _number(said: str, value: float, kind: type) -> float:
    if not value >= 0.0 or not isfinite(value):
        raise BadSettings(said, hint="give 0 or more")
    if kind is bool:
        if value not in (0, 1):
            raise BadSettings(said, hint="give 0 or 1")
        return bool(value)
    if kind is int:
        if not float(value).is_integer():
            raise BadSettings(said, hint="give a whole number")
        return int(value)
    return float(value)
