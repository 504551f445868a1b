"""The HTTP API as a server that answers with canned data, over a real socket. Records what it was sent."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from instainfer.errors import BuildFailed, Conflict, InstaInferError, InvocationFailed, NotAllowed, NotFound

ACTIVATION = "4c1d8f0e" * 4
PROFILE = {
    "import_ms": 300.5,
    "load_ms": 101.0,
    "warmup_ms": 25.0,
    "first_ms": 30.0,
    "warm_ms": 24.0,
    "imported_mb": 31.0,
    "loaded_mb": 75.2,
    "modules": 412,
    "tasks": 2,
    "answer": "png",
}
FUNCTION: dict[str, Any] = {
    "namespace": "default",
    "name": "magika",
    "version": 3,
    "digest": "sha256:" + "ab" * 32,
    "style": "class",
    "entry": "main:Model",
    "memory_mb": 512.0,
    "timeout_s": 60.0,
    "concurrency": 1,
    "environment": "sha256:" + "cd" * 32,
    "python": "3.11",
    "requirements": ["magika==1.0.3"],
    "created": 1_700_000_000.0,
    "profile": PROFILE,
    "state": "preloaded",
    "pinned": False,
}
RECORD: dict[str, Any] = {
    "id": ACTIVATION,
    "namespace": "default",
    "function": "magika",
    "version": 3,
    "start": "cold",
    "status": "ok",
    "wall": 1_700_000_100.0,
    "e2e_ms": 540.0,
    "phases": {"queue_ms": 0.1, "container_ms": 50.0, "import_ms": 300.0, "load_ms": 160.0, "inference_ms": 29.9},
    "container": "c1",
    "instance": "i1",
    "error": "",
    "hint": "",
}
LOGS = [
    {"activation": ACTIVATION, "stream": "stdout", "wall": 1_700_000_100.0, "text": "loading [weights]\nready\n"}
]
CONTAINERS: dict[str, Any] = {
    "node": {"memory_mb": 8000.0, "committed_mb": 512.0, "sandbox": "process", "missing": []},
    "containers": [
        {
            "id": "c1",
            "namespace": "default",
            "owner": "magika",
            "state": "idle",
            "limit_mb": 512.0,
            "used_mb": 175.0,
            "idle_mb": 337.0,
            "age_s": 90.0,
            "idle_s": 8.0,
            "expires_in_s": 600.0,
            "pinned": False,
            "instances": [
                {
                    "id": "i1",
                    "function": "magika",
                    "version": 3,
                    "level": "loaded",
                    "state": "ready",
                    "frozen": False,
                    "bytes_mb": 75.0,
                    "served": 4,
                },
                {
                    "id": "i2",
                    "function": "default/ocr",
                    "version": 1,
                    "level": "loaded",
                    "state": "ready",
                    "frozen": True,
                    "bytes_mb": 100.0,
                    "served": 0,
                },
            ],
        }
    ],
}
WHY: dict[str, Any] = {
    "activation": RECORD,
    "start": "cold",
    "reproduced": True,
    "probability": 0.03,
    "rate": 0.0005,
    "predictor": "hazard",
    "decisions": [{"ago_s": 12.0, "what": "off-loaded magika from c1", "why": "ocr was worth more there"}],
    "advice": ["pin magika"],
}
STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "uptime_s": 61.0,
    "sandbox": "process",
    "missing": ["functions reach the network"],
    "policy": {"mode": "hazard", "keep_alive": "pressure"},
    "memory_mb": 8000.0,
}


@dataclass
class Stub:
    """Functions by what they do: `magika` works, `full` has no room, `broken` fails, others are not there.
    `api_key`: when set, every call needs it."""

    url: str = ""
    api_key: str = ""
    seen: list[tuple[str, str, Any]] = field(default_factory=list)  # method, path?query, body

    def app(self) -> Starlette:
        api = "/instainfer/v1"
        function = f"{api}/functions/{{ns}}/{{name}}"
        return Starlette(
            routes=[
                Route(function, self._deploy, methods=["PUT"]),
                Route(f"{api}/{{rest:path}}", self._api, methods=["GET", "POST", "DELETE"]),
                Route("/f/{ns}/{name}", self._invoke, methods=["POST"]),
                Route("/redirected/{rest:path}", self._foreign),
            ],
            exception_handlers={InstaInferError: _problem},
        )

    def _authorise(self, request: Request) -> None:
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            raise NotAllowed("no key, or a wrong one", hint="set INSTAINFER_API_KEY")

    async def _deploy(self, request: Request) -> Response:
        self._authorise(request)
        async with request.form() as form:
            sent: dict[str, Any] = {}
            for key, value in form.items():
                sent[key] = value if isinstance(value, str) else await value.read()
        self.seen.append(("PUT", request.url.path, sent))
        name = request.path_params["name"]
        if name == "full":
            raise Conflict("no room")
        events: list[dict[str, Any]] = [
            {"event": "progress", "phase": "package", "message": "read 3 files"},
            {"event": "progress", "phase": "environment", "message": "installing magika==1.0.3"},
            {"event": "progress", "phase": "measure", "message": "loading [once]"},
        ]
        spec = {**FUNCTION, "namespace": request.path_params["ns"], "name": name}
        if name == "broken":
            error = BuildFailed(
                "pip failed", hint="pin a version", phase="build", detail="No matching distribution"
            )
            events.append({"event": "failed", "problem": error.problem()})
        elif name != "cut":
            events.append({"event": "deployed", "function": spec, "profile": PROFILE})
        lines = (json.dumps(event) + "\n" for event in events)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    async def _api(self, request: Request) -> Response:
        self._authorise(request)
        body = await request.body()
        query = f"?{request.url.query}" if request.url.query else ""
        path = request.path_params["rest"]
        self.seen.append((request.method, path + query, json.loads(body) if body else None))
        logs = {"logs": LOGS}
        canned: dict[tuple[str, str], Any] = {
            ("GET", "functions"): {"functions": [FUNCTION]},
            ("GET", "functions/default/magika"): {
                **FUNCTION,
                "versions": [{"version": 3, "digest": FUNCTION["digest"], "created": 1.7e9, "current": True}],
            },
            ("DELETE", "functions/default/magika"): {"message": "deleted"},
            ("GET", "functions/default/magika/logs"): logs,
            ("GET", "activations"): {"activations": [RECORD]},
            ("GET", f"activations/{ACTIVATION}"): RECORD,
            ("GET", f"activations/{ACTIVATION}/logs"): logs,
            ("GET", f"activations/{ACTIVATION}/why"): WHY,
            ("GET", "containers"): CONTAINERS,
            ("GET", "status"): STATUS,
        }
        for verb in ("rollback", "preload", "offload", "pin", "unpin", "hint"):
            canned["POST", f"functions/default/magika/{verb}"] = {"message": f"did {verb}"}
        if path == "functions/default/full/preload":
            raise Conflict("no container has room", hint="pin it, or wait")
        found = canned.get((request.method, path))
        if found is None:
            raise NotFound(f"there is no {path}", hint="`instainfer ls` lists what there is")
        return JSONResponse(found)

    async def _invoke(self, request: Request) -> Response:
        self._authorise(request)
        body = await request.body()
        self.seen.append(("POST", request.url.path, (request.headers["content-type"], body)))
        headers = {
            "x-instainfer-start": "preloaded",
            "x-instainfer-activation": ACTIVATION,
            "server-timing": "queue;dur=0.2, inference;dur=12.5, note;desc=x",
        }
        match request.path_params["name"]:
            case "broken":
                error = InvocationFailed("KeyError: 'text'", phase="inference", detail="Traceback: main.py line 3")
                return JSONResponse(error.problem(), status_code=502, headers=headers)
            case "bytes":
                return Response(b"\x89PNG\xff", media_type="image/png", headers=headers)
            case "text":
                return Response("hello", media_type="text/plain", headers=headers)
        return JSONResponse({"label": "png"}, headers=headers)

    async def _foreign(self, request: Request) -> Response:
        """Something that is no instainfer server."""
        return Response("<html>welcome</html>", media_type="text/html")


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, InstaInferError)
    return JSONResponse(error.problem(), status_code=error.status, media_type="application/problem+json")


@contextmanager
def serving(stub: Stub, *, unix: str = "") -> Iterator[Stub]:
    """`stub` behind a free port of this machine, or behind the Unix socket `unix`."""
    listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    listener.bind(unix or ("127.0.0.1", 0))
    listener.listen()  # from here on a connection waits for its answer: there is nothing to poll for
    if not unix:
        stub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(stub.app(), log_level="error", lifespan="off", ws="none", loop="asyncio")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
