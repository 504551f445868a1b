"""What one more instance of a function costs and weighs, by how its process comes to be.

The only place that knows: whoever predicts (supply, placement, keep-alive, the value of what is there) asks for
a `Price`. How an instance really began is the agent's to say (InstanceReady.origin).
"""

from __future__ import annotations

from typing import NamedTuple

from instainfer.model import Costs, Level, Origin

#: Seconds that a fork or a clone is taken to last before one was measured. A fork of a process that has torch
#: lasts 7 to 18 ms; believing in a little more costs nothing, as either is far below what it replaces.
UNMEASURED_S = 0.05
#: Bytes of a forked instance that has done nothing yet: the pages that every interpreter writes to at once.
FORKED_BYTES = 8 << 20


class Price(NamedTuple):
    origin: Origin
    import_s: float  # until its libraries are there
    loading_s: float  # until it can answer as fast as a warm one, import_s included
    imported_bytes: int
    loaded_bytes: int  # cumulative

    def bytes(self, level: Level) -> int:
        return self.imported_bytes if level == Level.IMPORTED else self.loaded_bytes


def price(costs: Costs, origin: Origin = Origin.SPAWNED) -> Price:
    """Bytes of a fork or a clone that were never measured are taken to be those of a whole instance: promising
    too little memory is worse than too much."""
    if origin is Origin.FORKED:
        saved = saved_by_fork(costs)
        loaded = costs.forked_bytes or costs.loaded_bytes
        imported = min(FORKED_BYTES, costs.imported_bytes, loaded)
        return Price(origin, costs.import_s - saved, costs.loading_s - saved, imported, loaded)
    if origin is Origin.CLONED:
        clone_s = min(costs.clone_s or UNMEASURED_S, costs.loading_s)
        loaded = costs.cloned_bytes or costs.loaded_bytes
        return Price(origin, 0.0, clone_s, min(FORKED_BYTES, loaded), loaded)
    return Price(origin, costs.import_s, costs.loading_s, costs.imported_bytes, costs.loaded_bytes)


def saved_by_fork(costs: Costs) -> float:
    """Seconds that a start takes less where a zygote is ready."""
    return max(costs.import_s - (costs.fork_s or UNMEASURED_S), 0.0)
