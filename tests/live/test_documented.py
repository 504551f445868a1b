"""Every command of every page, run as its reader would."""

from __future__ import annotations

from pathlib import Path

import pytest

from .documented import ROOT, Command, Shell, Step, steps

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md"), *(ROOT / "docs").rglob("*.md")])
#: Tables of results take minutes and traces that are not here; tests/report/test_remake.py makes a row of each.
PAGES = [page for page in PAGES if ROOT / "docs" / "results" not in page.parents]
#: Those with something to run.
TOLD = [page for page in PAGES if any(step.commands for step in steps(page.read_text("utf-8")))]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", TOLD, ids=named)
def test_the_commands_of(page: Path, tmp_path: Path) -> None:
    with Shell(tmp_path) as shell:
        for step in steps(page.read_text("utf-8")):
            shell.follow(step)


def test_there_is_something_to_run() -> None:
    run = [one for page in TOLD for one in steps(page.read_text("utf-8")) if one.reason is None and one.commands]
    left_out = [one for page in TOLD for one in steps(page.read_text("utf-8")) if one.reason is not None]
    assert len(run) > 25
    assert len(left_out) < len(run)


def test_a_page_is_a_script() -> None:
    page = """
<!-- file: main.py -->
```python
x = 1
```
<!-- setup
first
second
-->
```console
$ one   # a remark
said
more
# two \\
  --three
```
<!-- until: ready -->
```sh
four
five
```
```
no command
```
<!-- not run: there is nobody to talk to -->
```console
$ six
```
"""
    told = list(steps(page))
    assert told == [
        Step(file="main.py", content="x = 1\n"),
        Step([Command("first"), Command("second")]),
        Step([Command("one   # a remark", ["said", "more"]), Command("two \\\n  --three")]),
        Step([Command("four\nfive", until="ready")]),
        Step([Command("six")], reason="there is nobody to talk to"),
    ]


@pytest.mark.parametrize(
    "page",
    [
        "<!-- not run: -->\n```console\n$ x\n```\n",
        "<!-- not run: why -->\n```console\n$ x\n```\n",
        "<!-- until: x -->\n```python\nx\n```\n",
        "<!-- file: x -->\n",
        "```console\nprinted\n```\n",
        "```console\n```\n",
    ],
)
def test_marks_that_mean_nothing_are_refused(page: str) -> None:
    with pytest.raises(ValueError):
        list(steps(page))


def test_what_a_command_says_is_compared(tmp_path: Path) -> None:
    with Shell(tmp_path) as shell:
        shell.follow(Step(file="a/b.txt", content="port 3233\n"))
        shell.follow(Step([Command("cat a/b.txt", [f"port {shell.port}"]), Command("echo x y", ["x    y"])]))
        shell.follow(Step([Command("echo error: no; false", ["error: no"]), Command("false")], reason="a test"))
        theirs, ours = "0" * 31 + "1", "a" * 32
        shell.follow(Step([Command(f"echo id {ours}", [f"id {theirs}"]), Command(f"test {theirs} = {ours}")]))
        shell.follow(Step([Command("echo >> n; wc -l < n", until="^3$")]))
        for wrong in (
            Command("false"),
            Command("true", ["error: no"]),
            Command("echo x", ["y"]),
            Command("exit 3"),
        ):
            with pytest.raises(AssertionError):
                shell.follow(Step([wrong]))
