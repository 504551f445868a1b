"""Recognising a function's style from its syntax, and what goes in and out of one."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from instainfer.runtime import payloads, styles

SCRIPT_LOOP = """
import sys
model = open("weights").read()
while True:
    line = sys.stdin.readline()
    if not line:
        break
    print("{}")
"""

DETECTED = {
    "handler": ("def handler(event): return 1", ("module", "main:handler")),
    "async handler": ("async def handler(event): return 1", ("module", "main:handler")),
    "main": ("def main(args): return {}", ("module", "main:main")),
    "handler before main": ("def main(args): ...\ndef handler(event): ...", ("module", "main:handler")),
    "handler before a class": (
        "class M:\n def predict(self, x): ...\ndef handler(e): ...",
        ("module", "main:handler"),
    ),
    "class": ("class Net:\n def load(self): ...\n def predict(self, x): ...", ("class", "main:Net")),
    "class with an async predict": ("class Net:\n async def predict(self, x): ...", ("class", "main:Net")),
    "class before main": ("class Net:\n def predict(self, x): ...\ndef main(a): ...", ("class", "main:Net")),
    "class with load preferred": (
        "class Tokens:\n def predict(self, x): ...\nclass Net:\n def load(self): ...\n def predict(self, x): ...",
        ("class", "main:Net"),
    ),
    "derived class": (
        "class Base:\n def predict(self, x): ...\nclass Net(Base):\n def load(self): ...",
        ("class", "main:Net"),
    ),
    "class with a command line of its own": (
        "class Net:\n def predict(self, x): ...\nif __name__ == '__main__':\n print(Net().predict(input()))",
        ("class", "main:Net"),
    ),
    "script": (SCRIPT_LOOP, ("script", "main.py")),
    "script with for": ("import sys\nfor line in sys.stdin:\n print(line)", ("script", "main.py")),
    "script with iter": (
        "import sys\nfor line in iter(sys.stdin.readline, ''):\n print(line)",
        ("script", "main.py"),
    ),
    "script with input": ("while True:\n print(input())", ("script", "main.py")),
    "script with from sys": ("from sys import stdin\nx = stdin.readline()", ("script", "main.py")),
    "script with a class": (
        "class Net:\n def predict(self, x): ...\n" + SCRIPT_LOOP,
        ("script", "main.py"),
    ),
    "script in a guarded main": (
        "import sys\ndef main():\n for line in sys.stdin:\n  print(line)\nif __name__ == '__main__':\n main()",
        ("script", "main.py"),
    ),
    "script through two functions": (
        "def read(): return input()\ndef run():\n while True: print(read())\nrun()",
        ("script", "main.py"),
    ),
    "stdin read in a function that nobody calls": (
        "def ask(): return input()\ndef main(a): ...",
        ("module", "main:main"),
    ),
    "a tenant's own input": ("def input(): return 3\nx = input()\ndef main(a): ...", ("module", "main:main")),
    "nothing": ("x = 1\ndef helper(): ...\nclass A:\n def run(self): ...", None),
    "nested handler": ("def make():\n def handler(event): ...\n return handler", None),
    "no Python": ("def handler(:", None),
    "a null byte": ("x = '\0'", None),
    "empty": ("", None),
}


@pytest.mark.parametrize("case", DETECTED)
def test_detect(case: str) -> None:
    source, expected = DETECTED[case]
    assert styles.detect(source, "main.py") == expected


def test_detect_names_the_module_by_its_path_and_runs_nothing() -> None:
    source = "raise SystemExit\ndef handler(event): ..."
    assert styles.detect(source, "app/serve.py") == ("module", "app.serve:handler")


# ---- payloads ----

PAYLOADS = {
    "json": ("application/json", b'{"a":1}', {"a": 1, "k": "v"}),
    "json with a charset": ("application/json; charset=utf-8", b"[1]", [1]),
    "json by suffix": ("application/cloudevents+json", b'{"k":2}', {"k": 2}),
    "json in capitals": ("Application/JSON", b"null", None),
    "no body": ("", b"", {"k": "v"}),
    "json without a body": ("application/json", b"", {"k": "v"}),
    "text": ("text/plain", "é".encode(), "é"),
    "text in latin-1": ("text/plain; charset=iso-8859-1", "é".encode("latin-1"), "é"),
    "a form": ("application/x-www-form-urlencoded", b'{"a":1}', b'{"a":1}'),
    "an empty form": ("application/x-www-form-urlencoded", b"", b""),
    "a picture": ("image/png", b"\x89PNG", b"\x89PNG"),
    "no type": ("", b"x", b"x"),
}


@pytest.mark.parametrize("case", PAYLOADS)
def test_payload(case: str) -> None:
    content_type, body, expected = PAYLOADS[case]
    assert payloads.decode(content_type, body, {"k": "v"}) == expected


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{"),
        ("application/json", b"\xff"),
        ("application/json", b'{"a": NaN}'),
        ("application/json", b"[" * 100_000),
        ("text/plain", b"\xff"),
        ("text/plain; charset=nonsense", b"x"),
        ("text/plain; charset=hex", b"00"),
    ],
)
def test_a_body_that_is_not_what_it_says(content_type: str, body: bytes) -> None:
    with pytest.raises(payloads.BadPayload):
        payloads.decode(content_type, body, {})
    with pytest.raises(payloads.BadPayload):
        payloads.decode_line(content_type, body, {})


LINES = {
    "json on many lines": ("application/json", b'{\n "a": 1\n}', '{"k":"v","a":1}'),
    "json under a form's type": ("application/x-www-form-urlencoded", b'{"a":\n1}', '{"k":"v","a":1}'),
    "a json string": ("application/json", b'"a\\nb"', '"a\\nb"'),
    "nothing": ("", b"", '{"k":"v"}'),
    "a line": ("text/plain", b"hello\r\n", "hello"),
    "a number as text": ("text/plain", b"007", "007"),
    "lines": ("text/plain", b"a\nb", '{"body_base64":"YQpi"}'),
    "text of no known type": ("text/csv", b"1,2", "1,2"),
    "bytes": ("image/png", b"\xff\xfe", '{"body_base64":"//4="}'),
    "an empty form": ("application/x-www-form-urlencoded", b"", ""),
}


@pytest.mark.parametrize("case", LINES)
def test_payload_as_one_line(case: str) -> None:
    content_type, body, expected = LINES[case]
    assert payloads.decode_line(content_type, body, {"k": "v"}) == expected


@dataclasses.dataclass
class Box:
    label: str
    corner: np.ndarray[Any, Any]


ANSWERS: dict[str, tuple[object, object]] = {
    "dict": ({"a": [1, 2.5, None, True]}, {"a": [1, 2.5, None, True]}),
    "text": ("é", "é"),
    "tuple": ((1, 2), [1, 2]),
    "set": ({3}, [3]),
    "frozenset": (frozenset({3}), [3]),
    "array": (np.arange(3), [0, 1, 2]),
    "scalar": (np.float32(0.5), 0.5),
    "scalars inside": ({"n": np.int64(3), "b": np.bool_(True)}, {"n": 3, "b": True}),
    "dataclass": (Box("cat", np.zeros(2)), {"label": "cat", "corner": [0.0, 0.0]}),
    "none": (None, None),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answer(case: str) -> None:
    value, expected = ANSWERS[case]
    kind, body = payloads.encode(value, 1000)
    assert (kind, json.loads(body)) == ("application/json", expected)


@pytest.mark.parametrize("value", [b"\0\1", bytearray(b"\0\1"), memoryview(b"\0\1")])
def test_bytes_stay_bytes(value: object) -> None:
    assert payloads.encode(value, 2) == ("application/octet-stream", b"\0\1")


class Strange:
    pass


def _ring() -> list[object]:
    ring: list[object] = []
    ring.append(ring)
    return ring


REFUSED: dict[str, tuple[object, str]] = {
    "an unknown type": ({"x": Strange()}, "Strange.*cannot be written as JSON"),
    "a class": (Box, "builtins.type"),
    "a generator": ((n for n in [1]), "generator"),
    "NaN": (math.nan, "NaN or Infinity"),
    "infinity in an array": (np.array([math.inf]), "NaN or Infinity"),
    "a ring": (_ring(), "Circular"),
    "an odd key": ({(1, 2): 3}, "keys must be"),
    "half a character": ("\ud800", "surrogates"),
    "an array of objects": (np.array([Strange()]), "Strange"),
    "too long": ("x" * 1000, r"answer of 1002 bytes is over the limit of 1000"),
    "too many bytes": (b"x" * 1001, r"answer of 1001 bytes is over the limit of 1000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_answer_that_cannot_be_sent(case: str) -> None:
    value, complaint = REFUSED[case]
    with pytest.raises(payloads.BadAnswer, match=complaint):
        payloads.encode(value, 1000)
