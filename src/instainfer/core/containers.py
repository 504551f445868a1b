"""What is done to one container: who executes in it, what is loaded and ended, how large it is."""

from __future__ import annotations

from instainfer.core.actions import (
    CreateContainer,
    DestroyContainer,
    Freeze,
    Load,
    Offload,
    Raise,
    ResizeContainer,
    Thaw,
    Why,
)
from instainfer.core.prices import price
from instainfer.core.state import Container, FunctionState, Instance, Orphan, State
from instainfer.model import Level


def expose(state: State, instance: Instance) -> None:
    """Make it the one thawed instance of its container."""
    container = instance.container
    if container.thawed is not instance:
        if container.thawed is not None:
            freeze(state, container.thawed)
        container.thawed = instance
    if instance.frozen:
        instance.frozen = False
        state.out.append(Thaw(instance=instance.id))


def freeze(state: State, instance: Instance) -> None:
    if not instance.frozen:
        instance.frozen = True
        state.out.append(Freeze(instance=instance.id))
    if instance.container.thawed is instance:
        instance.container.thawed = None


def load(
    state: State, function: FunctionState, container: Container, level: Level, *, ahead: bool, why: Why
) -> Instance:
    """Start an instance. The container must be open; the load becomes what executes in it."""
    instance = Instance(state.next_id("i"), function, container, level, state.now)
    container.instances[instance.id] = instance
    function.instances[instance.id] = instance
    state.instances[instance.id] = instance
    container.active = instance
    container.imports = False
    expose(state, instance)
    state.out.append(
        Load(
            instance=instance.id,
            container=container.id,
            function=function.spec.name,
            revision=instance.revision,
            level=level,
            ahead=ahead,
            waiting=bool(function.queue),
            why=why,
        )
    )
    return instance


def lift(state: State, instance: Instance, *, ahead: bool, why: Why) -> None:
    """Raise an imported instance to loaded."""
    instance.move("raise", state.now)
    instance.started = state.now
    instance.started_level = instance.level
    instance.target = Level.LOADED
    instance.bytes = max(instance.bytes, price(instance.function.costs, instance.origin).loaded_bytes)
    instance.container.active = instance
    expose(state, instance)
    state.out.append(Raise(instance=instance.id, level=Level.LOADED, ahead=ahead, why=why))


def offload(state: State, instance: Instance, why: Why) -> None:
    """End it. Whatever it was doing in the container, it no longer does; its bytes count until it is gone."""
    if instance.state == "ending":
        return
    instance.move("offload", state.now)
    release(instance)
    state.out.append(Offload(instance=instance.id, why=why))


def release(instance: Instance) -> None:
    """It neither loads nor runs nor is waited for in its container any more."""
    container = instance.container
    if container.active is instance:
        container.active = None
    if container.suspended is instance:
        container.suspended = None
    if container.clearing is instance:
        container.clearing = None
    if container.thawed is instance:
        container.thawed = None
    if instance.function.latest is instance:
        instance.function.latest = None


def by_value(state: State, container: Container) -> list[Instance]:
    """Its instances, the least valuable first."""
    return sorted(container.instances.values(), key=lambda instance: (state.value(instance), instance.id))


def settle(state: State, container: Container) -> None:
    """Bring the limit to what its owner declares, as far as the node's ledger and the guests permit: growing
    takes free memory only; shrinking off-loads the guests of lowest value until the rest fits, and happens
    once they are gone."""
    owner = state.functions.get(container.owner)
    if owner is None or container.state != "ready":
        return
    change = owner.spec.memory - container.limit
    if change > 0:
        change = min(change, state.ledger.free(container.node))
        if change > 0:
            state.ledger.promise(container.node, change)
    elif change < 0:
        excess = container.used - owner.spec.memory
        if excess > 0:
            why = Why(rule="the container's limit is its new owner's: guests that no longer fit go")
            for guest in by_value(state, container):
                if guest.function is not owner and guest.evictable:
                    offload(state, guest, why)
                    excess -= guest.bytes
                if excess <= 0:
                    break
            return
        state.ledger.release(container.node, -change)
    if change:
        container.limit += change
        state.out.append(ResizeContainer(container=container.id, limit=container.limit))


def create(state: State, function: FunctionState, node: str, why: Why, like: Orphan | None = None) -> None:
    """One of its own; `like`: in place of that one, as far as the keep-alive policy is concerned. Without that it
    is what any container of the function that was remembered would be made anew for."""
    container = Container(state.next_id("c"), node, function, function.spec.memory, state.now)
    mounts = {
        mount
        for other in state.functions.values()
        if other.spec.mounts and other.spec.zone == container.namespace
        for mount in other.spec.mounts
    }
    container.mounts = tuple(sorted(mounts))
    if like is None:
        like = next((one for one in state.orphans.values() if one.function == function.spec.name), None)
    else:
        container.replaces, container.last_used, container.uses = like.container, like.last_used, like.uses
    if like is not None:
        state.orphans.pop(like.container, None)
    state.ledger.promise(node, container.limit)
    state.containers[container.id] = container
    function.creating[container.id] = container
    state.out.append(
        CreateContainer(
            container=container.id,
            node=node,
            function=function.spec.name,
            revision=function.spec.revision,
            limit=container.limit,
            mounts=container.mounts,
            why=why,
        )
    )


def strip(state: State, container: Container, why: Why, *, imports: bool = False) -> None:
    """End what is in it, and keep it; with `imports` its owner's libraries are there when that is done. Only ever
    called for the keep-alive policy."""
    container.imports = imports
    for instance in list(container.instances.values()):
        mine = instance.function.spec.name == container.owner and not instance.stale
        if imports and mine and instance.state == "imported":
            container.imports = False
        elif instance.evictable or instance.state == "loading":
            offload(state, instance, why)
    import_anew(state, container)


def import_anew(state: State, container: Container) -> None:
    """Load its owner's libraries into it, if they are to be there and nothing else is."""
    owner = state.functions.get(container.owner)
    if not container.imports or container.instances or not container.open or owner is None:
        return
    container.imports = False
    expected = owner.next_price(container.node)
    if expected.import_s > 0.0 and expected.imported_bytes <= container.limit and not owner.deleted:
        why = Why(rule="the keep-alive policy keeps its libraries", saves_s=expected.import_s)
        load(state, owner, container, Level.IMPORTED, ahead=True, why=why)


def destroy(state: State, container: Container, why: Why) -> None:
    """Only ever called for the keep-alive policy, a deletion or a node: never for a pre-load's sake."""
    container.move("destroy", state.now)
    for instance in list(container.instances.values()):
        if instance.state != "ending":
            instance.move("offload", state.now)
        release(instance)
    container.active = container.suspended = container.clearing = container.thawed = None
    container.reserved = None
    state.out.append(DestroyContainer(container=container.id, why=why))
