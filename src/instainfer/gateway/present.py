"""Nouns as the management API shows them: milliseconds and megabytes, with the unit in the key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from instainfer.controller import Controller
from instainfer.core.libraries import Zygote
from instainfer.core.state import Container, FunctionState
from instainfer.model import Activation, Costs, FunctionSpec, Job, Phases, Profile, version_of
from instainfer.store.base import LogLine

MB = 1e6


def phases(of: Phases) -> dict[str, float]:
    return {
        "queue_ms": of.queue * 1e3,
        "container_ms": of.container * 1e3,
        "extract_ms": of.extract * 1e3,
        "import_ms": of.imports * 1e3,
        "load_ms": of.load * 1e3,
        "device_ms": of.device * 1e3,
        "warmup_ms": of.warmup * 1e3,
        "inference_ms": of.inference * 1e3,
    }


def activation(of: Activation) -> dict[str, Any]:
    return {
        "id": of.id,
        "namespace": of.namespace,
        "function": of.function,
        "version": of.version,
        "start": of.start,
        "status": of.status,
        "wall": of.wall,
        "e2e_ms": of.e2e_s * 1e3,
        "phases": phases(of.phases),
        "container": of.container,
        "instance": of.instance,
        "error": of.error,
        "hint": of.hint,
        "error_phase": of.error_phase,
        "trace": of.trace,
    }


def profile(of: Profile | None, costs: Costs | None = None) -> dict[str, Any] | None:
    """`costs`: what production runs have shown since it was measured."""
    if of is None:
        return None
    costs = costs or of.costs
    return {
        "container_ms": costs.container_s * 1e3,
        "start_ms": costs.start_s * 1e3,
        "import_ms": costs.import_s * 1e3,
        "load_ms": costs.load_s * 1e3,
        "warmup_ms": costs.warmup_s * 1e3,
        "first_ms": costs.first_s * 1e3,
        "warm_ms": costs.warm_s * 1e3,
        "imported_mb": costs.imported_bytes / MB,
        "loaded_mb": costs.loaded_bytes / MB,
        "libraries_mb": costs.libraries_bytes / MB,
        "fork_ms": costs.fork_s * 1e3,
        "forked_mb": costs.forked_bytes / MB,
        "clone_ms": costs.clone_s * 1e3,
        "cloned_mb": costs.cloned_bytes / MB,
        "plain_load_ms": of.plain_load_s * 1e3,
        "snapshot_mb": of.snapshot_bytes / MB,
        "paths": {name: {"used": reason == "", "reason": reason} for name, reason in of.paths.items()},
        "modules": len(of.modules),
        "tasks": of.tasks,
        "answer": of.answer,
    }


def function(spec: FunctionSpec, measured: Profile | None, known: FunctionState | None) -> dict[str, Any]:
    return {
        "namespace": spec.namespace,
        "name": spec.name,
        "version": spec.version,
        "digest": spec.digest,
        "style": str(spec.style),
        "entry": spec.entry,
        "memory_mb": spec.memory / MB,
        "timeout_s": spec.timeout_s,
        "concurrency": spec.concurrency,
        "isolation": spec.isolation,
        "network": spec.network,
        "environment": spec.environment,
        "python": spec.python,
        "requirements": list(spec.requirements),
        "sample": spec.sample,
        "created": spec.wall,
        "profile": profile(measured),
        "production": profile(measured, known.costs) if known and known.spec.revision == spec.revision else None,
        "state": "cold" if known is None else level(known),
        "pinned": known is not None and known.pinned,
    }


def level(known: FunctionState) -> str:
    """The best that a request would find now."""
    found = "cold"
    for instance in known.instances.values():
        if instance.stale:
            continue
        if instance.state in ("ready", "running"):
            if instance.served or instance.running:
                return "warm"
            found = "preloaded"
        elif instance.state == "imported" and found != "preloaded":
            found = "imported"
        elif instance.state == "loading" and found == "cold":
            found = "loading"
    return found


def version(spec: FunctionSpec, current: int) -> dict[str, Any]:
    return {
        "version": spec.version,
        "digest": spec.digest,
        "created": spec.wall,
        "current": spec.version == current,
    }


def job(of: Job) -> dict[str, Any]:
    return {
        "id": of.id,
        "namespace": of.namespace,
        "function": of.function,
        "state": of.state.value,
        "key": of.key,
        "created": of.created,
        "due": of.due or None,
        "finished": of.finished or None,
        "attempts": [
            {"began": one.began, "ended": one.ended or None, "status": one.status or "running"}
            for one in of.attempts
        ],
        "error": of.problem.get("detail", ""),
        "hint": of.problem.get("hint", ""),
    }


def logs(lines: list[LogLine]) -> list[dict[str, Any]]:
    return [
        {"activation": line.activation, "stream": line.stream, "wall": line.wall, "text": line.text}
        for line in lines
    ]


def zygote(of: Zygote, now: float) -> dict[str, Any]:
    return {
        "id": of.id,
        "node": of.node,
        "namespace": of.libraries.namespace,
        "state": of.state,
        "bytes_mb": of.bytes / MB,
        "age_s": now - of.started,
        "functions": sorted(of.libraries.functions),
    }


def container(controller: Controller, of: Container, now: float) -> dict[str, Any]:
    state = controller.platform.state
    view = state.view(of)
    expires = state.keep_alive.expires_at(view) if of.quiet else None
    activity = (
        "idle" if of.idle else "loading" if of.active is not None and of.active.state == "loading" else "busy"
    )
    return {
        "id": of.id,
        "node": of.node,
        "namespace": of.namespace,
        "owner": of.owner,
        "state": activity if of.state == "ready" else of.state,
        "limit_mb": of.limit / MB,
        "used_mb": of.used / MB,
        "idle_mb": max(0, of.free) / MB,
        "age_s": now - of.created,
        "idle_s": now - of.last_used,
        "expires_in_s": None if expires is None else max(0.0, expires - now),
        "pinned": view.pinned,
        "instances": [
            {
                "id": instance.id,
                "function": instance.function.spec.name,
                "version": version_of(instance.revision),
                "level": instance.level.name.lower(),
                "state": instance.state,
                "frozen": instance.frozen,
                "bytes_mb": instance.bytes / MB,
                "served": instance.served,
            }
            for instance in of.instances.values()
        ],
    }


def platform(
    controller: Controller, isolation: dict[str, Any], sees: Callable[[str], bool], now: float, whole: bool
) -> dict[str, Any]:
    """Containers and zygotes of the namespaces that `sees` allows, and what isolates them; `whole`: the memory of
    all nodes too."""
    state = controller.platform.state
    shown = isolation
    if whole:
        nodes = controller.nodes.values()
        shown |= {
            "memory_mb": sum(node.memory for node in nodes) / MB,
            "zygote_memory_mb": sum(node.zygote_memory for node in nodes) / MB,
            "committed_mb": sum(state.ledger.promised(node.node) for node in nodes) / MB,
        }
    return {
        "node": shown,
        "containers": [container(controller, one, now) for one in state.containers.values() if sees(one.tenant)],
        "zygotes": [zygote(one, now) for one in state.zygotes.values() if sees(one.libraries.namespace)],
    }
