"""A Runner without a sandbox, for the tests of what an environment is; the escape tests use the real one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from instainfer.agent.runners import AFTER_S, read_lines


class SubprocessRunner:
    """A fake for speed: a plain child of ours, no isolation at all."""

    def owner(self, uid_base: int) -> int | None:
        return None

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
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            umask=0o022,
        )
        assert process.stdout is not None
        reading = asyncio.create_task(read_lines(process.stdout, on_line))
        try:
            async with asyncio.timeout(timeout_s):
                status = await process.wait()
            await asyncio.wait([reading], timeout=AFTER_S)
            return status
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
