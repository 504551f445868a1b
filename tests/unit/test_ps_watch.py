"""`ps --watch`: on a terminal of its own, in a pipe, and with the server away."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from instainfer.cli.ps import away, picture
from instainfer.errors import Unavailable

from .stub_server import CONTAINERS, Stub, serving

PS = [sys.executable, "-m", "instainfer.cli", "ps", "--watch"]


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with serving(Stub()) as running:
        yield running


def read_until(terminal: int, *wanted: str) -> str:
    """What comes out of it until all of these were there; a test's own limit ends it otherwise."""
    seen = ""
    while not all(one in seen for one in wanted):
        seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


def test_on_a_terminal_until_it_is_interrupted(stub: Stub) -> None:
    terminal, child = pty.openpty()
    environ = {**os.environ, "INSTAINFER_URL": stub.url, "COLUMNS": "160", "LINES": "40", "TERM": "xterm-256color"}
    with subprocess.Popen(PS, stdin=child, stdout=child, stderr=child, env=environ) as process:
        os.close(child)
        try:
            read_until(terminal, "8.0 GB given to 1 container", "CONTAINER", "default/magika", "INSTANCE")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
            os.close(terminal)


def test_json_is_a_document_a_line(stub: Stub) -> None:
    environ = {**os.environ, "INSTAINFER_URL": stub.url}
    with subprocess.Popen([*PS, "--json"], stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None
        try:
            assert [json.loads(process.stdout.readline()) for _ in range(2)] == [CONTAINERS] * 2
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()


def test_without_a_terminal_it_says_what_to_do(stub: Stub) -> None:
    environ = {**os.environ, "INSTAINFER_URL": stub.url}
    done = subprocess.run(PS, capture_output=True, text=True, env=environ, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--watch needs a terminal" in done.stderr and "--json" in done.stderr


def test_a_server_that_is_away_leaves_what_was_seen(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    hostile = {**CONTAINERS, "node": {"sandbox": "\x1b[2J[red]"}}
    console = Console(width=160)
    console.print(away(picture(hostile), Unavailable("no server answers")))
    shown = capsys.readouterr().out
    assert shown.startswith("no server answers; trying again")
    assert "default/magika" in shown and r"\x1b[2J[red]" in shown and "\x1b" not in shown
