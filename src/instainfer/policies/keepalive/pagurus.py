"""Containers that are lent: what idles for long serves the cold starts of others.

Source: Li et al.: Help Rather Than Recycle (Pagurus, USENIX ATC'22).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from instainfer.policies.base import ContainerView
from instainfer.policies.keepalive.fixed import Fixed

LIFETIME_S = 900.0
IDLE_S = 60.0  # T, until it is known better
_PERIOD_S = 900.0  # between two looks at T
_ENOUGH = 21  # arrivals in a period
_PERCENT = 95
_DRAW_S = 1800.0  # between two choices of renters
_RENTERS = 8


class _Function:
    __slots__ = ("arrivals", "began", "gaps", "idle_s", "last")

    def __init__(self, now: float) -> None:
        self.began = self.last = now
        self.arrivals = 0  # in this period
        self.gaps: list[float] = []
        self.idle_s = IDLE_S


class Pagurus(Fixed):
    """A container that idled for T becomes its function's lender, of which there is at most one: it is emptied,
    and its function or a renter that would have to have a container created takes it over. A rented one is the
    renter's and is not lent again. Everything lives for 900 s after its last use, a lender from when it became
    one. T is 60 s, and from 21 arrivals in a quarter of an hour on the 95th percentile of their gaps. The search
    is the source's: own, own lender, another's lender, a new one.

    Unlike there:
    - a lender is not re-created with its renters' packages, as environments of one tenant are at hand in all of
      its containers. Similarity of packages therefore decides nothing, and becoming a lender costs nothing but
      the end of what was loaded;
    - every half hour the eight functions of a tenant that had most cold starts in it may rent, where there eight
      are drawn with these weights: there is no chance in a policy. Before the first half hour all may.

    Of several lenders the one that idled longest is rented; under pressure that one goes first, too.
    """

    def __init__(self) -> None:
        super().__init__(LIFETIME_S)
        self._functions: dict[str, _Function] = {}
        self._lenders: dict[str, tuple[str, float]] = {}  # container -> whose, since when
        self._lender_of: dict[str, str] = {}  # and the other way round
        self._used: set[str] = set()  # containers; both sets are asked for membership only
        self._rented: set[str] = set()
        self._cold: dict[str, int] = {}  # starts in a container of its own that was new, in this half hour
        self._renters: dict[str, frozenset[str]] = {}  # by tenant
        self._drawn: float | None = None

    def arrived(self, function: str, now: float) -> None:
        if self._drawn is None:
            self._drawn = now
        if now - self._drawn >= _DRAW_S:
            self._draw(now)
        known = self._functions.get(function)
        if known is None:
            known = self._functions[function] = _Function(now)
        else:
            known.gaps.append(now - known.last)
        if now - known.began >= _PERIOD_S:
            if known.arrivals >= _ENOUGH:
                gaps = sorted(known.gaps[:-1])  # the last one ended in the next period
                known.idle_s = gaps[ceil(len(gaps) * _PERCENT / 100) - 1]
            known.began, known.arrivals, known.gaps = now, 0, []
        known.arrivals += 1
        known.last = now

    def forget(self, function: str) -> None:
        self._functions.pop(function, None)
        self._cold.pop(function, None)

    def prewarm(self, now: float) -> tuple[list[str], float | None]:
        return [], None

    def used(self, container: ContainerView, now: float, *, cold_s: float) -> None:
        id, owner = container.id, container.owner
        lender = self._no_lender(id)
        if lender is not None:
            if lender != owner:
                self._rented.add(id)
        elif id not in self._used:
            self._cold[owner] = self._cold.get(owner, 0) + 1
        self._used.add(id)

    def gone(self, container: str) -> None:
        self._used.discard(container)
        self._no_lender(container)
        self._rented.discard(container)

    def _no_lender(self, container: str) -> str | None:
        """It is none any more; whose it was."""
        lender = self._lenders.pop(container, None)
        if lender is None:
            return None
        self._lender_of.pop(lender[0], None)
        return lender[0]

    def expires_at(self, container: ContainerView) -> float | None:
        if container.pinned:
            return None
        lender = self._lenders.get(container.id)
        if lender is not None:
            return lender[1] + LIFETIME_S
        return container.last_used + (self.idle_s(container.owner) if self._may_lend(container) else LIFETIME_S)

    def strips(self, container: ContainerView, now: float) -> bool:
        if container.id in self._lenders or not self._may_lend(container):
            return False
        self._lenders[container.id] = container.owner, now
        self._lender_of[container.owner] = container.id
        return True

    def lend(self, function: str, offered: Sequence[ContainerView], now: float) -> str | None:
        renters = self._renters.get(function.partition("/")[0])
        if renters is not None and function not in renters:
            return None
        lenders = [one for one in offered if one.id in self._lenders]
        return min(lenders, key=lambda one: (one.last_used, one.id)).id if lenders else None

    def idle_s(self, function: str) -> float:
        known = self._functions.get(function)
        return IDLE_S if known is None else min(known.idle_s, LIFETIME_S)

    def _may_lend(self, container: ContainerView) -> bool:
        return container.id not in self._rented and container.owner not in self._lender_of

    def _draw(self, now: float) -> None:
        self._drawn = now
        tenants: dict[str, list[str]] = {}
        for function in sorted(self._cold, key=lambda one: (-self._cold[one], one)):
            tenants.setdefault(function.partition("/")[0], []).append(function)
        self._renters = {tenant: frozenset(names[:_RENTERS]) for tenant, names in tenants.items()}
        self._cold = {}
