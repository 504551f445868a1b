"""Any order of facts, for every pair of policies: the invariants hold, every request ends once, and the
event log replays to the same decisions, also from a checkpoint in the middle."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from instainfer.core import actions as act
from instainfer.core import checkpoint
from instainfer.core import events as ev
from instainfer.core.platform import Platform
from instainfer.model import Origin
from instainfer.policies import registry
from tests.core.world import MB, World, function, platform

NAMES = ("ns/a", "ns/b", "ns/c", "other/d")
names = st.sampled_from(NAMES)


class Machine(RuleBasedStateMachine):
    mode = "hazard"
    keep_alive = "pressure"

    @initialize(
        memory=st.sampled_from([300, 600, 1200, 4096]),
        guests=st.booleans(),
        zygote_memory=st.sampled_from([0, 80, 150, 400]),
    )
    def begin(self, memory: int, guests: bool, zygote_memory: int) -> None:
        timed = {"seconds": 20.0} if self.keep_alive == "fixed" else {}
        self.world = World(
            platform(self.mode, self.keep_alive, queue_limit=6, timed=timed),
            memory=memory * MB,
            guests=guests,
            zygote_memory=zygote_memory * MB,
        )
        self.revision = 0
        self.middle: tuple[int, int, bytes] | None = None
        for name in NAMES[1:]:
            self.deploy(name, 128, strict=False, concurrency=1, libraries="torch", modules="few", cloneable=True)

    @rule(
        name=names,
        memory=st.sampled_from([128, 256, 512]),
        strict=st.booleans(),
        concurrency=st.integers(1, 2),
        libraries=st.sampled_from(["", "numpy", "torch"]),
        modules=st.sampled_from(["", "few", "many"]),
        cloneable=st.booleans(),
    )
    def deploy(
        self,
        name: str,
        memory: int,
        strict: bool,
        concurrency: int,
        libraries: str,
        modules: str,
        cloneable: bool,
    ) -> None:
        self.revision += 1
        self.world.fed(
            ev.FunctionDeployed(
                function=function(
                    name,
                    revision=f"{name}@{self.revision}",
                    memory=memory * MB,
                    strict=strict and self.revision % 3 == 0,
                    concurrency=concurrency,
                    libraries=libraries,
                    modules=modules,
                    forkable=bool(libraries),
                    cloneable=cloneable,
                )
            )
        )

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.world.fed(ev.FunctionDeleted(function=name))

    @rule(name=names, count=st.integers(1, 4))
    def arrive(self, name: str, count: int) -> None:
        for _ in range(count):
            self.world.arrive(name)

    @precondition(lambda self: self.world.running)
    @rule(which=st.integers(0, 3), seconds=st.sampled_from([0.01, 0.5, 5.0]))
    def finish(self, which: int, seconds: float) -> None:
        running = sorted(self.world.running)
        self.world.finish(running[which % len(running)], seconds)

    @precondition(lambda self: self.world.creating)
    @rule(works=st.booleans())
    def created(self, works: bool) -> None:
        if works:
            self.world.create()
        else:
            container = self.world.creating.pop(0)
            self.world.fed(ev.ContainerLost(container=container, reason="no container: no luck"))

    @precondition(lambda self: any(i not in self.world.frozen for i, _ in self.world.loading))
    @rule(origin=st.sampled_from([None, *Origin]))
    def loaded(self, origin: Origin | None) -> None:
        self.world.load(origin)

    @precondition(lambda self: any(i not in self.world.frozen for i, _ in self.world.loading))
    @rule()
    def load_fails(self) -> None:
        world = self.world
        at = next(i for i, (name, _) in enumerate(world.loading) if name not in world.frozen)
        instance, _ = world.loading.pop(at)
        world.fed(ev.InstanceFailed(instance=instance, phase="load", reason="ValueError: no"))

    @precondition(lambda self: self.world.ending)
    @rule()
    def ended(self) -> None:
        self.world.end()

    @precondition(lambda self: self.world.destroying)
    @rule()
    def destroyed(self) -> None:
        self.world.destroy()

    @precondition(lambda self: self.world.state.instances)
    @rule(which=st.integers(0, 5), read=st.booleans())
    def crash(self, which: int, read: bool) -> None:
        world = self.world
        found = sorted(world.state.instances)
        instance = found[which % len(found)]
        world.loading = [(i, level) for i, level in world.loading if i != instance]
        world.ending = [i for i in world.ending if i != instance]
        world.frozen.discard(instance)
        unread = () if read else tuple(r for r, where in world.running.items() if where == instance)
        world.fed(ev.InstanceLost(instance=instance, reason="signal 9", unread=unread))

    @precondition(lambda self: self.world.state.containers)
    @rule(which=st.integers(0, 5))
    def container_dies(self, which: int) -> None:
        world = self.world
        found = sorted(c.id for c in world.state.containers.values() if c.state != "creating")
        if not found:
            return
        container = found[which % len(found)]
        inside = set(world.state.containers[container].instances)
        world.loading = [(i, level) for i, level in world.loading if i not in inside]
        world.ending = [i for i in world.ending if i not in inside]
        world.destroying = [c for c in world.destroying if c != container]
        world.frozen -= inside
        world.fed(ev.ContainerLost(container=container, reason="manager died"))

    @rule(steps=st.integers(2, 12))
    def go_on(self, steps: int) -> None:
        left = iter(range(steps))
        self.world.settle(until=lambda: next(left, None) is None)

    @precondition(lambda self: self.world.importing)
    @rule(size=st.sampled_from([20, 50, 70, 120]))
    def imported(self, size: int) -> None:
        self.world.imported(size * MB)

    @precondition(lambda self: self.world.retiring)
    @rule()
    def retired(self) -> None:
        self.world.retire()

    @precondition(lambda self: self.world.state.zygotes)
    @rule(which=st.integers(0, 5), refused=st.booleans())
    def zygote_dies(self, which: int, refused: bool) -> None:
        world = self.world
        found = sorted(world.state.zygotes)
        zygote = found[which % len(found)]
        world.importing = [z for z in world.importing if z != zygote]
        world.retiring = [z for z in world.retiring if z != zygote]
        world.fed(ev.ZygoteLost(zygote=zygote, reason="signal 9", refused=refused))

    @precondition(lambda self: any(z.state == "ready" for z in self.world.state.zygotes.values()))
    @rule(size=st.sampled_from([10, 60, 90, 200]))
    def zygote_sampled(self, size: int) -> None:
        for zygote in list(self.world.state.zygotes.values()):
            self.world.fed(ev.ZygoteSampled(zygote=zygote.id, bytes=size * MB))

    @rule(memory=st.sampled_from([300, 1200]), zygote_memory=st.sampled_from([0, 150]))
    def another_node(self, memory: int, zygote_memory: int) -> None:
        if "m" not in self.world.state.ledger.nodes:
            joined = ev.NodeJoined(node="m", memory=memory * MB, zygote_memory=zygote_memory * MB)
            self.world.fed(joined)

    @rule(node=st.sampled_from(["m", "n"]), drain=st.booleans(), within_s=st.sampled_from([0.0, 20.0]))
    def node_closes(self, node: str, drain: bool, within_s: float) -> None:
        self.world.fed(ev.NodeClosed(node=node, drain=drain, within_s=within_s))

    @rule(node=st.sampled_from(["m", "n"]))
    def node_opens(self, node: str) -> None:
        self.world.fed(ev.NodeOpened(node=node))

    @rule(node=st.sampled_from(["m", "n"]), memory=st.sampled_from([50, 300, 1200]))
    def node_resizes(self, node: str, memory: int) -> None:
        self.world.fed(ev.NodeResized(node=node, memory=memory * MB))

    @precondition(lambda self: "m" in self.world.state.ledger.nodes)
    @rule(read=st.booleans())
    def node_dies(self, read: bool) -> None:
        world = self.world
        inside = {i.id for i in world.state.instances.values() if i.container.node == "m"}
        there = {c.id for c in world.state.containers.values() if c.node == "m"}
        there |= {z.id for z in world.state.zygotes.values() if z.node == "m"}
        world.loading = [(i, level) for i, level in world.loading if i not in inside]
        world.ending = [i for i in world.ending if i not in inside]
        world.frozen -= inside
        for names in (world.creating, world.destroying, world.importing, world.retiring):
            names[:] = [name for name in names if name not in there]
        unread = () if read else tuple(r for r, where in world.running.items() if where in inside)
        world.fed(ev.NodeLost(node="m", unread=unread))
        assert all(c.node != "m" for c in world.state.containers.values())

    @precondition(lambda self: self.world.timers)
    @rule()
    def timer(self) -> None:
        self.world.fire()

    @rule(name=names, pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        self.world.fed(ev.PinChanged(token=1, function=name, pinned=pinned))

    @rule(name=names)
    def preload(self, name: str) -> None:
        known = set(self.world.state.containers)
        self.world.fed(ev.PreloadRequested(token=2, function=name))
        assert set(self.world.state.containers) == known, "pre-loading by hand created a container"

    @rule(name=names)
    def offload(self, name: str) -> None:
        self.world.fed(ev.OffloadRequested(token=3, function=name))

    @rule(name=names, in_s=st.sampled_from([0.0, 30.0]))
    def hint(self, name: str, in_s: float) -> None:
        self.world.fed(ev.HintReceived(function=name, in_s=in_s, probability=0.9))

    @precondition(lambda self: self.world.state.containers)
    @rule(size=st.sampled_from([10, 90, 150, 400]))
    def sampled(self, size: int) -> None:
        for container in self.world.state.containers.values():
            if container.state == "ready" and container.instances:
                sizes = dict.fromkeys(container.instances, size * MB)
                self.world.fed(ev.MemorySampled(container=container.id, instances=sizes))
                return

    @precondition(lambda self: self.world.accepted)
    @rule(which=st.integers(0, 30))
    def cancel(self, which: int) -> None:
        self.world.fed(ev.RequestCancelled(request=1 + which % len(self.world.accepted)))

    @rule()
    def remember(self) -> None:
        self.middle = (len(self.world.log), len(self.world.decided), checkpoint.dump(self.world.state))

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for node in ("m", "n"):
            world.fed(ev.NodeOpened(node=node))
        world.settle(until=lambda: False)
        for _ in range(200):  # what still waits, waits for a timer or for memory: let time pass
            if len(world.ended) == len(world.accepted) or not world.timers:
                break
            world.fire()
            world.settle()
        for request in sorted(world.accepted - set(world.ended)):
            # What pins hold is not to be had, nor what a lost node had: those wait until the shell's limit of the
            # wait takes them back.
            function = world.state.requests[request].function
            assert function.spec.name in world.state.starved, f"{request} waits for nothing"
            assert world.state.homeless(function) or any(f.pinned for f in world.state.functions.values())
            world.fed(ev.RequestCancelled(request=request))
        left = world.accepted - set(world.ended)
        assert not left, f"requests {sorted(left)} never end: {[f.queue for f in world.state.functions.values()]}"
        self.replays()

    def replays(self) -> None:
        world = self.world
        timed = {"seconds": 20.0} if self.keep_alive == "fixed" else {}
        again = platform(self.mode, self.keep_alive, queue_limit=6, timed=timed)
        decided: list[act.AnyAction] = []
        for now, event in world.log:
            decided += again.handle(event, now)
        assert decided == world.decided, "a replay of the log decides differently"
        if self.middle is not None:
            events, actions, state = self.middle
            resumed = Platform(checkpoint.load(state))
            rest: list[act.AnyAction] = []
            for now, event in world.log[events:]:
                rest += resumed.handle(event, now)
            assert rest == world.decided[actions:], "a replay from a checkpoint decides differently"


#: Every mode beside a keep-alive policy that only evicts, one with a time and one that creates and ends by its
#: own forecast; every keep-alive policy beside the default mode and one with timers that ends co-residents.
PAIRS = [
    (mode, keep)
    for mode in registry.MODES
    for keep in registry.KEEP_ALIVES
    if keep in ("pressure", "fixed", "hybrid") or mode in ("hazard", "tyche")
]


@pytest.mark.parametrize(("mode", "keep_alive"), PAIRS, ids=[f"{m}-{k}" for m, k in PAIRS])
def test_any_order_of_facts(mode: str, keep_alive: str) -> None:
    machine = type("Pair", (Machine,), {"mode": mode, "keep_alive": keep_alive})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
