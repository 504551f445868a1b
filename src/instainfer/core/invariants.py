"""What holds after every event, whatever came. Tests check it each time; `check` raises AssertionError."""

from __future__ import annotations

from instainfer.core.state import State
from instainfer.core.views import Views


def check(state: State) -> None:
    promised: dict[str, int] = dict.fromkeys(state.ledger.nodes, 0)
    for container in state.containers.values():
        promised[container.node] = promised.get(container.node, 0) + container.limit
        _container(state, container.id)
        assert container.closed == (container.node in state.closed), f"{container.id} is open as its node is not"
        assert not (container.node in state.leaving and not container.leaving), (
            f"{container.id} stays, its node goes"
        )
        assert container.node in state.ledger.nodes, f"{container.id} outlives its node"
    for zygote in state.zygotes.values():
        promised[zygote.node] += zygote.bytes
    for node, total in promised.items():
        assert total == state.ledger.promised(node), (
            f"{node}: {state.ledger.promised(node)} in the ledger, {total} promised"
        )
        assert total <= state.ledger.memory(node) + state.ledger.excess(node), (
            f"{node} promises {total} of {state.ledger.memory(node)}"
        )
    for name, instance in state.instances.items():
        assert instance.container.instances.get(name) is instance, f"{instance.who} is not in its container"
        assert instance.function.instances.get(name) is instance, f"{instance.who} is not known to its function"
    _zygotes(state)
    _remembered_views(state)
    waiting = 0
    for function in state.functions.values():
        for request in function.queue:
            waiting += 1
            assert request.instance is None and state.requests.get(request.id) is request
        assert not (function.queue and function.deleted), f"{function.spec.name} is deleted and has a queue"
    running = sum(len(instance.running) for instance in state.instances.values())
    assert waiting + running == len(state.requests), (
        f"{len(state.requests)} requests accepted, {waiting} wait and {running} run: one is lost or doubled"
    )


def _remembered_views(state: State) -> None:
    """What is shown of them is what they are."""
    shown = state.snapshot()
    kept, state.views = state.views, Views()
    assert state.snapshot() == shown, "a view is out of date"
    state.views = kept


def _zygotes(state: State) -> None:
    for node, cap in state.zygote_memory.items():
        total = sum(zygote.bytes for zygote in state.zygotes.values() if zygote.node == node)
        assert total <= cap, f"{node}: zygotes hold {total} of {cap} bytes"
    for name, zygote in state.zygotes.items():
        libraries, node = zygote.libraries, zygote.node
        assert zygote.id == name and zygote.state != "gone", f"{zygote.who} is kept under {name}"
        assert node in state.zygote_memory, f"{zygote.who} outlives its node"
        assert state.libraries.get((libraries.namespace, libraries.key)) is libraries, f"{zygote.who} is of no key"
        assert libraries.functions or not zygote.live, f"{zygote.who} lives for nobody"
        # Two live ones of a key on a node only while one is to replace the other.
        there = libraries.ready if zygote.state == "ready" else libraries.starting
        assert (there.get(node) is zygote) == zygote.live, f"{zygote.who} ({zygote.state}) is not where it belongs"
    for key, libraries in state.libraries.items():
        for zygote in [*libraries.ready.values(), *libraries.starting.values()]:
            assert state.zygotes.get(zygote.id) is zygote, f"{zygote.who} is gone and still offered"
        for name, function in libraries.functions.items():
            assert state.functions.get(name) is function and function.libraries is libraries
            assert (name.partition("/")[0], function.spec.libraries) == key, f"{name} is outside its namespace"
    for function in state.functions.values():
        listed = function.spec.forkable and bool(function.spec.libraries) and not function.deleted
        assert (function.libraries is not None) == listed, f"{function.spec.name} and its libraries"


def _container(state: State, name: str) -> None:
    container = state.containers[name]
    busy = [i for i in container.instances.values() if i.running or i.state == "running"]
    assert len(busy) <= 1, f"{name}: {len(busy)} functions run at once"
    if busy:
        assert container.active is busy[0], f"{name}: {busy[0].who} runs unnoticed"
    thawed = [i for i in container.instances.values() if not i.frozen and i.state != "ending"]
    assert len(thawed) <= 1, f"{name}: {[i.id for i in thawed]} may execute at once"
    loading = [i for i in container.instances.values() if i.state == "loading"]
    for instance in loading:
        assert instance is container.active or instance is container.suspended, f"{instance.who} loads unnoticed"
    names = [i.function.spec.name for i in container.instances.values() if i.state != "ending"]
    assert len(names) == len(set(names)), f"{name}: one function twice"
    for instance in container.instances.values():
        assert instance.function.spec.zone == container.namespace, f"{instance.who} is outside its namespace"
        # A redeployment with a lower concurrency leaves what runs alone.
        assert instance.stale or len(instance.running) <= instance.function.spec.concurrency
    if container.state == "creating":
        assert not container.instances, f"{name} holds instances before it is ready"
