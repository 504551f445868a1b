"""A world to try agents in: a node with a sandbox, its agent in process or over HTTP, and a memory of its
reports."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped] # ships no types
import pytest

from instainfer.agent.base import Agent, Answered, Command, Deliver, Invoke, Missing, Provide, Report, Revision
from instainfer.agent.environments import Environments
from instainfer.agent.http_client import HttpAgent
from instainfer.agent.http_server import serving
from instainfer.agent.installers import Sources
from instainfer.agent.local import LocalAgent
from instainfer.agent.runners import SandboxRunner
from instainfer.core import actions, events
from instainfer.model import Level, Style
from instainfer.sandbox.base import Sandbox
from instainfer.sandbox.linux import MANAGER, LinuxSandbox
from instainfer.sandbox.process import ProcessSandbox

PYTHON = str(Path(sys.executable).resolve())
PATIENCE_S = 20.0  # the bound after which a wait is a failure
MB = 1 << 20
UID_BASE = 4_000_000
KEY = "a key of the tests"
WHY = actions.Why(rule="the test says so")

Kind = TypeVar("Kind")

FUNCTION = """
import os, stat, sys, time

print("loading")
if os.environ.get("BROKEN"):
    raise RuntimeError("no weights here")

def handler(event):
    if isinstance(event, bytes):
        print("got", len(event), "bytes")
        print("and complains", file=sys.stderr)
        return event
    do = event.get("do")
    if do == "raise":
        raise ValueError(event["text"])
    if do == "abort":
        os.abort()
    if do == "hang":
        while True:
            time.sleep(60)
    if do == "babble":
        for fd in range(3, 1024):
            try:
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, b"\\xff" * 64)
            except OSError:
                pass
        time.sleep(60)
    if do == "allocate":
        global KEEP
        KEEP = bytearray(os.urandom(1 << 20) * event["mb"])
    return {"n": event.get("n"), "pid": os.getpid()}
"""


def package(**files: str) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in {"main.py": FUNCTION, "sample.json": '{"n": 1}', **files}.items():
            archive.writestr(name, text)
    return out.getvalue()


def revision(name: str = "f", number: int = 1, data: bytes = b"", **more: Any) -> Revision:
    digest = "sha256:" + hashlib.sha256(data or package()).hexdigest()
    settings: dict[str, Any] = {"memory": 256 * MB, "timeout_s": PATIENCE_S, "load_timeout_s": PATIENCE_S} | more
    return Revision(
        id=f"ns/{name}@1:{digest[7:19]}",
        namespace="ns",
        name=name,
        number=number,
        uid_base=UID_BASE,
        digest=digest,
        style=Style.MODULE,
        entry="main:handler",
        python=settings.pop("python", PYTHON),
        **settings,
    )


class Reports:
    """A sink that forgets nothing."""

    def __init__(self) -> None:
        self.seen: list[Report] = []
        self._left: list[Report] = []  # not asked for yet
        self._more = asyncio.Event()

    def __call__(self, report: Report) -> None:
        self.seen.append(report)
        self._left.append(report)
        self._more.set()

    async def until(self, kind: type[Kind], **fields: Any) -> Kind:
        """The first report of this kind with these fields that was not asked for before; waits for it."""

        def fits(report: object) -> bool:
            return isinstance(report, kind) and all(getattr(report, k) == v for k, v in fields.items())

        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    self._more.clear()
                    for at, report in enumerate(self._left):
                        if isinstance(report, kind) and fits(report):
                            del self._left[at]
                            return report
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"no {kind.__name__} with {fields} in {self.seen}") from None

    def all(self, kind: type[Kind]) -> list[Kind]:
        return [report for report in self.seen if isinstance(report, kind)]


class World:
    """A node, and what a controller would do with it."""

    def __init__(self, agent: Agent, sandbox: Sandbox, reports: Reports, proxy: Proxy | None) -> None:
        self.agent = agent
        self.sandbox = sandbox
        self.reports = reports
        self.until = reports.until
        self._proxy = proxy
        self._requests = itertools.count(1)

    @property
    def proxy(self) -> Proxy:
        assert self._proxy is not None, "only over HTTP"
        return self._proxy

    def send(self, *commands: Command) -> None:
        for command in commands:
            self.agent.send(command)

    async def provide(self, of: Revision, data: bytes = b"") -> Revision:
        self.send(Provide(revision=of))
        await self.until(Missing, revision=of.id)
        self.send(Deliver(revision=of.id, package=data or package()))
        return of

    def create(self, container: str, of: Revision) -> None:
        self.send(
            actions.CreateContainer(
                container=container,
                node=self.agent.node,
                function=f"{of.namespace}/{of.name}",
                revision=of.id,
                limit=512 * MB,
                mounts=of.mounts,
                why=WHY,
            )
        )

    def load(self, instance: str, container: str, of: Revision, level: Level = Level.LOADED) -> None:
        self.send(
            actions.Load(
                instance=instance,
                container=container,
                function=f"{of.namespace}/{of.name}",
                revision=of.id,
                level=level,
                ahead=False,
                why=WHY,
            )
        )

    async def ready(self, instance: str, container: str, of: Revision, level: Level = Level.LOADED) -> None:
        self.load(instance, container, of, level)
        said = await self.until(events.InstanceReady, instance=instance)
        assert said.level == level

    async def opened(self, container: str = "c1", instance: str = "i1", **settings: Any) -> Revision:
        """A revision that is provided, with a container of its own and an instance in it."""
        of = await self.provide(revision(**settings))
        self.create(container, of)
        await self.until(events.ContainerReady, container=container)
        await self.ready(instance, container, of)
        return of

    def invoke(self, instance: str, event: Any) -> int:
        request = next(self._requests)
        raw = isinstance(event, bytes)
        self.send(
            Invoke(
                request=request,
                instance=instance,
                activation=f"{request:032x}",
                content_type="application/octet-stream" if raw else "application/json",
                body=event if raw else json.dumps(event).encode(),
            )
        )
        return request

    async def answer(self, instance: str, event: Any) -> Answered:
        return await self.until(Answered, request=self.invoke(instance, event))

    async def works(self, instance: str) -> None:
        answered = await self.answer(instance, {"n": 5})
        assert not answered.problem
        assert json.loads(answered.body)["n"] == 5


def offload(instance: str) -> actions.Offload:
    return actions.Offload(instance=instance, why=WHY)


def destroy(container: str) -> actions.DestroyContainer:
    return actions.DestroyContainer(container=container, why=WHY)


def lift(instance: str) -> actions.Raise:
    return actions.Raise(instance=instance, level=Level.LOADED, ahead=True, why=WHY)


_others: set[int] = set()


def disregard() -> None:
    """From here on, processes that are there now are another module's: a server's that lives on, say."""
    _others.clear()
    _others.update(process.pid for process in psutil.Process().children(recursive=True))


def children() -> list[Any]:
    """Children, near or far, of ours."""
    return [one for one in psutil.Process().children(recursive=True) if one.pid not in _others]


def managers() -> list[Any]:
    """The processes of this test's containers, found as what they are."""
    found = []
    for process in children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if str(MANAGER) in process.cmdline():
                found.append(process)
    return found


class Proxy:
    """A TCP relay that can cut what goes through it."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server
        self.url = ""
        self.carried = 0  # connections

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Reset every connection, whatever is under way on it; new ones are carried."""
        for writer in self._writers:
            writer.transport.abort()

    def refuse(self) -> None:
        """From now on nothing is reached through it."""
        self._server.close()
        self.cut()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.carried += 1
        there, back = await asyncio.open_connection(*self._to)
        ends = {writer, back}
        self._writers |= ends
        await asyncio.gather(_pump(reader, back), _pump(there, writer))
        self._writers -= ends


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


SANDBOXES: dict[str, Callable[[Path], Sandbox]] = {
    "process": ProcessSandbox,
    "linux": lambda state: LinuxSandbox(state, privileged=True),
}
VARIANTS = [
    pytest.param((agent, sandbox), id=f"{agent}-{sandbox}", marks=marks)
    for agent in ("local", "http")
    for sandbox, marks in (("process", ()), ("linux", (pytest.mark.root,)))
]


@contextlib.asynccontextmanager
async def world(agent: str, kind: str, path: Path) -> AsyncIterator[World]:
    sandbox = SANDBOXES[kind](path / "state")
    environments = Environments(path / "environments", SandboxRunner(sandbox), sources=Sources(no_index=True))
    local = LocalAgent(sandbox, environments, path, node="n1", memory=2048 * MB, load_slots=2)
    reports = Reports()
    if agent == "local":
        try:
            yield await _started(World(local, sandbox, reports, None))
        finally:
            await local.aclose()
        return
    async with serving(local, "127.0.0.1", 0, KEY) as url:
        proxy = Proxy("127.0.0.1", int(url.rpartition(":")[2]))
        await proxy.start()
        remote = HttpAgent("n1", proxy.url, KEY)
        try:
            yield await _started(World(remote, sandbox, reports, proxy))
        finally:
            await remote.aclose()
            proxy.refuse()


async def _started(made: World) -> World:
    joined = await made.agent.start(made.reports)
    assert joined == events.NodeJoined(
        node="n1",
        memory=2048 * MB,
        guests=made.sandbox.enforces.function_uids or not made.sandbox.enforces.filesystem,
        load_slots=2,
    )
    return made
