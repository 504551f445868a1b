"""How much loading latency could be saved at all, in the pool world.

- KEEP bounds *demand loading*: a copy is there only if it was kept since the call before (FOO and PFOO, Berger
  et al., SIGMETRICS'18).
- JIT bounds everything: it knows every call and loads just in time.
- HAZARD bounds every policy that does not know the future, where hazards are known: at each moment the fractional
  knapsack of hazard x latency. It holds on average over traces of the same processes, not on each one.

KEEP and JIT choose intervals of memory, and at no time may more be held than fits. The bound is the linear
relaxation; where a trace has too many moments for it, memory has to fit only on average over each of many equal
steps (a further relaxation). What is reported is computed from the solver's prices by weak duality, so that it
is an upper bound even where the solver stops early. Beside it stands what a greedy packing reaches without
either relaxation: the truth lies between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instainfer.lab import intervals as memory
from instainfer.lab.intervals import Intervals
from instainfer.lab.linear import Matrix, by_columns, maximise
from instainfer.lab.pool import Budget, PoolTrace, mean_budget
from instainfer.traces.base import Floats
from instainfer.traces.generate import Synthetic

#: Entries of a program's matrix: on the Azure trace of 433 functions steps of 10 s, and 9 s to solve.
ENTRIES = 1_000_000
_GRID_ENTRIES = 2_000_000  # of hazards at a time


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Of `total_s` seconds of loading latency no policy of its kind saves more than `saved_s`. `reached_s` is
    known to be possible for who knows the future; for HAZARD it is the same integral on a grid twice as coarse,
    from below."""

    name: str
    saved_s: float
    total_s: float
    reached_s: float
    step_s: float  # memory fits on average over steps so long; 0: at every moment

    @property
    def fraction(self) -> float:
        return self.saved_s / self.total_s if self.total_s else 0.0

    @property
    def gap(self) -> float:
        """How far the truth may lie below `fraction`, as a fraction of `total_s` too."""
        return (self.saved_s - self.reached_s) / self.total_s if self.total_s else 0.0


def keep(pool: PoolTrace, budget: Budget, *, step_s: float | None = None, entries: int = ENTRIES) -> Bound:
    """The most that demand loading can save. `step_s` None: every moment where `entries` allow that, else the
    finest steps that they do; 0: every moment in any case."""
    return _bound("KEEP", pool, memory.kept(pool), budget, step_s, entries)


def jit(
    pool: PoolTrace,
    budget: Budget,
    *,
    load_s: Floats | None = None,
    concurrent: int | None = None,
    step_s: float | None = None,
    entries: int = ENTRIES,
) -> Bound:
    """The most that knowing everything can save, when a load takes `load_s` (of each function; None: its latency)
    in which its memory is taken already, with at most `concurrent` loads at a time (None: any number).

    With `concurrent`, a call is served by keeping or by one load, which holds memory for no longer than it takes,
    and the loads that must happen within a span fit into its slots in sum, for aligned spans of many lengths:
    again a relaxation. `reached_s` is then what keeping alone reaches.
    """
    takes = (pool.latency_s if load_s is None else load_s)[pool.trace.functions]
    late = memory.just_in_time(pool, takes)
    if concurrent is None:
        return _bound("JIT", pool, late, budget, step_s, entries)
    kept = memory.kept(pool)
    opens = np.maximum(memory.previous_times(pool), 0.0)
    in_time = late.ends - takes[late.calls] >= opens[late.calls]  # otherwise only keeping helps
    late = late.where(in_time)
    either = kept.beside(late)
    slots, slot_room = _slots(opens[late.calls], late.ends, takes[late.calls], concurrent)
    once = _once(either, len(pool.trace))
    extra = slots.after(len(kept)).above(once)
    room = np.concatenate([slot_room, np.ones(once.height)])
    return _bound(f"JIT, {concurrent} at a time", pool, either, budget, step_s, entries, (extra, room), kept)


def hazard(
    synthetic: Synthetic,
    size_mb: Floats,
    latency_s: Floats,
    budget: Budget,
    *,
    warmup_s: float = 0.0,
    step_s: float = 10.0,
) -> Bound:
    """The best that a policy which knows the processes, but not the future, saves on average: `saved_s` of the
    `total_s` that calls cost on average, both given the histories in this trace. No history changes inside a
    step of the grid, which has every arrival; where hazards change of themselves (timers, diurnal, hidden
    states), the integral converges from below as `step_s` shrinks, and `gap` shows how far it has.
    """
    fine, total = _integrate(synthetic, size_mb, latency_s, budget, warmup_s, step_s / 2)
    coarse, _ = _integrate(synthetic, size_mb, latency_s, budget, warmup_s, step_s)
    return Bound(name="HAZARD", saved_s=fine, total_s=total, reached_s=min(coarse, fine), step_s=step_s / 2)


def knapsack(values: Floats, sizes: Floats, room: Floats) -> Floats:
    """Value of the best fractional choice in each row of `values` (rows x functions)."""
    order = np.argsort(-values / sizes, axis=1, kind="stable")
    ranked = sizes[order]
    left = room[:, None] - (np.cumsum(ranked, axis=1) - ranked)
    taken = np.clip(left / ranked, 0.0, 1.0)
    best: Floats = (np.take_along_axis(values, order, axis=1) * taken).sum(axis=1)
    return best


def _bound(
    name: str,
    pool: PoolTrace,
    choices: Intervals,
    budget: Budget,
    step_s: float | None,
    entries: int,
    extra: tuple[Matrix, Floats] | None = None,
    packable: Intervals | None = None,
) -> Bound:
    """`extra`: rows beyond memory's, and their room. `packable`: what may be packed without regard to them."""
    total = pool.total_s
    if not len(choices):
        return Bound(name=name, saved_s=0.0, total_s=total, reached_s=0.0, step_s=0.0)
    edges, step = _edges(choices, step_s, entries)
    matrix, room = memory.usage(choices, edges), mean_budget(budget, edges)
    if extra is not None:
        matrix, room = matrix.above(extra[0]), np.concatenate([room, extra[1]])
    solved = maximise(choices.values, matrix, room)
    if packable is None:
        worth = choices.values / np.maximum(solved.priced, 1e-12)
        reached = memory.pack(
            choices, budget, [choices.density, worth, solved.chosen + 1e-9 * np.minimum(worth, 1e6)]
        )
    else:
        reached = memory.pack(packable, budget, [packable.density])
    return Bound(name=name, saved_s=min(solved.bound, total), total_s=total, reached_s=reached, step_s=step)


def _edges(choices: Intervals, step_s: float | None, most: int) -> tuple[Floats, float]:
    """Moments between which memory has to fit on average, and the step (0: every moment)."""
    moments = memory.moments(choices)
    if len(moments) < 2:
        moments = np.array([0.0, max(float(moments[0]), 1.0)])
    if step_s is None:
        if memory.entries(choices, moments) <= most:
            return moments, 0.0
        held = float((choices.ends - choices.starts).sum())
        step_s = held / max(most - 1.5 * len(choices), most / 4)
    if step_s <= 0:
        return moments, 0.0
    end = float(choices.ends.max())
    return np.linspace(0.0, end, max(1, int(np.ceil(end / step_s))) + 1), step_s


def _slots(opens: Floats, ends: Floats, takes: Floats, concurrent: int) -> tuple[Matrix, Floats]:
    """Rows: spans of 1, 2, 4, … times the longest load, aligned, and the same shifted by half of one. A load
    that has to happen inside a span takes so much of its slots' time."""
    columns, rows, rooms = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    height = 0
    span = max(float(takes.max(initial=0.0)), 1e-3)
    reach = float(ends.max(initial=0.0))
    while len(takes):
        for shift in (0.0, span / 2):
            of = np.floor((opens + shift) / span)
            inside = np.flatnonzero(of == np.floor((ends + shift) / span))
            used, row = np.unique(of[inside], return_inverse=True)
            columns.append(inside)
            rows.append(row + height)
            rooms.append(np.full(len(used), span * concurrent))
            height += len(used)
        if span > 2 * reach:
            break
        span *= 2
    column = np.concatenate(columns)
    return by_columns(column, np.concatenate(rows), takes[column], len(takes), height), np.concatenate(rooms)


def _once(either: Intervals, calls: int) -> Matrix:
    """A call that may be kept or loaded saves its latency once: a row for each that has both."""
    twice = np.bincount(either.calls, minlength=calls) > 1
    row_of = np.cumsum(twice) - 1
    columns = np.flatnonzero(twice[either.calls])
    return by_columns(columns, row_of[either.calls[columns]], np.ones(len(columns)), len(either), int(twice.sum()))


def _integrate(
    synthetic: Synthetic, size_mb: Floats, latency_s: Floats, budget: Budget, warmup_s: float, step_s: float
) -> tuple[float, float]:
    """(saved, total) seconds."""
    trace = synthetic.trace
    if not len(trace.names) or warmup_s >= trace.length_s:
        return 0.0, 0.0
    grid = np.arange(warmup_s, trace.length_s, step_s)
    edges = np.unique(np.concatenate([grid, trace.times[trace.times > warmup_s], [trace.length_s]]))
    arrivals = [trace.arrivals(at) for at in range(len(trace.names))]
    rows = max(1, _GRID_ENTRIES // len(arrivals))
    saved = total = 0.0
    for start in range(0, len(edges) - 1, rows):
        part = edges[start : start + rows + 1]
        values = np.stack(
            [
                process.expected(part, times) * latency
                for process, times, latency in zip(synthetic.processes, arrivals, latency_s, strict=True)
            ],
            axis=1,
        )
        saved += float(knapsack(values, size_mb, mean_budget(budget, part)).sum())
        total += float(values.sum())
    return saved, total
