"""A function with a network, in a real server: its way out, and what that does not lead to."""

from __future__ import annotations

import pytest

from tests.live.server_helpers import SANDBOX, Server

#: What it gets for a URL: a status, or the name of the error.
FETCH = """
import os, socket, urllib.error, urllib.request

def handler(event):
    try:
        return urllib.request.urlopen(event["url"], timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return type(getattr(error, "reason", error)).__name__

"""


@pytest.mark.skipif(SANDBOX != "linux", reason="no other sandbox keeps the network away")
def test_a_network_leads_to_nothing_of_the_server(server: Server, ns: str) -> None:
    server.deploy(ns, "open", FETCH, network=True)
    server.deploy(ns, "listed", FETCH, network=["example.invalid:80"])
    server.deploy(ns, "closed", FETCH)
    port = server.url.rpartition(":")[2]
    for name in ("open", "listed", "closed"):
        assert server.result(ns, name, {"url": f"{server.url}/livez"}) == "ConnectionRefusedError"
    for url in ("http://169.254.169.254/latest/", f"http://0.0.0.0:{port}/livez", "http://10.0.0.1/"):
        assert server.result(ns, "open", {"url": url}) == 403
        assert server.result(ns, "listed", {"url": url}) == 403
    assert server.result(ns, "closed", {"url": "http://169.254.169.254/"}) == "OSError"
    assert server.result(ns, "listed", {"url": "http://example.invalid/"}) == 502  # allowed, and nowhere
    zones = {tuple(sorted({i["function"] for i in one["instances"]})) for one in server.containers(ns)}
    assert all(len(functions) <= 1 for functions in zones)  # of other rules, of other containers
    assert server.client.function(ns, "listed")["network"] == ["example.invalid:80"]
