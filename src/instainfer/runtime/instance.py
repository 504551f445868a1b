"""The process that runs one function: import, load, warm up, then answer requests until it is told to stop.

It begins as an interpreter of its own (boot.py), as a fork of a library zygote (zygote.py), or as a fork of a
template: another process of its function that has loaded and in which nobody's request ever runs.

Standard library only, on the function's own Python. User code runs in the main thread; only an instance with
concurrency above 1 has others. In those, output cannot be told apart by request: it belongs to the instance's
log unless one request ran alone.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
import signal
import stat
import sys
import time
from _socket import AF_UNIX, SOCK_SEQPACKET, socket
from _thread import allocate_lock

from . import fastpaths, forker, frames, manager, payloads, styles, timing
from .channel import Channel, out_of_the_way
from .traces import describe, trace

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, NoReturn

    from . import tensors

    Call = tuple[int, str, bytes]  # request, content type, body

IMPORTED = 1
LOADED = 2
CONTROL = 4  # the descriptor of a template's control socket
WARMUP = -1  # in place of a request number: the call with the sample
LATE = (-2, "", b"")  # in place of a request: none came in time
TIMES = ("import_s", "load_s", "aside_s", "warmup_s", "first_s")
ONE_VALUE = (str, bytes, bytearray, dict)  # what has elements and yet is no batch of them
LONGEST_SUMMARY = 200  # characters of what the sample gave


def main(fd: int, *, bare: frozenset | None = None) -> NoReturn:
    """Serve on the stream socket `fd`; ends the process. `bare`: it was forked from a zygote, which had these
    modules before it imported any of others."""
    channel = Channel(fd)
    kind, _, spec, _ = channel.take()
    if kind != frames.GO:
        os._exit(1)
    _prepare(spec)
    if bare is not None:
        _forget_shadowed(spec["package"], bare)
        if spec.get("threads", 1) > 1:  # a zygote's libraries were imported with one each
            from . import threads

            threads.set_counts(spec["threads"])
    Session(channel, spec).run()
    # Not sys.exit: it would wait for threads that the function left behind, and taking a large library apart
    # lasts longer than the kernel needs to end the process.
    atexit._run_exitfuncs()
    flush()
    os._exit(0)


def _own_scratch() -> None:
    """Make HOME a directory that is this uid's alone. Where a co-resident got there first (anyone may write to
    /tmp), take another name instead of its directory."""
    home = os.environ.get("HOME", "")
    if not home.startswith("/tmp/"):
        return
    try:
        os.mkdir(home, 0o700)
    except FileExistsError:
        found = os.lstat(home)
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            home = home + "-" + os.urandom(8).hex()
            os.mkdir(home, 0o700)
            os.environ["HOME"] = os.environ["TMPDIR"] = home


def _prepare(spec: dict) -> None:
    """Make the process look as if `python <entry>` had been started in the package."""
    _own_scratch()
    package, entry = spec["package"], spec["entry"]
    if spec["style"] != styles.SCRIPT:
        entry = entry.partition(":")[0].replace(".", "/") + ".py"
        sys.modules["__main__"] = type(sys)("__main__")  # not this runtime's: multiprocessing looks at it
    sys.path.insert(0, package)
    sys.argv = [os.path.join(package, entry)]
    sys.dont_write_bytecode = True  # the package is read-only
    if os.access(package, os.X_OK):
        os.chdir(package)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the server's terminal is the server's
    faulthandler.enable()  # so that a native crash says in the log where it was
    for stream in (sys.stdout, sys.stderr):
        # By line, so that a crash loses none of them; and no print fails for want of a locale.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _forget_shadowed(package: str, bare: frozenset) -> None:
    """Modules that a zygote has and this package has under the same name: here the package's comes first. What
    every interpreter has before it comes to a package (`bare`) is not shadowed by one."""
    for name in _importable(package) - bare:
        found = sys.modules.get(name)
        if not (getattr(found, "__file__", None) or getattr(found, "__path__", None)):
            continue  # not there, or built in: no file comes before those
        for known in list(sys.modules):
            if known == name or known.startswith(name + "."):
                del sys.modules[known]


def _importable(package: str) -> set:
    """Names of the modules in a directory. A model's file or folder may well have the name of a library."""
    from _imp import extension_suffixes

    suffixes = (".py", *extension_suffixes())
    names = set()
    for entry in os.listdir(package):
        suffix = next((suffix for suffix in suffixes if entry.endswith(suffix)), "")
        if suffix:
            names.add(entry[: -len(suffix)])
        elif any(os.path.exists(os.path.join(package, entry, "__init__" + suffix)) for suffix in suffixes):
            names.add(entry)
    return names


def flush() -> None:
    """What was printed reaches the pipes before the frame that ends its request does."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001  # a tenant may have put anything there, or closed it
            continue


class Session:
    """One instance's life on its channel.

    Whatever runs the function asks `take` for the next request and gives its outcome to `answer`, `error` or
    `refuse`. The first `take` ends the load; where there is a sample, that is what it returns, and READY is
    said only after it was answered.
    """

    clock = staticmethod(time.monotonic)

    def __init__(self, channel: Channel, spec: dict) -> None:
        self._channel = channel
        self._spec = spec
        self._params: dict = spec.get("params") or {}
        self._limit: int = spec.get("max_answer") or frames.LARGEST
        self._concurrency: int = spec.get("concurrency") or 1
        self._imports = timing.Imports(spec["package"])
        self._began = 0.0  # the step under way
        self._times: dict[str, float] = {}
        self._summary = ""
        self._digest = ""
        self._loaded = False
        self._ready = False
        self._whisk = "__OW_ACTION_NAME" in os.environ
        self._wait = _Waiter(threaded=self._concurrency > 1)
        self._fast = fastpaths.FastPaths(spec)

    def run(self) -> None:
        """From nothing to the STOP. Ends the process where anything before READY fails."""
        self._fast.begin()
        self._begin_step()
        self._import_recorded()
        if self._spec.get("level", LOADED) < LOADED:
            self._imports.stop()
            self._say_ready(IMPORTED, import_s=self.clock() - self._began)
            if not self._raised():
                return
            self._begin_step()
        spec = self._spec
        try:
            if spec["style"] == styles.SCRIPT:
                styles.run_script(os.path.join(spec["package"], spec["entry"]), self, self._params)
                return
            function = self._fast.load(self._wait)
        except BaseException as error:  # noqa: BLE001  # whatever a tenant's code raises is reported
            self.fail(self._phase(error), error)
        if self._spec.get("batch"):
            self._serve_batches(function)
        elif self._concurrency > 1:
            self._serve_many(function)
        else:
            call = self.take()
            while call is not None:
                self._handle(function, call)
                call = self.take()

    # ---- what runs the function talks to these ------------------------------------------------------

    def take(self) -> Call | None:
        """The next request, or None when there will be no more."""
        if not self._ready:
            sample = self._before_ready()
            if sample is not None:
                return sample
        return self._next()

    def _next(self, until: float | None = None) -> Call | None:
        """The next request of the channel; LATE when `until` passes before something comes."""
        while True:
            if until is not None and not self._channel.comes(until - self.clock()):
                return LATE
            kind, request, meta, body = self._channel.take()
            if kind == frames.CALL:
                if "traceparent" in meta:
                    os.environ["TRACEPARENT"] = meta["traceparent"]
                if self._whisk:
                    self._tell(meta)
                return request, meta.get("type", ""), body
            if kind == frames.STOP:
                return None
            if kind == frames.RAISE:  # it is as high as it gets
                self._say_ready(LOADED)

    def _tell(self, meta: dict) -> None:
        """What an OpenWhisk action reads from its environment. Calls side by side overwrite each other's, as
        there."""
        os.environ["__OW_ACTIVATION_ID"] = meta.get("activation", "")
        os.environ["__OW_DEADLINE"] = str(int((time.time() + self._spec.get("timeout_s", 60.0)) * 1000))

    def answer(
        self, request: int, value: object, seconds: float, encode: payloads.Encode = payloads.encode
    ) -> None:
        """`encode`: of payloads, or of the request that this is the answer to, where that was one of tensors."""
        try:
            content_type, body = encode(value, self._limit)
        except payloads.BadPayload as error:  # it asked for what cannot be given
            self.refuse(request, error)
        except Exception as error:  # noqa: BLE001  # BadAnswer, or what an object's own tolist() raised
            self.error(request, error, seconds)
        else:
            self._finish(frames.RESULT, request, {"type": content_type, "s": seconds}, body)

    def answer_json(self, request: int, text: str, seconds: float) -> None:
        """`answer` with what is JSON already."""
        body = text.encode("utf-8", "backslashreplace")
        if len(body) > self._limit:
            self.error(request, payloads.too_large(len(body), self._limit), seconds)
        else:
            self._finish(frames.RESULT, request, {"type": payloads.JSON, "s": seconds}, body)

    def error(self, request: int, error: BaseException, seconds: float) -> None:
        """The request failed by the function's doing."""
        meta = {"phase": "inference", "error": describe(error), "trace": trace(error), "s": seconds}
        self._finish(frames.ERROR, request, {**meta, "bad_input": False})

    def refuse(self, request: int, error: payloads.BadPayload) -> None:
        """The request failed before the function saw it."""
        meta = {"phase": "request", "error": describe(error), "trace": "", "s": 0.0, "bad_input": True}
        self._finish(frames.ERROR, request, meta)

    def fail(self, phase: str, error: BaseException) -> NoReturn:
        """The instance cannot go on."""
        self._fail({"phase": phase, "error": describe(error), "trace": trace(error)})

    def tensors(self, content_type: str, body: bytes) -> tensors.Request | None:
        """The request, where it is one of tensors. Raises BadPayload."""
        if not content_type.startswith(payloads.TENSORS):
            return None
        from . import tensors  # only functions that are sent some pay for it

        return tensors.Request(content_type, body, self._spec.get("tensors"))

    # ---- steps --------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        self._began = self.clock()
        self._imports.start()

    def _import_recorded(self) -> None:
        """What an earlier load of this function imported. A module that is not there any more is none of
        ours to complain about: the function does, if it needs it."""
        for name in self._spec.get("modules") or ():
            try:
                __import__(name)
            except BaseException:  # noqa: BLE001  # a library may raise what it likes
                continue

    def _raised(self) -> bool:
        """Wait at level 1; whether to go on."""
        while True:
            kind, _, meta, _ = self._channel.take()
            if kind == frames.STOP:
                return False
            if kind == frames.RAISE and meta.get("level", LOADED) >= LOADED:
                return True

    def _before_ready(self) -> Call | None:
        """Load's end, then READY; between the two the sample, where there is one."""
        if not self._loaded:
            self._loaded = True
            if self._spec.get("tensors"):
                from . import tensors

                tensors.library()  # now, not in the first request
            now = self.clock()
            imports = self._imports.seconds
            self._times = {"import_s": imports, "load_s": max(now - self._began - imports, 0.0)}
            self._fast.loaded()
            self._times["aside_s"] = self.clock() - now
            if self._spec.get("sample"):
                self._began = self.clock()
                return WARMUP, *self._sample()
        # Only now: libraries import more of themselves in their first call, and those are to be recorded.
        self._imports.stop()
        self._ready = True
        if self._spec.get("template") and self._be_template():
            self._ready = False  # the first touch of each page is a fault once more
            self._began = self.clock()
            return WARMUP, *self._sample()
        self._say_ready(LOADED, **self._times)
        return None

    def _be_template(self) -> bool:
        """Say that it is ready, then fork further instances until told to end. Returns in each of those only:
        whether it is to make the call with the sample, as nobody waits for it."""
        reason = self._fast.unforkable()
        if reason:
            self._fail({"phase": "template", "error": reason, "trace": ""})
        self._say_ready(LOADED, **self._times)
        gc.freeze()  # a collection in a clone would else touch, and so copy, all of the model's objects
        try:
            forker.Forker(socket(AF_UNIX, SOCK_SEQPACKET, 0, fileno=out_of_the_way(CONTROL)), {}).serve()
        except manager.Born as born:
            _own_scratch()
            self._channel = Channel(3)
            self._spec["template"] = False
            self._times = {}
            return bool(born.message.get("warm") and self._spec.get("sample"))
        os._exit(0)

    def _sample(self) -> tuple[str, bytes]:
        name = self._spec["sample"]
        try:
            with open(os.path.join(self._spec["package"], name), "rb") as file:
                body = file.read()
        except OSError as error:
            self.fail("warmup", styles.Unusable("the sample %s cannot be read: %s" % (name, error.strerror)))
        content_type = self._spec.get("sample_type") or ""
        if not content_type:
            kinds = {".json": payloads.JSON, ".txt": "text/plain"}
            content_type = kinds.get(os.path.splitext(name)[1].lower(), payloads.BYTES)
        return content_type, body

    def _warmed(self, kind: int, meta: dict, body: bytes) -> None:
        if kind == frames.ERROR:
            self._fail({"phase": "warmup", "error": meta["error"], "trace": meta["trace"]})
        self._times["warmup_s"] = self.clock() - self._began
        self._times["first_s"] = meta["s"]
        if self._spec.get("digest"):
            from hashlib import sha256  # there since `FastPaths.begin`

            self._digest = sha256(meta["type"].encode() + b"\n" + body).hexdigest()
        if meta["type"] == payloads.BYTES:
            self._summary = "%d bytes" % len(body)
        else:
            self._summary = " ".join(body[: LONGEST_SUMMARY * 4].decode("utf-8", "replace").split())

    def _say_ready(self, level: int, **times: float) -> None:
        meta: dict[str, Any] = {"level": level, **dict.fromkeys(TIMES, 0.0)}
        meta.update(times)
        meta.update(modules=self._imports.modules, tasks=forker.tasks(), answer=self._summary[:LONGEST_SUMMARY])
        meta.update(digest=self._digest, **self._fast.report())
        flush()
        self._channel.send(frames.READY, 0, meta)

    def _phase(self, error: BaseException) -> str:
        """What failed: an import (a library's own trouble, a missing module, no syntax) or the load."""
        if isinstance(error, styles.Unusable):
            return error.phase
        imports = isinstance(error, (ImportError, SyntaxError)) or error is self._imports.failure
        return "import" if imports else "load"

    def _fail(self, meta: dict) -> NoReturn:
        flush()
        self._channel.send(frames.FAILED, 0, meta)
        os._exit(1)

    # ---- requests of module and class style ---------------------------------------------------------

    def _decoded(self, call: Call) -> tuple[object, payloads.Encode] | None:
        """The payload, and how its answer is encoded; None for one that was refused."""
        request, content_type, body = call
        try:
            tensors = self.tensors(content_type, body)
            if tensors is None:
                return payloads.decode(content_type, body, self._params), payloads.encode
            return {**self._params, **tensors.arrays()}, tensors.encode
        except payloads.BadPayload as error:
            self.refuse(request, error)
            return None

    def _call(self, function: Callable[[Any], Any], payload: object) -> Any:
        value = function(payload)
        return self._wait(value) if hasattr(type(value), "__await__") else value

    def _handle(self, function: Callable[[Any], Any], call: Call) -> None:
        decoded = self._decoded(call)
        if decoded is None:
            return
        payload, encode = decoded
        clock = self.clock
        began = clock()
        try:
            value = self._call(function, payload)
        except BaseException as error:  # noqa: BLE001  # SystemExit too: it ends the call, not the instance
            self.error(call[0], error, clock() - began)
        else:
            if hasattr(type(value), "__next__") or hasattr(type(value), "__anext__"):
                self._stream(call[0], value, began)
            else:
                self.answer(call[0], value, clock() - began, encode)

    def _stream(self, request: int, values: Any, began: float) -> None:
        """What a generator gives goes out as it comes. Whether anybody still wants it is looked at in between,
        where one request runs at a time."""
        clock = self.clock
        left = self._limit
        kind = ""
        try:
            for value in values if hasattr(values, "__next__") else self._wait.each(values):
                kind = kind or payloads.kind_of_part(value)
                body = payloads.encode_part(kind, value)
                left -= len(body)
                if left < 0:
                    raise payloads.too_large(self._limit - left, self._limit)
                if request == WARMUP:
                    continue
                flush()
                self._channel.send(frames.PART, request, {"type": kind}, body)
                if self._concurrency == 1 and self._cancelled(request):
                    values.close()
                    break
        except BaseException as error:  # noqa: BLE001  # as in _handle
            self.error(request, error, clock() - began)
        else:
            self._finish(frames.RESULT, request, {"type": kind or payloads.BYTES, "s": clock() - began})

    def _cancelled(self, request: int) -> bool:
        while self._channel.comes(0):
            kind, of, _, _ = self._channel.take()
            if kind == frames.CANCEL and of == request:
                return True
            if kind == frames.STOP:
                os._exit(0)
            if kind == frames.RAISE:
                self._say_ready(LOADED)
        return False

    def _serve_batches(self, function: Callable[[Any], Any]) -> None:
        """What comes while the first waits is one call, with a list. A batch of one is a list of one."""
        most, wait = self._spec["batch"]["max"], self._spec["batch"]["wait_s"]
        call = self.take()
        while call is not None:
            calls = [call]
            until = self.clock() + wait
            while call is not None and call[0] >= 0 and len(calls) < most:
                call = self._next(until)
                if call is not None and call[0] >= 0:
                    calls.append(call)
            self._handle_batch(function, calls)
            if call is not None:
                call = self.take()

    def _handle_batch(self, function: Callable[[Any], Any], calls: list[Call]) -> None:
        """One that cannot be decoded is refused alone; what the call raises, all are told. An element that is an
        exception is that request's error."""
        decoded = [(call[0], both) for call in calls if (both := self._decoded(call)) is not None]
        if not decoded:
            return
        clock = self.clock
        began = clock()
        try:
            given = self._call(function, [payload for _, (payload, _) in decoded])
            if isinstance(given, ONE_VALUE) or not hasattr(given, "__iter__"):
                raise payloads.BadAnswer(
                    "a batch of %d was answered with a %s; return a list with one for each"
                    % (len(decoded), type(given).__name__)
                )
            values = list(given)
            if len(values) != len(decoded):
                raise payloads.BadAnswer(
                    "a batch of %d was answered with %d values; return a list with one for each"
                    % (len(decoded), len(values))
                )
        except BaseException as error:  # noqa: BLE001  # as in _handle
            values = [error] * len(decoded)
        seconds = clock() - began
        for (request, (_, encode)), value in zip(decoded, values):  # noqa: B905  # `strict` is of Python 3.10
            if isinstance(value, BaseException):
                self.error(request, value, seconds)
            else:
                self.answer(request, value, seconds, encode)

    def _serve_many(self, function: Callable[[Any], Any]) -> None:
        """Threads that each take a request, handle it and come back: who handles also reads, so no queue."""
        import threading

        turn = threading.Lock()
        stopped = False

        def serve() -> None:
            nonlocal stopped
            while True:
                with turn:
                    call = None if stopped else self.take()
                    if call is None:
                        stopped = True
                        return
                self._handle(function, call)

        if self._spec.get("sample"):
            sample = self.take()
            assert sample is not None, "the first take returns the sample"
            self._handle(function, sample)
        threads = [threading.Thread(target=serve, name="request-%d" % n) for n in range(self._concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _finish(self, kind: int, request: int, meta: dict, body: bytes = b"") -> None:
        flush()
        if request == WARMUP:
            self._warmed(kind, meta, body)
        else:
            self._channel.send(kind, request, meta, body)


class _Waiter:
    """Runs what async functions return, on one event loop for the instance's whole life: what the function
    keeps on it (sessions, connections) stays usable. With threads the loop has its own and runs always;
    without, it runs while a request does."""

    def __init__(self, *, threaded: bool) -> None:
        self._threaded = threaded
        self._lock = allocate_lock()
        self._loop: Any = None

    def __call__(self, awaitable: Awaitable[Any]) -> Any:
        import asyncio  # only async functions pay for it

        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                if self._threaded:
                    import threading

                    threading.Thread(target=self._loop.run_forever, name="event-loop", daemon=True).start()
                else:
                    asyncio.set_event_loop(self._loop)
        if self._threaded:
            return asyncio.run_coroutine_threadsafe(_result(awaitable), self._loop).result()
        return self._loop.run_until_complete(_result(awaitable))

    def each(self, values: Any) -> Any:
        """An async generator as an ordinary one."""
        while True:
            try:
                value = self(values.__anext__())
            except StopAsyncIteration:
                return
            yield value


async def _result(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
