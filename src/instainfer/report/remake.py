"""Make the tables of `docs/results` again, each with one command:

    python -m instainfer.report.remake azure-2019 --traces FOLDER -o docs/results

It runs what `tables.py` says and writes `docs/results/azure-2019/results.json` (rows with their details, small),
`README.md` and its figures, those of `instainfer report`. The same program and traces give the same rows.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from instainfer.errors import BadInput, InstaInferError
from instainfer.lab.simulate import Case, Settings, details, document
from instainfer.report import latency, write
from instainfer.report.tables import TABLES, Check, Table

#: The recipes of synthetic traces, beside the results.
RECIPES = "traces"
_DIGITS = 2  # of a millisecond, in distributions
_IMAGE = re.compile(r"^!\[.*\]\(figures/.*\)\n\n?", re.MULTILINE)


def run(table: Table, folders: list[Path]) -> Iterator[dict[str, Any]]:
    """The details of each run, small. Raises BadInput where a trace is in none of the folders."""
    for part in table.parts:
        for trace in part.traces:
            path = find(trace, folders)
            for budget in part.budgets:
                for policy in part.policies:
                    yield small(details(part.settings, Case(path, policy, budget)), table)


def row_of(table: Table, check: Check, folders: list[Path]) -> dict[str, Any]:
    """One row, made anew."""
    settings = table.parts[check.part].settings
    found: dict[str, Any] = details(settings, Case(find(check.trace, folders), check.policy, check.budget))["row"]
    return found


def find(trace: str, folders: list[Path]) -> Path:
    """Raises BadInput."""
    for folder in folders:
        if (folder / trace).exists():
            return folder / trace
    raise BadInput(
        f"there is no trace {trace}", hint="give --traces FOLDER, which has it; see docs/results/README.md"
    )


def small(detail: dict[str, Any], table: Table) -> dict[str, Any]:
    """Without settings that are as usual, classes without calls, what no figure shows, and most calls."""
    cdf = detail["cdf"] if latency.distribution in table.shown else {}
    usual = msgspec.to_builtins(Settings())
    return {
        "settings": {key: value for key, value in detail["settings"].items() if value != usual[key]},
        "row": detail["row"],
        "classes": {name: part for name, part in detail["classes"].items() if part["invocations"]},
        "cdf": {name: [round(ms, _DIGITS) for ms in values] for name, values in cdf.items()},
        "timeline": [
            {key: round(value, _DIGITS) if isinstance(value, float) else value for key, value in call.items()}
            for call in detail["timeline"][: table.calls]
        ],
    }


def text(command: str, found: list[dict[str, Any]]) -> bytes:
    """As `results.json`, a line a row and a line a detail."""
    made = document(command, [])
    del made["machine"]["kernel"]  # nothing of it is in a row
    made["rows"] = [one["row"] for one in found]
    made["details"] = [{key: value for key, value in one.items() if key != "row"} for one in found]
    lists = {name: b",\n".join(map(msgspec.json.encode, made.pop(name))) for name in ("rows", "details")}
    head = msgspec.json.format(msgspec.json.encode(made), indent=1)[:-2]
    return (
        head
        + b"".join(b',\n "%s": [\n%s\n ]' % (name.encode(), lines) for name, lines in lists.items())
        + b"\n}\n"
    )


def remake(name: str, traces: list[Path], output: Path) -> None:
    """Raises BadInput."""
    table = TABLES[name]
    folder = output / name
    found = []
    count = sum(len(part.traces) * len(part.budgets) * len(part.policies) for part in table.parts)
    for one in run(table, [output / RECIPES, *traces]):
        found.append(one)
        row = one["row"]
        said = f"{row['trace']} {row['policy']} at {row['budget_fraction']:g}: {row['saved_fraction']:.1%} saved"
        print(f"{len(found)}/{count} {said}", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_bytes(text("simulate", found))
    draw(name, output)


def draw(name: str, output: Path) -> None:
    """The Markdown and figures of what is there."""
    folder = output / name
    table = TABLES[name]
    with tempfile.TemporaryDirectory(prefix="instainfer-remake-") as made:
        written = write([folder / "results.json"], Path(made), title=table.title, wanted=table.shown)
        page = written.markdown.read_text("utf-8")
        if not table.drawn:
            page = _IMAGE.sub("", page)
        (folder / "README.md").write_text(page, encoding="utf-8")
        shutil.rmtree(folder / "figures", ignore_errors=True)
        if written.figures and table.drawn:
            shutil.copytree(Path(made) / "figures", folder / "figures")


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m instainfer.report.remake", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"of {', '.join(TABLES)}, or all")
    parser.add_argument("--traces", type=Path, action="append", default=[], help="a folder with public traces")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results"), help="[docs/results]")
    parser.add_argument("--draw", action="store_true", help="run nothing: only draw what is there again")
    given = parser.parse_args(args)
    names = list(TABLES) if given.names == ["all"] else given.names
    if unknown := [name for name in names if name not in TABLES]:
        parser.error(f"there is no table {unknown[0]!r}: there are {', '.join(TABLES)}")
    try:
        for name in names:
            if given.draw:
                draw(name, given.output)
            else:
                remake(name, given.traces, given.output)
    except InstaInferError as error:
        print(f"{error.message}; {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
