"""Garbage is looked for when nobody waits, and what lives for good is left alone."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from instainfer import garbage
from instainfer.gateway import tidy


class Knot:
    def __init__(self) -> None:
        self.self = self


def test_what_is_settled_is_not_looked_at_and_all_is_as_before_then() -> None:
    before = gc.get_threshold()
    knot = weakref.ref(Knot())
    with garbage.settled():
        assert knot() is None
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() != before
        kept = Knot()
        late = weakref.ref(kept)
        garbage.settle()
        del kept
        gc.collect()
        assert late() is not None  # it lived for good, as far as anybody knew
        garbage.settle()
        assert late() is None
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


class Controller:
    def __init__(self) -> None:
        self.last_request = 0
        self.under_way = 0


def test_the_server_waits_for_a_quiet_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller()
    story = [(1, 1), (2, 0), (3, 0), (3, 1), (3, 0), (3, 0)]  # the last request and those under way, at each look
    told: list[str] = []

    async def pause(seconds: float) -> None:
        await asyncio.sleep(0)
        if seconds == tidy.EVERY_S:
            if told:
                raise EOFError
        else:
            assert seconds == tidy.QUIET_S
        told.append(f"{controller.last_request}")
        controller.last_request, controller.under_way = story.pop(0)

    monkeypatch.setattr(garbage, "settle", lambda: told.append("settled"))
    with pytest.raises(EOFError):
        asyncio.run(tidy.keep_tidy(controller, pause=pause))
    assert told == ["0", "1", "2", "3", "3", "settled"] and story == [(3, 0)]
