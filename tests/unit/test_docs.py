"""The documents against the code: what the code has, they name; what they name, there is."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.main

from instainfer import config, reference, settings
from instainfer.cli import app
from instainfer.config import Section
from instainfer.core import lifecycle
from instainfer.errors import BY_CODE
from instainfer.observe import Metrics
from instainfer.policies import registry
from instainfer.sandbox.base import Enforces
from instainfer.units import parse_bytes, parse_seconds

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = DOCS / "lifecycles.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
INVOCATION = re.compile(r"^\$ (?:[A-Z_]+=\S+ )*instainfer (.*)$", re.MULTILINE)


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def row(text: str, name: str) -> list[str]:
    """The cells of the row of a table that begins with `name` in code."""
    for line in text.splitlines():
        if line.startswith(f"| `{name}` |"):
            return [cell.strip() for cell in line.strip("|").split(" | ")]
    raise AssertionError(f"there is no row of {name}")


@functools.cache
def verbs() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = group.commands
    return found


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts if option.startswith("-")}


def sections() -> Iterator[tuple[str, str, Any]]:
    for section, kind in config.SECTIONS.items():
        for field in msgspec.structs.fields(kind):
            yield section, field.name, field.default


# ---- command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_verb_and_option_is_told(verb: str) -> None:
    text = page("reference/cli.md")
    assert re.search(rf"`{verb}[ `]", text), verb
    missing = [option for option in options(verbs()[verb]) if not re.search(rf"`{option}[ `]", text)]
    assert not missing


def test_no_option_is_told_that_there_is_not() -> None:
    there = {option for command in verbs().values() for option in options(command)}
    there |= {"--help", "-h", "--version", "--install-completion", "--show-completion"}
    told = set(re.findall(r"`(--?[a-z][a-z-]*)[ `]", page("reference/cli.md")))
    assert told <= there, told - there


def test_examples_of_commands_name_verbs_and_options_that_there_are() -> None:
    """Every `$ instainfer …` line of every page."""
    seen = 0
    for file in PAGES:
        for line in INVOCATION.findall(file.read_text("utf-8")):
            words = line.partition("#")[0].partition("|")[0].split()
            verb = next(word for word in words if word in verbs())
            unknown = [w for w in words if w.startswith("--") and w not in options(verbs()[verb])]
            assert not unknown, f"{file.name}: {line}"
            seen += 1
    assert seen > 15


# ---- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "default"), [pytest.param(*one, id=".".join(one[:2])) for one in sections()]
)
def test_every_setting_is_told_with_its_default_and_variable(section: str, key: str, default: object) -> None:
    part = page("reference/settings.md").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = row(part, key)
    assert cells[2] == f"`INSTAINFER_{section.upper()}__{key.upper()}`"
    shown = cells[1].strip("`")
    if key in {"data_dir", "memory", "load_slots", "zygote_memory", "root"}:
        return  # their defaults depend on the machine and the user, and are told in words
    given = shown.strip('"') if isinstance(default, str) else shown
    assert config.load(environ={cells[2].strip("`"): given}) == config.load(environ={})


def test_no_setting_is_told_that_there_is_not() -> None:
    told = set(re.findall(r"INSTAINFER_([A-Z]+__[A-Z_]+)", "\n".join(p.read_text("utf-8") for p in PAGES)))
    there = {f"{section}__{key}".upper() for section, key, _ in sections()} | {"SECTION__KEY"}
    assert told <= there, told - there


def test_every_key_of_function_toml_is_told() -> None:
    text = page("reference/function-toml.md")
    defaults = settings.Settings()
    for field in msgspec.structs.fields(settings.Settings):
        shown = row(text, field.name)[1].strip('`"')
        value = getattr(defaults, field.name)
        if field.name == "memory":
            assert parse_bytes(shown) == value
        elif field.name == "timeout":
            assert parse_seconds(shown) == value
        elif field.name in {"device", "isolation"}:
            assert shown == value
    told = set(re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE))
    assert told == {field.name for field in msgspec.structs.fields(settings.Settings)} | {"batch"}


@pytest.mark.parametrize("names", [registry.MODES, registry.PREDICTORS, registry.KEEP_ALIVES])
def test_every_policy_is_told(names: tuple[str, ...]) -> None:
    for name in names:
        for file in ("reference/settings.md", "how-to/choose-policies.md"):
            assert f"`{name}`" in page(file), (name, file)


def test_every_declaration_of_a_sandbox_is_told() -> None:
    for name in Enforces.__dataclass_fields__:
        assert re.search(rf"^\| {name}:", page("how-to/run-isolated.md"), re.MULTILINE), name


# ---- metrics, errors, routes ---------------------------------------------------------------------------------


def test_metrics_are_told_and_no_others() -> None:
    source = (ROOT / "src/instainfer").rglob("*.py")
    metrics = Metrics()
    named = set(re.findall(r"^# TYPE (\S+) ", metrics.render().decode(), re.MULTILINE))
    assert named
    for file in source:  # gauges are read off the platform: where they are made, by (name, help, labels, rows)
        gauges = re.findall(r'^            \("([a-z_]+)", "[A-Z][^"]*", \(', file.read_text("utf-8"), re.MULTILINE)
        named |= {f"instainfer_{name}" for name in gauges}
    assert "instainfer_queue_depth" in named
    assert set(re.findall(r"^\| `(\w+)` \|", page("reference/metrics.md"), re.MULTILINE)) == named


def test_every_error_is_told_with_its_status() -> None:
    text = page("how-to/troubleshoot.md")
    for code, kind in BY_CODE.items():
        assert row(text, code)[1] == str(kind.status), code
    told = set(re.findall(r"^\| `(\w+)` \| \d", text, re.MULTILINE))
    assert told == set(BY_CODE)


def test_every_route_is_told() -> None:
    described = reference.described()
    text = page("reference/http.md")
    routes = {f"{m.upper()} {path}" for path, methods in described["paths"].items() for m in methods}
    assert len(routes) > 15
    assert not [route for route in routes if f"`{route}`" not in text]
    ours = "instainfer|livez|readyz|healthz|metrics"
    told = set(re.findall(rf"`((?:GET|PUT|POST|PATCH|DELETE) /(?:{ours})[^`]*)`", text))
    assert told == routes


# ---- pages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [pytest.param(p, id=p.relative_to(ROOT).as_posix()) for p in PAGES])
def test_tables_are_up_to_date(file: Path) -> None:
    text = file.read_text("utf-8")
    assert text == reference.fill(text), "run `make docs`"


def test_tables_have_a_sentence_for_every_row() -> None:
    seen = 0
    for file in PAGES:
        for table in re.findall(r"<!-- generated: .*?<!-- end -->", file.read_text("utf-8"), re.DOTALL):
            rows = [line for line in table.splitlines() if line.startswith("| `")]
            assert rows, f"{file.name}: {table}"
            assert not [line for line in rows if line.endswith("|  |")], file.name
            seen += 1
    assert seen > 20  # each is also one that `fill` finds


def test_a_table_keeps_its_sentences_and_follows_the_code() -> None:
    """Of a page: a key that there is no more goes, a new one comes, a wrong default is mended; the rest stays."""
    page = (
        "before\n<!-- generated: settings store -->\n\n| `gone` | `1` | `X` | nothing |\n"
        "| `url` | `3` | `Y` | where \\| it is |\n<!-- end -->\nbehind\n"
    )
    filled = reference.fill(page)
    assert "gone" not in filled
    assert '| `url` | `""` | `INSTAINFER_STORE__URL` | where \\| it is |' in filled
    assert filled.startswith("before\n") and filled.endswith("\nbehind\n")
    assert reference.fill(filled) == filled
    with pytest.raises(KeyError):
        reference.fill("<!-- generated: nonsense -->\n<!-- end -->")


def test_lifecycles_are_up_to_date() -> None:
    assert GENERATED.read_text("utf-8") == lifecycle.document(), "run `make docs`"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_links_lead_somewhere() -> None:
    for file in PAGES:
        text = re.sub(r"```.*?```", "", file.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            other = (file.parent / path).resolve() if path else file
            assert other.exists(), f"{file.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", other.read_text("utf-8"), re.MULTILINE)
                assert anchor in map(_anchor, headings), f"{file.name}: {target}"


def test_files_and_tests_that_are_named_exist() -> None:
    tests = "\n".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("*.py"))
    for file in PAGES:
        text = file.read_text("utf-8")
        for name in re.findall(r"`((?:src|tests|docs|examples)/[\w./-]+)`", text):
            assert "NAME" in name or (ROOT / name).exists(), f"{file.name}: {name}"
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in tests, f"{file.name}: {name}"
    tried = re.findall(
        r"`([a-z]+(?:_[a-z]+){2,})`", page("security.md").partition("## Layers")[2].partition("Names")[0]
    )
    assert tried
    for scenario in tried:  # of the security page: what tries to break each layer
        assert f"def {scenario}(" in tests, scenario


def test_every_page_is_in_the_index() -> None:
    index = page("README.md")
    missing = [
        p for p in DOCS.rglob("*.md") if p.name != "README.md" and p.relative_to(DOCS).as_posix() not in index
    ]
    assert not missing


def test_sections_are_structs() -> None:
    """What `sections` rests on."""
    assert all(issubclass(kind, Section) for kind in config.SECTIONS.values())
