"""A server tells a collector of its invocations, and its log of every request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.live.server_helpers import Server
from tests.unit.test_telemetry import CALLER, TRACE, collector

TRACED = """
import os

def handler(event):
    return os.environ.get("TRACEPARENT")
"""


@pytest.mark.slow
def test_spans_and_lines(tmp_path: Path) -> None:
    sent = f"00-{TRACE}-{CALLER}-01"
    with collector() as (endpoint, came):
        variables = {
            "INSTAINFER_TELEMETRY__OTLP": endpoint,
            "INSTAINFER_SERVER__LOG": "json",
            "INSTAINFER_SERVER__ACCESS_LOG": "true",
        }
        with Server(tmp_path, "--memory", "1GB", variables=variables) as server:
            server.deploy("n", "f", TRACED)
            response = server.http.post("/f/n/f", json={}, headers={"traceparent": sent})
            assert response.json() == sent
            activation = response.headers["x-instainfer-activation"]
        roots = [span for span in came if span.parent_span_id.hex() == CALLER]
        assert [span.name for span in roots] == ["n/f"]
        assert {span.trace_id.hex() for span in came} == {TRACE}
        assert {span.name for span in came} >= {"n/f", "container", "inference"}
        lines = [json.loads(line) for line in server.errors().splitlines()]
        assert activation in [line.get("activation") for line in lines]
