"""The demo's picture: every call is in it, as long as it took, and colour, pattern and text say so alike."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from instainfer.picture import PHASES, draw, phases

SVG = "{http://www.w3.org/2000/svg}"


def row(start: str, e2e_ms: float, **phase: float) -> dict[str, Any]:
    return {"function": "<m&m>", "start": start, "e2e_ms": e2e_ms, **{f"{k}_ms": v for k, v in phase.items()}}


ROWS = [
    row("cold", 1000.0, container=100.0, **{"import": 600.0}, load=200.0, warmup=50.0, inference=10.0),
    row("forked", 109.0, container=20.0, load=60.0, inference=9.0),
    row("preloaded", 11.0, inference=9.5),
    row("warm", 10.0, inference=9.0),
]


def test_phases_make_up_the_call() -> None:
    for one in ROWS:
        assert sum(phases(one)) == pytest.approx(one["e2e_ms"])
    assert phases(ROWS[0]) == [100.0, 600.0, 250.0, 10.0, 40.0]
    assert phases(row("warm", 1.0, inference=1.5))[-1] == 0.0  # clocks of two processes may disagree


def test_bars_are_as_long_as_what_they_tell() -> None:
    root = ElementTree.fromstring(draw(ROWS, "title", "note"))
    bars = [bar for bar in root.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    long = {bar.findtext(f"{SVG}title"): float(bar.attrib["width"]) for bar in bars}
    assert long["imports: 600 ms"] == pytest.approx(10 * long["model: 60.0 ms"], rel=0.01)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"<m&m>", "title", "note", "1,000 ms", "10.0 ms", "0 ms"} <= set(texts)
    assert "11.0 ms · 99.9% of the loading removed" in texts and "109 ms · 90.0% of the loading removed" in texts
    assert {name for name, _, _ in PHASES} <= set(texts)
    assert "preloaded: 11.0 ms" in (root.findtext(f"{SVG}desc") or "")


@pytest.mark.parametrize(("cold", "marks"), [(903.0, 5), (6384.0, 4), (70.0, 4), (1.2, 2)])
def test_the_axis_has_a_handful_of_marks(cold: float, marks: int) -> None:
    root = ElementTree.fromstring(draw([row("cold", cold)], "t"))
    assert len([path for path in root.iter(f"{SVG}path") if path.get("class") == "grid"]) == marks
