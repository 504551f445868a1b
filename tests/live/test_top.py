"""`top` against a real server, driven by keys."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from instainfer.cli.top.app import Top, Why
from instainfer.client import Client
from instainfer.errors import NotAllowed

from .server_helpers import ECHO, PATIENCE_S, Server, environment

SIZE = (140, 44)


def text(app: Top, id: str) -> str:
    return str(app.screen_stack[0].query_one(id, Static).content)


async def until(pilot: Pilot[Any], probe: Callable[[], object], what: str = "") -> None:
    async def look() -> None:
        while not probe():
            await pilot.pause(0.02)  # between two looks: the server tells once a second

    try:
        await asyncio.wait_for(look(), PATIENCE_S)
    except TimeoutError:
        raise AssertionError(f"never became true: {what}") from None


def driven(client: Client, test: Callable[[Top, Pilot[Any]], Coroutine[Any, Any, None]]) -> Top:
    async def run() -> Top:
        app = Top(client)
        async with app.run_test(size=SIZE) as pilot:
            await test(app, pilot)
        return app

    return asyncio.run(run())


@pytest.mark.slow
def test_containers_calls_and_why(server: Server, ns: str) -> None:
    server.deploy(ns, "echo", ECHO)
    first = server.call(ns, "echo").headers["x-instainfer-activation"]

    async def test(app: Top, pilot: Pilot[Any]) -> None:
        calls = app.query_one(DataTable)
        await until(pilot, lambda: first in [row.value for row in calls.rows], "the call before it was opened")
        (container,) = server.containers(ns)
        assert f"╭ {container['id']} {ns}/echo" in text(app, "#containers")
        assert "served 1" in text(app, "#containers")
        assert (
            "● live" in text(app, "#head") and "req/s" in text(app, "#head") and server.url in text(app, "#head")
        )

        second = (await asyncio.to_thread(server.call, ns, "echo")).headers["x-instainfer-activation"]
        await until(pilot, lambda: second in [row.value for row in calls.rows], "the call while it was open")
        cells = [str(cell) for cell in calls.get_row(second)]
        assert cells[1:4] == [f"{ns}/echo", "warm", "ok"]

        calls.move_cursor(row=calls.get_row_index(first))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Why), "the answer's screen")
        await until(pilot, lambda: "forecast" in str(app.screen.query_one("#why", Static).content), "the answer")
        told = str(app.screen.query_one("#why", Static).content)
        assert f"{ns}/echo (version 1)" in told and "cold start, ok" in told and "create container" in told
        await pilot.press("escape")
        assert not isinstance(app.screen, Why)
        await pilot.press("q")

    assert driven(server.client, test).return_value is None


@pytest.mark.slow
def test_pages_filter_sort_zoom_and_pause(server: Server, ns: str) -> None:
    for name in ("left", "right"):
        server.deploy(ns, name, ECHO)
        server.result(ns, name)

    async def test(app: Top, pilot: Pilot[Any]) -> None:
        await pilot.press("t")
        await until(pilot, lambda: f"{ns}/left" in text(app, "#rows") and f"{ns}/right" in text(app, "#rows"))
        assert "inference" in text(app, "#rows") and "60 s ago" in text(app, "#rows").replace("1.0 min", "60 s")
        await pilot.press("plus")
        assert "30 s ago" in text(app, "#rows")
        await pilot.press("minus", "s")
        assert app.sort == "name"
        lines = text(app, "#rows").splitlines()
        assert [line.split()[0] for line in lines if line.startswith(f"{ns}/")] == [f"{ns}/left", f"{ns}/right"]

        await pilot.press("slash", *"LEFT", "enter")
        assert f"{ns}/right" not in text(app, "#rows") and f"{ns}/left" in text(app, "#rows")
        calls = app.query_one(DataTable)
        assert {str(calls.get_row_at(row)[1]) for row in range(calls.row_count)} == {f"{ns}/left"}
        await pilot.press("escape")
        assert app.query_one(Input).value == ""
        assert f"{ns}/right" in text(app, "#rows")

        await pilot.press("p")
        assert "paused" in text(app, "#head")
        new = (await asyncio.to_thread(server.call, ns, "left")).headers["x-instainfer-activation"]
        await until(pilot, lambda: new in [one["id"] for one in app.picture.invocations], "it goes on listening")
        assert new not in [row.value for row in calls.rows]
        await pilot.press("p")
        assert new in [row.value for row in calls.rows]

    driven(server.client, test)


@pytest.mark.slow
def test_a_server_that_is_started_again(own: Server) -> None:
    """Over the admin socket, whose path stays: it says that it is away, comes back, and shows nothing twice."""
    own.deploy("n", "echo", ECHO)
    before = own.call("n", "echo").headers["x-instainfer-activation"]

    async def test(app: Top, pilot: Pilot[Any]) -> None:
        calls = app.query_one(DataTable)
        await until(pilot, lambda: before in [row.value for row in calls.rows])
        await asyncio.to_thread(own.term)
        await until(pilot, lambda: "trying again" in text(app, "#head"), "it says that the server is away")
        await asyncio.to_thread(own.start)
        after = (await asyncio.to_thread(own.call, "n", "echo")).headers["x-instainfer-activation"]
        await until(pilot, lambda: after in [row.value for row in calls.rows], "the call of the new server")
        assert "● live" in text(app, "#head")
        ids = [one["id"] for one in app.picture.invocations]
        assert sorted(ids) == sorted({before, after})

    with Client(data_dir=own.data) as client:
        driven(client, test)


@pytest.mark.slow
def test_a_wrong_key_ends_it(tmp_path: Path) -> None:
    with Server(tmp_path, variables={"INSTAINFER_SERVER__API_KEY": "right"}) as server:

        async def test(app: Top, pilot: Pilot[Any]) -> None:
            await until(pilot, lambda: app.return_value is not None)

        with Client(server.url, "wrong") as client:
            assert isinstance(driven(client, test).return_value, NotAllowed)


@pytest.mark.parametrize("over", ["url", "data_dir"])
def test_one_snapshot_as_json(server: Server, ns: str, over: str) -> None:
    server.deploy(ns, "echo", ECHO)
    server.result(ns, "echo")
    at = ["--url", server.url] if over == "url" else ["--data-dir", str(server.data)]
    done = subprocess.run(
        [sys.executable, "-m", "instainfer.cli", "top", "--json", *at],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    told = json.loads(done.stdout)
    assert [one["owner"] for one in told["now"]["containers"] if one["namespace"] == ns] == [f"{ns}/echo"]
    assert set(told["now"]["rates"]) >= {"per_s", "hit_fraction", "p50_ms", "p99_ms"}


@pytest.mark.slow
def test_on_a_terminal_of_its_own(server: Server) -> None:
    """The verb itself: drawn, and left with q."""
    terminal, child = pty.openpty()
    command = [sys.executable, "-m", "instainfer.cli", "top", "--url", server.url]
    shape = {"COLUMNS": "140", "LINES": "40", "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment(shape)) as process:
        os.close(child)
        try:
            seen = ""
            while "live" not in seen or "ACTIVATION" not in seen:
                seen += os.read(terminal, 65536).decode(errors="replace")
            os.write(terminal, b"q")
            with contextlib.suppress(OSError):  # EIO: nobody holds the other end any more
                while os.read(terminal, 65536):
                    pass
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            os.close(terminal)
