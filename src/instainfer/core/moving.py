"""Containers that go from one node to another: off a node that is emptied, onto one that has come, and anew where
theirs was lost.

What moves serves until it stands elsewhere. Its owner gets a container there, in free memory only; what else is
in it no longer counts as there, so that placement passes load it into idle memory of nodes that stay. Both keep to
the loads that a node can take at a time. How many containers there are stays the keep-alive policy's decision: one
that could not be moved, or went with its node, is remembered, and made anew when there is memory for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from instainfer.core import containers, nodes, supply
from instainfer.core.actions import SetTimer, Why
from instainfer.core.state import Container, FunctionState, Instance, Orphan, State
from instainfer.model import Level
from instainfer.policies.routing import SLACK, draw

LOOK_S, BUSY_S = 0.25, 1.0  # between looks while something moves, and while requests wait for memory
MOVE_S = 120.0  # a container that does not stand on a node that has come by then stays where it is
GAIN = 0.05  # of a node's memory: what the fuller of two nodes must lose by a move for it to be worth a load


def ask(state: State, delay: float = LOOK_S) -> None:
    """A look soon, if there is anything to look at."""
    if not (state.leaving or state.orphans or state.uneven):
        return
    at = state.now + delay
    if state.look_at is None or at < state.look_at:
        state.look_at = at
        state.out.append(SetTimer(timer="move", at=at))


def leave(state: State, node: str, within_s: float) -> list[FunctionState]:
    """Nothing new goes there, and what is there serves until it stands elsewhere, at most so long. Returns those
    who may have to go elsewhere now."""
    if node not in state.ledger.nodes or node in state.closed:
        return nodes.close(state, node, drain=True)
    by = state.leaving[node] = state.now + within_s
    state.restless_at = state.now
    concerned: dict[str, FunctionState] = {}
    for container in _on(state, node):
        container.leaves_by = by
        reserved, container.reserved = container.reserved, None
        for function in (reserved, *(instance.function for instance in container.instances.values())):
            if function is not None and (function.pinned or function is reserved):
                concerned[function.spec.name] = function
    state.ask_for_pass()
    return [*concerned.values(), *look(state)]


def look(state: State) -> list[FunctionState]:
    """One step of all that moves. Returns those who may have to go elsewhere now."""
    state.look_at = None
    if _unrest(state):
        state.restless_at = state.now
    concerned: list[FunctionState] = []
    going = [one for one in state.containers.values() if one.leaving]
    for container in sorted(going, key=lambda one: (-_value(state, one), one.id)):
        _step(state, container)
    for node, by in list(state.leaving.items()):
        undecided = [one for one in _on(state, node) if one.state != "destroying" and not one.doomed]
        if by <= state.now or not undecided or not state.open_nodes:
            concerned += nodes.close(state, node, drain=True)
    _make_anew(state)
    if state.uneven and not any(one.leaving for one in state.containers.values()):
        state.uneven = _even_out(state)
    if any(one.leaving for one in state.containers.values()) and state.passed_at <= state.restless_at:
        state.ask_for_pass()
    if state.leaving or state.uneven or (state.orphans and _unrest(state)):
        ask(state)
    elif state.orphans and state.starved:
        ask(state, BUSY_S)
    return concerned


def _on(state: State, node: str) -> list[Container]:
    return [container for container in state.containers.values() if container.node == node]


def _value(state: State, container: Container) -> float:
    """Expected seconds saved per second by what is in it."""
    return sum(state.value(one) * one.bytes for one in container.instances.values())


# ---- one container -------------------------------------------------------------------------------------------


def _step(state: State, container: Container) -> None:
    if container.state != "ready" or container.doomed:
        return
    must = container.node in state.leaving
    if not must and not nodes.replaced(state, container):
        container.leaves_by = None  # it could not be made elsewhere
        state.uneven = False
        return
    lacking = [one.function for one in container.instances.values() if not _stands_elsewhere(one)]
    owner = state.functions.get(container.owner)
    if owner is not None and owner in lacking and not _coming(state, owner):
        others = [node for node in state.open_nodes if node != container.node]
        _make(state, owner, Orphan.of(container, inf), others, f"{container.node} is being emptied")
    over = state.now >= (container.leaves_by or inf)
    if lacking and not over and (any(_coming(state, one) for one in lacking) or not _hopeless(state)):
        return
    if lacking and not must:
        container.leaves_by = None
        state.uneven = False
    else:
        _end(state, container)


def _end(state: State, container: Container) -> None:
    """When nothing runs there and nobody waits for it."""
    nodes.remember(state, container)
    container.doomed = True
    supply.rest(state, container)


def _stands_elsewhere(instance: Instance) -> bool:
    """… at its level, where it may stay; also where it is not worth it."""
    if instance.stale or instance.level == Level.NONE or instance.state == "ending":
        return True
    return any(
        other.level >= instance.level and other.state in ("imported", "ready", "running")
        for other in instance.function.instances.values()
        if not other.stale and other.container.stays
    )


def _coming(state: State, function: FunctionState) -> bool:
    """Is it being loaded, or is room being made for it, where it may stay?"""
    if any(one.stays for one in function.creating.values()):
        return True
    if any(
        one.state == "loading" and one.container.stays and not one.stale for one in function.instances.values()
    ):
        return True
    if any(promise.function == function.spec.name for promise in state.promised.values()):
        return True
    return any(one.reserved is function and one.stays for one in state.containers.values())


def _unrest(state: State) -> bool:
    """Does anything come up on nodes that stay, or has it since this was last so?"""
    if state.promised or any(state.loads_running(node) for node in state.open_nodes):
        return True
    if any(one.state == "creating" and one.stays for one in state.containers.values()):
        return True
    return any(one.ready_at > state.restless_at and one.container.stays for one in state.instances.values())


def _hopeless(state: State) -> bool:
    """A placement pass with nothing else under way has loaded nothing: what does not stand by now will not."""
    return state.restless_at < state.now and (state.passed_at > state.restless_at or not state.policy.plans)


# ---- a container of its own ----------------------------------------------------------------------------------


def _make(state: State, function: FunctionState, like: Orphan, among: Sequence[str], why: str) -> bool:
    """… where it is best `among` these nodes; in free memory, where a load is to be had. False where neither."""
    if function.deleted or function.blocked_until > state.now or supply.over_allowance(state, function):
        return False
    node = supply.node_for(state, function, [node for node in among if _slots(state, node) > 0])
    if node is None:
        return False
    containers.create(state, function, node, Why(rule=f"in place of {like.container}: {why}"), like)
    return True


def _slots(state: State, node: str) -> int:
    """Further loads that the node can take."""
    creating = sum(1 for one in _on(state, node) if one.state == "creating")
    return state.load_slots.get(node, 0) - state.loads_running(node) - creating


def _make_anew(state: State) -> None:
    """What was remembered, those used last first; not while a request waits for memory."""
    for name, orphan in list(state.orphans.items()):
        function = state.functions.get(orphan.function)
        if function is None or function.deleted or orphan.until <= state.now:
            del state.orphans[name]
    if not state.orphans:
        return
    if not all(state.homeless(waiting) for waiting in state.starved.values()):
        return
    wanted = sorted(state.orphans.values(), key=lambda one: (-one.last_used, one.container))
    for one in wanted:
        _make(state, state.functions[one.function], one, state.open_nodes, "that went with its node")


# ---- a node that has come ------------------------------------------------------------------------------------


def _even_out(state: State) -> bool:
    """Have one container move from the fullest node to the emptiest, if that is far fuller than the mean and less
    so then. False where nothing is to be gained."""
    if _unrest(state):
        return True
    ledger, open_nodes = state.ledger, [node for node in state.open_nodes if state.ledger.memory(node)]
    if len(open_nodes) < 2:
        return False
    full = {node: ledger.promised(node) / ledger.memory(node) for node in open_nodes}
    mean = sum(map(ledger.promised, open_nodes)) / sum(map(ledger.memory, open_nodes))
    source = max(open_nodes, key=lambda node: (full[node], node))
    if full[source] <= (1.0 + SLACK) * mean:
        return False
    best: tuple[float, int, str, Container, FunctionState, str] | None = None
    for container in _on(state, source):
        owner = state.functions.get(container.owner)
        if owner is None or owner.deleted or not container.open or container.of(owner) is None:
            continue
        for node in open_nodes:
            size = owner.spec.memory
            if node == source or ledger.free(node) < size or _slots(state, node) <= 0:
                continue
            then = max(
                full[source] - container.limit / ledger.memory(source), full[node] + size / ledger.memory(node)
            )
            if full[source] - then >= GAIN:
                found = (full[source] - then, draw(owner.spec.name, node), container.id, container, owner, node)
                if best is None or found[:3] > best[:3]:
                    best = found
    if best is None:
        return False
    *_, container, owner, node = best
    if _make(state, owner, Orphan.of(container, inf), [node], f"{source} is far fuller"):
        container.leaves_by = state.now + MOVE_S
        state.restless_at = state.now
    return True
