"""simulate: policies on traces; profile: what a server's functions cost, for the simulator to read."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instainfer.cli.options import CapPerMinute, MinCalls, Minutes, Seed, left_out, seconds
from instainfer.cli.output import is_terminal, print_json, table
from instainfer.cli.session import Session, Usage, command
from instainfer.errors import BadInput, BadSettings, InstaInferError
from instainfer.units import listed, say_mb, say_ms

if TYPE_CHECKING:
    from instainfer.lab.simulate import Case, Settings

#: Shares of the total size, as the papers' and this project's tables have them.
_BUDGETS = "0.05,0.1,0.2,0.4,0.7"


class Kind(StrEnum):
    POOL = "pool"
    CONTAINERS = "containers"


class Missed(StrEnum):
    WEIGH = "weigh"
    ALWAYS = "always"
    LINGER = "linger"


class Part(StrEnum):
    EXPORT = "export"


@command("simulate", example="instainfer simulate trace.csv --policies lru,hazard --budgets 0.1,0.4 -o results")
def simulate(
    session: Session,
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="Files or folders; each is one trace.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write DIR/results.json, and a file for each run."),
    ] = None,
    world: Annotated[
        Kind, typer.Option(help="One memory pool with loads that take no time; or containers and their costs.")
    ] = Kind.POOL,
    policies: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="MODE or MODE:PREDICTOR, with settings as in 'tyche(p_load=0.1)'; in the pool bounds.",
        ),
    ] = "",
    budgets: Annotated[str, typer.Option(metavar="A,B", help="Memory, as shares of all functions' size.")] = (
        _BUDGETS
    ),
    profiles: Annotated[
        str,
        typer.Option(
            metavar="paper|equal|FILE",
            help="What functions cost: the papers' models, those with one load time, or measured.",
        ),
    ] = "paper",
    warmup: Annotated[float, typer.Option(metavar="SHARE", help="Of the trace: simulated, not counted.")] = 0.25,
    minutes: Minutes = None,
    cap_per_minute: CapPerMinute = None,
    min_calls: MinCalls = 2,
    trace_durations: Annotated[
        bool, typer.Option("--trace-durations", help="Inference times from the trace, where it has them.")
    ] = False,
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes.")] = 1,
    step: Annotated[
        str, typer.Option(metavar="TIME", help="Pool: between two decisions; 0 is one at each call.")
    ] = "10s",
    on_miss: Annotated[
        Missed, typer.Option(help="Pool: does the copy that a call had to load stay?")
    ] = Missed.WEIGH,
    nodes: Annotated[int, typer.Option(metavar="N", min=1, help="Containers: nodes that share the budget.")] = 1,
    keep_alive: Annotated[
        str, typer.Option(metavar="POLICY", help="Containers: the keep-alive policy.")
    ] = "pressure",
    keep_alive_seconds: Annotated[
        str, typer.Option(metavar="TIME", help="Containers: of keep-alive policies with a time.")
    ] = "600s",
    load_slots: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Containers: loads at a time per node [one for each core, or 4 GB]."
        ),
    ] = 0,
    cores: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Containers: processors of a node, which loads and inferences share; 0: inferences have their "
            "own [as the profiles say].",
        ),
    ] = None,
    headroom: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0.0, help="Containers: a limit beyond its function's size [0.5]."),
    ] = None,
    zygote_memory: Annotated[
        str, typer.Option(metavar="SHARE|SIZE", help="Containers: of a node, for library zygotes.")
    ] = "50%",
    tick: Annotated[
        str, typer.Option(metavar="TIME", help="Containers: placement passes at multiples of it; 0 as live.")
    ] = "0s",
) -> None:
    """Run policies on traces at modelled costs.

    The same policies as the server's, on a virtual clock: one row for each trace, policy and budget.
    """
    from instainfer.lab import simulate as lab
    from instainfer.sim.pool import OnMiss

    settings = lab.Settings(
        world=world.value,
        profiles=profiles,
        warmup=warmup,
        minutes=minutes,
        cap_per_minute=cap_per_minute,
        min_calls=min_calls,
        trace_durations=trace_durations,
        seed=seed,
        step_s=seconds("--step", step),
        on_miss=OnMiss(on_miss.value),
        nodes=nodes,
        keep_alive=keep_alive,
        keep_alive_s=seconds("--keep-alive-seconds", keep_alive_seconds),
        load_slots=load_slots,
        cores=cores,
        headroom=headroom,
        zygote_memory=zygote_memory,
        tick_s=seconds("--tick", tick),
    )
    names = listed(policies) or (["lru", "gdsf", "hazard"] if world is Kind.POOL else ["none", "hazard"])
    shares = [_share(text) for text in listed(budgets)] or [_share(budgets)]
    cases = [lab.Case(trace, name, budget) for trace in traces for budget in shares for name in names]
    try:
        lab.check(settings, cases)
    except BadSettings as error:
        raise Usage(error.message, hint=error.hint) from None
    _say_ignored(settings)
    _read(settings, traces)
    if output is not None:
        _make(output)
    rows = _watched(settings, cases, jobs, output)
    document = lab.document("simulate", rows)
    if output is not None:
        import msgspec

        text = msgspec.json.format(msgspec.json.encode(document), indent=2)
        (output / "results.json").write_bytes(text + b"\n")
    if session.json:
        print_json(document)
    else:
        _show(rows)


#: Options that only one world has: their settings, and what they are called.
_OF = {
    "containers": {
        "keep_alive": "--keep-alive",
        "keep_alive_s": "--keep-alive-seconds",
        "load_slots": "--load-slots",
        "cores": "--cores",
        "headroom": "--headroom",
        "zygote_memory": "--zygote-memory",
        "tick_s": "--tick",
    },
    "pool": {"step_s": "--step", "on_miss": "--on-miss"},
}


def _say_ignored(settings: Settings) -> None:
    import msgspec

    usual = {field.name: field.default for field in msgspec.structs.fields(settings)}
    for world, options in _OF.items():
        given = [option for key, option in options.items() if getattr(settings, key) != usual[key]]
        if given and world != settings.world:
            typer.echo(f"{', '.join(given)}: without effect, since only --world {world} has that", err=True)


def _read(settings: Settings, traces: list[Path]) -> None:
    """Say which rows are left out, and find out that a trace cannot be read before the first one has run."""
    from instainfer.lab import simulate as lab

    for trace in dict.fromkeys(traces):
        report = lab.trace_of(settings, trace).report
        if report.malformed:
            typer.echo(left_out(report), err=True)


def _watched(settings: Settings, cases: list[Case], jobs: int, output: Path | None) -> list[dict[str, Any]]:
    """The rows, with progress on stderr."""
    import sys

    from rich.console import Console
    from rich.progress import Progress

    from instainfer.lab import simulate as lab

    live = is_terminal(sys.stderr)
    rows: dict[int, dict[str, Any]] = {}
    with Progress(console=Console(stderr=True), disable=not live, transient=True) as progress:
        task = progress.add_task("simulate", total=len(cases))

        def told(number: int, share: float) -> None:
            progress.update(task, completed=len(rows) + share)

        watch = told if live else None
        for run in lab.runs(settings, cases, jobs=jobs, progress=watch, folder=output):
            rows[run.number] = row = run.row
            progress.update(task, completed=len(rows))
            if not live:
                case = f"{row['trace']} {lab.label(row)} at {row['budget_fraction']:g}"
                known = " (there already)" if run.reused else ""
                typer.echo(f"{len(rows)}/{len(cases)} {case}: {row['saved_fraction']:.1%} saved{known}", err=True)
    return [rows[number] for number in range(len(cases))]


def _show(rows: list[dict[str, Any]]) -> None:
    from instainfer.lab.simulate import label

    headers = ["POLICY", "TRACE", "BUDGET", "MEMORY", "CALLS", "SAVED", "PRELOADED", "WARM", "COLD", "WAIT", "P99"]
    harm = any(row["harmed_fraction"] or row["rejected"] for row in rows)
    headers += ["HARMED", "REFUSED"] if harm else []
    cells = [
        [
            label(row),
            row["trace"],
            f"{row['budget_fraction']:.0%}",
            say_mb(row["budget_mb"]),
            str(row["invocations"]),
            f"{row['saved_fraction']:.1%}",
            *(_known(row[f"{kind}_fraction"], "{:.1%}".format) for kind in ("preloaded", "warm", "cold")),
            _known(row["warming_loading_mean_ms"], say_ms),
            _known(row["e2e_p99_ms"], say_ms),
            *((_known(row["harmed_fraction"], "{:.2%}".format), str(row["rejected"])) if harm else ()),
        ]
        for row in rows
    ]
    alone = len({row["trace"] for row in rows}) == 1
    table(headers, cells, right=headers[2:], spare=["TRACE", "P99"] if alone else ["P99"])


def _known(value: float | None, say: Callable[[float], str]) -> str:
    """A bound says nothing of most things."""
    return "-" if value is None else say(value)


@command("profile", example="instainfer profile export -o profiles.json")
def profile(
    session: Session,
    part: Annotated[Part, typer.Argument(help="export: what each function was measured to cost.")],
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Only this one's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Instead of stdout.")
    ] = None,
) -> None:
    """Export what a server measured of its functions.

    As a JSON list that `simulate --profiles FILE` reads.
    """
    import msgspec

    cores = _cores(session)
    profiles = [_measured(one) | cores for one in session.client.functions(namespace) if one.get("profile")]
    if output is None:
        print_json(profiles)
        return
    try:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(profiles), indent=2) + b"\n")
    except OSError as error:
        raise BadInput(f"{output} cannot be written: {error.strerror}", hint="name another file") from None
    if session.json:
        print_json({"file": str(output), "functions": len(profiles)})
    else:
        typer.echo(f"{len(profiles)} function{'s' * (len(profiles) != 1)} in {output}")


def _cores(session: Session) -> dict[str, int]:
    """Processors of a node, on which that was measured: as many as loads that it takes at a time. Only the
    server's owner is told; of nodes that differ, those of the smallest."""
    try:
        nodes = session.client.nodes()
    except InstaInferError:
        return {}
    slots = [node["load_slots"] for node in nodes if node.get("load_slots")]
    return {"cores": min(slots)} if slots else {}


#: Keys of a profile that are those of the server's answer.
_SAME = (
    *("container_ms", "start_ms", "import_ms", "load_ms", "warmup_ms", "first_ms", "imported_mb", "loaded_mb"),
    *("libraries_mb", "fork_ms", "forked_mb", "clone_ms", "cloned_mb"),
)


def _measured(function: dict[str, Any]) -> dict[str, Any]:
    """`memory_mb` is the function's size, loaded, and `limit_mb` its container's. A time of 0 that was not
    measured is left out."""
    found = function["profile"]
    same = {key: found[key] for key in _SAME if found.get(key)}
    paths = found.get("paths") or {}
    if (paths.get("zygote") or {}).get("used"):
        # What is imported, by the same interpreter: the server tells zygotes apart by this and by variables.
        network = "+network" if function.get("network") else ""
        same["libraries"] = f"{function['namespace']}{network}|{function.get('environment') or function['python']}"
    if not (paths.get("clone") or {}).get("used"):
        same.pop("clone_ms", None)
    if function.get("concurrency", 1) > 1:
        same["concurrency"] = function["concurrency"]
    return {
        "function": f"{function['namespace']}/{function['name']}",
        "import_ms": 0.0,
        "load_ms": 0.0,
        **same,
        "inference_ms": found["warm_ms"],
        "memory_mb": found["loaded_mb"],
        "limit_mb": function.get("memory_mb", 0.0),
    }


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        raise Usage(
            f"{text!r} is no budget", hint="write shares of all functions' size, such as 0.05,0.1 or 5%,10%"
        ) from None
    return share


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder} cannot be made: {error.strerror}", hint="name another folder") from None
