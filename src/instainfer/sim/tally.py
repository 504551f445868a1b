"""What is counted of a run."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from instainfer.model import StartKind

_PARTIAL = (StartKind.IMPORTED, StartKind.FORKED, StartKind.CLONED)


class Tally:
    """Counts requests that arrive at or after `since`, and memory held from then until `until`.

    Loading latency (import, load and the excess of a first inference) is what a request could be spared;
    what it had to wait of it is what was not saved. Waste is bytes x seconds held by pre-loads that no request
    ever used, the metric's meaning. Harm is what guests cost the functions that owned the container before
    them: waits while a guest ran, and starts that were not warm because the instance had been off-loaded after
    its container changed hands; of both, the requests that would have been served at once without guests.
    """

    def __init__(self, since: float, until: float) -> None:
        self.since = since
        self.until = until
        self.starts: dict[StartKind, int] = dict.fromkeys(StartKind, 0)
        self.rejected = 0
        self.harmed = 0
        self.harm_s = 0.0
        self.memory_byte_s = 0.0
        self.wasted_byte_s = 0.0
        self.zygote_byte_s = 0.0
        self.e2e = array("d")  # seconds, of each request
        self.waited = array("d")  # of each: beyond its inference
        self._waited_s = 0.0
        self._loading_s = 0.0
        self._paid_s = 0.0

    def served(
        self, arrived: float, start: StartKind, e2e_s: float, inference_s: float, loading_s: float, paid_s: float
    ) -> None:
        """A request was answered. `loading_s` is what its function takes to load, `paid_s` what this request
        had to wait of it."""
        if arrived < self.since:
            return
        self.starts[start] += 1
        self.e2e.append(e2e_s)
        waited_s = e2e_s - inference_s
        self.waited.append(waited_s)
        self._waited_s += waited_s
        self._loading_s += loading_s
        self._paid_s += paid_s

    def refused(self, arrived: float) -> None:
        if arrived >= self.since:
            self.rejected += 1

    def harm(self, arrived: float, waited_s: float) -> None:
        if arrived >= self.since:
            self.harmed += 1
            self.harm_s += waited_s

    def held(self, size: int, begin: float, end: float) -> None:
        """Memory that was taken from `begin` to `end`, whatever the bytes in it."""
        self.memory_byte_s += size * self._within(begin, end)

    def held_by_zygote(self, size: int, begin: float, end: float) -> None:
        """Likewise, by libraries that are kept imported."""
        self.held(size, begin, end)
        self.zygote_byte_s += size * self._within(begin, end)

    def wasted(self, size: int, begin: float, end: float) -> None:
        """A pre-load held so much and was never used."""
        self.wasted_byte_s += size * self._within(begin, end)

    def add(self, other: Tally) -> None:
        """What another one counted of the same time."""
        for kind, count in other.starts.items():
            self.starts[kind] += count
        self.rejected += other.rejected
        self.harmed += other.harmed
        self.harm_s += other.harm_s
        self.memory_byte_s += other.memory_byte_s
        self.wasted_byte_s += other.wasted_byte_s
        self.zygote_byte_s += other.zygote_byte_s
        self.e2e += other.e2e
        self.waited += other.waited
        self._waited_s += other._waited_s
        self._loading_s += other._loading_s
        self._paid_s += other._paid_s

    def _within(self, begin: float, end: float) -> float:
        return max(0.0, min(end, self.until) - max(begin, self.since))

    @property
    def invocations(self) -> int:
        return len(self.e2e)

    @property
    def saved(self) -> float:
        """Share of the loading latency that requests were spared; 0.0 where there was none to save."""
        return 1.0 - self._paid_s / self._loading_s if self._loading_s else 0.0

    def row(self) -> dict[str, Any]:
        """The part of a row of results that this run decided. Shares are of the requests answered."""
        count = max(self.invocations, 1)
        return {
            "invocations": self.invocations,
            "rejected": self.rejected,
            "saved_fraction": self.saved,
            "preloaded_fraction": self.starts[StartKind.PRELOADED] / count,
            "warm_fraction": self.starts[StartKind.WARM] / count,
            "cold_fraction": self.starts[StartKind.COLD] / count,
            "attached_fraction": self.starts[StartKind.ATTACHED] / count,
            "partial_fraction": sum(self.starts[kind] for kind in _PARTIAL) / count,
            "warming_loading_mean_ms": self._waited_s / count * 1e3,
            "e2e_mean_ms": sum(self.e2e) / count * 1e3,
            "e2e_p99_ms": self._percentile(0.99) * 1e3,
            "memory_gb_s": self.memory_byte_s / 1e9,
            "wasted_gb_s": self.wasted_byte_s / 1e9,
            "zygote_gb_s": self.zygote_byte_s / 1e9,
            "harmed_fraction": self.harmed / count,
            "harm_mean_ms": self.harm_s / self.harmed * 1e3 if self.harmed else 0.0,
        }

    def spread(self) -> dict[str, float]:
        """How far apart the requests lie that the means of a row are of; nothing where there was none."""
        if not self.e2e:
            return {}
        found = {}
        for name, taken in (("e2e", self.e2e), ("warming_loading", self.waited)):
            ordered = sorted(taken)
            for percent in (10, 50, 90):
                at = min(percent * len(ordered) // 100, len(ordered) - 1)
                found[f"{name}_p{percent}_ms"] = ordered[at] * 1e3
        return found

    def _percentile(self, share: float) -> float:
        """Nearest rank."""
        if not self.e2e:
            return 0.0
        ordered = sorted(self.e2e)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class ByClass:
    """One tally for each class of functions; `shared` counts what belongs to no function alone."""

    def __init__(self, classes: Iterable[str], of: Sequence[str], since: float, until: float) -> None:
        """`of`: each function's class."""
        self.tallies = {name: Tally(since, until) for name in classes}
        self.shared = Tally(since, until)
        self.of = [self.tallies[name] for name in of]

    def total(self) -> Tally:
        whole = Tally(self.shared.since, self.shared.until)
        for one in (*self.tallies.values(), self.shared):
            whole.add(one)
        return whole


class Call(NamedTuple):
    """One request, in seconds. What `e2e_s` has beyond the three parts was spent waiting for its turn, and on the
    platform's own doing."""

    request: int
    function: int
    arrived_s: float
    start: StartKind
    warming_s: float  # it waited for a container
    loading_s: float  # for import, load and warm-up, and the excess of a first inference
    inference_s: float
    e2e_s: float


class Timeline:
    """Some requests, one by one: those whose numbers are in `requests`."""

    def __init__(self, requests: range = range(0)) -> None:
        self.requests = requests
        self.calls: list[Call] = []

    def ordered(self) -> list[Call]:
        return sorted(self.calls, key=lambda call: call.request)
