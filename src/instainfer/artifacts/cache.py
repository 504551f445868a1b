"""The artifacts on this node: pulled once, checked, kept as long as there is room.

    root/sha256-…          whole and checked; never changed, replaced by nothing
    root/sha256-….part     what came so far: the next try goes on behind it

A file gets its name only after its content was hashed and synced, so a kill leaves either or neither.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from instainfer.artifacts.names import checked, digest_of, file_name
from instainfer.artifacts.source import Source, Store
from instainfer.errors import InstaInferError, NotFound, TooLarge, Unavailable

log = logging.getLogger(__name__)

STALL_S = 20.0  # without a byte, or with fewer than LEAST in as long: the next source is tried
LEAST = 1 << 20
TRIES = 8  # of one source for one artifact: each has to bring something


class _Pull(NamedTuple):
    task: asyncio.Task[None]
    limit: int


class Cache:
    """`budget`: bytes, of whole files and of parts. What is in use is never evicted; of the rest the one that was
    used longest ago goes first. One process per `root`. Sources are asked in their order; the list may be
    changed at any time."""

    def __init__(
        self,
        root: Path,
        budget: int,
        sources: Sequence[Source] = (),
        *,
        stall_s: float = STALL_S,
        least: int = LEAST,
    ) -> None:
        self.root = root
        self.sources = list(sources)
        self._budget = budget
        self._stall_s = stall_s
        self._least = least
        self._sizes: OrderedDict[str, int] = OrderedDict()  # of whole files, used longest ago first
        self._parts: dict[str, int] = {}
        self._used: Counter[str] = Counter()
        self._pulls: dict[str, _Pull] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = sorted((entry.stat().st_mtime_ns, entry.name, entry.stat().st_size) for entry in os.scandir(root))
        for _, name, size in found:
            whole = name.removesuffix(".part")
            digest = digest_of(whole)
            if digest is None:
                (root / name).unlink()  # of an `add` that was killed
            elif name == whole:
                self._sizes[digest] = size
            else:
                self._parts[digest] = size

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values()) + sum(self._parts.values())

    def find(self, digest: str) -> Path | None:
        """Its file, if it is whole and here; it may be evicted at any time (`hold` prevents that)."""
        return self.root / file_name(digest) if checked(digest) in self._sizes else None

    @asynccontextmanager
    async def hold(self, digest: str, *, most: int | None = None) -> AsyncIterator[Path]:
        """Its file, pulled if it is not here; it stays until the end of the context. `most`: bytes that it may
        have. Raises BadInput for what is no digest, NotFound where no source has it, TooLarge, and Unavailable
        when no source gives it: what came of it is kept for the next try."""
        checked(digest)
        self._used[digest] += 1
        try:
            if digest not in self._sizes:
                await self._pulled(digest, most)
            if most is not None and self._sizes[digest] > most:
                raise TooLarge(f"{digest} has {self._sizes[digest]} bytes, and may have {most}")
            self._touch(digest)
            yield self.root / file_name(digest)
        finally:
            self._let_go(digest)

    def _touch(self, digest: str) -> None:
        self._sizes.move_to_end(digest)
        with suppress(OSError):
            os.utime(self.root / file_name(digest))  # so that the order outlives this process

    # ---- from this node ------------------------------------------------------------------------------------

    async def add(self, file: Path, *, digest: str = "") -> str:
        """Take a file in that was made here; returns its digest. Where possible it is linked, so nobody may write
        to it any more. `digest`: known already, by whoever hashed this very file. Raises Unavailable."""
        known = checked(digest) if digest else await asyncio.to_thread(hashed, file)
        if known not in self._sizes:
            self._used[known] += 1
            try:
                size = (await asyncio.to_thread(file.lstat)).st_size
                await self._room(size)
                await asyncio.to_thread(_link, file, self.root / file_name(known))
                self._sizes[known] = size
            finally:
                self._let_go(known)
        self._touch(known)
        return known

    async def publish(self, digest: str) -> None:
        """Give it to every store among the sources. One that fails is logged: nodes can still ask this one."""
        async with self.hold(digest) as path:
            for store in [source for source in self.sources if isinstance(source, Store)]:
                try:
                    await store.put(digest, path)
                except (InstaInferError, OSError) as error:
                    log.warning("%s could not be kept at %s: %s", digest, store.name, error)

    # ---- from elsewhere ------------------------------------------------------------------------------------

    async def _pulled(self, digest: str, most: int | None) -> None:
        limit = self._budget if most is None else min(most, self._budget)
        pull = self._pulls.get(digest)
        if pull is None:
            self._used[digest] += 1  # it goes on when everybody has gone away
            task = asyncio.create_task(self._pull(digest, limit))
            pull = self._pulls[digest] = _Pull(task, limit)
            task.add_done_callback(lambda task: self._ended(digest, task))
        try:
            await asyncio.shield(pull.task)
        except TooLarge:
            if pull.limit >= limit:
                raise
            await self._pulled(digest, most)  # it was so for whoever asked first

    def _ended(self, digest: str, task: asyncio.Task[None]) -> None:
        self._pulls.pop(digest, None)
        self._let_go(digest)
        if not task.cancelled():
            task.exception()  # seen, even if nobody waits any more

    def _let_go(self, digest: str) -> None:
        self._used[digest] -= 1
        if not self._used[digest]:
            del self._used[digest]

    async def _pull(self, digest: str, limit: int) -> None:
        """From one source after the other, each going on where the last one stopped. Content that turns out wrong
        is thrown away; a source of which all of it was is not asked again."""
        part = self.root / f"{file_name(digest)}.part"
        waiting = deque((source, TRIES) for source in self.sources)
        by: set[Source | None] = {None}  # whose content the part is; None: of an earlier run
        failures: list[str] = []
        absent = True
        too_large: TooLarge | None = None
        while waiting:
            source, tries = waiting.popleft()
            start = part.stat().st_size if part.exists() else 0
            if not start:
                by = set()
            try:
                found = await self._follow(source, digest, part, start, limit)
            except NotFound:
                failures.append(f"{source.name} does not have it")
                continue
            except TooLarge as error:
                too_large = error
                failures.append(f"{source.name}: {error}")
                self._drop(part, digest)
                continue
            except (InstaInferError, OSError) as error:
                absent = False
                failures.append(f"{source.name}: {str(error) or type(error).__name__}")
                if part.exists() and part.stat().st_size > start:
                    by.add(source)
                    if tries > 1:
                        waiting.append((source, tries - 1))
                continue
            absent = False
            by.add(source)
            if found == digest:
                await asyncio.to_thread(_settle, part, self.root / file_name(digest))
                self._sizes[digest] = self._parts.pop(digest)  # one step: neither is counted twice
                return
            self._drop(part, digest)
            failures.append(f"what came from {source.name} is something else")
            log.warning("%s from %s is something else: %s", digest, source.name, found)
            if by != {source} and tries > 1:  # perhaps it was the part of somebody else: alone, from the start
                waiting.appendleft((source, tries - 1))
        if too_large is not None:
            raise too_large
        said = "; ".join(failures[-5:]) or "this node has no sources"
        kind = NotFound if absent else Unavailable
        raise kind(f"{digest} could not be pulled: {said}")

    async def _follow(self, source: Source, digest: str, part: Path, start: int, limit: int) -> str:
        """Write what comes behind `start`; the digest of all of it. Raises what the source raises, Unavailable
        where it is too slow, TooLarge for more than `limit`."""
        loop = asyncio.get_running_loop()
        hash = await asyncio.to_thread(_hash_of, part) if start else hashlib.sha256()
        size = self._parts[digest] = start
        stream = source.read(digest, start)
        window, since = loop.time(), 0
        file = None
        try:
            while True:
                try:
                    async with asyncio.timeout(self._stall_s):
                        data = await anext(stream)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    raise Unavailable(f"nothing came for {self._stall_s:g} s") from None
                size += len(data)
                since += len(data)
                if size > limit:
                    raise TooLarge(f"{digest} has more than {limit} bytes")
                await self._room(len(data))
                if file is None:
                    file = await asyncio.to_thread(_open, part)
                await asyncio.to_thread(_write, file, hash, data)
                self._parts[digest] = size
                if loop.time() - window >= self._stall_s:
                    if since < self._least:
                        raise Unavailable(f"only {since} bytes came in {self._stall_s:g} s")
                    window, since = loop.time(), 0
            if file is None and not start:
                file = await asyncio.to_thread(_open, part)  # of nothing at all
            if file is not None:
                await asyncio.to_thread(os.fsync, file)
        finally:
            if file is not None:
                os.close(file)
            close = getattr(stream, "aclose", None)
            if close is not None:
                with suppress(Exception):
                    async with asyncio.timeout(1.0):
                        await close()
        return f"sha256:{hash.hexdigest()}"

    def _drop(self, part: Path, digest: str) -> None:
        part.unlink(missing_ok=True)
        self._parts.pop(digest, None)

    # ---- room ----------------------------------------------------------------------------------------------

    async def _room(self, size: int) -> None:
        """Evict until there is room for so many bytes more. Raises Unavailable."""
        short = self.bytes + size - self._budget
        if short <= 0:
            return
        victims: list[Path] = []
        for digest in (*self._parts, *self._sizes):
            if short <= 0:
                break
            if digest in self._used:
                continue
            path = self.root / file_name(digest)
            if digest in self._parts:
                short -= self._parts.pop(digest)
                victims.append(path.with_name(f"{path.name}.part"))
            else:
                short -= self._sizes.pop(digest)
                victims.append(path)
        for path in victims:
            path.unlink(missing_ok=True)  # at once: who is to pull it again must not find it gone later
        if short > 0:
            raise Unavailable(
                f"the artifacts in use leave no room for {size} bytes more in {self._budget}",
                hint="raise artifacts.budget",
            )

    async def aclose(self) -> None:
        tasks = [pull.task for pull in self._pulls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for source in self.sources:
            with suppress(OSError, TimeoutError):
                await source.aclose()


# ---- in threads ----------------------------------------------------------------------------------------------


def hashed(file: Path) -> str:
    return f"sha256:{_hash_of(file).hexdigest()}"


def _hash_of(file: Path) -> hashlib._Hash:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256")


def _open(part: Path) -> int:
    return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _write(file: int, hash: hashlib._Hash, data: bytes) -> None:
    hash.update(data)
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _settle(part: Path, path: Path) -> None:
    part.chmod(0o400)
    part.rename(path)
    _sync_folder(path.parent)


def _link(file: Path, path: Path) -> None:
    """A link, or a copy where there can be none; whole or not at all."""
    if path.exists():
        return
    working = path.with_name(f".{path.name}.tmp")
    working.unlink(missing_ok=True)
    try:
        os.link(file, working, follow_symlinks=False)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, working, follow_symlinks=False)
    descriptor = os.open(working, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    working.rename(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
