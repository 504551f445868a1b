"""A thread that reads the live feed, and comes back to it when the server was away."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from instainfer.client import Client
from instainfer.errors import Forbidden, InstaInferError, NotAllowed, NotFound

AGAIN_S = 1.0
#: Coming back does not help: no key, a wrong one, or a server that has no feed.
FINAL = (NotAllowed, Forbidden, NotFound)


class Follower:
    """`told` gets every event, and every error that ended the feed; it is called in this thread. After one of
    FINAL nothing more comes."""

    def __init__(self, client: Client, told: Callable[[dict[str, Any] | InstaInferError], object]) -> None:
        self._client, self._told = client, told
        self._over = threading.Event()
        # A daemon: a server that keeps the line and says nothing must not keep the terminal.
        self._thread = threading.Thread(target=self._run, name="live feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """It ends with the next event, or the next error."""
        self._over.set()

    def _run(self) -> None:
        since = ""
        while not self._over.is_set():
            try:
                with contextlib.closing(self._client.live(since)) as feed:
                    for event in feed:
                        if self._over.is_set():
                            return
                        since = str(event["id"])
                        self._told(event)
            except InstaInferError as error:
                if self._over.is_set():
                    return
                self._told(error)
                if isinstance(error, FINAL):
                    return
            self._over.wait(AGAIN_S)
