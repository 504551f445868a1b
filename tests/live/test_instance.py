"""An instance: its styles, what it measures, its requests, the process that a function finds itself in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from instainfer.runtime import frames
from tests.live.instances import BOOT, PATIENCE_S, SCRIPT, Start, style_of


def _pythons() -> list[str]:
    """The interpreters of this machine that really run: a version manager's shim may exist and do nothing."""
    found = []
    for version in ("3.9", "3.10", "3.12", "3.13", "3.14"):
        path = shutil.which(f"python{version}")
        if path and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            found.append(path)
    return [sys.executable, *found]


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
