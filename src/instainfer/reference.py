"""The reference in `docs/`: tables whose rows come from the code, inside pages whose prose does not.

A page marks where a table goes:

    <!-- generated: settings server -->
    <!-- end -->

and `fill` puts it there. Names, defaults, types, variables and statuses are the code's, in the code's order. The
last columns, the sentences, are the page's: a row keeps those that it has. A row that is new brings the code's own
sentence (a route's docstring, a metric's help), or an empty one, which a test refuses. Options of the command line
have their help for a sentence, so that `--help` and the page cannot disagree.

`make docs` runs `python -m instainfer.reference docs`; a test fails where it would change a page.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import typer.main

from instainfer import config
from instainfer.cli import VERBS, app
from instainfer.errors import BY_CODE
from instainfer.observe import Metrics
from instainfer.units import parse_bytes

_MARK = re.compile(r"(<!-- generated: (\S+)(?: (\S+))? -->\n)(.*?)(<!-- end -->)", re.DOTALL)
#: Cells of a row; a bar inside of one is escaped.
_BAR = re.compile(r"(?<!\\)\|")
_GLOBAL = {"json", "url", "data_dir", "api_key"}
_SOURCE = Path(__file__).parent

Row = list[str]  # the first cell is what the row is of
Told = Mapping[str, Row]  # the page's rows, by their first cell


def fill(text: str) -> str:
    """The page with its tables as the code has them now. Raises KeyError for a mark that nobody knows."""

    def table(match: re.Match[str]) -> str:
        begin, kind, argument, old, end = match.groups()
        headers, rows = _TABLES[kind](argument or "", _rows(old))
        lines = [_line(headers), _line(["---"] * len(headers)), *map(_line, rows)]
        return begin + "\n" + "".join(line + "\n" for line in lines) + "\n" + end

    return _MARK.sub(table, text)


def _rows(table: str) -> dict[str, Row]:
    found = {}
    for line in table.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in _BAR.split(line.strip().removeprefix("|").removesuffix("|"))]
            found[cells[0]] = cells
    return found


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells).replace("\n", " ") + " |"


def _said(told: Told, name: str, column: int, otherwise: str = "") -> str:
    """What the page has in that column of that row."""
    row = told.get(name, [])
    return row[column] if len(row) > column and row[column] else otherwise


# ---- command line --------------------------------------------------------------------------------------------


def _verbs(_: str, told: Told) -> tuple[Row, list[Row]]:
    group: Any = typer.main.get_command(app)
    rows = []
    for verb in VERBS:
        command = group.commands[verb]
        first = str(command.help).partition("\n\n")[0].replace("\n", " ")
        rows.append(
            [_code(verb), _cell(first), _code(str(command.epilog).removeprefix("Example: ").split("  (")[0])]
        )
    return ["verb", "does", "example"], rows


def _options(verb: str, told: Told) -> tuple[Row, list[Row]]:
    group: Any = typer.main.get_command(app)
    rows = []
    for one in group.commands[verb].params:
        if one.name in _GLOBAL:
            continue
        # An argument's metavar is in brackets where it may be left out; an option's stands behind its last name.
        kind = one.type_descriptor.annotation
        choice = (
            "|".join(member.value for member in kind) if isinstance(kind, type) and issubclass(kind, Enum) else ""
        )
        metavar = (one.metavar or choice).replace("|", "\\|")
        if one.param_type_name == "argument":
            name = _code(metavar or str(one.name).upper())
        else:
            *short, last = sorted(one.opts, key=len)
            name = ", ".join([*map(_code, short), _code(f"{last} {metavar}".strip())])
        rows.append([name, _default(one.default), _cell(str(one.help or ""))])
    return ["", "default", ""], rows


def _default(value: Any) -> str:
    """Of an option: what is said in its help, in brackets, depends on more than the option."""
    if value is None or value == "" or isinstance(value, bool):
        return ""
    return _code(
        str(value.value if isinstance(value, Enum) else f"{value:g}" if isinstance(value, float) else value)
    )


def _code(text: str) -> str:
    return f"`{text}`"


def _cell(text: str) -> str:
    """Plain text in a table: options that it mentions are code, bars do not end the cell."""
    text = re.sub(r"(?<![\w`-])(--[a-z][a-z-]+)(?![\w`])", r"`\1`", text)
    return text.replace("|", "\\|")


# ---- settings and function.toml ------------------------------------------------------------------------------

#: Their defaults depend on the machine or the user, and are told in words.
_DEPENDS = {"data_dir", "memory", "load_slots", "zygote_memory", "root"}


def _settings(section: str, told: Told) -> tuple[Row, list[Row]]:
    hints = get_type_hints(config.SECTIONS[section], include_extras=True)
    rows = []
    for field in msgspec.structs.fields(config.SECTIONS[section]):
        name = _code(field.name)
        default = _code(_toml(field.default, hints[field.name]))
        if field.name in _DEPENDS:
            default = _said(told, name, 1, default)
        variable = _code(f"INSTAINFER_{section}__{field.name}".upper())
        rows.append([name, default, variable, _said(told, name, 3)])
    return ["key", "default", "variable", ""], rows


def _toml(value: Any, hint: Any) -> str:
    """A default as one would write it in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{one}"' for one in value) + "]"
    meta = next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, msgspec.Meta)), None)
    if meta is not None and (meta.extra or {}).get("reader") is parse_bytes and value and value % 1_000_000 == 0:
        return f"{value // 1_000_000}MB"
    return f"{value:g}" if isinstance(value, float) and value % 1 == 0 and value >= 10 else str(value)


# ---- HTTP, metrics, errors -----------------------------------------------------------------------------------


class _Anything:
    """The application is only asked which routes it has."""

    def __getattr__(self, name: str) -> _Anything:
        return self


def described() -> dict[str, Any]:
    """The management API's openapi.json, without a server."""
    from instainfer.gateway import manage

    needed = [
        one for one in inspect.signature(manage.application).parameters.values() if one.kind != one.KEYWORD_ONLY
    ]
    anything: Any = _Anything()
    return manage.application(*[anything] * len(needed), max_package=1).openapi()


def _routes(under: str, told: Told) -> tuple[Row, list[Row]]:
    """`under` is what their paths begin with, `!` before it what they do not."""
    outside, prefix = under.startswith("!"), under.removeprefix("!")
    rows = []
    for path, methods in described()["paths"].items():
        if path.startswith(prefix) == outside:
            continue
        for method, operation in methods.items():
            name = _code(f"{method.upper()} {path}")
            query = [one for one in operation.get("parameters", ()) if one["in"] == "query"]
            asked = " ".join(_code(f"{one['name']}={_asked(one['schema'])}") for one in query)
            sentence = _cell(operation.get("description", "").replace("\n", " "))
            rows.append([name, asked, _said(told, name, 2, sentence)])
    return ["", "query", ""], rows


def _asked(schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    return "" if default is None else f"{default:g}" if isinstance(default, float) else str(default)


def _metrics(_: str, told: Told) -> tuple[Row, list[Row]]:
    rows = []
    for name, kind, labels, text in metrics():
        name = _code(name)
        rows.append([name, kind, ", ".join(map(_code, labels)), _said(told, name, 3, _cell(text))])
    return ["name", "type", "labels", ""], rows


#: Gauges are read off the platform: where they are made, by (name, help, labels, rows).
_GAUGE = re.compile(r'^            \("([a-z_]+)", "([A-Z][^"]*)", \(([^)]*)\)', re.MULTILINE)


def metrics() -> Iterator[tuple[str, str, list[str], str]]:
    """(name, type, labels, help) of everything at /metrics, as it is scraped."""
    counted = Metrics()
    counted.invocation("namespace", "function", "start", "status")
    counted.phase("e2e", 0.0)
    for metric in counted.collect():
        name = metric.name + "_total" * (metric.type == "counter")
        labels = dict.fromkeys(label for sample in metric.samples for label in sample.labels if label != "le")
        yield name, metric.type, list(labels), metric.documentation
    for file in sorted(_SOURCE.rglob("*.py")):
        for name, text, labels in _GAUGE.findall(file.read_text("utf-8")):
            yield f"instainfer_{name}", "gauge", re.findall(r'"(\w+)"', labels), text


def _errors(_: str, told: Told) -> tuple[Row, list[Row]]:
    rows = []
    for code, kind in sorted(
        BY_CODE.items(), key=lambda item: item[0] == "internal"
    ):  # which is nobody's doing last
        name = _code(code)
        means = _said(told, name, 2, _cell((kind.__doc__ or "").partition("\n\n")[0]))
        rows.append([name, str(kind.status), means, _said(told, name, 3)])
    return ["code", "status", "means", "do"], rows


_TABLES: Mapping[str, Callable[[str, Told], tuple[Row, list[Row]]]] = {
    "verbs": _verbs,
    "options": _options,
    "settings": _settings,
    "routes": _routes,
    "metrics": _metrics,
    "errors": _errors,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m instainfer.reference", description="Fill in tables of pages.")
    parser.add_argument("folder", type=Path, help="its pages (*.md) are written where their tables change")
    for file in sorted(parser.parse_args().folder.rglob("*.md")):
        text = file.read_text("utf-8")
        if (filled := fill(text)) != text:
            file.write_text(filled, "utf-8")
            print(file)


if __name__ == "__main__":
    main()
