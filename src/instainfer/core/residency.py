"""What is in memory ahead of requests: the placement pass (libraries, then models), pre-loading by hand, and
pressure inside a container.

Nothing here creates or destroys a container, nor moves the time it was last used: pre-loading wastes nothing
and is compatible with any keep-alive policy (the papers' promise, an invariant under test).
"""

from __future__ import annotations

from instainfer.core import containers, zygotes
from instainfer.core.actions import Answer, Why
from instainfer.core.prices import price
from instainfer.core.state import PRESSURE, Container, FunctionState, Instance, Promise, State, backoff_s
from instainfer.model import Level, Origin


def place(state: State) -> None:
    """One pass: let the policy decide over all idle memory, carry out what is still possible."""
    state.passed_at = state.now
    zygotes.place(state)
    if not state.policy.plans:
        return
    if state.promised:
        keep_promises(state)
    plan = state.policy.plan(state.snapshot(), state.forecast, state.now)
    for off in plan.offloads:
        instance = state.instances.get(off.instance)
        if instance is not None and instance.evictable:
            why = Why(rule=off.rule, rate=off.rate, probability=off.probability)
            containers.offload(state, instance, why)
    for pre in plan.preloads:
        function = state.functions.get(pre.function)
        container = state.containers.get(pre.container)
        if function is None or container is None or not container.open:
            continue
        why = Why(
            rule=pre.rule,
            rate=pre.rate,
            probability=pre.probability,
            saves_s=pre.saves_s,
            weight=pre.weight,
            displaced=pre.displaced,
        )
        for name in pre.displaced:
            guest = state.instances.get(name)
            if guest is not None and guest.evictable and guest.container is container:
                containers.offload(state, guest, Why(rule=f"displaced by {pre.function}: {pre.rule}"))
        # What was displaced holds its bytes until it is gone: the next pass (asked for by its end) loads.
        if not preload(state, function, container, pre.level, why) and pre.displaced:
            state.promised[container.id] = Promise(pre.function, pre.level, why)
    if plan.wake_at is not None:
        state.ask_for_pass(plan.wake_at)


def keep_promises(state: State) -> None:
    """Load what others were displaced for, where they are gone; forget it where something came between."""
    for name, promise in list(state.promised.items()):
        container, function = state.containers.get(name), state.functions.get(promise.function)
        if container is not None and any(one.state == "ending" for one in container.instances.values()):
            continue
        if container is None or function is None or not container.open or function.deleted:
            del state.promised[name]
        elif state.loads_running(container.node) < state.load_slots.get(container.node, 0):
            del state.promised[name]
            free = function.blocked_until <= state.now and not function.parked and not function.creating
            if free and function.best_level(anywhere=False) < promise.level:
                preload(state, function, container, promise.level, promise.why)


def preload(state: State, function: FunctionState, container: Container, level: Level, why: Why) -> bool:
    """Load or raise ahead in this open container, if its bytes fit now."""
    room = container.room(function)
    if not set(function.spec.mounts) <= set(container.mounts):
        return False
    there = container.of(function)
    if there is None:
        if function.next_price(container.node).bytes(level) > room:
            return False
        containers.load(state, function, container, level, ahead=True, why=why)
        return True
    needed = price(function.costs, there.origin).bytes(level) - there.bytes
    if needed > room or there.level >= level or there.state != "imported":
        return False
    containers.lift(state, there, ahead=True, why=why)
    return True


def by_hand(state: State, token: int, name: str) -> None:
    """`preload NAME`: into the open container with most room; refused with the reason when there is none."""
    function = state.functions.get(name)
    if function is None or function.deleted:
        state.out.append(Answer(token=token, ok=False, message=f"no function {name}"))
        return
    if function.best_level() >= Level.LOADED:
        state.out.append(Answer(token=token, ok=True, message=f"{name} is loaded, or being loaded, already"))
        return
    function.parked = False
    why = Why(rule="by hand", weight=function.price_on().loaded_bytes)
    rooms = [
        c
        for c in state.containers.values()
        if c.open and c.namespace == function.spec.zone and (state.guests[c.node] or c.owner == name)
    ]
    for container in sorted(rooms, key=lambda c: (-c.room(function), c.id)):
        if preload(state, function, container, Level.LOADED, why):
            message = f"pre-loading {name} into the idle memory of {container.id} (owner {container.owner})"
            state.out.append(Answer(token=token, ok=True, message=message))
            return
    needed = function.price_on(rooms[0].node if rooms else None).loaded_bytes >> 20
    most = max((c.room(function) for c in rooms), default=0) >> 20
    message = (
        f"no warm container of namespace {function.spec.zone} has {needed} MB idle (the most is {most} MB);"
        " pre-loading never creates a container: `instainfer pin` does"
        if rooms
        else f"namespace {function.spec.zone} has no idle warm container that may hold {name};"
        " pre-loading never creates one: `instainfer pin` does"
    )
    state.out.append(Answer(token=token, ok=False, message=message))


def offload_by_hand(state: State, token: int, name: str) -> None:
    """`offload NAME`: its idle instances end, and it is not pre-loaded again before a request, a hint or a
    `preload` asks for it."""
    function = state.functions.get(name)
    if function is None:
        state.out.append(Answer(token=token, ok=False, message=f"no function {name}"))
        return
    function.parked = not function.pinned
    idle = [instance for instance in function.instances.values() if instance.evictable]
    for instance in idle:
        containers.offload(state, instance, Why(rule="by hand"))
    busy = len(function.instances) - len(idle)
    message = f"off-loading {len(idle)} instance(s)" + (f"; {busy} are busy or ending" if busy else "")
    state.out.append(Answer(token=token, ok=True, message=message))


def sampled(state: State, container_id: str, sizes: dict[str, int]) -> None:
    """Measured bytes replace expected ones: a running high quantile per function (it rises at once and falls
    slowly), the truth per instance. Over the limit, guests go."""
    container = state.containers.get(container_id)
    if container is None or container.state != "ready":
        return
    for name, size in sizes.items():
        instance = container.instances.get(name)
        if instance is None or instance.state in ("loading", "ending"):
            continue
        instance.bytes = size
        field = _teaches(state, instance)
        if field:
            known: int = getattr(instance.function.costs, field)
            learned = size if size > known else int(known + 0.05 * (size - known))
            instance.function.learn(**{field: learned})
    relieve(state, container)


def _teaches(state: State, instance: Instance) -> str:
    """Which of its function's costs a sample of it is; "" for none. What was forked shares its pages with what
    it was forked from: alone, it would be charged for them as if they were its own."""
    if instance.stale:
        return ""
    if instance.origin is Origin.CLONED:
        return "cloned_bytes" if instance.function.has_template(instance.container.node, but=instance) else ""
    if instance.origin is Origin.FORKED:
        parent = state.zygotes.get(instance.parent)
        shares = parent is not None and parent.state == "ready"
        return "forked_bytes" if shares and instance.level >= Level.LOADED else ""
    return "imported_bytes" if instance.level == Level.IMPORTED else "loaded_bytes"


def relieve(state: State, container: Container) -> None:
    """It holds more than it may: guests go, lowest value first."""
    excess = container.used - int(PRESSURE * container.limit)
    for guest in containers.by_value(state, container) if excess > 0 else ():
        if guest.evictable and guest.function.spec.name != container.owner:
            containers.offload(state, guest, Why(rule="the container nears its limit", weight=excess))
            excess -= guest.bytes
            _squeezed(state, guest)
        if excess <= 0:
            break


def _squeezed(state: State, guest: Instance) -> None:
    """It had to go. The first time its function may be placed anew, as its size is known better now; if what is
    loaded ahead goes again and again before it serves, what is known of it is wrong, and it is left alone."""
    function = guest.function
    if guest.served or guest.stale or function.pinned:
        return
    function.squeezed += 1
    if function.squeezed > 1:
        function.blocked_until = max(function.blocked_until, state.now + backoff_s(function.squeezed - 1))
