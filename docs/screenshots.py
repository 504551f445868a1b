"""The dashboard's pictures in these documents, of a real run: `python docs/screenshots.py` from a checkout.

A server of its own, the example models, some minutes of calls; then Chromium (the machine's) looks at it.
"""

from __future__ import annotations

import itertools
import mimetypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from instainfer.client import Client
from instainfer.packing import pack

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "examples"
#: Function -> called every so many seconds, beginning with this one.
PLAN = {"hello": (1, 0), "magika": (9, 2), "profanity": (14, 5), "ocr": (19, 8)}
EARLY_S = 10  # cold calls, pre-loads and what came of them are in view
LATE_S = 50  # there is a past to compare with
SIZE = {"width": 1120, "height": 840}
HOME = {"memory": "512MB"}  # of the function that is always warm: its idle memory is where the others go


@contextmanager
def server(directory: Path) -> Iterator[str]:
    """Containers end after some seconds: nobody wants to wait for ten minutes."""
    settings = {"INSTAINFER_POLICY__KEEP_ALIVE": "fixed", "INSTAINFER_POLICY__KEEP_ALIVE_S": "6"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("INSTAINFER_")}
    sandbox = ["--sandbox", "auto" if os.geteuid() == 0 else "process"]
    command = [sys.executable, "-m", "instainfer.cli", "serve", "--port", "0", "--data-dir", str(directory)]
    process = subprocess.Popen(
        [*command, "--memory", "4GB", *sandbox],
        env={**kept, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = re.search(r"http://\S+", process.stdout.readline())
        assert said is not None, "the server did not start"
        yield said[0]
    finally:
        process.terminate()
        process.wait(60)


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
    page.locator(ready).first.scroll_into_view_if_needed()
    page.screenshot(path=DOCS / f"dashboard-{picture}.png")


def main() -> None:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("there is no Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="instainfer-pictures-") as directory, server(Path(directory)) as url:
        client, stop = Client(url), threading.Event()
        for name in PLAN:
            for event in client.deploy("default", name, pack(EXAMPLES / name), HOME if name == "hello" else None):
                print(name, event.get("message") or event["event"], flush=True)
        calls = threading.Thread(target=play, args=(Client(url), stop))
        calls.start()
        try:
            with sync_playwright() as playwright:
                flags = ["--no-sandbox"] if os.geteuid() == 0 else []
                browser = playwright.chromium.launch(executable_path=browser_path, args=flags)
                page = browser.new_page(viewport=SIZE)
                shoot(page, url, "now", "now", ".meter .ahead")
                time.sleep(EARLY_S)
                shoot(page, url, "timeline", "timeline", "tbody tr")
                time.sleep(LATE_S)
                shoot(page, url, "function/default/magika", "function", "svg.chart")
                told = next(one for one in client.activations(function="ocr") if one["start"] == "preloaded")
                shoot(page, url, f"why/{told['id']}", "why", ".compare")
                browser.close()
        finally:
            stop.set()
            calls.join()


if __name__ == "__main__":
    main()
