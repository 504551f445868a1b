"""A real server as its users see it: a process, an address, a data directory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
from psutil import (  # type: ignore[import-untyped] # it ships no types
    STATUS_ZOMBIE,
    Error,
    NoSuchProcess,
    process_iter,
)
from psutil import Process as Process  # the tests know processes by it

from instainfer.client import PREFIX, Client
from instainfer.packing import pack

ROOT = os.geteuid() == 0
#: LIVE_SANDBOX=process runs the same tests in the weaker one.
SANDBOX = os.environ.get("LIVE_SANDBOX") or ("linux" if ROOT else "process")
MEMORY = "64MB"  # of a function, where its test does not care
T = TypeVar("T")

PATIENCE_S = 60.0  # only something broken ever uses it up

ECHO = """
def handler(event):
    return event
"""


def eventually(probe: Callable[[], T], *, what: str = "", seconds: float = PATIENCE_S) -> T:
    """The first true value of `probe`; fails with the last one after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := probe()):
        if time.monotonic() > end:
            raise AssertionError(f"never became true: {what or probe}; the last value was {value!r}")
        time.sleep(0.01)  # between two looks at another process
    return value


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without settings that the server would read."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("INSTAINFER_")}
    return {**kept, **(variables or {})}


def command(directory: Path, *flags: str) -> list[str]:
    data = ["--data-dir", str(directory / "data")]
    return [sys.executable, "-m", "instainfer.cli", "serve", *data, "--sandbox", SANDBOX, *flags]


def refused(directory: Path, *flags: str, **variables: str) -> str:
    """What `serve` says when it does not start; it must end by itself, and with a failure."""
    done = subprocess.run(
        command(directory, *flags),
        cwd=directory,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode in (1, 2), done
    assert "Traceback" not in done.stderr, done.stderr
    assert not done.stdout, done.stdout
    return done.stderr


class Server:
    """One `instainfer serve` on a port of the kernel's choice; may be started again on the same directory."""

    def __init__(
        self, directory: Path, *flags: str, variables: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        """`log`: where what it says on stderr goes; in its directory unless told."""
        self.directory = directory
        self._log = log or directory / "stderr"
        self.data = directory / "data"
        self.url = ""
        self._flags = flags
        self._variables = dict(variables or {})
        self._key = self._variables.get("INSTAINFER_SERVER__API_KEY")
        self._process: subprocess.Popen[str] | None = None
        self._seen: set[Process] = set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        with self._log.open("a") as errors:
            self._process = subprocess.Popen(
                command(self.directory, "--port", "0", *self._flags),
                cwd=self.directory,
                env=environment(self._variables),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        match = re.fullmatch(r"instainfer serves at (https?://\S+:\d+)\n", line)
        if match is None:
            self.kill()
            raise AssertionError(f"it said {line!r}, and on stderr: {self.errors()}")
        self.url = match[1]
        self.client = Client(self.url, self._key)
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S, trust_env=False)

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "it was not started"
        return self._process

    def errors(self) -> str:
        """Everything it said on stderr, of all its starts."""
        return self._log.read_text()

    def term(self) -> int:
        """Ask it to stop; its exit status."""
        self.family()
        self.process.send_signal(signal.SIGTERM)
        return self._ended()

    def kill(self) -> None:
        self.family()
        self.process.kill()
        self._ended()

    def _ended(self) -> int:
        status = self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self.url:
            self.client.close()
            self.http.close()
        self._process = None
        self.url = ""
        return status

    def close(self) -> None:
        """Stop it if it runs, and see that nothing is left of any of its lives."""
        if self._process is not None:
            try:
                status = self.term()
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            assert status == 0, self.errors()
        eventually(lambda: not self.leftovers(), what=f"nothing left behind: {self.leftovers()}", seconds=20)

    # ---- what it consists of -------------------------------------------------------------------------------

    def family(self) -> list[Process]:
        """Its descendants now."""
        try:
            found: list[Process] = Process(self.process.pid).children(recursive=True)
        except NoSuchProcess:
            found = []
        self._seen |= set(found)
        return found

    def named(self, word: str) -> list[Process]:
        """Descendants whose command line has the word: "launcher", "manager.py", "boot.py"."""
        found = []
        for process in self.family():
            with contextlib.suppress(Error):
                if any(word in part for part in process.cmdline()):
                    found.append(process)
        return found

    def instances(self, name: str) -> list[Process]:
        """Processes of instances of a function: they stand in its package."""
        found = []
        for process in self.named("boot.py"):
            with contextlib.suppress(OSError):
                where = Path(os.readlink(f"/proc/{process.pid}/cwd"))  # noqa: PTH115 - what it says, unresolved
                if where.name.rpartition("-")[0] == name:
                    found.append(process)
        return found

    def package(self, namespace: str, name: str) -> Path:
        """Where a function's files lie on this node; there must be one version of it."""
        (found,) = (self.data / "packages" / namespace).glob(f"{name}-*")
        return found

    def leftovers(self) -> list[str]:
        """What there is of it that should not be, once it has stopped."""
        found = [f"process {p.pid} {p.cmdline()}" for p in self._seen if alive(p)]
        owner = self.data / "sandbox" / "owner"
        state = owner.read_text().strip() if owner.exists() else "\0"
        for process in process_iter():
            with contextlib.suppress(Error, OSError):
                words = [*process.cmdline(), Path(f"/proc/{process.pid}/cgroup").read_text()]
                mark = process.environ().get("INSTAINFER_SANDBOX", "")
                if any(str(self.data) in word or state in word for word in words) or mark.startswith(state):
                    found.append(f"process {process.pid} {words}")
        groups = (path for path, _, _ in os.walk("/sys/fs/cgroup"))  # which minds no group that goes meanwhile
        found += [path for path in groups if Path(path).name.startswith(f"instainfer-{state}")]
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.data) in line]
        found += [str(path) for path in (self.data / "admin.sock",) if path.exists()]
        found += [str(path) for path in (self.data / "packages").glob("*/.*.tmp")]
        return found

    # ---- what its users do ---------------------------------------------------------------------------------

    def deploy(
        self,
        namespace: str,
        name: str,
        source: str,
        *,
        files: Mapping[str, str | bytes] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Deploy `main.py` (and further files); what `deployed` says."""
        data = package(self.directory, source, files)
        # without clones an instance is one process, which tests look for
        *_, last = self.client.deploy(namespace, name, data, {"memory": MEMORY, "clone": False, **settings})
        assert last["event"] == "deployed"
        return last

    def put(self, namespace: str, name: str, data: bytes, **settings: Any) -> list[dict[str, Any]]:
        """The deployment's events as they are."""
        response = self.http.put(
            f"{PREFIX}/functions/{namespace}/{name}",
            data={"settings": json.dumps({"memory": MEMORY, **settings})},
            files={"package": ("package.zip", data, "application/zip")},
        )
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in response.text.splitlines()]

    def call(self, namespace: str, name: str, payload: object = None) -> httpx.Response:
        """One request with JSON, answered well or badly."""
        return self.http.post(f"/f/{namespace}/{name}", json={} if payload is None else payload)

    def result(self, namespace: str, name: str, payload: object = None) -> Any:
        response = self.call(namespace, name, payload)
        assert response.status_code == 200, response.text
        return response.json()

    def state(self, namespace: str, name: str) -> str:
        """cold, loading, imported, preloaded or warm."""
        return str(self.client.function(namespace, name)["state"])

    def containers(self, namespace: str) -> list[dict[str, Any]]:
        return [one for one in self.client.containers()["containers"] if one["namespace"] == namespace]

    def running(self, namespace: str, name: str) -> bool:
        """Does an instance of it execute a request now?"""
        return any(
            instance["function"] == f"{namespace}/{name}" and instance["state"] == "running"
            for container in self.containers(namespace)
            for instance in container["instances"]
        )


def alive(process: Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != STATUS_ZOMBIE
    except NoSuchProcess:
        return False


def kill(process: Process) -> None:
    """-9, if it is still there."""
    with contextlib.suppress(NoSuchProcess):
        process.kill()


def gone(processes: Iterable[Process]) -> None:
    """Wait until none of them is alive."""
    eventually(lambda: not any(alive(process) for process in processes))


def told(problem: Mapping[str, Any], code: str, status: int, function: str, phase: str) -> str:
    """Check the members of a problem; the text that people read."""
    assert problem["type"] == f"urn:instainfer:error:{code}", problem
    assert problem["title"] == code.replace("_", " ")
    assert problem["status"] == status
    assert problem["detail"]
    assert problem.get("hint"), problem
    assert problem.get("function") == function, problem
    assert problem.get("phase") == phase, problem
    return f"{problem['detail']}\n{problem.get('trace', '')}"


def answered(response: httpx.Response, code: str, status: int, function: str, phase: str) -> str:
    """The same of a whole answer."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return told(response.json(), code, status, function, phase)


def undeployed(server: Server, ns: str, data: bytes, code: str, status: int, phase: str, **settings: Any) -> str:
    """A deployment of `bad` that must fail, with this problem, and leave nothing."""
    *_, last = server.put(ns, "bad", data, **settings)
    assert last["event"] == "failed", last
    text = told(last["problem"], code, status, f"{ns}/bad", phase)
    assert server.client.functions(ns) == []
    assert server.call(ns, "bad").status_code == 404
    return text


def package(directory: Path, source: str, files: Mapping[str, str | bytes] | None = None) -> bytes:
    """A zip of main.py and what else is given, packed as the command line does it."""
    folder = directory / "function"
    folder.mkdir(exist_ok=True)
    contents = {"main.py": textwrap.dedent(source), **(files or {})}
    for name, content in contents.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        return pack(folder)
    finally:
        for name in contents:
            (folder / name).unlink()


def archive(members: Mapping[str, bytes]) -> bytes:
    """A zip of exactly these members, however impossible."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


class Calls:
    """Requests in flight, each in a thread of its own; `answers` waits for them."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._answers: dict[int, httpx.Response | httpx.HTTPError] = {}

    def add(self, server: Server, namespace: str, name: str, payload: object = None) -> None:
        number = len(self._threads)
        url = f"{server.url}/f/{namespace}/{name}"

        def call() -> None:
            try:
                answer: httpx.Response | httpx.HTTPError = httpx.post(
                    url, json={} if payload is None else payload, timeout=PATIENCE_S, trust_env=False
                )
            except httpx.HTTPError as error:
                answer = error
            self._answers[number] = answer

        thread = threading.Thread(target=call)
        self._threads.append(thread)
        thread.start()

    def answers(self) -> list[httpx.Response | httpx.HTTPError]:
        """In the order of `add`; an error where the connection ended without an answer."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a request hangs"
        return [self._answers[number] for number in range(len(self._threads))]

    def responses(self) -> list[httpx.Response]:
        answers = self.answers()
        responses = [answer for answer in answers if isinstance(answer, httpx.Response)]
        assert len(responses) == len(answers), answers
        return responses


@contextlib.contextmanager
def calls() -> Iterator[Calls]:
    """No thread outlives the block."""
    started = Calls()
    try:
        yield started
    finally:
        started.answers()
