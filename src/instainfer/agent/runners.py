"""How a build's programs are run: inside a sandbox of their namespace.

What a build runs is tenant code (an sdist's setup.py, a build backend), so the agent itself never executes any
of it: it hands arguments to a Runner and reads lines.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from instainfer.agent.link import ManagerLink
from instainfer.errors import Unavailable
from instainfer.sandbox.base import ContainerSpec, Mount, Sandbox

LONGEST_LINE = 16 << 10
BUILDER_UID = 1  # inner uid of builds: not root, and no function's
BUILD_MEMORY = 4 << 30  # bytes: compilers of native extensions need one or two
AFTER_S = 2.0  # what a program's own children may still say after it has ended


class Runner(Protocol):
    async def run(
        self,
        *,
        namespace: str,
        uid_base: int,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        read_only: Sequence[Path],
        writable: Sequence[Path],
        network: bool,
        on_line: Callable[[str], None],
        timeout_s: float,
    ) -> int:
        """Run to the end and return the exit status (minus the signal that ended it). Every line of output
        goes to `on_line`. Nothing that it started outlives the call. Raises TimeoutError when it was killed at
        the limit, Unavailable when no sandbox can be made."""
        ...

    def owner(self, uid_base: int) -> int | None:
        """Host uid that has to own what is writable, None when the programs run as ourselves."""
        ...


class SandboxRunner:
    """A container of the namespace for each program, gone when it ends."""

    def __init__(self, sandbox: Sandbox, *, memory: int = BUILD_MEMORY, pids: int = 512) -> None:
        self._sandbox = sandbox
        self._memory = memory
        self._pids = pids
        self._numbers = itertools.count()

    def owner(self, uid_base: int) -> int | None:
        return uid_base + BUILDER_UID if self._sandbox.enforces.function_uids else None

    async def run(
        self,
        *,
        namespace: str,
        uid_base: int,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        read_only: Sequence[Path],
        writable: Sequence[Path],
        network: bool,
        on_line: Callable[[str], None],
        timeout_s: float,
    ) -> int:
        spec = ContainerSpec(
            id=f"build-{os.getpid()}-{next(self._numbers)}",
            namespace=namespace,
            uid_base=uid_base,
            limit=self._memory,
            mounts=[*(Mount(path) for path in read_only), *(Mount(path, writable=True) for path in writable)],
            network=network,
            pids=self._pids,
        )
        container = await self._sandbox.create(spec)
        link = ManagerLink(container.control)
        readers: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(timeout_s):
                await link.hello(timeout_s)
                spawned = await link.spawn(
                    "build",
                    # The manager's umask is for instances; an environment is read by every function's uid.
                    argv=["/bin/sh", "-c", 'umask 022; exec "$@"', "sh", *argv],
                    env=dict(env),
                    cwd=str(cwd),
                    uid=BUILDER_UID if self._sandbox.enforces.function_uids else None,
                    limits={"core": 0},
                    attach=lambda pid: container.attach("build", pid, limit=self._memory),
                )
                spawned.sock.close()
                for fd in (spawned.stdout_fd, spawned.stderr_fd):
                    readers.append(asyncio.create_task(_read_pipe(fd, on_line)))
                ended = await asyncio.shield(link.exited("build"))
            await asyncio.wait(readers, timeout=AFTER_S)
            if ended.signal is None and ended.code is None:
                raise Unavailable(
                    "the build's container was lost", hint="it may have needed too much memory", phase="build"
                )
            return -ended.signal if ended.signal is not None else int(ended.code or 0)
        finally:
            link.close()
            await container.destroy()
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


async def _read_pipe(fd: int, on_line: Callable[[str], None]) -> None:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(fd, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        await read_lines(reader, on_line)
    finally:
        transport.close()  # uvloop's does not close itself at the end


async def read_lines(reader: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
    """Lines end with \\n or \\r (progress bars); one without an end is cut at LONGEST_LINE."""
    rest = b""
    while chunk := await reader.read(64 << 10):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if line:
                on_line(line[:LONGEST_LINE].decode("utf-8", "replace"))
        rest = rest[:LONGEST_LINE]
    if rest:
        on_line(rest.decode("utf-8", "replace"))
