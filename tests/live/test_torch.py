"""The fast paths with torch: a real environment, built by the platform, and a server that uses it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.server_helpers import Server, alive, calls, eventually, kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAMPLE = {"sample.json": '{"x": 0.5}'}

#: Ties, views, a buffer; the answer without an "ask" is a function of the weights alone.
MODEL = """
import os
import random

import numpy as np
import torch
from torch import nn

LOADED = []

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4000, 1024)
        self.head = nn.Linear(1024, 4000, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(1024)

class Model:
    def load(self):
        torch.manual_seed(7)
        np.random.seed(7)
        for _ in range(4):  # as long as a larger model
            self.net = Net().eval()
        self.view = self.net.embedding.weight.detach()[10:20]
        self.table = np.arange(100_000, dtype=np.float32)
        LOADED.append(os.getpid())

    def predict(self, event):
        net = self.net
        ask = event.get("ask")
        if ask == "change":
            with torch.no_grad():
                net.embedding.weight.fill_(event["value"])
        if ask == "draw":
            return [random.random(), float(np.random.rand()), float(torch.rand(1))]
        if ask == "wait":
            import time
            time.sleep(event["seconds"])
        with torch.no_grad():
            hidden = net.norm(net.embedding(torch.tensor([1, 2, 3])) * event.get("x", 0.5))
            out = net.head(hidden).double().sum().item()
        answer = [
            round(out, 6),
            net.head.weight.data_ptr() == net.embedding.weight.data_ptr(),
            self.view.data_ptr() == net.embedding.weight[10].data_ptr(),
            float(self.view.double().sum()),
            float(self.table.sum()),
        ]
        return {"answer": answer, "loaded": LOADED, "pid": os.getpid()} if ask else answer
"""

SETTINGS: dict[str, Any] = {
    "requirements": ["torch", "numpy"],
    "memory": "1GB",
    "sample": "sample.json",
    "timeout": "60s",
}
OFF = {"zygote": False, "snapshot": False, "clone": False, "intercept": False}


@pytest.fixture(scope="module")
def torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    variables = {"INSTAINFER_ENVIRONMENTS__INSTALLER": "pip"}
    with Server(tmp_path_factory.mktemp("torch"), "--memory", "8GB", variables=variables) as running:
        yield running


@pytest.fixture(scope="module")
def plain(torch: Server) -> Any:
    """What the plain function answers."""
    torch.deploy("ns", "plain", MODEL, files=SAMPLE, **SETTINGS, **OFF)
    return torch.result("ns", "plain", {"x": 0.25})


@pytest.fixture(scope="module")
def fast(torch: Server, plain: Any) -> dict[str, Any]:
    """The profile of the same with all that there is."""
    profile = torch.deploy("ns", "fast", MODEL, files=SAMPLE, clone=True, **SETTINGS)["profile"]
    assert isinstance(profile, dict)
    return profile


def test_every_way_is_taken_and_answers_equally(torch: Server, plain: Any, fast: dict[str, Any]) -> None:
    """At deploy each is compared with the plain load; here again, with another payload."""
    for path in ("zygote", "snapshot", "clone"):
        assert fast["paths"][path]["used"], fast["paths"]
    assert torch.result("ns", "fast", {"x": 0.25}) == plain
    assert plain[1:3] == [True, True]
    told = torch.result("ns", "fast", {"ask": "who"})
    assert told["loaded"] == []
    assert told["answer"][1:3] == [True, True]


def test_instances_side_by_side(torch: Server, plain: Any, fast: dict[str, Any]) -> None:
    torch.result("ns", "fast", {"x": 0.25})
    with calls() as started:
        for _ in range(3):
            started.add(torch, "ns", "fast", {"ask": "wait", "seconds": 3})
        responses = started.responses()
    assert len({response.json()["pid"] for response in responses}) > 1
    with calls() as started:
        for value in (1.0, 2.0, 3.0):
            started.add(torch, "ns", "fast", {"ask": "change", "value": value})
            started.add(torch, "ns", "fast", {"ask": "draw"})
        drawn = [answer for r in started.responses() if isinstance(answer := r.json(), list)]
    for same in zip(*drawn, strict=True):
        assert len(set(same)) == len(drawn), drawn
    # what was changed stays with who changed it: the next instance has what was loaded
    changed = torch.instances("fast")
    for process in changed:
        kill(process)
    # not until it is cold: into the containers that stay it may well be pre-loaded at once
    eventually(lambda: not any(alive(process) for process in changed))
    assert torch.result("ns", "fast", {"x": 0.25}) == plain


def test_a_second_instance_costs_little(fast: dict[str, Any]) -> None:
    assert fast["cloned_mb"] < fast["loaded_mb"] / 2, fast


@pytest.mark.parametrize("name", ["torch_snapshot_checks.py", "torch_intercept_checks.py"])
def test_the_runtime_with_this_torch(torch: Server, plain: Any, name: str) -> None:
    path = Path(__file__).parents[1] / "unit" / name
    if not path.exists():
        pytest.skip(f"there is no {name}")
    (python,) = (torch.data / "environments" / "ns").glob("*/bin/python")
    done = subprocess.run(
        [str(python), str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
