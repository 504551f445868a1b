"""The live feed: once a second what there is now, and what has happened since; as server-sent events.

Nothing of it is on a request's way. While somebody looks, the writer of records counts what it has saved; once a
second the counts, a few of the records, the marks and one look at the platform's state become an event, made once
for all who look at the same. While nobody does, there is no cost, and nothing is kept but the marks.

Every event has an id. A reader that comes back with its last one gets what it missed; where that is no longer
there (another start of the server, too long ago) the event says `anew`, and whatever it had is to be dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from instainfer import __version__
from instainfer.errors import InstaInferError, Overloaded
from instainfer.gateway import nodes, present
from instainfer.gateway.access import Principal
from instainfer.gateway.health import Health
from instainfer.gateway.tallies import SAMPLED, Counts, Heard, Tally, merge, spread, tally_of, thinned
from instainfer.marks import Mark
from instainfer.model import Activation

EVERY_S = 1.0
LINGER_S = 20.0  # after the last reader has left: it may come back and go on
STUCK_S = 15.0  # a reader that takes nothing for so long is let go
OVER_S = 60.0  # rates are of so many seconds
#: Invocations and marks for readers who come back, of one second a quarter.
KEPT = 2_000
HEARD = 50_000  # invocations that may end while the minute before is looked up
#: Durations that are sorted for an event, a minute's of one namespace. Those of a hundred busy ones took 90 ms.
ORDERED = 60 * SAMPLED
MOST = 1_000  # of them in one event: what is left out is counted
EACH = 250  # invocations in the event of one second, which no picture has room for: 1,000 cost 4 ms of the loop
MOST_READERS = 64
MOST_OF_ONE = 16  # of one namespace

_HITS = ("warm", "preloaded")


class Events(StreamingResponse):
    """Server-sent events to a reader who has to keep reading: what it does not take is not kept for it."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[bytes], done: Callable[[], object], status_code: int = 200) -> None:
        super().__init__(chunks, status_code, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()

    async def stream_response(self, send: Send) -> None:
        async def timely(message: Message) -> None:
            async with asyncio.timeout(STUCK_S):
                await send(message)

        with contextlib.suppress(TimeoutError):
            await super().stream_response(timely)


class Feed:
    def __init__(self, health: Health) -> None:
        self._health = health
        self._clock = health.clock
        self._books = health.controller.books
        self._epoch = health.epoch
        self._journal: deque[tuple[int, Activation | Mark]] = deque()  # with the ticks in which they came
        self._hearing = threading.Lock()  # of what the writer's thread fills: the next two
        self._heard = Heard(KEPT // 4)
        self._early: deque[Activation] | None = None  # instead of it, while the past is looked up
        self._minute: Counts = {}  # by namespace
        self._by_node: Counts = {}  # the same by node, where there are several
        self._places: dict[str, str] = {}  # container -> node, of those that there were since the second before
        self._whole = 0.0  # since when the tallies are of all there was
        self._marked = 0  # number of the latest mark in the journal
        self._tick = 0
        self._floor = 0  # of ticks up to this one something may be missing
        #: By tick and namespace: invocations that are not in the journal.
        self._left: dict[int, dict[str, int]] = {}
        self._made: dict[tuple[Principal, int], bytes] = {}  # events of this tick, by who and since when
        self._readers: dict[object, str] = {}  # -> namespace
        self._running: asyncio.Task[None] | None = None
        self._waking = asyncio.Lock()
        self._next: asyncio.Future[None] | None = None
        self._stopped = asyncio.Event()

    # ---- readers -------------------------------------------------------------------------------------------

    def answer(self, who: Principal, since: str, still: Callable[[], bool]) -> Events:
        """To one more reader, until it leaves or `still` says that its key opens nothing any more; `since`: the id
        of the last event that it has. Raises Overloaded."""
        mine = sum(1 for namespace in self._readers.values() if namespace == who.namespace)
        if len(self._readers) >= MOST_READERS or (not who.everywhere and mine >= MOST_OF_ONE):
            raise Overloaded(
                f"{len(self._readers)} look on already",
                hint="close a dashboard; `instainfer ps` shows the same once",
                retry_after_s=5.0,
            )
        place = object()
        self._readers[place] = who.namespace
        return Events(self._read(who, since, still), lambda: self._readers.pop(place, None))

    async def _read(self, who: Principal, since: str, still: Callable[[], bool]) -> AsyncIterator[bytes]:
        await self._wake()
        cursor = self._cursor(since)
        while self._next is not None and still():
            if cursor < self._floor:  # it took its time
                cursor = 0
            tick = self._tick
            yield self._event(who, cursor)
            cursor = tick
            if self._next is not None:
                await asyncio.shield(self._next)

    def stop(self) -> None:
        """All readers are let go, and none is taken any more."""
        self._stopped.set()
        self._sleep()

    def _cursor(self, since: str) -> int:
        """The tick that `since` names, or 0: anew."""
        epoch, _, tick = since.partition(".")
        if epoch != self._epoch or not tick.isascii() or not tick.isdigit() or len(tick) > 12:
            return 0
        return int(tick) if self._floor <= int(tick) <= self._tick else 0

    # ---- the second hand -----------------------------------------------------------------------------------

    async def _wake(self) -> None:
        """Have it tick, from the invocations of the last minute on."""
        async with self._waking:
            if self._running is not None or self._stopped.is_set():
                return
            with self._hearing:
                self._early = deque(maxlen=HEARD)
            self._health.writer.heard = self._hear
            wall = self._clock.wall()
            await asyncio.to_thread(self._health.writer.flush, EVERY_S)
            seed: list[Activation] = []
            with contextlib.suppress(InstaInferError):  # a store that is away now has nothing to say of before
                seed = await asyncio.to_thread(
                    self._health.store.activations, None, None, limit=MOST, since=wall - OVER_S
                )
            with self._hearing:
                early, self._early = self._early, None
                self._heard = Heard(KEPT // 4)
            if self._stopped.is_set():  # meanwhile
                return
            known = {one.id for one in seed}
            past = [*reversed(seed), *(one for one in early or () if one.id not in known)]
            started = wall - (self._clock.now() - self._health.started)
            self._whole = max(started, seed[-1].wall if len(seed) >= MOST else wall - OVER_S)
            self._tick += 1
            self._floor = self._tick
            self._marked = 0
            self._journal.clear()
            self._left.clear()
            self._minute.clear()
            self._by_node.clear()
            self._places.clear()
            self._add(Heard(KEPT // 4, past, self._several))
            self._next = asyncio.get_running_loop().create_future()
            self._running = asyncio.create_task(self._run())

    def _sleep(self) -> None:
        self._health.writer.heard = None
        if self._running is not None:
            self._running.cancel()
            self._running = None
        if self._next is not None:
            self._next.set_result(None)
            self._next = None
        self._journal.clear()
        self._take_heard()
        self._made.clear()

    async def _run(self) -> None:
        alone_s = 0.0
        while alone_s < LINGER_S:
            await asyncio.sleep(EVERY_S)
            await asyncio.to_thread(self._health.writer.flush, EVERY_S)
            self._tick += 1
            self._add(self._take_heard())
            alone_s = 0.0 if self._readers else alone_s + EVERY_S
            done, self._next = self._next, asyncio.get_running_loop().create_future()
            if done is not None:
                done.set_result(None)
        self._running = None
        self._sleep()

    @property
    def _several(self) -> bool:
        """There are, or were within the minute, several nodes."""
        return len(self._health.controller.nodes) > 1 or bool(self._by_node)

    def _hear(self, rows: Sequence[Activation]) -> None:
        """What was just saved; in the writer's thread, which drops them then."""
        with self._hearing:
            if self._early is not None:
                self._early.extend(rows)
                return
        more = Heard(KEPT // 4, rows, self._several)
        with self._hearing:
            self._heard.merge(more)

    def _take_heard(self) -> Heard:
        with self._hearing:
            taken, self._heard = self._heard, Heard(KEPT // 4)
        return taken

    def _add(self, heard: Heard) -> None:
        """To the tallies and the journal, and the new marks too."""
        self._made.clear()
        marks = self._books.marks.since(self._marked)
        self._marked = self._books.marks.count
        merge(self._minute, heard.by_namespace)
        if self._several:
            self._add_by_node(heard, marks)
        old = self._clock.wall() - OVER_S
        for minute in (self._minute, self._by_node):
            for second in [second for second in minute if second < old]:
                del minute[second]
        self._journal.extend(zip(itertools.repeat(self._tick), marks, strict=False))
        if any((left := heard.left_out()).values()):
            self._left[self._tick] = left
        self._journal.extend(zip(itertools.repeat(self._tick), heard.kept, strict=False))
        while len(self._journal) > KEPT:
            self._floor = max(self._floor, self._journal.popleft()[0])
        for tick in [tick for tick in self._left if tick < self._floor]:
            del self._left[tick]

    def _add_by_node(self, heard: Heard, marks: list[Mark]) -> None:
        containers = self._health.controller.platform.state.containers.values()
        there = {one.id: one.node for one in containers} | {
            mark.container: mark.node for mark in marks if mark.what == "create"
        }
        for second, by_container in heard.by_container.items():
            for container, one in by_container.items():
                node = there.get(container) or self._places.get(container)
                if node is not None:  # else it never got a container, or one that is long gone
                    tally_of(self._by_node, second, node).merge(one)
        self._places = there

    # ---- what is told --------------------------------------------------------------------------------------

    def _event(self, who: Principal, cursor: int) -> bytes:
        made = self._made.get((who, cursor))
        if made is None:
            made = self._made[who, cursor] = self._make(who, cursor)
        return made

    def _make(self, who: Principal, cursor: int) -> bytes:
        invocations: list[Activation] = []
        marks: list[Mark] = []
        for tick, row in reversed(self._journal):
            if tick <= cursor:
                break
            if who.sees(row.namespace):
                if isinstance(row, Activation):
                    invocations.append(row)
                else:
                    marks.append(row)
        invocations.reverse()
        shown = thinned(invocations, EACH if cursor == self._tick - 1 else MOST)
        left = sum(
            count
            for tick, by_namespace in self._left.items()
            for namespace, count in by_namespace.items()
            if tick > cursor and who.sees(namespace)
        )
        id = f"{self._epoch}.{self._tick}"
        data = {
            "id": id,
            "anew": cursor == 0,
            "who": {"namespace": who.namespace, "role": who.role.value},
            "now": self.now(who),
            "invocations": [_invocation(one) for one in shown],
            "left_out": len(invocations) - len(shown) + left,
            "marks": [_mark(one) for one in reversed(marks[:MOST])],
        }
        return b"id: " + id.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"

    def now(self, who: Principal) -> dict[str, Any]:
        """What there is, as far as this key sees it; the server's figures for its owner only."""
        health, books = self._health, self._books
        state = health.controller.platform.state
        shown = present.platform(
            health.controller, health.isolation(), who.sees, self._clock.now(), who.everywhere
        )
        functions = []
        for key, known in state.functions.items():
            level = present.level(known)
            if who.sees(key.partition("/")[0]) and (level != "cold" or known.queue or known.pinned):
                one = {"function": key, "state": level, "queued": len(known.queue), "pinned": known.pinned}
                if who.everywhere and len(health.controller.nodes) > 1:
                    one["home"] = nodes.home_of(health, key)
                functions.append(one)
        ahead = sum(
            instance.bytes
            for name, instance in state.instances.items()
            if who.sees(instance.container.tenant) and books.waiting(name)
        )
        told = {
            "wall": self._clock.wall(),
            "version": __version__,
            "uptime_s": self._clock.now() - health.started,
            **shown,
            "functions": functions,
            "deployed": sum(1 for key in state.functions if who.sees(key.partition("/")[0])),
            "queued": sum(len(f.queue) for key, f in state.functions.items() if who.sees(key.partition("/")[0])),
            "preloaded_mb": ahead / present.MB,
            "rates": self._rates(who),
        }
        if who.everywhere:
            wasted = books.metrics.wasted_byte_seconds + books.unused_byte_seconds()
            told |= {
                "policy": health.status()["policy"],
                "preloads": dict(books.metrics.preloads),
                "wasted_gb_s": wasted / 1e9,
                "records_dropped": health.writer.dropped,
                "nodes": self._nodes(),
            }
        return told

    def _nodes(self) -> list[dict[str, Any]]:
        found = nodes.shown(self._health)
        if len(found) > 1:
            tallies: dict[str, list[Tally]] = {one["node"]: [] for one in found}
            for by_node in self._by_node.values():
                for node, tally in by_node.items():
                    tallies.setdefault(node, []).append(tally)
            for one in found:
                one["rates"] = self._summed(tallies[one["node"]])
        return found

    def _rates(self, who: Principal) -> dict[str, Any]:
        """Of the invocations that ended in the last `over_s` seconds: a minute, or since when all are counted."""
        minute = self._minute.values()
        return self._summed([tally for by in minute for namespace, tally in by.items() if who.sees(namespace)])

    def _summed(self, tallies: list[Tally]) -> dict[str, Any]:
        over_s = min(OVER_S, max(self._clock.wall() - self._whole, 1.0))
        starts: dict[str, int] = {}
        took: list[float] = []
        failed = 0
        for tally in tallies:
            failed += tally.failed
            took += tally.took
            for start, count in tally.starts.items():
                starts[start] = starts.get(start, 0) + count
        took = sorted(spread(took, ORDERED))
        ended = sum(starts.values())
        began = ended - starts.get("none", 0)
        return {
            "over_s": over_s,
            "invocations": ended,
            "per_s": ended / over_s,
            "failed": failed,
            "hit_fraction": sum(starts.get(hit, 0) for hit in _HITS) / began if began else None,
            "starts": starts,
            "p50_ms": _quantile(took, 0.5),
            "p99_ms": _quantile(took, 0.99),
        }


def _quantile(ordered: list[float], share: float) -> float | None:
    """The least value that at least this share does not exceed, in milliseconds."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1e3


def _invocation(of: Activation) -> dict[str, Any]:
    shown = present.activation(of)
    del shown["hint"], shown["trace"]  # which may be long: `/activations/{id}` has them
    shown["error"] = of.error[:300]
    return shown


def _mark(of: Mark) -> dict[str, Any]:
    why = of.why
    return {
        "wall": of.wall,
        "what": of.what,
        "namespace": of.namespace,
        "function": of.function,
        "container": of.container,
        "instance": of.instance,
        "node": of.node,
        "level": of.level,
        "ms": None if of.seconds is None else of.seconds * 1e3,
        "why": "" if why is None else why.rule,
        "probability": None if why is None else why.probability,
        "saves_ms": None if why is None or why.saves_s is None else why.saves_s * 1e3,
        "weight_mb": None if why is None or why.weight is None else why.weight / present.MB,
    }
