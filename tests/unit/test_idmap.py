"""Which uids a container has."""

from __future__ import annotations

import pytest

from instainfer.errors import Unavailable
from instainfer.sandbox.idmap import MOST_LINES, mapping


def test_all_in_one_line() -> None:
    assert mapping(1_000_000) == "0 1000000 65536"


def test_root_is_always_there() -> None:
    assert mapping(100, ()) == "0 100 1"


def test_neighbours_share_a_line() -> None:
    assert mapping(100, (1003, 1, 1001, 1002, 1001, 7)) == "0 100 2\n7 107 1\n1001 1101 3"


@pytest.mark.parametrize("uid", [-1, 65536])
def test_a_uid_beyond_the_container_is_refused(uid: int) -> None:
    with pytest.raises(Unavailable, match=f"no uid {uid}"):
        mapping(100, (5, uid))


def test_what_no_map_can_say_is_refused() -> None:
    runs = range(2, 2 * MOST_LINES, 2)  # and 0
    assert mapping(0, runs).count("\n") == MOST_LINES - 1
    with pytest.raises(Unavailable, match=f"in {MOST_LINES + 1} separate runs"):
        mapping(0, (*runs, 5000))
    with pytest.raises(Unavailable, match="bytes"):  # longer lines: fewer fit into the one write
        mapping(3_000_000_000, runs)
