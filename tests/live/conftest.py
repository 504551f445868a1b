"""One server for all tests that leave it as it was; every test has a namespace of its own. And bare instances."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.instances import Start
from tests.live.server_helpers import Server

#: Small, so that what goes over them does so quickly.
LIMITS = {
    "INSTAINFER_LIMITS__LOAD_S": "3",
    "INSTAINFER_SERVER__MAX_BODY": "12MB",
    "INSTAINFER_SERVER__MAX_ANSWER": "12MB",
    "INSTAINFER_SANDBOX__PIDS": "64",
}

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), "--memory", "4GB", variables=LIMITS) as running:
        yield running


@pytest.fixture
def ns(server: Server) -> Iterator[str]:
    """A namespace that nobody has used; what is deployed in it goes with the test."""
    name = f"n{next(_numbers)}"
    yield name
    for function in server.client.functions(name):
        server.client.delete(name, function["name"])


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, which it may stop, kill and start."""
    with Server(tmp_path, "--memory", "1GB", variables=LIMITS) as running:
        yield running


@pytest.fixture
def neighbour(server: Server) -> Iterator[None]:
    """Another function, which must not notice: the same process, warm, before and after."""
    name = "calm", "neighbour"
    if not server.client.functions("calm"):
        server.deploy(*name, "import os\n\ndef handler(event):\n    return os.getpid()\n")
    before = server.result(*name)
    yield
    after = server.call(*name)
    assert (after.json(), after.headers["x-instainfer-start"]) == (before, "warm")
    assert server.http.get("/healthz").status_code == 200


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    starter = Start(tmp_path)
    yield starter
    for live in starter.started:
        live.close()
