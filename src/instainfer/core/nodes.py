"""Nodes that come with something on them, and nodes that take nothing new. How a node is emptied by and by is in
moving.py."""

from __future__ import annotations

from collections.abc import Sequence

from instainfer.core import containers, dispatch, supply, zygotes
from instainfer.core import events as ev
from instainfer.core.actions import DestroyContainer, Offload, Why
from instainfer.core.state import ABSENT_S, Container, FunctionState, Instance, Orphan, State
from instainfer.model import Level


def adopt(state: State, node: str, held: Sequence[ev.HeldContainer]) -> None:
    """What an earlier controller left there goes on, as far as it is of use: containers of functions that are
    deployed, instances of their present versions. The rest ends; it is not known here, so its memory is promised
    anew a moment before it is free, within limits that the kernel holds it to."""
    for one in held:
        owner = state.functions.get(one.function)
        if owner is None or owner.deleted or one.limit > state.ledger.free(node):
            why = Why(rule="it is nobody's any more, or more than the node has now")
            state.out.append(DestroyContainer(container=one.container, why=why))
            continue
        container = Container(one.container, node, owner, one.limit, state.now)
        container.mounts = one.mounts
        state.ledger.promise(node, one.limit)
        state.orphans.pop(container.id, None)
        state.containers[container.id] = container
        container.move("ready", state.now)
        for each in one.instances:
            _adopt(state, container, each)
        if state.watches is not None:
            state.watches.created(state.view(container, residents=False), state.now)
        dispatch.next_in(state, container)
        supply.rest(state, container)


def _adopt(state: State, container: Container, held: ev.HeldInstance) -> None:
    function = state.functions.get(held.function)
    fits = (
        function is not None
        and not function.deleted
        and function.spec.revision == held.revision
        and function.spec.zone == container.namespace
        and container.of(function) is None
        and (held.frozen or container.thawed is None)
    )
    if function is None or not fits:
        state.out.append(Offload(instance=held.instance, why=Why(rule="it is of no version that is deployed")))
        return
    instance = Instance(held.instance, function, container, held.level, state.now)
    instance.move("loaded" if held.level >= Level.LOADED else "imported", state.now)
    instance.level = held.level
    instance.origin = held.origin
    instance.bytes = held.bytes or instance.bytes
    instance.served = held.served
    instance.frozen = held.frozen
    container.instances[instance.id] = function.instances[instance.id] = state.instances[instance.id] = instance
    if not held.frozen:
        container.thawed = instance


def close(state: State, node: str, *, drain: bool) -> list[FunctionState]:
    """Nothing new goes there. Returns those who may have to go elsewhere now."""
    if node not in state.ledger.nodes:
        return []
    state.closed.add(node)
    if drain:
        state.leaving.pop(node, None)
    concerned: dict[str, FunctionState] = {}
    there = [container for container in state.containers.values() if container.node == node]
    for container in there:
        container.closed = True
        container.clearing = None
        reserved, container.reserved = container.reserved, None
        for function in (reserved, *(instance.function for instance in container.instances.values())):
            if function is not None:
                concerned[function.spec.name] = function
    if drain:
        zygotes.empty(state, node, Why(rule="its node is being emptied"))
        for container in there:
            remember(state, container)
            container.leaves_by = None
            container.doomed = True
            supply.rest(state, container)
    state.ask_for_pass()
    return list(concerned.values())


def remember(state: State, container: Container) -> None:
    """It goes with its node, not by its policy, so that another one is to be made in its place; none is where one
    has been, or would not have been kept."""
    owner = state.functions.get(container.owner)
    if container.state != "ready" or container.doomed or owner is None or owner.deleted:
        return
    if replaced(state, container):
        return
    expires = state.keep_alive.expires_at(state.view(container, residents=False))
    until = state.now + ABSENT_S if expires is None else min(expires, state.now + ABSENT_S)
    state.orphans[container.id] = Orphan.of(container, until)


def replaced(state: State, container: Container) -> bool:
    return any(other.replaces == container.id for other in state.containers.values())


def resize(state: State, node: str, memory: int) -> None:
    if node not in state.ledger.nodes:
        return
    state.ledger.resize(node, memory)
    if state.ledger.excess(node):
        supply.shed(state, node)
    supply.feed_starved(state)
    state.ask_for_pass()


def reopen(state: State, node: str) -> None:
    if node not in state.closed and node not in state.leaving:
        return
    state.closed.discard(node)
    state.leaving.pop(node, None)
    for container in [container for container in state.containers.values() if container.node == node]:
        container.closed = False
        container.leaves_by = None
        state.orphans.pop(container.id, None)
        owner = state.functions.get(container.owner)
        container.doomed = owner is None or owner.deleted
        if container.state == "ready":
            dispatch.next_in(state, container)
            containers.settle(state, container)
            supply.rest(state, container)
    supply.feed_starved(state)
    state.ask_for_pass()
