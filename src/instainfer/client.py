"""A synchronous client of one server: the command line's, and yours.

    with Client() as client:
        answer = client.invoke("default", "magika", b"...", "application/octet-stream")

Every call raises an error of `instainfer.errors`: the server's own, rebuilt from its problem JSON, or
Unavailable when nobody answers.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from instainfer import door
from instainfer.config import is_loopback
from instainfer.errors import BadInput, InstaInferError, Unavailable, from_problem

DEFAULT_URL = "http://127.0.0.1:3233"
#: Name of the local admin socket inside a server's data directory; its owner needs no key.
ADMIN_SOCKET = "admin.sock"

PREFIX = "/instainfer/v1"
ADDRESS_HINT = "write it like http://127.0.0.1:3233"
START_HINT = "start it with `instainfer serve`, or name another: --url URL, INSTAINFER_URL, or --data-dir DIR"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a function answered. `phases` are milliseconds by name, from Server-Timing."""

    body: bytes
    type: str
    start: str
    activation: str
    phases: dict[str, float]

    def json(self) -> Any:
        """The body as JSON; raises msgspec.DecodeError when it is something else."""
        return msgspec.json.decode(self.body)


class Client:
    """`url`, `api_key`: default to INSTAINFER_URL (then 127.0.0.1:3233) and INSTAINFER_API_KEY. `data_dir`:
    speak to that server's local admin socket instead of a URL; so does, without a key, the user whose server on
    this machine asks for one. `connect_s` bounds the wait for a
    connection, never the wait for an answer: a build or a cold start takes what it takes."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        data_dir: str | Path | None = None,
        *,
        connect_s: float = 5.0,
    ) -> None:
        headers = {}
        if key := api_key if api_key is not None else os.environ.get("INSTAINFER_API_KEY"):
            headers["authorization"] = f"Bearer {key}"
        transport = None
        base = (url or os.environ.get("INSTAINFER_URL") or DEFAULT_URL).rstrip("/")
        socket = None if data_dir is None else Path(data_dir).expanduser() / ADMIN_SOCKET
        if socket is None and not key:
            socket = door.find(base)
        if socket is not None:
            self.where, base = str(socket), "http://localhost"
            transport = httpx.HTTPTransport(uds=str(socket))
        else:
            self.where = base
        try:
            host = urlsplit(base).hostname or ""
            self._http = httpx.Client(
                base_url=base,
                headers=headers,
                transport=transport,
                timeout=httpx.Timeout(None, connect=connect_s),
                # A proxy for the outside world must not see, nor break, what stays on this machine.
                trust_env=not is_loopback(host),
                verify=_authorities(base),
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise Unavailable(f"{self.where!r} is no server's address: {error}", hint=ADDRESS_HINT) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Functions

    def deploy(
        self,
        namespace: str,
        name: str,
        package: bytes,
        settings: Mapping[str, Any] | None = None,
        *,
        sample: bytes | None = None,
        sample_type: str = "",
    ) -> Iterator[dict[str, Any]]:
        """Yield the server's events as they come: any number of `progress`, then one `deployed` with
        `function` and `profile`. `package` is a zip. Raises what failed it, BuildFailed and LoadFailed
        with the tool's output or the traceback included, and Unavailable if the server went away halfway."""
        fields = {"settings": msgspec.json.encode(dict(settings or {})).decode()}
        files = {"package": (f"{name}.zip", package, "application/zip")}
        if sample is not None:
            files["sample"] = ("sample", sample, sample_type or "application/octet-stream")
            fields["sample_type"] = sample_type
        path = self._function(namespace, name)
        with self._translated(), self._http.stream("PUT", path, data=fields, files=files) as response:
            if response.status_code >= 400:
                response.read()
                raise _problem(response)
            for line in response.iter_lines():
                if not line.strip():
                    continue
                event = msgspec.json.decode(line, type=dict[str, Any])
                if event.get("event") == "failed":
                    raise from_problem(event["problem"])
                yield event
                if event.get("event") == "deployed":
                    return
        raise Unavailable("the server ended the deployment without a result", hint="see the server's log")

    def functions(self, namespace: str | None = None) -> list[dict[str, Any]]:
        return self._list("functions", "functions", namespace=namespace)

    def function(self, namespace: str, name: str) -> dict[str, Any]:
        return self._json("GET", self._function(namespace, name))

    def delete(self, namespace: str, name: str) -> dict[str, Any]:
        return self._json("DELETE", self._function(namespace, name))

    def rollback(self, namespace: str, name: str, version: int) -> dict[str, Any]:
        """Make an earlier version the current one."""
        return self._act(namespace, name, "rollback", {"version": version})

    def preload(self, namespace: str, name: str) -> dict[str, Any]:
        """Load it now into idle memory; never creates a container. Raises Conflict when none has room."""
        return self._act(namespace, name, "preload")

    def offload(self, namespace: str, name: str) -> dict[str, Any]:
        return self._act(namespace, name, "offload")

    def pin(self, namespace: str, name: str) -> dict[str, Any]:
        """Keep it loaded whatever the predictor says; may create a container."""
        return self._act(namespace, name, "pin")

    def unpin(self, namespace: str, name: str) -> dict[str, Any]:
        return self._act(namespace, name, "unpin")

    def hint(self, namespace: str, name: str, in_s: float, probability: float = 1.0) -> dict[str, Any]:
        """Say that a request is expected `in_s` seconds from now with that probability."""
        return self._act(namespace, name, "hint", {"in_s": in_s, "probability": probability})

    def logs(self, namespace: str, name: str, *, limit: int | None = None) -> list[dict[str, Any]]:
        """What its latest activations printed, oldest first."""
        return self._list(f"{self._function(namespace, name)}/logs", "logs", limit=limit)

    # Activations

    def activations(
        self,
        *,
        namespace: str | None = None,
        function: str | None = None,
        limit: int | None = None,
        skip: int | None = None,
        since: float | None = None,
    ) -> list[dict[str, Any]]:
        """The latest first. `since`: seconds since 1970."""
        query = {"namespace": namespace, "function": function, "limit": limit, "skip": skip, "since": since}
        return self._list("activations", "activations", **query)

    def activation(self, activation: str) -> dict[str, Any]:
        return self._json("GET", f"{PREFIX}/activations/{_quoted(activation)}")

    def activation_logs(self, activation: str) -> list[dict[str, Any]]:
        return self._list(f"{PREFIX}/activations/{_quoted(activation)}/logs", "logs")

    def why(self, activation: str) -> dict[str, Any]:
        """Start kind, forecast, decisions and advice of one activation."""
        return self._json("GET", f"{PREFIX}/activations/{_quoted(activation)}/why")

    # Namespaces

    def namespaces(self) -> list[dict[str, Any]]:
        """Those that the key may see, with their keys' ids and quotas."""
        return self._list("namespaces", "namespaces")

    def add_namespace(self, namespace: str, role: str = "admin") -> dict[str, Any]:
        """Make a key for it, and it if it is new: {"namespace", "auth", "role"}."""
        return self._json("PUT", self._namespace(namespace), json={"role": role})

    def revoke(self, namespace: str, key: str) -> dict[str, Any]:
        return self._json("DELETE", f"{self._namespace(namespace)}/keys/{_quoted(key)}")

    def limit(self, namespace: str, quota: Mapping[str, int]) -> dict[str, Any]:
        """Change what is named of its quota; 0: no limit."""
        return self._json("PATCH", f"{self._namespace(namespace)}/quota", json=dict(quota))

    # The platform

    def containers(self) -> dict[str, Any]:
        """{"node": …, "containers": […]}."""
        return self._json("GET", f"{PREFIX}/containers")

    def nodes(self) -> list[dict[str, Any]]:
        """Of the cluster, or this machine alone: `node`, `state`, `cluster`, memory, containers."""
        found: list[dict[str, Any]] = self._json("GET", f"{PREFIX}/nodes")["nodes"]
        return found

    def drain(self, node: str, *, undo: bool = False) -> dict[str, Any]:
        """Give it nothing new, and let it serve until what it has stands elsewhere; or take that back. The node as
        it is then."""
        params = {"undo": "true"} if undo else {}
        found: dict[str, Any] = self._json("POST", f"{PREFIX}/nodes/{_quoted(node)}/drain", params=params)
        return found

    def restart_node(self, node: str) -> None:
        """The agent of a drained node begins anew."""
        self._json("POST", f"{PREFIX}/nodes/{_quoted(node)}/restart")

    def restart(self) -> None:
        """The server finishes what runs and begins anew."""
        self._json("POST", f"{PREFIX}/restart")

    def policies(self) -> dict[str, Any]:
        """{"since": …, "policies": […]}: the one in force, then its shadows; none where there are no shadows."""
        return self._json("GET", f"{PREFIX}/policies")

    def status(self) -> dict[str, Any]:
        return self._json("GET", f"{PREFIX}/status")

    def live(self, since: str = "") -> Generator[dict[str, Any], None, None]:
        """What there is and what happens, once a second, until the connection ends: raises Unavailable then. The
        caller may come back with the last event's `id`; where `anew` is true, what it had is to be dropped."""
        path, params = f"{PREFIX}/live", {"since": since} if since else {}
        with self._translated(), self._http.stream("GET", path, params=params) as response:
            if response.status_code >= 400:
                response.read()
                raise _problem(response)
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield msgspec.json.decode(line[5:], type=dict[str, Any])
        raise Unavailable("the server ended the feed", hint="it may be stopping: see its log")

    # Invocations

    def invoke(
        self, namespace: str, name: str, body: bytes = b"{}", content_type: str = "application/json"
    ) -> Answer:
        """Send `body` to the function as it is. Raises what the function or the platform raised; the
        hint names its activation, if there was one."""
        path = f"/f/{_quoted(namespace)}/{_quoted(name)}"
        with self._translated():
            response = self._http.post(path, content=body, headers={"content-type": content_type})
        if response.status_code >= 400:
            raise _problem(response)
        return _answer(response)

    def begin(
        self,
        namespace: str,
        name: str,
        body: bytes = b"{}",
        content_type: str = "application/json",
        *,
        key: str = "",
    ) -> dict[str, Any]:
        """Have it committed and run later: {"id", "state", "result"}. `key`: one answer for all with it."""
        path = f"/f/{_quoted(namespace)}/{_quoted(name)}"
        headers = {"content-type": content_type, "prefer": "respond-async"}
        return self._json("POST", path, content=body, headers=headers | ({"idempotency-key": key} if key else {}))

    def jobs(
        self, *, namespace: str | None = None, state: str | None = None, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Requests that are answered later, newest first."""
        return self._list("jobs", "jobs", namespace=namespace, state=state, limit=limit)

    def job(self, job: str) -> dict[str, Any]:
        return self._json("GET", f"{PREFIX}/jobs/{_quoted(job)}")

    def retry(self, job: str) -> dict[str, Any]:
        """A dead letter gets its attempts again."""
        return self._json("POST", f"{PREFIX}/jobs/{_quoted(job)}/retry")

    def result(self, job: str, wait_s: float | None = None) -> Answer | None:
        """What it was answered; None if it is not over after so many seconds (None: however long it takes).
        Raises what it failed with."""
        path = f"{PREFIX}/jobs/{_quoted(job)}/result"
        while True:
            asked = 30.0 if wait_s is None else min(wait_s, 30.0)
            with self._translated():
                response = self._http.get(path, params={"wait_s": asked})
            if response.status_code >= 400:
                raise _problem(response)
            if response.status_code == 200:
                return _answer(response)
            if wait_s is not None:
                wait_s -= asked
                if wait_s <= 0:
                    return None

    def _function(self, namespace: str, name: str) -> str:
        return f"{PREFIX}/functions/{_quoted(namespace)}/{_quoted(name)}"

    def _namespace(self, namespace: str) -> str:
        return f"{PREFIX}/namespaces/{_quoted(namespace)}"

    def _act(self, namespace: str, name: str, verb: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._json("POST", f"{self._function(namespace, name)}/{verb}", json=dict(body or {}))

    def _list(self, path: str, key: str, **query: Any) -> list[dict[str, Any]]:
        path = path if path.startswith("/") else f"{PREFIX}/{path}"
        params = {name: value for name, value in query.items() if value is not None}
        with self._translated():
            return msgspec.convert(self._json("GET", path, params=params).get(key), list[dict[str, Any]])

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        with self._translated():
            response = self._http.request(method, path, **options)
        if response.status_code >= 400:
            raise _problem(response)
        if response.status_code == 204 or not response.content:
            return {}
        with self._translated():
            return msgspec.json.decode(response.content, type=dict[str, Any])

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """httpx's and msgspec's errors as ours."""
        try:
            yield
        except msgspec.MsgspecError:
            raise Unavailable(
                f"what answers at {self.where} is not an instainfer server", hint=START_HINT
            ) from None
        except httpx.UnsupportedProtocol as error:
            raise Unavailable(
                f"{self.where} is no server's address: {error}", hint="such as http://host:3233"
            ) from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            why = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
            raise Unavailable(f"no server answers at {self.where} ({why})", hint=START_HINT) from None
        except httpx.TransportError as error:
            said = str(error) or type(error).__name__
            raise Unavailable(
                f"the connection to {self.where} broke: {said}", hint="see the server's log; is it still running?"
            ) from None


def _answer(response: httpx.Response) -> Answer:
    return Answer(
        body=response.content,
        type=response.headers.get("content-type", ""),
        start=response.headers.get("x-instainfer-start", ""),
        activation=response.headers.get("x-instainfer-activation", ""),
        phases=parse_timing(response.headers.get("server-timing", "")),
    )


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _authorities(base: str) -> ssl.SSLContext | bool:
    """Whose certificates are believed: SSL_CERT_FILE's, where that is set, as other programs do."""
    file = os.environ.get("SSL_CERT_FILE", "")
    if not file or not base.startswith("https:"):
        return True
    try:
        return ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(f"SSL_CERT_FILE {file} cannot be used: {error}", hint="a PEM file") from None


def _problem(response: httpx.Response) -> InstaInferError:
    """The error in a response of 400 or above, whoever sent it."""
    try:
        body = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        body = None
    if isinstance(body, dict) and str(body.get("type", "")).startswith("urn:instainfer:error:"):
        error = from_problem(body)
    else:  # a proxy in between, or another server on that port
        text = response.text.strip()[:200] or response.reason_phrase
        error = InstaInferError(f"HTTP {response.status_code}: {text}", hint="is this an instainfer server?")
    if activation := response.headers.get("x-instainfer-activation"):
        seen = f"`instainfer why {activation}` says more"
        error.hint = f"{error.hint}; {seen}" if error.hint else seen
    return error


def parse_timing(header: str) -> dict[str, float]:
    """Milliseconds by metric of a Server-Timing header; metrics without a duration are left out."""
    found = {}
    for metric in header.split(","):
        name, *parameters = (part.strip() for part in metric.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "dur":
                try:
                    found[name] = float(value.strip().strip('"'))
                except ValueError:
                    continue
    return found
