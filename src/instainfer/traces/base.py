"""A trace: every arrival of every function, as arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from instainfer.errors import BadInput

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Indices = NDArray[np.int32]

MINUTE_S = 60.0
REASONS_KEPT = 5


@dataclass(frozen=True, kw_only=True)
class TraceReport:
    """What reading it came to. A malformed row is left out, counted, and never guessed at."""

    rows: int = 0  # read, header and blank lines not among them
    malformed: int = 0
    reasons: tuple[str, ...] = ()  # of the first few: file, row number, what is wrong
    dropped_by_cap: int = 0  # arrivals

    def __add__(self, other: TraceReport) -> TraceReport:
        return TraceReport(
            rows=self.rows + other.rows,
            malformed=self.malformed + other.malformed,
            reasons=(self.reasons + other.reasons)[:REASONS_KEPT],
            dropped_by_cap=self.dropped_by_cap + other.dropped_by_cap,
        )


_NO_SINGLES: Singles = np.empty(0, np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """Arrivals in order of time, ties in order of function index. The arrays are read-only.

    `durations` and `memory_mb` are empty where nothing is known, and NaN where one function's is not.
    `length_s` is how long was watched, which is more than the last arrival; left out, it is the end of the last
    arrival's minute.
    """

    names: tuple[str, ...]  # functions, in the order of their first row
    times: Floats  # seconds from the start, ascending
    functions: Indices  # of each arrival: its place in `names`
    durations: Singles = field(default_factory=lambda: _NO_SINGLES)  # of each arrival: seconds of execution
    memory_mb: Singles = field(default_factory=lambda: _NO_SINGLES)  # of each function
    triggers: tuple[str, ...] = ()  # of each function
    length_s: float = 0.0
    source: str = ""
    report: TraceReport = TraceReport()

    def __post_init__(self) -> None:
        n, kinds = len(self.times), len(self.names)
        for name, dtype, lengths in (
            ("times", np.float64, {n}),
            ("functions", np.int32, {n}),
            ("durations", np.float32, {0, n}),
            ("memory_mb", np.float32, {0, kinds}),
        ):
            array = np.asarray(getattr(self, name), dtype)
            if len(array) not in lengths:
                raise ValueError(f"{name} has {len(array)} entries for {n} arrivals of {kinds} functions")
            array = array.view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.triggers and len(self.triggers) != kinds:
            raise ValueError(f"{len(self.triggers)} triggers for {kinds} functions")
        if n:
            if not (np.isfinite(self.times[-1]) and self.times[0] >= 0 and np.all(np.diff(self.times) >= 0)):
                raise ValueError("times must ascend from the trace's start")
            if self.functions.min() < 0 or self.functions.max() >= kinds:
                raise ValueError("an arrival of a function that has no name")
        last = float(self.times[-1]) if n else 0.0
        if not self.length_s and n:
            object.__setattr__(self, "length_s", (last // MINUTE_S + 1) * MINUTE_S)
        if self.length_s < last:
            raise ValueError(f"an arrival at {last} s in a trace of {self.length_s} s")

    def __len__(self) -> int:
        return len(self.times)

    @cached_property
    def index(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.names)}

    @cached_property
    def counts(self) -> Ints:
        """Arrivals of each function."""
        return np.bincount(self.functions, minlength=len(self.names)).astype(np.int64)

    @cached_property
    def grouped(self) -> tuple[Ints, Ints]:
        """(order, bounds): `order[bounds[f]:bounds[f + 1]]` are the positions of f's arrivals, by time."""
        order = np.argsort(self.functions, kind="stable")
        return order, np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def previous(self) -> Ints:
        """Of each arrival: the position of the same function's one before, -1 for its first."""
        order, _ = self.grouped
        before = np.full(len(self), -1, np.int64)
        if len(order) > 1:
            same = self.functions[order[1:]] == self.functions[order[:-1]]
            before[order[1:][same]] = order[:-1][same]
        return before

    def place(self, function: str | int) -> int:
        """Its index. Raises BadInput for a name that the trace does not have."""
        if isinstance(function, int):
            return function
        if function not in self.index:
            raise BadInput(
                f"the trace has no function {function!r}", hint=f"it has {len(self.names)}: {few(self.names)}"
            )
        return self.index[function]

    def arrivals(self, function: str | int) -> Floats:
        order, bounds = self.grouped
        at = self.place(function)
        return self.times[order[bounds[at] : bounds[at + 1]]]

    def gaps(self, function: str | int) -> Floats:
        """Seconds from each arrival of it to the next: one fewer than its arrivals."""
        return np.diff(self.arrivals(function))

    def window(self, start_s: float, end_s: float) -> Trace:
        """Arrivals with start_s <= time < end_s, times counted from start_s. Every function keeps its place, even
        one without arrivals left: see `at_least`."""
        if not 0 <= start_s < end_s:
            raise BadInput(f"a window from {start_s} to {end_s} s is empty", hint="give a start before its end")
        first, last = np.searchsorted(self.times, [start_s, end_s], "left")
        return replace(
            self,
            times=self.times[first:last] - start_s,
            functions=self.functions[first:last],
            durations=self.durations[first:last],
            length_s=min(end_s, max(self.length_s, start_s)) - start_s,
        )

    def cap_per_minute(self, most: int) -> Trace:
        """At most so many arrivals of a function in each minute from the start. Which ones stay: the first, and
        the others evenly by rank, so that the arrivals kept still spread over the minute."""
        if most < 1:
            raise BadInput(f"a cap of {most} arrivals a minute leaves none", hint="give 1 or more")
        order, _ = self.grouped
        minutes = (self.times[order] // MINUTE_S).astype(np.int64)
        slot = self.functions[order].astype(np.int64) * (int(self.length_s // MINUTE_S) + 2) + minutes
        starts = np.flatnonzero(np.diff(slot, prepend=-1))
        sizes = np.diff(starts, append=len(order))
        size = np.repeat(sizes, sizes)
        rank = np.arange(len(order)) - np.repeat(starts, sizes)
        kept = (size <= most) | (rank * most // size != (rank - 1) * most // size)
        keep = np.sort(order[kept])
        return replace(self._take(keep), report=self.report + TraceReport(dropped_by_cap=len(self) - len(keep)))

    def select(self, names: Iterable[str]) -> Trace:
        """Only these functions, in the order given. Raises BadInput for a name that it does not have."""
        return self._only([self.place(name) for name in names])

    def only(self, names: Collection[str]) -> Trace:
        """Only these functions, in the trace's order. Raises BadInput for a name that it does not have."""
        return self._only(sorted({self.place(name) for name in names}))

    def at_least(self, arrivals: int) -> Trace:
        """Only the functions with so many arrivals or more, in the trace's order."""
        return self._only(np.flatnonzero(self.counts >= arrivals).tolist())

    def _only(self, places: Sequence[int]) -> Trace:
        renamed = np.full(len(self.names), -1, np.int32)
        renamed[list(places)] = np.arange(len(places))
        keep = np.flatnonzero(renamed[self.functions] >= 0) if len(self) else np.empty(0, np.int64)
        functions = renamed[self.functions[keep]]
        keep = keep[np.lexsort((functions, self.times[keep]))]
        return replace(
            self._take(keep),
            names=tuple(self.names[at] for at in places),
            functions=renamed[self.functions[keep]],
            memory_mb=self.memory_mb[list(places)] if len(self.memory_mb) else self.memory_mb,
            triggers=tuple(self.triggers[at] for at in places) if self.triggers else (),
        )

    def _take(self, positions: Ints) -> Trace:
        return replace(
            self,
            times=self.times[positions],
            functions=self.functions[positions],
            durations=self.durations[positions] if len(self.durations) else self.durations,
        )


def gather(
    names: Sequence[str],
    times: Floats,
    functions: Indices,
    durations: Singles | None = None,
    **rest: object,
) -> Trace:
    """A trace of arrivals in any order."""
    order = np.lexsort((functions, times))
    return Trace(
        names=tuple(names),
        times=times[order],
        functions=functions[order],
        durations=_NO_SINGLES if durations is None else durations[order],
        **rest,  # type: ignore[arg-type]  # named by Trace itself
    )


def few(names: Sequence[str], most: int = 4) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
