"""The report as one page that needs nothing else: no script, no network, and a policy that forbids both.

Markup is made by `tag` only, which escapes whatever is not markup already.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from importlib.resources import files
from urllib.parse import quote

from instainfer.report.parts import Figure, Published, Section, Table

#: Rows that a table shows at once; longer ones are opened.
_OPEN = 10
#: Rows and columns that fit on paper.
_PRINTED = (60, 14)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class Markup(str):
    """Text that is markup; everything else is escaped on its way into a tag."""


def tag(name: str, *inside: str, **attributes: str) -> Markup:
    """`class_` and `for_` lose their underscore, others turn theirs into a hyphen."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' if value else f" {key.rstrip('_')}"
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{said}>{joined(*inside)}</{name}>")


def joined(*inside: str) -> Markup:
    return Markup("".join(one if isinstance(one, Markup) else escape(one) for one in inside))


def page(title: str, sections: list[Section], drawn: dict[str, str], facts: list[tuple[str, str]]) -> str:
    """`drawn` are the figures' SVGs by their ids; `facts` stand under the title."""
    style = Markup((files("instainfer.report") / "page.css").read_text("utf-8"))
    head = joined(
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        tag("style", style),
    )
    contents = tag("ol", *(tag("li", tag("a", section.title, href=f"#{section.slug}")) for section in sections))
    body = joined(
        tag("a", "Skip to the results", href="#results", class_="skip"),
        tag(
            "header",
            tag("h1", title),
            tag("dl", *(tag(kind, said) for fact in facts for kind, said in zip(("dt", "dd"), fact, strict=True))),
        ),
        tag("nav", tag("h2", "Contents"), contents, aria_label="Contents"),
        tag("main", *(_section(section, drawn) for section in sections), id="results"),
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _section(section: Section, drawn: dict[str, str]) -> Markup:
    parts = [tag("p", text) for text in section.text]
    parts += [_figure(figure, f"{section.slug}-{at}", drawn) for at, figure in enumerate(section.figures, 1)]
    parts += [_published(one) for one in section.published]
    heading = tag("h2", section.title, id=f"{section.slug}-title")
    return Markup("\n" + tag("section", heading, *parts, id=section.slug, aria_labelledby=f"{section.slug}-title"))


def _figure(figure: Figure, ident: str, drawn: dict[str, str]) -> Markup:
    parts: list[Markup] = [tag("figcaption", figure.title, id=f"{ident}-title")]
    if ident in drawn:
        parts.append(
            tag("div", Markup(drawn[ident]), class_="chart", role="group", tabindex="0", aria_label="Figure")
        )
    if figure.note:
        parts.append(tag("p", figure.note, class_="note"))
    shown = figure.table
    table = joined(_table(shown, figure.title), _download(shown, ident))
    if figure.chart is None:
        parts.append(table)
    else:
        parts.append(_folded(f"Data: {_counted(len(shown.rows), 'row')}", table, len(shown.rows) <= _OPEN))
    if figure.commands:
        lines = (tag("code", f"$ {line}") for line in figure.commands)
        parts.append(_folded("Command", tag("pre", *_between(lines), tabindex="0"), False))
    return tag("figure", *parts, id=ident, aria_labelledby=f"{ident}-title")


def _download(table: Table, ident: str) -> Markup:
    """The data as a file, which is in the page itself."""
    name = f"{ident}.csv"
    link = tag("a", name, href=f"data:text/csv;charset=utf-8,{quote(table.csv)}", download=name)
    return tag("p", "As a file: ", link, class_="file")


def _published(one: Published) -> Markup:
    parts = [tag("h3", "Published")]
    if one.claims:
        parts.append(tag("ul", *(tag("li", claim) for claim in one.claims)))
    if one.table:
        parts.append(_table(one.table, one.source))
    parts += [tag("p", one.source, ".", class_="source"), tag("p", one.difference, class_="note")]
    return tag("aside", *parts, aria_label=f"Published: {one.source}")


def _table(table: Table, label: str) -> Markup:
    kinds = ["number" if unit.numeric and at else "" for at, (_, unit) in enumerate(table.columns)]

    def row(cells: list[str], numbers: list[str], heading: bool) -> Markup:
        made = []
        for at, (cell, kind) in enumerate(zip(cells, numbers, strict=True)):
            scope = {"scope": "col"} if heading else {"scope": "row"} if at == 0 else {}
            made.append(tag("th" if scope else "td", cell, **scope, **({"class_": kind} if kind else {})))
        return tag("tr", *made)

    head = tag("thead", row(table.headers, kinds, True))
    body = tag("tbody", *(row(cells, kinds, False) for cells in table.cells))
    rows, columns = _PRINTED
    fits = len(table.rows) <= rows and len(table.columns) <= columns
    shown = tag(
        "div",
        tag("table", head, body),
        class_="table" if fits else "table long",
        role="region",
        tabindex="0",
        aria_label=f"Table: {label}",
    )
    if fits:
        return shown
    size = f"{_counted(len(table.rows), 'row')} of {_counted(len(table.columns), 'column')}"
    return joined(shown, tag("p", f"{size}: too many for paper; the page on a screen has them.", class_="paper"))


def _folded(summary: str, inside: Markup, is_open: bool) -> Markup:
    return tag("details", tag("summary", summary), inside, **({"open": ""} if is_open else {}))


def _between(lines: Iterator[Markup]) -> Iterator[Markup]:
    for number, line in enumerate(lines):
        yield joined(Markup("\n"), line) if number else line


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
