"""The event log: what was written is read back, from any segment; a torn end or a full disk lose the tail only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from instainfer import eventlog, why
from instainfer.core import checkpoint
from instainfer.core.events import (
    AnyEvent,
    ContainerReady,
    FunctionDeployed,
    InstanceReady,
    NodeJoined,
    RequestArrived,
)
from instainfer.core.platform import Platform
from instainfer.eventlog import EventLog
from instainfer.model import Activation, Level, Phases
from tests.core.world import function, platform


def opened(directory: Path, brain: Platform, *, keep_bytes: int = 1 << 30) -> EventLog:
    log = EventLog(directory, epoch="e1", policy={"mode": "hazard"}, keep_bytes=keep_bytes)
    log.begin(brain.state, now=1.0, wall=100.0, first=1)
    return log


def arrived(log: EventLog, *requests: int) -> None:
    for request in requests:
        log.append(float(request), RequestArrived(request=request, function="ns/f"))


def requests(directory: Path, request: int) -> list[int]:
    found = eventlog.find(directory, "e1", request)
    assert found is not None
    head, segments = found
    checkpoint.load(head.state)
    return [event.request for _, event in eventlog.read(segments) if isinstance(event, RequestArrived)]


def test_a_request_is_found_in_its_segment(tmp_path: Path) -> None:
    brain = platform()
    log = opened(tmp_path, brain)
    arrived(log, 1, 2, 3)
    log.begin(brain.state, now=4.0, wall=200.0, first=4)
    arrived(log, 4, 5)
    log.close()
    assert requests(tmp_path, 2) == [1, 2, 3, 4, 5]
    assert requests(tmp_path, 4) == [4, 5]
    assert eventlog.find(tmp_path, "another run", 1) is None


def test_a_torn_record_ends_its_segment(tmp_path: Path) -> None:
    log = opened(tmp_path, platform())
    arrived(log, 1, 2)
    log.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert requests(tmp_path, 1) == [1]


def test_a_full_disk_stops_the_log_and_nothing_else(tmp_path: Path) -> None:
    brain = platform()
    log = opened(tmp_path, brain)
    full = [log.full]
    log._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115, PTH123 - the log closes it
    arrived(log, 1)
    log.flush()
    full.append(log.full)
    assert full == [False, True], "a new segment is due"
    arrived(log, 2)
    log.flush()
    log.begin(brain.state, now=3.0, wall=300.0, first=3)  # there is room again
    arrived(log, 3)
    log.close()
    assert requests(tmp_path, 3) == [3]


def test_old_segments_go_and_the_newest_stays(tmp_path: Path) -> None:
    brain = platform()
    log = opened(tmp_path, brain, keep_bytes=1)
    for number in range(2, 5):
        log.begin(brain.state, now=float(number), wall=100.0 * number, first=number)
    log.close()
    assert eventlog.find(tmp_path, "e1", 3) is None
    assert requests(tmp_path, 4) == []
    assert len(list(tmp_path.iterdir())) == 1


# ---- what another version wrote ------------------------------------------------------------------------------


ACTIVATION = Activation(
    id="a", namespace="ns", function="f", version=1, start="cold", status="ok", wall=100.0, e2e_s=1.0,
    phases=Phases(), instance="i2", request=1, epoch="e1",
)  # fmt: skip


def lived(directory: Path) -> Path:
    """A run with one cold start; its only segment."""
    brain = platform()
    log = opened(directory, brain)
    events: list[AnyEvent] = [
        NodeJoined(node="n", memory=1 << 30, guests=True, load_slots=2),
        FunctionDeployed(function=function()),
        RequestArrived(request=1, function="ns/f"),
        ContainerReady(container="c1", seconds=0.1),
        InstanceReady(instance="i2", level=Level.LOADED, import_s=0.1, load_s=0.1),
    ]
    for now, event in enumerate(events, 2):
        brain.handle(event, float(now))
        log.append(float(now), event)
    log.close()
    (path,) = directory.iterdir()
    return path


def rewritten(path: Path, change: Callable[[list[Any]], None]) -> None:
    """Its records, changed."""
    with path.open("rb") as file:
        records = [msgspec.msgpack.decode(data) for data in eventlog._frames(file)]
    change(records)
    made = [msgspec.msgpack.encode(record) for record in records]
    path.write_bytes(b"".join(len(data).to_bytes(eventlog.LENGTH, "big") + data for data in made))


def without(drop: Callable[[Any], None]) -> Callable[[list[Any]], None]:
    """Its checkpoint, as from a core that knew less."""

    def change(records: list[Any]) -> None:
        state = checkpoint.load(records[0]["state"])
        drop(state)
        records[0]["state"] = checkpoint.dump(state)

    return change


def no_requests(state: Any) -> None:
    del state.requests


def other_predictor(state: Any) -> None:
    for name in list(vars(state.forecast.base)):
        delattr(state.forecast.base, name)


def garbage(records: list[Any]) -> None:
    records[0]["state"] = b"\x80\x05cnowhere\nnothing\n."


def unknown_event(records: list[Any]) -> None:
    records[2][1]["type"] = "SomethingNew"


def unknown_head(records: list[Any]) -> None:
    records[0]["first"] = "one"


def test_a_run_of_this_version_is_replayed(tmp_path: Path) -> None:
    lived(tmp_path)
    told = why.replay(tmp_path, ACTIVATION)
    assert told is not None and (told.start, told.instance) == ("cold", "i2")


@pytest.mark.parametrize(
    "change",
    [without(no_requests), without(other_predictor), garbage, unknown_event, unknown_head],
    ids=["no_requests", "other_predictor", "garbage", "unknown_event", "unknown_head"],
)
def test_a_run_of_another_version_is_told_from_its_record(
    tmp_path: Path, change: Callable[[list[Any]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """And what that version wrote stays, for it may come back."""
    path = lived(tmp_path)
    rewritten(path, change)
    before = path.read_bytes()
    why._unfit.clear()
    for _ in range(2):
        assert why.replay(tmp_path, ACTIVATION) is None
    assert why.tell(ACTIVATION, None)["start"] == "cold"
    assert path.read_bytes() == before
    if change is not unknown_head:  # which is passed over as no segment at all
        assert [record.levelname for record in caplog.records] == ["WARNING"]
    # The next run's log begins beside it.
    log = EventLog(tmp_path, epoch="e2", policy={}, keep_bytes=1 << 30)
    log.begin(platform().state, now=1.0, wall=200.0, first=1)
    log.close()
    assert len(list(tmp_path.iterdir())) == 2
