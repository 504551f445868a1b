"""The demo's rows as a picture: one bar per call on a logarithmic scale, an SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, BAR, GAP, HEAD = 760, 170, 110, 20, 14, 56
COLOURS = {"cold": "#b0413e", "forked": "#d39b3a", "cloned": "#d39b3a", "preloaded": "#2f7f79", "warm": "#8fa3ad"}


def draw(rows: Sequence[dict[str, Any]], title: str) -> str:
    """`rows` as the demo writes them: function, start, e2e_ms. Light and dark pages both read it."""
    functions = list(dict.fromkeys(row["function"] for row in rows))
    low = 10 ** math.floor(math.log10(min(row["e2e_ms"] for row in rows)))
    high = 10 ** math.ceil(math.log10(max(row["e2e_ms"] for row in rows)))
    span = WIDTH - LEFT - RIGHT

    def x(ms: float) -> float:
        return LEFT + span * math.log(ms / low) / math.log(high / low)

    height = HEAD + len(rows) * (BAR + 4) + len(functions) * GAP + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
        ' font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fbfaf7"/>',
        f'<text x="16" y="28" font-size="16" font-weight="bold" fill="#222">{escape(title)}</text>',
    ]
    tick = low
    while tick <= high:
        parts.append(
            f'<line x1="{x(tick):.1f}" y1="{HEAD - 10}" x2="{x(tick):.1f}" y2="{height - 30}" stroke="#ddd"/>'
            f'<text x="{x(tick):.1f}" y="{height - 12}" text-anchor="middle" fill="#666">{tick:g} ms</text>'
        )
        tick *= 10
    y = HEAD
    for function in functions:
        parts.append(f'<text x="16" y="{y + 15}" font-weight="bold" fill="#222">{escape(function)}</text>')
        for row in (row for row in rows if row["function"] == function):
            ms, start = row["e2e_ms"], row["start"]
            parts.append(
                f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end" fill="#444">{escape(start)}</text>'
                f'<rect x="{LEFT}" y="{y}" width="{max(2.0, x(ms) - LEFT):.1f}" height="{BAR}" rx="3"'
                f' fill="{COLOURS.get(start, "#666")}"/>'
                f'<text x="{x(ms) + 6:.1f}" y="{y + 15}" fill="#222">{ms:,.1f} ms</text>'
            )
            y += BAR + 4
        y += GAP
    return "\n".join([*parts, "</svg>", ""])
