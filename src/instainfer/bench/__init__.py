"""Benchmarks: what the platform adds to a call, what each kind of start costs, what loading does and how much it
serves, against the plain way of doing the same, side by side in one run.

Every benchmark but `placement`, which computes, starts servers of its own with a private data directory on a free
port and leaves nothing behind; most of `cluster` is simulated. How long it takes is set by the environment, see
`plan`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from instainfer.errors import BadInput

NAMES = ("overhead", "starts", "load", "service", "cluster", "placement")


def run(
    name: str,
    json_path: Path | None = None,
    *,
    examples: Path | None = None,
    models: Sequence[str] | None = None,
    quick: bool = False,
    rounds: int | None = None,
    picture: Path | None = None,
) -> None:
    """Measure, print the table, and write {"version": 1, "command", "machine", "rows"} to `json_path` where one
    is given ("-" is stdout; the table then goes to stderr). `examples`: the folder of the example functions,
    by default the checkout's. Of `load`: `models`, all for None, or only the small ones (`quick`;
    of `cluster` and `placement` a small one); `rounds`, INSTAINFER_BENCH_ROUNDS for None, else 5; `picture`, where
    an SVG goes.

    Raises BadInput for a name that is none of NAMES or settings that cannot be meant, and what the server or
    a function raised.
    """
    from instainfer.bench import cluster, load, load_picture, overhead, placement, service, starts
    from instainfer.bench.models import choose
    from instainfer.bench.plan import PREFIX, Plan
    from instainfer.bench.report import Report

    if name not in NAMES:
        raise BadInput(f"there is no benchmark {name!r}", hint=f"the benchmarks are {', '.join(NAMES)}")
    plan = Plan.of()
    chosen = choose(models, quick=quick) if name == "load" else []
    if picture is not None:
        _writable(picture)
    with Report(f"bench {name}", json_path) as report:
        if name == "overhead":
            overhead.measure(plan, report)
        elif name == "starts":
            starts.measure(plan, report, starts.find_examples(examples))
        elif name == "service":
            service.measure(plan, report)
        elif name == "cluster":
            cluster.measure(report, quick=quick)
        elif name == "placement":
            placement.measure(report, quick=quick)
        else:
            given = plan.rounds if f"{PREFIX}ROUNDS" in os.environ else load.ROUNDS
            load.measure(chosen, rounds or given, report)
            if picture is not None:
                picture.write_text(load_picture.draw(report.rows), encoding="utf-8")
        report.finish()


def _writable(picture: Path) -> None:
    """Found out now, not after an hour of measuring. Raises BadInput."""
    if not os.access(picture.absolute().parent, os.W_OK):
        raise BadInput(
            f"{picture} cannot be written", hint="give --picture a file in a folder that you may write to"
        )
