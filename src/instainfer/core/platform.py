"""The brain: `handle(event, now) -> list[Action]`. Pure and deterministic; two shells drive the same object,
the live controller and the simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from instainfer.core import containers, dispatch, moving, nodes, residency, supply, zygotes
from instainfer.core import events as ev
from instainfer.core.actions import Answer, AnyAction, Reject, SetTimer, Why
from instainfer.core.prices import price
from instainfer.core.state import TICK_S, Container, FunctionState, Instance, Request, State, backoff_s
from instainfer.model import Level, Origin

REFRESH_S = 1.0  # warm traffic alone asks for a placement pass at most this often
LEARN = 0.3  # weight of the newest load in the running costs
#: Phases in which a load fails before anything of the function's has run: its manager is gone, the disk full.
OURS = frozenset({"container", "extract"})


class Platform:
    """Feed it every event in the order of time; carry out the returned actions in their order.

    `now` must not decrease. An event that names something unknown (it ended meanwhile) changes nothing: with
    many reporters, late reports are normal.
    """

    def __init__(self, state: State) -> None:
        self.state = state

    def handle(self, event: ev.Event, now: float) -> list[AnyAction]:
        state = self.state
        state.now = now
        state.out = []
        HANDLERS[type(event)](state, event)
        return state.out


# ---- requests ------------------------------------------------------------------------------------------------


def request_arrived(state: State, event: ev.RequestArrived) -> None:
    function = state.functions.get(event.function)
    if function is None or function.deleted:
        reason = f"there is no function {event.function}"
        state.out.append(Reject(request=event.request, code="not_found", reason=reason))
        return
    state.forecast.observe(event.function, state.now)
    if state.prewarms is not None:
        state.prewarms.arrived(event.function, state.now)
    function.parked = False
    request = Request(event.request, function, state.now)
    state.requests[event.request] = request
    if not function.queue:
        instance = dispatch.pick(function)
        if instance is not None and dispatch.dispatch(state, request, instance):
            return
    if len(function.queue) >= state.queue_limit:
        reason = f"{len(function.queue)} requests of {event.function} wait already"
        dispatch.reject(state, request, "overloaded", reason)
        return
    function.queue.append(request)
    supply.ensure(state, function)


def request_cancelled(state: State, event: ev.RequestCancelled) -> None:
    """One that runs is left alone: it ends by its instance's answer."""
    request = state.requests.get(event.request)
    if request is None or request.instance is not None:
        return
    function = request.function
    if request in function.queue:
        function.queue.remove(request)
        for instance in function.instances.values():
            if instance.container.clearing is instance and not function.queue:
                instance.container.clearing = None
    code, reason = event.code, event.reason
    if code == "overloaded" and state.homeless(function):
        code = "unavailable"
        reason = f"{reason}: no node that is there has the {function.spec.memory >> 20} MB that it declares"
        if node := state.returning(function.spec.memory):
            reason += f", and {node} was lost"
    dispatch.reject(state, request, code, reason)
    if not function.queue:
        state.starved.pop(function.spec.name, None)


def invocation_finished(state: State, event: ev.InvocationFinished) -> None:
    request = state.requests.pop(event.request, None)
    if request is None or request.instance is None:
        return
    container = request.instance.container
    dispatch.finished(state, request, event.inference_s)
    if container.active is None or not container.active.running:
        supply.rest(state, container)
        supply.prewarm(state)
        # what ran has opened its container and moved its forecast: both are looked at, if not at once
        state.ask_for_pass(max(state.now + TICK_S, state.passed_at + REFRESH_S))


def namespace_limited(state: State, event: ev.NamespaceLimited) -> None:
    if event.memory:
        state.allowances[event.namespace] = event.memory
    else:
        state.allowances.pop(event.namespace, None)
    if state.starved:
        supply.feed_starved(state)


# ---- containers and instances --------------------------------------------------------------------------------


def container_ready(state: State, event: ev.ContainerReady) -> None:
    container = state.containers.get(event.container)
    if container is None or container.state != "creating":
        return
    container.move("ready", state.now)
    if not container.replaces:
        container.last_used = state.now
    function = _created_for(state, container)
    if function is not None and container.replaces:  # the last use of that one was its own
        view = state.view(container, residents=False)
        state.keep_alive.used(view, container.last_used, cold_s=function.cold_s)
    if function is not None:
        function.learn(container_s=_blend(function.costs.container_s, event.seconds))
        asked = bool(function.queue) or function.pinned
        moved = container.replaces and function.next_price(container.node).loaded_bytes <= container.limit
        wanted = (asked or moved) and not function.deleted
        if wanted and not container.stays:
            supply.ensure(state, function)
        elif wanted and not container.of(function):
            rule = f"it was loaded in {container.replaces}, which this container replaces"
            if asked:
                rule = "a request waits: cold start" if function.queue else "it is pinned"
            why = Why(rule=rule)
            load = containers.load(state, function, container, Level.LOADED, ahead=not asked, why=why)
            load.for_request = function.queue[0].id if function.queue else None
    if state.watches is not None:
        state.watches.created(state.view(container, residents=False), state.now)
    supply.rest(state, container)
    state.ask_for_pass()


def _created_for(state: State, container: Container) -> FunctionState | None:
    function = state.functions.get(container.owner)  # as it is nobody else's before it is ready
    if function is not None and function.creating.pop(container.id, None) is not None:
        return function
    return None


def container_lost(state: State, event: ev.ContainerLost, *, blamed: bool = True) -> None:
    """`blamed`: what it was to load or hold may be why."""
    container = state.containers.pop(event.container, None)
    if container is None:
        return
    created_for = _created_for(state, container)
    expected = container.state == "destroying"
    reserved, container.reserved = container.reserved, None
    container.move("lost", state.now)
    state.ledger.release(container.node, container.limit)
    state.keep_alive.gone(container.id)
    concerned = [f for f in (created_for, reserved) if f is not None]
    for instance in list(container.instances.values()):
        concerned.append(instance.function)
        reason = event.reason or "its container ended"
        lost(
            state, instance, reason,
            code="instance_crashed", expected=expected, unread=event.unread, blamed=blamed,
        )  # fmt: skip
    for function in concerned:
        failed = created_for is function and not expected and blamed
        if failed and function.queue and not supply.has_supply(state, function):
            dispatch.reject_queue(
                state, function, "unavailable", event.reason or "its container died", "container"
            )
        again(state, function)
    supply.feed_starved(state)
    if state.watches is not None:
        supply.prewarm(state)
    state.ask_for_pass()
    moving.ask(state)


def instance_ready(state: State, event: ev.InstanceReady) -> None:
    instance = state.instances.get(event.instance)
    if instance is None:
        return
    container, function = instance.container, instance.function
    ending = instance.state == "ending"
    instance.move("loaded" if event.level >= Level.LOADED else "imported", state.now)
    if ending:
        return
    instance.level = event.level
    if instance.started_level == Level.NONE:
        if event.level >= Level.LOADED and not instance.stale:
            _learn_start(state, instance, event)
        if not instance.stale:
            _learn_origin(function, instance, event.origin)
        if event.origin is not instance.origin:  # other than was expected, so it weighs other than that
            instance.origin = event.origin
            instance.bytes = price(function.costs, event.origin).bytes(event.level)
            residency.relieve(state, container)
    instance.ready_at = state.now
    if event.level >= Level.LOADED and not instance.stale:
        function.read_on[container.node] = state.now
    function.failures = 0
    function.blocked_until = 0.0
    if container.active is instance:
        container.active = None
    if container.suspended is instance:  # it was done just when it was frozen
        container.suspended = None
    if instance.stale:
        containers.offload(state, instance, Why(rule="a newer version was deployed, or it was deleted"))
    dispatch.next_in(state, container)
    supply.ensure(state, function)
    supply.rest(state, container)
    state.ask_for_pass()


def _learn_origin(function: FunctionState, instance: Instance, origin: Origin) -> None:
    if Origin.CLONED in (origin, instance.origin):
        function.clones = origin is Origin.CLONED
    if instance.parent and origin is not Origin.CLONED:
        function.spawned_beside = instance.parent if origin is Origin.SPAWNED else ""


def _learn_start(state: State, instance: Instance, event: ev.InstanceReady) -> None:
    function, node = instance.function, instance.container.node
    costs = function.costs
    if event.origin is Origin.CLONED:
        spent = event.start_s + event.import_s + event.load_s + event.warmup_s
        function.learn(clone_s=_blend(costs.clone_s, spent) if costs.clone_s else spent)
        return
    if not function.files_on(node, state.now) and len(state.ledger.nodes) > 1:
        # Its files had to be fetched or read first: that says nothing of the loads that follow there.
        usual = price(costs, event.origin)
        extra = event.import_s + event.load_s - (usual.import_s + costs.load_s)
        function.fresh_s = _blend(function.fresh_s, max(extra, 0.0)) if function.fresh_s else max(extra, 0.0)
        return
    if event.origin is Origin.FORKED:
        spent = event.start_s + event.import_s
        function.learn(fork_s=_blend(costs.fork_s, spent) if costs.fork_s else spent)
    else:
        started_s = _blend(costs.start_s, event.start_s) if costs.start_s else event.start_s
        function.learn(import_s=_blend(costs.import_s, event.import_s), start_s=started_s)
    function.learn(load_s=_blend(costs.load_s, event.load_s), warmup_s=_blend(costs.warmup_s, event.warmup_s))


def instance_failed(state: State, event: ev.InstanceFailed) -> None:
    instance = state.instances.get(event.instance)
    if instance is not None:
        code = "unavailable" if event.phase in OURS else "load_failed"
        lost(state, instance, event.reason, code=code, phase=event.phase, move="failed")
        again(state, instance.function)


def instance_lost(state: State, event: ev.InstanceLost) -> None:
    instance = state.instances.get(event.instance)
    if instance is not None:
        expected = instance.state == "ending"
        lost(
            state, instance, event.reason,
            code=event.code, expected=expected, culprit=event.request, unread=event.unread,
        )  # fmt: skip
        again(state, instance.function)


def lost(
    state: State,
    instance: Instance,
    reason: str,
    *,
    code: str,
    phase: str = "",
    move: str = "lost",
    expected: bool = False,
    culprit: int | None = None,
    unread: tuple[int, ...] = (),
    blamed: bool = True,
) -> None:
    """An instance is gone, as told or not. Whoever ran in it is told, or is sent again where it had not been
    read; whoever waited for its load alone is told too, since the next load would end the same way (unless it is
    not `blamed` for its end)."""
    function = instance.function
    loading = instance.state == "loading" and blamed
    instance.move(move, state.now)
    for request in list(instance.running.values()):
        if request.id in unread and not function.deleted and dispatch.resend(request):
            continue
        own = culprit is None or culprit == request.id
        dispatch.reject(state, request, code if own else "instance_crashed", reason, "inference")
    instance.running.clear()
    if loading and not expected:
        function.failures += 1
        function.blocked_until = state.now + backoff_s(function.failures)
    supply.forget(state, instance)
    if loading and not expected and not instance.stale:
        if not supply.has_supply(state, function):
            dispatch.reject_queue(state, function, code, reason, phase or "load")
        elif not any(other.state in ("ready", "running") for other in function.instances.values()):
            # Another load runs: it may do better, but not for those who waited for this one already.
            for request in [request for request in function.queue if request.arrived <= instance.started]:
                function.queue.remove(request)
                dispatch.reject(state, request, code, reason, phase or "load")


def again(state: State, function: FunctionState) -> None:
    """After a loss: those who still wait, and pins, get their instance; a failing pin waits for its backoff."""
    if function.deleted:
        return
    if function.pinned and not function.queue and function.blocked_until > state.now:
        if function.timer is None:
            function.timer = function.blocked_until
            state.out.append(SetTimer(timer=f"queue:{function.spec.name}", at=function.timer))
        return
    while function.queue and (free := dispatch.pick(function)) is not None:  # sent back, and others rest
        dispatch.next_in(state, free.container)
    supply.ensure(state, function)


def memory_sampled(state: State, event: ev.MemorySampled) -> None:
    residency.sampled(state, event.container, event.instances)


def zygote_ready(state: State, event: ev.ZygoteReady) -> None:
    zygotes.ready(state, event.zygote, event.bytes)


def zygote_lost(state: State, event: ev.ZygoteLost) -> None:
    zygotes.lost(state, event.zygote, event.reason, refused=event.refused)
    supply.feed_starved(state)


def zygote_sampled(state: State, event: ev.ZygoteSampled) -> None:
    zygotes.sampled(state, event.zygote, event.bytes)


def _blend(old: float, new: float) -> float:
    return old + LEARN * (new - old)


# ---- the rest ------------------------------------------------------------------------------------------------


def node_joined(state: State, event: ev.NodeJoined) -> None:
    state.ledger.join(event.node, event.memory)
    state.absent.pop(event.node, None)
    state.guests[event.node] = event.guests
    state.load_slots[event.node] = event.load_slots
    state.zygote_memory[event.node] = event.zygote_memory
    nodes.adopt(state, event.node, event.held)
    supply.feed_starved(state)
    state.uneven = bool(state.containers)
    moving.ask(state)
    if event.held:
        supply.prewarm(state)
    if event.zygote_memory or event.held:
        state.ask_for_pass()


def node_lost(state: State, event: ev.NodeLost) -> None:
    """What waited for it starts elsewhere; what ran there is told, but for what never reached it."""
    node = event.node
    if node in state.ledger.nodes:
        state.absent[node] = state.ledger.memory(node), state.now
    state.ledger.leave(node)  # first: what still waits is to start elsewhere
    zygotes.node_lost(state, node)
    for function in state.functions.values():
        function.read_on.pop(node, None)
    there = [container for container in state.containers.values() if container.node == node]
    for container in there:
        nodes.remember(state, container)
        container.closed = True
    reason = f"node {node} was lost" + (f": {event.reason}" if event.reason else "")
    for container in there:
        lost = ev.ContainerLost(container=container.id, reason=reason, unread=event.unread)
        container_lost(state, lost, blamed=False)
    state.guests.pop(node, None)
    state.load_slots.pop(node, None)
    state.closed.discard(node)
    state.leaving.pop(node, None)
    moving.ask(state)


def node_closed(state: State, event: ev.NodeClosed) -> None:
    if event.drain and event.within_s > 0.0:
        concerned = moving.leave(state, event.node, event.within_s)
    else:
        concerned = nodes.close(state, event.node, drain=event.drain)
    for function in concerned:
        again(state, function)
    moving.ask(state)


def node_opened(state: State, event: ev.NodeOpened) -> None:
    nodes.reopen(state, event.node)
    state.uneven = bool(state.containers)
    moving.ask(state)


def node_resized(state: State, event: ev.NodeResized) -> None:
    nodes.resize(state, event.node, event.memory)
    moving.ask(state)


def function_deployed(state: State, event: ev.FunctionDeployed) -> None:
    """A new function, or a new revision: instances of the old one end when they are idle."""
    function = state.functions.get(event.function.name)
    if function is None:
        function = state.functions[event.function.name] = FunctionState(event.function)
        zygotes.enlist(state, function)
    else:
        function.spec = event.function
        zygotes.enlist(state, function)
        function.deleted = False
        function.latest = None
        function.spawned_beside = ""
        function.clones = True
        function.read_on.clear()
        function.fresh_s = 0.0
        function.takes(event.function.costs.warm_s)
        function.failures = 0
        function.blocked_until = 0.0
        retire(state, function, "a newer version was deployed")
        supply.ensure(state, function)
    if state.watches is not None:
        state.watches.deployed(event.function, state.now)
        supply.prewarm(state)
    state.ask_for_pass()


def retire(state: State, function: FunctionState, rule: str) -> None:
    for instance in list(function.instances.values()):
        if instance.stale and instance.state in ("loading", "imported", "ready"):
            containers.offload(state, instance, Why(rule=rule))


def function_deleted(state: State, event: ev.FunctionDeleted) -> None:
    function = state.functions.get(event.function)
    if function is None:
        return
    function.deleted = True
    function.pinned = False
    state.forecast.forget(event.function)
    if state.prewarms is not None:
        state.prewarms.forget(event.function)
    zygotes.strike(state, function)
    dispatch.reject_queue(state, function, "not_found", f"{event.function} was deleted")
    state.starved.pop(event.function, None)
    retire(state, function, "it was deleted")
    for container in list(state.containers.values()):
        if container.owner == event.function:
            container.doomed = True
            supply.rest(state, container)
    if not function.instances:
        del state.functions[event.function]


def timer_fired(state: State, event: ev.TimerFired) -> None:
    kind, _, name = event.timer.partition(":")
    if kind == "placement":
        if state.pass_at is not None and state.now >= state.pass_at:
            state.pass_at = None
            residency.place(state)
    elif kind == "move":
        for mover in moving.look(state):
            again(state, mover)
    elif kind == "prewarm":
        state.prewarm_at = None
        supply.prewarm(state)
    elif kind == "expire":
        container = state.containers.get(name)
        if container is not None:
            container.timer = None
            expire(state, container)
    elif kind == "queue":
        function = state.functions.get(name)
        if function is not None:
            function.timer = None
            again(state, function)


def expire(state: State, container: Container) -> None:
    if not container.quiet:
        return  # its next rest looks again
    view = state.view(container, residents=False)
    expires = state.keep_alive.expires_at(view)
    if expires is not None and expires <= state.now:
        if state.lends is not None and not container.doomed and state.lends.strips(view, state.now):
            imports = state.layers is not None and state.layers.imports(view, state.now)
            rule = "the keep-alive policy empties it, for others to use"
            containers.strip(state, container, Why(rule=rule), imports=imports)
            supply.rest(state, container)
            return
        containers.destroy(state, container, Why(rule="the keep-alive policy's time is over"))
    else:
        supply.rest(state, container)


def hint_received(state: State, event: ev.HintReceived) -> None:
    function = state.functions.get(event.function)
    if function is not None:
        function.parked = False
        state.forecast.hint(event.function, state.now + event.in_s, event.probability)
        state.ask_for_pass()


def preload_requested(state: State, event: ev.PreloadRequested) -> None:
    residency.by_hand(state, event.token, event.function)


def offload_requested(state: State, event: ev.OffloadRequested) -> None:
    residency.offload_by_hand(state, event.token, event.function)


def pin_changed(state: State, event: ev.PinChanged) -> None:
    function = state.functions.get(event.function)
    if function is None:
        state.out.append(Answer(token=event.token, ok=False, message=f"there is no function {event.function}"))
        return
    function.pinned = event.pinned
    if event.pinned:
        supply.ensure(state, function)
        message = f"{event.function} stays loaded until it is unpinned"
    else:
        message = f"{event.function} lives by the keep-alive policy again"
        for container in list(state.containers.values()):
            supply.rest(state, container)
    state.out.append(Answer(token=event.token, ok=True, message=message))


#: The key's type is the type of the handler's event: a dict cannot say so.
HANDLERS: dict[type[ev.Event], Callable[[State, Any], None]] = {
    ev.NodeJoined: node_joined,
    ev.NodeLost: node_lost,
    ev.NodeClosed: node_closed,
    ev.NodeOpened: node_opened,
    ev.NodeResized: node_resized,
    ev.FunctionDeployed: function_deployed,
    ev.FunctionDeleted: function_deleted,
    ev.RequestArrived: request_arrived,
    ev.RequestCancelled: request_cancelled,
    ev.InvocationFinished: invocation_finished,
    ev.ContainerReady: container_ready,
    ev.ContainerLost: container_lost,
    ev.InstanceReady: instance_ready,
    ev.InstanceFailed: instance_failed,
    ev.InstanceLost: instance_lost,
    ev.NamespaceLimited: namespace_limited,
    ev.ZygoteReady: zygote_ready,
    ev.ZygoteLost: zygote_lost,
    ev.ZygoteSampled: zygote_sampled,
    ev.MemorySampled: memory_sampled,
    ev.TimerFired: timer_fired,
    ev.HintReceived: hint_received,
    ev.PreloadRequested: preload_requested,
    ev.OffloadRequested: offload_requested,
    ev.PinChanged: pin_changed,
}
