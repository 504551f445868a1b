"""Charts as SVG, by matplotlib. The same chart gives the same bytes: no dates, no random ids, no user's settings.

Colours leave here as `var(--…)`, which the page defines for light, dark and paper; `standalone` puts the light
ones in their place. What a colour says, a marker, a dash or a hatch says too.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import singledispatchmethod
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from instainfer.report.charts import Axis, Bars, Columns, Dots, Lines, Timeline
from instainfer.report.parts import Chart, Unit

#: By name: what stands for it while matplotlib draws, which is also its light value.
INK, SOFT, GRID, PAPER = "#1d2126", "#5a626c", "#e3e6ea", "#fefefe"
#: Chosen so that every two differ by more than 0.1 in OKLab in every form of colour blindness (Machado et al.'s
#: matrices), and each from the paper by a contrast of 3.
SERIES = ("#2340a8", "#b03a0a", "#16806a", "#64205c", "#1d94d6", "#a88c1c")
COLOURS = {"ink": INK, "soft": SOFT, "grid": GRID, "paper": PAPER} | {
    f"s{number}": colour for number, colour in enumerate(SERIES)
}
_MARKERS = "oDs^vPXdph"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
#: Of limits: dots apart, dots close, dots and a dash.
_BOUNDS: tuple[Any, ...] = ((0, (1, 3)), (0, (1, 1)), (0, (4, 1.5, 1, 1.5, 1, 1.5)))
_WHISKER: dict[str, Any] = {"color": INK, "linewidth": 0.9, "markersize": 5, "markeredgewidth": 0.9, "zorder": 4}
_HATCHES = ("", "//", "..", "\\\\", "xx", "--")

#: From below: what a call came for, and what it waited for.
_PHASES = (
    ("inference", SERIES[2], ""),
    ("loading", SERIES[1], ""),
    ("warming", SERIES[3], "////"),
    ("waiting", SERIES[5], "...."),
)

MOST = 12  # of one kind in a figure: beyond that none can be told from another; the table has them all
_WIDTH = 8.6  # inches of 72 points; a page shows it 1.4 times as large
_LONGEST = 34  # characters of a name in a figure

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read, found and copied
    "svg.hashsalt": "instainfer",
    "text.parse_math": False,  # names may have dollars in them
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.labelcolor": SOFT,
    "axes.titlesize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.width": 0.7,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.8,
    "lines.linewidth": 1.7,
    "lines.markersize": 6,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "none",
}


class Artist:
    """Draws charts. `names` get their colours in that order, in every figure the same."""

    def __init__(self, names: Sequence[str]) -> None:
        self._wanted = {name: place for place, name in enumerate(names)}

    def _places(self, names: Sequence[str]) -> dict[str, int]:
        """Of the names in one figure: their own, or where another has that colour, the next free one."""
        places: dict[str, int] = {}
        for at, name in enumerate(names):
            place = self._wanted.get(name, at)
            taken = {other % len(SERIES) for other in places.values()}
            while place in places.values() or (len(taken) < len(SERIES) and place % len(SERIES) in taken):
                place += 1
            places[name] = place
        return places

    def draw(self, chart: Chart, *, prefix: str, title: str) -> str:
        """An <svg> to stand in a page: `prefix` begins all ids in it, `title` is what it is called."""
        settings: Any = dict(matplotlib.rcParamsDefault) | _SETTINGS  # whatever a matplotlibrc says
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts may have it
            figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
            FigureCanvasSVG(figure)
            self._draw(chart, figure)
            file = StringIO()
            figure.savefig(
                file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
            )
        return _inline(file.getvalue(), prefix, title, chart.told())

    # ---- kinds ----

    @singledispatchmethod
    def _draw(self, chart: Any, figure: Figure) -> None:
        raise TypeError(f"nothing draws a {type(chart).__name__}")

    @_draw.register
    def _(self, chart: Lines, figure: Figure) -> None:
        axes = figure.subplots()
        xs = sorted({x for line in chart.lines for x, _ in line.points})
        places = self._places([line.name for line in chart.lines if not line.bound])
        bounds = -1
        for at, line in enumerate(chart.lines[:MOST]):
            place = places.get(line.name, at)
            look: dict[str, Any] = {"color": SERIES[place % len(SERIES)], "linestyle": _dash(place)}
            look |= {"marker": _MARKERS[place % len(_MARKERS)], "markeredgecolor": PAPER, "markeredgewidth": 0.8}
            if line.bound:
                bounds += 1
                look = {"color": SOFT, "linestyle": _BOUNDS[bounds % len(_BOUNDS)], "linewidth": 1.4}
            if any(line.band):
                ranges = [of or (y, y) for (_, y), of in zip(line.points, line.band, strict=True)]
                lows, highs = zip(*ranges, strict=True)
                shade = {"color": look["color"], "alpha": 0.13, "linewidth": 0.0, "zorder": 1}
                axes.fill_between([x for x, _ in line.points], lows, highs, **shade)
            if chart.smooth:
                look |= {"markevery": (5 + 2 * at, 20)}
            axes.plot(*zip(*line.points, strict=True), label=_short(line.name), zorder=3 - at / 100, **look)
        if any(any(line.band) for line in chart.lines[:MOST]):
            axes.fill_between([], [], [], color=SOFT, alpha=0.25, linewidth=0.0, label=chart.bands)
        _scale(axes.xaxis, chart.x)
        _scale(axes.yaxis, chart.y)
        if not chart.smooth and len(xs) <= 12:
            axes.xaxis.set_major_locator(FixedLocator(xs))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="both" if chart.smooth else "y")
        axes.set_xlabel(chart.x.title)
        axes.set_title(chart.y.title, loc="left", color=SOFT)
        _legend(figure, axes)

    @_draw.register
    def _(self, chart: Columns, figure: Figure) -> None:
        axes = figure.subplots()
        groups = chart.groups[:MOST]
        width = min(0.84 / max(len(groups), 1), 0.24)
        highs = [of[1] for group in groups for of in group.ranges if of is not None]
        highest = max((*highs, *(v for g in groups for v in (*g.values, *g.beside) if v is not None)), default=0.0)
        told = len(groups) * len(chart.places) <= 18
        places = self._places([group.name for group in groups])
        for at, group in enumerate(groups):
            place = places[group.name]
            middles = [number + (at - (len(groups) - 1) / 2) * width for number in range(len(chart.places))]
            heights = [value or 0.0 for value in group.values]
            axes.bar(middles, heights, width * 0.9, label=_short(group.name), **_filled(place))
            for middle, beside in zip(middles, group.beside, strict=False):
                if beside is not None:
                    axes.plot(
                        [middle - width * 0.42, middle + width * 0.42],
                        [beside] * 2,
                        color=INK,
                        linewidth=1.6,
                        zorder=5,
                    )
            for middle, of in zip(middles, group.ranges, strict=False):
                if of is not None:
                    axes.plot([middle, middle], of, **_WHISKER, marker="_")
            for middle, value in zip(middles, group.values, strict=True):
                if told and value is not None:
                    axes.text(
                        middle + (width * 0.22 if group.ranges else 0.0),
                        value + highest * 0.012,
                        chart.y.unit.say(value),
                        ha="center",
                        fontsize=7,
                        color=SOFT,
                    )
        if any(value is not None for group in groups for value in group.beside):
            axes.plot([], [], color=INK, linewidth=1.6, label="published")
        if chart.spread:
            axes.plot([], [], **_WHISKER, marker="|", label=chart.spread)
        axes.set_xticks(range(len(chart.places)), list(chart.places))
        axes.tick_params(axis="x", length=0)
        if not highest:
            axes.set_ylim(0.0, 1.0)  # else it would reach as far below zero as above
        _scale(axes.yaxis, chart.y)
        axes.grid(axis="y")
        axes.set_title(chart.y.title, loc="left", color=SOFT)
        _legend(figure, axes)

    @_draw.register
    def _(self, chart: Bars, figure: Figure) -> None:
        axes = figure.subplots()
        _tall(figure, len(chart.names), 0.34)
        ends = [0.0] * len(chart.names)
        single = len(chart.parts) == 1
        places = self._places(chart.names)
        for at, part in enumerate(chart.parts):
            for row, (name, value) in enumerate(zip(chart.names, part.values, strict=True)):
                place = places[name] if single else at
                look = _filled(place)
                axes.barh(row, value or 0.0, 0.62, left=ends[row], label=part.name if row == 0 else None, **look)
                ends[row] += value or 0.0
                if single and part.ranges and (of := part.ranges[row]):
                    axes.plot(of, [row, row], **_WHISKER, marker="|")
                    ends[row] = max(ends[row], of[1])
        if single and chart.spread:
            axes.plot([], [], **_WHISKER, marker="|", label=chart.spread)
        for row, end in enumerate(ends):
            last = [part.values[row] for part in chart.parts]
            whole = sum(value or 0.0 for value in last)
            said = chart.x.unit.say(whole if any(v is not None for v in last) else None)
            said = f"{chart.labels[row]:,}" if chart.labels else said
            axes.annotate(said, (end, row), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
        _rows(axes, chart.names)
        _scale(axes.xaxis, chart.x)
        axes.margins(x=0.09)
        axes.set_xlim(left=0.0)
        axes.grid(axis="x")
        axes.set_xlabel(chart.x.title)
        if not single or chart.spread:
            _legend(figure, axes, least=1 if single else 2)

    @_draw.register
    def _(self, chart: Dots, figure: Figure) -> None:
        axes = figure.subplots()
        _tall(figure, len(chart.names), 0.3)
        for row in range(len(chart.names)):
            found = [value for kind in chart.kinds if (value := kind.values[row]) is not None]
            if len(found) > 1:
                axes.plot([min(found), max(found)], [row, row], color=GRID, linewidth=3, zorder=1)
        places = self._places([kind.name for kind in chart.kinds])
        for kind in chart.kinds[:MOST]:
            place = places[kind.name]
            points = [(value, row) for row, value in enumerate(kind.values) if value is not None]
            for row, of in enumerate(kind.ranges):
                if of is not None:
                    colour = SERIES[place % len(SERIES)]
                    axes.plot(of, [row, row], color=colour, linewidth=1.6, marker="|", markersize=7, zorder=2)
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                linestyle="none",
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=7,
                color=SERIES[place % len(SERIES)],
                markeredgecolor=PAPER,
                label=_short(kind.name),
                zorder=3,
            )
        if chart.spread:
            axes.plot([], [], color=SOFT, linewidth=1.6, marker="|", markersize=7, label=chart.spread)
        _rows(axes, chart.names)
        _scale(axes.xaxis, chart.x)
        axes.grid(axis="x")
        axes.set_xlabel(chart.x.title)
        _legend(figure, axes)

    @_draw.register
    def _(self, chart: Timeline, figure: Figure) -> None:
        _tall(figure, len(chart.panels), 1.15)
        panels = figure.subplots(len(chart.panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (name, calls) in zip(panels, chart.panels, strict=True):
            edges = list(range(len(calls) + 1))
            below = [0.0] * len(calls)
            for phase, colour, hatch in _PHASES:
                above = [low + getattr(call, f"{phase}_ms") for low, call in zip(below, calls, strict=True)]
                axes.fill_between(
                    edges,
                    [*below, *below[-1:]],
                    [*above, *above[-1:]],
                    step="post",
                    label=phase,
                    hatch=hatch,
                    facecolor=colour,
                    edgecolor=PAPER,
                    linewidth=0.0,
                )
                below = above
            axes.set_title(_short(name), loc="left", color=INK)
            axes.margins(x=0.0)
            axes.set_ylim(bottom=0.0)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g} s"))
            axes.grid(axis="y")
        panels[-1].set_xlabel("call, in the order of arrival")
        _legend(figure, panels[0])


# ---- looks ---------------------------------------------------------------------------------------------------


def _dash(place: int) -> Any:
    return _DASHES[(place // len(SERIES) + place) % len(_DASHES)]


def _filled(place: int) -> dict[str, Any]:
    hatch = _HATCHES[(place + place // len(SERIES)) % len(_HATCHES)]
    return {"facecolor": SERIES[place % len(SERIES)], "edgecolor": PAPER, "linewidth": 0.0, "hatch": hatch}


def _short(name: str) -> str:
    """Fit for a legend, which leaves out what begins with an underscore."""
    name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    return f"\u200b{name}" if name.startswith("_") else name


def _tall(figure: Figure, rows: int, each: float) -> None:
    figure.set_figheight(max(1.6, 1.0 + rows * each))


def _rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.spines["left"].set_visible(False)


def _legend(figure: Figure, axes: Any, least: int = 2) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) < least:
        return
    last = [at for at, handle in enumerate(handles) if labels[at] == "published" or _is_range(handle)]
    ours = [at for at in range(len(labels)) if at not in last] + last
    handles, labels = [handles[at] for at in ours], [labels[at] for at in ours]
    widest = max(map(len, labels))
    columns = max(1, min(len(labels), int(112 / (widest + 9))))
    lines = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * (lines - 1))  # or what is drawn pays for it
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=8.5)


def _is_range(handle: Any) -> bool:
    """Whether it tells what lines across bars are: those are drawn before some of the bars."""
    return isinstance(handle, Line2D) and handle.get_marker() == "|"


def _scale(axis: Any, of: Axis) -> None:
    if of.log:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(of.unit, value)))


def _tick(unit: Unit, value: float) -> str:
    if unit.form.endswith("%"):
        return f"{value * 100:.10g}%"
    return f"{value:,.10g}"


# ---- SVG -----------------------------------------------------------------------------------------------------

_TAG = re.compile(r"<[^>]*>")  # what matplotlib wrote: text between tags may be a user's, and is left as it is
_IDS = re.compile(r'(\bid="|url\(#|href="#)')
_VARIABLE = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
_COLOUR = {variable: colour for colour, variable in _VARIABLE.items()}
_DIGITS = re.compile(r"(\d\.\d\d)\d+")  # a hundredth of a point is enough
_FONT = re.compile(r"font-family: [^;\"]*")
_STYLE = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)


def _inline(svg: str, prefix: str, title: str, told: str) -> str:
    """Of matplotlib's file what stands in a page, with ids of its own, the page's colours and font, and a name and
    a description for who cannot see it."""
    head, _, rest = svg[svg.index("<svg") :].partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    rest = _STYLE.sub("", rest, count=1)

    def ours(found: re.Match[str]) -> str:
        tag = _replaced(found[0], _VARIABLE)
        tag = _DIGITS.sub(r"\1", tag)
        return _FONT.sub("font-family: inherit", _IDS.sub(rf"\g<1>{prefix}", tag))

    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    named = f'role="img" aria-labelledby="{prefix}name" aria-describedby="{prefix}told"'
    open_tag = f'<svg {spaces} {box[0]} stroke-linejoin="round" {named}>'
    words = f'<title id="{prefix}name">{escape(title)}</title><desc id="{prefix}told">{escape(told)}</desc>'
    return f"{open_tag}{words}{_TAG.sub(ours, rest)}".strip()


def standalone(svg: str) -> str:
    """The same as a file: light colours on a paper of its own, readable on any page and by any program."""
    svg = _TAG.sub(lambda found: _replaced(found[0], _COLOUR), svg)
    head, _, rest = svg.partition(">")
    words, end, rest = rest.partition("</desc>")
    paper = f'<rect width="100%" height="100%" rx="6" fill="{PAPER}"/>'
    return f'{head} font-family="system-ui, sans-serif">{words}{end}{paper}{rest}\n'


def _replaced(text: str, by: dict[str, str]) -> str:
    for old, new in by.items():
        text = text.replace(old, new)
    return text
