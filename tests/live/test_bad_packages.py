"""Packages and settings that cannot be: refused before anything of them runs."""

from __future__ import annotations

import json
import stat
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from instainfer.client import PREFIX
from tests.live.server_helpers import ECHO, Server, archive, package, told, undeployed

pytestmark = pytest.mark.usefixtures("neighbour")


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("def other():\n    pass\n", {}, "other"),
        (ECHO, {"entry": "main:nothing"}, "nothing"),
        (ECHO, {"entry": "elsewhere:handler"}, "elsewhere.py"),
        (ECHO, {"entry": "main handler"}, "main handler"),
        ("def handler(event)\n    return 1\n", {}, "line 1"),
    ],
    ids=["none", "name", "module", "form", "syntax"],
)
def test_no_entry_point(server: Server, ns: str, source: str, settings: dict[str, Any], said: str) -> None:
    data = package(server.directory, source)
    assert said in undeployed(server, ns, data, "bad_package", 400, "package", **settings)


def link(target: str) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("main.py", ECHO)
        info = zipfile.ZipInfo("data")
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        out.writestr(info, target)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (archive({"main.py": ECHO.encode(), "../evil.py": b""}), ".."),
        (archive({"main.py": ECHO.encode(), "/etc/evil.py": b""}), "absolute"),
        (link("../../etc/passwd"), "data"),
        (link("/etc/passwd"), "data"),
        (b"PK\x05\x06 but no zip", "not a zip"),
        (archive({}), "no files"),
        (archive({"main.py": ECHO.encode()})[:-30], "not a zip"),
    ],
    ids=["dots", "absolute", "link out", "absolute link", "no zip", "empty", "torn"],
)
def test_impossible_packages(server: Server, ns: str, data: bytes, said: str) -> None:
    assert said in undeployed(server, ns, data, "bad_package", 400, "package")
    assert not Path("/etc/evil.py").exists()


@pytest.mark.slow
def test_zip_bomb(server: Server, ns: str) -> None:
    """A gigabyte and more of zeros in a megabyte, once honest and once lying about its size."""
    part = bytes(64 << 20)
    bomb = archive({"main.py": ECHO.encode(), **{f"zeros{n}": part for n in range(17)}})
    assert len(bomb) < 2_000_000
    assert "MB, more than" in undeployed(server, ns, bomb, "bad_package", 400, "package")
    lying = bytearray(archive({"main.py": ECHO.encode(), "zeros": part}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = lying.rindex(signature) + offset
        lying[at : at + 4] = (10).to_bytes(4, "little")
    assert "zeros" in undeployed(server, ns, bytes(lying), "bad_package", 400, "package")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"memry": "1GB"}, "memory"),
        ({"memory": "5GB"}, "4000 MB"),
        ({"memory": "1MB"}, "16MiB"),
        ({"timeout": "never"}, "never"),
        ({"concurrency": 0}, "concurrency"),
        ({"python": "2.7"}, "2.7"),
        ({"isolation": "none"}, "isolation"),
        ({"sample": "absent.json"}, "absent.json"),
    ],
)
def test_impossible_settings(server: Server, ns: str, settings: dict[str, Any], said: str) -> None:
    *_, last = server.put(ns, "bad", package(server.directory, ECHO), **settings)
    text = json.dumps(told(last["problem"], "bad_settings", 400, f"{ns}/bad", "package"))
    assert said in text + last["problem"]["hint"]


def test_settings_that_are_no_object(server: Server, ns: str) -> None:
    files = {"package": ("package.zip", package(server.directory, ECHO), "application/zip")}
    for settings in ("[1]", "{", "nothing"):
        path = f"{PREFIX}/functions/{ns}/bad"
        response = server.http.put(path, data={"settings": settings}, files=files)
        assert response.status_code == 400
        assert response.json()["type"] == "urn:instainfer:error:bad_input"
        assert response.json()["hint"]


@pytest.mark.parametrize("name", ["-leading", "has space", "é", "x" * 65, "..", "a%2Fb"])
def test_impossible_names(server: Server, ns: str, name: str) -> None:
    files = {"package": ("package.zip", package(server.directory, ECHO), "application/zip")}
    response = server.http.put(f"{PREFIX}/functions/{ns}/{name}", files=files)
    if response.status_code == 200:
        (event,) = [json.loads(line) for line in response.text.splitlines()]
        assert event["problem"]["type"] == "urn:instainfer:error:bad_input"
        assert event["problem"]["hint"]
    else:
        assert response.status_code in (404, 405)  # the path names something else
    assert server.client.functions(ns) == []


@pytest.mark.slow
def test_a_requirement_that_does_not_exist(server: Server, ns: str) -> None:
    data = package(server.directory, ECHO)
    text = undeployed(
        server, ns, data, "build_failed", 502, "build", requirements=["no-such-package-here @ file:///nowhere.whl"]
    )
    assert "nowhere.whl" in text
