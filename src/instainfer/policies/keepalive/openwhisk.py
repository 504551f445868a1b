"""OpenWhisk's keep-alive, and its stem cells: containers that are there before any function needs one.

Source: Apache OpenWhisk's invoker, ContainerPool ("prewarmed" containers) and its reactive prewarming.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from instainfer.model import Function
from instainfer.policies.base import Conduct, ContainerView, KeepAlive
from instainfer.policies.keepalive.fixed import Fixed

IDLE_S, GRACE_S = 600.0, 10.0  # once paused, and before
TTL_S = 120.0  # of a stem cell that nobody took
CHECK_S = 600.0

_PATIENCE_S = 60.0  # a container that is not there by then was not created: memory was missing


def openwhisk(
    stem_cells: int = 0,
    min: int = 0,
    max: int = 0,
    ttl: float = TTL_S,
    threshold: int = 1,
    increment: int = 1,
) -> KeepAlive:
    """`stem_cells` are there from the start. With a `max` their number follows the demand: every ten minutes those
    older than `ttl` seconds go, and there are to be

        min(max(`min`, cold starts since / `threshold` x `increment`), `max`)

    (the quotient rounded down). Raises ValueError for numbers that contradict each other."""
    if max and not min <= max:
        raise ValueError(f"min {min} is more than max {max}")
    if not max and min:
        raise ValueError(f"min {min} needs a max")
    if threshold < 1:
        raise ValueError(f"a threshold of {threshold}")
    if not stem_cells and not max:
        return Fixed(IDLE_S, GRACE_S, in_line=True)
    return StemCells(stem_cells, min, max, ttl, threshold, increment)


class _Kind:
    """The functions that a stem cell may serve: of one tenant, and with equal memory."""

    __slots__ = ("cold", "functions", "new", "ordered", "there")

    def __init__(self) -> None:
        self.functions: set[str] = set()  # sorted where it matters
        self.there: dict[str, float] = {}  # stem cells, and since when
        self.ordered: list[float] = []  # when those were asked for that are not there yet
        self.cold = 0  # starts since the last check
        self.new = True


class StemCells(Fixed):
    """A stem cell is a container in which nothing has run yet. A cold start takes the oldest of its function's
    kind, and when it has run another one takes its place, in free memory only. None of them is ever evicted.

    OpenWhisk lists kinds (a runtime and a size) and has stem cells of all tenants in common. Here there is one
    runtime, and containers are never shared between tenants: a kind is what one tenant's functions of equal memory
    have in common, and each has so many. Where memory is missing it is tried again every minute.
    """

    def __init__(self, initial: int, least: int, most: int, ttl_s: float, threshold: int, increment: int) -> None:
        super().__init__(IDLE_S, GRACE_S)
        self.conduct = Conduct(in_line=True, spare=True)
        self.initial = initial
        self.least = least
        self.most = most
        self.ttl_s = ttl_s
        self.threshold = threshold
        self.increment = increment
        self._kinds: dict[tuple[str, int], _Kind] = {}  # by tenant's zone and bytes
        self._kind_of: dict[str, tuple[str, int]] = {}  # functions
        self._stems: dict[str, _Kind] = {}  # containers
        self._check_at: float | None = None

    def deployed(self, function: Function, now: float) -> None:
        self.forget(function.name)
        key = function.zone, function.memory
        self._kind_of[function.name] = key
        self._kinds.setdefault(key, _Kind()).functions.add(function.name)

    def forget(self, function: str) -> None:
        key = self._kind_of.pop(function, None)
        if key is not None:
            self._kinds[key].functions.discard(function)

    def arrived(self, function: str, now: float) -> None:
        """Cold starts count, not requests."""

    def created(self, container: ContainerView, now: float) -> None:
        kind = self._kinds.get((container.namespace, container.limit))
        if kind is None:
            return
        if not container.idle:
            kind.cold += 1
            return
        kind.there[container.id] = now
        self._stems[container.id] = kind
        del kind.ordered[:1]

    def used(self, container: ContainerView, now: float, *, cold_s: float) -> None:
        self.gone(container.id)

    def gone(self, container: str) -> None:
        kind = self._stems.pop(container, None)
        if kind is not None:
            del kind.there[container]

    def prewarm(self, now: float) -> tuple[list[str], float | None]:
        if self._check_at is None:
            self._check_at = now + CHECK_S
        checks = bool(self.most) and now >= self._check_at
        due: list[str] = []
        asked = [self._check_at] if self.most else []
        for key in sorted(self._kinds):
            kind = self._kinds[key]
            kind.ordered = [at for at in kind.ordered if now < at + _PATIENCE_S]
            there = len(kind.there) + len(kind.ordered)
            wanted = self.least if self.most else self.initial
            if kind.new:
                wanted, kind.new = self.initial, False
            if checks:
                there -= sum(since + self.ttl_s <= now for since in kind.there.values())
                wanted = min(max(self.least, kind.cold // self.threshold * self.increment), self.most)
                kind.cold = 0
            if kind.functions and wanted > there:
                due += [min(kind.functions)] * (wanted - there)
                kind.ordered += [now] * (wanted - there)
            if kind.ordered:
                asked.append(kind.ordered[0] + _PATIENCE_S)
        if checks:
            self._check_at += CHECK_S * ceil((now - self._check_at + 1e-9) / CHECK_S)
            asked[0] = self._check_at
        return due, min(asked, default=None)

    def expires_at(self, container: ContainerView) -> float | None:
        kind = self._stems.get(container.id)
        if kind is None or container.pinned:
            return super().expires_at(container)
        if not self.most or self._check_at is None:
            return None
        end = kind.there[container.id] + self.ttl_s
        return self._check_at + CHECK_S * ceil((end - self._check_at) / CHECK_S)  # the first check after it

    def victims(
        self, containers: Sequence[ContainerView], need: int, now: float, *, alive: Sequence[ContainerView]
    ) -> list[str]:
        return super().victims([one for one in containers if one.id not in self._stems], need, now, alive=alive)

    def strips(self, container: ContainerView, now: float) -> bool:
        return False

    def lend(self, function: str, offered: Sequence[ContainerView], now: float) -> str | None:
        kind = self._kinds.get(self._kind_of.get(function, ("", 0)))
        if kind is None:
            return None
        fitting = [(kind.there[one.id], one.id) for one in offered if one.id in kind.there]
        return min(fitting)[1] if fitting else None
