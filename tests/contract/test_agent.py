"""What every agent does, in process or over HTTP, whatever its sandbox."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import uvloop

from instainfer.agent.base import (
    Answered,
    Build,
    Built,
    Command,
    Deliver,
    Invoke,
    Logged,
    Measure,
    Measured,
    Missing,
    Progress,
    Provide,
    Report,
    TaskFailed,
    Withdraw,
)
from instainfer.core import actions, events
from instainfer.model import Level
from tests.contract.agent_helpers import (
    MB,
    UID_BASE,
    VARIANTS,
    World,
    destroy,
    lift,
    managers,
    offload,
    package,
    revision,
    world,
)

Play = Callable[[Callable[[World], Awaitable[None]]], None]


@pytest.fixture(params=VARIANTS)
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    agent, sandbox = request.param

    def run(scenario: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            async with world(agent, sandbox, tmp_path) as made:
                await scenario(made)

        uvloop.run(main())  # what a server runs on
        assert not managers()

    return run


def test_names_of_messages_are_their_tags_and_differ() -> None:
    for union in (Command, Report):
        names = [kind.__name__ for kind in get_args(union)]
        assert len(set(names)) == len(names)
        assert [kind.__struct_config__.tag for kind in get_args(union)] == names
    # the event log and a reader of a dump tell them apart by name alone
    assert not {kind.__name__ for kind in get_args(Command)} & {kind.__name__ for kind in get_args(Report)}


def test_a_life(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = revision()
        w.send(Provide(revision=of))
        await w.until(Missing, revision=of.id)
        await w.provide(of)
        w.create("c1", of)
        ready = await w.until(events.ContainerReady, container="c1")
        assert ready.seconds > 0
        w.load("i1", "c1", of)
        loaded = await w.until(events.InstanceReady, instance="i1")
        assert loaded.level == Level.LOADED
        assert loaded.start_s > 0
        await w.until(Logged, instance="i1", logs=(("stdout", "loading\n"),))
        await w.works("i1")
        w.send(offload("i1"))
        lost = await w.until(events.InstanceLost, instance="i1")
        assert (lost.reason, lost.request) == ("the test says so", None)
        w.send(destroy("c1"))
        gone = await w.until(events.ContainerLost, container="c1")
        assert gone.reason == "the test says so"
        assert not managers()


def test_a_body_is_not_touched_and_output_belongs_to_its_activation(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        await w.opened()
        body = bytes(range(256)) * 3
        answered = await w.answer("i1", body)
        assert (answered.body, answered.content_type) == (body, "application/octet-stream")
        assert sorted(answered.logs) == [("stderr", "and complains\n"), ("stdout", "got 768 bytes\n")]
        assert answered.inference_s > 0
        assert (await w.answer("i1", {"n": 1})).logs == ()
        assert (await w.answer("i1", b"")).logs[0][1] in ("got 0 bytes\n", "and complains\n")


@pytest.mark.slow
def test_a_body_of_64_mb(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        await w.opened(memory=1024 * MB)
        w.send(actions.ResizeContainer(container="c1", limit=1024 * MB))
        body = bytes(range(256)) * (64 * MB // 256)
        request = w.invoke("i1", body)
        answered = await w.until(Answered, request=request)
        assert answered.body == body


def test_reports_come_in_order(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        await w.opened()
        requests = [w.invoke("i1", {"n": n}) for n in range(50)]
        await w.until(Answered, request=requests[-1])
        assert [answered.request for answered in w.reports.all(Answered)] == requests
        w.send(destroy("c1"))
        await w.until(events.ContainerLost)
        kinds = [type(report) for report in w.reports.seen if not isinstance(report, events.MemorySampled)]
        head = [Missing, events.ContainerReady, Logged, events.InstanceReady]
        assert kinds == [*head, *[Answered] * 50, events.ContainerLost]


def test_a_frozen_instance_does_nothing_until_it_is_thawed(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.opened()
        await w.ready("i2", "c1", of)
        w.send(actions.Freeze(instance="i1"))
        first = w.invoke("i1", {})
        second = w.invoke("i2", {})
        await w.until(Answered, request=second)
        w.send(actions.Freeze(instance="i2"))
        third = w.invoke("i2", {})
        w.send(actions.Thaw(instance="i1"))
        await w.until(Answered, request=first)
        w.send(actions.Thaw(instance="i2"))
        await w.until(Answered, request=third)
        assert [answered.request for answered in w.reports.all(Answered)] == [second, first, third]


def test_a_frozen_instance_can_be_ended(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        await w.opened()
        w.send(actions.Freeze(instance="i1"), offload("i1"))
        await w.until(events.InstanceLost, instance="i1")


def test_what_follows_a_load_waits_for_it(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.provide(revision())
        w.create("c1", of)
        await w.until(events.ContainerReady)
        w.load("i1", "c1", of)
        request = w.invoke("i1", {})
        await w.until(Answered, request=request)
        w.load("i2", "c1", of)
        w.send(offload("i2"))
        await w.until(events.InstanceLost, instance="i2")


def test_a_load_waits_for_its_package(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        await w.opened()
        other = await w.provide(revision("g", 2))
        await w.ready("i2", "c1", other)
        await w.works("i2")


def test_an_instance_is_raised(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.provide(revision())
        w.create("c1", of)
        await w.until(events.ContainerReady)
        await w.ready("i1", "c1", of, Level.IMPORTED)
        assert not w.reports.all(Logged)
        w.send(lift("i1"))
        raised = await w.until(events.InstanceReady, instance="i1")
        assert raised.level == Level.LOADED
        await w.works("i1")


def test_a_load_that_fails_says_in_which_phase_and_where(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.provide(revision(variables={"BROKEN": "1"}))
        w.create("c1", of)
        await w.until(events.ContainerReady)
        w.load("i1", "c1", of)
        failed = await w.until(events.InstanceFailed, instance="i1")
        assert failed.phase == "load"
        assert failed.reason.startswith("RuntimeError: no weights here\n")
        assert 'main.py", line' in failed.reason
        # it never was there: no loss follows, and the container serves others
        other = msgspec.structs.replace(of, variables={})
        w.send(Provide(revision=other))
        await w.ready("i2", "c1", other)
        await w.works("i2")
        assert not w.reports.all(events.InstanceLost)


def test_a_package_that_cannot_be_opened_fails_the_load(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.provide(revision(data=b"no zip"), b"no zip")
        w.create("c1", of)
        await w.until(events.ContainerReady)
        w.load("i1", "c1", of)
        failed = await w.until(events.InstanceFailed, instance="i1")
        assert failed.phase == "extract"
        assert "withdrawn" not in failed.reason


def test_an_error_of_the_function_is_an_answer(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        await w.opened()
        answered = await w.answer("i1", {"do": "raise", "text": "not today"})
        assert answered.problem["type"] == "urn:instainfer:error:invocation_failed"
        assert answered.problem["detail"] == "ValueError: not today"
        assert "in handler" in answered.problem["trace"]
        # JSON can carry what is not Unicode text: file names that are not UTF-8 look so
        answered = await w.answer("i1", {"do": "raise", "text": "\udcff"})
        assert answered.problem["detail"].encode().startswith(b"ValueError: ")
        await w.works("i1")


def test_a_crash_is_a_loss(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.opened()
        w.invoke("i1", {"do": "abort"})
        lost = await w.until(events.InstanceLost, instance="i1")
        assert lost.code == "instance_crashed"
        assert "SIGABRT" in lost.reason
        assert any("Fatal Python error" in text for report in w.reports.all(Logged) for _, text in report.logs)
        await w.ready("i2", "c1", of)
        await w.works("i2")


def test_what_a_dead_instance_had_not_read_is_known(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.opened()
        w.send(actions.Freeze(instance="i1"))
        unread = w.invoke("i1", {"n": 1})
        w.send(offload("i1"))
        assert (await w.until(events.InstanceLost, instance="i1")).unread == (unread,)
        await w.ready("i2", "c1", of)
        w.invoke("i2", {"do": "abort"})
        assert (await w.until(events.InstanceLost, instance="i2")).unread == ()


def test_a_time_limit_ends_that_instance_only(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.opened(timeout_s=0.3)
        await w.ready("i2", "c1", of)
        hanging = w.invoke("i1", {"do": "hang"})
        lost = await w.until(events.InstanceLost)
        assert (lost.instance, lost.code, lost.request) == ("i1", "timed_out", hanging)
        await w.works("i2")


def test_a_load_has_a_time_limit(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        data = package(**{"main.py": "import time\ntime.sleep(1000)\ndef handler(event): ..."})
        of = await w.provide(revision(data=data, load_timeout_s=0.5), data)
        w.create("c1", of)
        await w.until(events.ContainerReady)
        w.load("i1", "c1", of)
        lost = await w.until(events.InstanceLost, instance="i1")
        assert lost.code == "timed_out"


def test_an_instance_that_breaks_the_protocol_is_ended(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.opened()
        w.invoke("i1", {"do": "babble"})
        lost = await w.until(events.InstanceLost, instance="i1")
        assert lost.code == "instance_crashed"
        assert "protocol" in lost.reason
        await w.ready("i2", "c1", of)
        await w.works("i2")


def test_a_killed_manager_is_a_lost_container(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        await w.opened()
        [manager] = managers()
        manager.kill()
        lost = await w.until(events.ContainerLost, container="c1")
        assert "manager" in lost.reason
        await w.opened("c2", "i2", name="g", number=2)
        await w.works("i2")


def test_two_containers_at_once(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        one, two = await w.provide(revision()), await w.provide(revision("g", 2))
        w.create("c1", one)
        w.create("c2", two)
        await w.until(events.ContainerReady, container="c2")
        await w.until(events.ContainerReady, container="c1")
        w.load("i1", "c1", one)
        w.load("i2", "c2", two)
        await w.until(events.InstanceReady, instance="i2")
        await w.until(events.InstanceReady, instance="i1")
        await w.works("i1")
        w.send(destroy("c1"))
        await w.until(events.ContainerLost, container="c1")
        await w.works("i2")


def test_commands_to_what_is_not_there_do_no_harm(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.opened()
        w.load("i9", "nowhere", of)
        call = Invoke(request=99, instance="nobody", activation="a", content_type="", body=b"x")
        w.send(
            actions.Freeze(instance="nobody"),
            actions.Thaw(instance="nobody"),
            lift("nobody"),
            offload("nobody"),
            call,
            actions.ResizeContainer(container="nowhere", limit=MB),
            Withdraw(revision="none"),
            Measure(token=1, revision="none"),
        )
        failed = await w.until(TaskFailed, token=1)
        assert "never provided" in failed.problem["detail"]
        w.send(destroy("nowhere"))
        await w.until(events.ContainerLost, container="nowhere")
        w.create("c2", revision("stranger", 3))
        lost = await w.until(events.ContainerLost, container="c2")
        assert "never provided" in lost.reason
        await w.works("i1")


def test_what_was_withdrawn_can_be_provided_again(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.opened()
        w.send(destroy("c1"))
        await w.until(events.ContainerLost)
        w.send(Withdraw(revision=of.id), Provide(revision=of))
        w.create("c2", of)
        await w.until(events.ContainerReady, container="c2")
        if len(w.reports.all(Missing)) == 2:  # it was gone already
            w.send(Deliver(revision=of.id, package=package()))
        await w.ready("i2", "c2", of)
        await w.works("i2")


@pytest.mark.slow
def test_memory_is_sampled(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        await w.opened()
        before = (await w.until(events.MemorySampled, container="c1")).instances["i1"]
        await w.answer("i1", {"do": "allocate", "mb": 64})
        while (after := (await w.until(events.MemorySampled)).instances["i1"]) < before + 64 * MB:
            pass
        assert after < before + 96 * MB


@pytest.mark.slow
def test_a_profile_is_measured(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.provide(revision(sample="sample.json", sample_type="application/json"))
        w.send(Measure(token=7, revision=of.id))
        profile = (await w.until(Measured, token=7)).profile
        assert w.reports.all(Progress)
        assert '"n":1' in profile.answer.replace(" ", "")
        assert 0 < profile.costs.warm_s < 60
        assert MB < profile.costs.imported_bytes <= profile.costs.loaded_bytes < 256 * MB
        assert not managers()
        broken = await w.provide(revision("g", 2, variables={"BROKEN": "1"}))
        w.send(Measure(token=8, revision=broken.id))
        failed = await w.until(TaskFailed, token=8)
        assert failed.problem["type"] == "urn:instainfer:error:load_failed"
        assert failed.problem["phase"] == "load"


@pytest.mark.slow
def test_an_environment_is_built_and_used(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        version = f"3.{sys.version_info.minor}"
        w.send(Build(token=1, namespace="ns", uid_base=UID_BASE, requirements=(), python=version))
        built = await w.until(Built, token=1)
        await w.opened(python=built.python, mounts=built.mounts)
        await w.works("i1")
        w.send(Build(token=2, namespace="ns", uid_base=UID_BASE, requirements=(), python="3.99"))
        failed = await w.until(TaskFailed, token=2)
        assert failed.problem["type"] == "urn:instainfer:error:build_failed"


def test_its_end_ends_everything_and_says_so(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        await w.opened()
        await w.agent.aclose()
        assert [lost.container for lost in w.reports.all(events.ContainerLost)] == ["c1"]
        assert not managers()


def test_it_starts_again_after_its_end(play: Play) -> None:
    @play
    async def scenario(w: World) -> None:
        of = await w.opened()
        await w.agent.aclose()
        await w.agent.start(w.reports)
        w.send(Provide(revision=of))
        w.create("c2", of)
        await w.until(events.ContainerReady, container="c2")
        await w.ready("i2", "c2", of)
        await w.works("i2")
