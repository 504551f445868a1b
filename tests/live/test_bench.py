"""The load generator counts right, and `bench overhead` yields what it promises."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from instainfer import bench
from instainfer.bench import echo, loadgen
from instainfer.bench.http import Caller, parse, timing
from instainfer.bench.plan import Plan
from instainfer.bench.report import Report
from instainfer.bench.server import package
from instainfer.bench.starts import Example, find_examples, measure
from instainfer.errors import BadInput, BadSettings, InstaInferError, Unavailable


def response(status: int, start: str, body: bytes = b"{}") -> bytes:
    kind = f"X-InstaInfer-Start: {start}\r\n" if start else ""
    return f"HTTP/1.1 {status} Some\r\nContent-Length: {len(body)}\r\n{kind}\r\n".encode() + body


@contextmanager
def answering(*replies: bytes) -> Iterator[str]:
    """A server that gives these replies in turn, over and over, on any number of connections; b"" hangs up."""
    listening = socket.create_server(("127.0.0.1", 0))
    lock = threading.Lock()
    count = 0

    def serve(connection: socket.socket) -> None:
        nonlocal count
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while connection.recv(1 << 16):
                with lock:
                    reply = replies[count % len(replies)]
                    count += 1
                if not reply:
                    return
                half = len(reply) // 2  # in two pieces: responses need not come whole
                connection.sendall(reply[:half])
                connection.sendall(reply[half:])

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/f/default/x"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join()


def test_starts_and_errors_are_counted() -> None:
    replies = [response(200, "warm"), response(200, "preloaded"), response(502, "warm"), response(200, "warm")]
    with answering(*replies) as url:
        found = loadgen.generate(url, clients=1, requests=40)
    assert (found["n"], found["errors"]) == (30, 10)
    assert found["starts"] == {"warm": 20, "preloaded": 10}
    assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
    assert found["requests_per_s"] == pytest.approx(30 / found["seconds"])


def test_discarded_answers_count_nowhere() -> None:
    with answering(*[response(500, "")] * 4, *[response(200, "warm")] * 16) as url:
        found = loadgen.generate(url, clients=1, requests=16, discard=4)
    assert (found["n"], found["errors"], found["starts"]) == (16, 0, {"warm": 16})


def test_a_broken_connection_is_one_error_and_is_made_anew() -> None:
    with answering(response(200, "warm"), b"") as url:
        found = loadgen.generate(url, clients=3, requests=20)
    assert (found["n"], found["errors"]) == (10, 10)


def test_what_is_no_http_is_an_error() -> None:
    with answering(b"SSH-2.0-x\r\n\r\n") as url:
        found = loadgen.generate(url, clients=2, requests=6)
    assert (found["n"], found["errors"], found["p50_ms"]) == (0, 6, None)


def test_seconds_end_a_load() -> None:
    with answering(response(200, "warm")) as url:
        found = loadgen.generate(url, clients=2, seconds=0.05)
    assert found["n"] > 0
    assert found["seconds"] >= 0.05
    assert found["errors"] == 0


def test_nobody_there() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="no server answers"):
            loadgen.generate(f"http://127.0.0.1:{bound.getsockname()[1]}/", clients=1, requests=1)


def test_the_generator_and_its_ceiling_are_processes() -> None:
    with echo.running() as url:
        found = loadgen.spawn(url, clients=4, requests=100, discard=10, body=b"ab")
        with Caller(url, b"xyz") as caller:
            _, reply = caller.call()
    assert (found["clients"], found["n"], found["errors"], found["starts"]) == (4, 100, 0, {"": 100})
    assert (reply.status, reply.body) == (200, b"xyz")
    with pytest.raises(Unavailable, match="the load generator failed"):
        loadgen.spawn(url, clients=1, requests=1)


def test_a_load_without_an_end_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        loadgen.main(["http://127.0.0.1:1/"])
    assert ended.value.code == 2
    assert "--requests or --seconds" in capsys.readouterr().err


def test_responses_are_read_strictly() -> None:
    whole = b"HTTP/1.1 200 OK\r\nserver-timing: load;dur=1.5\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    for end in range(len(whole)):
        assert parse(whole[:end]) is None
    reply = parse(whole)
    assert reply is not None
    assert (reply.status, reply.start, reply.keep, reply.body) == (200, "", False, b"ok")
    assert timing(reply) == b"load;dur=1.5"
    for bad in (whole + b"x", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"):
        with pytest.raises(ValueError):
            parse(bad)


def test_a_call_without_an_answer_is_named() -> None:
    for reply in (b"", b"SSH-2.0-x\r\n\r\n"):
        with (
            answering(reply) as url,
            Caller(url, b"{}") as caller,
            pytest.raises(Unavailable, match="not answered"),
        ):
            caller.call()


def test_quantiles_are_nearest_ranks() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [loadgen.quantile(values, share) for share in (0.0, 0.5, 0.9, 0.99, 1.0)] == [1, 50, 90, 99, 100]
    assert loadgen.quantile([7.0], 0.5) == 7.0


def test_the_plan_comes_from_the_environment() -> None:
    assert Plan.of({}) == Plan()
    assert Plan.of({"INSTAINFER_BENCH_ROUNDS": "3"}).rounds == 3
    for value in ("0", "-1", "many"):
        with pytest.raises(BadSettings, match="INSTAINFER_BENCH_REQUESTS"):
            Plan.of({"INSTAINFER_BENCH_REQUESTS": value})


def test_missing_examples_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as raised:
        find_examples(tmp_path)
    assert "magika" in raised.value.message
    assert "--examples" in raised.value.hint
    assert [one.name for one in find_examples()] == ["magika", "ocr", "profanity"]


def test_unknown_names_and_unwritable_files_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no benchmark"):
        bench.run("speed")
    with pytest.raises(InstaInferError, match="cannot be written"):
        bench.run("overhead", tmp_path / "missing" / "o.json")


def overhead(tmp_path: Path, sandbox: str) -> dict[str, Any]:
    """`bench overhead` as the command line runs it, with tiny counts."""
    small = {"ROUNDS": "2", "REQUESTS": "60", "PRELOADS": "4", "WATCH_S": "1", "REST_S": "1"}
    environ = {**os.environ, **{f"INSTAINFER_BENCH_{key}": value for key, value in small.items()}}
    environ["INSTAINFER_SANDBOX__KIND"] = sandbox
    environ["TMPDIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "instainfer.cli", "bench", "overhead", "--json", "-"],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert "preloaded_noop" in done.stderr  # the table: stdout is the document's
    assert list(tmp_path.glob("instainfer-bench-*")) == []  # nothing stays
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.slow
def test_every_start_is_the_one_that_was_arranged() -> None:
    code = "import time\nimport sympy\ntime.sleep(0.2)\n\ndef handler(event):\n    return event\n"
    files = {"main.py": code, "function.toml": 'requirements = ["sympy==1.14.0"]\n'}  # which a zygote would have
    model = Example("model", package(files), b"{}", "application/json")
    report = Report("bench starts")
    measure(Plan(rounds=2), report, [model])
    (row,) = report.rows
    assert (row["errors"], row["n"]) == (0, 2)
    assert row["load_ms"] >= 200.0 and row["e2e_cold_ms"] > row["e2e_ms"]


@pytest.mark.slow
@pytest.mark.parametrize("sandbox", [pytest.param("linux", marks=pytest.mark.root), "process"])
def test_overhead(tmp_path: Path, sandbox: str) -> None:
    document = overhead(tmp_path, sandbox)
    assert (document["version"], document["command"]) == (1, "bench overhead")
    assert set(document["machine"]) == {"cpus", "memory_mb", "kernel", "python", "sandbox"}
    assert document["machine"]["sandbox"] == sandbox
    rows = {(row["name"], row["clients"], row.get("concurrency", 0)): row for row in document["rows"]}
    assert set(rows) == {
        ("client_ceiling", 1, 0),
        ("client_ceiling", 16, 0),
        ("in_process", 1, 0),
        ("warm_noop", 1, 1),
        ("warm_noop", 16, 1),
        ("warm_noop", 16, 16),
        ("watched_noop", 16, 16),
        ("gateway_noop", 1, 1),
        ("gateway_noop", 16, 16),
        ("preloaded_noop", 1, 0),
    }
    for (name, _, _), row in rows.items():
        assert {"sandbox", "p50_ms", "p99_ms", "requests_per_s", "errors", "n"} <= set(row)
        assert row["errors"] == 0, row
        assert row["n"] > 0 if name == "watched_noop" else row["n"] == (4 if name == "preloaded_noop" else 120)
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    preloaded = rows["preloaded_noop", 1, 0]
    assert preloaded["sandbox"] == rows["warm_noop", 1, 1]["sandbox"] == sandbox
    assert preloaded["added_p50_ms"] == pytest.approx(preloaded["p50_ms"] - preloaded["warm_p50_ms"])
    assert preloaded["added_p99_ms"] == pytest.approx(preloaded["p99_ms"] - preloaded["warm_p99_ms"])
    assert preloaded["thawed_p50_ms"] > 0
    assert preloaded["frozen_p50_ms"] > 0
    watched = rows["watched_noop", 16, 16]
    assert watched["cost_min_fraction"] <= watched["cost_fraction"] <= watched["cost_max_fraction"] < 1
    assert watched["server_cpu_ms"] > 0 < watched["unwatched_server_cpu_ms"]
    assert watched["event_mb"] > 0
