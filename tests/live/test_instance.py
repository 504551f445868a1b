"""The instance's process, started as the manager starts it, without a sandbox around it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from instainfer.runtime import frames

BOOT = Path(frames.__file__).with_name("boot.py")
PATIENCE_S = 60.0  # of a socket: only a broken instance ever uses it up


class Live:
    """One instance and the platform's end of its socket and pipes."""

    def __init__(
        self, package: Path, python: str = sys.executable, variables: Mapping[str, str] | None = None
    ) -> None:
        self.package = package
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE_S)
        with theirs:
            self.process = subprocess.Popen(
                [python, str(BOOT), "instance", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env={"PATH": os.environ["PATH"], **(variables or {})},
            )
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._request = 0

    def go(self, entry: str = "main:handler", **spec: object) -> tuple[int, dict[str, Any]]:
        """Send the spec; the first frame that comes back."""
        style = "script" if entry.endswith(".py") else "module"
        self.send(
            frames.GO,
            meta={
                "function": "ns/f",
                "package": str(self.package),
                "style": style,
                "entry": entry,
                "level": 2,
                "modules": [],
                "params": {},
                "sample": "",
                "sample_type": "",
                "concurrency": 1,
                "max_answer": 1 << 20,
                **spec,
            },
        )
        return self.told()

    def ready(self, entry: str = "main:handler", **spec: object) -> dict[str, Any]:
        kind, meta = self.go(entry, **spec)
        assert kind == frames.READY, meta
        return meta

    def failed(self, entry: str = "main:handler", **spec: object) -> dict[str, Any]:
        kind, meta = self.go(entry, **spec)
        assert kind == frames.FAILED, meta
        assert self.frame() is None
        assert self.process.wait(PATIENCE_S) == 1
        return meta

    def send(self, kind: int, request: int = 0, meta: dict[str, Any] | None = None, body: bytes = b"") -> None:
        self.socket.sendall(frames.encode(kind, request, meta, body))

    def frame(self) -> tuple[int, int, dict[str, Any], bytes] | None:
        return frames.read_frame(self.socket)

    def told(self) -> tuple[int, dict[str, Any]]:
        frame = self.frame()
        assert frame is not None, self.errors()
        return frame[0], frame[2]

    def ask(self, body: bytes, content_type: str = "application/json") -> int:
        self._request += 1
        self.send(frames.CALL, self._request, {"type": content_type, "activation": "a" * 32}, body)
        return self._request

    def call(self, body: bytes, content_type: str = "application/json") -> tuple[int, dict[str, Any], bytes]:
        request = self.ask(body, content_type)
        frame = self.frame()
        assert frame is not None, self.errors()
        kind, number, meta, answer = frame
        assert number == request
        return kind, meta, answer

    def result(self, payload: object) -> Any:
        kind, meta, answer = self.call(json.dumps(payload).encode())
        assert kind == frames.RESULT, meta
        return json.loads(answer)

    def error(self, body: bytes = b"{}", content_type: str = "application/json") -> dict[str, Any]:
        kind, meta, answer = self.call(body, content_type)
        assert (kind, answer) == (frames.ERROR, b""), answer
        return meta

    def stop(self) -> int:
        self.send(frames.STOP)
        assert self.frame() is None
        return self.process.wait(PATIENCE_S)

    def output(self) -> str:
        """What is in the pipe at this moment."""
        assert self.process.stdout is not None
        return (self.process.stdout.read() or b"").decode()

    def errors(self) -> str:
        assert self.process.stderr is not None
        return (self.process.stderr.read() or b"").decode()

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


class Start:
    """Writes files into a package and starts instances of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.package = tmp_path / "package"
        self.package.mkdir()
        self.library = tmp_path / "library"
        self.library.mkdir()
        self.started: list[Live] = []

    def __call__(self, main: str, python: str = sys.executable, **files: str) -> Live:
        for name, text in {"main": main, **files}.items():
            (self.package / f"{name}.py").write_text(text)
        live = Live(self.package, python, {"PYTHONPATH": str(self.library)})
        self.started.append(live)
        return live


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    starter = Start(tmp_path)
    yield starter
    for live in starter.started:
        live.close()


def _pythons() -> list[str]:
    """The interpreters of this machine that really run: a version manager's shim may exist and do nothing."""
    found = []
    for version in ("3.9", "3.10", "3.12", "3.13", "3.14"):
        path = shutil.which(f"python{version}")
        if path and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            found.append(path)
    return [sys.executable, *found]


SCRIPT = """
import json, sys
print("loading")
while True:
    line = sys.stdin.readline()
    if not line:
        print("bye")
        break
    event = json.loads(line)
    print("working on", event)
    print(json.dumps({"twice": event["n"] * 2}))
    print("7")
"""

STYLES = {
    "module": ("main:handler", "k = 2\ndef handler(event):\n return {'twice': event['n'] * k}"),
    "module, main": ("main:main", "def main(args):\n return {'twice': args['n'] * 2}"),
    "module, async": (
        "main:handler",
        "import asyncio\nasync def handler(event):\n await asyncio.sleep(0)\n return {'twice': event['n'] * 2}",
    ),
    "class": (
        "main:Model",
        "class Model:\n def load(self):\n  self.k = 2\n def predict(self, payload):\n"
        "  return {'twice': payload['n'] * self.k}",
    ),
    "class, async": (
        "main:Model",
        "import asyncio\nclass Model:\n async def load(self):\n  self.loop = asyncio.get_running_loop()\n"
        " async def predict(self, payload):\n  assert asyncio.get_running_loop() is self.loop\n"
        "  return {'twice': payload['n'] * 2}",
    ),
    "class without load": (
        "main:Model",
        "class Model:\n def predict(self, payload):\n  return {'twice': payload['n'] * 2}",
    ),
    "script": ("main.py", SCRIPT),
    "script, for": (
        "main.py",
        "import json, sys\nfor line in sys.stdin:\n print(json.dumps({'twice': json.loads(line)['n'] * 2}))",
    ),
    "script, input": (
        "main.py",
        "import json\nwhile True:\n event = json.loads(input('next? '))\n"
        " print(json.dumps({'twice': event['n'] * 2}))",
    ),
    "script, guarded": (
        "main.py",
        "import json, sys\ndef main():\n for line in iter(sys.stdin.readline, ''):\n"
        "  sys.stdout.write(json.dumps({'twice': json.loads(line)['n'] * 2}))\n"
        "if __name__ == '__main__':\n main()",
    ),
}


def style_of(entry: str) -> str:
    if entry.endswith(".py"):
        return "script"
    return "class" if entry.endswith("Model") else "module"


@pytest.mark.parametrize("case", STYLES)
def test_every_style_answers_and_stops_in_good_order(start: Start, case: str) -> None:
    entry, source = STYLES[case]
    live = start(source)
    ready = live.ready(entry, style=style_of(entry))
    assert (ready["level"], ready["tasks"]) == (2, 1)
    assert ready["load_s"] > 0
    assert (ready["warmup_s"], ready["first_s"], ready["answer"]) == (0, 0, "")
    for n in (1, 2):
        assert live.result({"n": n}) == {"twice": n * 2}
    assert live.stop() == 0
    assert live.errors() == ""


@pytest.mark.parametrize("python", _pythons())
@pytest.mark.parametrize("case", ["module", "class, async", "script"])
def test_every_python(start: Start, python: str, case: str) -> None:
    entry, source = STYLES[case]
    (start.library / "heavy.py").write_text("import decimal")
    live = start("import heavy\n" + source, python)
    ready = live.ready(entry, style=style_of(entry), sample="main.py", sample_type="text/plain", level=1)
    assert ready["level"] == 1
    live.send(frames.STOP)
    assert live.process.wait(PATIENCE_S) == 0
    (start.package / "sample.json").write_text('{"n": 4}')
    live = start("import heavy\n" + source, python)
    ready = live.ready(entry, style=style_of(entry), sample="sample.json")
    assert "heavy" in ready["modules"]
    assert json.loads(ready["answer"]) == {"twice": 8}
    assert live.result({"n": 1}) == {"twice": 2}
    assert live.error(b"nonsense")["bad_input"]
    assert live.stop() == 0
    assert live.errors() == ""


# ---- what is measured ----


def test_imports_are_told_from_loading(start: Start) -> None:
    package = start.library / "heavy"
    package.mkdir()
    (package / "__init__.py").write_text("from . import inner\nsum(range(100_000))")
    (package / "inner.py").write_text("import light")
    (package / "late.py").write_text("")
    (start.library / "light.py").write_text("")
    (start.library / "lazy.py").write_text("")
    (start.library / "other.py").write_text("import broken_inside")
    (start.library / "broken_inside.py").write_text("raise ImportError('no')")
    live = start(
        "import sys, helper\nfrom heavy import late\ntry:\n import other\nexcept ImportError: pass\n"
        "sum(range(100_000))\ndef handler(event):\n import lazy",
        helper="import heavy",
    )
    (start.package / "sample.json").write_text("{}")
    ready = live.ready(sample="sample.json")
    # `heavy` brings `inner` and `light`; the package's own modules, failed ones and built-in ones are not
    # there; what only the first call imports is.
    assert ready["modules"] == ["heavy", "heavy.late", "lazy"]
    assert ready["import_s"] > 0
    assert ready["load_s"] > 0
    assert ready["warmup_s"] >= ready["first_s"] > 0
    assert ready["answer"] == "null"


def test_level_one_imports_what_was_recorded_and_waits(start: Start) -> None:
    (start.library / "heavy.py").write_text("print('importing heavy')")
    (start.library / "faulty.py").write_text("raise SystemExit(3)")
    live = start("import heavy\nprint('loading')\ndef handler(event): return event")
    ready = live.ready(level=1, modules=["gone", "faulty", "heavy"])
    assert (ready["level"], ready["modules"], ready["load_s"]) == (1, ["heavy"], 0)
    assert ready["import_s"] > 0
    assert live.output() == "importing heavy\n"
    live.send(frames.RAISE, meta={"level": 2})
    kind, meta = live.told()
    assert (kind, meta["level"], meta["import_s"], meta["modules"]) == (frames.READY, 2, 0, ["heavy"])
    assert meta["load_s"] > 0
    assert live.output() == "loading\n"
    assert live.result({"a": 1}) == {"a": 1}
    live.send(frames.RAISE, meta={"level": 2})
    assert live.told()[1]["level"] == 2
    assert live.stop() == 0


def test_an_instance_at_level_one_stops(start: Start) -> None:
    live = start("def handler(event): ...")
    live.ready(level=1)
    assert live.stop() == 0


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("in.json", "", {"a": 1}),
        ("in.txt", "", '{"a": 1}'),
        ("in.bin", "", "bytes"),
        ("in.bin", "application/json", {"a": 1}),
    ],
)
def test_the_sample_is_sent_once_as_what_it_is(start: Start, name: str, kind: str, expected: object) -> None:
    (start.package / name).write_text('{"a": 1}')
    live = start(
        "seen = []\ndef handler(event):\n"
        " seen.append('bytes' if isinstance(event, bytes) else event)\n return seen"
    )
    ready = live.ready(sample=name, sample_type=kind)
    assert json.loads(ready["answer"]) == [expected]
    assert live.result(5) == [expected, 5]


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


# ---- requests ----


def test_params_lie_under_the_payload(start: Start) -> None:
    live = start("def handler(event): return event")
    live.ready(params={"a": 1, "b": 2})
    assert live.result({"b": 3}) == {"a": 1, "b": 3}
    assert json.loads(live.call(b"", "")[2]) == {"a": 1, "b": 2}
    assert live.result([1]) == [1]


def test_bytes_in_bytes_out(start: Start) -> None:
    live = start("def handler(event):\n assert type(event) is bytes\n return event[::-1]")
    live.ready(max_answer=4 << 20)
    body = bytes(range(256)) * (12 << 10)
    kind, meta, answer = live.call(body, "application/x-www-form-urlencoded")
    assert (kind, meta["type"], answer == body[::-1]) == (frames.RESULT, "application/octet-stream", True)
    assert meta["s"] > 0


def test_a_malformed_body_never_reaches_the_function(start: Start) -> None:
    live = start("print('loaded')\ndef handler(event): print('called')")
    live.ready()
    error = live.error(b"{")
    assert (error["phase"], error["bad_input"], error["trace"]) == ("request", True, "")
    assert error["error"].startswith("the body is not valid JSON: ")
    assert live.output() == "loaded\n"


ENDINGS = {
    "raise": ("raise ValueError('no')", "ValueError: no"),
    "exit": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "recursion": ("handler(event)", "RecursionError: "),
    "an error that cannot say itself": (
        "class E(Exception):\n  def __str__(self): 1/0\n raise E",
        "E",
    ),
    "an unwritable answer": ("return object()", "the answer holds a builtins.object"),
    "NaN": ("return float('nan')", "the answer holds NaN or Infinity"),
    "a huge answer": ("return 'x' * 1_000_000", "answer of 1000002 bytes is over the limit of 1000"),
    "an answer that breaks": ("class A:\n  def tolist(self): return 1/0\n return A()", "ZeroDivisionError: "),
}


@pytest.mark.parametrize("asynchronous", ["", "async "])
@pytest.mark.parametrize("case", ENDINGS)
def test_a_failed_call_leaves_the_instance_alive(start: Start, case: str, asynchronous: str) -> None:
    body, complaint = ENDINGS[case]
    recursive = body.replace("handler(event)", "await handler(event)") if asynchronous else body
    live = start(f"{asynchronous}def handler(event):\n if event: return event\n {recursive}")
    live.ready(max_answer=1000)
    error = live.error(b"{}")
    assert (error["phase"], error["bad_input"]) == ("inference", False)
    assert error["error"].startswith(complaint)
    assert str(BOOT.parent) not in error["trace"]
    assert live.result({"still": "here"}) == {"still": "here"}
    assert live.stop() == 0


@pytest.mark.parametrize(
    ("death", "status"),
    [
        ("import os; os.abort()", -signal.SIGABRT),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
        ("import os; os._exit(7)", 7),
        ("import os; os.closerange(3, 65536)", 1),
    ],
)
def test_a_death_is_the_end_of_the_stream_and_loses_no_output(start: Start, death: str, status: int) -> None:
    live = start(f"def handler(event):\n print('so far')\n {death}")
    live.ready()
    live.ask(b"{}")
    assert live.frame() is None
    assert live.process.wait(PATIENCE_S) == status
    assert live.output() == "so far\n"
    if status < 0:
        assert "main.py" in live.errors(), "a native crash says where it was"


def test_the_end_of_the_platform_is_the_end_of_the_instance(start: Start) -> None:
    live = start("import atexit\natexit.register(print, 'no time for this')\ndef handler(event): ...")
    live.ready()
    live.socket.close()
    assert live.process.wait(PATIENCE_S) == 0
    assert live.output() == ""


def test_stop_runs_what_was_registered_for_the_end_and_waits_for_no_thread(start: Start) -> None:
    live = start(
        "import atexit, threading\natexit.register(print, 'bye')\n"
        "threading.Thread(target=threading.Event().wait).start()\ndef handler(event): ..."
    )
    assert live.ready()["tasks"] == 2
    assert live.stop() == 0
    assert live.output() == "bye\n"


# ---- what is printed ----


def test_output_is_in_the_pipes_before_the_frame(start: Start) -> None:
    live = start(
        "import sys\nprint('load', end='')\ndef handler(event):\n sys.stdout.write('out %d' % event)\n"
        " sys.stderr.write('err')\n return event"
    )
    live.ready()
    assert live.output() == "load"
    for n in (1, 2):
        live.result(n)
        assert (live.output(), live.errors()) == (f"out {n}", "err")


def test_printing_megabytes_blocks_only_until_they_are_read(start: Start) -> None:
    live = start("def handler(event):\n for _ in range(event):\n  print('x' * 999)\n return 'done'")
    live.ready()
    out = live.process.stdout
    assert out is not None
    os.set_blocking(out.fileno(), True)
    read = bytearray()

    def drain() -> None:
        while len(read) < 3_000_000:
            read.extend(os.read(out.fileno(), 1 << 16))

    reader = threading.Thread(target=drain)
    reader.start()
    assert live.result(3000) == "done"
    reader.join(PATIENCE_S)
    assert len(read) == 3_000_000


def test_a_function_that_breaks_its_own_stdout_still_answers(start: Start) -> None:
    live = start("import sys\nsys.stdout.close()\nsys.stderr = None\ndef handler(event): return event")
    live.ready()
    assert live.result(1) == 1
    assert live.stop() == 0


def test_a_script_answers_with_its_first_line_of_json_and_logs_the_rest(start: Start) -> None:
    live = start(SCRIPT)
    live.ready("main.py")
    assert live.output() == "loading\n"
    assert live.result({"n": 3}) == {"twice": 6}
    assert live.output() == "working on {'n': 3}\n7\n"
    assert live.stop() == 0
    assert live.output() == "bye\n"


def test_a_script_that_prints_no_json_goes_on(start: Start) -> None:
    live = start(
        "import sys\nfor line in sys.stdin:\n print('thinking')\n"
        " if line[0] == '{': print(line)\n else: print('NaN')"
    )
    live.ready("main.py", params={"p": 1}, max_answer=20)
    error = live.error(b"no json", "text/plain")
    assert error["error"] == "the script printed no JSON line for this request"
    assert live.output() == "thinking\nNaN\n"
    assert live.error(b"{")["bad_input"]
    assert (
        live.error(json.dumps({"long": "x" * 20}).encode())["error"]
        == "answer of 37 bytes is over the limit of 20"
    )
    assert live.result({}) == {"p": 1}
    assert live.stop() == 0


def test_a_script_gets_bytes_as_base64(start: Start) -> None:
    live = start("import json, sys\nfor line in sys.stdin: print(json.dumps(json.loads(line)))")
    live.ready("main.py")
    assert json.loads(live.call(b"\xff\xfe", "image/png")[2]) == {"body_base64": "//4="}


@pytest.mark.parametrize(
    ("ending", "kind", "error"),
    [
        ("", frames.ERROR, "the script ended"),
        ("print(1)", frames.RESULT, "the script ended"),
        ("1/0", frames.ERROR, "ZeroDivisionError: "),
        ("raise SystemExit(2)", frames.ERROR, "SystemExit: 2"),
        ("sys.stdin.read()", frames.ERROR, "UnsupportedOperation: requests come one a line"),
    ],
)
def test_a_script_that_ends_takes_its_instance_with_it(start: Start, ending: str, kind: int, error: str) -> None:
    live = start(f"import sys\nsys.stdin.readline()\n{ending}")
    live.ready("main.py")
    got, meta, answer = live.call(b"{}")
    assert got == kind
    if kind == frames.ERROR:
        assert meta["error"].startswith(error)
    else:
        assert answer == b"1"
    failed = live.told()
    assert failed[0] == frames.FAILED
    assert failed[1]["phase"] == "inference"
    assert failed[1]["error"].startswith(error)
    assert live.process.wait(PATIENCE_S) == 1


# ---- concurrency ----


@pytest.mark.parametrize("sample", ["", "sample.json"])
@pytest.mark.parametrize(
    "source",
    [
        "import threading\ntogether = threading.Barrier(4)\ndef handler(event):\n"
        " if event: together.wait(60)\n return event",
        "import asyncio\nwaiting = []\nasync def handler(event):\n if not event: return event\n"
        " mine = asyncio.get_running_loop().create_future()\n waiting.append(mine)\n"
        " if len(waiting) == 4: [w.set_result(1) for w in waiting]\n await mine\n return event",
    ],
    ids=["threads", "async"],
)
def test_four_requests_at_once(start: Start, source: str, sample: str) -> None:
    (start.package / "sample.json").write_text("0")
    live = start(source)
    live.ready(concurrency=4, sample=sample)
    asked = {live.ask(str(n).encode()): n for n in (1, 2, 3, 4)}
    got = {}
    for _ in asked:
        frame = live.frame()
        assert frame is not None
        got[frame[1]] = json.loads(frame[3])
    assert got == asked
    assert live.error(b"{")["bad_input"]
    assert live.stop() == 0


# ---- the process the function finds itself in ----


def test_the_tenants_modules_and_the_runtimes_never_meet(start: Start) -> None:
    names = ("frames", "instance", "styles", "timing", "payloads", "boot", "manager")
    live = start(
        f"import {', '.join(names)}\ndef handler(event): return [{', '.join(f'{n}.mine' for n in names)}]",
        **dict.fromkeys(names, "mine = 1"),
    )
    assert live.ready()["modules"] == []
    assert live.result({}) == [1] * len(names)


def test_a_file_hidden_by_a_module_of_python_is_named(start: Start) -> None:
    live = start("", json="def handler(event): ...")
    failed = live.failed("json:handler")
    assert failed["error"] == "json.py has the name of a module that Python itself has loaded; rename it"


def test_what_the_process_looks_like(start: Start) -> None:
    live = start(
        "import os, stat, sys\n"
        "def is_socket(fd):\n"
        " try: return stat.S_ISSOCK(os.fstat(fd).st_mode)\n"
        " except OSError: return False\n"
        "def handler(event):\n"
        " return {'argv': sys.argv, 'path': sys.path[0], 'cwd': os.getcwd(), 'stdin': sys.stdin.read(),\n"
        "  'main': hasattr(sys.modules['__main__'], 'begin'), 'name': __name__,\n"
        "  'low': [fd for fd in range(200) if is_socket(fd)]}"
    )
    live.ready()
    main = str(start.package / "main.py")
    assert live.result({}) == {
        "argv": [main],
        "path": str(start.package),
        "cwd": str(start.package),
        "stdin": "",
        "main": False,
        "name": "main",
        "low": [],
    }
    assert not (start.package / "__pycache__").exists()


def test_children_do_not_hold_the_socket(start: Start) -> None:
    live = start(
        "import os, signal, subprocess, sys\n"
        "def handler(event):\n"
        " if event == 'exec':\n"
        "  child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], close_fds=False)\n"
        "  return child.pid\n"
        " pid = os.fork()\n"
        " if not pid: signal.pause()\n"
        " return pid\n"
    )
    live.ready()
    children = [live.result(how) for how in ("exec", "fork")]
    try:
        live.process.kill()
        assert live.frame() is None, "the end is seen while the children live"
        for child in children:
            os.kill(child, 0)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


def test_a_script_is_main(start: Start) -> None:
    live = start(
        "import json, pickle, sys\nclass Box: pass\n"
        "for line in sys.stdin:\n copy = pickle.loads(pickle.dumps(Box()))\n"
        " print(json.dumps([__name__, __file__, sys.argv, type(copy) is Box,\n"
        "  sys.stdout.encoding, sys.stdin.isatty()]))"
    )
    live.ready("main.py")
    main = str(start.package / "main.py")
    assert live.result({}) == ["__main__", main, [main], True, "utf-8", False]
