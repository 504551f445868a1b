"""Cache policies of the pool: the baselines that load on demand and evict when they must."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from instainfer.model import Level
from instainfer.sim.pool import OnMiss, Pool, PoolPolicy


class Lru:
    """What was called longest ago goes first."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._order: OrderedDict[int, None] = OrderedDict()

    def arrived(self, function: int, now: float, *, hit: bool) -> None:
        pool, order = self._pool, self._order
        if hit:
            order.move_to_end(function)
            return
        if pool.loaded[function] > pool.size:
            return
        if pool.on_miss is not OnMiss.LINGER:
            self._make_room(pool.loaded[function], now)
        pool.load(function, Level.LOADED, now, ahead=False)
        order[function] = None

    def decide(self, now: float) -> None:
        """Nothing is loaded ahead."""
        self._make_room(0, now)

    def _make_room(self, size: int, now: float) -> None:
        while self._pool.free < size:
            victim, _ = self._order.popitem(last=False)
            self._pool.drop(victim, now)


class Gdsf:
    """Greedy-dual size frequency: priority = clock + frequency x latency / size, the lowest goes first, and the
    clock is what the last to go had. Source: Cherkasova (HP Labs, 1998). The frequency counts all calls so far:
    a function that was evicted is not forgotten (in this setting the stronger of the two readings)."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._clock = 0.0
        self._calls = [0] * len(pool.loaded)
        self._priority: dict[int, float] = {}  # of what is in the pool
        self._heap: list[tuple[float, int]] = []  # stale entries among them

    def arrived(self, function: int, now: float, *, hit: bool) -> None:
        pool = self._pool
        self._calls[function] += 1
        if not hit:
            if pool.loaded[function] > pool.size:
                return
            if pool.on_miss is not OnMiss.LINGER:
                self._make_room(pool.loaded[function], now)
            pool.load(function, Level.LOADED, now, ahead=False)
        worth = self._calls[function] * pool.loading_s(function) / pool.loaded[function]
        self._priority[function] = self._clock + worth
        heappush(self._heap, (self._clock + worth, function))
        if len(self._heap) > 4 * len(self._calls):
            self._heap = [(priority, one) for one, priority in self._priority.items()]
            heapify(self._heap)

    def decide(self, now: float) -> None:
        """Nothing is loaded ahead."""
        self._make_room(0, now)

    def _make_room(self, size: int, now: float) -> None:
        while self._pool.free < size:
            priority, function = heappop(self._heap)
            if self._priority.get(function) == priority:
                del self._priority[function]
                self._clock = priority
                self._pool.drop(function, now)


#: By name, as `simulate --policies` has them.
CACHES: dict[str, Callable[[Pool], PoolPolicy]] = {"lru": Lru, "gdsf": Gdsf}
