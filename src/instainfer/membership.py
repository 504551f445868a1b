"""Keeps a controller's nodes in step with the cluster: whoever is a member has an agent, and that has joined.

A cluster that does not hear of a member any more does not end its agent, and neither do we: as long as there is a
link to it, it serves. It is only not asked for again once it is lost.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from instainfer.cluster.base import ClusterBackend, Joined, Lost, Resized, Suspect
from instainfer.controller import Controller
from instainfer.errors import InstaInferError

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0  # before another try to have a member join
TEND_S = 1.0  # between looks at which nodes are drained
SETTLE_S = 30.0  # how long a start waits for the members that are there to have joined


class Membership:
    def __init__(self, controller: Controller, backend: ClusterBackend) -> None:
        self._controller = controller
        self._backend = backend
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._states: dict[str, str] = {}  # what the cluster says
        self._wanted: set[str] = set()
        self._lost_ones: set[str] = set()  # were joined, and are not now
        self._problems: dict[str, str] = {}
        self._joins: dict[str, int] = {}  # how often it has joined
        self._news = asyncio.Event()  # a node has joined, or could not
        self._released: set[str] = set()  # nodes whose memory was given back
        self._watching: asyncio.Task[None] | None = None
        self._tending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when all who are there now have joined, or could not. Raises as the backend's start."""
        await self._backend.start()
        self._controller.lost = self._lost
        first = set(self._backend.members())
        self._watching = asyncio.create_task(self._watch())
        self._tending = asyncio.create_task(self._tend())
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while not all(node in self._controller.nodes or node in self._problems for node in first):
                    self._news.clear()
                    await self._news.wait()

    async def aclose(self) -> None:
        tasks = [*self._joining.values(), *filter(None, [self._watching, self._tending])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._backend.aclose()

    async def _watch(self) -> None:
        async for change in self._backend.watch():
            if isinstance(change, Joined):
                node = change.member.node
                self._states[node] = "alive"
                self._wanted.add(node)
                self._want(node)
                self._resize(node)
            elif isinstance(change, Resized):
                self._resize(change.member.node)
            elif isinstance(change, Suspect):
                self._states[change.node] = "suspect"
                log.warning("the cluster does not hear of node %s", change.node)
            elif isinstance(change, Lost):
                self._states.pop(change.node, None)
                self._wanted.discard(change.node)
                log.warning("the cluster has lost node %s", change.node)

    def _resize(self, node: str) -> None:
        """Of its memory we have what the cluster says, where it says."""
        member = self._backend.members().get(node)
        if member is not None and member.warm and node not in self._released:
            self._controller.resize_node(node, member.warm)

    async def _tend(self) -> None:
        """Memory of a node that is drained is for others until it is open again."""
        while True:
            await asyncio.sleep(TEND_S)
            for one in self.nodes():
                node = one["node"]
                try:
                    if one["state"] == "drained" and node not in self._released:
                        self._released.add(node)
                        await self._backend.release(node)
                    elif one["state"] == "joined" and node in self._released:
                        self._released.discard(node)
                        await self._backend.reserve(node)
                except InstaInferError as error:
                    log.warning("node %s: %s", node, error.message)

    def _lost(self, node: str) -> None:
        """By the controller: its agent is gone or out of reach."""
        self._lost_ones.add(node)
        if node in self._wanted:
            self._want(node)

    def _want(self, node: str) -> None:
        if node not in self._controller.nodes and node not in self._joining:
            task = self._joining[node] = asyncio.create_task(self._join(node))
            task.add_done_callback(lambda task: self._joined(node, task))

    def _joined(self, node: str, task: asyncio.Task[None]) -> None:
        self._joining.pop(node, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("node %s: joining it failed", node, exc_info=error)
        if node in self._wanted and not task.cancelled():
            self._want(node)  # it may have been lost again before this was over

    async def _join(self, node: str) -> None:
        wait = FIRST_WAIT_S
        while node in self._wanted and node not in self._controller.nodes:
            try:
                agent = await self._backend.ensure_agent(node)
                self._released.discard(node)  # it was reserved to start the agent
                member = self._backend.members().get(node)
                await self._controller.join(agent, member.warm if member is not None else 0)
                self._resize(node)
            except InstaInferError as error:
                if self._problems.get(node) != error.message:
                    log.warning("node %s cannot join: %s", node, error.message)
                self._problems[node] = error.message
                self._news.set()
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
            else:
                self._problems.pop(node, None)
                self._lost_ones.discard(node)
                self._joins[node] = self._joins.get(node, 0) + 1
                self._news.set()
                log.info("node %s has joined", node)

    # ---- what people see and do

    def nodes(self) -> list[dict[str, Any]]:
        """Everybody that is a member, was joined, or is drained."""
        state, joined, members = self._controller.platform.state, self._controller.nodes, self._backend.members()
        shown = []
        for node in sorted({*members, *joined, *self._controller.draining}):
            about = joined.get(node)
            there = [container for container in state.containers.values() if container.node == node]
            if about is None:
                gone = "lost" if node in self._lost_ones else "joining"
                said = gone if node in members else "drained"
            elif node in self._controller.draining or node in state.leaving:
                said = "draining" if there else "drained"
            else:
                said = "out of reach" if node in state.closed else "joined"
            shown.append(
                {
                    "node": node,
                    "state": said,
                    "cluster": self._states.get(node, "alive" if node in members else "gone"),
                    "memory_mb": about.memory / 1e6 if about is not None else 0.0,
                    "load_slots": about.load_slots if about is not None else 0,
                    "committed_mb": state.ledger.promised(node) / 1e6,
                    "guests": about.guests if about is not None else False,
                    "containers": len(there),
                    "instances": sum(len(container.instances) for container in there),
                    "problem": self._problems.get(node, ""),
                    "joins": self._joins.get(node, 0),
                }
            )
        return shown

    def drain(self, node: str, *, undo: bool = False) -> dict[str, Any]:
        """How it is now. Raises NotFound."""
        before = {one["node"]: one for one in self.nodes()}
        if undo:
            self._controller.open_node(node)
        else:
            self._controller.drain_node(node)
        after = {one["node"]: one for one in self.nodes()}
        return after.get(node) or {**before[node], "state": "gone"}
