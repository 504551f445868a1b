"""A server without keys and the pages of other sites: no address of it does anything for them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from instainfer.client import PREFIX
from tests.live.server_helpers import ECHO, Server

ADDRESSES = [
    ("POST", "/f/{ns}/f"),
    ("GET", "/f/{ns}/f"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", f"{PREFIX}/status"),
    ("POST", f"{PREFIX}/functions/{{ns}}/f/preload"),
    ("POST", f"{PREFIX}/functions/{{ns}}/f/offload"),
    ("DELETE", f"{PREFIX}/functions/{{ns}}/f"),
    ("GET", "/api/v1/namespaces/{ns}/actions"),
    ("POST", "/api/v1/namespaces/{ns}/actions/f?blocking=true"),
    ("POST", "/v2/repository/index"),
    ("GET", "/v2"),
    ("GET", "/instainfer/artifacts/x"),
    ("GET", "/nowhere"),
]


@pytest.fixture
def deployed(server: Server, ns: str) -> str:
    server.deploy(ns, "f", ECHO)
    return ns


def ask(server: Server, method: str, path: str, **headers: str) -> tuple[int, str]:
    """As it stands: an HTTP library would have its own Host."""
    where = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(where, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in ({"host": where} | headers).items():
            connection.putheader(name.replace("_", "-"), value)
        connection.putheader("content-length", "0")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_no_address_answers_another_sites_page(server: Server, deployed: str) -> None:
    attempts = (
        {"sec_fetch_site": "cross-site", "origin": "https://evil.example"},
        {"sec_fetch_site": "same-site"},
        {"origin": "null"},
        {"host": "evil.example", "sec_fetch_site": "same-origin"},
    )
    for method, pattern in ADDRESSES:
        path = pattern.format(ns=deployed)
        for headers in attempts:
            status, text = ask(server, method, path, **headers)
            assert status == 403, (method, path, headers, text)
            assert "server.api_key" in text or path.startswith("/v2"), text
    assert server.state(deployed, "f") == "cold"


def test_programs_and_its_own_pages_are_answered(server: Server, deployed: str) -> None:
    own = {"sec_fetch_site": "same-origin", "origin": server.url}
    for headers in ({}, own, {"sec_fetch_site": "none"}, {"host": "localhost:1"}, {"host": "[::1]"}):
        for method, path in (("POST", f"/f/{deployed}/f"), ("GET", "/healthz"), ("GET", f"{PREFIX}/status")):
            status, text = ask(server, method, path, **headers)
            assert status == 200, (path, headers, text)


def test_the_dashboard_may_be_linked_to(server: Server) -> None:
    for site in ("none", "cross-site", "same-origin"):
        assert ask(server, "GET", "/ui/", sec_fetch_site=site)[0] == 200
    status, text = ask(server, "GET", "/ui/", host="evil.example")
    assert status == 403 and json.loads(text)["type"] == "urn:instainfer:error:cross_site"


@pytest.mark.slow
def test_names_that_were_said_and_keys(tmp_path: Path) -> None:
    with Server(tmp_path, "--memory", "512MB", variables={"INSTAINFER_SERVER__HOSTS": "models.internal"}) as own:
        assert ask(own, "GET", "/healthz", host="models.internal:80")[0] == 200
        assert ask(own, "GET", "/healthz", host="evil.example")[0] == 403
        key = own.client.add_namespace("n")
        # Any name will do: a page has no key.
        assert ask(own, "GET", "/livez", host="evil.example", sec_fetch_site="cross-site")[0] == 200
        bearer = f"Bearer {key['auth']}"
        asked = {"host": "evil.example", "sec_fetch_site": "cross-site"}
        assert ask(own, "GET", f"{PREFIX}/functions", authorization=bearer, **asked)[0] == 200
        assert ask(own, "GET", f"{PREFIX}/functions", **asked)[0] == 401
        # With the last key the door stays shut, and the owner has the admin socket.
        id = key["auth"].partition(":")[0]
        status, text = ask(own, "DELETE", f"{PREFIX}/namespaces/n/keys/{id}", authorization=bearer)
        assert status == 200, text
        assert ask(own, "GET", f"{PREFIX}/functions")[0] == 401
        assert ask(own, "POST", "/f/n/f")[0] == 401


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """Another site, and what its visitors' pages report to it."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/heard/"):
                heard.append(self.path.removeprefix("/heard/"))
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://localhost:{other.server_address[1]}", heard
        finally:
            other.shutdown()
            thread.join()


@pytest.mark.slow
def test_a_real_browser_on_another_site(server: Server, deployed: str, elsewhere: tuple[str, list[str]]) -> None:
    from tests.live.browser import chromium

    url, heard = elsewhere
    with chromium() as browser:
        page = browser.new_context().new_page()
        page.goto(url)
        page.evaluate(
            """async url => {
                for (const options of [{method: "POST"}, {method: "POST", body: "x=1"}, {}])
                    await fetch(url, {mode: "no-cors", ...options}).catch(() => null);
                await fetch("/heard/done");
            }""",
            f"{server.url}/f/{deployed}/f",
        )
        assert heard == ["done"]
        assert server.state(deployed, "f") == "cold"
        # The dashboard of the same server, from a bookmark, as ever.
        page.goto(f"{server.url}/ui/")
        status = page.evaluate("async path => (await fetch(path)).status", f"{PREFIX}/status")
        assert status == 200
