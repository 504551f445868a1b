"""The OpenWhisk face: REST v1 for `wsk` and the `openwhisk` client of npm, over the same functions.

https://github.com/apache/openwhisk/blob/master/docs/rest_api.md. An action is a function whose package is its
code; what OpenWhisk keeps of it beyond that (kind, main, annotations) is a file in the package. Triggers, rules,
packages and sequences are not there, and say so.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from instainfer import __version__
from instainfer.books import Ticket
from instainfer.deploy import Deployer
from instainfer.errors import (
    BadInput,
    Conflict,
    Forbidden,
    FunctionFailed,
    InstaInferError,
    NotAllowed,
    NotFound,
    TooLarge,
    Unsupported,
    from_problem,
)
from instainfer.gateway import actions
from instainfer.gateway.access import who_asks
from instainfer.gateway.invoke import Invoke
from instainfer.gateway.invoke import Response as Refusal
from instainfer.gateway.problems import AGAIN
from instainfer.model import Activation, FunctionSpec, Job, Role
from instainfer.store.base import Answered, Store
from instainfer.store.writer import BatchWriter

PREFIX = "/api/"
ABOUT = "/api/v1"  # says what this is; `wsk property get` asks for it without a key
LONGEST_WAIT_S = 60.0
PAGE, LONGEST_PAGE = 30, 200
LARGEST_CODE = 96_000_000  # of a request that makes an action: 64 MB of a zip, in base64 and a little more
JSON = "application/json"

_SUCCESS, _APPLICATION, _DEVELOPER, _INTERNAL = 0, 1, 2, 3
_STATUS = ("success", "application error", "action developer error", "whisk internal error")

Handler = Callable[[Request], Awaitable[Response]]


def failed(error: InstaInferError) -> tuple[int, dict[str, Any]]:
    """Status and body of an error, as OpenWhisk's clients read them."""
    status = 400 if isinstance(error, FunctionFailed) else error.status
    text = {
        NotFound: "The requested resource does not exist.",
        NotAllowed: "The supplied authentication is invalid.",
    }
    said = text.get(type(error), "")
    details = "\n".join(part for part in (said, error.message, error.detail, error.hint) if part)
    return status, {"error": details, "code": error.code}


def refused(error: NotAllowed | Forbidden) -> Refusal:
    """Without a key, or with a wrong one; or a web page's."""
    status, said = failed(error)
    body = msgspec.json.encode(said)
    headers = [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(body))]
    if isinstance(error, NotAllowed):
        headers.append((b"www-authenticate", b"Basic"))
    return status, headers, body


class OpenWhisk:
    def __init__(
        self, hot: Invoke, deployer: Deployer, store: Store, writer: BatchWriter, *, api_host: str
    ) -> None:
        self._hot = hot
        self._deployer = deployer
        self._store = store
        self._writer = writer
        self._api_host = api_host

    def application(self) -> Starlette:
        of = "/api/v1/namespaces/{namespace}"
        served: list[tuple[str, str, Handler]] = [
            ("GET", ABOUT, self._about),
            ("GET", "/api/v1/namespaces", self._namespaces),
            ("GET", of, self._namespace),
            ("GET", f"{of}/actions", self._list),
            ("GET", f"{of}/actions/{{name}}", self._get),
            ("PUT", f"{of}/actions/{{name}}", self._put),
            ("DELETE", f"{of}/actions/{{name}}", self._delete),
            ("POST", f"{of}/actions/{{name}}", self._invoke),
            ("GET", f"{of}/activations", self._activations),
            ("GET", f"{of}/activations/{{id}}", self._activation),
            ("GET", f"{of}/activations/{{id}}/logs", self._logs),
            ("GET", f"{of}/activations/{{id}}/result", self._result),
        ]
        routes = [Route(path, _answered(handler), methods=[method]) for method, path, handler in served]
        for kind in ("packages", "triggers", "rules"):
            routes.append(Route(f"{of}/{kind}", _answered(self._nothing), methods=["GET"]))
            routes.append(Route(f"{of}/{kind}/{{rest:path}}", _answered(_unsupported), methods=_ALL))
        routes.append(Route(f"{of}/actions/{{package}}/{{rest:path}}", _answered(_unsupported), methods=_ALL))
        routes.append(Route("/api/v1/web/{rest:path}", _answered(_no_web), methods=_ALL))
        routes.append(Route("/api/{rest:path}", _answered(_unknown), methods=_ALL))
        return Starlette(routes=routes)

    # ---- the server ----------------------------------------------------------------------------------------

    async def _about(self, request: Request) -> Response:
        runtimes = [{"kind": kind, "default": kind == "python:3", "deprecated": False} for kind in actions.KINDS]
        return JSONResponse(
            {
                "description": "instainfer's OpenWhisk API",
                "api_version": "1.0.0",
                "api_version_path": "v1",
                "build": __version__,
                "buildno": __version__,
                "runtimes": {"python": runtimes},
                "limits": {"max_action_logs": 10_485_760},
            }
        )

    async def _namespaces(self, request: Request) -> Response:
        who = who_asks(request.scope)
        if not who.everywhere:
            return JSONResponse([who.namespace])
        return JSONResponse(list(await asyncio.to_thread(self._store.namespaces)) or ["default"])

    async def _namespace(self, request: Request) -> Response:
        found = await self._actions(_of(request))
        return JSONResponse(
            {"actions": [actions.summary(spec) for spec in found], "packages": [], "triggers": [], "rules": []}
        )

    async def _nothing(self, request: Request) -> Response:
        _of(request)
        kind = request.url.path.rpartition("/")[2]
        return JSONResponse({kind: 0} if _flag(request, "count") else [])

    # ---- actions -------------------------------------------------------------------------------------------

    async def _actions(self, namespace: str) -> list[FunctionSpec]:
        found = [spec for spec, _ in await asyncio.to_thread(self._store.functions, namespace)]
        return sorted(found, key=lambda spec: -spec.wall)

    async def _list(self, request: Request) -> Response:
        found = await self._actions(_of(request))
        if _flag(request, "count"):
            return JSONResponse({"actions": len(found)})
        skip, limit = _page(request)
        return JSONResponse([actions.summary(spec) for spec in found[skip : skip + limit]])

    async def _stored(self, namespace: str, name: str) -> FunctionSpec:
        for spec, _ in await asyncio.to_thread(self._store.functions, namespace):
            if spec.name == name:
                return spec
        raise NotFound(f"there is no action {name!r} in namespace {namespace!r}")

    async def _get(self, request: Request) -> Response:
        spec = await self._stored(_of(request), request.path_params["name"])
        package = await asyncio.to_thread(self._deployer.package, spec)
        code = request.query_params.get("code", "true") != "false"
        return JSONResponse(await asyncio.to_thread(actions.record, spec, package, code=code))

    async def _put(self, request: Request) -> Response:
        namespace, name = _of(request, Role.DEPLOY), request.path_params["name"]
        wanted = _object(await _body(request, LARGEST_CODE))
        try:
            before: FunctionSpec | None = await self._stored(namespace, name)
        except NotFound:
            before = None
        if before is not None and not _flag(request, "overwrite"):
            raise Conflict("resource already exists", hint="ask with overwrite=true to replace it")
        old = None if before is None else await asyncio.to_thread(self._deployer.package, before)
        data, settings = await asyncio.to_thread(
            actions.package, wanted, before, old, namespace=namespace, name=name, api_host=self._api_host
        )
        async for event in self._deployer.deploy(namespace, name, data, settings):
            if event["event"] == "failed":
                raise actions.in_its_words(event["error"])
            if event["event"] == "deployed":
                return JSONResponse(await asyncio.to_thread(actions.record, event["spec"], data, code=True))
        raise InstaInferError("the deployment ended without a result")

    async def _delete(self, request: Request) -> Response:
        namespace, name = _of(request, Role.DEPLOY), request.path_params["name"]
        spec = await self._stored(namespace, name)
        package = await asyncio.to_thread(self._deployer.package, spec)
        gone = await asyncio.to_thread(actions.record, spec, package, code=False)
        await self._deployer.delete(namespace, name)
        return JSONResponse(gone)

    # ---- invocations ---------------------------------------------------------------------------------------

    async def _invoke(self, request: Request) -> Response:
        namespace, name = _of(request), request.path_params["name"]
        spec = self._hot.find(who_asks(request.scope), f"/f/{namespace}/{name}", 0)
        body = await _body(request, self._hot.max_body)
        if body:
            _object(body)
        body = body or b"{}"
        if not _flag(request, "blocking"):
            self._hot.access.charge(namespace)
            return _later((await self._hot.work.accept(spec, JSON, body)).id)
        wait = min(_number(request, "timeout", LONGEST_WAIT_S * 1e3) / 1e3, LONGEST_WAIT_S)
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Ticket] = loop.create_future()

        def done(ticket: Ticket) -> None:
            if answered.done():  # nobody waits any more: it was made a job of
                self._hot.work.ended(ticket)
            else:
                answered.set_result(ticket)

        ticket = self._hot.submit(spec, JSON, body, done)
        try:
            async with asyncio.timeout(wait):
                await asyncio.shield(answered)
        except TimeoutError:
            if not answered.done():
                answered.cancel()
                return _later((await self._hot.work.adopt(ticket, body)).id)
        activation = self._writer.pending(ticket.activation)
        if activation is None:  # the writer was faster
            activation = await asyncio.to_thread(self._store.activation, ticket.activation)
        kind, answer = ticket.answer or ("", b"")
        if ticket.answer is not None:
            self._writer.put(Answered(activation=ticket.activation, wall=ticket.wall, type=kind, body=answer))
        response = _response(kind, answer, ticket.error)
        status = _status_of(response, ticket.error)
        headers = {"x-openwhisk-activation-id": ticket.activation, "x-instainfer-start": ticket.start}
        if _flag(request, "result"):
            return JSONResponse(response["result"], status, headers)
        return JSONResponse(_record(activation, spec, response), status, headers)

    # ---- activations ---------------------------------------------------------------------------------------

    async def _activations(self, request: Request) -> Response:
        namespace = _of(request)
        skip, limit = _page(request)
        count = _flag(request, "count")
        since, upto = (_number(request, name, None) for name in ("since", "upto"))
        await asyncio.to_thread(self._writer.flush)
        found = await asyncio.to_thread(
            self._store.activations,
            namespace,
            request.query_params.get("name"),
            limit=100_000 if count else limit,
            skip=skip,
            since=None if since is None else (since - 0.5) / 1e3,  # records say when in whole milliseconds
            upto=None if upto is None else (upto + 0.5) / 1e3,
        )
        if count:
            return JSONResponse({"activations": len(found)})
        if _flag(request, "docs"):
            return JSONResponse([await self._whole(one) for one in found])
        return JSONResponse([_summary(one) for one in found])

    async def _activation(self, request: Request) -> Response:
        found = await self._find(request)
        return JSONResponse(_pending(found) if isinstance(found, Job) else await self._whole(found))

    async def _logs(self, request: Request) -> Response:
        found = await self._find(request)
        return JSONResponse({"logs": [] if isinstance(found, Job) else await self._lines(found.id)})

    async def _result(self, request: Request) -> Response:
        found = await self._find(request)
        whole = _pending(found) if isinstance(found, Job) else await self._whole(found)
        return JSONResponse(whole["response"])

    async def _find(self, request: Request) -> Activation | Job:
        """An activation, or the job that is not over."""
        namespace, id = _of(request), request.path_params["id"]
        try:
            job = await self._hot.work.find(id)
            if not job.over and job.namespace == namespace:
                return job
        except NotFound:
            pass
        await asyncio.to_thread(self._writer.flush)
        found = await asyncio.to_thread(self._store.activation, id)
        if found.namespace != namespace:
            raise NotFound(f"there is no activation {id!r} in namespace {namespace!r}")
        return found

    async def _whole(self, of: Activation) -> dict[str, Any]:
        """With its result and logs."""
        kind, answer, error = "", b"", None
        try:
            job = await self._hot.work.find(of.id)
            kind, answer = job.answer_type, job.answer
        except NotFound:
            kept = await asyncio.to_thread(self._store.answer, of.id)
            if kept is not None:
                kind, answer = kept.type, kept.body
        if of.status != "ok":
            problem = {"type": f"urn:instainfer:error:{of.status}", "detail": of.error, "hint": of.hint}
            error = from_problem(problem | ({"trace": of.trace} if of.trace else {}))
        spec = self._hot.controller.specs.get(f"{of.namespace}/{of.function}")
        return _record(of, spec, _response(kind, answer, error)) | {"logs": await self._lines(of.id)}

    async def _lines(self, id: str) -> list[str]:
        lines = await asyncio.to_thread(self._store.logs, id)
        return [
            f"{actions.moment(line.wall)} {line.stream}: {text}"
            for line in lines
            for text in line.text.splitlines()
        ]


# ---- what a request says -----------------------------------------------------------------------------------

_ALL = ["GET", "PUT", "POST", "DELETE"]


def _answered(handler: Handler) -> Handler:
    """Its errors in OpenWhisk's form."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except InstaInferError as error:
            status, body = failed(error)
            headers = {}
            if error.retry_after_s is not None:
                headers["retry-after"] = str(math.ceil(error.retry_after_s))
            if error.again:
                headers[AGAIN[0].decode()] = AGAIN[1].decode()
            return JSONResponse(body, status, headers)

    return answer


async def _unsupported(request: Request) -> Response:
    kind = request.url.path.split("/")[5]
    what = "actions in packages" if kind == "actions" else kind
    raise Unsupported(f"there are no {what} here", hint="functions of the default package can be called")


async def _no_web(request: Request) -> Response:
    raise Unsupported(
        "there are no web actions here", hint="call the action with its key, or POST /f/NAMESPACE/NAME"
    )


async def _unknown(request: Request) -> Response:
    raise NotFound(f"{request.method} {request.url.path} is no address of this API")


def _of(request: Request, role: Role = Role.INVOKE) -> str:
    """The namespace that a request is about; `_` is that of the key. Raises Forbidden."""
    who, namespace = who_asks(request.scope), str(request.path_params["namespace"])
    if namespace == "_":
        namespace = who.namespace or "default"
    try:
        who.check(namespace, role)
    except Forbidden as error:
        raise Forbidden("The supplied authentication is not authorized to access this resource.") from error
    return namespace


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() == "true"


def _number(request: Request, name: str, usual: Any) -> Any:
    text = request.query_params.get(name)
    if text is None:
        return usual
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e15:
        raise BadInput(f"The query parameter {name!r} is not a number that can be used: {text!r}.")
    return value


def _page(request: Request) -> tuple[int, int]:
    skip, limit = int(_number(request, "skip", 0)), int(_number(request, "limit", PAGE))
    if limit > LONGEST_PAGE:
        raise BadInput(f"The value of the limit parameter must be between 0 and {LONGEST_PAGE}.")
    return skip, limit or LONGEST_PAGE


async def _body(request: Request, largest: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > largest:
            raise TooLarge(f"The body is over the limit of {largest / 1e6:g} MB.")
        parts.append(part)
    return b"".join(parts)


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"The request content was malformed: {error}") from None


# ---- what is answered --------------------------------------------------------------------------------------


def _later(id: str) -> Response:
    return JSONResponse({"activationId": id}, 202, {"x-openwhisk-activation-id": id})


def _response(kind: str, answer: bytes, error: InstaInferError | None) -> dict[str, Any]:
    """{"status", "statusCode", "success", "result"}."""
    if error is not None:
        code = _DEVELOPER if isinstance(error, FunctionFailed | BadInput) else _INTERNAL
        told = error.detail.strip()  # of an error in the call itself there are no frames: nothing new
        result: Any = {"error": f"{error.message}\n{told}".strip() if told != error.message else told}
    else:
        code = _SUCCESS
        try:
            result = msgspec.json.decode(answer) if kind == JSON else None
        except msgspec.DecodeError:
            result = None
        if not isinstance(result, dict | list):
            code, result = _DEVELOPER, {"error": "The action did not return a dictionary or array."}
        elif isinstance(result, dict) and "error" in result:
            code = _APPLICATION
    return {"status": _STATUS[code], "statusCode": code, "success": code == _SUCCESS, "result": result}


def _status_of(response: dict[str, Any], error: InstaInferError | None) -> int:
    code = response["statusCode"]
    if code == _INTERNAL and error is not None:
        return error.status
    return 200 if code == _SUCCESS else 502


def _annotations(of: Activation, spec: FunctionSpec | None) -> list[dict[str, Any]]:
    """Times in milliseconds; initTime only where something was initialised."""
    phases = of.phases
    made = phases.imports + phases.load + phases.warmup
    found: list[dict[str, Any]] = [
        {"key": "path", "value": f"{of.namespace}/{of.function}"},
        {"key": "kind", "value": actions.kind(spec) if spec is not None else "python:3"},
        {"key": "waitTime", "value": round((phases.queue + phases.container + phases.extract) * 1e3)},
        {"key": "start", "value": of.start},
    ]
    if spec is not None:
        found.insert(2, {"key": "limits", "value": actions.limits(spec)})
    if made:
        found.append({"key": "initTime", "value": round(made * 1e3)})
    return found


def _record(of: Activation, spec: FunctionSpec | None, response: dict[str, Any]) -> dict[str, Any]:
    start = round(of.wall * 1e3)
    return {
        "namespace": of.namespace,
        "name": of.function,
        "version": actions.version(of.version),
        "publish": False,
        "subject": of.namespace,
        "activationId": of.id,
        "start": start,
        "end": round((of.wall + of.e2e_s) * 1e3),
        "duration": round(of.e2e_s * 1e3),
        "annotations": _annotations(of, spec),
        "response": response,
        "logs": [],
    }


def _summary(of: Activation) -> dict[str, Any]:
    code = _SUCCESS
    if of.status != "ok":
        code = _DEVELOPER if isinstance(from_problem({"type": of.status}), FunctionFailed) else _INTERNAL
    return {
        "namespace": of.namespace,
        "name": of.function,
        "version": actions.version(of.version),
        "publish": False,
        "activationId": of.id,
        "start": round(of.wall * 1e3),
        "end": round((of.wall + of.e2e_s) * 1e3),
        "duration": round(of.e2e_s * 1e3),
        "statusCode": code,
        "annotations": _annotations(of, None),
    }


def _pending(job: Job) -> dict[str, Any]:
    """Of one that was accepted and is not over: no end, no result."""
    return {
        "namespace": job.namespace,
        "name": job.function,
        "version": "0.0.1",
        "publish": False,
        "subject": job.namespace,
        "activationId": job.id,
        "start": round(job.created * 1e3),
        "annotations": [{"key": "path", "value": f"{job.namespace}/{job.function}"}],
        "response": {"status": "pending", "statusCode": None, "success": None, "result": {}},
        "logs": [],
    }
