"""A gateway in front of the benchmark's server, as `instainfer gateway` starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from instainfer.errors import Unavailable

STOP_S = 30.0


@contextmanager
def running(server: str) -> Iterator[str]:
    """Yields its URL."""
    command = [sys.executable, "-m", "instainfer.cli", "gateway", "--server", server, "--port", "0"]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("INSTAINFER_")}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            if not said:
                raise Unavailable("the gateway ended at once")
            yield said.split()[-1]
        finally:
            process.terminate()
            process.wait(STOP_S)
