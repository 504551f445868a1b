"""What the core decides, case by case."""

from __future__ import annotations

import pytest

from instainfer.core import actions as act
from instainfer.core import dispatch
from instainfer.core import events as ev
from instainfer.model import Level
from tests.core.world import MB, World, function, platform


def world(
    *names: str, memory: int = 4096 * MB, mode: str = "hazard", keep_alive: str = "pressure", **timed: float
) -> World:
    made = World(platform(mode, keep_alive, timed=timed), memory=memory)
    for name in names:
        made.fed(ev.FunctionDeployed(function=function(name)))
    return made


def kinds(actions: list[act.AnyAction]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_first_request_is_cold_then_warm() -> None:
    w = world("ns/f")
    first = w.serve()
    second = w.serve()
    assert (w.starts[first], w.starts[second]) == ("cold", "warm")


def test_a_warm_hit_is_one_dispatch() -> None:
    w = world("ns/f")
    w.serve()
    w.settle()
    w.now += 0.01
    request = len(w.accepted) + 1
    w.accepted.add(request)
    assert kinds(w.fed(ev.RequestArrived(request=request, function="ns/f"))) == ["Dispatch"]


def test_unknown_function_is_rejected() -> None:
    w = world()
    request = w.arrive("ns/none")
    assert w.ended[request] == "not_found"


def test_requests_join_a_running_load() -> None:
    w = world("ns/f")
    first, second = w.arrive(), w.arrive()
    w.create()
    assert len(w.loading) == 1
    w.load()
    w.settle()
    assert len([a for a in w.decided if isinstance(a, act.Load) and not a.ahead]) == 1
    assert (w.starts[first], w.starts[second]) == ("cold", "attached")


def test_long_waits_get_a_further_instance() -> None:
    w = world("ns/f")
    first = w.serve()
    stuck = w.arrive()  # never finishes
    waiting = w.arrive()
    assert w.starts[stuck] == "warm" and waiting not in w.running
    w.fire("queue:ns/f")  # asked for when the first request waited: too early for this one
    assert not w.creating
    w.fire("queue:ns/f")
    assert len(w.creating) == 1
    w.create()
    w.load()
    assert waiting in w.running and w.running[waiting] != w.running[stuck]
    assert first in w.ended


def preloaded_guest() -> World:
    """g was served, its own container expired, and it waits pre-loaded in f's container."""
    w = world("ns/f", "ns/g", keep_alive="fixed", seconds=5.0)
    w.fed(ev.PinChanged(token=1, function="ns/f", pinned=True))
    w.settle()
    w.serve("ns/f")
    w.serve("ns/g")
    w.settle()
    own = next(c.id for c in w.state.containers.values() if c.owner == "ns/g")
    w.fire(f"expire:{own}")
    w.settle()
    assert own not in w.state.containers
    return w


def test_idle_memory_of_another_container_is_used() -> None:
    w = preloaded_guest()
    (container,) = w.state.containers.values()
    assert container.owner == "ns/f"
    assert {i.function.spec.name for i in container.instances.values()} == {"ns/f", "ns/g"}
    request = w.serve("ns/g")
    assert w.starts[request] == "preloaded"
    assert container.owner == "ns/g", "ownership passes to the function that ran last"
    assert w.starts[w.serve("ns/g")] == "warm"


def test_a_co_resident_is_frozen_before_the_other_runs() -> None:
    w = preloaded_guest()
    w.serve("ns/f")
    w.settle()
    request = len(w.accepted) + 1
    w.accepted.add(request)
    actions = w.fed(ev.RequestArrived(request=request, function="ns/g"))
    assert kinds(actions)[:2] == ["Freeze", "Thaw"] and "Dispatch" in kinds(actions)
    assert w.running[request] not in w.frozen


def test_a_run_freezes_a_pre_load_which_goes_on_afterwards() -> None:
    w = world("ns/f", "ns/g")
    w.serve("ns/f")
    w.settle()
    w.fed(ev.PreloadRequested(token=1, function="ns/g"))
    ((loading, _),) = w.loading
    request = w.arrive("ns/f")
    assert request in w.running and loading in w.frozen
    w.finish(request)
    assert loading not in w.frozen
    w.load()
    assert w.starts[w.serve("ns/g")] == "preloaded"


def test_preload_by_hand_never_creates_a_container() -> None:
    w = world("ns/f")
    w.fed(ev.PreloadRequested(token=1, function="ns/f"))
    assert not w.answers[1].ok and "pin" in w.answers[1].message
    assert not w.creating


def test_pin_creates_one_and_keeps_it() -> None:
    w = world("ns/f", keep_alive="fixed", seconds=5.0)
    w.fed(ev.PinChanged(token=1, function="ns/f", pinned=True))
    w.settle()
    assert not [t for t in w.timers if t.startswith("expire")]
    assert w.starts[w.serve()] == "preloaded" or w.starts[1] == "warm"
    w.fed(ev.InstanceLost(instance=next(iter(w.state.instances)), reason="crash"))
    w.settle()
    assert w.state.functions["ns/f"].best_level() == Level.LOADED, "a pinned function is loaded again"


def test_functions_of_other_namespaces_and_networks_never_share() -> None:
    w = world("ns/f", "other/g")
    w.fed(ev.FunctionDeployed(function=function("ns/h", network=True)))
    w.serve("ns/f")
    for name in ("other/g", "ns/h"):
        w.fed(ev.PreloadRequested(token=1, function=name))
        assert not w.answers[1].ok


def test_memory_pressure_evicts_an_idle_container() -> None:
    w = world("ns/f", "ns/g", memory=512 * MB)
    w.serve("ns/f")
    request = w.serve("ns/g")
    assert w.ended[request] == "ok"
    assert [c.owner for c in w.state.containers.values()] == ["ns/g"]


def test_a_request_waits_for_memory_that_a_running_one_holds() -> None:
    w = world("ns/f", "ns/g", memory=512 * MB)
    w.serve("ns/f")
    running = w.arrive("ns/f")
    waiting = w.arrive("ns/g")
    assert waiting not in w.running and not w.destroying
    w.finish(running)
    assert w.destroying, "the container that fell idle makes room"
    w.settle()
    assert w.ended[waiting] == "ok"


def test_more_memory_than_any_node_has_is_refused_at_once() -> None:
    w = world(memory=256 * MB)
    w.fed(ev.FunctionDeployed(function=function("ns/f")))
    request = w.arrive()
    assert w.ended[request] == "overloaded"


def test_a_failing_load_ends_those_who_wait_and_nobody_else() -> None:
    w = world("ns/f", "ns/g")
    w.serve("ns/g")
    one, two = w.arrive(), w.arrive()
    w.create()
    instance, _ = w.loading.pop()
    w.fed(ev.InstanceFailed(instance=instance, phase="load", reason="ValueError: no"))
    assert w.ended[one] == w.ended[two] == "load_failed"
    assert w.starts[w.serve("ns/g")] == "warm"
    assert w.starts[w.serve("ns/f")] == "cold"


@pytest.mark.parametrize("phase", ["container", "extract"])
def test_a_load_that_never_began_is_not_the_functions_fault(phase: str) -> None:
    w = world("ns/f")
    request = w.arrive()
    w.create()
    instance, _ = w.loading.pop()
    w.fed(ev.InstanceFailed(instance=instance, phase=phase, reason="its manager is gone"))
    assert w.ended[request] == "unavailable"  # and so may be sent, or run, again


def test_a_crash_ends_the_request_that_ran() -> None:
    w = world("ns/f")
    w.serve()
    request = w.arrive()
    w.fed(ev.InstanceLost(instance=w.running[request], reason="signal 11", code="instance_crashed"))
    assert w.ended[request] == "instance_crashed"
    assert w.ended[w.serve()] == "ok"


def test_what_was_not_read_is_sent_again() -> None:
    w = world("ns/f")
    w.serve()
    request = w.arrive()
    later = w.arrive()  # waits
    w.fed(ev.InstanceLost(instance=w.running[request], reason="signal 9", unread=(request,)))
    assert request not in w.ended
    w.settle()
    assert (w.ended[request], w.ended[later]) == ("ok", "ok")
    order = [action.request for action in w.decided if isinstance(action, act.Dispatch)]
    assert order.index(later) > max(n for n, one in enumerate(order) if one == request)


def test_what_was_not_read_goes_to_an_instance_at_rest() -> None:
    w = world("ns/f")
    first, second = w.arrive(), w.arrive()
    while len(w.running) < 2:  # the first one runs for so long that the second gets an instance of its own
        w.create() if w.creating else w.load() if w.loading else w.fire()
    w.finish(first)
    w.fed(ev.InstanceLost(instance=w.running[second], reason="signal 9", unread=(second,)))
    assert second in w.running


def test_a_request_is_not_sent_for_ever() -> None:
    w = world("ns/f")
    request = w.arrive()
    for _ in range(dispatch.RESENDS + 1):
        assert request not in w.ended
        if w.creating:
            w.create()
        w.load()
        w.fed(ev.InstanceLost(instance=w.running[request], reason="signal 9", unread=(request,)))
    assert w.ended[request] == "instance_crashed"


def test_only_the_culprit_is_told_that_it_was_too_slow() -> None:
    w = world()
    w.fed(ev.FunctionDeployed(function=function("ns/f", concurrency=2)))
    w.serve()
    slow, victim = w.arrive(), w.arrive()
    w.fed(ev.InstanceLost(instance=w.running[slow], reason="killed", code="timed_out", request=slow))
    assert (w.ended[slow], w.ended[victim]) == ("timed_out", "instance_crashed")


def test_concurrency_fills_one_instance() -> None:
    w = world()
    w.fed(ev.FunctionDeployed(function=function("ns/f", concurrency=3)))
    w.serve()
    requests = [w.arrive() for _ in range(3)]
    assert len({w.running[r] for r in requests}) == 1
    assert w.arrive() not in w.running


def test_strict_isolation_ends_the_others_first() -> None:
    w = preloaded_guest()
    w.fed(ev.FunctionDeployed(function=function("ns/f", strict=True)))
    request = w.arrive("ns/f")
    assert request not in w.running
    assert w.ending, "the guest ends first"
    w.settle()
    assert w.ended[request] == "ok"
    container = next(c for c in w.state.containers.values() if c.owner == "ns/f")
    assert [i.function.spec.name for i in container.instances.values() if i.served] == ["ns/f"]


@pytest.mark.parametrize("mode", ["tyche", "instainfer"])
def test_the_papers_modes_end_co_residents(mode: str) -> None:
    w = world("ns/f", "ns/g", mode=mode)
    w.serve("ns/f")
    w.fed(ev.PreloadRequested(token=1, function="ns/g"))
    w.load()
    request = w.arrive("ns/f")
    assert request not in w.running and w.ending
    w.settle()
    assert w.ended[request] == "ok"


def test_redeploy_retires_instances_when_they_are_idle() -> None:
    w = world("ns/f")
    w.serve()
    running = w.arrive()
    w.fed(ev.FunctionDeployed(function=function("ns/f", revision="ns/f@2")))
    assert not w.ending, "what runs is left alone"
    w.finish(running)
    assert w.ending
    w.settle()
    request = w.serve()
    assert w.starts[request] == "preloaded", "its idle container took the new version at once"
    revision = w.state.instances[next(a for a in w.decided[::-1] if isinstance(a, act.Dispatch)).instance].revision
    assert revision == "ns/f@2"


def test_delete_ends_everything_of_it() -> None:
    w = world("ns/f")
    w.serve()
    waiting_for = w.arrive()
    w.fed(ev.FunctionDeleted(function="ns/f"))
    w.finish(waiting_for)
    w.settle()
    assert not w.state.functions and not w.state.instances and not w.state.containers
    assert w.ended[w.arrive()] == "not_found"


def test_queue_has_a_bound() -> None:
    w = World(platform(queue_limit=3))
    w.fed(ev.FunctionDeployed(function=function("ns/f")))
    requests = [w.arrive() for _ in range(5)]
    assert [w.ended.get(r) for r in requests] == [None, None, None, "overloaded", "overloaded"]


def test_cancel_takes_back_only_who_waits() -> None:
    w = world("ns/f")
    w.serve()
    running, waiting = w.arrive(), w.arrive()
    w.fed(ev.RequestCancelled(request=running))
    w.fed(ev.RequestCancelled(request=waiting))
    assert running in w.running and w.ended[waiting] == "cancelled"
    w.finish(running)
    w.settle()


def test_fixed_keep_alive_ends_containers_ten_minutes_after_use() -> None:
    w = world("ns/f", keep_alive="fixed", seconds=600.0)
    w.serve()
    (container,) = w.state.containers.values()
    used = container.last_used
    w.serve()
    w.settle()
    name = f"expire:{container.id}"
    w.fire(name)  # the timer of the first use: it was used since
    assert not w.destroying
    w.fire(name)
    assert w.destroying == [container.id]
    assert w.now >= used + 600.0


def test_a_pre_load_does_not_lengthen_a_containers_life() -> None:
    w = world("ns/f", "ns/g", keep_alive="fixed", seconds=600.0)
    w.serve("ns/f")
    w.settle()
    (container,) = w.state.containers.values()
    due = w.timers[f"expire:{container.id}"]
    w.now = due - 0.5
    w.fed(ev.PreloadRequested(token=1, function="ns/g"))
    assert w.answers[1].ok
    w.fire(f"expire:{container.id}")
    assert w.destroying == [container.id], "a load that runs does not keep it"
    w.settle()


def test_sandboxes_without_guests_take_only_the_owner() -> None:
    w = World(platform(), guests=False)
    for name in ("ns/f", "ns/g"):
        w.fed(ev.FunctionDeployed(function=function(name)))
    w.serve("ns/f")
    w.serve("ns/g")
    w.fed(ev.OffloadRequested(token=1, function="ns/g"))
    w.settle()
    for container in w.state.containers.values():
        assert {i.function.spec.name for i in container.instances.values()} <= {container.owner}


def limited(w: World, memory: int) -> None:
    w.fed(ev.NamespaceLimited(namespace="ns", memory=memory))


def test_a_namespace_stays_within_its_quota() -> None:
    w = world("ns/f", "ns/g", "other/h")
    limited(w, 600 * MB)  # one container of 512 MB
    w.serve("ns/f")
    waiting = w.arrive("ns/g")
    ((destroyed, why),) = [(a.container, a.why.rule) for a in w.decided if isinstance(a, act.DestroyContainer)]
    assert "quota" in why
    elsewhere = w.arrive("other/h")  # is not behind it
    assert len(w.creating) == 1
    w.settle()
    assert (w.ended[waiting], w.ended[elsewhere]) == ("ok", "ok")
    assert destroyed not in w.state.containers


def test_memory_goes_to_the_namespace_that_has_least() -> None:
    """However many functions of another one came first."""
    w = world("big/a", "big/b", "big/c", "small/f", memory=1024 * MB)
    running = [w.arrive("big/a"), w.arrive("big/b")]
    w.settle(until=lambda: len(w.starts) == 2)
    first = w.arrive("big/c")
    later = w.arrive("small/f")
    w.finish(running[0])
    w.settle(until=lambda: later in w.starts)
    assert first not in w.starts


def test_what_can_never_be_within_the_quota_is_refused() -> None:
    w = world("ns/f")
    limited(w, 100 * MB)
    request = w.arrive("ns/f")
    assert w.ended[request] == "over_quota"
    limited(w, 0)
    assert w.ended[w.serve("ns/f")] == "ok"


def test_a_raised_quota_is_seen_at_once() -> None:
    w = world("ns/f", "ns/g")
    limited(w, 600 * MB)
    w.serve("ns/f")
    w.arrive("ns/f")  # runs on
    waiting = w.arrive("ns/g")
    assert not w.creating
    limited(w, 2000 * MB)
    assert len(w.creating) == 1
    w.settle()
    assert w.ended[waiting] == "ok"


def test_node_lost_ends_what_ran_there() -> None:
    w = world("ns/f")
    w.serve()
    request = w.arrive()
    w.fed(ev.NodeLost(node="n"))
    assert w.ended[request] == "instance_crashed"
    assert not w.state.containers


def test_limits_follow_the_owner_and_guests_that_no_longer_fit_go() -> None:
    w = world("ns/big")
    small = function("ns/small", memory=128 * MB)
    w.fed(ev.FunctionDeployed(function=small))
    w.fed(ev.FunctionDeployed(function=function("ns/big", memory=1024 * MB)))
    w.serve("ns/big")
    w.fed(ev.PreloadRequested(token=1, function="ns/small"))
    w.load()
    w.serve("ns/small")
    w.settle()
    (container,) = w.state.containers.values()
    assert container.owner == "ns/small" and container.limit == 128 * MB
    assert [i.function.spec.name for i in container.instances.values()] == ["ns/small"]


def test_offloaded_by_hand_stays_off_until_somebody_asks() -> None:
    w = world("ns/f")
    w.serve()
    w.settle()
    w.fed(ev.OffloadRequested(token=1, function="ns/f"))
    w.settle()
    assert not w.state.instances
    w.serve()
    assert w.state.instances
