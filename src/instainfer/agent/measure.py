"""The profile of a function, from real loads and calls in a container of its own."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from instainfer.agent.base import Answered, Report, Revision
from instainfer.agent.container import ContainerHost
from instainfer.agent.room import FIRST_UID, Maker
from instainfer.agent.snapshots import key
from instainfer.agent.starting import interception
from instainfer.agent.zygotes import Refused, Zygote
from instainfer.core.events import ContainerLost, InstanceFailed, InstanceLost, InstanceReady
from instainfer.errors import BY_CODE, InstaInferError, InstanceCrashed, InvocationFailed, LoadFailed, from_problem
from instainfer.model import Costs, Level, Origin, Profile, Style

if TYPE_CHECKING:
    from instainfer.agent.local import LocalAgent

WARM_CALLS = 3
HINT = "the function was not deployed; fix it and deploy again"
MISSING = (
    "the function was not deployed; add the package that has this module to its requirements, and deploy again"
)
OFF = "switched off in its settings"


class Watch:
    """Collects what a container reports, for one waiter at a time."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Report] = asyncio.Queue()
        self.output: list[str] = []

    def __call__(self, report: Report) -> None:
        if logs := getattr(report, "logs", ()):
            self.output += [text for _, text in logs]
        self._queue.put_nowait(report)

    async def until(self, kind: type[Any], function: str) -> Any:
        """The next report of this kind; an end of the instance or container raises what it means."""
        while True:
            report = await self._queue.get()
            if isinstance(report, kind):
                return report
            printed = "".join(self.output)[-4000:]
            if isinstance(report, InstanceFailed):
                error, _, trace = report.reason.partition("\n")
                detail = "\n".join(part for part in (trace, printed) if part)
                hint = MISSING if error.startswith("ModuleNotFoundError") else HINT
                raise LoadFailed(error, function=function, phase=report.phase, detail=detail, hint=hint)
            if isinstance(report, InstanceLost | ContainerLost):
                error_kind = BY_CODE[report.code] if isinstance(report, InstanceLost) else InstanceCrashed
                raise error_kind(report.reason, function=function, phase="load", detail=printed, hint=HINT)


class Load:
    """What one load of the function showed."""

    def __init__(self, ready: InstanceReady, details: dict[str, Any]) -> None:
        self.start_s = ready.start_s
        self.import_s = ready.import_s
        self.load_s = ready.load_s
        self.warmup_s = ready.warmup_s
        self.first_s = float(details.get("first_s", 0.0))
        self.modules = tuple(str(module) for module in details.get("modules", ()))
        self.tasks = int(details.get("tasks", 1))
        self.digest = str(details.get("digest", ""))  # of the answer to the sample
        self.unforkable = str(details.get("unforkable", ""))
        said = details.get("snapshot")
        self.snapshot: dict[str, Any] = said if isinstance(said, dict) else {}
        said = details.get("intercepted")
        self.intercepted: dict[str, Any] = said if isinstance(said, dict) else {}
        self.bytes = 0


async def measure(
    agent: LocalAgent, revision: Revision, package: Path, name: str, progress: Callable[[str], None]
) -> Profile:
    """Load it several times. The first load is plain and records which modules came from the environment; a zygote
    then imports just those, and the second load, plain again, is forked from it, writes the model's snapshot and
    takes the calls. The third restores the snapshot in a process that has never loaded; the fourth is forked
    from a loaded template. A way that fails, or answers otherwise than the plain loads, is not taken, and the
    profile says why.

    Raises LoadFailed, InvocationFailed or InstanceCrashed with the phase and what was printed, when the function
    itself fails.
    """
    uid = revision.uid_base + FIRST_UID + revision.number if agent.sandbox.enforces.function_uids else None
    work = await asyncio.to_thread(agent.snapshots.workplace, revision, name, uid)
    watch = Watch()
    try:
        started = time.monotonic()
        spec = agent.spec(revision, name, revision.memory, revision.mounts, (work,))
        host = await agent.open(spec, watch)
        measurement = Measurement(agent, revision, package, name, work, watch, host, progress)
        try:
            return await measurement.run(time.monotonic() - started)
        finally:
            await host.close("measured")
            await measurement.close()
    finally:
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)


class Measurement:
    def __init__(
        self,
        agent: LocalAgent,
        revision: Revision,
        package: Path,
        name: str,
        work: Path,
        watch: Watch,
        host: ContainerHost,
        progress: Callable[[str], None],
    ) -> None:
        self._agent = agent
        self._revision = revision
        self._package = package
        self._name = name
        self._work = work
        self._watch = watch
        self._host = host
        self._progress = progress
        self._function = f"{revision.namespace}/{revision.name}"
        self._apart = agent.sandbox.enforces.function_uids
        self._zygote: Zygote | None = None
        self._paths = {
            "zygote": "" if revision.libraries else OFF,
            "snapshot": self._no_snapshot(),
            "clone": "" if revision.clone else OFF,
            "intercept": "" if revision.intercept else OFF,
        }

    async def run(self, container_s: float) -> Profile:
        self._progress("first load: recording what it imports")
        recording = {"record_init": True} if self._revision.intercept else {}
        first = await self._load("first", {"digest": True, "intercept": recording})
        await self._end("first")
        recorded = first.intercepted.get("record")
        self._revision = msgspec.structs.replace(
            self._revision, modules=first.modules, recorded=recorded if isinstance(recorded, dict) else {}
        )
        libraries_bytes = await self._start_zygote()
        second, imported_bytes, warm_s, answer = await self._second(first)
        await self._end("second")
        best, snapshot_bytes = await self._restored(first, second)
        if best is second and self._revision.intercept:
            best = await self._intercepted(first, second)
        cloned_s, cloned_bytes = await self._cloned(first, second)
        forked = self._zygote is not None
        imported_bytes = libraries_bytes if forked else imported_bytes
        own = second.bytes if best is second else min(second.bytes, best.bytes)
        return Profile(
            costs=Costs(
                container_s=container_s,
                import_s=first.import_s,
                load_s=best.load_s,
                warmup_s=second.warmup_s,
                first_s=second.first_s or first.first_s,
                warm_s=warm_s,
                imported_bytes=imported_bytes,
                loaded_bytes=imported_bytes + own if forked else max(own, imported_bytes),
                libraries_bytes=libraries_bytes,
                fork_s=second.start_s + second.import_s if forked else 0.0,
                forked_bytes=own if forked else 0,
                clone_s=cloned_s,
                cloned_bytes=cloned_bytes,
                start_s=first.start_s,
            ),
            modules=first.modules,
            tasks=second.tasks,
            answer=answer,
            paths=self._paths,
            plain_load_s=second.load_s,
            recorded=self._revision.recorded,
            snapshot_bytes=snapshot_bytes,
        )

    async def close(self) -> None:
        if self._zygote is not None:
            await self._zygote.close()

    # ---- steps ---------------------------------------------------------------------------------------------

    def _no_snapshot(self) -> str:
        """Why none is to be tried, or ""."""
        revision = self._revision
        if not revision.snapshot:
            return OFF
        if revision.style is Style.SCRIPT:
            return "a script cannot say what its model is"
        if revision.style is Style.MODULE and not revision.declared:
            return 'it does not declare which globals are its model (snapshot = ["model"])'
        if not revision.sample:
            return "there is no sample to verify it with"
        return ""

    async def _start_zygote(self) -> int:
        """Its bytes, or 0."""
        revision = self._revision
        if self._paths["zygote"]:
            return 0
        self._progress(f"a zygote: importing {len(revision.modules)} modules once")
        zygote = Zygote(f"{self._name}z", revision.libraries, frozenset({revision.number}))
        room = self._agent.room(zygote.name, [revision], revision.memory, (self._work,))
        try:
            await zygote.start(self._agent.sandbox.create, room, [revision], revision.memory, apart=self._apart)
        except (Refused, InstaInferError, OSError, TimeoutError) as error:
            self._paths["zygote"] = str(error) or type(error).__name__
            await zygote.close()
            return 0
        self._zygote = zygote
        return await asyncio.to_thread(zygote.bytes)

    async def _second(self, first: Load) -> tuple[Load, int, float, str]:
        """Plain as the first, but for the number of threads; with the bytes of its libraries where no zygote tells
        them, the median time of a warm call and the answer."""
        spec: dict[str, object] = {"digest": True, "intercept": self._threads()}
        if not self._paths["snapshot"]:
            spec["snapshot_to"] = {"path": str(self._work / "snapshot"), "key": key(self._revision)}
        imported_bytes = 0
        if self._zygote is None:
            self._progress(f"second load: {len(first.modules)} modules from the environment, then the model")
            await self._load("second", spec, Level.IMPORTED)
            imported_bytes = await self._bytes("second")
            self._host.residents["second"].host.lift(Level.LOADED)
            ready = await self._watch.until(InstanceReady, self._function)
            second = Load(ready, self._host.residents["second"].host.details)
        else:
            self._progress("second load: forked from the zygote")
            second = await self._load("second", spec)
        warm_s, answer, _ = await self._calls("second")
        second.bytes = await self._bytes("second")
        return second, imported_bytes, warm_s, answer

    async def _restored(self, first: Load, second: Load) -> tuple[Load, int]:
        """The shorter of the loads that answer right, and the size of the snapshot if it is that one."""
        paths = self._paths
        if not paths["snapshot"] and first.digest != second.digest:
            paths["snapshot"] = "two plain loads answer its sample differently: nothing to verify it by"
        if not paths["snapshot"]:
            paths["snapshot"] = str(second.snapshot.get("refused", ""))
        if paths["snapshot"]:
            return second, 0
        revision = self._revision
        self._progress("third load: restored from its snapshot")
        gid = revision.uid_base + FIRST_UID + revision.number if self._apart else None
        try:
            size = await asyncio.to_thread(self._agent.snapshots.take, self._work / "snapshot", revision, gid)
            found = self._agent.snapshots.find(revision)
            spec: dict[str, object] = {"digest": True, "snapshot": found, "intercept": self._threads()}
            third = await self._load("third", spec)
            third.bytes = await self._bytes("third")
            await self._end("third")
        except (InstaInferError, OSError) as error:
            paths["snapshot"] = f"restoring it failed: {error}"
        else:
            if refused := third.snapshot.get("refused"):
                paths["snapshot"] = f"restoring it failed: {refused}"
            elif third.digest != first.digest:
                paths["snapshot"] = "what was restored answers the sample otherwise than what was loaded"
            elif third.load_s >= second.load_s:
                took = f"{third.load_s * 1e3:.1f} ms, loading {second.load_s * 1e3:.1f} ms"
                paths["snapshot"] = f"it would not be faster: restoring took {took}"
            else:
                return third, size
        await asyncio.to_thread(self._agent.snapshots.drop, revision)
        return second, 0

    async def _intercepted(self, first: Load, second: Load) -> Load:
        """A load by the function's own code, with its calls intercepted; where libraries keep something of it for
        later ones, one of those."""
        self._progress("third load: its own, intercepted")
        revision, snapshots = self._revision, self._agent.snapshots
        gid = revision.uid_base + FIRST_UID + revision.number if self._apart else None
        keeping = self._work / "kept"
        options = interception(revision, self._package, snapshots)
        spec: dict[str, object] = {"digest": True, "intercept": options}
        try:
            await asyncio.to_thread(self._make_for, keeping)
            spec["intercept"] = {**options, "cache": str(keeping), "cache_write": True}
            load = await self._load("own", spec)
            load.bytes = await self._bytes("own")
            await self._end("own")
            if await asyncio.to_thread(lambda: any(keeping.iterdir())):
                await asyncio.to_thread(snapshots.keep, keeping, revision, gid)
                spec["intercept"] = interception(revision, self._package, snapshots)
                load = await self._load("again", spec)
                load.bytes = await self._bytes("again")
                await self._end("again")
        except (InstaInferError, OSError) as error:
            self._paths["intercept"] = f"it failed: {error}"
        else:
            if not (first.digest == second.digest != load.digest):
                return load
            self._paths["intercept"] = "an intercepted load answers the sample otherwise than a plain one"
        await asyncio.to_thread(snapshots.drop, revision)
        self._revision = msgspec.structs.replace(revision, intercept=False)
        return second

    def _make_for(self, directory: Path) -> None:
        """A directory that the function may write to."""
        directory.mkdir(mode=0o700)
        if self._apart:
            uid = self._revision.uid_base + FIRST_UID + self._revision.number
            os.chown(directory, uid, uid)

    def _threads(self) -> dict[str, object]:
        """Options of the interception that change nothing but the number of threads."""
        revision = self._revision
        return {"onnxruntime": True, "threads": revision.threads} if revision.intercept else {}

    async def _cloned(self, first: Load, second: Load) -> tuple[float, int]:
        """Seconds and bytes of a further instance that is forked from a loaded one."""
        if not self._paths["clone"]:
            self._paths["clone"] = second.unforkable
        if self._paths["clone"]:
            return 0.0, 0
        self._progress("fourth load: a template, forked twice")
        snapshot = self._agent.snapshots.find(self._revision) if not self._paths["snapshot"] else None
        spec: dict[str, object] = {"snapshot": snapshot} if snapshot is not None else {}
        spec["intercept"] = interception(
            self._revision, self._package, self._agent.snapshots, restored=snapshot is not None
        )
        try:
            await self._load("fourth", spec, template=True)
            maker = self._host.template(self._revision.id)
            if maker is None:
                reason = self._agent.refusals.pop(self._revision.id, "its template has ended")
                raise InstanceCrashed(reason)
            asked = time.monotonic()
            await self._host.clone("fifth", self._revision, self._package, maker, asked=asked)
            ready: InstanceReady = await self._watch.until(InstanceReady, self._function)
            _, _, digest = await self._calls("fifth")
            size = await self._bytes("fifth")
            await self._end("fifth")
            await self._end("fourth")
        except (InstaInferError, OSError) as error:
            self._paths["clone"] = f"a clone failed: {error}"
            return 0.0, 0
        if digest and first.digest == second.digest != digest:
            self._paths["clone"] = "a clone answers the sample otherwise than what was loaded"
            return 0.0, 0
        assert ready.origin is Origin.CLONED
        return ready.start_s + ready.import_s + ready.load_s, size

    # ---- what they are made of -----------------------------------------------------------------------------

    async def _load(
        self, name: str, spec: dict[str, object], level: Level = Level.LOADED, *, template: bool = False
    ) -> Load:
        maker: Maker | None = self._zygote.maker if self._zygote is not None else None
        await self._host.spawn(name, self._revision, self._package, level, spec, maker, template=template)
        ready = await self._watch.until(InstanceReady, self._function)
        return Load(ready, self._host.residents[name].host.details)

    async def _end(self, name: str) -> None:
        self._host.end(name, "measured", "", None)
        await self._watch.until(InstanceLost, self._function)

    async def _bytes(self, name: str) -> int:
        return (await asyncio.to_thread(self._host.usage)).get(name, 0)

    async def _calls(self, name: str) -> tuple[float, str, str]:
        """Median warm time over a few calls with the sample, its answer and the answer's digest. Without a sample
        the time is 0: not known. A guess would let the core start further instances on the strength of it."""
        revision = self._revision
        if not revision.sample:
            return 0.0, "", ""
        body = await asyncio.to_thread((self._package / revision.sample).read_bytes)
        times, answer, digest = [], "", ""
        for request in range(1, WARM_CALLS + 1):
            self._host.residents[name].host.invoke(request, "measure", revision.sample_type, body)
            report: Answered = await self._watch.until(Answered, self._function)
            if report.problem:
                error = from_problem(report.problem)
                raise InvocationFailed(
                    f"it fails on its own sample {revision.sample}: {error.message}",
                    function=self._function,
                    phase="inference",
                    detail=error.detail,
                    hint="the function was not deployed; fix it, or give another sample",
                )
            times.append(report.inference_s)
            answer = report.body[:200].decode("utf-8", "replace")
            digest = hashlib.sha256(report.content_type.encode() + b"\n" + report.body).hexdigest()
        return sorted(times)[len(times) // 2], answer, digest
