"""What processes hold, estimated from /proc."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from instainfer.sandbox.measure import held, inherited
from instainfer.sandbox.sessions import Leader, Process, members

MB = 1 << 20


@contextmanager
def forked(ballast: bytearray) -> Iterator[tuple[int, socket.socket]]:
    """A child that writes to as many MB of the ballast as it is told, then waits."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while told := theirs.recv(8):
            for at in range(0, int(told) * MB, 4096):
                ballast[at] = 1
            theirs.send(b"+")
        os._exit(0)
    theirs.close()
    try:
        yield pid, ours
    finally:
        ours.close()
        os.waitpid(pid, 0)


def test_a_fork_holds_what_it_wrote_and_its_parent_what_it_made() -> None:
    ballast = bytearray(b"x") * (64 * MB)
    with forked(ballast) as (one, talk), forked(ballast) as (other, _):
        had = inherited(one)
        assert had > 64 * MB
        assert held([one], had) < 8 * MB
        assert 64 * MB < held([os.getpid()]) < had + 8 * MB
        talk.send(b"32")
        talk.recv(1)
        assert 32 * MB <= held([one], had) < 40 * MB
        assert held([other], had) < 8 * MB
        assert held([one, other], had) < 48 * MB


def test_who_is_gone_holds_nothing() -> None:
    with forked(bytearray(MB)) as (pid, _):
        pass
    assert (inherited(pid), held([pid])) == (0, 0)


def test_members_are_the_session_and_its_descent_but_for_other_leaders() -> None:
    table = {
        10: Process("S", 1, 10, 100),  # the leader
        11: Process("S", 1, 10, 101),  # of its session, orphaned
        12: Process("R", 10, 12, 102),  # a child in a session of its own
        13: Process("S", 12, 12, 103),
        20: Process("S", 10, 20, 104),  # forked for somebody else
        21: Process("S", 20, 20, 105),
        30: Process("S", 10, 30, 106),  # bears the number of somebody else's leader, who is gone
        40: Process("S", 1, 40, 107),
    }
    leader, others = Leader(10, 100, 0), (Leader(20, 104, 0), Leader(30, 7, 0))
    assert members(leader, table, (leader, *others)) == {10: "S", 11: "S", 12: "R", 13: "S", 30: "S"}
    assert members(Leader(20, 104, 0), table, (leader, *others)) == {20: "S", 21: "S"}


def test_a_number_that_was_given_away_has_no_members() -> None:
    table = {10: Process("S", 1, 10, 500), 11: Process("S", 10, 10, 501)}
    assert members(Leader(10, 100, 0), table, ()) == {}
    assert members(Leader(9, 100, 0), table, ()) == {}
