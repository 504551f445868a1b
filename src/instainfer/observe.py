"""Metrics, as counters of our own on the hot path and Prometheus's text when it is scraped.

prometheus-client's labelled counters cost 2-3 µs a touch, several a request; here a touch is a dict entry and
an addition, and the library renders what was counted through a collector.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LONG = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0, 86400.0)


#: What a deleted function came to is shown for so long after it, for the scrapes that have not seen its last
#: requests, but of no more than so many functions.
DELETED_S = 600.0
DELETED = 100


class Histogram:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = BUCKETS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        running, rows = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((bound, float(running)))
        return rows


class Spent:
    """What the invocations of one function came to since the server started."""

    __slots__ = ("failed", "failed_s", "inference_s", "last", "ok", "ok_s", "waited_s")

    def __init__(self) -> None:
        self.ok = self.failed = 0
        self.ok_s = self.failed_s = 0.0  # from end to end
        self.waited_s = 0.0  # of all, for an instance
        self.inference_s = 0.0  # of the good ones
        self.last = 0.0  # wall time: when the latest was accepted


#: (name, help, label names, [(label values, value)])
Gauge = tuple[str, str, tuple[str, ...], list[tuple[tuple[str, ...], float]]]


class Metrics(Collector):
    def __init__(self) -> None:
        self.invocations: dict[tuple[str, str, str, str], int] = {}
        self.phases: dict[str, Histogram] = {}
        self.spent: dict[str, Spent] = {}  # by key of the function
        self.preloads = {"hit": 0, "expired": 0, "evicted": 0, "failed": 0}
        self.wasted_byte_seconds = 0.0
        self.decision = Histogram()
        self.prediction_error = Histogram(LONG)
        self.gauges: Callable[[], Iterable[Gauge]] = tuple  # read off the platform at a scrape
        self._deployed: set[str] = set()
        self._deleted: dict[str, float] = {}  # with something in `spent` -> when, the latest last
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def invocation(self, namespace: str, function: str, start: str, status: str) -> None:
        key = (namespace, function, start, status)
        self.invocations[key] = self.invocations.get(key, 0) + 1

    def spent_by(self, function: str, now: float) -> Spent:
        """Of one that may be deleted already: the last of its requests end after it."""
        spent = self.spent.get(function)
        if spent is None:
            spent = self.spent[function] = Spent()
            if function not in self._deployed:
                self._deleted[function] = now
        return spent

    def deployed(self, function: str) -> None:
        """From now on its counters do not go back, whatever was before."""
        self._deployed.add(function)
        self._deleted.pop(function, None)

    def deleted(self, function: str, now: float) -> None:
        self._deployed.discard(function)
        if function in self.spent:
            self._deleted[function] = now
        self.sweep(now)

    def sweep(self, now: float) -> None:
        """Forget functions that were deleted, so that whoever makes and deletes them does not fill memory, nor
        the database of whoever scrapes this."""
        most = max(0, len(self._deleted) - DELETED)
        old = {name for n, (name, at) in enumerate(self._deleted.items()) if n < most or at + DELETED_S <= now}
        if not old:
            return
        for name in old:
            del self._deleted[name]
            del self.spent[name]
        self.invocations = {
            key: count for key, count in self.invocations.items() if f"{key[0]}/{key[1]}" not in old
        }

    def phase(self, name: str, seconds: float) -> None:
        histogram = self.phases.get(name)
        if histogram is None:
            histogram = self.phases[name] = Histogram()
        histogram.observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is rendered at registration

    def collect(self) -> Iterable[Metric]:
        labels = ("namespace", "function", "start", "status")
        counter = CounterMetricFamily(
            "instainfer_invocations", "Invocations by start kind and status", labels=labels
        )
        for key, count in sorted(self.invocations.items()):
            counter.add_metric(key, count)
        yield counter
        phases = HistogramMetricFamily("instainfer_invocation_seconds", "Time spent per phase", labels=("phase",))
        for name, histogram in sorted(self.phases.items()):
            phases.add_metric((name,), histogram.cumulative(), histogram.total)
        yield phases
        preloads = CounterMetricFamily(
            "instainfer_preload", "Pre-loads by what became of them", labels=("outcome",)
        )
        for outcome, count in self.preloads.items():
            preloads.add_metric((outcome,), count)
        yield preloads
        wasted = CounterMetricFamily(
            "instainfer_wasted_byte_seconds", "Bytes x seconds held by pre-loads that were never used"
        )
        wasted.add_metric((), self.wasted_byte_seconds)
        yield wasted
        decision = HistogramMetricFamily("instainfer_scheduler_decision_seconds", "Time of one placement pass")
        decision.add_metric((), self.decision.cumulative(), self.decision.total)
        yield decision
        error = HistogramMetricFamily(
            "instainfer_prediction_error_seconds",
            "Between when a function's next call was expected and its coming",
        )
        error.add_metric((), self.prediction_error.cumulative(), self.prediction_error.total)
        yield error
        for name, text, names, rows in self.gauges():
            gauge = GaugeMetricFamily(f"instainfer_{name}", text, labels=names)
            for values, value in rows:
                gauge.add_metric(values, value)
            yield gauge
