"""The rows of `bench load` as a picture: bars per model on a logarithmic scale, an SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from instainfer.units import say_ms

WIDTH, LEFT, RIGHT, BAR, GAP, HEAD, FOOT = 820, 120, 90, 11, 10, 74, 30
TITLE = "One call of a real model, end to end (log scale)"
#: (mode, path, key, label, colour), from slow to fast. Okabe and Ito's colours: told apart whatever one's eyes.
BARS = (
    ("plain", "miss", "e2e_ms", "plain cold start", "#d55e00"),
    ("mapped", "miss", "e2e_ms", "cold, loaded by hand", "#e69f00"),
    ("ours", "miss", "e2e_ms", "miss", "#0072b2"),
    ("ours", "miss_zygote", "e2e_ms", "miss with a zygote", "#56b4e9"),
    ("ours", "hit", "e2e_ms", "hit", "#009e73"),
    ("plain", "miss", "e2e_warm_ms", "warm", "#999999"),
)


def draw(rows: Sequence[dict[str, Any]]) -> str:
    """`rows` as the benchmark writes them; a bar without a figure is left out. Fit for light and dark pages."""
    found = {(row["model"], row["mode"], row["path"]): row for row in rows}
    drawn: dict[str, list[tuple[float, str, str]]] = {row["model"]: [] for row in rows}
    for model, bars in drawn.items():
        for mode, path, key, label, colour in BARS:
            ms = found.get((model, mode, path), {}).get(key)
            if ms is not None:
                bars.append((ms, label, colour))
    times = [ms for bars in drawn.values() for ms, _, _ in bars]
    low = 10 ** math.floor(math.log10(min(times)))
    high = max(10 ** math.ceil(math.log10(max(times))), low * 10)
    height = HEAD + sum(len(bars) * (BAR + 2) + GAP for bars in drawn.values()) + FOOT

    def x(ms: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(ms / low) / math.log(high / low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
        ' font-size="12">',
        f"<title>{escape(TITLE)}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fbfaf7"/>',
        f'<text x="16" y="26" font-size="16" font-weight="bold" fill="#222">{escape(TITLE)}</text>',
        *_legend({(label, colour) for bars in drawn.values() for _, label, colour in bars}),
    ]
    tick = low
    while tick <= high:
        parts.append(
            f'<line x1="{x(tick):.1f}" y1="{HEAD - 8}" x2="{x(tick):.1f}" y2="{height - FOOT}" stroke="#ddd"/>'
            f'<text x="{x(tick):.1f}" y="{height - 12}" text-anchor="middle" fill="#666">{tick:g} ms</text>'
        )
        tick *= 10
    y = HEAD
    for model, bars in drawn.items():
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 11}" text-anchor="end" font-weight="bold" fill="#222">'
            f"{escape(model)}</text>"
        )
        for ms, label, colour in bars:
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{max(2.0, x(ms) - LEFT):.1f}" height="{BAR}" rx="2"'
                f' fill="{colour}"><title>{escape(f"{model}, {label}: {say_ms(ms)}")}</title></rect>'
                f'<text x="{x(ms) + 5:.1f}" y="{y + 10}" font-size="10" fill="#444">{say_ms(ms)}</text>'
            )
            y += BAR + 2
        y += GAP
    return "\n".join([*parts, "</svg>", ""])


def _legend(used: set[tuple[str, str]]) -> list[str]:
    parts, at = [], 16.0
    for *_, label, colour in BARS:
        if (label, colour) in used:
            parts.append(
                f'<rect x="{at:.0f}" y="40" width="12" height="12" rx="2" fill="{colour}"/>'
                f'<text x="{at + 17:.0f}" y="50" fill="#444">{escape(label)}</text>'
            )
            at += 17 + 6.6 * len(label) + 18  # text is not measured here: a generous guess
    return parts
