"""What is counted of a run."""

from __future__ import annotations

from array import array
from typing import Any

from instainfer.model import StartKind

_PARTIAL = (StartKind.IMPORTED, StartKind.FORKED, StartKind.CLONED)


class Tally:
    """Counts requests that arrive at or after `since`, and memory held from then until `until`.

    Loading latency (import, load and the excess of a first inference) is what a request could be spared;
    what it had to wait of it is what was not saved. Waste is bytes x seconds held by pre-loads that no request
    ever used, the metric's meaning. Harm is what guests cost the functions that owned the container before
    them: waits while a guest ran, and starts that were not warm because the instance had been off-loaded after
    its container changed hands.
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
        self._e2e = array("d")
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
        self._e2e.append(e2e_s)
        self._waited_s += e2e_s - inference_s
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

    def wasted(self, size: int, begin: float, end: float) -> None:
        """A pre-load held so much and was never used."""
        self.wasted_byte_s += size * self._within(begin, end)

    def _within(self, begin: float, end: float) -> float:
        return max(0.0, min(end, self.until) - max(begin, self.since))

    @property
    def invocations(self) -> int:
        return len(self._e2e)

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
            "e2e_mean_ms": sum(self._e2e) / count * 1e3,
            "e2e_p99_ms": self._percentile(0.99) * 1e3,
            "memory_gb_s": self.memory_byte_s / 1e9,
            "wasted_gb_s": self.wasted_byte_s / 1e9,
            "harmed_fraction": self.harmed / count,
            "harm_mean_ms": self.harm_s / self.harmed * 1e3 if self.harmed else 0.0,
        }

    def _percentile(self, share: float) -> float:
        """Nearest rank."""
        if not self._e2e:
            return 0.0
        ordered = sorted(self._e2e)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
