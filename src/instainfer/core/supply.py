"""Instances for requests that wait: which further one is worth starting, where, and who makes room.

A request waits where it is expected to finish first: for an instance that runs, for a load that runs
(single flight: one request never starts a second load), or for a container of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from msgspec.structs import replace

from instainfer.core import containers, dispatch, zygotes
from instainfer.core.actions import SetTimer, Why
from instainfer.core.state import Container, FunctionState, Instance, State
from instainfer.model import Level, Origin
from instainfer.policies.base import ContainerView
from instainfer.policies.routing import Room, choose, draw, homes

#: Where a further instance of either origin begins.
BEGINS = {Origin.SPAWNED: Level.NONE, Origin.FORKED: Level.IMPORTED, Origin.CLONED: Level.LOADED}
NOTICED_S = 0.05  # what the files of a function may cost beyond, without a node being preferred for having them
GIVE_UP_S = 1.0  # a request never waits less than this for a busy instance before a further one is started


def ensure(state: State, function: FunctionState) -> None:
    """See that those who wait for `function` will be served, starting at most one further instance."""
    wanted = function.queue or (function.pinned and not stands(function))
    if wanted and needs_more(state, function):
        start(state, function)
    else:
        state.starved.pop(function.spec.name, None)
    if function.queue and function.timer is None:
        function.timer = state.now + max(function.cold_s, GIVE_UP_S)
        state.out.append(SetTimer(timer=f"queue:{function.spec.name}", at=function.timer))


def stands(function: FunctionState) -> bool:
    """Is it loaded, or being loaded, where it may stay? Where its node is out of reach it may, too."""
    return any(
        not (i.stale or i.container.leaving)
        and (i.level >= Level.LOADED or (i.state == "loading" and i.target >= Level.LOADED))
        for i in function.instances.values()
        if i.state != "ending"
    )


def coming(state: State, function: FunctionState) -> int:
    """Instances that load, containers that are being created for it, room that is being made for it."""
    found = len(function.creating)
    for instance in function.instances.values():
        if instance.state == "loading" and not instance.stale:
            found += 1
    for container in state.containers.values():
        if container.reserved is function:
            found += 1
    return found


def has_supply(state: State, function: FunctionState) -> bool:
    """Is any instance there or coming that could serve those who wait?"""
    there = ("imported", "ready", "running")
    return bool(coming(state, function)) or any(
        i.state in there and not i.stale and not i.container.closed for i in function.instances.values()
    )


def needs_more(state: State, function: FunctionState) -> bool:
    serving = [instance for instance in function.instances.values() if instance.serving]
    soon = coming(state, function)
    if not soon and not serving:
        return True
    if not soon and function.pinned and not stands(function):
        return True  # what serves now leaves
    waiting = len(function.queue)
    if waiting <= soon:
        return False
    if not soon and all(stuck(state, instance) for instance in serving):
        return True
    # Worth it when the last in the queue gains more by it than its load costs.
    slots = len(serving) * function.spec.concurrency + soon
    work = function.service_s * waiting
    node = node_for(state, function)
    one_more_s = function.costs.container_s + function.next_price(node).loading_s
    if node is not None and not function.files_on(node, state.now):
        one_more_s += function.fresh_s
    return work / slots - work / (slots + 1) > one_more_s


def stuck(state: State, instance: Instance) -> bool:
    """What runs in it, or in its container, has run for so long that the mean says little."""
    running = instance.container.active
    if running is None or not running.running:
        return False
    since = min(request.dispatched for request in running.running.values())
    return state.now >= since + max(instance.function.cold_s, GIVE_UP_S)


def start(state: State, function: FunctionState) -> None:
    """One more instance, or memory for one: until it is there the function waits in `starved`."""
    if state.keep_alive.conduct.in_line and next(_in_line(state), function) is not function:
        state.starved.setdefault(function.spec.name, function)  # not its turn
    elif begin(state, function):
        state.starved.pop(function.spec.name, None)
    else:
        state.starved.setdefault(function.spec.name, function)
        if not state.homeless(function):
            make_room(state, function)


def _in_line(state: State) -> Iterator[FunctionState]:
    return (waiting for waiting in state.starved.values() if not state.homeless(waiting))


def begin(state: State, function: FunctionState) -> bool:
    """Raise an instance that has its libraries, else load into an idle container that is the function's own,
    else create a container; refuse what can never fit. False where memory is missing."""
    request = function.queue[0].id if function.queue else None
    why = "a request waits and no instance can take it" if function.queue else "it is pinned"
    for instance in function.instances.values():
        if instance.state == "imported" and not instance.stale and instance.container.open:
            instance.for_request = request
            rule = f"{why}: its libraries are ready, load its model"
            containers.lift(state, instance, ahead=False, why=Why(rule=rule))
            return True
    if into_own(state, function, request, why) or (state.lends and into_lent(state, function, request, why)):
        return True
    need, largest = function.spec.memory, state.ledger.largest
    if not largest:
        return False  # no node is there yet, or any more
    if need > largest and state.returning(need):
        return False  # its node is gone, but not for long: whoever waits does so as for any other
    if need > largest:
        reason = f"it declares {need >> 20} MB and no node has more than {largest >> 20} MB for containers"
        dispatch.reject_queue(state, function, "overloaded", reason)
        return True
    allowed = state.allowances.get(function.spec.tenant, need)
    if need > allowed:
        reason = f"it declares {need >> 20} MB and its namespace's quota is {allowed >> 20} MB"
        dispatch.reject_queue(state, function, "over_quota", reason)
        return True
    if over_allowance(state, function):
        return False
    node = node_for(state, function)
    if node is None:
        return False
    containers.create(state, function, node, Why(rule=f"{why}: a container of its own"))
    return True


def over_allowance(state: State, function: FunctionState) -> int:
    """Bytes that its namespace's containers would have too many with a further one of this function; 0: none."""
    allowed = state.allowances.get(function.spec.tenant) if state.allowances else None
    if allowed is None:
        return 0
    there = sum(one.limit for one in state.containers.values() if one.tenant == function.spec.tenant)
    return max(0, there + function.spec.memory - allowed)


def node_for(state: State, function: FunctionState, among: Sequence[str] | None = None) -> str | None:
    """Where (`among` these nodes) a container of its own fits now: rather where it can be cloned, then where it
    can be forked, then where its files are, then near its homes."""
    ledger, memory, now = state.ledger, function.spec.memory, state.now
    open_nodes = state.open_nodes
    fits = [node for node in (open_nodes if among is None else among) if ledger.free(node) >= memory]
    if len(fits) < 2:
        return fits[0] if fits else None
    own: dict[str, int] = {}
    for container in state.containers.values():
        if container.owner == function.spec.name:
            own[container.node] = own.get(container.node, 0) + 1
    rooms = [
        Room(
            node=node,
            promised=ledger.promised(node),
            memory=ledger.memory(node),
            level=BEGINS[function.next_price(node).origin],
            files=function.fresh_s > NOTICED_S and function.files_on(node, now),
            own=own.get(node, 0),
        )
        for node in fits
    ]
    mean = sum(ledger.promised(node) for node in open_nodes) / sum(ledger.memory(node) for node in open_nodes)
    rate = state.forecast.rate(function.spec.name, now)
    return choose(function.spec.name, rooms, mean, homes(rate, function.service_s, function.spec.concurrency))


def into_own(state: State, function: FunctionState, request: int | None, why: str) -> bool:
    """Load into an idle container that it owns and is not in, making room among its guests if need be."""
    name = function.spec.name
    for container in state.containers.values():
        if container.owner != name or not container.open or container.of(function):
            continue
        if set(function.spec.mounts) <= set(container.mounts):
            rule = f"{why}: into its own container"
            if into(state, function, container, request, rule, "the container's owner needs the room"):
                return True
    return False


def into_lent(state: State, function: FunctionState, request: int | None, why: str) -> bool:
    """The same with one that the keep-alive policy lets it take over from another function of its tenant."""
    offered = [
        container
        for container in state.containers.values()
        if container.namespace == function.spec.zone
        and container.owner != function.spec.name
        and container.open
        and container.quiet
        and not container.of(function)
        and state.guests[container.node]
        and not state.pinned(container)
        and set(function.spec.mounts) <= set(container.mounts)
        and function.next_price(container.node).loaded_bytes <= container.limit
    ]
    views = [state.view(container, residents=False) for container in offered]
    chosen = state.lends.lend(function.spec.name, views, state.now) if state.lends and views else None
    if chosen is None:
        return False
    rule = f"{why}: into a container that was lent"
    return into(state, function, state.containers[chosen], request, rule, "the container was lent")


def into(
    state: State, function: FunctionState, container: Container, request: int | None, rule: str, cleared: str
) -> bool:
    """Load into this open container, at once or when enough of its guests have made room; False if they cannot."""
    missing = function.next_price(container.node).loaded_bytes - container.free
    if missing <= 0:
        load = containers.load(state, function, container, Level.LOADED, ahead=False, why=Why(rule=rule))
        load.for_request = request
        return True
    guests = [guest for guest in containers.by_value(state, container) if guest.evictable]
    leaving = sum(guest.bytes for guest in container.instances.values() if guest.state == "ending")
    if sum(guest.bytes for guest in guests) + leaving < missing:
        return False
    container.reserved = function
    missing -= leaving
    for guest in guests:
        if missing <= 0:
            break
        containers.offload(state, guest, Why(rule=cleared))
        missing -= guest.bytes
    return True


def make_room(state: State, function: FunctionState) -> None:
    """Destroy what the keep-alive policy names so that the function's container fits on some node; where that
    is not enough on any, zygotes end too, the least valuable first: they are never in the way of a request."""
    conduct = state.keep_alive.conduct
    if short := over_allowance(state, function):
        there = [one for one in state.containers.values() if one.tenant == function.spec.tenant]
        short -= sum(one.limit for one in there if one.state == "destroying")
        quiet, views = offered(state, [one for one in there if one.state == "ready"])
        if short > 0:
            why = Why(rule="its namespace's quota is used up", weight=function.spec.memory)
            for victim in state.keep_alive.victims(quiet, short, state.now, alive=views):
                containers.destroy(state, state.containers[victim], why)
        return
    missing = _missing(state, function)
    if min(missing.values()) <= 0:
        return  # enough is on its way
    quiet_on, views = _offered_by_node(state)
    order = _least_loss_first(state, function, missing, quiet_on)
    for zygotes_too in (False, True) if state.zygotes else (False,):
        for node in order:
            short, quiet = missing[node], quiet_on.get(node, [])
            for ending in zygotes.offers(state, node) if zygotes_too else [[]]:
                rest = short - sum(zygote.bytes for zygote in ending)
                victims: list[str] = []
                if conduct.whole and rest > 0:
                    whole = rest + state.ledger.free(node)
                    victims = state.keep_alive.victims(quiet, whole, state.now, alive=views)
                if rest > 0 and not victims:
                    victims = state.keep_alive.victims(quiet, rest, state.now, alive=views)
                if rest <= 0 or victims:
                    tenant = function.spec.tenant
                    for victim in victims:
                        container = state.containers[victim]
                        containers.destroy(state, container, needed(function, ours=container.tenant == tenant))
                    for zygote in ending:
                        zygotes.give_way(
                            state, [zygote], needed(function, ours=zygote.libraries.namespace == tenant)
                        )
                    return
    if conduct.drops and state.ledger.largest and not has_supply(state, function):
        state.starved.pop(function.spec.name, None)
        reason = f"no eviction makes room for its container of {function.spec.memory >> 20} MB"
        dispatch.reject_queue(state, function, "overloaded", reason)


def _missing(state: State, function: FunctionState) -> dict[str, int]:
    """Bytes that its container lacks on each node that could hold it, what is on its way back there counted in."""
    need, ledger = function.spec.memory, state.ledger
    missing = {
        node: need - ledger.free(node) + ledger.excess(node)
        for node in state.open_nodes
        if ledger.memory(node) >= need
    }
    for container in state.containers.values():
        if container.state == "destroying" and container.node in missing:
            missing[container.node] -= container.limit
    if state.zygotes:
        for node in missing:
            missing[node] -= zygotes.leaving(state, node)
    return missing


def _offered_by_node(state: State) -> tuple[dict[str, list[ContainerView]], list[ContainerView]]:
    """What the keep-alive policy may choose victims from, by node, and what it may look at: all that is there."""
    quiet, views = offered(state, [one for one in state.containers.values() if one.state == "ready"])
    by_node: dict[str, list[ContainerView]] = {}
    for view in quiet:
        by_node.setdefault(view.node, []).append(view)
    return by_node, views


def _least_loss_first(
    state: State, function: FunctionState, missing: dict[str, int], quiet: dict[str, list[ContainerView]]
) -> list[str]:
    """The nodes that could make room, in order of what would be lost there; of equals the nearest to its home."""
    if len(missing) < 2:
        return list(missing)
    weigh, now, name = state.keep_alive.weigh, state.now, function.spec.name
    losses: dict[str, float] = {}
    for node, short in missing.items():
        lost = 0.0
        for weight, size in sorted((weigh(view, now), view.limit) for view in quiet.get(node, ())):
            if short <= 0:
                break
            lost += weight
            short -= size
        losses[node] = lost if short <= 0 else inf
    return sorted(missing, key=lambda node: (losses[node], -draw(name, node)))


def needed(function: FunctionState, *, ours: bool) -> Why:
    """Why memory goes to this function; whose memory it was need not know what others have."""
    whom = function.spec.name if ours else "another namespace"
    return Why(rule=f"its memory is needed for a container of {whom}", weight=function.spec.memory)


def offered(state: State, alive: list[Container]) -> tuple[list[ContainerView], list[ContainerView]]:
    """What the keep-alive policy may choose victims from, and what it may look at; what is in them does not
    concern it. A container in the middle of a pre-load is as good a victim as an idle one."""
    views = [state.view(container, residents=False) for container in alive]
    quiet = [
        view if view.idle else replace(view, idle=True)
        for container, view in zip(alive, views, strict=True)
        if container.quiet
    ]
    return quiet, views


def prewarm(state: State) -> None:
    """Create the containers that the keep-alive policy wants ahead of requests, in free memory only."""
    if state.prewarms is None:
        return
    due, next_at = state.prewarms.prewarm(state.now)
    for name in due:
        function = state.functions.get(name)
        if function is None or function.deleted:
            continue
        if not state.keep_alive.conduct.spare and (function.creating or has_idle(state, function)):
            continue
        if over_allowance(state, function):
            continue
        node = node_for(state, function)
        if node is not None:
            containers.create(state, function, node, Why(rule="the keep-alive policy expects a request"))
    if next_at is not None and next_at != state.prewarm_at:
        state.prewarm_at = next_at
        state.out.append(SetTimer(timer="prewarm", at=max(next_at, state.now)))


def has_idle(state: State, function: FunctionState) -> bool:
    """Is there an idle container of its own, as far as the keep-alive policy is concerned?"""
    return any(
        container.owner == function.spec.name and container.quiet and not (container.doomed or container.leaving)
        for container in state.containers.values()
    )


def forget(state: State, instance: Instance) -> None:
    """It is gone: drop it, and let those go on who waited for its room."""
    containers.release(instance)
    container, function = instance.container, instance.function
    container.instances.pop(instance.id, None)
    function.instances.pop(instance.id, None)
    state.instances.pop(instance.id, None)
    if function.deleted and not function.instances and state.functions.get(function.spec.name) is function:
        del state.functions[function.spec.name]
    state.ask_for_pass()
    if container.state != "ready":
        return
    if container.clearing is not None and len(container.instances) == 1:
        container.clearing = None
    if container.reserved is not None and not any(i.state == "ending" for i in container.instances.values()):
        waiting, container.reserved = container.reserved, None
        ensure(state, waiting)
    dispatch.next_in(state, container)
    containers.settle(state, container)
    containers.import_anew(state, container)
    rest(state, container)


def rest(state: State, container: Container) -> None:
    """It may be at rest now: see to its expiry, and whether its memory is what others wait for."""
    if not container.quiet:
        return
    if container.doomed:
        rule = "its function was deleted"
        if container.closed or container.node in state.leaving:
            rule = "its node is being emptied"
        elif container.leaving:
            rule = "it has moved to another node"
        containers.destroy(state, container, Why(rule=rule))
        return
    if state.ledger.excess(container.node):
        shed(state, container.node)
        if container.state != "ready":
            return
    if container.timer is None:
        expires = state.keep_alive.expires_at(state.view(container, residents=False))
        if expires is not None:
            container.timer = max(expires, state.now)
            state.out.append(SetTimer(timer=f"expire:{container.id}", at=container.timer))
    if state.starved:
        feed_starved(state)


def shed(state: State, node: str) -> None:
    """More is promised there than it has: what loses least ends, as far as it is idle; then zygotes. What runs is
    looked at when it is done."""
    there = [one for one in state.containers.values() if one.node == node]
    over = state.ledger.excess(node) - zygotes.leaving(state, node)
    over -= sum(one.limit for one in there if one.state == "destroying")
    why = Why(rule="its node has less memory than it had", weight=over)
    quiet, _ = offered(state, [one for one in there if one.state == "ready"])
    weigh = state.keep_alive.weigh
    for view in sorted(quiet, key=lambda view: (weigh(view, state.now), view.id)):
        if over > 0 and not view.pinned:
            containers.destroy(state, state.containers[view.id], why)
            over -= view.limit
    if over > 0:
        for ending in zygotes.offers(state, node):
            if sum(zygote.bytes for zygote in ending) >= over:
                break
        else:
            ending = [zygote for zygote in state.zygotes.values() if zygote.node == node]
        zygotes.give_way(state, ending, why)


def feed_starved(state: State) -> None:
    """Memory may have come free: for the namespace that has least of it, and of one namespace for the function
    that waited longest, so that nobody is kept out by how much somebody else asks for. Who waits for its own
    namespace's memory, or for a node that is large enough, is in nobody's way."""
    waiting = list(state.starved.items())
    if not state.keep_alive.conduct.in_line and len(waiting) > 1:
        held: dict[str, int] = {}
        for container in state.containers.values():
            held[container.tenant] = held.get(container.tenant, 0) + container.limit
        waiting.sort(key=lambda item: held.get(item[1].spec.tenant, 0))
    for name, function in waiting:
        ensure(state, function)
        if name in state.starved and not over_allowance(state, function) and not state.homeless(function):
            return
