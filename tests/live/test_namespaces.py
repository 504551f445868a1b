"""Several tenants on one server: nothing of one is visible to another, and each stays within its quota."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from instainfer.client import PREFIX, Client
from instainfer.errors import Forbidden, InstaInferError, NotAllowed, NotFound, OverQuota
from tests.live.server_helpers import ECHO, MEMORY, Server, environment, package

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("tenants"), "--memory", "2GB") as server:
        yield server


@pytest.fixture(scope="module")
def keys(shared: Server) -> dict[str, str]:
    """Of two namespaces with a function each."""
    with Client(data_dir=shared.data) as owner:
        found = {name: owner.add_namespace(name)["auth"] for name in ("crimson", "blue")}
    for name, key in found.items():
        with Client(shared.url, key) as tenant:
            list(tenant.deploy(name, f"{name}-f", package(shared.directory, ECHO), {"memory": MEMORY}))
            assert tenant.invoke(name, f"{name}-f", b'{"mine": 1}').json() == {"mine": 1}
    return found


def test_the_first_key_locks_the_door(shared: Server, keys: dict[str, str]) -> None:
    with httpx.Client(base_url=shared.url, trust_env=False) as anyone:
        assert anyone.get("/livez").status_code == 200
        for method, path in (
            ("POST", "/f/crimson/crimson-f"),
            ("GET", "/metrics"),
            ("GET", f"{PREFIX}/functions"),
        ):
            assert anyone.request(method, path).status_code == 401
        user, _, password = keys["crimson"].partition(":")
        assert anyone.post("/f/crimson/crimson-f", json={"a": 1}, auth=(user, password)).json() == {"a": 1}


def test_nothing_of_another_is_visible(shared: Server, keys: dict[str, str]) -> None:
    with Client(shared.url, keys["blue"]) as blue, Client(shared.url, keys["crimson"]) as crimson:
        theirs = blue.activations()
        assert theirs
        assert {one["namespace"] for one in theirs} == {"blue"}
        assert [one["name"] for one in blue.functions()] == ["blue-f"]
        assert [one["namespace"] for one in blue.namespaces()] == ["blue"]
        of_crimson = crimson.activations()[0]["id"]
        for look in (blue.activation, blue.activation_logs, blue.why):
            with pytest.raises(NotFound):
                look(of_crimson)
        attempts: list[Any] = [
            lambda: blue.functions("crimson"),
            lambda: blue.activations(namespace="crimson"),
            lambda: blue.function("crimson", "crimson-f"),
            lambda: blue.logs("crimson", "crimson-f"),
            lambda: blue.invoke("crimson", "crimson-f"),
            lambda: blue.preload("crimson", "crimson-f"),
            lambda: blue.pin("crimson", "crimson-f"),
            lambda: blue.hint("crimson", "crimson-f", 1.0),
            lambda: blue.rollback("crimson", "crimson-f", 1),
            lambda: blue.delete("crimson", "crimson-f"),
            lambda: list(blue.deploy("crimson", "x", package(shared.directory, ECHO))),
            lambda: blue.add_namespace("crimson"),
            lambda: blue.revoke("crimson", keys["crimson"].partition(":")[0]),
            lambda: blue.limit("blue", {"memory": 0}),
            blue.status,
        ]
        said = set()
        for attempt in attempts:
            with pytest.raises(Forbidden) as caught:
                attempt()
            said.add(caught.value.message)
        assert not any("crimson-f" in message for message in said)
        # what is not there is refused in the same words as what is
        texts = []
        for name in ("crimson-f", "none"):
            with pytest.raises(InstaInferError) as caught_other:
                blue.function("crimson", name)
            texts.append(str(caught_other.value.problem()))
        assert texts[0] == texts[1]
        everything = json.dumps([blue.containers(), blue.functions(), blue.activations(), blue.namespaces()])
        assert "crimson" not in everything
        assert "memory_mb" not in blue.containers()["node"]
        assert blue._http.get("/metrics").status_code == 403


def test_roles(shared: Server, keys: dict[str, str]) -> None:
    with Client(shared.url, keys["crimson"]) as crimson:
        caller = crimson.add_namespace("crimson", "invoke")["auth"]
        deployer = crimson.add_namespace("crimson", "deploy")["auth"]
    with Client(shared.url, caller) as client:
        assert client.invoke("crimson", "crimson-f").json() == {}
        with pytest.raises(Forbidden, match="role"):
            client.delete("crimson", "crimson-f")
        with pytest.raises(Forbidden, match="role"):
            client.add_namespace("crimson")
    with Client(shared.url, deployer) as client:
        client.pin("crimson", "crimson-f")
        client.unpin("crimson", "crimson-f")
        with pytest.raises(Forbidden, match="role"):
            client.add_namespace("crimson")
    with Client(data_dir=shared.data) as owner:
        owner.revoke("crimson", caller.partition(":")[0])
    with Client(shared.url, caller) as client, pytest.raises(NotAllowed):
        client.invoke("crimson", "crimson-f")


def test_quotas(shared: Server, keys: dict[str, str]) -> None:
    with Client(data_dir=shared.data) as owner, Client(shared.url, keys["blue"]) as blue:

        def deploy(name: str, **settings: Any) -> None:
            list(blue.deploy("blue", name, package(shared.directory, ECHO), {"memory": MEMORY, **settings}))

        owner.limit("blue", {"functions": 1})
        deploy("blue-f")  # a further version is none
        with pytest.raises(OverQuota, match="1 functions"):
            deploy("second")
        owner.limit("blue", {"functions": 0, "memory": 100_000_000})
        with pytest.raises(OverQuota, match="300 MB"):
            deploy("second", memory="300MB")
        owner.limit("blue", {"memory": 0, "stored_bytes": 10})
        with pytest.raises(OverQuota, match="packages"):
            deploy("second")
        owner.limit("blue", {"stored_bytes": 0, "requests_per_minute": 1})
        assert blue.invoke("blue", "blue-f").json() == {}
        with pytest.raises(OverQuota) as caught:
            blue.invoke("blue", "blue-f")
        assert caught.value.retry_after_s
        owner.limit("blue", {"requests_per_minute": 0})
        assert blue.invoke("blue", "blue-f").json() == {}


def test_the_owner_needs_no_key_on_this_machine(shared: Server, keys: dict[str, str]) -> None:
    """By the command line, which finds the admin socket by the port."""
    done = subprocess.run(
        [sys.executable, "-m", "instainfer.cli", "namespace", "add", "green", "--json", "--url", shared.url],
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["namespace"] == "green"
    with Client(shared.url, made["auth"]) as green:
        assert [one["namespace"] for one in green.namespaces()] == ["green"]


def test_after_a_restart(tmp_path: Path) -> None:
    with Server(tmp_path, "--memory", "1GB") as server:
        auth = server.client.add_namespace("crimson")["auth"]
        with Client(data_dir=server.data) as owner:
            owner.limit("crimson", {"memory": 123_000_000})
        server.kill()
        server.start()
        with Client(server.url, auth) as crimson:
            (found,) = crimson.namespaces()
            assert found["quota"]["memory"] == 123_000_000
        assert httpx.get(f"{server.url}{PREFIX}/functions", trust_env=False).status_code == 401


def test_artifacts_are_the_owners(shared: Server, keys: dict[str, str]) -> None:
    with Client(data_dir=shared.data) as owner, httpx.Client(base_url=shared.url, trust_env=False) as anyone:
        assert owner.functions()
        name = next((shared.data / "blobs").iterdir()).name.replace("-", ":", 1)
        assert anyone.get(f"/artifacts/{name}").status_code == 401
        user, _, password = keys["crimson"].partition(":")
        assert anyone.get(f"/artifacts/{name}", auth=(user, password)).status_code == 403
    admin = httpx.HTTPTransport(uds=str(shared.data / "admin.sock"))
    with httpx.Client(base_url="http://admin", transport=admin) as here:
        found = here.get(f"/artifacts/{name}", headers={"range": "bytes=0-3"})
        assert (found.status_code, found.content) == (206, b"PK\x03\x04")
        assert here.get("/artifacts/..%2Flock").status_code == 400
