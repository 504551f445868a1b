"""The management API against its own description: nothing sent makes it fail, and it answers as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.server_helpers import ECHO, Server

#: Paths: a key of a namespace, made by chance, would lock the rest out, the feed has no end, and a server that
#: begins anew answers nobody.
LEFT_OUT = "namespaces/|/live$|v1/restart$"


@pytest.mark.slow
def test_what_is_answered_is_described(tmp_path: Path) -> None:
    with Server(tmp_path, "--memory", "1GB") as server:
        server.deploy("default", "f", ECHO)
        server.result("default", "f")
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        options = [
            "--max-examples",
            "20",
            "--exclude-path-regex",
            LEFT_OUT,
            "--seed",
            "1",
            "--no-color",
        ]
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        options += ["--checks", checks]
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False
        )
        assert done.returncode == 0, done.stdout[-6000:]
        described = server.http.get("/openapi.json").json()["paths"]
        asked = sum(len(methods) for path, methods in described.items() if not re.search(LEFT_OUT, path))
        assert asked >= 20
        assert f"Tested: {asked}" in done.stdout
        assert server.http.get("/healthz").status_code == 200
        assert "Traceback" not in server.errors()
