"""Records of synchronous calls, written in batches behind the callers' backs."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from instainfer.errors import InstaInferError
from instainfer.model import Activation
from instainfer.store.base import Answered, LogLine, Store

Record = Activation | LogLine | Answered

_log = logging.getLogger("instainfer.store")

MOST_WAITING = 200_000  # records, some 200 MB: minutes of a full server with a database that takes nothing
BATCH = 2_000  # records a transaction: beyond it nothing gets faster, and the writer holds the GIL longer


class BatchWriter:
    """A thread that saves what `put` was given, at most about `every_s` later.

    `put` never blocks and never fails. When the store cannot keep up (or cannot be written) for so long that
    `most` records wait, the oldest are dropped, counted in `dropped`, and said once in the log. A killed process
    loses what it put within the last `every_s`.
    """

    def __init__(self, store: Store, every_s: float = 0.5, *, most: int = MOST_WAITING) -> None:
        self.dropped = 0
        self.heard: Callable[[list[Activation]], None] | None = None  # what was saved; from the writer's thread
        self._store = store
        self._every_s = every_s
        self._most = most
        self._queue: deque[Record] = deque()
        self._unsaved: dict[str, Activation] = {}
        self._asleep = True  # the writer waits for `_wake`, so that an idle server has no timer running
        self._wake = threading.Event()
        self._hurry = threading.Event()  # do not wait for more
        self._changed = threading.Condition()
        self._taken = 0  # records ever put that were since saved or dropped
        self._put = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="instainfer-records", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """From one thread only (the event loop's)."""
        queue = self._queue
        if len(queue) >= self._most:
            self._drop()
        if type(record) is Activation:
            self._unsaved[record.id] = record
        queue.append(record)
        self._put += 1
        if self._asleep:
            self._asleep = False
            self._wake.set()

    def pending(self, id: str) -> Activation | None:
        """An activation that was put and may not be in the store yet."""
        return self._unsaved.get(id)

    def __len__(self) -> int:
        """Records that wait."""
        return self._put - self._taken

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until all that was put before this call is saved (or dropped). Blocks: not for an event loop.
        Returns whether it came to that in time."""
        goal = self._put
        self._hurry.set()
        self._wake.set()
        with self._changed:
            return self._changed.wait_for(lambda: self._taken >= goal, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Save what waits, then end. What cannot be saved in time is dropped, and the log says so."""
        self.flush(timeout_s)
        self._closing = True
        self._hurry.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if left := len(self):
            self.dropped += left
            _log.error("%d records could not be saved before the end", left)

    def _drop(self) -> None:
        try:
            old = self._queue.popleft()
        except IndexError:  # the writer was faster
            return
        if isinstance(old, Activation):
            self._unsaved.pop(old.id, None)
        if not self.dropped:
            _log.error("records come faster than the database takes them: the oldest are dropped")
        self.dropped += 1
        with self._changed:
            self._taken += 1

    def _run(self) -> None:
        while True:
            if not self._queue:
                self._asleep = True
                if not self._queue:  # else `put` may have seen us awake just before
                    if self._closing:
                        return
                    self._wake.wait()
                self._asleep = False
            self._wake.clear()
            self._hurry.wait(self._every_s)
            self._hurry.clear()
            waiting = len(self._queue)
            while waiting > 0:
                batch = self._take(min(waiting, BATCH))
                waiting -= BATCH
                if not self._save(batch):
                    return

    def _take(self, count: int) -> list[Record]:
        batch = []
        for _ in range(count):
            try:
                batch.append(self._queue.popleft())
            except IndexError:  # `put` dropped some meanwhile
                break
        return batch

    def _save(self, batch: list[Record]) -> bool:
        """Until it is saved; False when closing and the store still refuses."""
        activations = [record for record in batch if isinstance(record, Activation)]
        logs = [record for record in batch if isinstance(record, LogLine)]
        answers = [record for record in batch if isinstance(record, Answered)]
        wait_s = 0.05
        said = False
        while True:
            try:
                self._store.add_records(activations, logs, answers)
                break
            except InstaInferError as error:
                if not said:
                    _log.warning("records are not saved yet: %s", error)
                    said = True
                if self._closing:
                    return False
                self._hurry.wait(wait_s)
                self._hurry.clear()
                wait_s = min(wait_s * 2, 5.0)
            except Exception:  # noqa: BLE001 - a lone surrogate or a number too large must not end the thread
                if len(batch) > 1:
                    return all(self._save([record]) for record in batch)
                _log.exception("a record cannot be saved and is dropped: %.200r", batch)
                self.dropped += 1
                break
        heard = self.heard
        if heard is not None and activations:
            heard(activations)
        for activation in activations:
            self._unsaved.pop(activation.id, None)
        with self._changed:
            self._taken += len(batch)
            self._changed.notify_all()
        return True
