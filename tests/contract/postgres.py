"""A real PostgreSQL of the tests' own: Debian's where it is installed, else the one that a wheel brings."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from psutil import NoSuchProcess, Process, wait_procs  # type: ignore[import-untyped] # it ships no types

ORDINARY = pwd.getpwnam("nobody")  # it refuses to run as root, and as a user without a name
USER = "tests"


def binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    import pgserver

    return Path(pgserver.__file__).parent / "pginstall" / "bin"


class Postgres:
    """Listens on a socket in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bin = binaries()
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(directory / "data"), "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8")

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@/postgres?host={self._directory}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                str(self._bin / "postgres"), "-D", str(self._directory / "data"), "-k", str(self._directory),
                "-c", "listen_addresses=", "-c", "fsync=off",
            ],
            preexec_fn=_ordinary,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._run("pg_isready", "-h", str(self._directory), "-U", USER, "-t", "30", patience=True)

    def kill(self) -> None:
        """As hard as can be. Its children would end too, but not before they notice: one might commit yet."""
        assert self._process is not None
        children = Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for child in children:
            with suppress(NoSuchProcess):
                child.kill()
        wait_procs(children)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown
            self._process.wait(30)

    def make(self, database: str) -> str:
        """The URL of a new database."""
        self._run("createdb", "-h", str(self._directory), "-U", USER, database)
        return self.url.replace("/postgres?", f"/{database}?")

    def _run(self, program: str, *line: str, patience: bool = False) -> None:
        for _ in range(300 if patience else 1):
            done = subprocess.run(
                [str(self._bin / program), *line],
                preexec_fn=_ordinary,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                return
            if patience and self._process is not None and self._process.poll() is None:
                try:
                    self._process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
        raise AssertionError(f"{program} failed: {done.stderr}")


def _ordinary() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(ORDINARY.pw_gid)
        os.setuid(ORDINARY.pw_uid)


@contextmanager
def running() -> Iterator[Postgres]:
    directory = Path(tempfile.mkdtemp(prefix="instainfer-pg-"))  # short: a socket's path has 107 bytes
    try:
        if os.geteuid() == 0:
            os.chown(directory, ORDINARY.pw_uid, ORDINARY.pw_gid)
        server = Postgres(directory)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
