"""What is done to library zygotes: started where memory is free, ended for whoever needs it more.

Their memory is the node's, promised in its ledger beside the containers', and no more in all than the node was
told to spend on them (NodeJoined.zygote_memory).
"""

from __future__ import annotations

from collections.abc import Iterator

from instainfer.core.actions import EndZygote, StartZygote, Why
from instainfer.core.libraries import Libraries, Zygote
from instainfer.core.prices import saved_by_fork
from instainfer.core.state import FunctionState, State, backoff_s
from instainfer.policies.base import LibrariesView, ShelfView, ZygoteView

#: Share of its size by which a zygote may hold more than its node has for it: pages are written late, and to end
#: it for a few of them would cost an import.
TOLERATED = 0.1

# ---- whose libraries -----------------------------------------------------------------------------------------


def enlist(state: State, function: FunctionState) -> None:
    """It was deployed, anew or again: whatever was known against its libraries is forgotten."""
    spec = function.spec
    key = spec.name.partition("/")[0], spec.libraries
    forkable = spec.forkable and bool(spec.libraries)
    before = function.libraries
    if before is not None and not (forkable and before is state.libraries.get(key)):
        strike(state, function)
    if not forkable:
        return
    libraries = state.libraries.get(key)
    if libraries is None:
        libraries = state.libraries[key] = Libraries(*key)
    libraries.functions[spec.name] = function
    libraries.refused = ""
    libraries.failures.clear()
    libraries.blocked_until.clear()
    function.libraries = libraries


def strike(state: State, function: FunctionState) -> None:
    """It no longer uses its libraries; where nobody else does, their zygotes end."""
    libraries, function.libraries = function.libraries, None
    if libraries is None:
        return
    libraries.functions.pop(function.spec.name, None)
    if not libraries.functions:
        for zygote in [*libraries.ready.values(), *libraries.starting.values()]:
            end(state, zygote, Why(rule="the last function with these libraries was deleted"))
        _drop(state, libraries)


def _drop(state: State, libraries: Libraries) -> None:
    key = libraries.namespace, libraries.key
    if not libraries.functions and not any(z.libraries is libraries for z in state.zygotes.values()):
        state.libraries.pop(key, None)


# ---- the pass ------------------------------------------------------------------------------------------------


def place(state: State) -> None:
    """Start what the policy wants, as far as memory is there; end what gives way. Not while a request waits for
    memory: all of it is for those."""
    lacking = [libraries for libraries in state.libraries.values() if _lacks(state, libraries)]
    if not lacking or not all(state.homeless(waiting) for waiting in state.starved.values()):
        return
    shelves = [_shelf(state, node) for node in state.open_nodes if state.zygote_memory.get(node)]
    if not any(shelf.slots for shelf in shelves):
        return  # what loads now asks for a pass when it is done
    known = {libraries.name: libraries for libraries in state.libraries.values() if libraries.functions}
    views = [_view(state, known[name]) for name in sorted(known)]
    for one in state.library_policy.plan(views, shelves, state.forecast, state.now):
        for name in one.displaced:
            end(state, state.zygotes[name], Why(rule=f"displaced by other libraries: {one.rule}"))
        start(state, known[one.libraries], one.node, Why(rule=one.rule, saves_s=one.saves_s, weight=one.weight))
    blocked = [at for libraries in lacking for at in libraries.blocked_until.values() if at > state.now]
    if blocked:
        state.ask_for_pass(min(blocked))


def _lacks(state: State, libraries: Libraries) -> bool:
    """Is there a node that has no zygote of these, or one without all that is imported now?"""
    if libraries.refused or not libraries.functions:
        return False
    for node, cap in state.zygote_memory.items():
        if cap and node not in libraries.starting:
            ready = libraries.ready.get(node)
            if ready is None or not libraries.complete(ready):
                return True
    return False


def _view(state: State, libraries: Libraries) -> LibrariesView:
    blocked = {node for node, at in libraries.blocked_until.items() if at > state.now}
    return LibrariesView(
        name=libraries.name,
        bytes=libraries.expected_bytes,
        functions=tuple((name, saved_by_fork(f.costs)) for name, f in sorted(libraries.functions.items())),
        not_on=tuple(sorted(state.zygote_memory if libraries.refused else blocked)),
    )


def _shelf(state: State, node: str) -> ShelfView:
    return ShelfView(
        node=node,
        cap=state.zygote_memory[node],
        free=state.ledger.free(node),
        slots=max(0, state.load_slots[node] - state.loads_running(node)),
        zygotes=tuple(
            ZygoteView(
                zygote=zygote.id,
                libraries=zygote.libraries.name,
                bytes=zygote.bytes,
                complete=zygote.libraries.complete(zygote) or node in zygote.libraries.starting,
                ending=not zygote.live,
            )
            for zygote in _on(state, node)
        ),
    )


def _on(state: State, node: str) -> list[Zygote]:
    return [zygote for zygote in state.zygotes.values() if zygote.node == node]


def room(state: State, node: str) -> int:
    """Bytes that further zygotes may take there now."""
    held = sum(zygote.bytes for zygote in _on(state, node))
    return min(state.ledger.free(node), state.zygote_memory.get(node, 0) - held)


# ---- one zygote ----------------------------------------------------------------------------------------------


def start(state: State, libraries: Libraries, node: str, why: Why) -> bool:
    """If its bytes are free now, and none is being started there."""
    expected, most = libraries.expected_bytes, room(state, node)
    if expected > most or node in libraries.starting:
        return False
    zygote = Zygote(state.next_id("z"), node, libraries, expected, state.now)
    state.ledger.promise(node, expected)
    state.zygotes[zygote.id] = zygote
    libraries.starting[node] = zygote
    state.out.append(
        StartZygote(
            zygote=zygote.id,
            node=node,
            libraries=libraries.key,
            revisions=tuple(f.spec.revision for _, f in sorted(libraries.functions.items())),
            limit=max(most, int(expected * (1.0 + TOLERATED))),
            why=why,
        )
    )
    return True


def end(state: State, zygote: Zygote, why: Why) -> None:
    """From now on nothing is expected to be forked from it; its bytes count until it is gone."""
    if zygote.live:
        zygote.move("end", state.now)
        _forget(zygote)
        state.out.append(EndZygote(zygote=zygote.id, why=why))


def _forget(zygote: Zygote) -> None:
    for there in (zygote.libraries.ready, zygote.libraries.starting):
        if there.get(zygote.node) is zygote:
            del there[zygote.node]


def ready(state: State, name: str, size: int) -> None:
    """It can be forked. One that it replaces ends."""
    zygote = state.zygotes.get(name)
    if zygote is None:
        return
    zygote.move("ready", state.now)
    if zygote.state != "ready":
        return
    libraries, node = zygote.libraries, zygote.node
    del libraries.starting[node]
    libraries.failures.pop(node, None)
    libraries.blocked_until.pop(node, None)
    before = libraries.ready.get(node)
    if _measured(state, zygote, size):
        libraries.ready[node] = zygote
        if before is not None:
            end(state, before, Why(rule=f"{zygote.id} has more of its functions' modules"))
    state.ask_for_pass()


def sampled(state: State, name: str, size: int) -> None:
    zygote = state.zygotes.get(name)
    if zygote is not None and zygote.state == "ready":
        _measured(state, zygote, size)


def _measured(state: State, zygote: Zygote, size: int) -> bool:
    """Promise what it holds in place of what was expected, as far as that is to be had; False where it is far too
    large, and ends."""
    libraries = zygote.libraries
    libraries.measured, libraries.measured_with = size, zygote.modules
    more = size - zygote.bytes
    missing = more - max(room(state, zygote.node), 0)
    if missing > TOLERATED * size:
        why = Why(rule=f"it holds {missing >> 20} MB more than {zygote.node} has for it", weight=size)
        end(state, zygote, why)
        return False
    if more > 0:
        more -= max(missing, 0)
        state.ledger.promise(zygote.node, more)
    else:
        state.ledger.release(zygote.node, -more)
    zygote.bytes += more
    return True


def lost(state: State, name: str, reason: str, *, refused: bool = False) -> None:
    """It is gone, as told or not."""
    zygote = state.zygotes.pop(name, None)
    if zygote is None:
        return
    expected = zygote.state == "ending"
    libraries, node = zygote.libraries, zygote.node
    zygote.move("lost", state.now)
    _forget(zygote)
    state.ledger.release(node, zygote.bytes)
    if refused:
        libraries.refused = reason or "they cannot be forked"
    elif not expected:
        libraries.failures[node] = libraries.failures.get(node, 0) + 1
        libraries.blocked_until[node] = state.now + backoff_s(libraries.failures[node])
    _drop(state, libraries)
    state.ask_for_pass()


def empty(state: State, node: str, why: Why) -> None:
    """All that is there ends."""
    for zygote in _on(state, node):
        end(state, zygote, why)


def node_lost(state: State, node: str) -> None:
    state.zygote_memory.pop(node, None)
    for zygote in _on(state, node):
        zygote.move("lost", state.now)
        del state.zygotes[zygote.id]
        _forget(zygote)
        _drop(state, zygote.libraries)
    for libraries in state.libraries.values():
        libraries.failures.pop(node, None)
        libraries.blocked_until.pop(node, None)


# ---- memory that a request needs -----------------------------------------------------------------------------


def leaving(state: State, node: str) -> int:
    """Bytes of zygotes that are on their way back."""
    return sum(zygote.bytes for zygote in _on(state, node) if not zygote.live)


def offers(state: State, node: str) -> Iterator[list[Zygote]]:
    """Zygotes to end for a request: the least valuable one, the two least valuable ones … all. A zygote beside a
    better one of its key is worth nothing."""

    def value(zygote: Zygote) -> float:
        libraries = zygote.libraries
        if zygote is libraries.starting.get(node) and node in libraries.ready:
            return 0.0
        return state.library_policy.value(_view(state, libraries), state.forecast, state.now)

    live = sorted((z for z in _on(state, node) if z.live), key=lambda zygote: (value(zygote), zygote.id))
    for count in range(1, len(live) + 1):
        yield live[:count]


def give_way(state: State, zygotes: list[Zygote], why: Why) -> None:
    """They end for a request, and are left alone for a while: where memory is short it would be needed again
    before the import has paid."""
    for zygote in zygotes:
        end(state, zygote, why)
        zygote.libraries.blocked_until[zygote.node] = state.now + backoff_s(1)
