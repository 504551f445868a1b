"""The documentation as a site: it is whole, and needs nobody to be read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_site_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    built = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(built)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr  # a link or a page that is in no table of contents is a warning

    pages = {file.relative_to(built).with_suffix("") for file in built.rglob("*.html")}
    wanted = {file.relative_to(ROOT / "docs").with_suffix("") for file in (ROOT / "docs").rglob("*.md")}
    assert wanted <= pages
    for file in built.rglob("*.html"):
        text = file.read_text("utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"([^\"]*)\"", text)
        fetched += re.findall(r"<link[^>]* rel=\"(?:stylesheet|preload|icon)\"[^>]* href=\"([^\"]*)\"", text)
        assert fetched or file.name == "index.html"
        assert not [one for one in fetched if "://" in one or one.startswith("//")], file.name
    for style in built.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)[^;)]*//(?!www\.w3\.org)", style.read_text("utf-8")), style.name
