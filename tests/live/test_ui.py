"""The dashboard in a real browser, against a real server: it shows what the API says, and harms nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from instainfer.client import PREFIX
from tests.live.browser import PHONE, Tab, inaccessible
from tests.live.server_helpers import ECHO, Server, eventually

pytestmark = pytest.mark.slow

HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
SPEAKS = f"""
import sys

def handler(event):
    print({HOSTILE!r})
    if event.get("fail"):
        raise ValueError({HOSTILE!r})
    return {{"said": {HOSTILE!r}, "event": event}}
"""
PAGES = ("now", "timeline", "functions", "policies", "function/n/f")


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Server]:
    """One with functions that were called: cold, warm, failed, pre-loaded."""
    variables = {"INSTAINFER_POLICY__SHADOW": '["none"]'}
    with Server(tmp_path_factory.mktemp("ui"), "--memory", "1GB", variables=variables) as server:
        server.deploy("n", "f", ECHO, files={"sample.json": '{"text": "<b>x</b>"}'}, sample="sample.json")
        server.deploy("n", "g", ECHO)
        server.deploy("n", "hostile", SPEAKS)
        for _ in range(3):
            server.result("n", "f", {"a": 1})
        server.client.preload("n", "g")
        eventually(lambda: server.state("n", "g") == "preloaded")
        server.result("n", "g")
        assert server.call("n", "hostile", {"fail": True}).status_code == 502
        yield server


@pytest.fixture
def tab(busy: Server, browser: Any) -> Iterator[Tab]:
    """No error, and nothing asked of anyone but the server."""
    with Tab(browser, busy.url) as opened:
        yield opened
        assert opened.errors == []
        assert {url for url in opened.asked if not url.startswith(busy.url + "/")} == set()


def words(tab: Tab) -> str:
    return str(tab.page.locator("main").inner_text())


def say(tab: Tab, how: str, value: object) -> str:
    """As the page does."""
    return str(tab.import_("dom.js", f"m.{how}(a[0])", value))


# ---- the pages against the API -------------------------------------------------------------------------------


def test_now(tab: Tab, busy: Server) -> None:
    page = tab.open("now")
    with closing(busy.client.live()) as feed:
        now = next(feed)["now"]
    assert now["rates"]["hit_fraction"] is not None
    expected = {
        "hit": say(tab, "percent", now["rates"]["hit_fraction"]),
        "p50": say(tab, "ms", now["rates"]["p50_ms"]),
        "p99": say(tab, "ms", now["rates"]["p99_ms"]),
        "failed": str(now["rates"]["failed"]),
        "queued": "0",
        "ahead": say(tab, "mb", now["preloaded_mb"]),
    }

    def figures() -> bool:
        shown = {key: page.locator(f"[data-figure={key}] .figure").inner_text() for key in expected}
        return shown == expected

    eventually(figures, seconds=20)
    there = busy.client.containers()
    boxes = page.locator("[data-container]")
    assert {one.get_attribute("data-container") for one in boxes.all()} == {
        one["id"] for one in there["containers"]
    }
    for container in there["containers"]:
        text = page.locator(f"[data-container={container['id']}]").inner_text()
        for instance in container["instances"]:
            assert f"{container['namespace']}/{instance['function'].rpartition('/')[2]}" in text
            assert f"served {instance['served']}" in text
    assert "by hand" in words(tab)  # the pre-load, and its reason


def test_timeline_and_why(tab: Tab, busy: Server) -> None:
    page = tab.open("timeline")
    page.locator("select").nth(1).select_option("3600")
    recorded = busy.client.activations()
    for one in recorded:
        page.locator(f"a[href='#/why/{one['id']}']").wait_for()
    assert tab.import_("store.js", "m.store.size") == len(recorded)
    new = busy.call("n", "f").headers["x-instainfer-activation"]
    link = page.locator(f"a[href='#/why/{new}']")
    link.wait_for()  # it comes by itself
    link.click()
    page.get_by_text("Where the time went").wait_for()
    told = busy.client.why(new)
    text = words(tab)
    assert f"Start\n{told['start']}" in text
    assert say(tab, "ms", told["activation"]["e2e_ms"]) in text
    assert say(tab, "percent", told["probability"]) in text
    for decision in told["decisions"]:
        assert decision["what"] in text
        assert decision["why"] in text
    assert page.locator(".compare .phases").count() == 3  # its own, and the function's cold and warm
    page.go_back()
    page.get_by_role("heading", name="Timeline").wait_for()


def test_a_click_on_a_bar_leads_to_why(tab: Tab, busy: Server) -> None:
    page = tab.open("timeline")
    page.get_by_role("button", name="Follow").click()
    id = busy.call("n", "f").headers["x-instainfer-activation"]
    page.locator(f"a[href='#/why/{id}']").wait_for()
    canvas = page.locator("canvas")
    box = canvas.bounding_box()
    for x in range(
        int(box["width"]) - 2, 180, -2
    ):  # from the present back: the first bar in the row is a call of f
        canvas.hover(position={"x": x, "y": 24 + 13})
        title = canvas.get_attribute("title")
        if title:
            break
    assert title.startswith("n/f · ")
    canvas.click(position={"x": x, "y": 24 + 13})
    page.get_by_text("Where the time went").wait_for()
    assert "n/f" in words(tab)


def test_functions(tab: Tab, busy: Server) -> None:
    page = tab.open("functions")
    page.locator("tbody tr").first.wait_for()
    rows = {row.locator("a").inner_text(): row.inner_text() for row in page.locator("tbody tr").all()}
    listed = busy.client.functions()
    assert rows.keys() == {f"{one['namespace']}/{one['name']}" for one in listed}
    for one in listed:
        assert say(tab, "mb", one["memory_mb"]) in rows[f"{one['namespace']}/{one['name']}"]
    page.get_by_role("searchbox").fill("hos")
    assert page.locator("tbody tr").count() == 1


def test_a_function(tab: Tab, busy: Server) -> None:
    page = tab.open("function/n/f")
    page.get_by_text("Ways to be faster").wait_for()
    one = busy.client.function("n", "f")
    text = words(tab)
    assert say(tab, "ms", one["profile"]["warm_ms"]) in text
    for path in one["profile"]["paths"].values():
        assert path["reason"] in text
    forecast = busy.http.get(f"{PREFIX}/functions/n/f/forecast").json()
    assert forecast["predictor"] == "hazard"
    assert forecast["hazard"][0][1] == pytest.approx(forecast["rate"])
    soon, likely, late = forecast["next_s"]
    assert soon <= likely <= (late or 1e9)
    assert page.locator("svg.chart .curve").count() == 1
    assert page.locator("svg.chart .tick").count() >= 3
    body = page.locator("textarea")
    assert body.input_value() == '{"text": "<b>x</b>"}'  # its sample
    page.get_by_role("button", name="Call").click()
    page.locator("#answer").wait_for()
    assert page.locator("#answer").inner_text() == '{"text": "<b>x</b>"}' or "<b>x</b>" in words(tab)
    for verb, state in (("pin", True), ("unpin", False)):
        page.locator(f"#act-{verb}").click()
        eventually(lambda state=state: busy.client.function("n", "f")["pinned"] is state)  # type: ignore[misc]
    page.locator("#act-hint").click()
    page.get_by_text("an arrival is expected in 30 s").wait_for()


def test_policies(tab: Tab, busy: Server) -> None:
    page = tab.open("policies")
    page.locator("tbody tr").nth(1).wait_for()
    told = busy.client.policies()["policies"]
    rows = [row.inner_text() for row in page.locator("tbody tr").all()]
    assert len(rows) == len(told) == 2
    for row, one in zip(rows, told, strict=True):
        assert row.startswith(f"{one['mode']} · {one['predictor']} · {one['keep_alive']}")
        assert one["state"] in row
    live = next(one for one in told if not one["shadow"])
    assert say(tab, "percent", live["warm_fraction"]) in rows[told.index(live)]


def test_versions_are_gone_back_to_by_keyboard(tab: Tab, busy: Server) -> None:
    for answer in (1, 2):
        busy.deploy("n", "versioned", f"def handler(event):\n    return {answer}\n")
    page = tab.open("function/n/versioned")
    for wanted, said in ((1, "Let version 1 serve"), (2, "Let version 2 serve")):
        button = page.get_by_role("button", name=said)
        button.focus()
        page.keyboard.press("Enter")
        page.get_by_text(f"n/versioned serves version {wanted} now").wait_for()
        assert busy.result("n", "versioned") == wanted
        rows = page.locator("tr", has=page.get_by_role("cell", name="yes", exact=True))
        eventually(lambda wanted=wanted, rows=rows: rows.inner_text().startswith(f"{wanted}\t"))  # type: ignore[misc]
        assert page.evaluate("document.activeElement.id") == "said"
    page.locator("#act-pin").focus()
    page.keyboard.press("Enter")
    page.locator("#act-unpin:focus").wait_for()  # what is in its place has the focus
    assert "pinned" in page.locator("#done").inner_text()
    page.keyboard.press("Enter")
    eventually(lambda: not busy.client.function("n", "versioned")["pinned"])


# ---- keys ------------------------------------------------------------------------------------------


def test_a_key_shows_its_namespace_alone(tmp_path: Path, browser: Any) -> None:
    with Server(tmp_path, "--memory", "1GB", variables={"INSTAINFER_SERVER__API_KEY": "k" * 40}) as server:
        for namespace in ("mine", "secret"):
            server.deploy(namespace, f"{namespace}-f", ECHO)
            server.call(namespace, f"{namespace}-f")
        keys = {role: server.client.add_namespace("mine", role)["auth"] for role in ("invoke", "deploy")}
        with Tab(browser, server.url) as tab:
            page = tab.page
            page.goto(f"{server.url}/ui/")
            dialog = page.get_by_role("dialog")
            dialog.locator("input").fill("wrong")
            dialog.get_by_role("button").click()
            page.get_by_text("The server says").wait_for()
            dialog.locator("input").fill(keys["invoke"])
            dialog.get_by_role("button").click()
            page.locator("#link[data-state=live]").wait_for()
            seen = []
            for where in (
                "now",
                "timeline",
                "functions",
                "policies",
                "function/mine/mine-f",
                "function/secret/secret-f",
            ):
                page.goto(f"{server.url}/ui/#/{where}")
                page.locator("main h1 ~ *").first.wait_for(state="attached")
                if where == "function/mine/mine-f":
                    page.get_by_text("What it costs").wait_for()
                    page.get_by_text("Ways to be faster").wait_for()
                    assert page.locator("#act-pin").count() == 0
                if where in ("policies", "function/secret/secret-f"):
                    page.get_by_role("alert").wait_for()
                seen.append(words(tab))
            assert "mine-f" in seen[0]
            assert not any("secret" in text for text in seen[:5])
            assert "cold" not in seen[5]
            assert tab.import_("store.js", "m.store.names") == ["mine/mine-f"]
            assert page.evaluate("JSON.stringify(localStorage)").find(keys["invoke"]) < 0
            page.evaluate("key => sessionStorage.setItem('instainfer-key', key)", keys["deploy"])
            page.reload()
            page.goto(f"{server.url}/ui/#/function/mine/mine-f")
            page.locator("#act-pin").wait_for()
            # Refusals, which Chromium says too.
            assert [error for error in tab.errors if not re.search(r"status of 40[13]", error)] == []


def test_the_files_are_for_anyone_and_say_how_to_treat_them(tmp_path: Path) -> None:
    variables = {"INSTAINFER_SERVER__API_KEY": "k" * 40}
    with (
        Server(tmp_path, variables=variables) as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
    ):
        page = http.get("/ui/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        assert http.get("/ui/", headers={"if-none-match": page.headers["etag"]}).status_code == 304
        assert http.get("/ui").headers["location"] == "/ui/"
        assert http.post("/ui/").status_code == 405
        for none in (
            "/ui/nosuch.js",
            "/ui/__init__.py",
            "/ui/../../etc/passwd",
            "/ui/%2e%2e/model.py",
            "/uix",
        ):
            assert http.get(none).status_code in (401, 404), none
        for name in re.findall(r'(?:src|href)="([^"#]+)"', page.text):
            assert http.get(f"/ui/{name}").status_code == 200, name
        assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|https?://", page.text)
        assert http.get(f"{PREFIX}/functions").status_code == 401


# ---- what people say -----------------------------------------------------------------------------------------


def test_nothing_that_people_say_is_markup(tab: Tab, busy: Server) -> None:
    id = busy.call("n", "hostile", {"fail": True}).headers["x-instainfer-activation"]
    page = tab.open(f"why/{id}")
    page.locator("pre.logs").wait_for()
    assert HOSTILE in words(tab)
    page = tab.open("function/n/hostile")
    page.locator("textarea").fill('{"said": "<script>window.pwned=1</script>"}')
    page.get_by_role("button", name="Call").click()
    page.locator("#answer").wait_for()
    assert "<script>window.pwned=1</script>" in page.locator("#answer").inner_text().replace("\\", "")
    assert HOSTILE in page.locator("pre.logs").inner_text()
    page = tab.open("timeline")
    phases = {f"{one}_ms": 1.0 for one in tab.import_("store.js", "m.PHASES")}
    row = {"id": f"x/{HOSTILE}", "namespace": HOSTILE, "function": HOSTILE, "start": HOSTILE, "status": HOSTILE}
    tab.import_("store.js", "m.store.add([a[0]])", row | {"wall": 2e9, "e2e_ms": 1.0, "phases": phases})
    mark = {"what": HOSTILE, "namespace": HOSTILE, "function": HOSTILE, "why": HOSTILE, "wall": 2e9}
    tab.import_("store.js", "m.store.addMarks([a[0]])", mark)
    for name in ("now", "timeline", "why/%3Cimg%20src=x%3E", f"function/{HOSTILE.replace('/', '%2F')}/x"):
        page.evaluate("where => { location.hash = where }", f"#/{name}")
        page.locator("h1").wait_for()
    assert page.evaluate("window.pwned") is None
    assert page.locator("img[src=x], main script").count() == 0
    # What is not there is refused, and Chromium says so.
    tab.errors[:] = [error for error in tab.errors if "status of 404" not in error]


# ---- everybody -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "size"), [("light", None), ("light", PHONE)])  # dark: test_ui_replay.py
def test_it_is_accessible(busy: Server, browser: Any, scheme: str, size: dict[str, int] | None) -> None:
    options = {"viewport": size} if size else {}
    last = busy.client.activations()[0]["id"]
    with Tab(browser, busy.url, trusting=True, color_scheme=scheme, **options) as tab:
        for where in (*PAGES, f"why/{last}"):
            page = tab.open(where)
            page.locator("table, dl").first.wait_for()
            if where.startswith(("function/", "why/")):
                page.locator("caption").first.wait_for()
            assert inaccessible(page) == [], where
            if size:
                assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], where


def test_it_is_used_by_keyboard_alone(tab: Tab, busy: Server) -> None:
    page = tab.open("now")
    page.locator("body").press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("#pages a").nth(1).focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Timeline").wait_for()
    assert page.evaluate("document.activeElement.tagName") == "H1"
    page.locator("select").nth(1).select_option("3600")  # nothing leaves it meanwhile
    canvas = page.locator("canvas")
    canvas.focus()
    before = canvas.get_attribute("aria-label")
    page.keyboard.press("+")
    assert canvas.get_attribute("aria-label") != before
    link = page.locator("a[href^='#/why/']").first
    link.focus()
    href = link.get_attribute("href")
    newer = busy.call("n", "f").headers["x-instainfer-activation"]
    page.locator(f"a[href='#/why/{newer}']").wait_for()
    assert page.evaluate("document.activeElement.getAttribute('href')") == href  # the page goes on, focus stays
    page.locator("#theme").focus()
    for theme in ("light", "dark", None):
        page.keyboard.press("Enter")
        assert page.locator("html").get_attribute("data-theme") == theme


def test_a_thousand_functions_and_a_hundred_thousand_calls(
    tab: Tab, busy: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tab.open("timeline")
    recorded = len(busy.client.activations(limit=2000))
    eventually(lambda: tab.import_("store.js", "m.store.size") == recorded)  # what there was comes no later
    made = tab.import_(
        "store.js",
        """(() => {
          const phases = Object.fromEntries(m.PHASES.map((one) => [`${one}_ms`, 1 + Math.random() * 50]));
          const now = Date.now() / 1000;
          m.store.clear();
          m.store.leftOut = 1_234;
          const made = 100_500;
          for (let at = 0; at < made; at += 500) {
            m.store.add(Array.from({ length: 500 }, (_, i) => ({
              id: `${String(at + i).padStart(32, "0")}`, namespace: "many", function: `f${(at + i) % 1000}`,
              start: i % 9 ? "warm" : "cold", status: "ok", wall: now - 300 + (300 * (at + i)) / made,
              e2e_ms: 8 * phases.queue_ms, phases })));
          }
          return made;
        })()""",
    )
    assert made == 100_500
    kept = tab.import_(
        "store.js",
        "[m.store.size, m.store.slots.size, m.store.names.length, m.store.rows.reduce((n, r) => n + r.length, 0)]",
    )
    assert kept == [100_000, 100_000, 1_000, 100_000]
    page.locator("select").nth(1).select_option("300")
    told = page.get_by_text(
        "1,000 functions, 100,000 invocations kept, 1,234 warm ones of busy seconds only counted;"
    )
    told.wait_for()
    assert page.evaluate("document.querySelectorAll('*').length") < 2_000
    box = page.locator("canvas").bounding_box()
    assert box["height"] <= page.viewport_size["height"]
    page.get_by_role("searchbox").fill("f99")
    page.get_by_text("11 functions").wait_for()
    page.get_by_role("searchbox").fill("")
    frame = page.locator(".timeline")
    assert frame.evaluate("frame => { frame.scrollTop = 20000; return frame.scrollTop }") > 15_000
    used = page.evaluate("performance.memory.usedJSHeapSize")
    assert used < 100e6
    spent = page.evaluate(
        """() => { const input = document.querySelector("input[type=search]"); const began = performance.now();
          for (let i = 0; i < 20; i++) input.dispatchEvent(new Event("input"));
          return (performance.now() - began) / 20 }"""
    )
    with capsys.disabled():
        print(f"\n100,000 calls of 1,000 functions: {used / 1e6:.0f} MB of heap, {spent:.1f} ms a drawing")
