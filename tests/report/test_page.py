"""The report in a real browser: on a screen, on a phone, in the dark and on paper."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from instainfer.report import write
from tests.live.browser import PHONE, inaccessible

from . import sample

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One of each kind of part: lines, bars, dots, short tables and long ones."""
    folder = tmp_path_factory.mktemp("page")
    rows = [sample.row(policy=one, budget_fraction=at) for one in ("lru", "tyche") for at in (0.1, 0.4)]
    sample.write(folder / "runs", rows)
    for number, row in enumerate(rows):
        sample.detail(folder / "runs", number, row, {})
    return write([folder / "runs", sample.benchmarks(folder / "bench")], folder / "report").html.as_uri()


def test_it_is_accessible_and_fits(browser: Any, url: str) -> None:
    # What is drawn is one image with a name and a description.
    for scheme, size in (("dark", None), ("light", PHONE)):
        context = browser.new_context(color_scheme=scheme, bypass_csp=True, **({"viewport": size} if size else {}))
        page = context.new_page()
        page.goto(url)
        assert inaccessible(page, "{ exclude: [['svg > g']] }") == [], (scheme, size)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (scheme, size)
        context.close()


def test_data_are_files_that_are_in_the_page(browser: Any, url: str, tmp_path: Path) -> None:
    page = browser.new_page(accept_downloads=True)
    page.goto(url)
    link = page.locator("a[download]").first
    with page.expect_download() as started:
        link.click()
    started.value.save_as(tmp_path / "data.csv")
    assert started.value.suggested_filename == "at-a-glance-1.csv"
    header, *rows = csv.reader((tmp_path / "data.csv").read_text("utf-8").splitlines())
    assert header[:2] == ["trace", "world"] and rows
    page.close()


def test_on_paper_all_is_open_and_nothing_is_cut(browser: Any, url: str) -> None:
    page = browser.new_page(color_scheme="dark", viewport={"width": 680, "height": 1000})  # A4 less its margins
    page.goto(url)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgba(0, 0, 0, 0)"
    ink = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')")
    assert ink.strip() == "#1d2126"  # as in the light
    wide = """[...document.querySelectorAll("main svg, main table, main pre, main p")]
      .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
      .map((one) => one.outerHTML.slice(0, 99))"""
    assert page.evaluate(wide) == []
    closed = """[...document.querySelectorAll("details:not([open]) pre")]
      .filter((one) => one.getBoundingClientRect().height === 0).length"""
    assert page.evaluate("document.querySelectorAll('details:not([open]) pre').length") > 5
    assert page.evaluate(closed) == 0
    page.close()
