"""The report as one page that needs nothing else: no script, no network, and a policy that forbids both.

Markup is made by `tag` only, which escapes whatever is not markup already.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from importlib.resources import files

from instainfer.report.parts import Figure, Published, Section, Table

#: Rows that a table shows at once; longer ones are opened.
_OPEN = 10
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
        parts.append(tag("div", Markup(drawn[ident]), class_="chart"))
    if figure.note:
        parts.append(tag("p", figure.note, class_="note"))
    table = _table(figure.table, figure.title)
    if figure.chart is None:
        parts.append(table)
    else:
        parts.append(
            _folded(f"Data: {_counted(len(figure.table.rows), 'row')}", table, len(figure.table.rows) <= _OPEN)
        )
    if figure.commands:
        lines = (tag("code", f"$ {line}") for line in figure.commands)
        parts.append(_folded("Command", tag("pre", *_between(lines), tabindex="0"), False))
    return tag("figure", *parts, id=ident, aria_labelledby=f"{ident}-title")


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
    return tag(
        "div", tag("table", head, body), class_="table", role="region", tabindex="0", aria_label=f"Table: {label}"
    )


def _folded(summary: str, inside: Markup, is_open: bool) -> Markup:
    return tag("details", tag("summary", summary), inside, **({"open": ""} if is_open else {}))


def _between(lines: Iterator[Markup]) -> Iterator[Markup]:
    for number, line in enumerate(lines):
        yield joined(Markup("\n"), line) if number else line


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
