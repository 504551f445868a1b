"""Traces and logs of invocations: OpenTelemetry spans per phase, and a line per request.

Both are told of an invocation when it is over, from what the books know: nothing is measured for them. Spans
go out in batches from a thread of the exporter's own; where the collector cannot keep up they are dropped, never
waited for.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

from instainfer import __version__
from instainfer.books import Ticket
from instainfer.errors import BadSettings

Told = Callable[[Ticket, float], None]  # a request that is over, and its seconds from end to end

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_PHASES = ("queue", "container", "extract", "imports", "load", "device", "warmup", "inference")
_NAMES = {"imports": "import"}


def parent(traceparent: str) -> tuple[int, int, int] | None:
    """Trace, span and flags of a W3C traceparent; None where it is none (https://www.w3.org/TR/trace-context/)."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    trace, span, flags = (int(part, 16) for part in match.groups())
    return (trace, span, flags) if trace and span else None


class Spans:
    """One span per invocation, child of the caller's, with one per phase below it. Phases follow each other, in
    the order in which a request goes through them."""

    def __init__(self, endpoint: str, share: float) -> None:
        """`endpoint`: of a collector, OTLP over HTTP; `share`: of traces that begin here. Raises BadSettings."""
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        except ModuleNotFoundError:
            raise BadSettings(
                "telemetry.otlp needs a library that is not installed", hint="pip install 'instainfer[otel]'"
            ) from None
        self._trace = trace
        about = {"service.name": "instainfer", "service.version": __version__}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)), resource=Resource.create(about), shutdown_on_exit=False
        )
        address = endpoint.rstrip("/")
        address = address if address.endswith("/v1/traces") else f"{address}/v1/traces"
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address)))
        self._tracer = self._provider.get_tracer("instainfer")

    def __call__(self, ticket: Ticket, e2e_s: float) -> None:
        trace, spec = self._trace, ticket.spec
        given = parent(ticket.traceparent)
        context = None
        if given is not None:
            caller = trace.SpanContext(given[0], given[1], is_remote=True, trace_flags=trace.TraceFlags(given[2]))
            context = trace.set_span_in_context(trace.NonRecordingSpan(caller))
        attributes: dict[str, Any] = {
            "faas.name": spec.key,
            "faas.version": str(spec.version),
            "faas.invocation_id": ticket.activation,
            "faas.coldstart": ticket.start not in ("warm", "preloaded"),
            "instainfer.start": ticket.start,
            "instainfer.container": ticket.container,
        }
        began = int(ticket.wall * 1e9)
        span = self._tracer.start_span(
            spec.key, context, kind=trace.SpanKind.SERVER, attributes=attributes, start_time=began
        )
        if span.is_recording():
            below, at = trace.set_span_in_context(span), began
            for phase in _PHASES:
                seconds = getattr(ticket.phases, phase)
                if seconds:
                    until = at + int(seconds * 1e9)
                    self._tracer.start_span(_NAMES.get(phase, phase), below, start_time=at).end(until)
                    at = until
            if ticket.error is not None:
                span.set_status(trace.StatusCode.ERROR, ticket.error.message)
                span.set_attribute("error.type", ticket.error.code)
        span.end(began + int(e2e_s * 1e9))

    def close(self) -> None:
        """Send what waits. Blocks."""
        self._provider.shutdown()


class AccessLog:
    """A line per request, as text or as JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._log = logging.getLogger("instainfer.access")

    def __call__(self, ticket: Ticket, e2e_s: float) -> None:
        status = "ok" if ticket.error is None else ticket.error.code
        about = {
            "activation": ticket.activation,
            "function": ticket.spec.key,
            "version": ticket.spec.version,
            "start": ticket.start,
            "status": status,
            "e2e_ms": round(e2e_s * 1e3, 3),
        }
        if self._json:
            self._log.info("request", extra={"about": about})
        else:
            self._log.info(" ".join(f"{key}={value}" for key, value in about.items()))


class JsonLines(logging.Formatter):
    """One object per line. What a record carries as `about` are members of it."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False, default=str)


def configure(*, as_json: bool, stream: TextIO = sys.stderr) -> None:
    """The server's own log."""
    handler = logging.StreamHandler(stream)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonLines() if as_json else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def both(told: list[Told]) -> Told | None:
    """All of them in one call; None where there is nobody to tell."""
    if len(told) <= 1:
        return told[0] if told else None

    def tell(ticket: Ticket, e2e_s: float) -> None:
        for one in told:
            one(ticket, e2e_s)

    return tell
