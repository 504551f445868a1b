"""The command that made a run, told from what it left: for a reader who wants to make it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec

from instainfer.report.reading import Run

#: Options that are not their setting's name.
SPELLED = {
    "step_s": "--step",
    "tick_s": "--tick",
    "keep_alive_s": "--keep-alive-seconds",
    "late_s": "--late",
    "timeout_s": "--timeout",
}


def of(runs: Iterable[Run]) -> tuple[str, ...]:
    """One line for runs that one command can make."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in (member for one in runs for member in one.members or (one,)):
        line = _line(run.command, run.row.trace, run.setting)
        lists = found.setdefault(line, {"--policies": [], "--budgets": []})
        if run.command == "simulate":
            lists["--policies"].append(run.spec)
            if run.row.budget_fraction is not None:
                lists["--budgets"].append(f"{run.row.budget_fraction:.6g}")
    return tuple(
        line
        + "".join(
            f" {option} {shlex.quote(','.join(dict.fromkeys(values)))}"
            for option, values in lists.items()
            if values
        )
        for line, lists in found.items()
    )


def _line(command: str, trace: str, setting: dict[str, Any]) -> str:
    words = ["instainfer", command, shlex.quote(f"./{trace}" if trace.startswith("-") else trace)]
    for key, usual in sorted(_defaults(command).items()):
        value = setting.get(key)
        if value in (None, False, "") or value == usual:
            continue
        option = SPELLED.get(key, "--" + key.replace("_", "-"))
        words.append(option if value is True else f"{option} {shlex.quote(_said(key, value))}")
    return " ".join(words)


def _said(key: str, value: Any) -> str:
    return f"{value:g}s" if key.endswith("_s") and isinstance(value, (int, float)) else str(value)


@cache
def _defaults(command: str) -> dict[str, Any]:
    """Its settings as they are where nothing is said of them. Imported here: the simulator takes its time."""
    from instainfer.lab import plan, simulate

    usual: dict[str, Any] = msgspec.to_builtins((simulate if command == "simulate" else plan).Settings())
    return usual
