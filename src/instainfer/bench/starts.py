"""What each kind of start costs, on real models: cold, warm and pre-loaded, interleaved in one run.

Loading latency removed = 1 - (e2e_hit - e2e_warm) / (e2e_cold - e2e_warm), medians of one function in one run:
never import + load alone, which is zero on any hit. Files are in the page cache from the deployment on, for all
kinds alike.
"""

from __future__ import annotations

import mimetypes
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import instainfer
from instainfer.bench.http import Caller, Reply, timing
from instainfer.bench.plan import Plan
from instainfer.bench.report import Report, between, cores
from instainfer.bench.server import NAMESPACE, Bench, package, serving, spread
from instainfer.client import parse_timing
from instainfer.errors import BadInput, Unavailable
from instainfer.packing import pack
from instainfer.settings import PLAIN

MODELS = ("magika", "ocr", "profanity")
#: Its pinned container is where pre-loads go: it stays, and has room for any of the models. Every other container
#: ends this soon after its use, so that the next start without a pre-load is cold in a new one.
KEEPER = "keeper"
KEEPER_MEMORY = "1GB"
IDLE = "0.5s"


class Example(NamedTuple):
    name: str
    package: bytes
    body: bytes  # its sample
    content_type: str


class Samples:
    """Seconds of one model's starts, by kind, and the phases of its cold ones."""

    def __init__(self, profile: dict[str, Any]) -> None:
        self.profile = profile
        self.seconds: dict[str, list[float]] = {"cold": [], "warm": [], "preloaded": []}
        self.phases: dict[str, list[float]] = {"import": [], "load": [], "warmup": []}
        self.errors = 0

    def add(self, kind: str, seconds: float, reply: Reply) -> None:
        """A start of another kind than was arranged is an error and no sample."""
        if reply.status != 200 or reply.start != kind:
            self.errors += 1
            return
        self.seconds[kind].append(seconds)
        if kind == "cold":
            phases = parse_timing(timing(reply).decode("latin-1"))
            for name, values in self.phases.items():
                values.append(phases.get(name, 0.0))


def find_examples(folder: Path | None = None) -> list[Example]:
    """The models of `folder`, or of the checkout that this package runs from. Raises BadInput."""
    root = folder or Path(instainfer.__file__).resolve().parents[2] / "examples"
    found = []
    for name in MODELS:
        path = root / name
        settings = path / "function.toml"
        if not settings.is_file():
            raise BadInput(
                f"{root} has no example {name!r}",
                hint="give the `examples` folder of a checkout with --examples DIR; an installed package has none",
            )
        sample = path / tomllib.loads(settings.read_text(encoding="utf-8"))["sample"]
        content_type = mimetypes.guess_type(sample.name)[0] or "application/octet-stream"
        found.append(Example(name, pack(path), sample.read_bytes(), content_type))
    return found


def measure(plan: Plan, report: Report, examples: Sequence[Example]) -> None:
    """Adds a row per model."""
    report.steps(len(examples) * (plan.rounds + 1))
    found: dict[str, Samples] = {}
    # No pre-loads but those by hand: which start is which must not depend on what a predictor saw.
    options = ("--memory", "2GB", "--policy", "none", "--keep-alive", "fixed", "--keep-alive-seconds", IDLE)
    with serving(*options) as server:
        report.machine["sandbox"] = server.sandbox
        for example in examples:
            report.step(f"deploying {example.name}: its environment is built")
            found[example.name] = Samples(server.deploy(example.name, example.package, PLAIN))
        code = {"main.py": "def handler(event):\n    return event\n"}
        server.deploy(KEEPER, package(code), {"memory": KEEPER_MEMORY})
        server.client.pin(NAMESPACE, KEEPER)
        server.until("the start of the pinned function", lambda: server.state(KEEPER) in ("preloaded", "warm"))
        with Caller(server.address(KEEPER), b"{}") as keeper:
            for number in range(1, plan.rounds + 1):
                for example in examples:
                    report.step(f"round {number} of {plan.rounds}: {example.name}")
                    _round(server, keeper, example, found[example.name])
    for name, samples in found.items():
        report.rows.append(_row(name, server.sandbox, samples))
    _show(report, found)


def _round(server: Bench, keeper: Caller, example: Example, samples: Samples) -> None:
    """cold, warm, hit, warm."""
    name = example.name
    keeper.call()  # its container is its own again, and the model has to have one too
    server.until("the end of idle containers", lambda: len(server.client.containers()["containers"]) == 1)
    with Caller(server.address(name), example.body, example.content_type) as caller:
        samples.add("cold", *caller.call())
        samples.add("warm", *caller.call())
        server.until("the end of its container", lambda: len(server.client.containers()["containers"]) == 1)
        server.client.preload(NAMESPACE, name)
        server.until(f"a pre-load of {name}", lambda: server.state(name) == "preloaded")
        samples.add("preloaded", *caller.call())
        samples.add("warm", *caller.call())
    server.client.offload(NAMESPACE, name)
    server.until(f"the end of {name}", lambda: server.state(name) == "cold")


def _row(name: str, sandbox: str, samples: Samples) -> dict[str, Any]:
    cold, warm, hit = (_median(samples, kind) for kind in ("cold", "warm", "preloaded"))
    imports, load, warmup = (spread(samples.phases[phase])[0] for phase in ("import", "load", "warmup"))
    return {
        "model": name,
        "mode": "plain",
        "path": "hit",
        "sandbox": sandbox,
        "e2e_cold_ms": cold,
        "e2e_warm_ms": warm,
        "e2e_ms": hit,
        **_ends(samples),
        "removed_fraction": 1.0 - (hit - warm) / (cold - warm),
        "import_ms": imports,
        "load_ms": load,
        "first_inference_ms": warmup or samples.profile["first_ms"],
        "memory_first_mb": samples.profile["loaded_mb"],
        "n": len(samples.seconds["preloaded"]),
        "errors": samples.errors,
    }


def _ends(samples: Samples) -> dict[str, float]:
    """The least and the most of each kind."""
    found: dict[str, float] = {}
    for name, kind in (("e2e_cold", "cold"), ("e2e_warm", "warm"), ("e2e", "preloaded")):
        _, least, most = spread(samples.seconds[kind])
        found |= {f"{name}_min_ms": least * 1e3, f"{name}_max_ms": most * 1e3}
    return found


def _median(samples: Samples, kind: str) -> float:
    if not samples.seconds[kind]:
        raise Unavailable(
            f"no start was {kind} ({samples.errors} were not what was arranged)", hint="run it again"
        )
    return spread(samples.seconds[kind])[0] * 1e3


def _show(report: Report, found: dict[str, Samples]) -> None:
    lines = []
    for row in report.rows:
        seconds = found[row["model"]].seconds
        kinds = ("cold", "warm", "preloaded")
        cells = [between(*spread([taken * 1e3 for taken in seconds[kind]]), 1) for kind in kinds]
        removed = f"{row['removed_fraction']:.1%}"
        rest = [f"{row[key]:.0f}" for key in ("import_ms", "load_ms", "first_inference_ms", "memory_first_mb")]
        lines.append((row["model"], *cells, removed, *rest, str(row["n"]), str(row["errors"])))
    headers = ["model", "cold ms", "warm ms", "pre-loaded ms", "removed"]
    headers += ["import ms", "load ms", "first ms", "MB", "n", "errors"]
    report.table(
        f"End to end by kind of start, {report.machine['sandbox']} sandbox; median (min–max)",
        headers,
        lines,
        [
            "removed: loading latency that a pre-load takes off a cold start, 1 − (hit − warm) / (cold − warm).",
            f"{cores(report.machine)}.",
        ],
    )
