"""The Open Inference Protocol v2 face, with Triton's repository, statistics and binary tensors: /v2.

Raw ASGI, as the plain face is: a request's body travels to the instance as it came, with a content type that says
where its header ends. Nothing here parses it; the runtime does (runtime/tensors.py), where numpy is.

A model is a function. Its name is that of a function of the caller's namespace (the owner's: `default`), or
NAMESPACE/NAME. It is ready when a request would be served; whether it is in memory is told by the index.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from instainfer import __version__
from instainfer.books import Ticket
from instainfer.controller import Controller
from instainfer.core import events as ev
from instainfer.errors import (
    BadInput,
    Conflict,
    InstaInferError,
    InvocationFailed,
    LoadFailed,
    NotFound,
    Stopping,
    TooLarge,
    WrongMethod,
)
from instainfer.gateway import present
from instainfer.gateway.access import Principal, who_asks
from instainfer.gateway.health import Health
from instainfer.gateway.invoke import ClientGone, Invoke, Response, read
from instainfer.gateway.problems import AGAIN, render
from instainfer.model import FunctionSpec, Role, Tensor
from instainfer.runtime.payloads import TENSORS

PREFIX = "/v2"
HOME = "default"  # the namespace whose functions the owner calls by their bare names
HEADER = b"inference-header-content-length"
PLATFORM = "instainfer"
_OF_ERRORS = (b"retry-after", AGAIN[0])
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics")
ALIGNED = 64  # where in its body the first binary tensor begins: so that no library need copy it
LARGEST_WISH = 1 << 20  # bytes of a body that says no more than what to load or to list
LOOK_S = 0.02  # between two looks at a load

_VERBS = frozenset({"infer", "ready", "stats", "config"})
_encode = msgspec.json.Encoder().encode


class Model(NamedTuple):
    """What a path is about: a function by its key, as it was called there."""

    name: str
    namespace: str
    function: str
    version: str  # "" for the current one
    verb: str  # "" for the metadata


class Inference:
    def __init__(self, hot: Invoke, health: Health) -> None:
        self._hot = hot
        self._health = health
        self._controller: Controller = hot.controller

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            status, headers, body = await self._answer(scope, receive)
        except InstaInferError as refused:
            status, headers, body = failed(refused)
        except ClientGone:
            return
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})

    async def _answer(self, scope: Any, receive: Any) -> Response:
        who = who_asks(scope)
        parts = [part for part in scope["path"][len(PREFIX) :].split("/") if part]
        if not scope["path"].startswith(PREFIX + "/") and scope["path"] != PREFIX:
            raise _nowhere(scope["path"])
        known: dict[str, Callable[[], Awaitable[Response]]] = {
            "": self._server,
            "health/live": lambda: self._healthy(live=True),
            "health/ready": lambda: self._healthy(live=False),
            "models": lambda: self._models(who),
            "models/stats": lambda: self._statistics(who, None),
        }
        found = known.get("/".join(parts))
        if found is not None:
            _need(scope, "GET")
            return await found()
        if parts == ["repository", "index"]:
            _need(scope, "POST")
            return await self._index(who, _wish(await self._body(scope, receive, LARGEST_WISH)))
        if parts[:2] == ["repository", "models"] and parts[-1] in ("load", "unload") and len(parts) in (4, 5):
            _need(scope, "POST")
            model = _model(who, parts[2:-1], verb=parts[-1])
            wish = _wish(await self._body(scope, receive, LARGEST_WISH))
            return await (self._load if parts[-1] == "load" else self._unload)(who, model, wish)
        if parts[:1] == ["models"]:
            return await self._of(who, _parsed(who, parts[1:]), scope, receive)
        raise _nowhere(scope["path"])

    async def _of(self, who: Principal, model: Model, scope: Any, receive: Any) -> Response:
        _need(scope, "POST" if model.verb == "infer" else "GET")
        spec = self._find(who, model)
        if model.verb == "infer":
            return await self._infer(model, spec, scope, receive)
        if model.verb == "ready":
            return _said({"name": model.name, "ready": True}) if not self._hot.stopping else failed(_stopping())
        if model.verb == "stats":
            return await self._statistics(who, (model, spec))
        return _said(_config(model.name, spec) if model.verb == "config" else _metadata(model.name, spec))

    # ---- the server -----------------------------------------------------------------------------------------

    async def _server(self) -> Response:
        return _said({"name": PLATFORM, "version": __version__, "extensions": list(EXTENSIONS)})

    async def _healthy(self, *, live: bool) -> Response:
        ready = bool((await self._health.check())["ready"])
        status, headers, body = _said({"live": True, "ready": ready}, 200 if ready or live else 503)
        return status, [*headers, *([(b"retry-after", b"1")] if status == 503 else [])], body

    async def _models(self, who: Principal) -> Response:
        return _said({"models": [_called(who, spec) for spec in self._seen(who)]})

    async def _index(self, who: Principal, wish: dict[str, Any]) -> Response:
        rows = []
        for spec in self._seen(who):
            level = self._level(spec.key)
            state = {"preloaded": "READY", "warm": "READY", "loading": "LOADING"}.get(level, "UNAVAILABLE")
            reason = "" if state != "UNAVAILABLE" else f"{level}: not in memory, the next request loads it"
            if state == "READY" or not wish.get("ready"):
                rows.append(
                    {"name": _called(who, spec), "version": str(spec.version), "state": state, "reason": reason}
                )
        return _said(rows)

    # ---- by hand --------------------------------------------------------------------------------------------

    async def _load(self, who: Principal, model: Model, wish: dict[str, Any]) -> Response:
        """Into idle memory; answered when it is there."""
        who.check(model.namespace, Role.DEPLOY)
        spec = self._find(who, model)
        if wish.get("parameters"):
            raise BadInput(
                "a load takes no parameters here: configuration and files are deployed",
                hint="use `instainfer deploy`",
            )
        answer = await self._controller.ask(lambda token: ev.PreloadRequested(token=token, function=spec.key))
        if not answer.ok:
            raise Conflict(
                answer.message, function=spec.key, hint="`instainfer ps` shows the idle memory there is"
            )
        level = self._level(spec.key)
        while level == "loading":  # which has a time limit
            await asyncio.sleep(LOOK_S)
            level = self._level(spec.key)
        if level not in ("preloaded", "warm"):
            raise LoadFailed(
                f"{model.name} was not loaded: its load failed, or its memory was needed",
                function=spec.key,
                phase="load",
                hint=f"`instainfer logs {spec.name}` shows what it printed",
            )
        return _said({})

    async def _unload(self, who: Principal, model: Model, wish: dict[str, Any]) -> Response:
        who.check(model.namespace, Role.DEPLOY)
        spec = self._find(who, model)
        await self._controller.ask(lambda token: ev.OffloadRequested(token=token, function=spec.key))
        return _said({})

    # ---- statistics -----------------------------------------------------------------------------------------

    async def _statistics(self, who: Principal, one: tuple[Model, FunctionSpec] | None) -> Response:
        """Since the server started, of all faces."""
        asked = [(one[0].name, one[1])] if one else [(_called(who, spec), spec) for spec in self._seen(who)]
        spent = self._controller.books.metrics.spent
        return _said({"model_stats": [_stats(name, spec, spent.get(spec.key)) for name, spec in asked]})

    # ---- inference ------------------------------------------------------------------------------------------

    async def _infer(self, model: Model, spec: FunctionSpec, scope: Any, receive: Any) -> Response:
        if self._hot.stopping:
            raise _stopping()
        header, encoding = _wishes(scope["headers"])
        body = await self._body(scope, receive, self._hot.max_body, header if not encoding else None)
        kind = f"{TENSORS}; model={model.name}; version={spec.version}"
        if encoding:
            kind += f"; encoding={encoding}; limit={self._hot.max_body}"
        if header is not None:
            kind += f"; header={header + (0 if encoding else -header % ALIGNED)}"
        ticket, answered = self._hot.begin(spec, kind, body, scope["headers"])
        if not answered.done():
            await self._hot.wait(ticket, answered, receive)
        return self._response(ticket)

    def _response(self, ticket: Ticket) -> Response:
        status, headers, body = self._hot.response(ticket)
        told = [one for one in headers if one[0] not in (b"content-type", b"content-length")]
        error = ticket.error
        if error is None and ticket.answer is not None:
            size = _header_of(ticket.answer[0], len(body))
            if size is not None:
                if size < len(body):
                    told += [(b"content-type", b"application/octet-stream"), (HEADER, b"%d" % size)]
                else:
                    told.append((b"content-type", b"application/json"))
                return status, [*told, (b"content-length", b"%d" % len(body))], body
            error = InvocationFailed("the function's answer is not one of tensors", function=ticket.spec.key)
        assert error is not None
        status, headers, body = failed(error)
        return status, [*headers, *(one for one in told if one[0] not in _OF_ERRORS)], body

    async def _body(self, scope: Any, receive: Any, limit: int, header: int | None = None) -> bytes:
        """All of it, with blanks behind its header of `header` bytes up to a multiple of ALIGNED."""
        found = await read(scope, receive, limit)
        if found is None:
            raise _too_large(limit)
        parts: list[bytes | memoryview] = [*found]
        if header is not None:
            size = sum(map(len, parts))
            if header > size:
                raise BadInput(f"{HEADER.decode()} is {header}, and the body has {size} bytes")
            _pad(parts, header)
        return b"".join(parts)

    # ---- which function -------------------------------------------------------------------------------------

    def _find(self, who: Principal, model: Model) -> FunctionSpec:
        who.check(model.namespace)
        spec = self._controller.specs.get(f"{model.namespace}/{model.function}")
        if spec is None:
            raise NotFound(f"there is no model {model.name!r}", hint="`instainfer ls` shows what is deployed")
        if model.version not in ("", str(spec.version)):
            raise NotFound(f"version {model.version} of {model.name} does not serve: {spec.version} does")
        return spec

    def _seen(self, who: Principal) -> list[FunctionSpec]:
        return [spec for _, spec in sorted(self._controller.specs.items()) if who.sees(spec.namespace)]

    def _level(self, key: str) -> str:
        known = self._controller.platform.state.functions.get(key)
        return "cold" if known is None else present.level(known)


def failed(error: InstaInferError) -> Response:
    """An error in the protocol's words."""
    status, headers, _ = render(error)
    body = json.dumps({"error": error.message}, ensure_ascii=False).encode("utf-8", "replace")
    kept = [one for one in headers if one[0] in _OF_ERRORS]
    return status, [*_headers(body), *kept], body


# ---- what there is to tell ----------------------------------------------------------------------------------


def _metadata(name: str, spec: FunctionSpec) -> dict[str, Any]:
    return {
        "name": name,
        "versions": [str(spec.version)],
        "platform": PLATFORM,
        "inputs": [_tensor(one) for one in spec.inputs],
        "outputs": [_tensor(one) for one in spec.outputs],
    }


def _tensor(of: Tensor) -> dict[str, Any]:
    return {"name": of.name, "datatype": of.datatype, "shape": list(of.shape)}


def _config(name: str, spec: FunctionSpec) -> dict[str, Any]:
    """Triton's configuration, as far as there is one."""

    def shown(of: Tensor) -> dict[str, Any]:
        kind = "STRING" if of.datatype == "BYTES" else of.datatype
        return {"name": of.name, "data_type": f"TYPE_{kind}", "dims": list(of.shape)}

    return {
        "name": name,
        "platform": PLATFORM,
        "backend": "python",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 0,
        "input": [shown(one) for one in spec.inputs],
        "output": [shown(one) for one in spec.outputs],
    }


def _stats(name: str, spec: FunctionSpec, spent: Any) -> dict[str, Any]:
    def row(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": int(seconds * 1e9)}

    ok, bad = (spent.ok, spent.failed) if spent is not None else (0, 0)
    return {
        "name": name,
        "version": str(spec.version),
        "last_inference": int(spent.last * 1000) if spent is not None else 0,
        "inference_count": ok,
        "execution_count": ok,
        "inference_stats": {
            "success": row(ok, spent.ok_s if spent else 0.0),
            "fail": row(bad, spent.failed_s if spent else 0.0),
            "queue": row(ok + bad, spent.waited_s if spent else 0.0),
            "compute_input": row(0, 0.0),
            "compute_infer": row(ok, spent.inference_s if spent else 0.0),
            "compute_output": row(0, 0.0),
            "cache_hit": row(0, 0.0),
            "cache_miss": row(0, 0.0),
        },
        "batch_stats": [],
    }


# ---- paths and bodies ---------------------------------------------------------------------------------------


def _parsed(who: Principal, parts: list[str]) -> Model:
    """[NAMESPACE/]NAME[/versions/VERSION][/VERB]. Read from the end: a function of another namespace that has the
    name of a verb cannot be called here."""
    verb = parts[-1] if len(parts) > 1 and parts[-1] in _VERBS else ""
    rest = parts[:-1] if verb else parts
    version = ""
    if len(rest) > 2 and rest[-2] == "versions":
        version = rest[-1]
        rest = rest[:-2]
    return _model(who, rest, version, verb)


def _model(who: Principal, parts: list[str], version: str = "", verb: str = "") -> Model:
    if len(parts) not in (1, 2):
        raise _nowhere("/".join(("/v2/models", *parts)))
    namespace = parts[0] if len(parts) == 2 else who.namespace or HOME
    return Model("/".join(parts), namespace, parts[-1], version, verb)


def _called(who: Principal, spec: FunctionSpec) -> str:
    """What this caller calls it."""
    return spec.name if spec.namespace == (who.namespace or HOME) else spec.key


def _need(scope: Any, method: str) -> None:
    if scope["method"] != method and (method, scope["method"]) != ("GET", "HEAD"):
        raise WrongMethod(f"{scope['method']} is not how {scope['path']} is used: {method} is")


def _nowhere(path: str) -> NotFound:
    return NotFound(f"there is nothing at {path}", hint="the Open Inference Protocol v2 says what there is")


def _stopping() -> Stopping:
    return Stopping("the server is stopping", hint="send it again", retry_after_s=5)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is over the limit of {limit / 1e6:g} MB", hint="send less")


def _wish(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"the body is not a JSON object: {error}") from None


def _wishes(headers: list[tuple[bytes, bytes]]) -> tuple[int | None, str]:
    """How many bytes of the body are its header, if that was said, and how the body is compressed."""
    header, encoding = None, ""
    for key, value in headers:
        if key == HEADER:
            if not value.isdigit() or len(value) > 18:
                raise BadInput(f"{HEADER.decode()} is not a number of bytes")
            header = int(value)
        elif key == b"content-encoding":
            encoding = value.decode("latin-1").strip().lower()
            if encoding == "identity":
                encoding = ""
            elif encoding not in ("", "gzip", "deflate"):
                raise BadInput(f"the encoding {encoding[:40]!r} is not offered; gzip and deflate are")
    return header, encoding


def _pad(parts: list[bytes | memoryview], header: int) -> None:
    """Put blanks, which JSON does not mind, where the header ends."""
    blanks = -header % ALIGNED
    if not blanks:
        return
    for place, part in enumerate(parts):
        if header <= len(part):
            seen = memoryview(part)
            parts[place : place + 1] = [seen[:header], b" " * blanks, seen[header:]]
            return
        header -= len(part)


def _header_of(kind: str, size: int) -> int | None:
    """Where the header of an answer of tensors ends; None where it is not one."""
    base, _, length = kind.partition("; header=")
    if base != TENSORS or not length.isascii() or not length.isdigit() or len(length) > 18:
        return None
    return int(length) if int(length) <= size else None


def _headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]


def _said(what: Any, status: int = 200) -> Response:
    body = _encode(what)
    return status, _headers(body), body
