"""replay: who stands for whom, what goes out when, and what is counted of the answers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from instainfer.cli import app
from instainfer.errors import BadInput, BadSettings, NotFound
from instainfer.lab import counted as counting
from instainfer.lab import plan as planning
from instainfer.lab import replay
from instainfer.lab import sender as sending
from instainfer.lab.sender import INTERRUPTED, UNSENT, Call, Counts, Sender, target
from instainfer.observe import Metrics
from instainfer.sim.tally import Tally
from instainfer.traces.open import open_trace

from .stub_server import FUNCTION, Stub, serving

NO_PROFILE: dict[str, Any] = {"namespace": "default", "profile": None}
#: 300 ms of import, 100 of load, a first inference 20 longer than the others, 10 each.
PROFILE = {"import_ms": 300.0, "load_ms": 100.0, "warmup_ms": 0.0, "first_ms": 30.0, "warm_ms": 10.0}


def written(folder: Path, *calls: tuple[float, str]) -> Path:
    pytest.importorskip("polars")
    file = folder / "trace.csv"
    file.write_text("t_ms,func\n" + "".join(f"{at},{name}\n" for at, name in calls), encoding="utf-8")
    return file


def functions(*names: str, **more: Any) -> list[dict[str, Any]]:
    return [{**NO_PROFILE, "name": name, **more} for name in names]


# ---- who stands for whom


def test_a_function_stands_for_the_one_of_its_name_and_others_take_turns() -> None:
    keys = ["default/a", "default/b", "other/c"]
    assert planning.stand_ins(["x", "c", "y", "default/b", "z"], keys, {}) == {
        "x": "default/a",
        "c": "other/c",
        "y": "other/c",
        "default/b": "default/b",
        "z": "default/b",
    }


def test_a_name_of_two_namespaces_is_nobodys() -> None:
    assert planning.stand_ins(["a"], ["first/b", "first/a", "second/a"], {}) == {"a": "first/b"}


def test_a_mapping_is_above_names() -> None:
    assert planning.stand_ins(["a", "b"], ["n/a", "n/b"], {"a": "b"}) == {"a": "n/b", "b": "n/b"}
    with pytest.raises(BadInput, match="'c'"):
        planning.stand_ins(["a", "b"], ["n/a"], {"c": "a"})
    with pytest.raises(BadInput, match="'z'"):
        planning.stand_ins(["a"], ["n/a"], {"a": "z"})


def test_a_plan_is_of_the_servers_functions(tmp_path: Path) -> None:
    trace = written(tmp_path, (0, "x"), (1000, "y"), (2000, "z"), (61_000, "y"))
    settings = planning.Settings(speed=2.0, warmup=0.5)
    made = planning.plan(trace, settings, functions("a", "b"), mapping={"x": "b"})
    assert made.standing == {"x": "default/b", "y": "default/b", "z": "default/a"}
    assert made.trace.names == ("default/a", "default/b")
    assert made.trace.functions.tolist() == [1, 1, 0, 1]
    assert [made.sources[at] for at in made.source] == ["x", "y", "z", "y"]
    assert (made.length_s, made.since) == (60.0, 30.0)


def test_what_a_function_is_called_with(tmp_path: Path) -> None:
    trace = written(tmp_path, (0, "x"), (1, "y"), (2, "z"))
    image, other = planning.Payload(b"png", "image/png"), planning.Payload(b"[]", "application/json")
    made = planning.plan(
        trace, planning.Settings(), functions("a", "b", "c"), payloads={"default/b": image, "": other, "c": image}
    )
    assert [stand.payload for stand in made.stands] == [other, image, image]
    made = planning.plan(trace, planning.Settings(), functions("a"))
    assert made.stands[0].payload.body == b"{}"


def test_a_function_with_a_sample_is_not_called_with_nothing(tmp_path: Path) -> None:
    trace = written(tmp_path, (0, "x"))
    deployed = functions("ocr", sample="sample.png")
    with pytest.raises(BadInput) as caught:
        planning.plan(trace, planning.Settings(), deployed)
    assert caught.value.hint == "--data ocr=@sample.png"
    with pytest.raises(BadInput, match="'luck'"):
        planning.plan(trace, planning.Settings(), deployed, payloads={"luck": planning.Payload(b"", "")})


@pytest.mark.parametrize(
    "settings", [{"speed": 0.0}, {"speed": -1.0}, {"warmup": 1.0}, {"in_flight": 0}, {"timeout_s": 0.0}]
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any]) -> None:
    with pytest.raises(BadSettings):
        planning.Settings(**settings).check()


def test_a_server_without_functions_is_said() -> None:
    class Bare:
        def functions(self, namespace: str | None) -> list[dict[str, Any]]:
            return []

    server: Any = Bare()
    with pytest.raises(NotFound, match="the server has no function"):
        planning.ask(server, None)
    with pytest.raises(NotFound, match="'mine'"):
        planning.ask(server, "mine")


# ---- what goes out


class Holding:
    """A server in this loop. Requests wait until `enough` have come, then all and later ones are answered with
    `reply`; an empty reply hangs up."""

    def __init__(self, enough: int = 1, reply: bytes | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = self.serving = 0
        self.reply = ok() if reply is None else reply
        self.all_here = asyncio.Event()
        self._enough = enough

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.serving += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
                self.requests.append(head + await reader.readexactly(length))
                if len(self.requests) >= self._enough:
                    self.all_here.set()
                await self.all_here.wait()
                if not self.reply:
                    break
                writer.write(self.reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        self.serving -= 1


def ok(start: str = "warm", body: bytes = b"{}", status: int = 200) -> bytes:
    return (
        f"HTTP/1.1 {status} Some\r\nContent-Length: {len(body)}\r\nX-InstaInfer-Start: {start}\r\n"
        f"X-InstaInfer-Activation: a1\r\nServer-Timing: queue;dur=1.5, inference;dur=2.5\r\n\r\n"
    ).encode() + body


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 # nothing of the sender is there to wait for but its state
        await asyncio.sleep(0)


def sent(
    holding: Callable[[], Holding],
    due_s: list[float],
    act: Callable[[Sender, Holding], Awaitable[None]] | None = None,
    **limits: Any,
) -> tuple[Sender, Holding]:
    """Send calls that are due at these times; `act` happens meanwhile."""

    async def run() -> tuple[Sender, Holding]:
        held = holding()
        server = await asyncio.start_server(held.serve, "127.0.0.1", 0)
        goal = target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "k1")
        given = {"in_flight": 64, "timeout_s": 60.0, "late_s": 0.01, **limits}
        sender = Sender(
            goal, due_s, [0] * len(due_s), [goal.request("POST", "/f/n/x", b"hi", "text/plain")], **given
        )
        acting = None if act is None else asyncio.ensure_future(act(sender, held))
        await sender.run()
        if acting is not None:
            await acting
        held.all_here.set()
        server.close()
        await until(lambda: not held.serving)
        return sender, held

    return asyncio.run(run())


def test_no_call_waits_for_an_answer() -> None:
    """The server answers nobody until all are there."""
    sender, held = sent(lambda: Holding(8), [0.0] * 4 + [0.02] * 4)
    assert [(call.status, call.start, call.activation, call.failed) for call in sender.calls] == [
        (200, "warm", "a1", "")
    ] * 8
    assert held.connections == 8
    assert all(call.sent_s >= call.due_s - 0.001 and call.e2e_s > 0 for call in sender.calls)
    counts = sender.counts
    assert (counts.sent, counts.errors, counts.unsent, counts.ready) == (8, 0, 0, 8)
    assert b"POST /f/n/x HTTP/1.1\r\nhost: 127.0.0.1:" in held.requests[0]
    assert b"authorization: Bearer k1\r\ncontent-type: text/plain\r\n" in held.requests[0]
    assert held.requests[0].endswith(b"\r\n\r\nhi")


def test_what_is_beyond_the_bound_is_not_sent_and_not_queued() -> None:
    sender, held = sent(lambda: Holding(2), [0.0] * 5, in_flight=2)
    assert [call.failed for call in sender.calls] == ["", "", UNSENT, UNSENT, UNSENT]
    assert (sender.counts.sent, sender.counts.unsent, len(held.requests)) == (2, 3, 2)


def test_a_connection_is_used_again() -> None:
    async def look(sender: Sender, held: Holding) -> None:
        await until(lambda: bool(held.requests))
        held.all_here.set()
        await until(lambda: not sender.in_flight)
        for _ in range(5):
            assert await sender.get("/x") == b"{}"
        sender.interrupt()

    sender, held = sent(lambda: Holding(100), [0.0, 3600.0], look)
    assert (held.connections, len(held.requests), sender.counts.sent) == (1, 6, 1)


def test_a_late_call_is_counted() -> None:
    sender, _ = sent(Holding, [-5.0, 0.02], late_s=4.0)
    assert [call.late_s > 4.0 for call in sender.calls] == [True, False]
    assert sender.counts.late == 1


def test_a_lost_connection_fails_its_call_alone() -> None:
    async def change(sender: Sender, held: Holding) -> None:
        await until(lambda: bool(held.requests))
        held.all_here.set()
        await until(lambda: not sender.in_flight)
        held.reply = ok()
        assert await sender.get("/x") == b"{}"
        sender.interrupt()

    sender, held = sent(lambda: Holding(100, b""), [0.0, 3600.0], change)
    assert [call.failed for call in sender.calls] == ["the connection was lost"]
    assert (sender.counts.errors, held.connections) == (1, 2)


def test_what_is_no_http_is_an_error() -> None:
    sender, _ = sent(lambda: Holding(reply=b"SSH-2.0-x\r\n\r\n"), [0.0])
    assert sender.calls[0].failed.startswith("no HTTP")


def test_nobody_there_is_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        goal = target(f"http://127.0.0.1:{free.getsockname()[1]}")

        async def run() -> Sender:
            sender = Sender(goal, [0.0], [0], [b""], in_flight=1, timeout_s=1.0, late_s=0.01)
            await sender.run()
            return sender

        sender = asyncio.run(run())
    assert sender.calls[0].failed.startswith("no connection")
    assert sender.counts.errors == 1 and sender.in_flight == 0


def test_an_answer_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_SWEEP_S", 0.01)
    sender, _ = sent(lambda: Holding(100), [0.0, 0.0], timeout_s=0.02)
    assert [call.failed for call in sender.calls] == ["no answer within 0.02 s"] * 2


def test_an_interrupted_one_ends_with_what_there_is() -> None:
    async def interrupt(sender: Sender, held: Holding) -> None:
        await until(lambda: len(held.requests) == 2)
        sender.interrupt()

    sender, _ = sent(lambda: Holding(100), [0.0, 0.0, 3600.0], interrupt)
    assert len(sender.calls) == 2 and sender.interrupted
    assert [call.failed for call in sender.calls] == [INTERRUPTED] * 2
    assert sender.counts.errors == 0


def test_one_that_is_interrupted_before_it_begins_sends_nothing() -> None:
    async def run() -> Sender:
        sender = Sender(target("http://127.0.0.1:9"), [0.0], [0], [b""], in_flight=1, timeout_s=1.0, late_s=0.01)
        sender.interrupt()
        await sender.run()
        return sender

    assert asyncio.run(run()).calls == []


def test_a_look_that_takes_too_long_leaves_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_SWEEP_S", 3600.0)  # calls are not given up

    async def look(sender: Sender, held: Holding) -> None:
        await until(lambda: bool(held.requests))
        with pytest.raises(TimeoutError):
            await sender.get("/x")
        held.all_here.set()
        await until(lambda: not sender.in_flight)
        assert await sender.get("/y") == b"{}"
        sender.interrupt()

    sender, held = sent(lambda: Holding(100), [0.0, 3600.0], look, timeout_s=0.1)
    assert (sender.calls[0].failed, held.connections) == ("", 2)


# ---- what is counted


def plan(tmp_path: Path, *calls: tuple[float, str], **settings: Any) -> planning.Plan:
    deployed = functions("a", profile=PROFILE)
    return planning.plan(written(tmp_path, *calls), planning.Settings(**{"warmup": 0.0, **settings}), deployed)


def call(position: int, due_s: float, start: str, e2e_ms: float, timing: str = "", **more: Any) -> Call:
    made = Call(position, due_s)
    made.sent_s, made.e2e_s, made.start, made.timing, made.status = due_s, e2e_ms / 1e3, start, timing, 200
    for name, value in more.items():
        setattr(made, name, value)
    return made


COLD = "queue;dur=5, container;dur=50, import;dur=300, load;dur=100, inference;dur=32"
SERVER = planning.Server({"mode": "hazard", "predictor": "hazard", "keep_alive": "pressure"}, 500.0, "linux", [])


def counted(made: planning.Plan, *calls: Call, **more: Any) -> counting.Counted:
    result = replay.Sent(plan=made, calls=list(calls), counts=Counts(), began=1e9, interrupted=False, **more)
    return counting.Counted(result, SERVER)


def test_a_row_by_hand(tmp_path: Path) -> None:
    made = plan(tmp_path, *((at * 1000.0, "x") for at in range(8)))
    found = counted(
        made,
        call(0, 0.0, "cold", 490.0, COLD),  # of its inference 32 - 12 ms are the excess of a first one
        call(1, 1.0, "warm", 14.0, "queue;dur=1, inference;dur=12", sent_s=1.02),
        call(2, 2.0, "warm", 14.0, "queue;dur=1, inference;dur=12"),
        call(3, 3.0, "preloaded", 13.0, "inference;dur=10"),  # no slower than usual: no excess
        call(4, 4.0, "", 1.0, status=503),
        call(5, 5.0, "warm", 20.0, status=502),
        call(6, 6.0, "", 0.0, status=0, failed=UNSENT, sent_s=0.0),
        call(7, 7.0, "", 0.0, status=0, failed=INTERRUPTED),
        looks=[(0.0, 200_000_000, 0), (30.0, 100_000_000, 10_000_000)],  # and so until 60
        wasted_byte_s=5e9,
    )
    row = found.row
    assert (row["invocations"], row["rejected"], row["errors"], row["unsent"]) == (4, 1, 1, 1)
    assert row["late_fraction"] == pytest.approx(1 / 6)
    assert (row["warm_fraction"], row["cold_fraction"], row["preloaded_fraction"]) == (0.5, 0.25, 0.25)
    assert row["warming_loading_mean_ms"] == pytest.approx(((490 - 12) + 2 + 2 + 3) / 4)
    assert row["e2e_mean_ms"] == pytest.approx((490 + 14 + 14 + 13) / 4)
    assert row["saved_fraction"] == pytest.approx(1 - 420 / (4 * 420))
    assert row["memory_gb_s"] == pytest.approx(0.2 * 30 + 0.11 * 30)
    assert row["harmed_fraction"] is None  # which a caller cannot know
    assert row["wasted_gb_s"] == pytest.approx(5.0)
    assert (row["policy"], row["budget_mb"], row["world"]) == ("hazard", 500.0, "live")
    assert set(Tally(0.0, 1.0).row()) < set(row)
    assert dict(found.reasons) == {"HTTP 503": 1, "HTTP 502": 1, UNSENT: 1}


def test_a_run_by_hand(tmp_path: Path) -> None:
    made = plan(tmp_path, (0.0, "x"), (1000.0, "x"))
    run = counted(made, call(0, 0.0, "cold", 490.0, COLD), call(1, 1.0, "warm", 14.0, "inference;dur=12")).run()
    assert run["timeline"][0] == {
        "function": "default/a",
        "arrived_s": 0.0,
        "start": "cold",
        "warming_ms": 50.0,
        "loading_ms": 420.0,
        "inference_ms": 12.0,
        "e2e_ms": pytest.approx(490.0),
    }
    assert len(run["cdf"]["e2e_ms"]) == 101 and run["cdf"]["e2e_ms"][100] == pytest.approx(490.0)
    assert run["cdf"]["warming_loading_ms"][0] == pytest.approx(2.0)
    assert run["classes"]["other"]["invocations"] == 2  # too few calls to have a class
    assert set(run["classes"]) == {"predictable", "normal", "bursty", "other"}
    assert run["settings"]["functions"] == {"x": "default/a"}
    assert run["key"] != counted(plan(tmp_path, (0.0, "x"), (1000.0, "x"), speed=2.0)).run()["key"]


def test_what_warms_up_is_not_counted(tmp_path: Path) -> None:
    made = plan(tmp_path, (0.0, "x"), (29_000.0, "x"), (31_000.0, "x"), warmup=0.5)
    row = counted(made, *(call(at, due, "warm", 10.0) for at, due in enumerate((0.0, 29.0, 31.0)))).row
    assert row["invocations"] == 1


def test_without_a_cold_start_loading_is_what_the_deployment_measured(tmp_path: Path) -> None:
    made = plan(tmp_path, (0.0, "x"))
    attached = call(0, 0.0, "attached", 300.0, "import;dur=200, load;dur=10, inference;dur=10")
    assert counted(made, attached).row["saved_fraction"] == pytest.approx(1 - 210 / 420)


def test_a_load_that_ended_with_a_warm_up_has_no_excess() -> None:
    stand = planning.Stand("n/a", planning.Payload(b"", ""), 0.4, 0.01, True)
    one = counting.told(call(0, 0.0, "cold", 490.0, COLD), stand, 10.0)
    assert one is not None and (one.loading_ms, one.inference_ms) == (400.0, 32.0)


def test_a_metric_is_read_as_the_server_writes_it() -> None:
    metrics = Metrics()
    metrics.wasted_byte_seconds = 2.5e9
    text = metrics.render().decode()
    assert replay.metric(text, "instainfer_wasted_byte_seconds_total") == 2.5e9
    with pytest.raises(ValueError, match="luck"):
        replay.metric(text, "luck")


def test_an_answer_of_something_else_is_an_error() -> None:
    assert "start kind" in counting.why_not(call(0, 0.0, "", 1.0))


# ---- the command


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with serving(Stub()) as running:
        yield running


@pytest.fixture
def at_stub(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Stub:
    monkeypatch.setenv("INSTAINFER_URL", stub.url)
    stub.seen.clear()
    return stub


def run(*line: str) -> Result:
    return CliRunner().invoke(app, ["replay", *line])


def test_what_the_command_writes(at_stub: Stub, tmp_path: Path) -> None:
    trace = written(tmp_path, *((at * 100.0, "x") for at in range(10)))
    out = tmp_path / "new" / "out"
    result = run(str(trace), "--warmup", "0", "--speed", "10", "-o", str(out), "--data", 'magika={"a":1}')
    assert result.exit_code == 0, result.output
    calls = [body for method, path, body in at_stub.seen if path == "/f/default/magika"]
    assert calls == [("application/json", b'{"a":1}')] * 10
    document = json.loads((out / "results.json").read_text("utf-8"))
    (row,) = document["rows"]
    assert document["command"] == "replay" and document["machine"]["sandbox"] == "process"
    assert (row["invocations"], row["preloaded_fraction"], row["speed"]) == (10, 1.0, 10.0)
    assert (row["policy"], row["budget_mb"], row["errors"], row["seed"]) == ("hazard", 8000.0, 0, 0)
    assert row["budget_fraction"] == pytest.approx(8000.0 / FUNCTION["profile"]["loaded_mb"])
    assert json.loads((out / "runs" / "0.json").read_text("utf-8"))["row"] == row
    lines = [json.loads(line) for line in (out / "calls.jsonl").read_text("utf-8").splitlines()]
    assert [line["trace_function"] for line in lines] == ["x"] * 10
    assert lines[0]["phases"] == {"queue_ms": 0.2, "inference_ms": 12.5}
    assert [line["due_s"] for line in lines] == pytest.approx([at / 100 for at in range(10)])
    sent_again = open_trace(out / "calls.jsonl")
    assert sent_again.names == ("default/magika",) and len(sent_again) == 10
    assert "10 calls of 1 functions to 1 of http" in result.stderr
    assert "idle times are shorter" in result.stderr
    assert result.stdout.splitlines()[0].split()[:4] == ["POLICY", "TRACE", "SPEED", "MEMORY"]


def test_json_prints_the_document(at_stub: Stub, tmp_path: Path) -> None:
    trace = written(tmp_path, (0.0, "x"))
    result = run(str(trace), "--warmup", "0", "--json")
    assert [row["invocations"] for row in json.loads(result.stdout)["rows"]] == [1]


def test_a_mapping_is_read(at_stub: Stub, tmp_path: Path) -> None:
    trace = written(tmp_path, (0.0, "x"))
    file = tmp_path / "map.json"
    file.write_text('{"x": "magika"}')
    assert run(str(trace), "--map", str(file)).exit_code == 0
    file.write_text('{"x": "luck"}')
    result = run(str(trace), "--map", str(file))
    assert result.exit_code == 1 and "default/magika" in result.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--speed", "0"], "speed"),
        (["--warmup", "2"], "0.25"),
        (["--late", "soon"], "--late"),
        (["--data", "text"], "NAME=@FILE"),
        (["--data", "a={}", "--data", "a=[]"], "twice"),
        (["--data", "@/no/such/file"], "/no/such/file"),
        (["--map", "/no/such/file"], "/no/such/file"),
    ],
)
def test_what_cannot_be_meant_is_refused(at_stub: Stub, line: list[str], said: str) -> None:
    result = run("/no/such/trace.csv", *line)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not [path for _, path, _ in at_stub.seen if path.startswith("/f/")]


def test_a_server_that_answers_no_call_fails_the_command_with_the_reason(at_stub: Stub, tmp_path: Path) -> None:
    at_stub.api_key = "k1"
    try:
        result = run(str(written(tmp_path, (0.0, "x"))), "--api-key", "wrong")
        assert result.exit_code == 1 and "INSTAINFER_API_KEY" in result.stderr
        assert run(str(written(tmp_path, (0.0, "x"))), "--api-key", "k1", "--warmup", "0").exit_code == 0
    finally:
        at_stub.api_key = ""


@pytest.mark.slow
def test_an_interrupt_writes_what_there_is(stub: Stub, tmp_path: Path) -> None:
    trace = written(tmp_path, (0.0, "x"), (1.0, "x"), (3_000_000.0, "x"))
    stub.seen.clear()
    line = [sys.executable, "-m", "instainfer.cli", "replay", str(trace), "--url", stub.url, "--warmup", "0"]
    with subprocess.Popen([*line, "-o", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True) as process:
        while sum(path.startswith("/f/") for _, path, _ in stub.seen) < 2:
            assert process.poll() is None
            time.sleep(0.01)  # between two looks at another process
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["rows"]
    assert row["interrupted"] and row["invocations"] <= 2
    assert len((tmp_path / "out" / "calls.jsonl").read_text("utf-8").splitlines()) == 2
