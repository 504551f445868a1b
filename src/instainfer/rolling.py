"""A rolling restart: every agent, one after the other, then the server; no request fails by it.

A node takes nothing new and finishes what runs before its agent begins anew; the others serve meanwhile. While the
server begins anew, gateways hold what comes. Whoever was drained before is drained after.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from instainfer.client import Client
from instainfer.errors import Conflict, InstaInferError, NotFound, Unavailable

LOOK_S = 0.1
DRAIN_S = 3600.0  # the longest that a request may run
JOIN_S = 120.0
SERVER_S = 120.0


def restart(client: Client, only: Sequence[str] = (), *, server: bool = True) -> Iterator[str]:
    """Says what it has done as it goes. `only`: these nodes. Raises NotFound, Conflict, Unavailable where one does
    not come back; nothing is taken down after that."""
    there = {one["node"]: one for one in client.nodes()}
    for node in only:
        if node not in there:
            raise NotFound(f"there is no node {node}", hint=f"the nodes are: {', '.join(there)}")
    for node in only or sorted(there):
        if there[node]["state"] in ("joining", "lost"):
            yield f"{node} is away: left alone"
            continue
        drained = there[node]["state"].startswith("drain")
        client.drain(node)
        _until(lambda node=node: _node(client, node)["state"] == "drained", DRAIN_S, f"{node} is not drained")  # type: ignore[misc]
        before = _node(client, node)["joins"]
        client.restart_node(node)
        _until(lambda node=node, n=before: _node(client, node)["joins"] > n, JOIN_S, f"{node} does not come back")  # type: ignore[misc]
        if not drained:
            client.drain(node, undo=True)
        yield f"{node} is restarted"
    if server:
        began = time.monotonic()
        client.restart()
        _until(lambda: client.status()["uptime_s"] < time.monotonic() - began, SERVER_S, "the server is not back")
        yield "the server is restarted"


def _node(client: Client, node: str) -> dict[str, Any]:
    for one in client.nodes():
        if one["node"] == node:
            return one
    return {"state": "gone", "joins": 0}


def _until(holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Raises Unavailable. The server may be away meanwhile."""
    end = time.monotonic() + seconds
    said = ""
    while time.monotonic() < end:
        try:
            if holds():
                return
        except Conflict:
            raise
        except InstaInferError as error:
            said = f": {error.message}"
        time.sleep(LOOK_S)
    raise Unavailable(f"{otherwise}{said}", hint="see its log; `instainfer cluster status` shows how all are")
