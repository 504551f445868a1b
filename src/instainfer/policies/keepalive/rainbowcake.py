"""Containers that end layer by layer: first the function goes, then its libraries, then the container.

Source: Yu et al.: RainbowCake: Mitigating Cold-starts in Serverless with Layer-wise Container Caching and Sharing
(ASPLOS'24).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from math import inf, log

from instainfer.model import Costs, Function
from instainfer.policies.base import ContainerView
from instainfer.policies.keepalive.agenda import Agenda
from instainfer.policies.keepalive.fixed import Fixed

ALPHA = 0.996  # weight of start-up seconds against that of the megabytes that they take
SHORTEST_S = 60.0
UNKNOWN_S = 600.0  # without a history

_QUANTILE = log(5.0)  # of an exponential gap: it is shorter with probability 0.8
_ARRIVALS = 6
_DAY_S = 86400.0
_SOONEST_S = 1.0  # a pre-warming
_BARE_MB = 2.0  # of a container with nothing in it (the source's)
_MB = float(1 << 20)


class Layer(IntEnum):
    BARE = 0
    LANG = 1
    USER = 2


class _Arrivals:
    """The last six within a day."""

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at: deque[float] = deque(maxlen=_ARRIVALS)

    def add(self, now: float) -> None:
        self._at.append(now)

    def mean_gap(self, now: float) -> float | None:
        """None with fewer than two."""
        while self._at and now - self._at[0] >= _DAY_S:
            self._at.popleft()
        return (self._at[-1] - self._at[0]) / (len(self._at) - 1) if len(self._at) > 1 else None


class RainbowCake(Fixed):
    """User > Lang > Bare: a function's instance is in it; its libraries are imported; it is empty. A layer's time
    begins when the container comes to it and is, of the mean gap between arrivals that it could serve,

        mean x ln 5, at most alpha x start-up s / ((1 - alpha) x MB), at least 60 s; 600 s without a history

    Then the next layer's begins, after Bare it ends. Lang serves its function and, as a new start, functions with
    the same libraries, Bare all functions of its tenant: those take a Lang first, then a Bare, then a new one. A
    function that was not called for mean x ln 5 gets a container ahead, where none of its own is idle.

    The cap is in seconds and MB as in the published code. So it is below a minute for all that takes more than
    4.2 MB for each second that it saves, and then the minute holds: an `alpha` nearer to one gives longer times.

    Unlike there:
    - a process cannot give up its model and keep its libraries: at the end of User the instance ends, and they are
      imported anew in the background (a fork, where there is a zygote). Lang is theirs alone: an imported process
      belongs to its function, and saves others the container only;
    - nothing is shared between tenants, and Bare's arrivals are those of one tenant;
    - a container made ahead is empty, as loading is the pre-loader's matter; not used it goes to Bare at once;
    - of several arrivals the last one sets the time of the next pre-warming, where there each of them sets one,
      and an idle container of its own in any layer stands against it, there only one in User. (The published code
      pre-warms where an idle container *is* there, against its own comment.)

    A container keeps its memory limit in all layers, as there.
    """

    def __init__(self, alpha: float = ALPHA) -> None:
        if not 0.0 <= alpha < 1.0:
            raise ValueError(f"alpha is {alpha}, and a weight in [0, 1)")
        super().__init__()
        self.alpha = alpha
        self._functions: dict[str, tuple[str, str, Costs]] = {}  # zone, libraries, costs
        self._arrivals: dict[tuple[Layer, str, str], _Arrivals] = {}
        self._layers: dict[str, tuple[Layer, float]] = {}  # container -> where it is, and until when
        self._agenda = Agenda()

    def deployed(self, function: Function, now: float) -> None:
        self._functions[function.name] = function.zone, function.libraries, function.costs

    def created(self, container: ContainerView, now: float) -> None:
        """Its first use is what counts."""

    def arrived(self, function: str, now: float) -> None:
        for layer in Layer:
            self._arrivals.setdefault(self._sharers(layer, function), _Arrivals()).add(now)
        mean = self._arrivals[self._sharers(Layer.USER, function)].mean_gap(now)
        self._agenda.set(function, None if mean is None else now + max(mean * _QUANTILE, _SOONEST_S))

    def forget(self, function: str) -> None:
        self._arrivals.pop(self._sharers(Layer.USER, function), None)
        self._functions.pop(function, None)
        self._agenda.set(function, None)

    def prewarm(self, now: float) -> tuple[list[str], float | None]:
        return self._agenda.take(now), self._agenda.next()

    def used(self, container: ContainerView, now: float, *, cold_s: float) -> None:
        self._layers[container.id] = Layer.USER, now + self.time_s(Layer.USER, container.owner, now)

    def gone(self, container: str) -> None:
        self._layers.pop(container, None)

    def expires_at(self, container: ContainerView) -> float | None:
        if container.pinned:
            return None
        known = self._layers.get(container.id)
        if known is not None:
            return known[1]
        return container.last_used + self.time_s(Layer.USER, container.owner, container.last_used)

    def strips(self, container: ContainerView, now: float) -> bool:
        layer = self.layer(container.id)
        if layer is Layer.BARE:
            return False
        below = Layer.LANG if layer is Layer.USER and container.uses else Layer.BARE
        self._layers[container.id] = below, now + self.time_s(below, container.owner, now)
        return True

    def imports(self, container: ContainerView, now: float) -> bool:
        return self.layer(container.id) is Layer.LANG

    def lend(self, function: str, offered: Sequence[ContainerView], now: float) -> str | None:
        mine = self._sharers(Layer.LANG, function)
        found = []
        for one in offered:
            layer = self.layer(one.id)
            if layer is Layer.BARE or (layer is Layer.LANG and self._sharers(Layer.LANG, one.owner) == mine):
                found.append((-layer, one.last_used, one.id))
        return min(found)[2] if found else None

    def layer(self, container: str) -> Layer:
        known = self._layers.get(container)
        return Layer.USER if known is None else known[0]

    def time_s(self, layer: Layer, function: str, now: float) -> float:
        arrivals = self._arrivals.get(self._sharers(layer, function))
        mean = None if arrivals is None else arrivals.mean_gap(now)
        if mean is None:
            return UNKNOWN_S
        return max(min(mean * _QUANTILE, self._cap_s(layer, function)), SHORTEST_S)

    def _cap_s(self, layer: Layer, function: str) -> float:
        known = self._functions.get(function)
        if known is None:
            return UNKNOWN_S
        costs = known[2]
        if layer is Layer.USER:
            seconds, megabytes = costs.loading_s - costs.import_s, costs.loaded_bytes / _MB
        elif layer is Layer.LANG:
            seconds, megabytes = costs.import_s, costs.imported_bytes / _MB
        else:
            seconds, megabytes = costs.container_s, _BARE_MB
        return self.alpha * seconds / ((1.0 - self.alpha) * megabytes) if megabytes > 0.0 else inf

    def _sharers(self, layer: Layer, function: str) -> tuple[Layer, str, str]:
        """Whose arrivals count for a layer of this function's container."""
        zone, libraries, _ = self._functions.get(function, (function.partition("/")[0], "", None))
        if layer is Layer.USER:
            return layer, zone, function
        if layer is Layer.LANG:
            return layer, zone, libraries or function
        return layer, zone, ""
