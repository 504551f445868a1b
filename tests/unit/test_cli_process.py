"""The command line where a terminal, a pipe or a process matters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from instainfer.cli.output import bar, phase_lines, table

from .stub_server import Stub, serving


@pytest.fixture(scope="module")
def running() -> Iterator[Stub]:
    with serving(Stub()) as stub:
        yield stub


@pytest.fixture
def stub(running: Stub, monkeypatch: pytest.MonkeyPatch) -> Stub:
    monkeypatch.setenv("INSTAINFER_URL", running.url)
    return running


def process(*line: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "instainfer.cli", *line],
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
        check=False,
        timeout=60,
    )


def test_bars() -> None:
    assert bar([(1, "a"), (1, "b"), (2, "c")], 8) == "aabbcccc"
    assert bar([(0, "a")], 8) == ""
    assert len(bar([(1, "a"), (1, "b"), (1, "c")], 10)) == 10
    lines = phase_lines({"inference_ms": 10.0, "queue_ms": 30.0, "load_ms": 0.0}, width=8, full="#")
    assert [line[22:] for line in lines] == ["######", "      ##"]
    tiny = phase_lines({"queue": 1000.0, "inference": 0.001}, width=8, full="#")
    assert tiny[1].endswith(" " * 7 + "#")


def test_tables_on_a_terminal_are_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    table(["NAME", "N"], [["[red]x", "1"], ["cold", "22"]], right=("N",))
    drawn = capsys.readouterr().out
    assert "\x1b[31mcold" in drawn
    assert [line.split() for line in re.sub(r"\x1b\[[0-9;]*m", "", drawn).splitlines()] == [
        ["NAME", "N"],
        ["[red]x", "1"],
        ["cold", "22"],
    ]


def test_a_narrow_terminal_breaks_no_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    table(["ID", "TEXT"], [["4c1d8f0e" * 4, "a text that is longer than the rest of the line"]])
    assert "4c1d8f0e" * 4 in capsys.readouterr().out


def test_a_narrow_terminal_is_spared_what_can_be_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    rows = [["one", "x" * 20, "y" * 20]]
    for columns, shown, said in ((60, "NAME  FIRST", ""), (40, "NAME  LAST", "too narrow for FIRST")):
        monkeypatch.setenv("COLUMNS", str(columns))
        table(["NAME", "FIRST", "LAST"], rows, spare=("ELSEWHERE", "FIRST", "LAST"))
        captured = capsys.readouterr()
        assert re.sub(r"\x1b\[[0-9;]*m| +", " ", captured.out).split()[:2] == shown.split()
        assert said in captured.err


def test_process_prints_json_and_exits_0(stub: Stub) -> None:
    done = process("ls", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["functions"][0]["name"] == "magika"


def test_process_fails_with_1_and_2() -> None:
    down = process("ls", INSTAINFER_URL="http://127.0.0.1:1")
    assert (down.returncode, down.stdout) == (1, "")
    assert "hint: start it with `instainfer serve`" in down.stderr
    usage = process("lst")
    assert usage.returncode == 2
    assert usage.stderr.startswith("error: No such command 'lst'")


def test_process_without_arguments_shows_help() -> None:
    done = process()
    assert done.returncode == 2
    assert "Commands:" in done.stderr + done.stdout


def test_a_terminal_without_utf8_ends_no_command(stub: Stub) -> None:
    done = process("invoke", "magika", "-p", "name", "Zoë", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_early_sees_no_traceback(stub: Stub) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "instainfer.cli", "ls"],
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_starting_up_imports_nothing_heavy() -> None:
    heavy = {"rich", "textual", "httpx", "uvicorn", "numpy", "sqlalchemy"}
    code = f"import sys, instainfer.cli; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_server_brings_no_numpy() -> None:
    """It takes 13 MB, and what serves does not calculate."""
    code = (
        "import sys; from instainfer.gateway import server; from instainfer.policies import registry;"
        " registry.preload(); registry.predictor(); print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False", done.stdout
