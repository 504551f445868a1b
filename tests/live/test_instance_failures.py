"""Loads and warm-ups that fail say where and why."""

from __future__ import annotations

import pytest

from tests.live.instances import BOOT, Start, style_of

# ---- failures before READY ----

FAILURES: dict[str, tuple[str, str, str, str]] = {
    "no syntax": ("main:handler", "def handler(:", "import", r"SyntaxError: "),
    "missing library": (
        "main:handler",
        "import nothing_like_it",
        "import",
        "ModuleNotFoundError: No module named",
    ),
    "a library's own error": ("main:handler", "import faulty", "import", "RuntimeError: no such processor"),
    "missing module": ("other:handler", "", "import", "ModuleNotFoundError: No module named 'other'"),
    "module level": ("main:handler", "raise ValueError('two\\nlines')", "load", "ValueError: two lines"),
    "exit at module level": ("main:handler", "raise SystemExit(0)", "load", "SystemExit: 0"),
    "no handler": (
        "main:handler",
        "from os.path import join\ndef handel(e): ...\nclass Net: ...\nx = 1",
        "import",
        "no `handler` in main.py; it defines: handel, Net",
    ),
    "nothing at all": ("main:handler", "", "import", "no `handler` in main.py; it defines: no functions"),
    "handler is no function": (
        "main:handler",
        "handler = 3",
        "import",
        "`handler` in main.py is a int, not a function",
    ),
    "no class": ("main:Model", "", "import", "no `Model` in main.py"),
    "not a class": ("main:Model", "def Model(): ...", "import", "`Model` in main.py is a function, not a class"),
    "no predict": (
        "main:Model",
        "class Model:\n def run(self): ...",
        "import",
        "class `Model` in main.py has no `predict(self, payload)`; it defines: run",
    ),
    "load raises": (
        "main:Model",
        "class Model:\n def load(self):\n  open('/no/such/weights')\n def predict(self, x): ...",
        "load",
        "FileNotFoundError: ",
    ),
    "init wants more": (
        "main:Model",
        "class Model:\n def __init__(self, a): ...\n def predict(self, x): ...",
        "load",
        "TypeError: ",
    ),
    "script raises": ("main.py", "import sys\n1/0\nsys.stdin.readline()", "load", "ZeroDivisionError: "),
    "script misses a library": ("main.py", "import nothing_like_it", "import", "ModuleNotFoundError: "),
    "script has no syntax": ("main.py", "while:", "import", "SyntaxError: "),
    "script never reads": (
        "main.py",
        "print('done')",
        "load",
        "the script ended before its first sys.stdin.readline()",
    ),
    "script exits": (
        "main.py",
        "raise SystemExit",
        "load",
        "the script ended before its first sys.stdin.readline()",
    ),
    "script is missing": ("gone.py", "", "load", "FileNotFoundError: "),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_load_says_where_and_why(start: Start, case: str) -> None:
    entry, source, phase, error = FAILURES[case]
    (start.library / "faulty.py").write_text("raise RuntimeError('no such processor')")
    live = start(source)
    failed = live.failed(entry, style=style_of(entry))
    assert failed["phase"] == phase
    assert failed["error"].startswith(error)
    assert str(BOOT.parent) not in failed["trace"]
    assert "importlib" not in failed["trace"]


def test_the_trace_is_the_authors_own(start: Start) -> None:
    live = start(
        "import helper\ntry:\n helper.deep(3000)\nexcept RecursionError as e:\n"
        " raise ValueError('x' * 20_000) from e",
        helper="def deep(n): return [n, deep(n - 1)][n:] if n else 1\n" * 2,
    )
    failed = live.failed()
    assert len(failed["trace"].encode()) <= 8 << 10
    assert len(failed["error"]) <= 1000
    assert failed["trace"].rstrip().endswith("xxx")

    live = start("def f():\n raise KeyError('k')\nf()")
    failed = live.failed()
    assert failed["trace"].startswith("Traceback (most recent call last):\n  File ")
    assert f'{start.package}/main.py", line 3, in <module>' in failed["trace"]
    assert failed["trace"].endswith("KeyError: 'k'\n")


WARMUPS = {
    "raises": ("main:handler", "def handler(e): raise ValueError('cold')", "sample.json", "ValueError: cold"),
    "malformed": ("main:handler", "def handler(e): ...", "bad.json", "the body is not valid JSON"),
    "missing": (
        "main:handler",
        "def handler(e): ...",
        "none.json",
        "the sample none.json cannot be read: No such file",
    ),
    "unwritable": (
        "main:handler",
        "def handler(e): return object()",
        "sample.json",
        "the answer holds a builtins.object",
    ),
    "silent script": ("main.py", "while input(): print('x')", "sample.json", "the script printed no JSON line"),
    "short script": ("main.py", "input()", "sample.json", "the script ended"),
}


@pytest.mark.parametrize("case", WARMUPS)
def test_a_failed_warm_up(start: Start, case: str) -> None:
    entry, source, sample, error = WARMUPS[case]
    (start.package / "sample.json").write_text("{}")
    (start.package / "bad.json").write_text("{")
    failed = start(source).failed(entry, sample=sample)
    assert failed["phase"] == "warmup"
    assert failed["error"].startswith(error)
