"""The live feed without a server: bounded, asleep when nobody looks, and no reader holds up another."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from instainfer.errors import Overloaded, Unavailable
from instainfer.gateway import live, nodes, present
from instainfer.gateway.access import OWNER, Principal
from instainfer.gateway.live import Feed
from instainfer.marks import Marks
from instainfer.model import Activation, Phases, Role

MINE = Principal("n", Role.INVOKE)


class Clock:
    def now(self) -> float:
        return 1_000.0

    def wall(self) -> float:
        return 1e9


def row(number: int, namespace: str = "n", start: str = "warm", status: str = "ok") -> Activation:
    phases = Phases(inference=0.001 * number)
    return Activation(
        id=f"{number:032x}", namespace=namespace, function="f", version=1, start=start, status=status,
        wall=1e9 - 1.0, e2e_s=0.001 * number, phases=phases,
    )  # fmt: skip


def feed(monkeypatch: pytest.MonkeyPatch, saved: list[Activation] | None = None) -> Feed:
    """Of a platform in which there is nothing, whose second is a turn of the loop."""
    monkeypatch.setattr(live, "EVERY_S", 0.0)
    monkeypatch.setattr(present, "platform", lambda *_: {"node": {}, "containers": [], "zygotes": []})
    monkeypatch.setattr(nodes, "shown", lambda _: [])
    clock = Clock()
    metrics = SimpleNamespace(wasted_byte_seconds=0.0, preloads={})
    books = SimpleNamespace(marks=Marks(clock), metrics=metrics, unused_byte_seconds=lambda: 0.0)
    state = SimpleNamespace(functions={}, instances={})
    platform = SimpleNamespace(state=state)

    def activations(*_: Any, **__: Any) -> list[Activation]:
        if saved is None:
            raise Unavailable("the store is away")
        return saved

    health: Any = SimpleNamespace(
        isolation=lambda: {"sandbox": "process", "missing": []},
        controller=SimpleNamespace(books=books, platform=platform, nodes={}),
        store=SimpleNamespace(activations=activations),
        writer=SimpleNamespace(heard=None, flush=lambda *_: True, dropped=0),
        sandbox=None,
        clock=clock,
        epoch="e",
        started=0.0,
        status=lambda: {"policy": {}},
    )
    return Feed(health)


def reader(of: Feed, who: Principal = OWNER, since: str = "") -> Any:
    return of.answer(who, since, lambda: True)


def data(chunk: bytes) -> dict[str, Any]:
    id, rest = chunk.split(b"\n", 1)
    told: dict[str, Any] = json.loads(rest.removeprefix(b"data: "))
    assert id == f"id: {told['id']}".encode()
    assert chunk.endswith(b"\n\n")
    return told


def listens(feed: Feed) -> bool:
    return feed._health.writer.heard is not None


async def heard(feed: Feed, rows: list[Activation]) -> None:
    """As the writer's thread does it."""
    listener = feed._health.writer.heard
    assert listener is not None
    listener(rows)


def test_a_reader_gets_what_it_missed_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        subject = feed(monkeypatch, [row(1)])
        chunks = reader(subject).body_iterator
        first = data(await anext(chunks))
        assert (first["anew"], [one["id"][-1] for one in first["invocations"]]) == (True, ["1"])
        await heard(subject, [row(2), row(3, "other")])
        seen = [data(await anext(chunks))]
        while not seen[-1]["invocations"]:
            seen.append(data(await anext(chunks)))
        assert [one["id"][-1] for one in seen[-1]["invocations"]] == ["2", "3"]
        back = data(await anext(reader(subject, MINE, first["id"]).body_iterator))
        assert not back["anew"]
        assert [one["id"][-1] for one in back["invocations"]] == ["2"]
        again = data(await anext(reader(subject, MINE, back["id"]).body_iterator))
        assert (again["anew"], again["invocations"]) == (False, [])
        subject.stop()

    asyncio.run(scene())


def test_it_sleeps_when_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(live, "LINGER_S", 0.0)
        subject = feed(monkeypatch)
        assert not listens(subject)
        response = reader(subject)
        first = data(await anext(response.body_iterator))
        assert first["invocations"] == []  # the store is away: that is no reason not to look
        assert listens(subject)
        sent: list[Any] = []

        async def gone() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await response({"type": "http", "asgi": {"spec_version": "2.3"}}, gone, send)
        async with asyncio.timeout(30):
            while subject._running is not None:
                await asyncio.shield(subject._running)
        assert not listens(subject)
        assert not subject._journal
        assert data(await anext(reader(subject, since=first["id"]).body_iterator))["anew"]
        subject.stop()

    asyncio.run(scene())


def test_a_reader_that_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(live, "STUCK_S", 0.0)
        subject = feed(monkeypatch)

        async def stays() -> Any:
            await asyncio.Event().wait()

        async def never(message: Any) -> None:
            await asyncio.Event().wait()

        await reader(subject)({"type": "http", "asgi": {"spec_version": "2.3"}}, stays, never)
        assert not subject._readers
        subject.stop()

    asyncio.run(scene())


def test_what_is_kept_and_told_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(live, "KEPT", 100)
        monkeypatch.setattr(live, "EACH", 10)
        monkeypatch.setattr(live, "MOST", 15)
        subject = feed(monkeypatch, [])
        chunks = reader(subject).body_iterator
        first = data(await anext(chunks))
        rows = [row(number, start="cold" if number % 10 == 0 else "warm") for number in range(1, 101)]
        await heard(subject, rows)
        told = data(await anext(chunks))
        while not told["invocations"]:
            told = data(await anext(chunks))
        assert not told["anew"]
        assert len(subject._journal) == 25
        assert len(told["invocations"]) == 10
        assert told["left_out"] == 90
        assert [one["start"] for one in told["invocations"]] == ["cold"] * 10  # what is rare stays
        back = data(await anext(reader(subject).body_iterator))  # of more than a second
        assert (len(back["invocations"]), back["left_out"]) == (15, 85)
        rates = told["now"]["rates"]  # and all are counted
        assert (rates["invocations"], rates["starts"]) == (100, {"warm": 90, "cold": 10})
        for number in range(4):
            await heard(subject, [row(200 + 30 * number + more) for more in range(30)])
            while not data(await anext(chunks))["invocations"]:
                pass
        assert len(subject._journal) <= 100
        assert data(await anext(reader(subject, since=first["id"]).body_iterator))["anew"]
        subject.stop()

    asyncio.run(scene())


def test_who_comes_back_is_told_how_many_all_the_seconds_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(live, "KEPT", 100)
        subject = feed(monkeypatch, [])
        chunks = reader(subject).body_iterator
        first = data(await anext(chunks))
        for begin in (0, 100):
            await heard(subject, [row(begin + more, "n" if more else "other") for more in range(30)])
            while not (told := data(await anext(chunks)))["invocations"]:
                pass
            assert (len(told["invocations"]), told["left_out"]) == (25, 5)
        back = data(await anext(reader(subject, OWNER, first["id"]).body_iterator))
        assert (back["anew"], len(back["invocations"]), back["left_out"]) == (False, 50, 10)
        mine = data(await anext(reader(subject, MINE, first["id"]).body_iterator))
        assert (len(mine["invocations"]), mine["left_out"]) == (50, 8)
        subject.stop()

    asyncio.run(scene())


def test_so_many_readers_of_one_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = feed(monkeypatch)
    for _ in range(live.MOST_OF_ONE):
        reader(subject, MINE)
    with pytest.raises(Overloaded):
        reader(subject, MINE)
    for _ in range(live.MOST_READERS - live.MOST_OF_ONE):
        reader(subject)
    with pytest.raises(Overloaded):
        reader(subject)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0), (0.001, 1.0), (0.501, 51.0)]
)
def test_a_quantile_is_one_of_the_values(share: float, expected: float) -> None:
    assert live._quantile([n / 1000 for n in range(1, 101)], share) == pytest.approx(expected)
    assert live._quantile([], share) is None
