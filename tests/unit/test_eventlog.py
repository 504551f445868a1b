"""The event log: what was written is read back, from any segment; a torn end or a full disk lose the tail only."""

from __future__ import annotations

from pathlib import Path

from instainfer import eventlog
from instainfer.core import checkpoint
from instainfer.core.events import RequestArrived
from instainfer.core.platform import Platform
from instainfer.eventlog import EventLog
from tests.core.world import platform


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
