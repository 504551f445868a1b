"""The platform's end of one instance: its frames, its output, its time limits."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec

from instainfer.agent.base import Answered, Logged, Part, Revision, Sink
from instainfer.core.events import InstanceFailed, InstanceReady
from instainfer.errors import BadInput, InvocationFailed
from instainfer.model import Level, Origin
from instainfer.runtime import frames

READ = 1 << 16
LONGEST_TYPE = 255
_json = msgspec.json.Encoder().encode  # a third of the time of what the instance's end has to make do with


class Output:
    """What an instance writes to stdout and stderr, in order, up to a limit per activation."""

    def __init__(self, stdout: int, stderr: int, limit: int) -> None:
        self._streams = ((stdout, "stdout"), (stderr, "stderr"))
        self._open = {stdout, stderr}
        self._limit = limit
        self._lines: list[tuple[str, str]] = []
        self._size = 0
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        for descriptor, _ in self._streams:
            self._poll.register(descriptor, select.POLLIN)
            os.set_blocking(descriptor, False)
            self._loop.add_reader(descriptor, self._readable, descriptor)

    def _readable(self, descriptor: int) -> None:
        stream = "stdout" if descriptor == self._streams[0][0] else "stderr"
        self._read(descriptor, stream, once=True)

    def _read(self, descriptor: int, stream: str, *, once: bool) -> None:
        while descriptor in self._open:
            try:
                data = os.read(descriptor, READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(descriptor)
                self._poll.unregister(descriptor)
                self._open.discard(descriptor)
                os.close(descriptor)
                return
            if self._size <= self._limit:  # the chunk that passes the limit is the last that is kept of
                room = self._limit - self._size
                text = data[:room].decode("utf-8", "replace")
                if len(data) > room:
                    text += f"\n[output over {self._limit} bytes was dropped]\n"
                self._lines.append((stream, text))
            self._size += len(data)
            if once:
                return

    def take(self) -> tuple[tuple[str, str], ...]:
        """Everything written since the last call: what precedes a result in its pipe belongs to it."""
        if self._open and self._poll.poll(0):  # one system call where mostly there is nothing to read
            for descriptor, stream in self._streams:
                self._read(descriptor, stream, once=False)
        if not self._lines:
            return ()
        lines, self._lines, self._size = tuple(self._lines), [], 0
        return lines

    def close(self) -> None:
        for descriptor in list(self._open):
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._open.clear()


class InstanceHost(asyncio.Protocol):
    """Speaks frames with one instance process.

    Reports InstanceReady, Answered and Logged itself; its end (InstanceLost, or the `failure` that it told) is
    reported by the container, which owns the process. `expire(reason, code, request)` is called when it must
    be killed.
    """

    def __init__(
        self,
        id: str,
        revision: Revision,
        package: str,
        origin: Origin,
        output: Output,
        report: Sink,
        expire: Callable[[str, str, int | None], None],
    ) -> None:
        self.id = id
        self.package = package  # where its files are, inside as outside
        self.origin = origin
        self.details: dict[str, Any] = {}  # what its last READY said
        self.wanted = Level.NONE  # the level that it loads to, or has
        self.warming = False  # its load ends with the call with its sample
        self.restoring = False  # it was told of a snapshot
        self.revision = revision
        self.output = output
        self.failure: InstanceFailed | None = None  # what it said; reported when its process is gone
        self.loading = False
        self.served = 0  # requests that it was given
        self._report = report
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._decoder = frames.Decoder(largest=revision.max_answer + (1 << 20))
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, tuple[asyncio.TimerHandle, float]] = {}
        self._latest: int | None = None  # the call that was written last, if nothing was after it
        self._unread: set[int] = set()  # calls that did not reach it
        self._streamed: dict[int, int] = {}  # call -> bytes of its answer so far
        self._load_timer: asyncio.TimerHandle | None = None
        self._load_left = 0.0
        self._load_since = 0.0
        self._load_started = 0.0
        self._frozen_at: float | None = None
        self._frozen_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment] # uvloop's transports are not asyncio subclasses

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ConnectionError):  # a socket says so when it is closed with something in it
            self._latest_unread()
        self._transport = None

    def _latest_unread(self) -> None:
        if self._latest in self._calls:
            self._unread.add(self._latest)

    # ---- commands ------------------------------------------------------------------------------------------

    @property
    def snapshot_refused(self) -> str:
        """Why it was loaded plainly although it was told of a snapshot, or ""."""
        said = self.details.get("snapshot")
        return str(said.get("refused", "")) if self.restoring and isinstance(said, dict) else ""

    def go(self, level: Level, *, asked: float, spec: dict[str, object]) -> None:
        """Tell it what it is; `asked`: when its load was asked for (time.monotonic()); `spec`: what it is told
        beyond and instead of what its revision says."""
        revision = self.revision
        told = {
            "function": f"{revision.namespace}/{revision.name}",
            "package": self.package,
            "style": str(revision.style),
            "entry": revision.entry,
            "level": int(level),
            "modules": list(revision.modules),
            "params": revision.params,
            "sample": revision.sample,
            "sample_type": revision.sample_type,
            "concurrency": revision.concurrency,
            "timeout_s": revision.timeout_s,
            "max_answer": revision.max_answer,
            "threads": revision.threads,
            "declared": list(revision.declared),
            **spec,
        }
        if revision.batch is not None:
            told["batch"] = msgspec.to_builtins(revision.batch)
        if revision.inputs or revision.outputs:
            told["tensors"] = msgspec.to_builtins({"inputs": revision.inputs, "outputs": revision.outputs})
        self.wanted = level
        self.warming = bool(told["sample"])
        self.restoring = "snapshot" in spec
        self._write(frames.encode(frames.GO, 0, told))
        self._start_load(asked)

    def born(self, *, asked: float) -> None:
        """It is a clone: it knows what it is and says that it is ready."""
        self.wanted = Level.LOADED
        self._start_load(asked)

    def lift(self, level: Level) -> None:
        self.wanted = level
        self._write(frames.encode(frames.RAISE, 0, {"level": int(level)}))
        self._start_load(time.monotonic())

    def invoke(
        self, request: int, activation: str, content_type: str, body: bytes, *, traceparent: str = ""
    ) -> None:
        timeout = self.revision.timeout_s
        timer = self._loop.call_later(timeout, self._too_long, request)
        self._calls[request] = (timer, time.perf_counter())
        told = {"type": content_type, "activation": activation}
        if traceparent:
            told["traceparent"] = traceparent
        meta = _json(told)
        if self._transport is None:  # it is dying; its end is not known here yet
            self._unread.add(request)
            return
        self._transport.write(frames.encode(frames.CALL, request, meta, body))
        self._latest = request
        self.served += 1

    @property
    def busy(self) -> bool:
        return self.loading or bool(self._calls)

    def cancel(self, request: int) -> None:
        if request in self._calls:
            self._write(frames.encode(frames.CANCEL, request))

    def freezing(self) -> None:
        """Frozen time counts neither as load time nor towards the limit."""
        self._frozen_at = time.monotonic()
        if self._load_timer is not None:
            self._load_timer.cancel()
            self._load_timer = None
            self._load_left -= self._frozen_at - self._load_since

    def thawed(self) -> None:
        if self._frozen_at is not None:
            if self.loading:
                self._frozen_s += time.monotonic() - self._frozen_at
                self._arm_load()
            self._frozen_at = None

    def close(self) -> tuple[int, ...]:
        """Its process is gone. Returns the calls that it had not read, those that are known."""
        if self._transport is not None and _unread(self._transport):
            self._latest_unread()
        unread = tuple(sorted(self._unread.intersection(self._calls)))
        request = next(iter(self._calls)) if len(self._calls) == 1 and not unread else None
        for timer, _ in self._calls.values():
            timer.cancel()
        self._calls.clear()
        if self._load_timer is not None:
            self._load_timer.cancel()
        if logs := self.output.take():
            self._report(Logged(revision=self.revision.id, instance=self.id, logs=logs, request=request))
        self.output.close()
        if self._transport is not None:
            self._transport.close()
        return unread

    def _write(self, data: bytes) -> None:
        self._latest = None
        if self._transport is not None:
            self._transport.write(data)

    def _start_load(self, asked: float) -> None:
        self.loading = True
        self._frozen_s = 0.0
        self._load_started = asked
        self._load_left = self.revision.load_timeout_s
        self._arm_load()

    def _arm_load(self) -> None:
        self._load_since = time.monotonic()
        self._load_timer = self._loop.call_later(max(self._load_left, 0.0), self._load_too_long)

    def _load_too_long(self) -> None:
        limit = self.revision.load_timeout_s
        self._expire(f"its load passed the time limit of {limit:g} s", "timed_out", None)

    def _too_long(self, request: int) -> None:
        if request in self._calls:
            limit = self.revision.timeout_s
            self._expire(f"killed at its time limit of {limit:g} s", "timed_out", request)

    # ---- frames from the instance: hostile until proven otherwise ------------------------------------------

    def data_received(self, data: bytes) -> None:
        try:
            for kind, request, meta, body in self._decoder.feed(data):
                self._frame(kind, request, {key: _text(value) for key, value in meta.items()}, body)
        except (ValueError, KeyError, TypeError) as error:
            self._expire(f"it broke the protocol: {error}", "instance_crashed", None)

    def _frame(self, kind: int, request: int, meta: dict[str, Any], body: bytes) -> None:
        if kind == frames.RESULT or kind == frames.ERROR:
            content_type = _content_type(meta.get("type", "application/json")) if kind == frames.RESULT else ""
            call = self._calls.pop(request, None)
            if call is None:
                return  # nobody asked (any more)
            call[0].cancel()
            self._streamed.pop(request, None)
            seconds = _sane(meta.get("s"), time.perf_counter() - call[1])
            if kind == frames.RESULT:
                self._report(
                    Answered(
                        request=request,
                        instance=self.id,
                        inference_s=seconds,
                        content_type=content_type,
                        body=body,
                        logs=self.output.take(),
                    )
                )
            else:
                self._report(
                    Answered(
                        request=request,
                        instance=self.id,
                        inference_s=seconds,
                        problem=self._problem(meta),
                        logs=self.output.take(),
                    )
                )
        elif kind == frames.PART:
            self._part(request, _content_type(meta.get("type", "")), body)
        elif kind == frames.READY:
            self._ready(meta)
        elif kind == frames.FAILED and not self.loading:
            self._expire(str(meta.get("error", "it gave up")), "instance_crashed", None)
        elif kind == frames.FAILED:
            self._loaded()
            phase, error = str(meta.get("phase", "load")), str(meta.get("error", ""))
            trace = str(meta.get("trace", ""))
            if logs := self.output.take():
                self._report(Logged(revision=self.revision.id, instance=self.id, logs=logs))
            reason = f"{error}\n{trace}" if trace else error
            self.failure = InstanceFailed(instance=self.id, phase=phase, reason=reason)
            self._expire(reason, "load_failed", None)
        else:
            raise ValueError(f"frame of kind {kind}")

    def _part(self, request: int, kind: str, body: bytes) -> None:
        if request not in self._calls:
            return
        sent = self._streamed[request] = self._streamed.get(request, 0) + len(body)
        if sent > self.revision.max_answer:
            raise ValueError(f"it streamed {sent} bytes, over the limit of {self.revision.max_answer}")
        self._report(Part(request=request, instance=self.id, content_type=kind, body=body))

    def _ready(self, meta: dict[str, Any]) -> None:
        if not self.loading:
            raise ValueError("ready, but nothing was being loaded")
        self._loaded()
        self.details = meta
        if logs := self.output.take():
            self._report(Logged(revision=self.revision.id, instance=self.id, logs=logs))
        # It cannot know when it was frozen: take that time off the load, then the import, then the warm-up.
        off = self._frozen_s
        times = {}
        elapsed = time.monotonic() - self._load_started
        for key in ("load_s", "import_s", "warmup_s"):
            measured = _sane(meta.get(key), elapsed)
            times[key] = max(0.0, measured - off)
            off = max(0.0, off - measured)
        times_all = sum(times.values()) + min(_sane(meta.get("aside_s", 0.0), elapsed), elapsed)
        start_s = max(0.0, elapsed - self._frozen_s - times_all)
        level = Level(int(meta["level"]))
        self._report(InstanceReady(instance=self.id, level=level, origin=self.origin, start_s=start_s, **times))

    def _loaded(self) -> None:
        self.loading = False
        if self._load_timer is not None:
            self._load_timer.cancel()
            self._load_timer = None

    def _problem(self, meta: dict[str, Any]) -> dict[str, Any]:
        function = f"{self.revision.namespace}/{self.revision.name}"
        phase, error = str(meta.get("phase", "inference")), str(meta.get("error", ""))
        trace = str(meta.get("trace", ""))
        if meta.get("bad_input"):
            hint = "send what the function takes: JSON with content type application/json, else any bytes"
            return BadInput(error, function=function, phase=phase, hint=hint).problem()
        hint = f"`instainfer logs {self.revision.name}` shows what it printed"
        return InvocationFailed(error, function=function, phase=phase, detail=trace, hint=hint).problem()


def _unread(transport: asyncio.Transport) -> bool:
    """Whether the other end was closed before it had read all that was written."""
    if transport.get_write_buffer_size():
        return True
    sock = transport.get_extra_info("socket")
    if sock is None:  # a transport that was closed here, or lost, shows none
        return False
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    except OSError:  # it is closed here already
        return False


def _text(said: Any) -> Any:
    """Text that can be sent on: JSON lets lone surrogates through, UTF-8 does not."""
    return said.encode("utf-8", "replace").decode() if isinstance(said, str) else said


def _content_type(said: Any) -> str:
    """It becomes a header as it is: with a line break in it whatever follows would be headers too, or the answer
    to somebody else's request."""
    if not isinstance(said, str) or len(said) > LONGEST_TYPE or not said.isprintable() or not said.isascii():
        raise ValueError(f"a content type of {str(said)[:LONGEST_TYPE]!r}")
    return said


def _sane(said: Any, elapsed: float) -> float:
    """What an instance says it took, if it can be true; else what passed here."""
    return float(said) if isinstance(said, int | float) and 0.0 <= said <= elapsed else elapsed
