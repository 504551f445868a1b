"""What an instance left unread when it ended."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from instainfer.agent.instance import _unread


class _Shown(asyncio.Transport):
    def __init__(self, sock: socket.socket | None) -> None:
        super().__init__()
        self._sock = sock

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._sock


def test_a_transport_that_is_closed_already_has_nothing_unread() -> None:
    """The container is taken down all the same: one that stayed half down kept its memory for good."""
    assert not _unread(_Shown(None))
    ours, theirs = socket.socketpair()
    theirs.close()
    assert not _unread(_Shown(ours))
    ours.close()
    assert not _unread(_Shown(ours))


def test_an_end_with_something_in_it_says_so() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.send(b"never read")
        theirs.close()
        assert _unread(_Shown(ours))
