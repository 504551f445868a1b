"""Least recently used, over functions at their levels in the idle memory."""

from __future__ import annotations

from collections.abc import Iterable

from instainfer.policies.base import FunctionView, Predictor
from instainfer.policies.preload.cached import Cached


class LruPreload(Cached):
    """The rank is the time of the last call; see Cached."""

    name = "lru"

    def ranks(self, views: Iterable[FunctionView], forecast: Predictor) -> dict[str, tuple[float, float]]:
        last = {view.name: forecast.last(view.name) for view in views}
        return {name: (at, at) for name, at in last.items() if at is not None}
