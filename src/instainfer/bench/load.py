"""What loading costs, and what is left of it: real models, each loaded as everybody does, by hand as fast as it
goes, and by the platform, side by side in one run.

A row is a model, a mode and a path. Modes: `plain`, a process per function, fast paths off; `mapped`, the same
with loading tuned by its author; `ours`, the plain source with the fast paths on. Paths: `miss`, nothing of it is
in memory, a new container; `miss_zygote`, its libraries wait in a zygote; `hit`, it was pre-loaded.

Loading latency removed = 1 - (e2e - warm) / (cold - warm): cold is plain loading's, warm the function's own,
medians of one run. Files are in the page cache from the deployment on, for all modes alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from instainfer.bench.further import COUNTS, Further, further
from instainfer.bench.http import Caller, Reply, timing
from instainfer.bench.models import Model
from instainfer.bench.report import Report, cores
from instainfer.bench.server import NAMESPACE, Bench, package, serving, spread
from instainfer.bench.wheels import offered, requirements
from instainfer.client import parse_timing
from instainfer.errors import Conflict, InstaInferError, Unavailable
from instainfer.settings import PLAIN
from instainfer.units import say_ms

ROUNDS = 5
WARM_CALLS = 3  # after each start
#: Its pinned container is where pre-loads go: it stays, and has room for any of the models. Every other container
#: ends this soon after its use, so that the next start without a pre-load is in a new one.
KEEPER = "keeper"
IDLE = "0.5s"
PATIENCE_S = 300.0
ZYGOTE_S = 60.0
SHOWN_ERRORS = 20

PHASES = ("queue", "container", "extract", "import", "load", "device", "warmup", "inference")
TOLD = {"miss": "a miss", "miss_zygote": "a miss with a zygote"}
#: Figures to reach, of mode `ours`, by path and kind of model.
REACH = {
    "hit": {"papers": 0.99, "package": 0.99, "onnxruntime": 0.99},
    "miss_zygote": {"papers": 0.95, "package": 0.7, "onnxruntime": 0.5},
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A function to deploy: what it is called, how it is set, and which start a call without any of its instances
    must have. `sample`: its loads end with a warm-up call."""

    suffix: str
    mode: str
    source: str
    settings: dict[str, bool]
    path: str
    start: str
    sample: bool = False
    hit: bool = True


VARIANTS = (
    Variant(suffix="plain", mode="plain", source="plain", settings=PLAIN, path="miss", start="cold"),
    Variant(suffix="mapped", mode="mapped", source="mapped", settings=PLAIN, path="miss", start="cold"),
    Variant(
        suffix="ours", mode="ours", source="plain", settings={}, path="miss_zygote", start="forked", sample=True
    ),
    Variant(
        suffix="alone",
        mode="ours",
        source="plain",
        settings={"zygote": False},
        path="miss",
        start="cold",
        sample=True,
        hit=False,
    ),
)


class Taken:
    """Seconds and phases (ms) of the starts of one path."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.phases: list[dict[str, float]] = []

    @property
    def ms(self) -> float:
        return spread(self.seconds)[0] * 1e3

    def phase(self, name: str) -> float:
        """Median, in ms."""
        return spread([phases.get(name, 0.0) for phases in self.phases])[0]


class Samples:
    """Of one model in one variant, by path; `warm` is one of them."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.paths: dict[str, Taken] = {}
        self.errors: list[str] = []
        self.answer = b""
        self.further: Further | None = None
        self.profile: dict[str, Any] = {}  # as the deployment measured it

    def add(self, path: str, start: str, seconds: float, reply: Reply) -> None:
        """A start of another kind than the path claims is an error and no sample, and so is another answer than
        the model's first."""
        self.answer = self.answer or reply.body
        if reply.status != 200 or reply.start != start:
            self.errors.append(f"{path}: {reply.status} {reply.start or '-'}, not {start}")
        elif reply.body != self.answer:
            self.errors.append(f"{path}: answered {reply.body[:60]!r}, not {self.answer[:60]!r}")
        else:
            taken = self.paths.setdefault(path, Taken())
            taken.seconds.append(seconds)
            taken.phases.append(parse_timing(timing(reply).decode("latin-1")))

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What fails in this block is an error of these samples, and the measuring goes on."""
        try:
            yield
        except InstaInferError as error:
            self.errors.append(error.message)

    def ms(self, path: str) -> float | None:
        """Median, None when no start was what the path claims."""
        return self.paths[path].ms if path in self.paths else None


Found = dict[str, dict[str, Samples]]  # by model, by suffix


def variants(model: Model) -> list[Variant]:
    """Those that there are of this model."""
    return [one for one in VARIANTS if one.mode != "mapped" or model.mapped]


def measure(models: Sequence[Model], rounds: int, report: Report) -> Found:
    """Adds the rows, prints the tables and returns what they are made of."""
    groups = [list(group) for _, group in groupby(models, key=lambda model: model.environment)]
    report.steps(sum(len(variants(model)) * (rounds + 2) for model in models))
    found: Found = {}
    failures: list[tuple[str, InstaInferError]] = []
    for group in groups:  # a server each: what one has installed is gone before the next installs
        try:
            with offered(group, report):
                found |= _group(group, rounds, report)
        except InstaInferError as error:  # one environment that cannot be built does not cost all the others
            failures.append((", ".join(model.name for model in group), error))
            report.say(f"not measured: {failures[-1][0]}: {error.message}")
    if not found:
        raise failures[0][1]
    for model in models:
        for samples in found.get(model.name, {}).values():
            report.rows += _rows(model, samples, found[model.name]["plain"], report.machine["sandbox"])
    _show(report, found, [f"{names} not measured: {error.message}" for names, error in failures])
    return found


def _group(models: Sequence[Model], rounds: int, report: Report) -> Found:
    found: Found = {model.name: {one.suffix: Samples(one) for one in variants(model)} for model in models}
    # No pre-loads but those by hand: which start is which must not depend on what a predictor saw.
    options = ("--policy", "none", "--keep-alive", "fixed", "--keep-alive-seconds", IDLE)
    with serving(*options) as server:
        report.machine["sandbox"] = server.sandbox
        lines = requirements(models)
        for model in models:
            for variant in variants(model):
                report.step(f"deploying {_name(model, variant)}")
                settings: dict[str, Any] = {
                    "entry": "held:Model",
                    "memory": f"{model.memory_mb}MB",
                    "timeout": "10m",
                    "requirements": lines,
                    **variant.settings,
                    **({"sample": model.sample} if variant.sample else {}),
                }
                profile = server.deploy(_name(model, variant), model.package(variant.source), settings)
                found[model.name][variant.suffix].profile = profile
        keeper: dict[str, Any] = {"memory": f"{max(model.memory_mb for model in models) + 200}MB", **PLAIN}
        server.deploy(KEEPER, package({"main.py": "def handler(event):\n    return event\n"}), keeper)
        with _kept(server) as caller:
            for model in models:
                # Before anything is measured that it would disturb; of no libraries there is none.
                if model.requirements and "ours" in found[model.name]:
                    report.say(f"waiting for a zygote that has the libraries of {model.name}")
                    with suppress(Unavailable):  # there will be none: the kind of start says so
                        server.until("its zygote", partial(zygote_ready, server, f"{model.name}-ours"), ZYGOTE_S)
            for number in range(1, rounds + 1):
                for model in models:
                    for samples in found[model.name].values():
                        samples.answer = samples.answer or found[model.name]["plain"].answer
                        name = _name(model, samples.variant)
                        report.step(f"round {number} of {rounds}: {name}")
                        with samples.failing():
                            _round(server, caller, model, samples)
            for model in models:
                for samples in found[model.name].values():
                    variant = samples.variant
                    name = _name(model, variant)
                    report.step(f"memory of further instances: {name}")
                    if variant.hit:
                        with samples.failing():
                            caller.call()
                            _alone(server)
                            cold = samples.ms(variant.path) or found[model.name]["plain"].ms("miss") or 1e4
                            samples.further = further(server, name, model, COUNTS[variant.mode], cold / 1e3)
                            _alone(server)
    return found


def _name(model: Model, variant: Variant) -> str:
    return f"{model.name}-{variant.suffix}"


@contextmanager
def _kept(server: Bench) -> Iterator[Caller]:
    """The pinned container."""
    server.client.pin(NAMESPACE, KEEPER)
    server.until("the start of the pinned function", lambda: server.state(KEEPER) in ("preloaded", "warm"))
    with Caller(server.address(KEEPER), b"{}") as caller:
        yield caller


def _alone(server: Bench) -> None:
    """Only the keeper's container is there."""
    server.until(
        "the end of idle containers", lambda: len(server.client.containers()["containers"]) == 1, PATIENCE_S
    )


def _round(server: Bench, keeper: Caller, model: Model, samples: Samples) -> None:
    """A miss, warm calls; a hit, warm calls."""
    variant = samples.variant
    name = _name(model, variant)
    keeper.call()  # its container is its own again, and this one has to have one too
    _alone(server)
    with Caller(server.address(name), model.body, model.content_type, PATIENCE_S) as caller:
        samples.add(variant.path, variant.start, *caller.call())
        for _ in range(WARM_CALLS):
            samples.add("warm", "warm", *caller.call())
        if not variant.hit:
            return
        _alone(server)
        server.until(f"room for {name}", lambda: _preload(server, name))
        server.until(f"a pre-load of {name}", lambda: server.state(name) == "preloaded", PATIENCE_S)
        samples.add("hit", "preloaded", *caller.call())
        for _ in range(WARM_CALLS):
            samples.add("warm", "warm", *caller.call())
    server.client.offload(NAMESPACE, name)
    server.until(f"the end of {name}", lambda: server.state(name) == "cold", PATIENCE_S)


def _preload(server: Bench, name: str) -> bool:
    """Ask for it; not yet while what was there before still holds its bytes."""
    try:
        server.client.preload(NAMESPACE, name)
    except Conflict:
        return False
    return True


def zygote_ready(server: Bench, name: str) -> bool:
    """Does one with its libraries wait to be forked?"""
    zygotes = server.client.containers().get("zygotes", [])
    return any(one["state"] == "ready" and f"{NAMESPACE}/{name}" in one["functions"] for one in zygotes)


# ---- rows ------------------------------------------------------------------------------------------------------


def _rows(model: Model, samples: Samples, plain: Samples, sandbox: str) -> list[dict[str, Any]]:
    """One per path; figures are None where no start was what the path claims."""
    variant, more = samples.variant, samples.further
    cold, warm = plain.ms("miss"), samples.ms("warm")
    rows = []
    for path in (variant.path, *(["hit"] if variant.hit else [])):
        row: dict[str, Any] = {"model": model.name, "kind": model.kind, "mode": variant.mode, "path": path}
        row |= {"sandbox": sandbox, "e2e_cold_ms": cold, "e2e_warm_ms": warm}
        row |= _figures(samples.paths.get(path))
        row["removed_fraction"] = _removed(row["e2e_ms"], warm, cold)
        row["reach_fraction"] = reach(model.kind, variant.mode, path)
        row |= more.columns() if more is not None else {}
        row["fast_paths"] = {name: one["reason"] or "used" for name, one in _fast_paths(samples).items()}
        row["errors"] = len(samples.errors)
        rows.append(row)
    return rows


def _figures(taken: Taken | None) -> dict[str, Any]:
    if taken is None:
        columns = ("e2e", "e2e_min", "e2e_max", "container", "import", "load", "warmup", "first_inference")
        return {**{f"{column}_ms": None for column in columns}, "n": 0}
    return {
        "e2e_ms": taken.ms,
        "e2e_min_ms": min(taken.seconds) * 1e3,
        "e2e_max_ms": max(taken.seconds) * 1e3,
        "container_ms": taken.phase("container") + taken.phase("extract"),
        "import_ms": taken.phase("import"),
        "load_ms": taken.phase("load") + taken.phase("device"),
        "warmup_ms": taken.phase("warmup"),
        # Where loads end with a warm-up call, that is the first.
        "first_inference_ms": taken.phase("warmup") or taken.phase("inference"),
        "n": len(taken.seconds),
    }


def _removed(this: float | None, warm: float | None, cold: float | None) -> float | None:
    if this is None or warm is None or cold is None or cold <= warm:
        return None
    return 1.0 - (this - warm) / (cold - warm)


def _fast_paths(samples: Samples) -> dict[str, Any]:
    """Which of them its deployment found usable, and why not."""
    found: dict[str, Any] = samples.profile.get("paths") or {}
    return found


def reach(kind: str, mode: str, path: str) -> float | None:
    """The share to be removed, where one is set."""
    return REACH.get(path, {}).get(kind) if mode == "ours" else None


def remains(samples: Samples, path: str) -> str:
    """What a start on this path has beyond a warm call, largest first: "62 ms: load 40 ms, container 15 ms"."""
    taken, warm = samples.paths.get(path), samples.paths.get("warm")
    if taken is None or warm is None:
        return "nothing that was measured: no start was what it should be"
    parts = {name: taken.phase(name) - warm.phase(name) for name in PHASES}
    parts["start of the process"] = parts.pop("extract")
    parts["first inference"] = parts.pop("inference")
    parts["warm-up call"] = parts.pop("warmup")
    total = taken.ms - warm.ms
    parts["between the phases"] = total - sum(parts.values())
    told = sorted(((ms, name) for name, ms in parts.items() if ms >= 0.5), reverse=True)
    listed = ", ".join(f"{name} {say_ms(ms)}" for ms, name in told)
    return f"{say_ms(max(total, 0.0))}" + (f": {listed}" if listed else "")


def _show(report: Report, found: Found, failures: Sequence[str] = ()) -> None:
    lines: list[tuple[str, ...]] = []
    notes: list[str] = []
    for row in report.rows:
        removed, wanted = row["removed_fraction"], row["reach_fraction"]
        goal = "" if wanted is None else f"{wanted:.0%}"
        if wanted is not None and (removed is None or removed < wanted):
            goal += " missed"
        times = [_cell(row[key], 1) for key in ("e2e_ms", "e2e_warm_ms")]
        phases = [_cell(row[f"{key}_ms"]) for key in ("container", "import", "load", "first_inference")]
        share = "-" if removed is None else f"{removed:.1%}"
        counts = [str(row["n"]), str(row["errors"])]
        lines.append((row["model"], row["mode"], row["path"], *times, share, goal, *phases, *counts))
    for name, by_suffix in found.items():
        shown = by_suffix.get("ours") or by_suffix.get("mapped") or by_suffix["plain"]
        path = shown.variant.path
        said = [f"{name}, {shown.variant.mode}: {TOLD[path]} leaves {remains(shown, path)}"]
        if alone := by_suffix.get("alone"):
            said.append(f"without a zygote {remains(alone, 'miss')}")
        refused = [f"no {path}: {one['reason']}" for path, one in _fast_paths(shown).items() if one["reason"]]
        notes.append("; ".join([*said, *refused]) + ".")
    errors = [f"{name}: {one}" for name, by in found.items() for samples in by.values() for one in samples.errors]
    notes += [f"error: {error}" for error in (*failures, *errors)[:SHOWN_ERRORS]]
    notes.append("removed: 1 − (this − warm) / (plain miss − warm), medians.")
    notes.append(f"{cores(report.machine)}.")
    headers = ["model", "mode", "path", "e2e ms", "warm ms", "removed", "reach"]
    headers += ["container ms", "import ms", "load ms", "first ms", "n", "errors"]
    report.table(f"What loading costs, {report.machine['sandbox']} sandbox; medians", headers, lines, notes)
    _show_memory(report, found)


def _cell(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _show_memory(report: Report, found: Found) -> None:
    lines = []
    for name, by_suffix in found.items():
        plain = by_suffix["plain"].further
        for samples in by_suffix.values():
            if samples.further is not None:
                lines.append((name, samples.variant.mode, *samples.further.cells(plain)))
    report.table(
        "Memory of an instance that has served, MB: anonymous as the server measures it; total as PSS",
        [
            "model",
            "mode",
            "1st",
            "2nd",
            "last",
            "of 1st",
            "of plain 1st",
            "total 1st",
            "total last",
            "instances",
            "start",
            "further ms",
            "container ms",
        ],
        lines,
        [
            "total: alone (1st) and among all of them (last), from /proc; - where that cannot be read.",
            "further: until another instance could answer, once there was a container for it; medians.",
        ],
    )
