"""The `containers` world: nodes, containers and instances that cost what they are said to cost."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.prices import Price, price
from instainfer.model import Costs, Function, Level, Origin, StartKind
from instainfer.sim.costs import Node, Workload
from instainfer.sim.engine import Engine
from instainfer.sim.loads import Job, Loads
from instainfer.sim.tally import ByClass, Call, Tally, Timeline

#: A wait below this is nobody's harm.
_NOTICED_S = 0.01
#: More than lies between two passes of the core: each may start a zygote.
_PASS_S = 1.0
#: Starts for which nothing had to be loaded.
_READY = (StartKind.WARM, StartKind.PRELOADED)


class _Site:
    """A node."""

    __slots__ = ("loads", "node", "zygotes")

    def __init__(self, engine: Engine, node: Node) -> None:
        self.node = node
        self.loads = Loads(engine, node.cores or node.load_slots)
        self.zygotes: dict[tuple[str, str], str] = {}  # namespace and libraries -> the zygote that is ready


class _Container:
    __slots__ = (
        "created", "former", "free_at", "id", "instances", "last", "left", "limit", "owner", "ready_at", "since",
        "site",
    )  # fmt: skip

    def __init__(self, id: str, site: _Site, owner: str, limit: int, now: float) -> None:
        self.id = id
        self.site = site
        self.owner = owner
        self.former: set[str] = set()  # owners before this one; asked for membership only
        self.left: set[str] = set()  # owners, now or before, whose instance was off-loaded; likewise
        self.limit = limit
        self.created = now
        self.ready_at = now
        self.since = now  # it has had this limit
        self.free_at = now  # its commands so far are carried out
        self.last = owner  # the function that ran in it last
        self.instances: dict[str, _Instance] = {}


class _Instance:
    __slots__ = (
        "ahead", "began", "container", "frozen", "function", "id", "job", "level", "price", "ready_at", "served",
        "start_s", "steps", "target", "waiting", "warmed",
    )  # fmt: skip

    def __init__(
        self, id: str, function: int, container: _Container, found: Price, *, ahead: bool, waiting: bool
    ) -> None:
        self.id = id
        self.price = found
        self.function = function
        self.container = container
        self.ahead = ahead
        self.waiting = waiting  # whoever waits brings the first call: there is no other warm-up
        self.warmed = False
        self.served = 0
        self.frozen = False
        self.level = Level.NONE
        self.target = Level.NONE
        self.began = 0.0  # of the present load, its process started
        self.start_s = 0.0  # of which this was before
        self.ready_at = 0.0
        self.steps = (0.0, 0.0, 0.0)  # import, load, warm-up of the present load
        self.job: Job | None = None

    @property
    def bytes(self) -> int:
        return self.price.bytes(max(self.level, self.target))

    @property
    def unused(self) -> bool:
        """Loaded ahead, and nobody has called it."""
        return self.ahead and not self.served and self.level > Level.NONE


class _Zygote:
    __slots__ = ("job", "libraries", "modules", "since", "site", "size")

    def __init__(
        self, site: _Site, libraries: tuple[str, str], modules: set[str], job: Job, size: int, now: float
    ) -> None:
        self.site = site
        self.libraries = libraries  # namespace and key
        self.modules = modules  # digests of what it imports
        self.job = job
        self.size = size
        self.since = now


class Containers:
    """Executes the core's actions. The commands of one container take effect in their order: what follows a
    freeze starts when that is confirmed. Nothing fails here."""

    def __init__(
        self,
        engine: Engine,
        nodes: list[Node],
        work: Workload,
        tally: Tally | ByClass,
        timeline: Timeline | None = None,
        usual: Sequence[float] = (),
    ) -> None:
        """`usual`: what each request waits where nobody has guests (see `waits`): guests harm only those that are
        served at once there. Where it is not given, they are taken to harm all that were pushed out."""
        self.engine = engine
        self._usual = usual
        self.waits = array("d")  # of each request, where there is room for it: seconds until its inference began
        self._work = work
        self._shared = tally.shared if isinstance(tally, ByClass) else tally
        self._tally_of = list(tally.of) if isinstance(tally, ByClass) else [tally] * len(work.functions)
        self._timeline = timeline or Timeline()
        self._functions: list[Function] = work.functions
        self._loading_s = [function.costs.loading_s for function in work.functions]
        self._times = work.times
        self._which = work.which
        self._durations = work.durations
        self._index = {function.name: i for i, function in enumerate(work.functions)}
        self._sites = {node.name: _Site(engine, node) for node in nodes}
        self._containers: dict[str, _Container] = {}
        self._instances: dict[str, _Instance] = {}
        self._zygotes: dict[str, _Zygote] = {}
        self._pushed_out: set[str] = set()  # functions whose instance went after its container changed hands
        self.settled = 0
        self.running = 0
        self.carry_out: dict[type[act.Action], Callable[[Any, float], None]] = {
            act.CreateContainer: self._create,
            act.ResizeContainer: self._resize,
            act.DestroyContainer: self._destroy,
            act.Load: self._load,
            act.Raise: self._raise,
            act.Offload: self._offload,
            act.Freeze: self._freeze,
            act.Thaw: self._thaw,
            act.StartZygote: self._start_zygote,
            act.EndZygote: self._end_zygote,
            act.Dispatch: self._dispatch,
            act.Reject: self._reject,
            act.Answer: lambda action, now: None,
        }

    def begin(self) -> None:
        """Nodes join and functions are deployed: at time 0, or so long before it that library zygotes, where there
        are some, can be ready then."""
        self.engine.now = -self._lead_s()
        for site in self._sites.values():
            self._joined(site.node)
        for function in self._functions:
            self.engine.feed(ev.FunctionDeployed(function=function))
        self.engine.advance(0.0)

    def _lead_s(self) -> float:
        if not any(site.node.zygote_memory for site in self._sites.values()):
            return 0.0
        imports = {(f.tenant, f.libraries): f.costs.import_s for f in self._functions if f.forkable}
        slowest = max((site.node.load_factor for site in self._sites.values()), default=1.0)
        return sum(_PASS_S + import_s * slowest for import_s in imports.values())

    def join(self, node: Node) -> None:
        """One more node, now."""
        self._sites[node.name] = _Site(self.engine, node)
        self._joined(node)

    def _joined(self, node: Node) -> None:
        self.engine.feed(
            ev.NodeJoined(
                node=node.name,
                memory=node.memory,
                guests=node.guests,
                load_slots=node.load_slots,
                zygote_memory=node.zygote_memory,
            )
        )

    def leave(self, node: str) -> None:
        """It is lost, and all that is on it. What ran there was counted when it began, and stays so."""
        site = self._sites.pop(node, None)
        if site is None:
            return
        now = self.engine.now
        for zygote in [name for name, one in self._zygotes.items() if one.site is site]:
            gone = self._zygotes.pop(zygote)
            site.loads.suspend(gone.job)
            self._shared.held_by_zygote(gone.size, gone.since, now)
        for container in [one for one in self._containers.values() if one.site is site]:
            del self._containers[container.id]
            for instance in container.instances.values():
                self._gone(instance, now)
            self._held(container, now)
        self.engine.feed(ev.NodeLost(node=node, reason="it is gone"))

    def deploy(self, function: Function) -> None:
        """One more function, or another revision of one, now."""
        at = self._index.setdefault(function.name, len(self._functions))
        if at == len(self._functions):
            self._functions.append(function)
            self._loading_s.append(function.costs.loading_s)
            self._tally_of.append(self._shared)
        else:
            self._functions[at] = function
            self._loading_s[at] = function.costs.loading_s
        self.engine.feed(ev.FunctionDeployed(function=function))

    def finish(self) -> None:
        """Count what is still held."""
        self._hold(None, max(self.engine.now, self._work.end))

    def hold(self, tally: Tally, now: float) -> None:
        """Count into `tally` what is held at `now` as if it were let go then."""
        self._hold(tally, now)

    def _hold(self, tally: Tally | None, now: float) -> None:
        for container in self._containers.values():
            self._held(container, now, tally)
        for instance in self._instances.values():
            self._account(instance, now, tally)
        for zygote in self._zygotes.values():
            (tally or self._shared).held_by_zygote(zygote.size, zygote.since, now)

    def _held(self, container: _Container, now: float, tally: Tally | None = None) -> None:
        """It had its limit until now, for its owner."""
        tally = tally or self._tally_of[self._index[container.owner]]
        tally.held(container.limit, container.since, now)

    # ---- containers ----------------------------------------------------------------------------------------

    def _create(self, action: act.CreateContainer, now: float) -> None:
        site = self._sites[action.node]
        self._containers[action.container] = _Container(action.container, site, action.function, action.limit, now)
        seconds = self._costs(action.function).container_s * site.node.load_factor
        self._containers[action.container].ready_at = now + seconds
        self.engine.post(now + seconds, ev.ContainerReady(container=action.container, seconds=seconds))

    def _resize(self, action: act.ResizeContainer, now: float) -> None:
        container = self._containers[action.container]
        self._held(container, now)
        container.limit, container.since = action.limit, now

    def _destroy(self, action: act.DestroyContainer, now: float) -> None:
        container = self._containers.pop(action.container)
        node = container.site.node
        seconds = node.destroy_s
        for instance in container.instances.values():
            seconds += instance.bytes * node.end_s_per_byte
            self._gone(instance, now)
        gone = max(now, container.free_at) + seconds
        self._held(container, gone)
        self.engine.post(gone, ev.ContainerLost(container=container.id, reason="destroyed"))

    # ---- instances -----------------------------------------------------------------------------------------

    def _load(self, action: act.Load, now: float) -> None:
        container = self._containers[action.container]
        function = self._index[action.function]
        found = self._price(function, container.site)
        instance = _Instance(
            action.instance, function, container, found, ahead=action.ahead, waiting=action.waiting
        )
        container.instances[instance.id] = instance
        self._instances[instance.id] = instance
        if found.origin is Origin.SPAWNED:
            instance.start_s = self._functions[function].costs.start_s * container.site.node.load_factor
        self._begin(instance, action.level, found.import_s, now)

    def _price(self, function: int, site: _Site) -> Price:
        """By the fastest way there is: a clone of a loaded instance, a fork of a zygote, or from nothing."""
        spec = self._functions[function]
        if spec.cloneable and any(
            other.function == function and other.level >= Level.LOADED and other.container.site is site
            for other in self._instances.values()
        ):
            return price(spec.costs, Origin.CLONED)
        return price(spec.costs, Origin.FORKED if self._forks(spec, site) else Origin.SPAWNED)

    def _forks(self, spec: Function, site: _Site) -> bool:
        """Is there a zygote with all that it imports?"""
        zygote = site.zygotes.get((spec.tenant, spec.libraries)) if spec.forkable else None
        return zygote is not None and (not spec.modules or spec.modules in self._zygotes[zygote].modules)

    def _raise(self, action: act.Raise, now: float) -> None:
        instance = self._instances.get(action.instance)
        if instance is not None:
            instance.ahead = instance.ahead and action.ahead
            instance.start_s = 0.0
            self._begin(instance, action.level, 0.0, now)

    def _begin(self, instance: _Instance, level: Level, import_s: float, now: float) -> None:
        costs = self._functions[instance.function].costs
        site, container = instance.container.site, instance.container
        load_s, warmup_s = costs.load_s, costs.warmup_s
        if instance.price.origin is Origin.CLONED:
            load_s, warmup_s = instance.price.loading_s, 0.0  # its template is warm
            instance.warmed = True
        if level < Level.LOADED:
            load_s = warmup_s = 0.0
        elif instance.waiting:
            warmup_s = 0.0
        elif warmup_s > 0.0:
            instance.warmed = True
        factor = site.node.load_factor
        instance.steps = import_s * factor, load_s * factor, warmup_s * factor
        instance.target = level
        instance.began = now + instance.start_s
        self._takes(container, self._functions[instance.function].name)
        job = instance.job = Job(instance.start_s + sum(instance.steps), lambda: self._loaded(instance))
        if container.free_at > now:
            self.engine.call(container.free_at, lambda: self._go_on(instance, job))
        else:
            site.loads.resume(job)

    def _go_on(self, instance: _Instance, job: Job) -> None:
        """A load whose turn in its container has come, unless it was stopped meanwhile."""
        if instance.job is job and not job.entry and not instance.frozen:
            instance.container.site.loads.resume(job)

    def _loaded(self, instance: _Instance) -> None:
        job, now = instance.job, self.engine.now
        if job is None:
            return  # the report of a load that ended at the same moment has ended this one
        instance.job = None
        instance.level = instance.target
        instance.ready_at = now
        slowed = job.slowed
        import_s, load_s, warmup_s = instance.steps
        self.engine.feed(
            ev.InstanceReady(
                instance=instance.id,
                level=instance.level,
                origin=instance.price.origin,
                start_s=instance.start_s * slowed,
                import_s=import_s * slowed,
                load_s=load_s * slowed,
                warmup_s=warmup_s * slowed,
            )
        )

    def _offload(self, action: act.Offload, now: float) -> None:
        instance = self._instances.get(action.instance)
        if instance is None:
            return
        container = instance.container
        name = self._functions[instance.function].name
        if name == container.owner or name in container.former:
            container.left.add(name)
        node = container.site.node
        seconds = node.end_s + instance.bytes * node.end_s_per_byte
        del container.instances[instance.id]
        self._gone(instance, now)
        at = max(now, container.free_at) + seconds
        self.engine.post(at, ev.InstanceLost(instance=instance.id, reason="off-loaded"))

    def _gone(self, instance: _Instance, now: float) -> None:
        if instance.job is not None:
            instance.container.site.loads.suspend(instance.job)
            instance.job = None
        self._account(instance, now)
        del self._instances[instance.id]

    def _account(self, instance: _Instance, now: float, tally: Tally | None = None) -> None:
        if instance.unused:
            tally = tally or self._tally_of[instance.function]
            tally.wasted(instance.bytes, instance.ready_at, now)

    def _freeze(self, action: act.Freeze, now: float) -> None:
        instance = self._instances.get(action.instance)
        if instance is not None:
            instance.frozen = True
            container = instance.container
            if instance.job is not None:
                container.site.loads.suspend(instance.job)
            container.free_at = max(now, container.free_at) + container.site.node.freeze_s

    def _thaw(self, action: act.Thaw, now: float) -> None:
        instance = self._instances.get(action.instance)
        if instance is None:
            return
        instance.frozen = False
        container = instance.container
        container.free_at = max(now, container.free_at) + container.site.node.thaw_s
        if instance.job is not None:
            job = instance.job
            self.engine.call(container.free_at, lambda: self._go_on(instance, job))

    # ---- zygotes -------------------------------------------------------------------------------------------

    def _start_zygote(self, action: act.StartZygote, now: float) -> None:
        """What it imports, and so how long that takes and what it holds, is what its functions need together;
        what of it they share is not known, and the most that one of them needs is taken for all."""
        site = self._sites[action.node]
        wanted = set(action.revisions)
        of = [f for f in self._functions if f.revision in wanted]
        import_s = max((f.costs.import_s for f in of), default=0.0) * site.node.load_factor
        size = max((f.costs.libraries_bytes or f.costs.imported_bytes for f in of), default=0)
        tenant = of[0].tenant if of else ""
        job = Job(import_s, lambda: self._zygote_ready(action.zygote))
        modules = {f.modules for f in of}
        self._zygotes[action.zygote] = _Zygote(site, (tenant, action.libraries), modules, job, size, now)
        site.loads.resume(job)

    def _zygote_ready(self, name: str) -> None:
        zygote = self._zygotes.get(name)
        if zygote is None:
            return  # it was ended at this very moment
        zygote.site.zygotes[zygote.libraries] = name
        self.engine.feed(ev.ZygoteReady(zygote=name, import_s=zygote.job.spent_s, bytes=zygote.size))

    def _end_zygote(self, action: act.EndZygote, now: float) -> None:
        zygote = self._zygotes.pop(action.zygote)
        site = zygote.site
        site.loads.suspend(zygote.job)
        if site.zygotes.get(zygote.libraries) == action.zygote:
            del site.zygotes[zygote.libraries]
        gone = now + site.node.end_s + zygote.size * site.node.end_s_per_byte
        self._shared.held_by_zygote(zygote.size, zygote.since, gone)
        self.engine.post(gone, ev.ZygoteLost(zygote=action.zygote, reason="ended"))

    # ---- requests ------------------------------------------------------------------------------------------

    def _dispatch(self, action: act.Dispatch, now: float) -> None:
        self.settled += 1
        request = action.request
        instance = self._instances[action.instance]
        container, function = instance.container, self._functions[instance.function]
        node, costs = container.site.node, function.costs
        begin = container.free_at if container.free_at > now else now
        begin += node.dispatch_s + node.hop_s
        seconds = self._durations[request] if self._durations else costs.warm_s
        seconds *= node.inference_factor
        first_s = 0.0
        if not instance.warmed:
            first_s = max(costs.first_s - costs.warm_s, 0.0) * node.inference_factor
            instance.warmed = True
        instance.served += 1
        self._harm(action.start, function.name, container, request, begin, self._tally_of[instance.function])
        if self.waits:
            self.waits[request] = begin - self._times[request]
        if not node.cores:
            self._inferred(action, instance, begin, begin + first_s + seconds, first_s, seconds)
            return
        self.running += 1

        def ended(end: float, slowed: float) -> None:
            self.running -= 1
            self._inferred(action, instance, begin, end, first_s * slowed, seconds * slowed)

        loads = container.site.loads
        if self._durations:  # those of a trace are as long as they turned out, and only slow others
            job = Job(inf, lambda: None)
            end = begin + first_s + seconds

            def stop() -> None:
                loads.suspend(job)
                ended(end, 1.0)

            self.engine.call(end, stop)
        else:
            job = Job(first_s + seconds, lambda: ended(self.engine.now, job.slowed))
        self.engine.call(begin, lambda: loads.resume(job))

    def _inferred(
        self, action: act.Dispatch, instance: _Instance, begin: float, end: float, first_s: float, seconds: float
    ) -> None:
        """It ran from `begin` to `end`: `seconds`, after `first_s` that no later call needs. What the core and the
        caller learn of it, they learn then or later."""
        request, container = action.request, instance.container
        end += container.site.node.hop_s
        self.engine.post(
            end, ev.InvocationFinished(request=request, instance=instance.id, inference_s=first_s + seconds)
        )
        arrived = self._times[request]
        paid = max(0.0, instance.ready_at - max(arrived, instance.began)) + first_s
        tally = self._tally_of[instance.function]
        tally.served(arrived, action.start, end - arrived, seconds, self._loading_s[instance.function], paid)
        if request in self._timeline.requests:
            warming = 0.0
            if instance.ready_at > arrived:  # what it waited for began with the container, or with the process
                warming = max(0.0, container.ready_at - max(arrived, container.created))
                warming += max(0.0, instance.began - max(arrived, instance.began - instance.start_s))
            parts = action.start, warming, paid, seconds, end - arrived
            self._timeline.calls.append(Call(request, instance.function, arrived, *parts))

    def _harm(
        self, start: StartKind, name: str, container: _Container, request: int, begin: float, tally: Tally
    ) -> None:
        """What guests did to this request, and whose container it is from now on. Most functions that were pushed
        out would have had to make way for somebody without guests, too: who asks for memory takes it from
        others in any case."""
        self._takes(container, name)
        concerned = start in _READY and container.last != name and name in container.former
        if name in self._pushed_out:
            self._pushed_out.discard(name)
            concerned = start not in _READY
        if concerned:
            arrived = self._times[request]
            waited = begin - arrived
            if waited > _NOTICED_S and not (self._usual and self._usual[request] > _NOTICED_S):
                tally.harm(arrived, waited)
        container.last = name
        if container.owner != name:
            container.former.add(container.owner)
            container.former.discard(name)
            container.owner = name

    def _takes(self, container: _Container, name: str) -> None:
        """It uses the container's memory: owners that are not in it any more have lost their place to it."""
        if container.left:
            container.left.discard(name)
            self._pushed_out |= container.left
            container.left.clear()

    def _reject(self, action: act.Reject, now: float) -> None:
        if action.instance:
            return  # it ran, on a node that was lost: it was counted when it began
        self.settled += 1
        request = action.request
        tally = self._tally_of[self._which[request]] if self._which else self._shared
        tally.refused(self._times[request])

    def _costs(self, name: str) -> Costs:
        return self._functions[self._index[name]].costs
