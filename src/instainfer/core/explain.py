"""Why an invocation started as it did: replayed, not remembered.

Feed the same events to a platform in the same state and watch what it decides. Whatever is told here came
out of that replay; `Explanation.start` is to be compared with the record by the caller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from instainfer.core import actions as act
from instainfer.core import zygotes
from instainfer.core.events import AnyEvent, InstanceFailed, RequestArrived, ZygoteLost
from instainfer.core.platform import Platform
from instainfer.core.state import FunctionState, State
from instainfer.policies.base import HORIZON_S

KEEP = 12  # decisions about the function that are told


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    ago_s: float  # before the request came; negative: after
    what: str
    why: act.Why


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    request: int
    function: str
    start: str  # as decided in the replay; "" if it was never dispatched
    instance: str
    container: str
    owner: str  # of the container when the request was dispatched
    origin: str  # how the instance came to be
    zygote: str  # how its libraries stood on the node when it was started: a sentence, "" if that was long ago
    probability: float  # of an arrival within HORIZON_S, as predicted just before it came
    rate: float
    last_s: float | None  # since the arrival before
    decisions: tuple[Decision, ...]
    advice: tuple[str, ...]


def explain(platform: Platform, log: Iterable[tuple[float, AnyEvent]], request: int) -> Explanation | None:
    """Replay `log` on `platform` (both from the same point) until the request was dispatched or rejected.
    None when it never arrived."""
    state = platform.state
    past: dict[str, deque[tuple[float, str, act.Why]]] = {}
    arrival: tuple[float, str, float, float, float | None] | None = None
    stood: dict[str, str] = {}  # by instance
    for now, event in log:
        if isinstance(event, RequestArrived) and event.request == request:
            name = event.function
            last = state.forecast.last(name)
            arrival = (
                now,
                name,
                state.forecast.rate(name, now),
                state.forecast.probability(name, now, HORIZON_S),
                None if last is None else now - last,
            )
        if isinstance(event, InstanceFailed) and (instance := state.instances.get(event.instance)):
            why = act.Why(rule=event.reason.partition("\n")[0])
            _remember(past, instance.function.spec.name, now, f"{event.instance} failed", why)
        if isinstance(event, ZygoteLost) and (zygote := state.zygotes.get(event.zygote)) and zygote.live:
            for name in zygote.libraries.functions:
                _remember(
                    past, name, now, f"{event.zygote} was lost", act.Why(rule=event.reason or "no reason given")
                )
        for action in platform.handle(event, now):
            for function, what, why in _told(state, action):
                _remember(past, function, now, what, why)
            if isinstance(action, act.Load):
                node = state.containers[action.container].node
                stood[action.instance] = libraries_stand(state, state.functions[action.function], node)
            if isinstance(action, act.Dispatch | act.Reject) and action.request == request and arrival:
                return _explanation(platform=platform, action=action, arrival=arrival, past=past, stood=stood)
    return (
        _explanation(platform=platform, action=None, arrival=arrival, past=past, stood=stood, request=request)
        if arrival
        else None
    )


def _remember(
    past: dict[str, deque[tuple[float, str, act.Why]]], function: str, now: float, what: str, why: act.Why
) -> None:
    past.setdefault(function, deque(maxlen=KEEP)).append((now, what, why))


def _told(state: State, action: act.AnyAction) -> list[tuple[str, str, act.Why]]:
    """(function, what happened to it, why) of one action just decided: what it names is still in the state."""
    if isinstance(action, act.CreateContainer):
        return [(action.function, f"create container {action.container}", action.why)]
    if isinstance(action, act.Load):
        verb = "pre-load" if action.ahead else "load"
        owner = state.containers[action.container].owner
        where = f"{action.container}, owned by {owner}"
        return [
            (action.function, f"{verb} {action.instance} to {action.level.name.lower()} in {where}", action.why)
        ]
    if isinstance(action, act.Raise | act.Offload) and action.instance in state.instances:
        instance = state.instances[action.instance]
        where = f"{action.instance} in {instance.container.id}"
        if isinstance(action, act.Offload):
            return [(instance.function.spec.name, f"off-load {where}", action.why)]
        verb = "pre-load" if action.ahead else "load"
        return [(instance.function.spec.name, f"{verb}: raise {where} to {action.level.name.lower()}", action.why)]
    if isinstance(action, act.DestroyContainer) and action.container in state.containers:
        residents = state.containers[action.container].instances.values()
        what = f"destroy container {action.container} and what was in it"
        return [(instance.function.spec.name, what, action.why) for instance in residents]
    if isinstance(action, act.StartZygote | act.EndZygote):
        verb = "start" if isinstance(action, act.StartZygote) else "end"
        zygote = state.zygotes[action.zygote]
        what = f"{verb} zygote {action.zygote} of its libraries on {zygote.node}"
        return [(name, what, action.why) for name in zygote.libraries.functions]
    return []


def libraries_stand(state: State, function: FunctionState, node: str) -> str:
    """Is there a zygote for it on `node`, and if not, why? One sentence."""
    libraries = function.libraries
    if libraries is None:
        return "it is not one that can be forked from a library zygote"
    if zygote := function.zygote(node):
        return f"zygote {zygote} had its libraries ready"
    there = libraries.ready.get(node)
    if there is not None and there.id == function.spawned_beside:
        return f"zygote {there.id} had its libraries ready, but could not be forked for it before"
    if there is not None:
        return f"zygote {there.id} was started before this function was deployed and lacks what it imports"
    if node in libraries.starting:
        starting = libraries.starting[node]
        return (
            f"zygote {starting.id} was importing its libraries, since {state.now - starting.started:.1f} s before"
        )
    if libraries.refused:
        return f"its libraries cannot be forked: {libraries.refused}"
    cap, needed = state.zygote_memory.get(node, 0), libraries.expected_bytes
    if not cap:
        return f"{node} has no memory for library zygotes (node.zygote_memory)"
    if libraries.blocked_until.get(node, 0.0) > state.now:
        left = libraries.blocked_until[node] - state.now
        return f"its zygote on {node} failed or gave way lately: there is none for another {left:.0f} s"
    if needed > zygotes.room(state, node):
        room = max(zygotes.room(state, node), 0)
        return (
            f"a zygote of its libraries takes {needed >> 20} MB, and {node} had {room >> 20} MB left for one"
            f" (node.zygote_memory is {cap >> 20} MB in all)"
        )
    return "no zygote of its libraries had been started yet"


def _explanation(
    *,
    platform: Platform,
    action: act.Dispatch | act.Reject | None,
    arrival: tuple[float, str, float, float, float | None],
    past: dict[str, deque[tuple[float, str, act.Why]]],
    stood: dict[str, str],
    request: int = 0,
) -> Explanation:
    at, function, rate, probability, last_s = arrival
    instance = platform.state.instances.get(action.instance) if action is not None else None
    decisions = tuple(Decision(ago_s=at - then, what=what, why=why) for then, what, why in past.get(function, ()))
    start = str(action.start) if isinstance(action, act.Dispatch) else ""
    zygote = stood.get(instance.id, "") if instance is not None else ""
    return Explanation(
        request=action.request if action is not None else request,
        function=function,
        start=start,
        instance=instance.id if instance is not None else "",
        container=instance.container.id if instance is not None else "",
        owner=instance.container.owner if instance is not None else "",
        origin=str(instance.origin) if instance is not None else "",
        zygote=zygote,
        probability=probability,
        rate=rate,
        last_s=last_s,
        decisions=decisions,
        advice=_advice(platform, start, function, decisions, last_s, zygote),
    )


def _advice(
    platform: Platform,
    start: str,
    function: str,
    decisions: tuple[Decision, ...],
    last_s: float | None,
    zygote: str,
) -> tuple[str, ...]:
    """What would have made it faster."""
    name = function.partition("/")[2]
    if start in ("warm", "preloaded"):
        return ()
    if start == "cloned":
        return (
            "it needed one more instance, cloned from a loaded one: a higher `concurrency`, where the function"
            " bears it, lets those that are there take it",
        )
    said = []
    known = platform.state.functions.get(function)
    if start == "forked":
        said.append("its libraries were imported already: what was left is loading its model")
    elif start == "cold" and known is not None and known.libraries is not None and zygote:
        said.append(f"its libraries had to be imported: {zygote}")
    if start == "attached":
        said.append(
            "it joined a load that ran already: nothing was loaded twice; an earlier start would have hidden it"
        )
    if last_s is None:
        said.append(
            f"it was the first arrival ever seen: `instainfer hint {name} --in 30s` or `pin` tells the platform"
        )
    gone = [d for d in decisions if d.ago_s > 0 and d.what.startswith(("off-load", "destroy"))]
    if gone:
        said.append(f"it had been in memory until {gone[-1].ago_s:.1f} s before: {gone[-1].why.rule}")
    if known is not None and known.blocked_until > platform.state.now:
        said.append(
            "pre-loading it failed lately, so it is left alone for a while: see its logs"
            if not known.squeezed
            else "pre-loaded it had to go again: it held more than was expected, and is left alone for a while"
        )
    elif not any(d.what.startswith("pre-load") for d in decisions):
        said.append(
            "it was not pre-loaded: no idle warm container of its namespace had room and a turn for it in time;"
            f" more node memory, a longer keep-alive, or `instainfer pin {name}` would help"
        )
    return tuple(said)
