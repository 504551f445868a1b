"""From a request to an instance that runs it, and back.

In a container at most one instance is thawed, and only it executes: dispatching to another one freezes it
first. A pre-load that a run interrupts is frozen and goes on afterwards.
"""

from __future__ import annotations

from instainfer.core import containers
from instainfer.core.actions import Dispatch, Reject, Why
from instainfer.core.state import Container, FunctionState, Instance, Request, State
from instainfer.model import Level, Origin, StartKind

EWMA = 0.2  # weight of the newest inference time
RESENDS = 3  # of a request that no instance has read


def pick(function: FunctionState) -> Instance | None:
    """The best instance that can take a request of `function` at once: the one used last if it is thawed,
    else a thawed one, else one that has served, else the first; one that leaves only where no other can."""
    latest = function.latest
    if (
        latest is not None
        and latest.container.thawed is latest
        and latest.container.leaves_by is None
        and can_take(latest)
    ):
        return latest
    able = [instance for instance in function.instances.values() if can_take(instance)]
    if not able:
        return None
    return max(able, key=lambda one: (one.container.leaves_by is None, not one.frozen, one.served > 0))


def can_take(instance: Instance) -> bool:
    if instance.state not in ("ready", "running") or instance.stale:
        return False
    container = instance.container
    if container.state != "ready" or container.clearing is not None or container.closed:
        return False
    active = container.active
    if active is None:
        return True
    if active is instance:
        return len(instance.running) < instance.function.spec.concurrency
    # A load may be frozen for a run; once only, if somebody waits for it.
    return active.state == "loading" and not (active.function.queue and active.interrupted)


def dispatch(state: State, request: Request, instance: Instance) -> bool:
    """Send the request; False if the container has to be cleared first (strict isolation): the request then
    stays where it is and goes on when the last other instance is gone."""
    container, function, now = instance.container, instance.function, state.now
    if len(container.instances) > 1 and (function.spec.strict or state.policy.ends_co_residents):
        container.clearing = instance
        for other in list(container.instances.values()):
            if other is not instance:
                containers.offload(state, other, Why(rule="all others end before this function runs"))
        return False
    active = container.active
    if active is not None and active is not instance:
        active.interrupted += 1
        container.suspended = active
    containers.expose(state, instance)
    container.active = instance
    start = start_kind(request, instance)
    instance.move("dispatch", now)
    instance.running[request.id] = request
    request.instance = instance
    request.dispatched = now
    function.latest = instance
    if container.owner != function.spec.name:
        container.owner = function.spec.name
        containers.settle(state, container)
    state.out.append(Dispatch(request=request.id, instance=instance.id, start=start))
    return True


def start_kind(request: Request, instance: Instance) -> StartKind:
    if instance.ready_at > request.arrived:  # it was not ready when the request came
        if instance.for_request != request.id:
            return StartKind.ATTACHED
        if instance.origin is Origin.CLONED:
            return StartKind.CLONED
        if instance.started_level == Level.IMPORTED:
            return StartKind.IMPORTED
        return StartKind.FORKED if instance.origin is Origin.FORKED else StartKind.COLD
    return StartKind.WARM if instance.served or instance.running else StartKind.PRELOADED


def finished(state: State, request: Request, inference_s: float) -> None:
    """The instance answered: it is free, and its container goes to whoever waits for it longest."""
    instance = request.instance
    if instance is None or instance.running.pop(request.id, None) is None:
        return
    container, function = instance.container, instance.function
    instance.served += 1
    function.squeezed = 0
    function.takes(function.service_s + EWMA * (inference_s - function.service_s))
    container.last_used = state.now
    container.uses += 1
    if not instance.running:
        instance.move("rest", state.now)
        container.active = None
        state.keep_alive.used(state.view(container, residents=False), state.now, cold_s=function.cold_s)
        if instance.stale:
            containers.offload(state, instance, Why(rule="a newer version was deployed, or it was deleted"))
    if function.queue or len(container.instances) > 1:
        next_in(state, container)


def next_in(state: State, container: Container) -> None:
    """Give the container to the longest-waiting request that an instance in it can take; else let a frozen
    load go on."""
    while True:
        able = [i for i in container.instances.values() if i.function.queue and can_take(i)]
        if not able:
            break
        best = min(able, key=lambda instance: (instance.function.queue[0].arrived, instance.id))
        if not dispatch(state, best.function.queue[0], best):
            return
        best.function.queue.popleft()
    suspended = container.suspended
    if container.active is None and suspended is not None:
        container.suspended = None
        container.active = suspended
        containers.expose(state, suspended)


def resend(request: Request) -> bool:
    """Its instance died before it had read the request: back into the queue, in order of arrival. False if that
    has happened too often for the next one to be likelier to live."""
    request.unread += 1
    if request.unread > RESENDS:
        return False
    queue = request.function.queue
    place = next((n for n, other in enumerate(queue) if other.arrived > request.arrived), len(queue))
    queue.insert(place, request)
    request.instance = None
    return True


def reject(state: State, request: Request, code: str, reason: str, phase: str = "") -> None:
    instance = request.instance.id if request.instance is not None else ""
    state.requests.pop(request.id, None)
    state.out.append(Reject(request=request.id, code=code, reason=reason, phase=phase, instance=instance))


def reject_queue(state: State, function: FunctionState, code: str, reason: str, phase: str = "") -> None:
    while function.queue:
        reject(state, function.queue.popleft(), code, reason, phase)
