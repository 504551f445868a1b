"""Nothing is loaded and off-loaded over and over: what fits when it is placed still fits when it is measured, and
what others had to go for is loaded."""

from __future__ import annotations

from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.model import Costs, Level, Origin
from tests.core.world import MB, World, function, platform

SMALL, GUEST = "ns/small", "ns/profanity"


def costs(imported: int, loaded: int) -> Costs:
    return Costs(
        container_s=0.05, import_s=0.4, load_s=0.5, warm_s=0.01, imported_bytes=imported, loaded_bytes=loaded
    )  # fmt: skip


class Watched(World):
    """One container of 64 MB, of `small`, and a guest that is expected; both are measured, as they are live."""

    def __init__(self, *, small: int, imported: int, loaded: int, real: int, mode: str = "hazard") -> None:
        super().__init__(platform(mode), memory=64 * MB)
        self.real = {SMALL: small * MB, GUEST: real * MB}
        self.libraries = {SMALL: (small - 1) * MB, GUEST: imported * MB}
        self._deploy(SMALL, 64, small - 1, small)
        self._deploy(GUEST, 64, imported, loaded)
        self.serve(SMALL)

    def _deploy(self, name: str, memory: int, imported: int, loaded: int) -> None:
        known = costs(imported * MB, loaded * MB)
        self.fed(ev.FunctionDeployed(function=function(name, memory=memory * MB, costs=known)))

    def measure(self) -> None:
        for container in list(self.state.containers.values()):
            sizes = {
                one.id: self.real[one.function.spec.name]
                if one.level >= Level.LOADED
                else self.libraries[one.function.spec.name]
                for one in container.instances.values()
                if one.state in ("ready", "imported")
            }
            if sizes:
                self.fed(ev.MemorySampled(container=container.id, instances=sizes))

    def live(self, seconds: float) -> None:
        """Nobody calls; passes and samples go on."""
        end = self.now + seconds
        while self.now < end:
            self.settle()
            self.measure()
            self.settle()
            if "placement" in self.timers:
                self.fire("placement")
            self.now += 0.2

    def loads(self, name: str) -> int:
        return sum(isinstance(a, act.Load) and a.function == name for a in self.decided)

    def loaded(self, name: str) -> bool:
        return self.state.functions[name].best_level() >= Level.LOADED


def expect(w: World, name: str) -> None:
    w.fed(ev.HintReceived(function=name, in_s=5.0, probability=1.0))


def test_a_guest_is_not_placed_where_it_would_have_to_go_again() -> None:
    """10 and 52 of 64 MB: within the limit, and over what a container may hold before its guests go."""
    w = Watched(small=10, imported=20, loaded=52, real=52)
    for _ in range(5):
        expect(w, GUEST)
        w.live(5.0)
    rules = [a.why.rule for a in w.decided if isinstance(a, act.Offload)]
    assert "the container nears its limit" not in rules
    assert w.loads(GUEST) == 1  # in place of the other, which nobody expects
    assert w.loaded(GUEST)


def test_a_guest_that_fits_with_room_to_spare_is_placed() -> None:
    w = Watched(small=10, imported=20, loaded=50, real=50)
    expect(w, GUEST)
    w.live(5.0)
    assert w.loaded(GUEST) and w.loaded(SMALL)
    assert w.loads(GUEST) == 1 and not any(isinstance(a, act.Offload) for a in w.decided)


def test_an_owner_may_fill_its_container() -> None:
    w = Watched(small=10, imported=20, loaded=50, real=50)
    w.fed(
        ev.FunctionDeployed(function=function(SMALL, revision="2", memory=64 * MB, costs=costs(30 * MB, 63 * MB)))
    )
    w.real[SMALL] = 63 * MB
    w.settle()
    w.fed(ev.PreloadRequested(token=1, function=SMALL))
    w.settle()
    assert w.answers[1].ok and w.loaded(SMALL)


def test_what_others_went_for_is_loaded() -> None:
    """By value per byte `small` comes first into the emptied container, and goes again at the next tick."""
    w = Watched(small=10, imported=53, loaded=53, real=53)
    for _ in range(5):
        expect(w, GUEST)
        w.live(5.0)
    assert w.loaded(GUEST)
    assert w.loads(GUEST) == 1
    assert w.loads(SMALL) == 1  # its own request's


def test_a_promise_is_off_where_something_came_between() -> None:
    w = Watched(small=10, imported=53, loaded=53, real=53)
    expect(w, GUEST)
    while not w.ending:
        w.fire("placement")
    assert [promise.function for promise in w.state.promised.values()] == [GUEST]
    w.end()
    request = w.arrive(SMALL)
    w.fire("placement")
    assert not w.state.promised
    w.settle(until=lambda: request in w.ended)
    assert w.ended[request] == "ok"


class Forgetful(Watched):
    """What is measured of libraries alone is not learned, as where they were forked."""

    def measure(self) -> None:
        super().measure()
        self.state.functions[GUEST].learn(imported_bytes=4 * MB)


def test_what_outgrows_its_forecast_again_and_again_is_left_alone() -> None:
    w = Forgetful(small=52, imported=4, loaded=62, real=62)
    w.libraries[GUEST] = 20 * MB
    evicted = []
    for _ in range(100):
        expect(w, GUEST)
        w.live(1.0)
        evicted.append(sum(isinstance(a, act.Offload) for a in w.decided))
    assert evicted[10] == 2, evicted  # once more, since its size might have been learned
    assert evicted[-1] == 4, evicted  # after 30 s, after 60 s …
    guest = w.state.functions[GUEST]
    assert guest.squeezed == 4 and guest.blocked_until > w.now
    assert w.ended[w.serve(GUEST)] == "ok"  # whoever calls it gets it all the same
    assert guest.squeezed == 0


def test_a_guest_that_served_is_not_blamed() -> None:
    w = Watched(small=10, imported=20, loaded=40, real=40)
    expect(w, GUEST)
    w.live(2.0)
    w.state.functions[GUEST].squeezed = 3
    w.serve(GUEST)
    assert w.state.functions[GUEST].squeezed == 0
    assert {one.origin for one in w.state.instances.values()} == {Origin.SPAWNED}
