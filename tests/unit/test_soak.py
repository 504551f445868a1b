"""The verdict of a soak, on looks that are made up."""

from __future__ import annotations

import pytest

from instainfer.bench.soak import WATCHED, slope, unanswered, verdict


def looks(grow: str = "", by: float = 0.0) -> list[dict[str, float]]:
    """An hour of one a minute; the first third always climbs, as a server that is warming up does."""
    made = []
    for minute in range(61):
        one = {watched.key: 100.0 + min(minute, 20) * 5 for watched in WATCHED}
        if grow:
            one[grow] += by * minute / 60
        made.append({"at_s": minute * 60.0, **one})
    return made


def test_a_server_that_warms_up_and_stays_is_flat() -> None:
    assert all(row["flat"] for row in verdict(looks()))


@pytest.mark.parametrize("key", [watched.key for watched in WATCHED])
def test_what_grows_is_named(key: str) -> None:
    rows = verdict(looks(key, by=200.0))
    assert [row["name"] for row in rows if not row["flat"]] == [key]


def test_a_request_without_an_answer_is_no_success() -> None:
    assert unanswered({"200": 5, "502": 1, "deployed": 2})["flat"]
    assert not unanswered({"200": 5, "ReadTimeout": 1})["flat"]
    assert not unanswered({"503": 1})["flat"]


def test_an_odd_look_does_not_move_the_slope() -> None:
    times = [float(n) for n in range(20)]
    values = [10.0] * 20
    values[7] = 10_000.0
    assert slope(times, values) == 0.0
    assert slope(times, [2 * t for t in times]) == 2.0
