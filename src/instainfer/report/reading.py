"""What runs left behind: `results.json` of simulate and replay with the details in `runs/`, files of bench, and
the calls of a live server.

Everything a user named (functions, traces, policies) is text from outside: control characters and the marks that
turn text around are made visible on the way in, once; what a markup language means by the others is the writers'
matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from instainfer.errors import BadInput, BadSettings
from instainfer.lab.bounding import BOUNDS
from instainfer.policies import registry
from instainfer.report import calls
from instainfer.report.text import plain, plain_values

VERSION = 1
#: Commands whose rows are runs of a policy; all others are benchmarks.
RUNS = ("simulate", "replay")

Number = float | None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as `results.json` has it; keys beyond these are of no interest here."""

    trace: str
    policy: str
    invocations: int
    world: str = ""
    predictor: str = ""
    keep_alive: str = ""
    nodes: int = 1
    functions: int = 0
    seed: int | None = None
    budget_fraction: Number = None
    budget_mb: Number = None
    saved_fraction: Number = None
    preloaded_fraction: Number = None
    warm_fraction: Number = None
    cold_fraction: Number = None
    warming_loading_mean_ms: Number = None
    e2e_mean_ms: Number = None
    e2e_p99_ms: Number = None
    memory_gb_s: Number = None
    wasted_gb_s: Number = None
    zygote_gb_s: Number = None
    harmed_fraction: Number = None
    harm_mean_ms: Number = None
    gap_fraction: Number = None
    rejected: int = 0
    late_fraction: Number = None
    errors: int | None = None

    @property
    def rate(self) -> Number:
        return _rate(self.preloaded_fraction, self.warm_fraction)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of one class."""

    invocations: int = 0
    saved_fraction: Number = None
    preloaded_fraction: Number = None
    warm_fraction: Number = None
    warming_loading_mean_ms: Number = None
    e2e_mean_ms: Number = None
    warming_loading_p10_ms: Number = None
    warming_loading_p90_ms: Number = None
    e2e_p10_ms: Number = None
    e2e_p90_ms: Number = None

    @property
    def rate(self) -> Number:
        return _rate(self.preloaded_fraction, self.warm_fraction)


def _rate(preloaded: Number, warm: Number) -> Number:
    """The papers' pre-loading rate: calls that found their function loaded, by a pre-load or a former call."""
    return None if preloaded is None and warm is None else (preloaded or 0.0) + (warm or 0.0)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    function: str
    start: str
    arrived_s: float = 0.0
    warming_ms: float = 0.0
    loading_ms: float = 0.0
    inference_ms: float = 0.0
    e2e_ms: float = 0.0


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """One file of `runs/`. Percentiles 0 to 100 make 101 numbers, or none where nothing was counted."""

    settings: dict[str, Any] = {}
    classes: dict[str, Part] = {}
    cdf: dict[str, list[float]] = {}
    timeline: list[Call] = []

    def __post_init__(self) -> None:
        for name, percentiles in self.cdf.items():
            if len(percentiles) not in (0, 101):
                raise ValueError(f"{name} has {len(percentiles)} percentiles, not 101")


def spec_of(text: str) -> registry.Spec:
    """Of a policy or predictor; what cannot be taken apart is a name as a whole."""
    try:
        return registry.Spec.of(text)
    except BadSettings:
        return registry.Spec(text, {})


def without(spec: registry.Spec, key: str) -> str:
    """The same, but for one setting."""
    return registry.Spec(spec.name, {k: value for k, value in spec.settings.items() if k != key}).text


@dataclass(frozen=True)
class Run:
    """A row with where it is from and, where there is one, its detail."""

    command: str
    folder: str
    row: Row
    raw: Mapping[str, Any] = field(repr=False)
    detail: Detail | None = field(default=None, repr=False)
    members: tuple[Run, ...] = field(default=(), repr=False)  # of which it is the mean

    def spread(self, value: Callable[[Run], Number]) -> tuple[float, float] | None:
        """The least and the most of its members; None of a single run."""
        found = [known for run in self.members if (known := value(run)) is not None]
        return (min(found), max(found)) if found else None

    @property
    def is_bound(self) -> bool:
        return self.row.policy in BOUNDS

    @property
    def spec(self) -> str:
        """The policy as one would ask for it: with its predictor only where that is not its own."""
        mode, predictor = self.row.policy, self.row.predictor
        try:
            usual = registry.preload(spec_of(mode).name).predictor == predictor
        except BadSettings:  # none of ours
            usual = False
        return mode if usual or not predictor else f"{mode}:{predictor}"

    @property
    def budget(self) -> Number:
        return self.row.budget_mb if self.row.budget_fraction is None else self.row.budget_fraction

    @cached_property
    def setting(self) -> dict[str, Any]:
        """All that must be equal for two runs to be the same but for their outcome."""
        row = self.row
        given = dict(self.detail.settings) if self.detail else {}
        return given | {
            "command": self.command,
            "trace": row.trace,
            "world": row.world,
            "functions": row.functions,
            "policy": row.policy,
            "predictor": row.predictor,
            "keep_alive": row.keep_alive,
            "nodes": row.nodes,
            "budget": self.budget,
            "seed": row.seed,
        }


class Family(NamedTuple):
    """Runs that differ only in what was left free."""

    setting: dict[str, Any]
    runs: list[Run]


class Bench(NamedTuple):
    """A file of `bench` or `demo`."""

    command: str
    file: str
    rows: list[dict[str, Any]]
    machine: dict[str, Any]


@dataclass(frozen=True)
class Results:
    runs: list[Run]
    benches: list[Bench]
    machines: list[dict[str, Any]]
    sources: list[str]
    logs: list[calls.Log] = field(default_factory=list)

    @property
    def policies(self) -> list[Run]:
        """Runs of plain policies: those with settings or another predictor are compared where they differ."""
        plain = [run for run in self.runs if run.is_bound or not _varied(run)]
        return plain if any(not run.is_bound for run in plain) else self.runs

    def name(self, run: Run) -> str:
        """What a run is called: its policy, and what tells it from others of that policy."""
        name = run.spec
        if len(self._keep_alives) > 1 and run.row.keep_alive:
            name += f" + {run.row.keep_alive}"
        if run.command == "replay":
            name += " (live)"
        if self._same[identity(run.setting)] > 1:
            name += f" [{run.folder}]"
        return name

    @cached_property
    def names(self) -> list[str]:
        """Of all runs, once each, in the order in which colours are given."""
        known = {mode: at for at, mode in enumerate(registry.MODES)}

        def rank(run: Run) -> tuple[bool, bool, int, str]:
            return (
                run.command == "replay",
                _varied(run),
                known.get(spec_of(run.row.policy).name, len(known)),
                self.name(run),
            )

        runs = sorted(self.runs, key=rank)
        return list(dict.fromkeys(self.name(run) for run in runs if not run.is_bound))

    def ordered(self, runs: Iterable[Run]) -> list[Run]:
        """By name in that order, bounds last; of two runs with one name the later."""
        found = {self.name(run): run for run in runs}
        rank = {name: at for at, name in enumerate(self.names)}
        return [found[name] for name in sorted(found, key=lambda name: (rank.get(name, 999), name))]

    @cached_property
    def _keep_alives(self) -> set[str]:
        return {run.row.keep_alive for run in self.runs if run.row.keep_alive and run.command == "simulate"}

    @cached_property
    def _same(self) -> Counter[str]:
        return Counter(identity(run.setting) for run in self.runs)


def families(runs: Iterable[Run], *free: str) -> list[Family]:
    """Runs grouped by all of their setting but `free`, in the order in which they come."""
    found: dict[str, Family] = {}
    for run in runs:
        setting = {key: value for key, value in run.setting.items() if key not in free}
        found.setdefault(identity(setting), Family(setting, [])).runs.append(run)
    return list(found.values())


def main(found: list[Family]) -> list[Family]:
    """Those that a reader meets first: of one trace and world the one with most runs, and of all traces in a world
    those with half as many runs as the largest. The others are there to be compared along what they vary."""
    kept: dict[str, Family] = {}
    for family in found:
        key = identity({key: family.setting.get(key) for key in ("command", "trace", "world")})
        if key not in kept or len(family.runs) > len(kept[key].runs):
            kept[key] = family
    worlds = [(family.setting["command"], family.setting["world"]) for family in kept.values()]
    most = {
        world: max(len(f.runs) for f, w in zip(kept.values(), worlds, strict=True) if w == world)
        for world in worlds
    }
    return [f for f, world in zip(kept.values(), worlds, strict=True) if 2 * len(f.runs) >= most[world]]


def at_one_budget(found: list[Family]) -> list[Family]:
    """Of families that were run at several budgets the middle one only, and no bounds."""
    chosen = []
    for family in found:
        budgets = sorted({run.budget for run in family.runs if run.budget is not None})
        middle = budgets[len(budgets) // 2] if budgets else None
        kept = [run for run in family.runs if run.budget in (middle, None) and not run.is_bound]
        if kept:
            chosen.append(Family(family.setting | {"budget": middle}, kept))
    return chosen


def _varied(run: Run) -> bool:
    return bool(spec_of(run.row.policy).settings or spec_of(run.row.predictor).settings) or ":" in run.spec


def identity(setting: Mapping[str, Any]) -> str:
    return msgspec.json.encode(setting, order="deterministic").decode()


# ---- files ---------------------------------------------------------------------------------------------------


def read(paths: Iterable[Path]) -> Results:
    """Everything under `paths`: folders of results, or files of them. What is there twice counts once.

    Raises BadInput, with the file, for what cannot be read or is of another form.
    """
    results = Results([], [], [], [])
    seen: set[str] = set()
    paths = list(paths)
    for path in paths:
        for file in _files(path):
            if (log := calls.log(file)) is not None:
                results.sources.append(plain(str(file)))
                results.logs.append(log)
                continue
            document = _document(file)
            if document is None:
                continue
            command, machine = document["command"], document.get("machine") or {}
            if machine not in results.machines:
                results.machines.append(machine)
            results.sources.append(plain(str(file)))
            if command in RUNS:
                for run in _runs(file, command, document["rows"], document["details"]):
                    detail = msgspec.to_builtins(run.detail)
                    key = identity({"setting": run.setting, "row": run.raw, "detail": detail})
                    if key not in seen:
                        seen.add(key)
                        results.runs.append(run)
            elif (key := identity(document)) not in seen:
                seen.add(key)
                results.benches.append(Bench(command, plain(file.name), document["rows"], machine))
    if not results.runs and not results.logs and not any(bench.rows for bench in results.benches):
        named = ", ".join(results.sources or [str(path) for path in paths])
        raise BadInput(f"there is no result in {named}", hint=calls.READS)
    return results


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise BadInput(f"{path} is not there", hint=calls.READS)
    found = sorted(file for file in path.glob("*.json") if file.is_file())
    wanted = [file for file in found if file.name == "results.json" or _is_result(file)]
    # A replay's calls stand in its results; a folder of nothing but logs is one of logs.
    wanted = wanted or sorted(file for file in path.glob("*.jsonl") if file.is_file())
    if not wanted:
        raise BadInput(f"{path} has no results.json: was it run to its end?", hint=calls.READS)
    yield from wanted


def _is_result(file: Path) -> bool:
    return calls.log(file) is not None or _document(file) is not None


def _document(file: Path) -> dict[str, Any] | None:
    """The file, in the form that all commands write. None for another JSON file that lies beside results."""
    value = _json(file)
    if isinstance(value, dict) and "rows" in value and "version" in value:
        _check_version(file, value)
        try:
            document = msgspec.convert(value, _Document)
        except msgspec.ValidationError as error:
            raise _malformed(file, error) from None
        return msgspec.structs.asdict(document)
    if file.name == "results.json":
        raise BadInput(f"{file} is no file of results: it has no version and rows", hint=_AGAIN)
    return None


class _Document(msgspec.Struct):
    command: str
    rows: list[dict[str, Any]]
    machine: dict[str, Any] = {}
    details: list[dict[str, Any]] = []  # of the rows, in their order, where they are not in `runs/`


_AGAIN = "run the command that wrote it again, or leave it out"


def _json(file: Path) -> Any:
    try:
        return plain_values(msgspec.json.decode(file.read_bytes()))
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}", hint="check its permissions") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        ours = file.suffix in (".json", ".jsonl")  # a trace, say, is not damaged but another thing
        raise BadInput(f"{file} is not JSON: {error}", hint=_AGAIN if ours else calls.READS) from None


def _check_version(file: Path, value: Mapping[str, Any]) -> None:
    if value.get("version") != VERSION:
        raise BadInput(
            f"{file} is of version {value.get('version')!r}, and this program reads {VERSION}",
            hint="run the command that wrote it again, or report with the release that wrote it",
        )


def _malformed(file: Path, error: Exception) -> BadInput:
    return BadInput(f"{file} is not as it should be: {error}", hint=_AGAIN)


def _runs(
    file: Path, command: str, rows: list[dict[str, Any]], beside_rows: list[dict[str, Any]]
) -> Iterator[Run]:
    """Rows with their details. A detail in a file of its own belongs to the row that it repeats; others are of
    former commands."""
    details: dict[str, Detail] = {}
    for raw, value in zip(rows, beside_rows, strict=False):
        try:
            details[identity(raw)] = msgspec.convert(value, Detail)
        except msgspec.ValidationError as error:
            raise _malformed(file, error) from None
    for beside in sorted((file.parent / "runs").glob("*.json")):
        value = _json(beside)
        if not isinstance(value, dict):
            raise BadInput(f"{beside} is no detail of a run", hint=_AGAIN)
        _check_version(beside, value)
        try:
            details[identity(value.get("row") or {})] = msgspec.convert(value, Detail)
        except msgspec.ValidationError as error:
            raise _malformed(beside, error) from None
    for number, raw in enumerate(rows):
        try:
            row = msgspec.convert(raw, Row)
        except msgspec.ValidationError as error:
            raise BadInput(f"{file}: row {number + 1} is not as it should be: {error}", hint=_AGAIN) from None
        yield Run(command, plain(file.parent.resolve().name), row, raw, details.get(identity(raw)))
