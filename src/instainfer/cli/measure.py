"""demo and bench: run the platform on this machine and measure it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from instainfer.cli.session import Session, command

Result = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the rows to FILE as well; - is stdout.")
]


class Benchmark(StrEnum):
    OVERHEAD = "overhead"
    STARTS = "starts"
    LOAD = "load"
    SERVICE = "service"
    CLUSTER = "cluster"
    PLACEMENT = "placement"


@command("demo", example="instainfer demo --json demo.json")
def demo(
    session: Session,
    json: Result = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the result as an SVG.")] = None,
) -> None:
    """See the whole story in under three minutes.

    Deploys real models and calls each cold, preloaded and warm. Runs a server
    of its own on a free port with a private data directory; nothing of it stays.
    """
    from instainfer import demo as story

    story.run(json, picture)


@command("bench", example="instainfer bench overhead --json overhead.json")
def bench(
    session: Session,
    name: Annotated[
        Benchmark,
        typer.Argument(
            help="Of a call's cost, starts, loading, how much is served, many nodes, or placement passes."
        ),
    ],
    json: Result = None,
    examples: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For starts: the example functions [the checkout's].")
    ] = None,
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="For load: only these models, by their names in its table.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="For load: only three small models. For cluster and placement: a small one."),
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="For load: how often each start is taken [5].")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For load: draw the result as an SVG.")
    ] = None,
) -> None:
    """Measure the platform on this machine.

    Against the plain way of doing the same, side by side in one run. INSTAINFER_BENCH_ROUNDS sets how often.
    """
    from instainfer import bench as benches

    named = None if models is None else [part for part in models.split(",") if part]
    benches.run(name.value, json, examples=examples, models=named, quick=quick, rounds=rounds, picture=picture)
