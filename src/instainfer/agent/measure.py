"""The profile of a function, from real loads and calls in a container of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from instainfer.agent.base import Answered, Report, Revision
from instainfer.agent.container import ContainerHost
from instainfer.core.events import ContainerLost, InstanceFailed, InstanceLost, InstanceReady
from instainfer.errors import BY_CODE, InstanceCrashed, InvocationFailed, LoadFailed, from_problem
from instainfer.model import Costs, Level, Profile

if TYPE_CHECKING:
    from instainfer.agent.local import LocalAgent

WARM_CALLS = 3


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
                raise LoadFailed(
                    error,
                    function=function,
                    phase=report.phase,
                    detail="\n".join(part for part in (trace, printed) if part),
                    hint="the function was not deployed; fix it and deploy again",
                )
            if isinstance(report, InstanceLost | ContainerLost):
                kind = BY_CODE[report.code] if isinstance(report, InstanceLost) else InstanceCrashed
                hint = "the function was not deployed; fix it and deploy again"
                raise kind(report.reason, function=function, phase="load", detail=printed, hint=hint)


async def measure(
    agent: LocalAgent, revision: Revision, package: Path, name: str, progress: Callable[[str], None]
) -> Profile:
    """Load it twice. The first load records which modules came from the environment; the second goes through
    level IMPORTED with just those, which shows their bytes, then to LOADED, and takes the calls.

    Raises LoadFailed, InvocationFailed or InstanceCrashed with the phase and what was printed.
    """
    function = f"{revision.namespace}/{revision.name}"
    watch = Watch()
    started = time.monotonic()
    host = await agent.open(agent.spec(revision, name, revision.memory, revision.mounts), watch)
    container_s = time.monotonic() - started
    try:
        progress("first load: recording what it imports")
        details = await _load(host, watch, revision, package, "first", Level.LOADED, function)
        modules = tuple(str(module) for module in details.get("modules", ()))
        first_s = float(details.get("first_s", 0.0))
        host.end("first", "measured", "", None)
        await watch.until(InstanceLost, function)
        progress(f"second load: {len(modules)} modules from the environment, then the model")
        again = msgspec.structs.replace(revision, modules=modules)
        imported = await _load(host, watch, again, package, "second", Level.IMPORTED, function)
        imported_bytes = (await asyncio.to_thread(host.usage)).instances.get("second", 0)
        host.instances["second"].lift(Level.LOADED)
        await watch.until(InstanceReady, function)
        loaded = host.instances["second"].details
        warm_s, answer = await _calls(host, watch, again, package, function)
        loaded_bytes = (await asyncio.to_thread(host.usage)).instances.get("second", 0)
        first_s = float(loaded.get("first_s", first_s)) or first_s
        return Profile(
            costs=Costs(
                container_s=container_s,
                import_s=float(imported.get("import_s", 0.0)) + float(loaded.get("import_s", 0.0)),
                load_s=float(loaded.get("load_s", 0.0)),
                warmup_s=float(loaded.get("warmup_s", 0.0)),
                first_s=first_s,
                warm_s=warm_s,
                imported_bytes=imported_bytes,
                loaded_bytes=max(loaded_bytes, imported_bytes),
            ),
            modules=modules,
            tasks=int(loaded.get("tasks", 1)),
            answer=answer,
        )
    finally:
        await host.close("measured")


async def _load(
    host: ContainerHost, watch: Watch, revision: Revision, package: Path, name: str, level: Level, function: str
) -> dict[str, Any]:
    instance = await host.spawn(name, revision, package, level)
    await watch.until(InstanceReady, function)
    return instance.details


async def _calls(
    host: ContainerHost, watch: Watch, revision: Revision, package: Path, function: str
) -> tuple[float, str]:
    """Median warm time over a few calls with the sample, and its answer. Without a sample it is 0: not known.
    A guess would let the core start further instances on the strength of it."""
    if not revision.sample:
        return 0.0, ""
    body = await asyncio.to_thread((package / revision.sample).read_bytes)
    times, answer = [], ""
    for request in range(1, WARM_CALLS + 1):
        host.instances["second"].invoke(request, "measure", revision.sample_type, body)
        report = await watch.until(Answered, function)
        if report.problem:
            error = from_problem(report.problem)
            raise InvocationFailed(
                f"it fails on its own sample {revision.sample}: {error.message}",
                function=function,
                phase="inference",
                detail=error.detail,
                hint="the function was not deployed; fix it, or give another sample",
            )
        times.append(report.inference_s)
        answer = report.body[:200].decode("utf-8", "replace")
    return sorted(times)[len(times) // 2], answer
