"""What the machine cannot do is skipped with a counted reason; where CI is set, a skip is a failure."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped (CI is set): {reason}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.live.browser import chromium  # skips where there is none

    with chromium() as running:
        yield running
