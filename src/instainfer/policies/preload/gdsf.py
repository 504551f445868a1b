"""Greedy-dual size frequency, over functions at their levels in the idle memory.

Source: Cherkasova: Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy (HP Labs,
1998).
"""

from __future__ import annotations

from collections.abc import Iterable

from instainfer.policies.base import FunctionView, Predictor
from instainfer.policies.predict.forecast import Forecast
from instainfer.policies.predict.frequency import Frequency
from instainfer.policies.preload.cached import Cached
from instainfer.policies.preload.timers import loading

_MB = float(1 << 20)


class GdsfPreload(Cached):
    """The rank is clock + frequency x seconds saved / MB. The clock is the highest rank that ever gave way, and
    a function's is the one at its last call. The frequency counts all calls (predict/frequency.py, the mode's
    own predictor); beside another predictor, those decisions before which it was called anew."""

    name = "gdsf"

    def __init__(self) -> None:
        super().__init__()
        self._clock = 0.0
        self._calls: dict[str, tuple[float, int, float]] = {}  # last call, how many, clock at the last

    def ranks(self, views: Iterable[FunctionView], forecast: Predictor) -> dict[str, tuple[float, float]]:
        base = forecast.base if isinstance(forecast, Forecast) else forecast
        counts = base.count if isinstance(base, Frequency) else None
        found: dict[str, tuple[float, float]] = {}
        calls: dict[str, tuple[float, int, float]] = {}
        for view in views:
            last = forecast.last(view.name)
            if last is None:
                continue
            known = self._calls.get(view.name)
            if known is None or known[0] != last:
                known = last, 1 if known is None else known[1] + 1, self._clock
            calls[view.name] = known
            _, often, clock = known
            if counts is not None:
                often = counts(view.name)
            found[view.name] = (
                clock + often * view.import_s / _megabytes(view.imported_bytes),
                clock + often * loading(view) / _megabytes(view.loaded_bytes),
            )
        self._calls = calls
        return found

    def gave_way(self, ranks: list[float]) -> None:
        self._clock = max([self._clock, *ranks])


def _megabytes(size: int) -> float:
    return max(size / _MB, 1.0)
