"""Shadows: what they count, what they do when they cannot follow, and that the server minds none of it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from instainfer import config
from instainfer.books import Books, Ticket
from instainfer.cli import app
from instainfer.core import actions as act
from instainfer.core import events as ev
from instainfer.core.events import AnyEvent
from instainfer.errors import BadSettings
from instainfer.lab import simulate as lab
from instainfer.model import Costs, FunctionSpec, Level, Origin, Style
from instainfer.observe import Metrics
from instainfer.policies import registry
from instainfer.shadow import process
from instainfer.shadow.follower import Follower, wanted
from instainfer.shadow.live import Live
from instainfer.shadow.messages import FOLLOWED, LENGTH, Gave, Report, Start, Tick, packed, put, reported, take
from instainfer.shadow.watch import Shadow, Shadows
from instainfer.sim.costs import Node
from instainfer.store.writer import BatchWriter
from tests.sim.helpers import MB, function, mixed

SHARED: dict[str, Any] = {
    "keep_alive": "pressure",
    "keep_alive_s": 600.0,
    "queue_limit": 1000,
    "give_up_s": lab.QUEUE_S,
}


def start(name: str = "none", **changes: Any) -> Start:
    (one,) = wanted((name,), **(SHARED | changes))
    return one


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return 1.7e9 + self.time


# ---- the figures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour of a server's own records: nine functions, timers, bursts and strangers."""
    work = mixed(seed=3, functions=9, end=3600.0)
    file = tmp_path_factory.mktemp("log") / "calls.jsonl"
    lines = (
        {"namespace": "default", "function": work.functions[one].name[2:], "wall": 1.7e9 + at}
        for at, one in zip(work.times, work.which, strict=True)
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["none", "tyche", "gdsf", "hazard", "hazard:histogram"])
@pytest.mark.parametrize("keep_alive", ["pressure", "fixed"])
@pytest.mark.parametrize("at", [0.0, 86_400.0])
def test_a_shadow_says_of_a_log_what_simulate_says_of_it(
    log: Path, policy: str, keep_alive: str, at: float
) -> None:
    """Also on a clock that began long before."""
    settings = lab.Settings(
        world="containers", warmup=0.0, min_calls=1, keep_alive=keep_alive, keep_alive_s=120.0, load_slots=2
    )
    row = lab.row(settings, lab.Case(log, policy, 0.6))
    work = lab.workload(settings, log)
    shadow = Follower(msgspec.structs.replace(start(policy, keep_alive=keep_alive, keep_alive_s=120.0), at=at))
    shadow.follow(at, ev.NodeJoined(node="n0", memory=int(0.6 * work.total_bytes), load_slots=2))
    for one in work.functions:
        shadow.follow(at, ev.FunctionDeployed(function=one))
    for number, (moment, which) in enumerate(zip(work.times, work.which, strict=True)):
        if number % 7 == 0:  # to be asked for figures changes nothing
            shadow.advance((at + moment + shadow.engine.now + at) / 2)
            shadow.row()
        shadow.follow(at + moment, ev.RequestArrived(request=number + 1, function=work.functions[which].name))
    while shadow.world.settled < len(work.times):
        shadow.engine.step()
    shadow.engine.now = max(shadow.engine.now, work.end)
    found = shadow.row()
    assert row["invocations"] == found["invocations"] == len(work.times) and not found["rejected"]
    assert {key: found[key] for key in found if key != "saved_s"} == pytest.approx(
        {key: row[key] for key in found if key != "saved_s"}, rel=1e-6 if at else 1e-9
    )
    loading_s = sum(work.functions[one].costs.loading_s for one in work.which)
    assert found["saved_s"] == pytest.approx(found["saved_fraction"] * loading_s)
    assert not shadow.world.arrived  # it keeps nothing of what is over
    if policy == "hazard" and keep_alive == "pressure":
        assert row["preloaded_fraction"] > 0.01  # there was something to be equal in


def test_a_function_may_come_change_and_go(log: Path) -> None:
    shadow = Follower(start(), [Node(name="n0", memory=1000 * MB)])
    slow = function(load_s=2.0, import_s=0.0)
    shadow.follow(0.0, ev.FunctionDeployed(function=slow))
    shadow.follow(1.0, ev.RequestArrived(request=1, function=slow.name))
    shadow.follow(10.0, ev.RequestArrived(request=2, function=slow.name))
    shadow.advance(20.0)
    assert (shadow.row()["cold_fraction"], shadow.row()["warm_fraction"]) == (0.5, 0.5)
    assert shadow.row()["saved_s"] == pytest.approx(2.0)
    fast = msgspec.structs.replace(function(load_s=0.5, import_s=0.0), revision="t/f@2")
    shadow.follow(20.0, ev.FunctionDeployed(function=fast))
    shadow.follow(30.0, ev.RequestArrived(request=3, function=slow.name))
    shadow.advance(40.0)
    assert shadow.row()["invocations"] == 3
    assert shadow.row()["cold_fraction"] + shadow.row()["partial_fraction"] == pytest.approx(2 / 3)
    assert shadow.row()["saved_s"] == pytest.approx(2.0)
    shadow.follow(40.0, ev.FunctionDeleted(function=slow.name))
    shadow.follow(50.0, ev.RequestArrived(request=4, function=slow.name))
    assert shadow.row()["rejected"] == 1
    assert not shadow.engine.platform.state.instances


def test_only_what_comes_from_outside_is_followed() -> None:
    """A load that the live policy began, and a request that it kept waiting for too long, are its own."""
    shadow = Follower(start(), [Node(name="n0", memory=1000 * MB)])
    shadow.follow(0.0, ev.FunctionDeployed(function=function(load_s=30.0)))
    shadow.follow(1.0, ev.RequestArrived(request=1, function="t/f"))
    shadow.follow(1.5, ev.RequestArrived(request=2, function="t/f"))
    before = shadow.events
    shadow.follow(2.0, ev.InstanceReady(instance="i1", level=Level.LOADED, origin=Origin.SPAWNED))
    shadow.follow(2.0, ev.InvocationFinished(request=1, instance="i1", inference_s=0.1))
    shadow.follow(2.0, ev.TimerFired(timer="placement"))
    assert shadow.events == before
    shadow.follow(3.0, ev.RequestCancelled(request=1, code="overloaded"))
    shadow.follow(3.0, ev.RequestCancelled(request=2))  # its caller went away, whatever the policy
    shadow.advance(100.0)
    assert (shadow.row()["invocations"], shadow.row()["rejected"]) == (1, 1)


def test_a_lost_node_takes_with_it_what_a_shadow_has_there() -> None:
    shadow = Follower(start("hazard"))
    for node in ("a", "b"):
        shadow.follow(0.0, ev.NodeJoined(node=node, memory=1000 * MB))
    names = [f"t/f{n}" for n in range(4)]
    for name in names:
        shadow.follow(0.0, ev.FunctionDeployed(function=function(name, load_s=0.5)))
    for number, name in enumerate(names, 1):
        shadow.follow(float(number), ev.RequestArrived(request=number, function=name))
    shadow.follow(20.0, ev.RequestArrived(request=5, function=names[0]))  # runs while its node goes
    state = shadow.engine.platform.state
    (request,) = state.requests.values()
    assert request.instance is not None
    node = request.instance.container.node
    (other,) = {"a", "b"} - {node}
    shadow.follow(20.001, ev.NodeLost(node=node, unread=(1, 5)))
    assert {container.node for container in state.containers.values()} <= {other}
    assert {one.site.node.name for one in shadow.world._containers.values()} <= {other}
    held = shadow.row()["memory_gb_s"]
    shadow.follow(30.0, ev.NodeClosed(node=other))
    shadow.follow(30.0, ev.RequestArrived(request=6, function=names[0]))
    shadow.advance(40.0)
    assert 6 in shadow.world.arrived  # it waits
    shadow.follow(40.0, ev.NodeOpened(node=other))
    shadow.advance(60.0)
    assert not shadow.world.arrived
    row = shadow.row()
    assert (row["invocations"], row["rejected"]) == (6, 0)
    assert row["memory_gb_s"] > held
    for node in (other, "nobody"):
        shadow.follow(61.0, ev.NodeLost(node=node))
    held = shadow.row()["memory_gb_s"]
    shadow.advance(1000.0)
    assert shadow.row()["memory_gb_s"] == held  # of what is gone nothing is counted


def test_hints_and_pins_reach_a_shadow() -> None:
    shadow = Follower(start("hazard"), [Node(name="n0", memory=1000 * MB)])
    shadow.follow(0.0, ev.FunctionDeployed(function=function()))
    shadow.follow(1.0, ev.PinChanged(token=1, function="t/f", pinned=True))
    shadow.follow(2.0, ev.HintReceived(function="t/f", in_s=60.0))
    shadow.follow(20.0, ev.RequestArrived(request=1, function="t/f"))
    assert shadow.row()["cold_fraction"] == 0.0
    assert shadow.engine.platform.state.forecast.next_hint("t/f", 20.0) == pytest.approx(32.0)


def test_a_wait_has_an_end_in_a_shadow_too() -> None:
    shadow = Follower(start(give_up_s=5.0), [Node(name="n0", memory=1000 * MB)])
    shadow.follow(0.0, ev.FunctionDeployed(function=function(load_s=30.0)))
    shadow.follow(1.0, ev.RequestArrived(request=1, function="t/f"))
    shadow.advance(5.9)
    assert shadow.row()["rejected"] == 0
    shadow.advance(6.0)
    assert shadow.row()["rejected"] == 1


def test_every_event_is_followed_or_a_consequence() -> None:
    """A new kind of event has to be thought of here."""
    consequences = {
        *(ev.InvocationFinished, ev.ContainerReady, ev.ContainerLost, ev.InstanceReady, ev.InstanceFailed),
        *(ev.InstanceLost, ev.ZygoteReady, ev.ZygoteLost, ev.ZygoteSampled, ev.MemorySampled, ev.TimerFired),
    }
    assert not FOLLOWED & consequences
    assert FOLLOWED | consequences == set(AnyEvent.__args__)


def test_the_names_of_shadows() -> None:
    found = wanted(("tyche", "gdsf", "hazard:poisson", "tyche:poisson"), **SHARED)
    assert [one.name for one in found] == ["tyche:poisson", "gdsf:frequency", "hazard:poisson"]
    for name, said in (("tycho", "tycho"), ("tyche:poison", "poison")):
        with pytest.raises(BadSettings, match=said) as error:
            start(name)
        assert "these exist" in error.value.hint
    tuned = start("tyche(p_load=0.5):histogram")
    assert (tuned.mode, tuned.predictor) == ("tyche(p_load=0.5)", "histogram")
    assert Follower(tuned).engine.platform.state.policy.p_load == 0.5  # type: ignore[attr-defined]
    with pytest.raises(BadSettings, match="has no setting 'load'"):
        start("tyche(load=0.5)")
    with pytest.raises(BadSettings, match="keep-alive"):
        start("none", keep_alive="eternal")


@pytest.mark.parametrize("mode", registry.MODES)
def test_every_mode_can_look_on(mode: str) -> None:
    draw = random.Random(mode)
    shadow = Follower(start(mode), [Node(name="n0", memory=900 * MB)])
    for at in range(5):
        shadow.follow(0.0, ev.FunctionDeployed(function=function(f"t/f{at}")))
    for number in range(100):
        event = ev.RequestArrived(request=number, function=f"t/f{draw.randrange(5)}")
        shadow.follow(number * 7.0, event)
    shadow.advance(800.0)
    assert shadow.row()["invocations"] == 100


def test_settings_name_shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "given.toml"
    file.write_text('[policy]\nshadow = ["tyche", "hazard:poisson"]', encoding="utf-8")
    expected = ("tyche", "hazard:poisson")
    assert config.load(file, {}).policy.shadow == expected
    for text in ("tyche,hazard:poisson", " tyche , hazard:poisson,", '["tyche", "hazard:poisson"]'):
        assert config.load(None, {"INSTAINFER_POLICY__SHADOW": text}).policy.shadow == expected
        assert config.load(None, {}, {"policy": {"shadow": text}}).policy.shadow == expected
    assert config.load(None, {"INSTAINFER_POLICY__SHADOW": ""}).policy.shadow == ()
    tuned = config.load(None, {}, {"policy": {"shadow": "tyche(p_load=0.1,p_offload=0.9):poisson, none"}})
    assert tuned.policy.shadow == ("tyche(p_load=0.1,p_offload=0.9):poisson", "none")
    for wrong in ("3", "[1]", "true", '[["tyche"]]'):
        file.write_text(f"[policy]\nshadow = {wrong}", encoding="utf-8")
        with pytest.raises(BadSettings, match=r"policy\.shadow"):
            config.load(file, {})


# ---- what is true --------------------------------------------------------------------------------------------


class Nowhere(BatchWriter):
    def __init__(self) -> None:
        pass

    def put(self, record: object) -> None:
        pass


def test_what_is_true_is_counted_in_the_same_terms() -> None:
    clock = Clock()
    books = Books(clock, Nowhere(), Metrics(), epoch="e")
    live = Live(clock, books)
    costs = Costs(import_s=0.4, load_s=0.6, first_s=0.3, warm_s=0.1)
    live.deployed(function())
    live.deployed(msgspec.structs.replace(function(), costs=costs))
    spec = FunctionSpec(
        namespace="t",
        name="f",
        version=1,
        digest="sha256:0",
        style=Style.MODULE,
        entry="main:handler",
        memory=100 * MB,
        timeout_s=60.0,
        concurrency=1,
        environment="",
        python="3.11",
    )

    def answered(start_kind: str, waited_s: float, load_s: float, *, dispatched: bool = True) -> None:
        ticket = Ticket(1, spec, "", b"", lambda _: None)
        ticket.arrived, ticket.inference_s = clock.time, 0.1
        if dispatched:
            ticket.dispatched, ticket.start = clock.time + waited_s, start_kind
            ticket.phases = msgspec.structs.replace(ticket.phases, load=load_s)
        clock.time += waited_s + 0.1
        live.finished(ticket)

    answered("cold", 1.3, 1.0)
    answered("warm", 0.0, 0.0)
    answered("preloaded", 0.0, 0.0)
    answered("attached", 0.5, 0.5)
    answered("", 60.0, 0.0, dispatched=False)
    row = live.row()
    assert (row["invocations"], row["rejected"]) == (4, 1)
    assert (row["cold_fraction"], row["warm_fraction"], row["preloaded_fraction"]) == (0.25, 0.25, 0.25)
    assert row["warming_loading_mean_ms"] == pytest.approx(1.8e3 / 4)
    # each could have been spared 1.2 s; they waited 1.0 and 0.5 for a load, and three first calls took 0.2 longer
    assert row["saved_s"] == pytest.approx(4 * 1.2 - 1.5 - 3 * 0.2)
    assert set(row) == set(Follower(start()).row())  # `memory_gb_s` is None: it is not measured


def test_waste_includes_what_is_there_and_not_used() -> None:
    clock = Clock()
    books = Books(clock, Nowhere(), Metrics(), epoch="e")
    load = {"container": "c1", "function": "t/f", "revision": "t/f@1", "level": Level.LOADED}
    for name, ahead in (("i1", True), ("i2", False)):
        books.commanded(act.Load(instance=name, ahead=ahead, why=act.Why(rule=""), **load))  # type: ignore[arg-type]
        books.learn(ev.InstanceReady(instance=name, level=Level.LOADED))
    books.learn(ev.MemorySampled(container="c1", instances={"i1": 2 * 10**9, "i2": 5 * 10**9}))
    clock.time += 3.0
    assert Live(clock, books).row()["wasted_gb_s"] == pytest.approx(6.0)
    books.learn(ev.ContainerLost(container="c1"))  # counted once, not twice
    assert Live(clock, books).row()["wasted_gb_s"] == pytest.approx(6.0)


# ---- between the processes -----------------------------------------------------------------------------------


def spoken(*messages: Any) -> io.BytesIO:
    return io.BytesIO(b"".join(map(packed, messages)))


def answers(told: io.BytesIO) -> list[Report | Gave]:
    """What a shadow's process writes when it is told this."""
    reports = io.BytesIO()
    process.serve(told, reports)
    data, found = reports.getvalue(), []
    while data:
        size = int.from_bytes(data[:LENGTH], "big")
        found.append(reported(data[LENGTH : LENGTH + size]))
        data = data[LENGTH + size :]
    return found


CALLS: list[tuple[float, AnyEvent]] = [
    (5.0, ev.NodeJoined(node="n", memory=1000 * MB)),
    (5.0, ev.FunctionDeployed(function=function())),
    (6.0, ev.RequestArrived(request=1, function="t/f")),
]


def test_messages_survive_the_pipe() -> None:
    told = spoken(start(), *CALLS, Tick(number=1, now=7.0))
    assert [take(told) for _ in range(6)] == [start(), *CALLS, Tick(number=1, now=7.0), None]
    buffer = bytearray(b"before")
    put(CALLS[2], buffer)
    assert take(io.BytesIO(bytes(buffer[6:]))) == CALLS[2]
    assert take(io.BytesIO(packed(CALLS[2])[:-1])) is None


def test_a_process_reports_at_every_tick_and_ends_with_its_input() -> None:
    first, second = answers(
        spoken(
            msgspec.structs.replace(start(), at=5.0),
            *CALLS,
            Tick(number=1, now=8.0),
            (20.0, ev.RequestArrived(request=2, function="t/f")),
            Tick(number=2, now=21.0),
        )
    )
    assert isinstance(first, Report) and isinstance(second, Report)
    assert (first.tick, first.events, first.row["invocations"]) == (1, 3, 1)
    assert (second.tick, second.events, second.row["warm_fraction"]) == (2, 4, 0.5)
    torn = spoken(start(), *CALLS, Tick(number=1, now=8.0)).getvalue()[:-1]
    assert answers(io.BytesIO(torn)) == []


def test_a_policy_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(Follower, "follow", broken)
    (gave,) = answers(spoken(start(), *CALLS, Tick(number=1, now=8.0)))
    assert isinstance(gave, Gave)
    assert gave.reason.startswith("ZeroDivisionError: of nothing (") and "test_shadow.py" in gave.reason


# ---- the server's side ---------------------------------------------------------------------------------------


def watching(names: tuple[str, ...], then: Callable[[Shadows, Clock], Awaitable[None]], **limits: Any) -> None:
    async def run() -> None:
        clock = Clock()
        live = Live(clock, Books(clock, Nowhere(), Metrics(), epoch="e"))
        inforce = {"mode": "hazard", "predictor": "hazard", "keep_alive": "pressure"}
        shadows = Shadows(wanted(names, **SHARED), clock, live, inforce, **limits)
        await shadows.begin()
        pids = [shadow.pid for shadow in shadows.shadows if shadow.pid]
        try:
            await then(shadows, clock)
        finally:
            await shadows.aclose()
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    asyncio.run(run())


@pytest.mark.slow
def test_shadows_follow_and_are_told_of() -> None:
    async def then(shadows: Shadows, clock: Clock) -> None:
        for moment, event in CALLS:
            shadows.follow(clock.time + moment, event)
        shadows.follow(clock.time + 6.0, ev.TimerFired(timer="placement"))
        clock.time += 10.0
        told = await shadows.rows()
        while any(row["invocations"] is None for row in told["policies"]):  # they are starting
            told = await shadows.rows()
        live, tyche, gdsf = told["policies"]
        assert told["since"] == 1.7e9 + 1000.0
        assert (live["mode"], live["shadow"], live["state"], live["invocations"]) == ("hazard", False, "live", 0)
        for row, name in ((tyche, "tyche"), (gdsf, "gdsf")):
            assert (row["mode"], row["shadow"], row["state"], row["reason"]) == (name, True, "following", "")
            assert (row["invocations"], row["cold_fraction"]) == (1, 1.0)
            assert row["until"] == 1.7e9 + 1010.0
            assert row["warming_loading_mean_ms"] == pytest.approx(1300.3)
        assert set(live) == set(tyche)
        assert [value for _, value in shadows.gauges()[0][3]] == [1.0, 1.0]

    watching(("tyche", "gdsf"), then)


@pytest.mark.slow
def test_one_that_is_killed_is_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    async def then(shadows: Shadows, clock: Clock) -> None:
        first, second = shadows.shadows
        for moment, event in CALLS:
            shadows.follow(clock.time + moment, event)
        clock.time += 10.0
        shadows._flush()
        await asyncio.gather(first.reached(1), second.reached(1))
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await first.reached(99)  # or until it is out
        clock.time += 10.0
        _, out, other = (await shadows.rows())["policies"]
        assert (out["state"], out["reason"]) == ("ended", "its process ended: killed by SIGKILL")
        assert (out["invocations"], out["until"], out["pid"]) == (1, 1.7e9 + 1010.0, None)  # what it last said
        assert (other["state"], other["until"]) == ("following", 1.7e9 + 1020.0)
        assert "the shadow tyche:poisson is out" in caplog.text
        assert [value for _, value in shadows.gauges()[0][3]] == [0.0, 1.0]

    watching(("tyche", "gdsf"), then)


@pytest.mark.slow
def test_one_that_falls_behind_is_out_and_nothing_piles_up(caplog: pytest.LogCaptureFixture) -> None:
    async def then(shadows: Shadows, clock: Clock) -> None:
        (shadow,) = shadows.shadows
        assert shadow.pid is not None
        os.kill(shadow.pid, signal.SIGSTOP)
        for number in range(50):
            shadows.follow(clock.time, ev.RequestArrived(request=number, function="t/f"))
            if number == 30:
                shadows._go_on()
                assert shadow.following
        shadows._go_on()
        assert shadow.state == "behind"
        assert "50 events behind, where 40 are the most" in shadow.reason and shadow.reason in caplog.text
        shadows._go_on()
        shadows.follow(clock.time, ev.RequestArrived(request=60, function="t/f"))
        assert not shadows._buffer  # nobody listens
        _, row = (await shadows.rows())["policies"]
        assert row["invocations"] is None

    watching(("hazard",), then, most_events=40)


def test_one_that_owes_a_report_for_too_long_is_out() -> None:
    shadow = Shadow(start())
    shadow.tell(b"", tick=1, told=5, now=100.0)
    shadow.tell(b"", tick=2, told=9, now=101.0)
    shadow.judge(9, 130.0, most=100, longest_s=60.0)
    assert (shadow.following, shadow.behind_s(130.0)) == (True, 30.0)
    shadow._reported(Report(tick=1, now=0.0, events=5, row={}))
    shadow.judge(9, 160.5, most=100, longest_s=60.0)
    assert (shadow.following, shadow.behind_s(160.5)) == (True, 59.5)
    shadow.judge(9, 161.5, most=100, longest_s=60.0)
    assert (shadow.state, "over 60 s behind" in shadow.reason) == ("behind", True)
    assert shadow.behind_s(200.0) == 0.0


def test_one_that_cannot_be_started_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def then(shadows: Shadows, clock: Clock) -> None:
        _, row = (await shadows.rows())["policies"]
        assert row["state"] == "failed" and "cannot be started" in row["reason"]

    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    watching(("none",), then)


def test_a_process_ends_at_once_when_its_server_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server died while it was being started."""
    monkeypatch.setattr(sys, "platform", "elsewhere")  # this test's own process is to live on
    with pytest.raises(SystemExit):
        process._end_with(os.getppid() + 1)
    process._end_with(os.getppid())


# ---- the command ---------------------------------------------------------------------------------------------


def shown(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], *options: str) -> str:
    monkeypatch.setattr("instainfer.client.Client.policies", lambda _: answer)
    done = CliRunner().invoke(app, ["policies", *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_policies_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Follower(start()).row() | {"invocations": 1234, "preloaded_fraction": 0.25, "saved_s": 90.0}
    row |= {"warming_loading_mean_ms": 37.4, "wasted_gb_s": 1.5}
    live: dict[str, Any] = {
        "mode": "hazard",
        "predictor": "hazard",
        "keep_alive": "fixed",
        "shadow": False,
        "state": "live",
        "reason": "",
        "pid": 1,
        "until": 1.7e9 + 60,
        "behind_s": 0.0,
        **row,
    }
    names = {"mode": "tyche", "predictor": "poisson", "shadow": True}
    out = live | names | {"state": "behind", "reason": "it could not keep up"}
    new = live | names | {"mode": "gdsf", "state": "following", "behind_s": 7.0} | dict.fromkeys(row)
    answer = {"since": 1.7e9, "policies": [live, out, new]}
    text = shown(monkeypatch, answer)
    lines = text.splitlines()
    assert "(1.0 min); keep-alive of all: fixed" in lines[0]
    assert lines[2].split() == [
        *("hazard", "hazard", "live", "1234", "25.0%", "0.0%", "0.0%", "37", "ms", "1.5", "min", "1.50", "GB·s")
    ]
    assert lines[4].split() == ["gdsf", "poisson", "following", *"-------"]
    assert "tyche looked on until" in lines[5] and lines[5].endswith("it could not keep up")
    assert lines[6].endswith("gdsf is 7.0 s behind")
    assert json.loads(shown(monkeypatch, answer, "--json")) == answer
    assert "--shadow tyche,gdsf" in shown(monkeypatch, {"since": 1.7e9, "policies": []})
