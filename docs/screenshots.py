"""The pictures of the dashboard and of `top` in these documents, of a real run: `python docs/screenshots.py` from
a checkout, or with `cluster` or `one` for a part of them.

A server of its own, the example models, some minutes of calls; then Chromium (the machine's) and `top` look at it.
The picture of the cluster is of three agents on this machine.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import mimetypes
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from instainfer.cli.top.app import Top
from instainfer.client import Client
from instainfer.packing import pack

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "examples"
#: Function -> called every so many seconds, beginning with this one.
PLAN = {"hello": (1, 0), "magika": (9, 2), "profanity": (14, 5), "ocr": (19, 8)}
EARLY_S = 10  # cold calls, pre-loads and what came of them are in view
LATE_S = 50  # there is a past to compare with
SIZE = {"width": 1120, "height": 840}
TERMINAL = (118, 36)
HOME = {"memory": "512MB"}  # of the function that is always warm: its idle memory is where the others go
#: Containers end after some seconds: nobody wants to wait for ten minutes.
SHORT = {"INSTAINFER_POLICY__KEEP_ALIVE": "fixed", "INSTAINFER_POLICY__KEEP_ALIVE_S": "6"}
NODES = ("rack-a", "rack-b", "rack-c")
INSTAINFER = (sys.executable, "-m", "instainfer.cli")
SANDBOX = ("--sandbox", "auto" if os.geteuid() == 0 else "process")


def environment(more: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("INSTAINFER_")} | more


@contextmanager
def server(directory: Path, options: tuple[str, ...], settings: dict[str, str]) -> Iterator[str]:
    command = [*INSTAINFER, "serve", "--port", "0", "--data-dir", str(directory), *options]
    process = subprocess.Popen(
        command, env=environment(settings), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        said = re.search(r"http://\S+", process.stdout.readline())
        assert said is not None, "the server did not start"
        yield said[0]
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def cluster(directory: Path) -> Iterator[str]:
    key = {"INSTAINFER_CLUSTER__KEY": secrets.token_urlsafe(36)}
    addresses = []
    try:
        for node in NODES:
            line = [*INSTAINFER, "agent", "--data-dir", str(directory / node), "--node", node, "--memory", "1GB"]
            options = ["--listen", "127.0.0.1:0", *SANDBOX, "--detach", "--json"]
            said = subprocess.run([*line, *options], env=environment(key), check=True, stdout=subprocess.PIPE)
            addresses.append(f"{node}={json.loads(said.stdout)['url']}")
        with server(directory / "server", ("--cluster", ",".join(addresses)), key) as url:
            yield url
    finally:
        for node in NODES:
            line = [*INSTAINFER, "agent", "--data-dir", str(directory / node), "--stop"]
            subprocess.run(line, env=environment(key), check=False, stdout=subprocess.DEVNULL)


def play(client: Client, stop: threading.Event) -> None:
    samples = {}
    for name in PLAN:
        path = next((EXAMPLES / name).glob("sample.*"))
        samples[name] = path.read_bytes(), mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    for second in itertools.count():
        for name, (every, first) in PLAN.items():
            if second >= first and (second - first) % every == 0:
                client.invoke("default", name, *samples[name])
        if stop.wait(1):
            return


def shoot(page: Page, url: str, path: str, picture: str, ready: str) -> None:
    page.goto(f"{url}/ui/#/{path}")
    page.locator("#link[data-state=live]").wait_for()
    page.locator(ready).first.wait_for(timeout=60_000)
    page.wait_for_timeout(5000)  # some events: what moves has moved
    if not path.startswith("cluster"):
        page.locator(ready).first.scroll_into_view_if_needed()
    page.screenshot(path=DOCS / f"dashboard-{picture}.png")


def draw_top(url: str) -> None:
    """In a thread of its own: where Chromium is, a loop runs already."""

    async def run() -> None:
        app = Top(Client(url))
        async with app.run_test(size=TERMINAL) as pilot:
            for page, keys in (("now", ()), ("timeline", ("t",))):
                await pilot.press(*keys)
                await pilot.pause(3.0)  # some events
                picture = app.export_screenshot(title="instainfer top")
                # The font that it names is somebody else's address: the reader's own will do.
                picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
                picture = re.sub(r"[ \t]+$", "", picture, flags=re.MULTILINE)
                (DOCS / f"top-{page}.svg").write_text(picture, "utf-8")

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, run()).result()


def one_node(page: Page, url: str, client: Client) -> None:
    shoot(page, url, "now", "now", ".meter .ahead")
    time.sleep(EARLY_S)
    shoot(page, url, "timeline", "timeline", "tbody tr")
    draw_top(url)
    time.sleep(LATE_S)
    shoot(page, url, "function/default/magika", "function", "svg.chart")
    told = next(one for one in client.activations(function="ocr") if one["start"] == "preloaded")
    shoot(page, url, f"why/{told['id']}", "why", ".compare")


def many_nodes(page: Page, url: str, client: Client) -> None:
    time.sleep(EARLY_S)
    client.drain(NODES[-1])
    shoot(page, url, "cluster", "cluster", ".grid tbody tr")


def run(url: str, look: Callable[[Page, str, Client], None], browser: Browser) -> None:
    client, stop = Client(url), threading.Event()
    for name in PLAN:
        for event in client.deploy("default", name, pack(EXAMPLES / name), HOME if name == "hello" else None):
            print(name, event.get("message") or event["event"], flush=True)
    calls = threading.Thread(target=play, args=(Client(url), stop))
    calls.start()
    try:
        look(browser.new_page(viewport=SIZE), url, client)
    finally:
        stop.set()
        calls.join()


def main(wanted: list[str]) -> None:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("there is no Chromium: apt-get install chromium")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="instainfer-pictures-") as directory, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=flags)
        if "one" in wanted:
            with server(Path(directory) / "one", ("--memory", "4GB", *SANDBOX), SHORT) as url:
                run(url, one_node, browser)
        if "cluster" in wanted:
            with cluster(Path(directory)) as url:
                run(url, many_nodes, browser)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:] or ["one", "cluster"])
