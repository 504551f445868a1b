"""Library zygotes, forks and clones: what the core decides and what it learns, case by case."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from instainfer.core import actions as act
from instainfer.core import checkpoint, containers
from instainfer.core import events as ev
from instainfer.core.lifecycle import IllegalTransition
from instainfer.core.platform import Platform
from instainfer.core.prices import UNMEASURED_S, price
from instainfer.model import Costs, Level, Origin
from tests.core.world import MB, World, function, platform

OWN = Costs(
    container_s=0.05,
    import_s=0.5,
    load_s=0.5,
    warm_s=0.1,
    first_s=0.1,
    imported_bytes=50 * MB,
    loaded_bytes=100 * MB,
    libraries_bytes=60 * MB,
)


def world(
    *names: str, memory: int = 4096, zygotes: int = 200, mode: str = "hazard", keep_alive: str = "pressure"
) -> World:
    made = World(platform(mode, keep_alive), memory=memory * MB, zygote_memory=zygotes * MB)
    for name in names:
        deploy(made, name)
    return made


def deploy(w: World, name: str, libraries: str = "torch", modules: str = "few", **changes: object) -> None:
    values: dict[str, object] = {"costs": OWN, "forkable": True} | changes
    w.fed(ev.FunctionDeployed(function=function(name, libraries=libraries, modules=modules, **values)))


def started(w: World) -> list[act.StartZygote]:
    return [action for action in w.decided if isinstance(action, act.StartZygote)]


def ended(w: World) -> list[str]:
    return [action.zygote for action in w.decided if isinstance(action, act.EndZygote)]


# ---- life ----------------------------------------------------------------------------------------------------


def test_libraries_come_when_a_function_is_deployed_though_nobody_calls_it() -> None:
    w = world("ns/f", "ns/g")
    w.fire("placement")
    (one,) = started(w)
    assert (one.libraries, one.node) == ("torch", "n")
    assert one.revisions == ("ns/f@1", "ns/g@1"), "one zygote is for both"
    assert w.state.ledger.promised("n") == 60 * MB, "what was measured at deploy is promised"
    w.imported(size=40 * MB)
    assert w.state.ledger.promised("n") == 40 * MB, "what was measured counts"
    w.settle()
    assert len(started(w)) == 1


def test_a_node_without_memory_for_zygotes_starts_none() -> None:
    w = world("ns/f", zygotes=0)
    w.serve()
    w.settle()
    assert not started(w)
    assert w.starts[1] == "cold"


@pytest.mark.parametrize("changes", [{"forkable": False}, {"libraries": ""}])
def test_what_cannot_be_forked_has_no_zygote(changes: dict[str, object]) -> None:
    w = world()
    deploy(w, "ns/f", **changes)  # type: ignore[arg-type] # test shorthand
    w.settle()
    assert not started(w) and not w.state.libraries


def test_namespaces_share_no_zygote_whatever_the_key() -> None:
    w = world("ns/f", "other/f")
    w.settle()
    assert [one.revisions for one in started(w)] == [("ns/f@1",), ("other/f@1",)]


def test_a_node_that_joins_later_gets_its_zygote() -> None:
    w = world("ns/f")
    w.settle()
    w.fed(ev.NodeJoined(node="m", memory=1024 * MB, zygote_memory=200 * MB))
    w.settle()
    assert [one.node for one in started(w)] == ["n", "m"]
    w.fed(ev.NodeLost(node="m"))
    assert [zygote.node for zygote in w.state.zygotes.values()] == ["n"]


def test_with_its_last_function_a_zygote_ends() -> None:
    w = world("ns/f", "ns/g")
    w.settle()
    w.fed(ev.FunctionDeleted(function="ns/f"))
    assert not ended(w)
    deploy(w, "ns/g", "numpy", revision="ns/g@2")  # it has other libraries now
    assert ended(w) == [started(w)[0].zygote]
    w.settle()
    assert [z.libraries.key for z in w.state.zygotes.values()] == ["numpy"]
    assert set(w.state.libraries) == {("ns", "numpy")}


def test_an_import_takes_a_turn_of_the_loads() -> None:
    w = World(platform(), zygote_memory=1000 * MB)  # two loads at a time
    for number in range(4):
        deploy(w, f"ns/f{number}", f"key{number}")
    w.fire("placement")
    assert len(w.importing) == 2
    assert w.state.snapshot().load_slots == {"n": 0}
    w.imported()
    w.fire("placement")
    assert len(w.importing) == 2
    w.settle()
    assert len(w.state.zygotes) == 4


def test_illegal_moves_raise() -> None:
    w = world("ns/f")
    w.settle()
    (name,) = w.state.zygotes
    with pytest.raises(IllegalTransition, match="zygote z"):
        w.brain.handle(ev.ZygoteReady(zygote=name, import_s=0.1, bytes=1), w.now)
    for event in (
        ev.ZygoteReady(zygote="z99", import_s=0.1, bytes=1),
        ev.ZygoteLost(zygote="z99"),
        ev.ZygoteSampled(zygote="z99", bytes=1),
    ):
        assert w.fed(event) == [], "late reports are normal"


# ---- failures ------------------------------------------------------------------------------------------------


def test_refused_libraries_are_not_tried_again_before_a_deployment() -> None:
    w = world("ns/f")
    w.fire("placement")
    w.fed(ev.ZygoteLost(zygote=w.importing.pop(), reason="it starts threads", refused=True))
    w.settle()
    w.now += 1e5
    w.serve()
    w.settle()
    assert len(started(w)) == 1
    deploy(w, "ns/g")
    w.settle()
    assert len(started(w)) == 2


def test_a_zygote_that_dies_is_started_again_after_a_while_and_then_later() -> None:
    w = world("ns/f")
    w.fire("placement")
    waits = []
    for _ in range(3):
        before = w.now
        w.fed(ev.ZygoteLost(zygote=w.importing.pop(), reason="signal 9"))
        while not w.importing:
            w.fire()
        waits.append(round(w.now - before))
    assert waits == [30, 60, 120]
    w.imported()
    w.fed(ev.ZygoteLost(zygote=next(iter(w.state.zygotes)), reason="signal 9"))
    before = w.now
    while not w.importing:
        w.fire()
    assert round(w.now - before) == 30, "it had been ready"


def test_one_that_is_far_larger_than_there_is_room_for_ends_and_is_not_tried_again() -> None:
    w = world("ns/f", zygotes=100)
    w.fire("placement")
    assert started(w)[0].limit == 100 * MB
    w.imported(size=150 * MB)
    w.settle()
    assert len(started(w)) == 1 and not w.state.zygotes and w.state.ledger.promised("n") == 0


def test_one_that_grows_a_little_stays_though_no_memory_is_free() -> None:
    w = world("ns/f", zygotes=60)
    w.settle()
    (zygote,) = w.state.zygotes.values()
    w.fed(ev.ZygoteSampled(zygote=zygote.id, bytes=62 * MB))
    assert not ended(w) and w.state.ledger.promised("n") == 60 * MB
    w.fed(ev.ZygoteSampled(zygote=zygote.id, bytes=90 * MB))
    assert ended(w) == [zygote.id]


# ---- more modules --------------------------------------------------------------------------------------------


def test_new_modules_bring_a_replacement_and_the_old_one_serves_meanwhile() -> None:
    w = world("ns/f")
    w.settle()
    deploy(w, "ns/g", modules="many")
    w.fire("placement")
    old, new = started(w)
    assert not ended(w) and w.state.functions["ns/f"].zygote("n") == old.zygote
    assert not w.state.functions["ns/g"].zygote("n"), "the old one lacks what it imports"
    w.imported(size=80 * MB)
    assert ended(w) == [old.zygote]
    assert {w.state.functions[name].zygote("n") for name in ("ns/f", "ns/g")} == {new.zygote}
    w.settle()
    assert list(w.state.zygotes) == [new.zygote]


def test_without_memory_for_a_replacement_the_old_one_stays() -> None:
    w = world("ns/f", zygotes=100)
    w.settle()
    deploy(w, "ns/g", modules="many")
    w.settle()
    assert len(started(w)) == 1 and not ended(w)


def test_a_refused_replacement_leaves_the_old_one_in_service() -> None:
    w = world("ns/f")
    w.settle()
    deploy(w, "ns/g", modules="many")
    w.fire("placement")
    w.fed(ev.ZygoteLost(zygote=w.importing.pop(), reason="it starts threads", refused=True))
    w.settle()
    assert not ended(w) and len(started(w)) == 2
    assert w.state.functions["ns/f"].zygote("n") == started(w)[0].zygote


def test_what_was_measured_is_believed_for_the_same_modules() -> None:
    w = world("ns/f")
    w.settle()
    (libraries,) = w.state.libraries.values()
    w.fed(ev.ZygoteSampled(zygote=next(iter(w.state.zygotes)), bytes=30 * MB))
    assert libraries.expected_bytes == 30 * MB
    deploy(w, "ns/g", modules="many", costs=replace(OWN, libraries_bytes=0, imported_bytes=70 * MB))
    assert libraries.expected_bytes == 70 * MB


# ---- memory --------------------------------------------------------------------------------------------------


def test_a_request_gets_the_memory_of_a_zygote_where_containers_do_not_suffice() -> None:
    w = world("ns/f", memory=550)
    w.settle()
    request = w.arrive()
    assert ended(w) == [started(w)[0].zygote] and not w.creating
    w.retire()
    assert w.creating, "as soon as it is gone"
    w.settle()
    assert w.ended[request] == "ok" and w.starts[request] == "cold"
    assert len(started(w)) == 1, "its memory is the container's"


def test_no_zygote_ends_where_the_keep_alive_policys_victims_suffice() -> None:
    w = world("ns/f", "ns/g", memory=600)
    w.settle()
    w.serve("ns/f")
    request = w.serve("ns/g")
    assert w.ended[request] == "ok" and not ended(w)
    assert [c.owner for c in w.state.containers.values()] == ["ns/g"]


def test_victims_and_zygotes_together_make_room() -> None:
    w = world("ns/f", memory=600)
    w.settle()
    w.serve("ns/f")
    deploy(w, "ns/big", libraries="", memory=580 * MB)
    request = w.arrive("ns/big")
    assert w.destroying and w.retiring
    w.settle()
    assert w.ended[request] == "ok"


def test_the_least_valuable_zygote_goes_first() -> None:
    w = world(memory=640)
    deploy(w, "ns/f", "often", memory=128 * MB)
    deploy(w, "ns/g", "never", memory=128 * MB)
    deploy(w, "ns/h", libraries="")
    for _ in range(3):
        w.serve("ns/f")
    w.settle()
    assert len(w.state.zygotes) == 2
    (container,) = w.state.containers
    w.fed(ev.PinChanged(token=1, function="ns/f", pinned=True))  # its container is no victim
    w.settle()
    kept = next(z.id for z in w.state.zygotes.values() if z.libraries.key == "often")
    w.fed(ev.FunctionDeployed(function=function("ns/h", memory=452 * MB)))
    w.arrive("ns/h")
    assert container in w.state.containers
    assert len(w.retiring) == 1 and w.retiring != [kept]


def test_zygotes_wait_while_a_request_lacks_memory() -> None:
    w = world("ns/f", memory=512)
    w.serve("ns/f")
    w.arrive("ns/f")
    deploy(w, "ns/g", libraries="", memory=512 * MB)
    waiting = w.arrive("ns/g")
    assert waiting not in w.running and "ns/g" in w.state.starved
    w.fire("placement")
    assert not started(w)


def test_better_libraries_displace_others_only_when_memory_is_short() -> None:
    w = world(zygotes=100)
    deploy(w, "ns/f", "never")
    w.settle()
    deploy(w, "ns/g", "often")
    w.settle()
    assert not ended(w), "nobody has called either"
    for _ in range(3):
        w.serve("ns/g")
    w.settle()
    assert [z.libraries.key for z in w.state.zygotes.values()] == ["often"]
    assert len(started(w)) == 2


# ---- starts --------------------------------------------------------------------------------------------------


def test_a_miss_with_a_zygote_is_forked_and_weighs_less() -> None:
    w = world()
    deploy(w, "ns/f", costs=replace(OWN, forked_bytes=20 * MB, fork_s=0.02))
    w.settle()
    request = w.arrive()
    w.create()
    (instance,) = w.state.instances.values()
    assert (instance.origin, instance.bytes) == (Origin.FORKED, 20 * MB)
    w.settle()
    assert w.starts[request] == "forked"


def test_what_an_agent_could_not_fork_weighs_what_it_is_and_is_not_expected_to_be_forked_again() -> None:
    w = world()
    deploy(w, "ns/f", costs=replace(OWN, forked_bytes=20 * MB))
    w.settle()
    request = w.arrive()
    w.create()
    w.load(Origin.SPAWNED)
    (instance,) = w.state.instances.values()
    assert w.starts[request] == "cold" and instance.bytes == 100 * MB
    assert w.state.functions["ns/f"].price_on("n").origin is Origin.SPAWNED
    (zygote,) = w.state.zygotes
    w.fed(ev.ZygoteLost(zygote=zygote, reason="signal 9"))
    while not w.importing:
        w.fire()
    w.imported()
    assert w.state.functions["ns/f"].price_on("n").origin is Origin.FORKED, "the next zygote may do better"


def test_a_further_instance_is_cloned_from_a_loaded_one() -> None:
    w = world(zygotes=0)
    deploy(w, "ns/f", cloneable=True, costs=replace(OWN, cloned_bytes=10 * MB))
    w.serve()
    busy, waiting = w.arrive(), w.arrive()
    w.fire("queue:ns/f")
    w.fire("queue:ns/f")
    w.create()
    clone = next(i for i in w.state.instances.values() if i.state == "loading")
    assert (clone.origin, clone.bytes) == (Origin.CLONED, 10 * MB)
    w.load()
    assert w.starts[waiting] == "cloned" and busy in w.running
    assert w.state.functions["ns/f"].costs.clone_s == pytest.approx(0.02)


def test_what_was_not_cloned_is_not_expected_to_be_before_one_was() -> None:
    w = world(zygotes=0)
    deploy(w, "ns/f", cloneable=True, costs=replace(OWN, cloned_bytes=10 * MB))
    f = w.state.functions["ns/f"]
    w.serve()
    assert f.next_price("n").origin is Origin.CLONED and f.next_price("m").origin is Origin.SPAWNED
    w.arrive()
    w.arrive()
    w.fire("queue:ns/f")
    w.fire("queue:ns/f")
    w.create()
    w.load(Origin.SPAWNED)
    assert f.next_price("n").origin is Origin.SPAWNED
    assert {i.bytes for i in w.state.instances.values()} == {100 * MB}, "it weighs what it is"
    deploy(w, "ns/f", cloneable=True, revision="ns/f@2")
    assert f.clones


def test_clones_are_worth_starting_sooner() -> None:
    def creates(cloneable: bool) -> bool:
        w = world(zygotes=0)
        deploy(w, "ns/f", cloneable=cloneable)
        w.serve()
        w.serve()
        for _ in range(12):
            w.arrive()  # 0.1 s each: together they wait longer than a clone takes, and not than a cold start
        return bool(w.creating)

    assert creates(True) and not creates(False)


def test_an_imported_instance_that_is_raised_for_a_request_starts_imported() -> None:
    w = world("ns/f", "ns/g")
    w.settle()
    w.serve("ns/f")
    (container,) = w.state.containers.values()
    g = w.state.functions["ns/g"]
    w.state.out = []
    containers.load(w.state, g, container, Level.IMPORTED, ahead=True, why=act.Why(rule="test"))
    w._note(w.state.out[-1])
    w.load()
    request = w.arrive("ns/g")
    w.load(Origin.SPAWNED)  # of the raise: says nothing of how the process began
    assert w.starts[request] == "imported"
    assert g.instances and next(iter(g.instances.values())).origin is Origin.FORKED


def test_each_origin_teaches_its_own_costs() -> None:
    w = world()
    deploy(w, "ns/f", cloneable=True)
    w.settle()
    w.serve()
    costs = w.state.functions["ns/f"].costs
    assert (costs.fork_s, costs.import_s) == (0.02, 0.5), "a fork says nothing about an import"
    (instance,) = w.state.instances.values()
    w.fed(ev.MemorySampled(container=instance.container.id, instances={instance.id: 25 * MB}))
    costs = w.state.functions["ns/f"].costs
    assert (costs.forked_bytes, costs.loaded_bytes) == (25 * MB, 100 * MB)
    w.fed(ev.ZygoteLost(zygote=next(iter(w.state.zygotes)), reason="signal 9"))
    w.fed(ev.MemorySampled(container=instance.container.id, instances={instance.id: 85 * MB}))
    assert w.state.functions["ns/f"].costs.forked_bytes == 25 * MB, "alone it is charged for what was shared"
    assert instance.bytes == 85 * MB


def test_effective_costs_are_those_of_a_fork_where_a_zygote_is_ready() -> None:
    w = world()
    deploy(w, "ns/f", costs=replace(OWN, forked_bytes=20 * MB, fork_s=0.02))
    f = w.state.functions["ns/f"]
    before = f.cold_s
    w.settle()
    (view,) = w.state.snapshot().functions
    assert view.import_s == pytest.approx(0.02) and view.load_s == pytest.approx(0.5)
    assert (view.imported_bytes, view.loaded_bytes) == (8 * MB, 20 * MB)
    assert f.cold_s == pytest.approx(before - 0.48)


def test_a_function_is_priced_as_a_fork_only_if_it_is_one_wherever_it_may_be_placed() -> None:
    w = world(mode="none")
    w.fed(ev.NodeJoined(node="m", memory=512 * MB))  # no zygotes there
    deploy(w, "ns/f", costs=replace(OWN, forked_bytes=20 * MB))
    deploy(w, "ns/g")
    w.settle()
    w.serve("ns/g")
    assert {c.node for c in w.state.containers.values()} == {"n"}, "where its libraries are"
    assert w.state.snapshot().functions[0].loaded_bytes == 20 * MB
    deploy(w, "ns/h", libraries="", memory=300 * MB)
    w.fed(ev.FunctionDeployed(function=function("ns/full", memory=3000 * MB)))
    w.serve("ns/full")
    w.serve("ns/h")
    w.fed(ev.FunctionDeployed(function=function("ns/more", memory=400 * MB)))
    w.serve("ns/more")
    assert {c.node for c in w.state.containers.values()} == {"n", "m"}
    assert next(f for f in w.state.snapshot().functions if f.name == "ns/f").loaded_bytes == 100 * MB


def test_pre_loads_wait_for_the_import_of_their_libraries() -> None:
    w = world("ns/f", "ns/g", zygotes=0)
    w.serve("ns/f")
    w.serve("ns/g")
    w.settle()
    w.fed(ev.OffloadRequested(token=1, function="ns/g"))
    w.settle()
    w.fed(ev.NodeJoined(node="n", memory=4096 * MB, zygote_memory=200 * MB))
    w.fed(ev.HintReceived(function="ns/g", in_s=1.0))
    w.fire("placement")
    assert w.importing and not w.loading
    w.imported()
    w.fire("placement")
    (name, _), *_ = w.loading
    assert w.state.instances[name].origin is Origin.FORKED


def test_prices_of_what_was_never_measured() -> None:
    costs = OWN
    assert price(costs, Origin.FORKED).import_s == pytest.approx(UNMEASURED_S)
    assert price(costs, Origin.FORKED).loaded_bytes == costs.loaded_bytes
    assert price(costs, Origin.CLONED).loading_s == pytest.approx(UNMEASURED_S)
    nothing = replace(costs, import_s=0.0, imported_bytes=0)
    assert price(nothing, Origin.FORKED).loading_s == nothing.loading_s, "a fork is never dearer than an import"
    whole = price(costs)
    assert (whole.import_s, whole.loading_s) == (costs.import_s, costs.loading_s)
    assert (whole.bytes(Level.IMPORTED), whole.bytes(Level.LOADED)) == (50 * MB, 100 * MB)


def test_a_checkpoint_keeps_zygotes() -> None:
    w = world("ns/f")
    w.settle()
    again = Platform(checkpoint.load(checkpoint.dump(w.state)))
    assert again.state.functions["ns/f"].zygote("n") == w.state.functions["ns/f"].zygote("n") != ""
    (libraries,) = again.state.libraries.values()
    assert libraries.functions["ns/f"] is again.state.functions["ns/f"]
