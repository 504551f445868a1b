"""The report as Markdown (GitHub's tables), with the figures as files beside it."""

from __future__ import annotations

import re

from instainfer.report.parts import Figure, Published, Section, Table

#: Rows of a table; the page has the others.
_MOST = 40
#: What means something to Markdown wherever it stands, or at the start of a line.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$!]|^[-+=](?=[-=\s]|$)|(?<=https):|(?<=http):|(?<=www)\.)")
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")


def text(plain: str) -> str:
    """As it is read, whatever it is: nothing in it is markup."""
    return _NUMBERED.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", plain))


def document(title: str, sections: list[Section], files: dict[str, str], facts: list[tuple[str, str]]) -> str:
    """`files` are the figures' files by the figures' ids."""
    lines = [f"# {text(title)}", ""]
    lines += [f"- {text(name)}: {text(value)}" for name, value in facts]
    for section in sections:
        lines += ["", f"## {text(section.title)}"]
        for paragraph in section.text:
            lines += ["", text(paragraph)]
        for at, figure in enumerate(section.figures, 1):
            lines += _figure(figure, files.get(f"{section.slug}-{at}"))
        for one in section.published:
            lines += _published(one)
    return "\n".join(lines) + "\n"


def _figure(figure: Figure, file: str | None) -> list[str]:
    lines = ["", f"### {text(figure.title)}"]
    if file and figure.chart:
        lines += ["", f"![{text(figure.chart.told())}]({file})"]
    if figure.note:
        lines += ["", text(figure.note)]
    lines += _table(figure.table)
    if figure.commands:
        longest = max((len(run) for line in figure.commands for run in re.findall("`+", line)), default=0)
        fence = "`" * max(3, longest + 1)
        lines += ["", f"{fence}console", *(f"$ {line}" for line in figure.commands), fence]
    return lines


def _published(one: Published) -> list[str]:
    lines = ["", f"**Published** ({text(one.source)})"]
    if one.claims:
        lines += ["", *(f"- {text(claim)}" for claim in one.claims)]
    if one.table:
        lines += _table(one.table)
    return [*lines, "", text(one.difference)]


def _table(table: Table) -> list[str]:
    rules = ["--:" if unit.numeric and at else "---" for at, (_, unit) in enumerate(table.columns)]
    rows = [table.headers, *table.cells[:_MOST]]
    said = [[text(cell) or " " for cell in row] for row in rows]
    lines = ["", *(f"| {' | '.join(row)} |" for row in (said[0], rules, *said[1:]))]
    if left := len(table.rows) - _MOST:
        lines += ["", f"And {left} more rows, in report.html."] if left > 0 else []
    return lines
