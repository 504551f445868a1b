"""Shadows of a real server: beside it, told of, gone with it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from instainfer.cli import app
from instainfer.client import Client
from instainfer.errors import Forbidden
from instainfer.lab import simulate as lab
from tests.live.server_helpers import Server, eventually, gone, kill, refused

SLOW_LOAD = """
import time

time.sleep(0.2)

def handler(event):
    return event
"""


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, "--memory", "1GB", "--shadow", "tyche,gdsf") as running:
        yield running


def rows(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.client.policies()["policies"]
    return found


def following(server: Server, calls: int) -> list[dict[str, Any]]:
    """The rows, when all that still follow have come to so many calls."""

    def there() -> list[dict[str, Any]] | None:
        found = rows(server)
        near = (row["invocations"] == calls for row in found if row["state"] in ("live", "following"))
        return found if all(near) else None

    found = eventually(there, what=f"{calls} calls everywhere")
    assert found is not None
    return found


def simulated(server: Server, mode: str) -> dict[str, Any]:
    """What `simulate` says of the server's own records and profiles."""
    calls, costs = server.directory / "calls.json", server.directory / "costs.json"
    calls.write_text(json.dumps({"activations": server.client.activations(limit=2000)}))
    done = CliRunner().invoke(app, ["profile", "export", "--url", server.url, "-o", str(costs)])
    assert done.exit_code == 0, done.output
    settings = lab.Settings(
        world="containers",
        profiles=str(costs),
        warmup=0.0,
        min_calls=1,
        load_slots=len(os.sched_getaffinity(0)),
        cores=0,  # in shadows inferences slow no loads
        zygote_memory="0",
    )
    memory = server.client.status()["memory_mb"]
    size = sum(one["memory_mb"] for one in json.loads(costs.read_text()))
    return lab.row(settings, lab.Case(calls, mode, memory / size))


def test_shadows_are_told_of_and_equal_a_simulation_of_the_log(tmp_path: Path) -> None:
    flags = ("--memory", "1GB", "--zygote-memory", "0", "--shadow", "tyche,gdsf,hazard:poisson")
    with Server(tmp_path, *flags) as server:
        for name in ("a", "b", "c"):
            server.deploy("default", name, SLOW_LOAD)
        for number in range(24):
            server.result("default", "aab"[number % 3] if number < 18 else "c")
        live, *shadows = following(server, 24)
        assert (live["mode"], live["shadow"], live["state"], live["rejected"]) == ("hazard", False, "live", 0)
        assert live["cold_fraction"] + live["preloaded_fraction"] == pytest.approx(3 / 24)
        assert 0.0 < live["saved_fraction"] < 1.0
        assert live["warming_loading_mean_ms"] > 0.0
        told = [(row["mode"], row["predictor"], row["shadow"], row["state"]) for row in shadows]
        assert told == [
            ("tyche", "poisson", True, "following"),
            ("gdsf", "frequency", True, "following"),
            ("hazard", "poisson", True, "following"),
        ]
        for row in shadows:
            same = simulated(server, f"{row['mode']}:{row['predictor']}")
            compared = [key for key in row if key.endswith("_fraction")]
            compared += ["invocations", "rejected", "warming_loading_mean_ms", "e2e_mean_ms", "wasted_gb_s"]
            # the records' clock is the wall's, a shadow's is not
            assert [row[key] for key in compared] == pytest.approx([same[key] for key in compared], rel=1e-3)


def test_a_killed_shadow_is_out_and_the_server_goes_on(watched: Server, ns: str) -> None:
    watched.deploy(ns, "f", SLOW_LOAD)
    watched.result(ns, "f")
    following(watched, 1)
    tyche, gdsf = watched.named("instainfer.shadow.process")
    assert [row["pid"] for row in following(watched, 1)[1:]] == sorted((tyche.pid, gdsf.pid))
    assert tyche.nice() == gdsf.nice() == 19  # after whoever answers requests
    kill(tyche)
    gone([tyche])
    watched.result(ns, "f")
    live, out, other = following(watched, 2)
    assert (out["state"], out["reason"], out["invocations"], out["pid"]) == (
        "ended",
        "its process ended: killed by SIGKILL",
        1,
        None,
    )
    assert (live["state"], other["state"]) == ("live", "following")
    assert "the shadow tyche:poisson is out: its process ended: killed by SIGKILL" in watched.errors()
    metrics = watched.http.get("/metrics").text
    assert 'instainfer_shadow_following{policy="tyche:poisson"} 0.0' in metrics
    assert 'instainfer_shadow_following{policy="gdsf:frequency"} 1.0' in metrics


def test_shadows_mind_no_signal_of_a_group_and_go_with_the_server(watched: Server) -> None:
    following(watched, 0)  # they have begun
    processes = watched.named("instainfer.shadow.process")
    assert len(processes) == 2
    for process in processes:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
    assert [row["state"] for row in following(watched, 0)] == ["live", "following", "following"]
    watched.kill()  # -9
    gone(processes)
    watched.start()  # and is stopped well by the fixture: what a kill leaves behind is of no concern here


def test_after_a_restart_they_begin_anew(watched: Server, ns: str) -> None:
    watched.deploy(ns, "f", SLOW_LOAD)
    watched.result(ns, "f")
    following(watched, 1)
    before = watched.client.policies()["since"]
    assert watched.term() == 0
    watched.start()
    assert watched.client.policies()["since"] > before
    following(watched, 0)
    watched.result(ns, "f")  # deployed before this start, and known to them
    assert all(row["rejected"] == 0 for row in following(watched, 1))


def test_a_policy_that_there_is_not(tmp_path: Path) -> None:
    said = refused(tmp_path, "--shadow", "tyche,oracle")
    assert "there is no mode of pre-loading 'oracle'" in said and "these exist: hazard, tyche" in said
    assert "there is no predictor 'oracle'" in refused(tmp_path, INSTAINFER_POLICY__SHADOW="tyche:oracle")


def test_without_shadows_there_is_nothing_to_show(server: Server) -> None:
    assert rows(server) == []
    assert not server.named("instainfer.shadow.process")


def test_what_all_namespaces_do_is_its_owners_alone(tmp_path: Path) -> None:
    key = {"INSTAINFER_SERVER__API_KEY": "owner"}
    with Server(tmp_path, "--memory", "1GB", "--shadow", "none", variables=key) as server:
        made = server.http.put("/instainfer/v1/namespaces/guest", json={"role": "admin"})
        assert made.status_code == 200, made.text
        assert server.client.policies()["policies"]
        with Client(server.url, made.json()["auth"]) as guest, pytest.raises(Forbidden):
            guest.policies()
