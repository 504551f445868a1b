"""The `pool` world: one memory pool, at most one copy of each function, loads that take no time.

The setting in which bounds can be computed and policies compared by what they decide alone. A call that finds
no copy is served outside the pool, at the cost of its loading latency; what becomes of that copy see OnMiss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Protocol

from instainfer.model import Level, StartKind
from instainfer.policies.base import (
    Assignment,
    Bin,
    ContainerView,
    FunctionView,
    Item,
    Placement,
    Predictor,
    PreloadPolicy,
    ResidentView,
    Snapshot,
)
from instainfer.policies.predict.forecast import Forecast
from instainfer.policies.predict.hazard import Hazard
from instainfer.policies.predict.hazards import Hazards
from instainfer.sim.costs import Workload
from instainfer.sim.tally import ByClass, Call, Tally, Timeline

#: Names in the snapshot: the pool is one open container of one node, all functions are of one tenant.
_CONTAINER = _NODE = _TENANT = "pool"
#: Loads take no time here, so there is always a slot.
_SLOTS = 1 << 30

_REPORT_EVERY = 4096


class OnMiss(StrEnum):
    """What becomes of the copy that a missed call loaded."""

    WEIGH = "weigh"  # it stays if it is worth more than those that must go for it (never asked of LRU and GDSF)
    ALWAYS = "always"  # it stays, and the least valuable go
    #: It stays beside the budget until the next decision, which then has to make it fit: decisions are made
    #: every so often only, and until then memory may be over-committed. No bound holds for this one.
    LINGER = "linger"


class Pool:
    """Who is in memory, at which level, and what that took."""

    def __init__(
        self,
        work: Workload,
        size: int,
        tally: Tally | ByClass,
        on_miss: OnMiss = OnMiss.WEIGH,
        timeline: Timeline | None = None,
    ) -> None:
        self.size = size
        self.free = size  # below zero only while copies linger
        self.on_miss = on_miss
        self.imported = [function.costs.imported_bytes for function in work.functions]
        self.loaded = [function.costs.loaded_bytes for function in work.functions]
        self.level: dict[int, Level] = {}  # of what is there, in the order in which it came
        self.changes = 0
        self._costs = [function.costs for function in work.functions]
        self._latency = [costs.loading_s for costs in self._costs]
        self._tally_of = tally.of if isinstance(tally, ByClass) else [tally] * len(work.functions)
        self._timeline = timeline or Timeline()
        self._since: dict[int, float] = {}
        self._unused: set[int] = set()  # loaded ahead and not used yet

    def loading_s(self, function: int) -> float:
        return self._latency[function]

    def bytes_at(self, function: int, level: Level) -> int:
        return self.loaded[function] if level >= Level.LOADED else self.imported[function]

    def load(self, function: int, level: Level, now: float, *, ahead: bool) -> None:
        """Bring it to this level; raises ValueError where there is no room (and it may not linger)."""
        before = self.level.get(function, Level.NONE)
        size = self.bytes_at(function, level)
        need = size - (self.bytes_at(function, before) if before else 0)
        if need > self.free and (ahead or self.on_miss is not OnMiss.LINGER):
            raise ValueError(f"{need} bytes needed and {self.free} free")
        if before:
            self._left(function, now)
        self.free -= need
        self.level[function] = level
        self._since[function] = now
        self.changes += 1
        if ahead:
            self._unused.add(function)
        else:
            self._unused.discard(function)

    def drop(self, function: int, now: float) -> None:
        self._left(function, now)
        self.free += self.bytes_at(function, self.level.pop(function))
        self.changes += 1
        self._unused.discard(function)

    def finish(self, now: float) -> None:
        """Count what is still held."""
        for function in self.level:
            self._left(function, now)

    def _left(self, function: int, now: float) -> None:
        size = self.bytes_at(function, self.level[function])
        tally = self._tally_of[function]
        tally.held(size, self._since[function], now)
        if function in self._unused:
            tally.wasted(size, self._since[function], now)

    def call(self, function: int, now: float, inference_s: float, request: int = -1) -> bool:
        """One arrival; whether it found the function loaded."""
        level = self.level.get(function, Level.NONE)
        loading = paid = self._latency[function]
        if level >= Level.LOADED:
            start = StartKind.PRELOADED if function in self._unused else StartKind.WARM
            paid = 0.0
        elif level == Level.IMPORTED:
            start = StartKind.IMPORTED
            paid -= self._costs[function].import_s
        else:
            start = StartKind.COLD
        self._unused.discard(function)
        e2e_s = inference_s + paid
        self._tally_of[function].served(now, start, e2e_s, inference_s, loading, paid)
        if request in self._timeline.requests:
            self._timeline.calls.append(Call(request, function, now, start, 0.0, paid, inference_s, e2e_s))
        return level >= Level.LOADED


class PoolPolicy(Protocol):
    """Acts on the pool that it was made for."""

    def arrived(self, function: int, now: float, *, hit: bool) -> None:
        """After the call was counted. A missed function may be loaded now: it is at hand."""
        ...

    def decide(self, now: float) -> None:
        """A decision step: see that what is there fits; load ahead, drop."""
        ...


class Recording:
    """A placement that remembers what it answered. `PreloadPolicy.plan` hands out one load per container and
    turn, since a load takes time; where it takes none, all turns come at once, in this order."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self.answer: list[Assignment] = []

    def place(self, bins: Sequence[Bin], items: Sequence[Item]) -> list[Assignment]:
        self.answer = self._placement.place(bins, items)
        return self.answer


class Step(Forecast):
    """The predictor, whose rates hold from one decision to the next for functions that are not called in between:
    to ask for them is what a run costs. Those of the default predictor are taken together."""

    def __init__(self, base: Predictor, functions: Sequence[str]) -> None:
        super().__init__(base)
        self._together = Hazards(base, functions) if type(base) is Hazard else None

    def renew(self) -> None:
        self._rates.clear()

    def observe(self, function: str, now: float) -> None:
        self._rates.pop(function, None)
        self._called.add(function)
        self.base.observe(function, now)
        if self._together is not None:
            self._together.observed(function)

    def rates(self, functions: Iterable[str], now: float) -> dict[str, float]:
        if self._together is not None and not self._rates:
            self._rates = self._together.rates(now)
            return self._rates.copy()
        return {function: self.rate(function, now) for function in functions}

    def rate(self, function: str, now: float) -> float:
        rate = self._rates.get(function)
        if rate is None:
            rate = self._rates[function] = self.base.rate(function, now)
        return rate


class Planned:
    """A pre-load policy of the platform, with its predictor and placement, on the pool.

    Value, where a missed call's copy has to be weighed, is the core's own (arrivals per second x seconds
    saved), taken once per step for what is there already; the least dense go first.
    """

    def __init__(self, pool: Pool, names: Sequence[str], policy: PreloadPolicy, predictor: Predictor) -> None:
        self._pool = pool
        self._names = names
        self._policy = policy
        self._predictor = Step(predictor, names)
        self._recording: Recording | None = None
        placement: Placement | None = getattr(policy, "placement", None)
        if placement is not None:
            self._recording = Recording(placement)
            policy.placement = self._recording  # type: ignore[attr-defined] # read from it just above
        self._index = {name: i for i, name in enumerate(names)}
        by_name = sorted(range(len(names)), key=lambda i: names[i])
        self._views = [self._view(i, Level.NONE) for i in by_name]  # as of now
        self._place = {function: place for place, function in enumerate(by_name)}  # in there
        self._shown: dict[int, ResidentView] = {}
        self._ranked: list[tuple[float, float, int]] = []  # (density, value, function), ascending
        self._ranked_for: float | None = None

    def arrived(self, function: int, now: float, *, hit: bool) -> None:
        self._predictor.observe(self._names[function], now)
        if not hit:
            self._admit(function, now)

    def decide(self, now: float) -> None:
        if self._pool.free < 0:
            for victim in self._victims(-1, -self._pool.free, math.inf, now):
                self._drop(victim, now)
        if self._recording is not None:
            self._recording.answer = []
        self._predictor.renew()
        plan = self._policy.plan(self._snapshot(now), self._predictor, now)
        for off in plan.offloads:
            self._drop(int(off.instance), now)
        if self._recording is not None:
            for one in self._recording.answer:
                self._assign(one, now)
        self._ranked_for = None

    def _assign(self, one: Assignment, now: float) -> None:
        pool, function = self._pool, self._index[one.function]
        for instance in one.displaced:
            if int(instance) in pool.level:  # else it was off-loaded in the same plan
                self._drop(int(instance), now)
        there = pool.level.get(function, Level.NONE)
        if there >= one.level:
            return
        more = pool.bytes_at(function, one.level) - (pool.bytes_at(function, there) if there else 0)
        if more <= pool.free:
            self._load(function, one.level, now, ahead=True)

    def _admit(self, function: int, now: float) -> None:
        pool = self._pool
        need = pool.loaded[function]
        held = pool.level.get(function, Level.NONE)
        if held:
            need -= pool.bytes_at(function, held)
        if need > pool.size:
            return
        if need > pool.free and pool.on_miss is not OnMiss.LINGER:
            value = self._value(function, now) if pool.on_miss is OnMiss.WEIGH else math.inf
            victims = self._victims(function, need - pool.free, value, now)
            if not victims:
                return
            for victim in victims:
                self._drop(victim, now)
        self._load(function, Level.LOADED, now, ahead=False)

    def _victims(self, function: int, short: int, value: float, now: float) -> list[int]:
        """The least dense that free so much and are worth less together, or none."""
        pool = self._pool
        if self._ranked_for is None:
            self._ranked_for = now
            rate, names, saves, loaded = self._predictor.rate, self._names, pool.loading_s, pool.loaded
            ranked = []
            for one, level in pool.level.items():
                worth = rate(names[one], now) * saves(one)
                size = loaded[one] if level is Level.LOADED else pool.bytes_at(one, level)
                ranked.append((worth / (size or 1), worth, one))
            ranked.sort()
            self._ranked = ranked
        chosen: list[int] = []
        lost = 0.0
        for _, worth, one in self._ranked:
            level_there = pool.level.get(one)
            if level_there is None or one == function:
                continue
            lost += worth
            if lost >= value:
                return []
            chosen.append(one)
            short -= pool.bytes_at(one, level_there)
            if short <= 0:
                return chosen
        return []

    def _value(self, function: int, now: float) -> float:
        return self._predictor.rate(self._names[function], now) * self._pool.loading_s(function)

    def _load(self, function: int, level: Level, now: float, *, ahead: bool) -> None:
        self._pool.load(function, level, now, ahead=ahead)
        self._views[self._place[function]] = self._view(function, level)
        self._shown[function] = ResidentView(
            instance=str(function),
            function=self._names[function],
            level=level,
            bytes=self._pool.bytes_at(function, level),
            evictable=True,
        )

    def _drop(self, function: int, now: float) -> None:
        self._pool.drop(function, now)
        self._views[self._place[function]] = self._view(function, Level.NONE)
        del self._shown[function]

    def _view(self, function: int, ready: Level) -> FunctionView:
        costs = self._pool._costs[function]
        return FunctionView(
            name=self._names[function],
            namespace=_TENANT,
            libraries="",
            mounts=(),
            import_s=costs.import_s,
            load_s=costs.loading_s - costs.import_s,
            imported_bytes=costs.imported_bytes,
            loaded_bytes=costs.loaded_bytes,
            ready=ready,
        )

    def _snapshot(self, now: float) -> Snapshot:
        pool = self._pool
        container = ContainerView(
            id=_CONTAINER,
            node=_NODE,
            namespace=_TENANT,
            owner="",
            limit=pool.size,
            free=pool.free,
            idle=True,
            created=0.0,
            last_used=now,
            uses=0,
            residents=tuple(self._shown.values()),
        )
        return Snapshot(
            functions=tuple(self._views),
            containers=(container,),
            load_slots={_NODE: _SLOTS},
            guests={_NODE: True},
        )


def run(
    work: Workload,
    pool: Pool,
    policy: PoolPolicy,
    *,
    step_s: float,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Every call of the trace, with a decision at 0, `step_s`, 2 `step_s` …; with `step_s` 0 one before every
    call."""
    step = 0
    for request, (at, function) in enumerate(zip(work.times, work.which, strict=True)):
        if not step_s:
            policy.decide(at)
        while step_s and step * step_s <= at:
            policy.decide(step * step_s)
            step += 1
        inference_s = work.durations[request] if work.durations else work.functions[function].costs.warm_s
        policy.arrived(function, at, hit=pool.call(function, at, inference_s, request))
        if progress is not None and request % _REPORT_EVERY == 0:
            progress(request)
    pool.finish(work.end)
