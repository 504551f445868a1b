"""Spans as a collector gets them, and the lines of the log."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from instainfer import telemetry
from instainfer.books import Ticket
from instainfer.errors import TimedOut
from instainfer.model import FunctionSpec, Phases, Style

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Where to send spans, and those that came."""
    came: list[Any] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in sent.resource_spans:
                for scope in resource.scope_spans:
                    came.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ticket(traceparent: str = "", **phases: float) -> Ticket:
    spec = FunctionSpec(
        namespace="ns", name="f", version=3, digest="sha256:00", style=Style.MODULE, entry="main:handler",
        memory=1, timeout_s=1.0, concurrency=1, environment="", python="3.11",
    )  # fmt: skip
    made = Ticket(1, spec, "", b"", lambda _: None)
    made.activation, made.wall, made.start, made.container = "a1", 1000.0, "cold", "c1"
    made.traceparent = traceparent
    made.phases = Phases(**phases)
    return made


def test_a_span_per_phase_below_the_callers() -> None:
    with collector() as (endpoint, came):
        spans = telemetry.Spans(endpoint, 1.0)
        spans(ticket(f"00-{TRACE}-{CALLER}-01", queue=0.5, imports=1.0, load=2.0, inference=0.25), 3.75)
        spans.close()
    by_name = {span.name: span for span in came}
    assert set(by_name) == {"ns/f", "queue", "import", "load", "inference"}
    root = by_name["ns/f"]
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, CALLER)
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (1_000_000_000_000, 1_003_750_000_000)
    attributes = {one.key: one.value for one in root.attributes}
    assert attributes["faas.invocation_id"].string_value == "a1"
    assert attributes["faas.coldstart"].bool_value
    at = root.start_time_unix_nano
    for name, seconds in (("queue", 0.5), ("import", 1.0), ("load", 2.0), ("inference", 0.25)):
        span = by_name[name]
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
        assert (span.start_time_unix_nano, span.end_time_unix_nano - span.start_time_unix_nano) == (
            at,
            seconds * 1e9,
        )
        at = span.end_time_unix_nano


def test_a_failure_is_marked_and_a_trace_may_begin_here() -> None:
    with collector() as (endpoint, came):
        spans = telemetry.Spans(f"{endpoint}/v1/traces", 1.0)
        failed = ticket()
        failed.error = TimedOut("too slow")
        spans(failed, 1.0)
        spans.close()
    (root,) = came
    assert not root.parent_span_id
    assert root.status.code == 2
    assert root.status.message == "too slow"


def test_who_is_not_sampled_sends_nothing() -> None:
    with collector() as (endpoint, came):
        spans = telemetry.Spans(endpoint, 0.0)
        spans(ticket(queue=1.0), 1.0)
        spans(ticket(f"00-{TRACE}-{CALLER}-00", queue=1.0), 1.0)
        spans.close()
    assert came == []


@pytest.mark.parametrize(
    "text",
    ["", "00", f"01-{TRACE}-{CALLER}-01", f"00-{TRACE.upper()}-{CALLER}-01", f"00-{'0' * 32}-{CALLER}-01",
     f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{CALLER}-01\n", f"00-{TRACE}-{CALLER}-1"],
)  # fmt: skip
def test_what_is_no_traceparent(text: str) -> None:
    assert telemetry.parent(text) is None


def test_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    try:
        telemetry.configure(as_json=True, stream=stream)
        telemetry.AccessLog(as_json=True)(ticket(), 0.0125)
        try:
            raise ValueError("no\ngood")
        except ValueError:
            logging.getLogger("x").exception("it %s", "failed")
    finally:
        logging.getLogger().handlers[:] = before
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["activation"], first["function"], first["status"], first["e2e_ms"]) == ("a1", "ns/f", "ok", 12.5)
    assert (second["level"], second["message"]) == ("error", "it failed")
    assert "ValueError" in second["trace"]


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    root = Path(__file__).parents[2]
    known = set(
        re.findall(r"^\| `(\w+)` \|", (root / "docs/reference/metrics.md").read_text("utf-8"), re.MULTILINE)
    )
    text = (root / "deploy" / "grafana" / "instainfer.json").read_text("utf-8")
    dashboard = json.loads(text)
    asked = [
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"instainfer_[a-z_]+", target["expr"])
    ]
    assert asked
    for name in asked:
        for end in ("_bucket", "_sum", "_count"):
            name = name.removesuffix(end)
        assert name in known, name
