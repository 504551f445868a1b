"""What became of the requests in truth, counted as the shadows' are."""

from __future__ import annotations

from typing import Any

from instainfer.books import Books, Ticket
from instainfer.clock import Clock
from instainfer.model import Costs, Function, StartKind
from instainfer.shadow.follower import figures


class Live:
    """Loading latency is the profile's, as in the simulator; what a request waited of it is measured."""

    def __init__(self, clock: Clock, books: Books) -> None:
        self._clock = clock
        self._books = books
        self._costs: dict[str, Costs] = {}
        self._starts: dict[str, int] = dict.fromkeys(map(str, StartKind), 0)
        self._rejected = 0
        self._e2e_s = 0.0
        self._waited_s = 0.0
        self._loading_s = 0.0
        self._paid_s = 0.0

    def deployed(self, function: Function) -> None:
        self._costs[function.name] = function.costs

    def finished(self, ticket: Ticket) -> None:
        """Answered, by its function or with an error; its phases are known."""
        if not ticket.dispatched:
            self._rejected += 1
            return
        self._starts[ticket.start] += 1
        e2e_s = self._clock.now() - ticket.arrived
        self._e2e_s += e2e_s
        self._waited_s += max(0.0, e2e_s - ticket.inference_s)
        costs = self._costs.get(ticket.spec.key)
        if costs is None:
            return
        self._loading_s += costs.loading_s
        if ticket.start == StartKind.WARM:
            return
        phases = ticket.phases
        self._paid_s += phases.extract + phases.imports + phases.load + phases.warmup
        if costs.warmup_s <= 0.0 and ticket.start != StartKind.CLONED:  # its first call made up for it
            self._paid_s += max(costs.first_s - costs.warm_s, 0.0)

    def row(self) -> dict[str, Any]:
        """As a shadow's. The memory of its containers over time is not measured."""
        wasted = self._books.metrics.wasted_byte_seconds + self._books.unused_byte_seconds()
        return figures(
            {kind: self._starts[kind] for kind in StartKind},
            rejected=self._rejected,
            e2e_s=self._e2e_s,
            waited_s=self._waited_s,
            loading_s=self._loading_s,
            paid_s=self._paid_s,
            wasted_byte_s=wasted,
        ) | {"memory_gb_s": None}
