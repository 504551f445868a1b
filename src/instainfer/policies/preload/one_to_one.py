"""Tyche without predictor and scheduler, for the ablation: a container pre-loads its own function only.

Source: Tyche (TPDS 2026), "Ablation study".
"""

from __future__ import annotations

from collections.abc import Callable

from instainfer.model import Level
from instainfer.policies.base import ContainerView, FunctionView, Plan, Predictor, Preload, Snapshot
from instainfer.policies.preload.bins import Copies, megabytes
from instainfer.policies.preload.timers import loading


class OneToOne:
    """Into an idle container that does not have its owner's function, that one is loaded, if it fits beside
    what is there. Nothing is ever off-loaded ahead of time, and there are no timers."""

    ends_co_residents = True
    plans = True

    def plan(self, snapshot: Snapshot, forecast: Predictor, now: float) -> Plan:
        return Plan(preloads=tuple(own_loads(snapshot, forecast, now, lambda view: True)))


def own_loads(
    snapshot: Snapshot, forecast: Predictor, now: float, wanted: Callable[[FunctionView], bool]
) -> list[Preload]:
    """Of owners that are `wanted`, each into the first of its containers; within the nodes' loads."""
    views = {view.name: view for view in snapshot.functions}
    copies = Copies(snapshot)
    slots = dict(snapshot.load_slots)
    loads: dict[str, Preload] = {}
    for container in snapshot.containers:
        view = views.get(container.owner)
        if view is None or view.name in loads or not container.idle or slots.get(container.node, 0) <= 0:
            continue
        missing = fits(view, container)
        if missing is None or not copies.wanted(view) or not wanted(view):
            continue
        slots[container.node] -= 1
        saves = view.load_s if view.ready >= Level.IMPORTED else loading(view)
        if saves <= 0.0:
            continue
        loads[view.name] = Preload(
            function=view.name,
            level=Level.LOADED,
            container=container.id,
            displaced=(),
            rule=f"into its own container: saves {saves:.2f} s, {megabytes(missing)}",
            rate=forecast.rate(view.name, now),
            probability=forecast.probability(view.name, now),
            saves_s=saves,
            weight=missing,
        )
    return list(loads.values())


def fits(view: FunctionView, container: ContainerView) -> int | None:
    """Bytes that loading it there takes, or None if it may not or cannot."""
    if container.namespace != view.namespace or not set(view.mounts) <= set(container.mounts):
        return None
    missing = view.loaded_bytes
    for resident in container.residents:
        if resident.function == view.name and not resident.stale:
            if resident.level >= Level.LOADED or not resident.evictable:
                return None
            missing = max(missing - resident.bytes, 0)
    return missing if missing <= container.free else None
