"""What a function prints, and several requests at once."""

from __future__ import annotations

import json
import os
import threading

import pytest

from instainfer.runtime import frames
from tests.live.instances import PATIENCE_S, SCRIPT, Start

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
