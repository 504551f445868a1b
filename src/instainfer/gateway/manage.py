"""The management API, /instainfer/v1: what the command line and dashboards speak."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, FastAPI, File, Form, Header, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from instainfer import __version__, why
from instainfer.core import events as ev
from instainfer.deploy import Deployer
from instainfer.errors import BadInput, Conflict, InstaInferError, NotAllowed, NotFound, TooLarge, WrongMethod
from instainfer.gateway import namespaces, present
from instainfer.gateway.access import Access, Principal
from instainfer.gateway.fronts import HELLO
from instainfer.gateway.health import Health
from instainfer.gateway.invoke import accepted, outcome
from instainfer.gateway.live import Events, Feed
from instainfer.gateway.namespaces import Caller
from instainfer.gateway.nodes import shown as nodes_of
from instainfer.gateway.problems import render
from instainfer.model import Activation, Job, JobState, Quota, Role
from instainfer.policies.predict.outlook import outlook
from instainfer.work import Work

PREFIX = "/instainfer/v1"
LONGEST_WAIT_S = 60.0
MOST_SKIPPED = 1 << 40  # a number that every database can count to


class Metrics(Response):
    media_type = "text/plain; version=0.0.4"


class Sample(Response):
    media_type = "application/octet-stream"


class Lines(StreamingResponse):
    media_type = "application/x-ndjson"


_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
#: What any address may answer instead.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": _PROBLEM}
    for status, text in {
        400: "what was sent cannot be used",
        401: "no key, or a wrong one",
        403: "a key of another namespace, or of too small a role",
        404: "there is no such thing",
        409: "not in the present state",
        413: "too large",
        429: "over the namespace's quota",
        502: "the function's own doing",
        503: "not now",
        504: "the function ran too long",
    }.items()
}


def application(
    health: Health,
    deployer: Deployer,
    access: Access,
    work: Work,
    feed: Feed,
    locked: Callable[[], None],
    *,
    max_package: int,
) -> FastAPI:
    """`locked` hears that keys are asked for from now on."""
    app = FastAPI(
        title="instainfer",
        version=__version__,
        description="Management of functions, and what the platform did and why.",
        docs_url=None,
        redoc_url=None,
        responses=PROBLEMS,
    )
    controller, store, writer = health.controller, health.store, health.writer
    api = APIRouter(prefix=PREFIX)

    @app.exception_handler(InstaInferError)
    async def problem(request: Request, error: InstaInferError) -> Response:
        status, headers, body = render(error)
        return Response(body, status, {key.decode(): value.decode() for key, value in headers})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return await problem(request, BadInput(said, hint="see /openapi.json"))

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> Response:
        """What the framework refuses by itself: unknown addresses and methods."""
        place = f"{request.method} {request.url.path}"
        known: dict[int, type[InstaInferError]] = {404: NotFound, 405: WrongMethod}
        kind = known.get(error.status_code, BadInput)
        response = await problem(request, kind(f"{place}: {error.detail}", hint="see /openapi.json"))
        response.headers.update(error.headers or {})
        return response

    @app.get("/livez", tags=["health"])
    async def livez(request: Request, response: Response) -> dict[str, str]:
        """The process answers. Its headers say whether it takes requests: gateways ask for them."""
        response.headers.update(health.serving())
        if (said := request.headers.get(HELLO)) is not None:
            health.fronts.heard(said, health.clock.now())
        return {"status": "alive"}

    @app.get("/readyz", tags=["health"])
    @app.get("/healthz", tags=["health"])
    async def readyz(response: Response) -> dict[str, Any]:
        """Requests would be served: 503 while starting, stopping, or without a node or a store."""
        truth = await health.check()
        if not truth["ready"]:
            response.status_code = 503
            response.headers["retry-after"] = "1"
        return truth

    @app.get("/metrics", tags=["health"], response_class=Metrics)
    async def metrics(who: Caller) -> Response:
        who.check_everywhere()
        return Metrics(controller.books.scrape())

    @api.get("/status")
    async def status(who: Caller) -> dict[str, Any]:
        who.check_everywhere()
        return health.status()

    @api.get("/policies")
    async def policies(who: Caller) -> dict[str, Any]:
        """What became of the requests under the policy in force, and what would have under its shadows."""
        who.check_everywhere()
        return await health.shadows.rows()

    def within(who: Principal, namespace: str | None) -> str | None:
        """The namespace that a list is of; None: all. Raises Forbidden."""
        if namespace is None:
            return who.namespace or None
        who.check(namespace)
        return namespace

    def limited(namespace: str, quota: Quota) -> None:
        controller.feed(ev.NamespaceLimited(namespace=namespace, memory=quota.memory))
        work.wake(namespace)  # if it was raised

    # ---- functions -----------------------------------------------------------------------------------------

    async def stored(namespace: str, name: str) -> dict[str, Any]:
        for spec, profile in await asyncio.to_thread(store.functions, namespace):
            if spec.name == name:
                known = controller.platform.state.functions.get(spec.key)
                return present.function(spec, profile, known)
        raise NotFound(
            f"there is no function {name!r} in namespace {namespace!r}",
            hint="`instainfer ls` shows what is deployed",
        )

    @api.get("/functions")
    async def list_functions(who: Caller, namespace: str | None = None) -> dict[str, Any]:
        namespace = within(who, namespace)
        state = controller.platform.state
        found = await asyncio.to_thread(store.functions, namespace)
        return {"functions": [present.function(spec, p, state.functions.get(spec.key)) for spec, p in found]}

    @api.put("/functions/{namespace}/{name}", response_class=Lines)
    async def deploy(
        who: Caller,
        namespace: str,
        name: str,
        package: Annotated[UploadFile, File(description="the package: a zip")],
        settings: Annotated[str, Form(description="JSON: overrides of function.toml")] = "{}",
        sample: Annotated[UploadFile | None, File(description="one real input")] = None,
        sample_type: Annotated[str, Form()] = "",
    ) -> Lines:
        """Deploy. Answers with newline-delimited JSON: progress, then `deployed` or `failed`."""
        who.check(namespace, Role.DEPLOY)
        try:
            overrides = json.loads(settings)
            json.dumps(overrides, ensure_ascii=False).encode()  # no half of a character, which cannot be kept
        except (ValueError, RecursionError) as error:
            raise BadInput(f"settings is not JSON: {error}", hint="send an object of settings") from None
        if not isinstance(overrides, dict):
            raise BadInput("settings is not an object", hint='send {"memory": "1GB", …}')
        data = await package.read(max_package + 1)
        if len(data) > max_package:
            raise TooLarge(
                f"the package is over {max_package / 1e6:.0f} MB", hint="leave out what it does not need"
            )
        given = None
        if sample is not None:
            given = (sample.filename or "sample", await sample.read(), sample_type or sample.content_type or "")

        async def lines() -> AsyncIterator[bytes]:
            async for event in deployer.deploy(namespace, name, data, overrides, given):
                if event["event"] == "failed":
                    event = {"event": "failed", "problem": event["error"].problem()}
                elif event["event"] == "deployed":
                    known = controller.platform.state.functions.get(event["spec"].key)
                    shown = present.function(event["spec"], event["profile"], known)
                    event = {"event": "deployed", "function": shown, "profile": shown["profile"]}
                yield json.dumps(event).encode() + b"\n"

        return Lines(lines())

    @api.get("/functions/{namespace}/{name}")
    async def get_function(who: Caller, namespace: str, name: str) -> dict[str, Any]:
        who.check(namespace)
        shown = await stored(namespace, name)
        versions = await asyncio.to_thread(store.versions, namespace, name)
        return shown | {"versions": [present.version(spec, shown["version"]) for spec in versions]}

    @api.delete("/functions/{namespace}/{name}")
    async def delete(who: Caller, namespace: str, name: str) -> dict[str, str]:
        who.check(namespace, Role.DEPLOY)
        await deployer.delete(namespace, name)
        return {"message": f"{namespace}/{name} was deleted"}

    @api.post("/functions/{namespace}/{name}/rollback")
    async def rollback(
        who: Caller, namespace: str, name: str, version: Annotated[int, Body(embed=True)]
    ) -> dict[str, Any]:
        who.check(namespace, Role.DEPLOY)
        spec = await deployer.rollback(namespace, name, version)
        return {
            "message": f"{spec.key} serves version {spec.version} now",
            "function": await stored(namespace, name),
        }

    def live(who: Principal, namespace: str, name: str) -> str:
        who.check(namespace, Role.DEPLOY)
        key = f"{namespace}/{name}"
        if key not in controller.specs:
            raise NotFound(f"there is no function {key}", hint="`instainfer ls` shows what is deployed")
        return key

    @api.post("/functions/{namespace}/{name}/preload")
    async def preload(who: Caller, namespace: str, name: str) -> dict[str, str]:
        """Load it into idle memory of a warm container; 409 when none has room (it never creates one)."""
        key = live(who, namespace, name)
        answer = await controller.ask(lambda token: ev.PreloadRequested(token=token, function=key))
        if not answer.ok:
            raise Conflict(answer.message, function=key, hint="`instainfer ps` shows the idle memory there is")
        return {"message": answer.message}

    @api.post("/functions/{namespace}/{name}/offload")
    async def offload(who: Caller, namespace: str, name: str) -> dict[str, str]:
        key = live(who, namespace, name)
        answer = await controller.ask(lambda token: ev.OffloadRequested(token=token, function=key))
        return {"message": answer.message}

    async def set_pin(who: Principal, namespace: str, name: str, pinned: bool) -> dict[str, str]:
        key = live(who, namespace, name)
        await asyncio.to_thread(store.set_pin, namespace, name, pinned)
        answer = await controller.ask(lambda token: ev.PinChanged(token=token, function=key, pinned=pinned))
        return {"message": answer.message}

    @api.post("/functions/{namespace}/{name}/pin")
    async def pin(who: Caller, namespace: str, name: str) -> dict[str, str]:
        """Keep one container with it loaded; creates one if need be."""
        return await set_pin(who, namespace, name, True)

    @api.post("/functions/{namespace}/{name}/unpin")
    async def unpin(who: Caller, namespace: str, name: str) -> dict[str, str]:
        return await set_pin(who, namespace, name, False)

    @api.post("/functions/{namespace}/{name}/hint")
    async def hint(
        who: Caller,
        namespace: str,
        name: str,
        in_s: Annotated[float, Body(ge=0, le=30 * 86400)],
        probability: Annotated[float, Body(gt=0, le=1)] = 1.0,
    ) -> dict[str, str]:
        """An arrival is expected in so many seconds: merged into the forecast."""
        key = live(who, namespace, name)
        controller.feed(ev.HintReceived(function=key, in_s=in_s, probability=probability))
        return {"message": f"{key}: an arrival is expected in {in_s:g} s with probability {probability:g}"}

    @api.get("/functions/{namespace}/{name}/forecast")
    async def forecast(who: Caller, namespace: str, name: str) -> dict[str, Any]:
        """What the predictor in force expects of it from now on."""
        who.check(namespace)
        await stored(namespace, name)
        expected = outlook(controller.platform.state.forecast, f"{namespace}/{name}", health.clock.now())
        return {"predictor": health.predictor, "wall": health.clock.wall()} | msgspec.structs.asdict(expected)

    @api.get("/functions/{namespace}/{name}/sample", response_class=Sample)
    async def sample(who: Caller, namespace: str, name: str) -> Response:
        """The input that it was deployed with, as it is; 404 where it has none."""
        who.check(namespace)
        await stored(namespace, name)
        spec = controller.specs.get(f"{namespace}/{name}")
        if spec is None:
            raise NotFound(f"{namespace}/{name} does not serve", hint="see the server's log")
        given = await asyncio.to_thread(deployer.sample, spec)
        # Never as what it says it is: it is somebody's own, and a browser must not run it.
        return Sample(given, headers={"x-instainfer-sample-type": spec.sample_type})

    # ---- what happened -------------------------------------------------------------------------------------

    @api.get("/functions/{namespace}/{name}/logs")
    async def function_logs(
        who: Caller, namespace: str, name: str, limit: Annotated[int, Query(ge=1, le=10_000)] = 100
    ) -> dict[str, Any]:
        """What its latest invocations and loads printed, oldest first."""
        who.check(namespace)
        await stored(namespace, name)
        await asyncio.to_thread(writer.flush)
        recent = await asyncio.to_thread(store.activations, namespace, name, limit=limit)
        lines = await asyncio.to_thread(store.logs, f"load:{namespace}/{name}")
        for activation in recent:
            lines += await asyncio.to_thread(store.logs, activation.id)
        lines.sort(key=lambda line: line.wall)
        return {"logs": present.logs(lines[-limit:])}

    @api.get("/activations")
    async def activations(
        who: Caller,
        namespace: str | None = None,
        function: str | None = None,
        limit: Annotated[int, Query(ge=1, le=2000)] = 50,
        skip: Annotated[int, Query(ge=0, le=MOST_SKIPPED)] = 0,
        since: float | None = None,
        upto: float | None = None,
    ) -> dict[str, Any]:
        namespace = within(who, namespace)
        await asyncio.to_thread(writer.flush)
        found = await asyncio.to_thread(
            store.activations, namespace, function, limit=limit, skip=skip, since=since, upto=upto
        )
        return {"activations": [present.activation(one) for one in found]}

    async def find(who: Principal, id: str) -> Activation:
        """Of a namespace that is not the caller's: as if there were none."""
        found = writer.pending(id)
        if found is None:
            found = await asyncio.to_thread(store.activation, id)
        if not who.sees(found.namespace):
            raise NotFound(f"there is no activation {id!r}", hint="`instainfer activations` shows the latest")
        return found

    @api.get("/activations/{id}")
    async def activation(who: Caller, id: str) -> dict[str, Any]:
        return present.activation(await find(who, id))

    @api.get("/activations/{id}/logs")
    async def activation_logs(who: Caller, id: str) -> dict[str, Any]:
        await find(who, id)
        await asyncio.to_thread(writer.flush)
        return {"logs": present.logs(await asyncio.to_thread(store.logs, id))}

    @api.get("/activations/{id}/why")
    async def activation_why(who: Caller, id: str) -> dict[str, Any]:
        """Why it started as it did, reproduced by replaying the logged events through the core."""
        record = await find(who, id)
        controller.flush_events()
        explanation = await asyncio.to_thread(why.replay, health.events, record)
        return {"activation": present.activation(record), "predictor": health.predictor} | why.tell(
            record, explanation
        )

    # ---- jobs ----------------------------------------------------------------------------------------------

    @api.get("/jobs")
    async def list_jobs(
        who: Caller,
        namespace: str | None = None,
        state: JobState | None = None,
        limit: Annotated[int, Query(ge=1, le=2000)] = 50,
        skip: Annotated[int, Query(ge=0, le=MOST_SKIPPED)] = 0,
    ) -> dict[str, Any]:
        """Requests that are answered later, newest first; `?state=dead` are the dead letters."""
        namespace = within(who, namespace)
        found = await asyncio.to_thread(store.jobs, namespace, state=state, limit=limit, skip=skip)
        return {"jobs": [present.job(one) for one in found]}

    async def find_job(who: Principal, id: str) -> Job:
        found = await work.find(id)
        if not who.sees(found.namespace):
            raise NotFound(f"there is no job {id!r}", hint="`instainfer jobs` shows the latest")
        return found

    @api.get("/jobs/{id}")
    async def get_job(who: Caller, id: str) -> dict[str, Any]:
        """Its state at once, whether it is over or not."""
        return present.job(await find_job(who, id))

    @api.get("/jobs/{id}/result")
    async def job_result(
        who: Caller, id: str, wait_s: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 0.0
    ) -> Response:
        """What it was answered, as it is, or the problem that it failed with; 202 while it is not over."""
        job = await work.result(await find_job(who, id), wait_s)
        status, headers, body = outcome(job) if job.over else accepted(job)
        return Response(body, status, {key.decode(): value.decode("latin-1") for key, value in headers})

    @api.post("/jobs/{id}/retry")
    async def retry_job(who: Caller, id: str) -> dict[str, Any]:
        """A dead letter gets its attempts again."""
        job = await find_job(who, id)
        who.check(job.namespace)
        return present.job(await work.revive(job))

    @api.get("/containers")
    async def containers(who: Caller) -> dict[str, Any]:
        """All of them for the server's owner; of a namespace, its own and nothing of the node."""
        return present.platform(controller, health.isolation(), who.sees, health.clock.now(), who.everywhere)

    @api.get("/live", response_class=Events)
    async def live_feed(
        request: Request, who: Caller, since: str = "", last_event_id: Annotated[str, Header()] = ""
    ) -> Events:
        """Once a second what there is, and what has happened since the event before: server-sent events.
        `since`, or Last-Event-ID: the last one that the reader has."""
        given = request.headers.get("authorization", "").encode("latin-1")

        def still() -> bool:
            if "principal" not in request.scope:  # nobody asks who it is here
                return True
            try:
                return access.who(given) == who
            except NotAllowed:
                return False

        return feed.answer(who, last_event_id or since, still)

    @api.get("/nodes")
    async def nodes(who: Caller) -> dict[str, Any]:
        """For the owner: those that are members of the cluster, and how they are."""
        who.check_everywhere()
        return {"nodes": nodes_of(health)}

    @api.post("/nodes/{node}/drain")
    async def drain(who: Caller, node: str, undo: bool = False) -> dict[str, Any]:
        """For the owner: nothing new goes there, what is idle ends when it stands elsewhere, what runs finishes,
        over restarts of the server too. `undo` takes it back."""
        who.check_everywhere()
        found = health.membership.drain(node, undo=undo)
        await asyncio.to_thread(store.set_drained, node, not undo)
        return found

    @api.post("/nodes/{node}/restart", status_code=204)
    async def restart_node(who: Caller, node: str) -> Response:
        """For the owner: the agent of a drained node begins anew, and joins again; the node stays drained."""
        who.check_everywhere()
        await controller.restart_node(node)
        return Response(status_code=204)

    @api.post("/restart", status_code=202)
    async def restart(who: Caller) -> dict[str, Any]:
        """For the owner: the server finishes what runs and begins anew; what is answered later goes on then."""
        who.check_everywhere()
        health.restart()
        return {"number": health.number}

    api.include_router(namespaces.routes(store, access, limited, locked))
    app.include_router(api)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """What the framework would say itself of what cannot be read: here that is a 400, as any other bad input."""
    described = app.openapi()
    described["components"]["schemas"]["Problem"] = {
        "type": "object",
        "description": "RFC 9457",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            **{
                key: {"type": "string"}
                for key in ("type", "title", "detail", "hint", "function", "phase", "trace")
            },
            "status": {"type": "integer"},
            "retry_after_s": {"type": "number"},
        },
    }
    for methods in described["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        described["components"]["schemas"].pop(unused, None)
