"""Group commit: what came in while the last transaction was under way goes into the next one together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from instainfer.errors import InstaInferError, Unavailable
from instainfer.model import Job
from instainfer.store.base import Store

BATCH = 500


class Commits:
    """Jobs into the store, from one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[tuple[Job, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None

    async def save(self, job: Job) -> bool:
        """Returns when it is written; False where another job has its key. Raises Unavailable."""
        saved: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, saved))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await saved

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                try:
                    saved = await asyncio.to_thread(self._store.save_jobs, [job for job, _ in batch])
                except InstaInferError as error:
                    self._fail(batch, error)
                    continue
                for (_, future), result in zip(batch, saved, strict=True):
                    if not future.done():
                        future.set_result(result)
        finally:
            self._task = None
            self._fail(self._waiting, Unavailable("the server is stopping", hint="send it again"))
            self._waiting = []

    def _fail(self, batch: Sequence[tuple[Job, asyncio.Future[bool]]], error: InstaInferError) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)
