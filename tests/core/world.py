"""A small world that carries out the core's actions at once or later, as a shell would, and checks invariants
after every event."""

from __future__ import annotations

from collections.abc import Callable

from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.invariants import check
from instainfer.core.platform import Platform
from instainfer.core.state import State
from instainfer.model import Costs, Function, Level, Origin
from instainfer.policies import registry
from instainfer.policies.predict.forecast import Forecast

MB = 1 << 20


def function(name: str = "ns/f", **changes: object) -> Function:
    costs = Costs(
        container_s=0.05,
        import_s=0.5,
        load_s=0.5,
        warm_s=0.1,
        first_s=0.1,
        imported_bytes=50 * MB,
        loaded_bytes=100 * MB,
    )
    values: dict[str, object] = {"revision": f"{name}@1", "memory": 512 * MB, "costs": costs} | changes
    return Function(name=name, **values)  # type: ignore[arg-type] # test shorthand


def platform(
    mode: str = "hazard",
    keep_alive: str = "pressure",
    *,
    queue_limit: int = 1000,
    timed: dict[str, float] | None = None,
) -> Platform:
    chosen = registry.preload(mode)
    forecast = Forecast(registry.predictor(chosen.predictor))
    keeper = registry.keep_alive(keep_alive, **(timed or {}))
    return Platform(State(forecast, keeper, chosen.policy, queue_limit=queue_limit))


class World:
    """Records what was decided; answers commands when told to. Nothing happens by itself: tests say what
    the next fact is."""

    def __init__(
        self, brain: Platform, *, memory: int = 4096 * MB, guests: bool = True, zygote_memory: int = 0
    ) -> None:
        self.brain = brain
        self.now = 1000.0
        self.log: list[tuple[float, ev.AnyEvent]] = []
        self.decided: list[act.AnyAction] = []
        self.ended: dict[int, str] = {}  # request -> "ok" or the error's code
        self.running: dict[int, str] = {}  # request -> instance
        self.starts: dict[int, str] = {}
        self.frozen: set[str] = set()
        self.timers: dict[str, float] = {}
        self.accepted: set[int] = set()
        self.answers: dict[int, act.Answer] = {}
        self.creating: list[str] = []
        self.loading: list[tuple[str, Level]] = []
        self.ending: list[str] = []
        self.destroying: list[str] = []
        self.importing: list[str] = []  # zygotes
        self.retiring: list[str] = []
        joined = ev.NodeJoined(node="n", memory=memory, guests=guests, load_slots=2, zygote_memory=zygote_memory)
        self.fed(joined)

    @property
    def state(self) -> State:
        return self.brain.state

    def fed(self, event: ev.AnyEvent, after: float = 0.001) -> list[act.AnyAction]:
        self.now += after
        self.log.append((self.now, event))
        for request in getattr(event, "unread", ()):
            self.running.pop(request, None)
        before = {c.id: (c.last_used, c.uses) for c in self.state.containers.values()}
        known = set(self.state.containers)
        actions = self.brain.handle(event, self.now)
        self.decided += actions
        for action in actions:
            self._note(action)
        check(self.state)
        if isinstance(event, ev.TimerFired) and event.timer == "placement":
            # The papers' promise: pre-loading never creates a container and never moves its clock or ends it.
            assert set(self.state.containers) == known
            assert {c.id: (c.last_used, c.uses) for c in self.state.containers.values()} == before
            assert not any(isinstance(a, act.CreateContainer | act.DestroyContainer) for a in actions)
        return actions

    def _note(self, action: act.AnyAction) -> None:
        match action:
            case act.CreateContainer():
                self.creating.append(action.container)
            case act.DestroyContainer():
                self.destroying.append(action.container)
            case act.Load() | act.Raise():
                self.loading.append((action.instance, action.level))
                if action.ahead:
                    container = self.state.instances[action.instance].container
                    assert container.used <= container.limit, f"{action.instance} does not fit"
            case act.Offload():
                self.ending.append(action.instance)
                self.loading = [(i, level) for i, level in self.loading if i != action.instance]
            case act.Freeze():
                assert action.instance not in self.frozen, f"{action.instance} is frozen twice"
                self.frozen.add(action.instance)
            case act.Thaw():
                assert action.instance in self.frozen, f"{action.instance} is thawed, but was not frozen"
                self.frozen.discard(action.instance)
            case act.Dispatch():
                assert action.instance not in self.frozen, f"dispatch to frozen {action.instance}"
                assert action.request not in self.ended and action.request not in self.running
                self.running[action.request] = action.instance
                self.starts[action.request] = action.start.value
            case act.Reject():
                assert action.request not in self.ended, f"request {action.request} ends twice"
                self.running.pop(action.request, None)
                self.ended[action.request] = action.code
            case act.SetTimer():
                assert action.at >= self.now
                self.timers[action.timer] = action.at
            case act.Answer():
                self.answers[action.token] = action
            case act.StartZygote():
                assert action.revisions and action.zygote in self.state.zygotes
                self.importing.append(action.zygote)
            case act.EndZygote():
                assert action.zygote not in self.retiring, f"{action.zygote} is ended twice"
                self.retiring.append(action.zygote)
                self.importing = [z for z in self.importing if z != action.zygote]
            case act.ResizeContainer():
                pass

    # ---- facts -------------------------------------------------------------------------------------------------

    def arrive(self, name: str = "ns/f") -> int:
        request = len(self.accepted) + 1
        self.accepted.add(request)
        self.fed(ev.RequestArrived(request=request, function=name))
        return request

    def finish(self, request: int, seconds: float = 0.1) -> None:
        instance = self.running.pop(request)
        self.ended[request] = "ok"
        self.fed(ev.InvocationFinished(request=request, instance=instance, inference_s=seconds), after=seconds)

    def create(self) -> str:
        container = self.creating.pop(0)
        self.fed(ev.ContainerReady(container=container, seconds=0.05), after=0.05)
        return container

    def load(self, origin: Origin | None = None) -> str:
        """The oldest load that is not frozen ends well; begun as the core expects, if `origin` is not said."""
        at = next(i for i, (name, _) in enumerate(self.loading) if name not in self.frozen)
        instance, level = self.loading.pop(at)
        known = self.state.instances.get(instance)  # else the report is late
        origin = origin or (known.origin if known is not None else Origin.SPAWNED)
        import_s = 0.5 if origin is Origin.SPAWNED else 0.02
        load_s = 0.5 if origin is not Origin.CLONED else 0.0
        ready = ev.InstanceReady(instance=instance, level=level, origin=origin, import_s=import_s, load_s=load_s)
        self.fed(ready, after=import_s + load_s)
        return instance

    def imported(self, size: int = 60 * MB) -> str:
        """The oldest zygote on its way is ready."""
        zygote = self.importing.pop(0)
        self.fed(ev.ZygoteReady(zygote=zygote, import_s=0.5, bytes=size), after=0.5)
        return zygote

    def retire(self) -> str:
        zygote = self.retiring.pop(0)
        self.fed(ev.ZygoteLost(zygote=zygote, reason="ended"))
        return zygote

    def end(self) -> str:
        instance = self.ending.pop(0)
        if instance in self.state.instances:
            self.frozen.discard(instance)
            self.fed(ev.InstanceLost(instance=instance, reason="off-loaded"))
        return instance

    def destroy(self) -> str:
        container = self.destroying.pop(0)
        for name, instance in list(self.state.instances.items()):
            if instance.container.id == container:
                self.frozen.discard(name)
        self.fed(ev.ContainerLost(container=container, reason="destroyed"))
        return container

    def fire(self, timer: str | None = None) -> str:
        """The next timer (or this one), at its time."""
        name = timer or min(self.timers, key=lambda t: (self.timers[t], t))
        at = self.timers.pop(name)
        self.fed(ev.TimerFired(timer=name), after=max(0.0, at - self.now))
        return name

    def settle(self, *, until: Callable[[], bool] = lambda: False, steps: int = 1000) -> None:
        """Let everything under way end, and timers of placement fire, until nothing but far timers is left."""
        for _ in range(steps):
            if until():
                return
            if self.destroying:
                self.destroy()
            elif self.ending:
                self.end()
            elif self.retiring:
                self.retire()
            elif self.importing:
                self.imported()
            elif self.creating:
                self.create()
            elif any(name not in self.frozen for name, _ in self.loading):
                self.load()
            elif self.running:
                self.finish(next(iter(self.running)))
            elif self.timers.get("placement", self.now + 1) < self.now + 0.5:
                self.fire("placement")
            else:
                return
        raise AssertionError("it does not settle")

    def serve(self, name: str = "ns/f") -> int:
        """A request, through to its answer."""
        request = self.arrive(name)
        self.settle(until=lambda: request in self.ended)
        return request
