"""The dashboard while `instainfer replay` sends a trace: every page keeps to what the API says, and goes on after
a restart of the server with nothing twice."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.browser import PHONE, Tab, inaccessible
from tests.live.server_helpers import ECHO, Server, environment, eventually

pytestmark = pytest.mark.slow

FUNCTIONS = ("f", "g")
EVERY_MS, CALLS = 60, 50  # of each function: three seconds
DARK: dict[str, Any] = {"viewport": PHONE, "color_scheme": "dark"}
LIGHT: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
#: The page notes every event that it gets: its number and time, and the calls that it told of.
NOTE = """async () => {
  const { app } = await import("/ui/app.js");
  const { store } = await import("/ui/store.js");
  const add = store.addMarks;
  window.noted = [];
  store.addMarks = (marks) => { // which every event does, once
    const { event } = app;
    window.noted.push({ id: event.id, wall: event.now.wall, calls: event.invocations.map((one) => one.id) });
    add.call(store, marks);
  };
}"""


@pytest.fixture
def server(tmp_path: Path, browser: Any) -> Iterator[Server]:
    variables = {"INSTAINFER_POLICY__SHADOW": '["none"]'}
    with Server(tmp_path, "--port", str(free_port()), "--memory", "1GB", variables=variables) as started:
        yield started


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def replay(server: Server, folder: Path) -> subprocess.Popen[bytes]:
    trace = folder / "trace.csv"
    rows = (f"{EVERY_MS * call},{name}\n" for call in range(CALLS) for name in FUNCTIONS)
    trace.write_text("t_ms,func\n" + "".join(rows))
    command = [
        sys.executable,
        "-m",
        "instainfer.cli",
        "replay",
        str(trace),
        "--url",
        server.url,
        "--namespace",
        "n",
    ]
    line = [*command, "--warmup", "0", "--speed", "1", "--json"]
    return subprocess.Popen(line, env=environment({}), stdout=subprocess.PIPE)


def figures(tab: Tab) -> tuple[dict[str, str], dict[str, str]]:
    """Of *Now*: what is shown, and what the event behind it says."""
    shown, told = tab.page.evaluate(
        """async () => {
          const { app } = await import("/ui/app.js");
          const { ms, mb, number, percent } = await import("/ui/dom.js");
          const { now } = app.event;
          const told = {
            per_s: number(now.rates.per_s), hit: percent(now.rates.hit_fraction), p50: ms(now.rates.p50_ms),
            p99: ms(now.rates.p99_ms), failed: number(now.rates.failed), queued: number(now.queued),
            ahead: mb(now.preloaded_mb),
            starts: Object.entries(now.rates.starts).map((one) => one.join(" ")).sort().join(),
          };
          const shown = Object.fromEntries([...document.querySelectorAll("[data-figure] .figure")].map((one) =>
            [one.closest("[data-figure]").dataset.figure, one.textContent]).filter(([name]) => name in told));
          const starts = [...document.querySelectorAll("#starts strong")];
          shown.starts = starts.map((one) => one.textContent).sort().join();
          return [shown, told];
        }"""
    )
    return shown, told


def kept(tab: Tab) -> list[str]:
    return sorted(tab.import_("store.js", "m.store.ids"))


def recorded(server: Server) -> list[str]:
    return sorted(one["id"] for one in server.client.activations(limit=2000))


def check_now(tab: Tab, server: Server) -> None:
    page = tab.open("now")
    page.locator("#starts strong").first.wait_for()
    shown, told = figures(tab)
    assert shown == told
    there = {one["id"] for one in server.client.containers()["containers"]}
    eventually(
        lambda: {one.get_attribute("data-container") for one in page.locator("[data-container]").all()} == there
    )


def check_timeline(tab: Tab, server: Server) -> None:
    page = tab.open("timeline")

    def latest() -> bool:  # asked for anew: it may be pushed out of the table before the next look
        one = server.client.activations(limit=1)[0]
        return bool(page.locator(f"a[href='#/why/{one['id']}']").count())

    eventually(latest, what="the latest call that the API has")
    assert page.evaluate("document.querySelector('canvas').getAttribute('aria-label')").startswith(
        "Timeline of 2 "
    )


def check_functions(tab: Tab, server: Server) -> None:
    page = tab.open("functions")
    page.locator("tbody tr").nth(1).wait_for()

    def states() -> bool:
        rows = [row.locator("td").nth(1).inner_text() for row in page.locator("tbody tr").all()]
        return rows == [one["state"] for one in server.client.functions("n")]

    eventually(states, what="the states that the API has")


def check_function(tab: Tab, server: Server) -> None:
    page = tab.open("function/n/f")
    page.get_by_text("Ways to be faster").wait_for()

    def latest() -> bool:
        one = server.client.activations(namespace="n", function="f", limit=1)[0]
        rows = page.locator("tr", has=page.locator(f"a[href='#/why/{one['id']}']")).all_inner_texts()
        return len(rows) == 1 and tab.import_("dom.js", "m.ms(a[0])", one["e2e_ms"]) in rows[0]

    eventually(latest, what="the latest call that the API has, and what it took")


def check_policies(tab: Tab, server: Server) -> None:
    page = tab.open("policies")
    page.locator("tbody tr").nth(1).wait_for()
    before = server.client.policies()["policies"][0]["invocations"]
    number = "(() => Number(document.querySelector('tbody td.number').textContent.replaceAll(',', '')))()"
    eventually(lambda: page.evaluate(number) >= before, what="no fewer than the API has said")
    assert page.evaluate(number) <= server.client.policies()["policies"][0]["invocations"]


def check_why(tab: Tab, server: Server) -> None:
    one = server.client.activations(namespace="n", limit=1)[0]
    page = tab.open(f"why/{one['id']}")
    page.get_by_text("Where the time went").wait_for()
    assert f"Start\n{one['start']}" in page.locator("main").inner_text()


CHECKS = (check_now, check_timeline, check_functions, check_function, check_policies, check_why)


def told_in_time(noted: list[dict[str, Any]], records: list[dict[str, Any]]) -> list[float]:
    """Every call is told once: in the event that is made after its end, or one of the next two, of which there is
    one a second. Returns by how many seconds of the server's clock each was told later than it ended."""
    late = []
    for one in records:
        ended = one["wall"] + one["e2e_ms"] / 1e3
        (place,) = (place for place, event in enumerate(noted) if one["id"] in event["calls"])
        first = next((place for place, event in enumerate(noted) if event["wall"] >= ended), len(noted) - 1)
        assert place <= first + 2, (one, first, place)
        late.append(noted[place]["wall"] - ended)
    return late


def test_every_page_under_a_replayed_trace_and_a_restart(server: Server, browser: Any, tmp_path: Path) -> None:
    with Tab(browser, server.url, **LIGHT) as tab, Tab(browser, server.url, trusting=True, **DARK) as phone:
        page = tab.open("now")
        page.get_by_role("heading", name="No function is deployed yet").wait_for()
        phone.open("functions").get_by_text("instainfer deploy PATH").wait_for()
        assert inaccessible(phone.page) == []
        for name in FUNCTIONS:
            server.deploy("n", name, ECHO)
        eventually(lambda: not page.get_by_role("heading", name="No function is deployed yet").is_visible())
        page.evaluate(NOTE)
        with replay(server, tmp_path) as sending:
            eventually(lambda: len(recorded(server)) >= len(FUNCTIONS))
            for check in CHECKS:
                check(tab, server)
                check(phone, server)
                assert inaccessible(phone.page) == [], check.__name__
                assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390, check.__name__
            sending.wait(60)
        assert len(recorded(server)) == len(FUNCTIONS) * CALLS
        eventually(lambda: kept(tab) == recorded(server) == kept(phone), what="each call once, in both pages")
        records = server.client.activations(limit=2000)
        late = told_in_time(page.evaluate("window.noted"), records)
        assert len(late) > CALLS
        assert statistics.median(late) < 2.0
        check_now(tab, server)

        server.term()
        page.locator("#link[data-state=away]").wait_for()
        assert kept(tab) == [one["id"] for one in sorted(records, key=lambda one: one["id"])]  # to be looked at
        server.start()
        for one in (tab, phone):
            one.page.locator("#link[data-state=live]").wait_for()
        last = server.call("n", "f").headers["x-instainfer-activation"]
        eventually(
            lambda: last in kept(tab) and kept(tab) == recorded(server) == kept(phone), what="nothing twice"
        )
        check_now(tab, server)
        # Chromium itself says that a connection was refused, or broke off.
        assert [error for error in (*tab.errors, *phone.errors) if "net::ERR_" not in error] == []
