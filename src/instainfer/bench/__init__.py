"""Benchmarks: what the platform adds to a call, and what each kind of start costs, against the plain way of doing
the same, side by side in one run.

Every benchmark starts a server of its own with a private data directory on a free port and leaves nothing
behind. How long it takes is set by the environment, see `plan`.
"""

from __future__ import annotations

from pathlib import Path

from instainfer.errors import BadInput

NAMES = ("overhead", "starts")


def run(name: str, json_path: Path | None = None, *, examples: Path | None = None) -> None:
    """Measure, print the table, and write {"version": 1, "command", "machine", "rows"} to `json_path` where one
    is given ("-" is stdout; the table then goes to stderr). `examples`: the folder of the example functions,
    by default the checkout's.

    Raises BadInput for a name that is none of NAMES or settings that cannot be meant, and what the server or
    a function raised.
    """
    from instainfer.bench import overhead, starts
    from instainfer.bench.plan import Plan
    from instainfer.bench.report import Report

    if name not in NAMES:
        raise BadInput(f"there is no benchmark {name!r}", hint=f"the benchmarks are {', '.join(NAMES)}")
    plan = Plan.of()
    with Report(f"bench {name}", json_path) as report:
        if name == "overhead":
            overhead.measure(plan, report)
        else:
            starts.measure(plan, report, starts.find_examples(examples))
        report.finish()
