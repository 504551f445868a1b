"""Does the simulator say what a live server does? Eight real models, one trace, both ways.

    python -m instainfer.bench.agreement TRACE -o DIR --memory 2GB

A server of its own gets the models and the trace; the simulator gets the same calls at the times at which they
went out, the same memory and policy, and what the functions cost: once as the server measured it when they were
deployed, once as their cold starts turned out while the trace ran, which is another thing where other programs
use the machine too. Every step is the command that anybody would type.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from instainfer.bench.load import ZYGOTE_S, zygote_ready
from instainfer.bench.models import Model, choose
from instainfer.bench.report import Report
from instainfer.bench.server import NAMESPACE, Bench, serving
from instainfer.bench.wheels import offered, requirements
from instainfer.errors import BadInput, InstaInferError, Unavailable
from instainfer.units import say_ms

MODELS = ("magika", "ddddocr", "profanity", "spacy", "silero", "efficientnet", "resnet18", "resnet50")
#: The aim: of mean warming + loading, as a share; of the pre-loading rate, in points.
WITHIN, POINTS = 0.15, 3.0
#: Of the trace, not counted: neither has seen a call when it begins.
WARMUP = "0.2"
_COSTS = ("container_ms", "load_ms", "warmup_ms")
#: Start kind -> the costs that its phases are.
_STARTS = {
    "cold": {"extract_ms": "start_ms", "import_ms": "import_ms"},
    "forked": {"extract_ms": "fork_ms", "import_ms": "fork_ms"},
}


def measure(
    trace: Path,
    folder: Path,
    models: Sequence[Model],
    serve: Sequence[str],
    replay: Sequence[str],
    warmup: str,
    report: Report,
) -> list[tuple[str, dict[str, Any]]]:
    """(what it is, its row): the live one first."""
    calls, costs, turned_out = folder / "live" / "calls.jsonl", folder / "costs.json", folder / "turned-out.json"
    made = [model for model in models if model.architecture]
    with offered(made, report), serving(*serve) as server:
        _deploy(server, models, report)
        with tempfile.TemporaryDirectory(prefix="instainfer-agreement-") as directory:
            given = [*_samples(models, Path(directory)), "--namespace", NAMESPACE, *replay]
            report.say("replaying")
            _instainfer("replay", str(trace), "--url", server.url, "-o", str(folder / "live"), *given)
        _instainfer("profile", "export", "--url", server.url, "-o", str(costs))
    live = _row(folder / "live")
    found = seen(json.loads(costs.read_bytes()), map(json.loads, calls.read_bytes().splitlines()))
    turned_out.write_text(json.dumps(found, indent=1))
    rows = [("live", live)]
    for name, profiles in (("as deployed", costs), ("as they turned out", turned_out)):
        report.say(f"simulating, costs {name}")
        out = folder / f"simulated-{profiles.stem}"
        _instainfer(
            "simulate", str(calls), "--profiles", str(profiles), "-o", str(out), *_like(live), "--warmup", warmup
        )
        rows.append((f"simulated, costs {name}", _row(out)))
    return rows


def _deploy(server: Bench, models: Sequence[Model], report: Report) -> None:
    torch = [model for model in models if any(line.startswith("torch") for line in model.requirements)]
    for model in models:
        report.say(f"deploying {model.name}")
        # one environment for all with torch: it is built, and lies on the disk, once
        lines = requirements(torch if model in torch else [model])
        settings = {
            "entry": "main:Model",
            "memory": f"{model.memory_mb}MB",
            "timeout": "10m",
            "sample": model.sample,
        }
        server.deploy(model.name, model.package("plain"), {**settings, "requirements": lines})
    for model in models:
        with suppress(Unavailable):  # there will be none: starts say so
            server.until(f"a zygote for {model.name}", partial(zygote_ready, server, model.name), ZYGOTE_S)


def _samples(models: Sequence[Model], directory: Path) -> list[str]:
    given = []
    for model in models:
        file = directory / f"{model.name}-{model.sample}"
        file.write_bytes(model.body)
        given += ["--data", f"{model.name}=@{file}"]
    return given


def _like(live: Mapping[str, Any]) -> list[str]:
    """Options of `simulate` for what the server had."""
    policy = live["policy"]
    if live["predictor"]:
        policy += f":{live['predictor']}"
    given = {
        "--world": "containers",
        "--policies": policy,
        "--keep-alive": live["keep_alive"],
        "--budgets": live["budget_fraction"],
        "--min-calls": 1,
        "--load-slots": len(os.sched_getaffinity(0)),  # as the server has them
    }
    return [str(word) for pair in given.items() for word in pair] + ["--trace-durations"]


def seen(profiles: list[dict[str, Any]], calls: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """These profiles with means of what cold and forked starts took, for the functions that had some. A fork's
    time is until its libraries are there. What others took of the processors meanwhile is in these times, so that
    nothing is to be slowed by them once more (`cores`)."""
    taken: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for call in calls:
        if call["start"] in _STARTS and not call["error"]:
            phases = call["phases"]
            found = defaultdict(float, {key: phases.get(key, 0.0) for key in _COSTS})
            for phase, key in _STARTS[call["start"]].items():
                found[key] += phases.get(phase, 0.0)
            for key, ms in found.items():
                if ms:
                    taken[f"{call['namespace']}/{call['function']}"][key].append(ms)
    return [
        {**profile, "cores": 0, **{key: sum(ms) / len(ms) for key, ms in taken[profile["function"]].items()}}
        for profile in profiles
    ]


def _instainfer(*words: str) -> None:
    """Raises Unavailable where it fails."""
    done = subprocess.run([sys.executable, "-m", "instainfer.cli", *words], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise Unavailable(f"instainfer {words[0]} failed", hint="what it said is above")


def _row(folder: Path) -> dict[str, Any]:
    (row,) = json.loads((folder / "results.json").read_bytes())["rows"]
    found: dict[str, Any] = row
    return found


def rate(row: Mapping[str, Any]) -> float:
    """The pre-loading rate: calls that found their function loaded."""
    return float(row["preloaded_fraction"] + row["warm_fraction"])


def near(live: Mapping[str, Any], simulated: Mapping[str, Any]) -> bool:
    """Within the aim."""
    a, b = live["warming_loading_mean_ms"], simulated["warming_loading_mean_ms"]
    return bool(a and abs(b / a - 1.0) <= WITHIN and abs(rate(live) - rate(simulated)) * 100 <= POINTS)


def _show(rows: Sequence[tuple[str, dict[str, Any]]], report: Report) -> None:
    _, live = rows[0]
    cells = []
    for name, row in rows:
        wait = row["warming_loading_mean_ms"]
        shares = [
            f"{row[f'{kind}_fraction']:.1%}" for kind in ("warm", "preloaded", "attached", "partial", "cold")
        ]
        far = "" if row is live else f"{wait / live['warming_loading_mean_ms'] - 1.0:+.0%}"
        points = "" if row is live else f"{(rate(row) - rate(live)) * 100:+.1f}"
        cells.append((name, str(row["invocations"]), say_ms(wait), far, f"{rate(row):.1%}", points, *shares))
    headers = ("", "calls", "warming+loading", "", "rate", "points", "warm", "pre-loaded", "attached")
    notes = [
        "rate: calls that found their function loaded, by a former call or by a pre-load.",
        f"The aim is {WITHIN:.0%} and {POINTS:g} points; {live['late_fraction']:.1%} of the calls went out late.",
    ]
    report.table("Live and simulated", (*headers, "forked, cloned", "cold"), cells, notes)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m instainfer.bench.agreement", description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    parser.add_argument("--models", default=",".join(MODELS), help="of `bench load`'s [eight that build quickly]")
    parser.add_argument("--memory", default="2GB", help="of the server [2GB]")
    parser.add_argument("--policy", default="hazard", help="of the server [hazard]")
    parser.add_argument(
        "--warmup", default=WARMUP, help="of the trace, not counted [0.2]; 0 counts the cold starts it begins with"
    )
    parser.add_argument("--minutes", default=":", help="A:B, of the trace [all]")
    given = parser.parse_args(args)
    try:
        if not given.trace.exists():
            raise BadInput(f"{given.trace} is not there", hint="name a trace")
        given.output.mkdir(parents=True, exist_ok=True)
        serve = ("--memory", given.memory, "--policy", given.policy)
        replay = ("--warmup", given.warmup, "--minutes", given.minutes)
        with Report("agreement") as report:
            rows = measure(
                given.trace, given.output, choose(given.models.split(",")), serve, replay, given.warmup, report
            )
            _show(rows, report)
    except InstaInferError as error:
        print(f"{error.detail}\n{error.message}; {error.hint}", file=sys.stderr)
        return 1
    return 0 if any(near(rows[0][1], row) for _, row in rows[1:]) else 1


if __name__ == "__main__":
    sys.exit(main())
