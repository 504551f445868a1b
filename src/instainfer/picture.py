"""The demo's rows as a picture: a bar for each call on one time axis, split into what the time went into. An SVG
that needs nothing else, on a paper of its own that is light or dark as the reader's system is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

WIDTH, LEFT, RIGHT, BAR, STEP, GAP, HEAD, FOOT = 860, 176, 120, 17, 22, 12, 78, 44

#: What a call's time goes into, in order: the keys of a row, and how it looks (fill, pattern).
PHASES = (
    ("container", ("container_ms",), "a"),
    ("imports", ("import_ms",), "b"),
    ("model", ("load_ms", "warmup_ms"), "c"),
    ("the call itself", ("inference_ms",), "d"),
    ("platform and network", (), "e"),
)
#: Okabe and Ito's colours, which every form of colour blindness tells apart; the patterns say the same.
_STYLE = """
.paper{fill:#fdfdfc}.ink{fill:#1d2126}.soft{fill:#59616b}.grid{stroke:#dfe2e6}
.a{fill:#0072b2}.b{fill:#d55e00}.c{fill:#e69f00}.d{fill:#009e73}.e{fill:#8a9099}.mark{stroke:#fdfdfc}
@media (prefers-color-scheme:dark){
.paper{fill:#15191d}.ink{fill:#e8eaed}.soft{fill:#a4acb6}.grid{stroke:#30363d}
.a{fill:#56a8e8}.b{fill:#f08a4b}.c{fill:#f0c05a}.d{fill:#3fcf9f}.e{fill:#8a9099}.mark{stroke:#15191d}}
"""
_PATTERNS = {"a": "M0 6L6 0", "b": "", "c": "M3 0V6", "d": "", "e": "M0 3H6"}


def draw(rows: Sequence[dict[str, Any]], title: str, note: str = "") -> str:
    """`rows` as the demo writes them: function, start, e2e_ms and phases. `note` stands below."""
    functions = list(dict.fromkeys(row["function"] for row in rows))
    most = max(row["e2e_ms"] for row in rows)
    step = _step(most)
    span = WIDTH - LEFT - RIGHT
    scale = span / most
    height = HEAD + len(rows) * STEP + len(functions) * GAP + FOOT + (20 if note else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        ' font-family="system-ui, sans-serif" font-size="13" aria-labelledby="name" aria-describedby="told">',
        f'<title id="name">{escape(title)}</title><desc id="told">{escape(told(rows))}</desc>',
        f"<style>{_STYLE}</style><defs>{''.join(_pattern(look) for look in _PATTERNS)}</defs>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
        f'<text class="ink" x="16" y="28" font-size="16" font-weight="600">{escape(title)}</text>',
        *_legend(),
    ]
    bottom = height - FOOT - (20 if note else 0)
    at = 0.0
    while at <= most:
        x = LEFT + at * scale
        parts.append(
            f'<path class="grid" d="M{x:.1f} {HEAD - 8}V{bottom}"/>'
            f'<text class="soft" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{at:,.0f} ms</text>'
        )
        at += step
    y = HEAD
    for function in functions:
        of = {row["start"]: row for row in rows if row["function"] == function}
        parts.append(f'<text class="ink" x="16" y="{y + 13}" font-weight="600">{escape(function)}</text>')
        for row in (row for row in rows if row["function"] == function):
            parts.append(_bar(row, y, scale, _removed(row, of)))
            y += STEP
        y += GAP
    if note:
        parts.append(f'<text class="soft" x="16" y="{height - 14}" font-size="12">{escape(note)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def told(rows: Sequence[dict[str, Any]]) -> str:
    """The picture in words."""
    said = [f"{row['function']} {row['start']}: {_ms(row['e2e_ms'])}" for row in rows]
    return f"Time of one call, end to end. {'; '.join(said)}."


def phases(row: dict[str, Any]) -> list[float]:
    """Milliseconds of each of PHASES; what no phase accounts for is the last one's."""
    found = [sum(row.get(key) or 0.0 for key in keys) for _, keys, _ in PHASES[:-1]]
    return [*found, max(0.0, row["e2e_ms"] - sum(found))]


def _bar(row: dict[str, Any], y: float, scale: float, removed: float | None) -> str:
    parts = [f'<text class="soft" x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(row["start"])}</text>']
    x = float(LEFT)
    for (name, _, look), ms in zip(PHASES, phases(row), strict=True):
        if (width := ms * scale) <= 0.0:
            continue
        shape = f'x="{x:.1f}" y="{y}" width="{width:.2f}" height="{BAR}"'
        parts.append(f'<rect class="{look}" {shape}><title>{name}: {_ms(ms)}</title></rect>')
        if _PATTERNS[look] and width > 3:
            parts.append(f'<rect fill="url(#{look})" {shape}/>')
        x += width
    said = _ms(row["e2e_ms"])
    if removed is not None:
        said += f" · {min(removed, 1.0):.1%} of the loading removed"
    parts.append(f'<text class="ink" x="{x + 7:.1f}" y="{y + 13}">{said}</text>')
    return "".join(parts)


def _legend() -> list[str]:
    parts, x = [], 16.0
    for name, _, look in PHASES:
        shape = f'x="{x:.0f}" y="43" width="14" height="12"'
        parts.append(f'<rect class="{look}" {shape}/>')
        if _PATTERNS[look]:
            parts.append(f'<rect fill="url(#{look})" {shape}/>')
        parts.append(f'<text class="soft" x="{x + 20:.0f}" y="54">{name}</text>')
        x += 44 + 7.2 * len(name)
    return parts


def _pattern(look: str) -> str:
    path = _PATTERNS[look]
    tile = f'id={quoteattr(look)} width="6" height="6" patternUnits="userSpaceOnUse"'
    return f'<pattern {tile}><path class="mark" d="{path}" stroke-width="1.2"/></pattern>' if path else ""


def _removed(row: dict[str, Any], of: dict[str, dict[str, Any]]) -> float | None:
    """Of the loading latency, by a call that is neither cold nor warm."""
    if row["start"] in ("cold", "warm") or not {"cold", "warm"} <= of.keys():
        return None
    cold, warm = of["cold"]["e2e_ms"], of["warm"]["e2e_ms"]
    return 1.0 - (row["e2e_ms"] - warm) / (cold - warm) if cold > warm else None


def _step(most: float) -> float:
    """Between two marks of the axis: 1, 2 or 5 of a power of ten, five marks or so."""
    size = 1.0
    while size * 10 <= most / 2:
        size *= 10
    return next((size * one for one in (1, 2, 5) if most / (size * one) <= 6), size * 10)


def _ms(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms"
