"""A server of the benchmark's own, and the functions in it."""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instainfer.client import Client
from instainfer.errors import BuildFailed, InstaInferError, Unavailable

START_S = 60.0
STOP_S = 30.0
POLL_S = 0.005
NAMESPACE = "default"


class Bench:
    """A running server: `client` manages it, `address(name)` is where a function is called."""

    def __init__(self, url: str, client: Client, pid: int = 0) -> None:
        self.url = url
        self.pid = pid
        self.client = client
        self.sandbox = str(client.status()["sandbox"])

    def address(self, name: str, front: str = "") -> str:
        """`front`: by way of this URL."""
        return f"{front or self.url}/f/{NAMESPACE}/{name}"

    def deploy(self, name: str, package: bytes, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Deploy, wait, return its profile."""
        for event in self.client.deploy(NAMESPACE, name, package, settings):
            if event["event"] == "deployed":
                profile: dict[str, Any] = event["profile"]
                return profile
        raise BuildFailed(f"{name} was not deployed")

    def until(self, what: str, true: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Poll. Raises Unavailable when it does not come true."""
        end = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > end:
                raise Unavailable(f"{what} did not happen within {timeout_s:g} s", hint="see the server's log")
            time.sleep(POLL_S)

    def state(self, name: str) -> str:
        """What a call would find: cold, loading, imported, preloaded, warm."""
        return str(self.client.function(NAMESPACE, name)["state"])


@contextmanager
def serving(*options: str, variables: Mapping[str, str] | None = None) -> Iterator[Bench]:
    """`instainfer serve` with these options and otherwise the defaults (settings of this user's do not count,
    but the sandbox's do, and these `variables`), on a free port, in a temporary data directory. Stopped at the
    end, whatever happens. Raises Unavailable with the server's log when it does not come up."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if "__" not in key or not key.startswith("INSTAINFER_") or key.startswith("INSTAINFER_SANDBOX__")
    }
    for key in ("INSTAINFER_CONFIG", "INSTAINFER_API_KEY"):
        kept.pop(key, None)
    kept |= variables or {}
    with tempfile.TemporaryDirectory(prefix="instainfer-bench-") as directory:
        log = Path(directory) / "server.log"
        data = Path(directory) / "data"
        command = [
            sys.executable,
            "-m",
            "instainfer.cli",
            "serve",
            "--port",
            "0",
            "--data-dir",
            str(data),
            *options,
        ]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=kept,
                cwd=directory,
                start_new_session=True,  # a terminal's ^C is for us: a second signal ends a server uncleanly
            )
        try:
            yield Bench(*_connect(process, log), process.pid)
        except InstaInferError as error:
            error.detail = error.detail or _tail(log)
            raise
        finally:
            _stop(process)


def _connect(process: subprocess.Popen[str], log: Path) -> tuple[str, Client]:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline() if ready else ""
    if "http://" not in line:
        raise Unavailable("the server did not start", hint="its log is above", detail=_tail(log))
    url = line[line.index("http://") :].strip()
    return url, Client(url, api_key="")


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def package(files: Mapping[str, str]) -> bytes:
    """A function package of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least, greatest."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return median, ordered[0], ordered[-1]
