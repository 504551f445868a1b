"""A world to try sandboxes in: what is common to the contract and the escape tests.

Scenarios are coroutines over a `World`. The rootless variant needs a user who is not root: where the tests run as
root, its scenarios run in a process of their own that has dropped to an ordinary uid.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from instainfer.agent.link import ManagerLink, Spawned
from instainfer.sandbox import cgroups, seccomp, syscalls
from instainfer.sandbox.base import Container, ContainerSpec, Sandbox
from instainfer.sandbox.linux import LinuxSandbox
from instainfer.sandbox.process import ProcessSandbox

PYTHON = str(Path(sys.executable).resolve())
MB = 1 << 20
UID_BASE = 3_000_000
ORDINARY = 54321  # a uid that nobody has
TIMEOUT_S = 60.0
ROOT = os.geteuid() == 0
REPOSITORY = Path(__file__).resolve().parents[2]


def _v2(name: str) -> cgroups.Groups:
    return cgroups.V2(name, cgroups.mounted()[""])


MAKE: dict[str, Callable[[Path], Sandbox]] = {
    "process": ProcessSandbox,
    "linux": lambda state: LinuxSandbox(state, privileged=True),
    "linux-v2": lambda state: LinuxSandbox(state, privileged=True, find_groups=_v2),
    "rootless": lambda state: LinuxSandbox(state, privileged=False),
}
VARIANTS = [
    pytest.param("process"),
    pytest.param("linux", marks=pytest.mark.root),
    pytest.param("rootless"),
]
# the other version of control groups, where the machine has it beside the one that is found first
if {"", "freezer"} <= cgroups.mounted().keys():
    VARIANTS.append(pytest.param("linux-v2", marks=pytest.mark.root))


def claims(variant: str) -> set[str]:
    """What the variant enforces, as words."""
    if variant == "process":
        return {"memory"}
    calls = {"calls"} if seccomp.supported() else set()
    if variant == "rootless":
        return {"memory", "filesystem", "network", "processes"} | calls
    words = {"memory", "filesystem", "network", "processes", "function_uids", "descendants"} | calls
    groups = (_v2 if variant == "linux-v2" else cgroups.find)(cgroups.PREFIX)
    controllers = frozenset() if groups is None else groups.controllers  # none: then this is not root either
    return words | ({"pids"} & controllers) | ({"memory_at_once"} if "memory" in controllers else set())


def claimed(sandbox: Sandbox) -> set[str]:
    e = sandbox.enforces
    words = {
        word
        for word in ("filesystem", "network", "processes", "function_uids", "pids", "calls")
        if getattr(e, word)
    }
    words |= {"memory"} | ({"memory_at_once"} if e.memory == "kernel" else set())
    return words | ({"descendants"} if e.freezer == "cgroup" else set())


PRELUDE = """
import os, sys
_in = b""
def say(thing):
    os.write(3, (repr(thing) + "\\n").encode())
def hear():
    global _in
    while b"\\n" not in _in:
        got = os.read(3, 65536)
        if not got:
            sys.exit(0)
        _in += got
    line, _, _in = _in.partition(b"\\n")
    return eval(line)
def attempt(do, *args):
    "What it gave, or the name of the error."
    try:
        return do(*args)
    except Exception as error:
        return type(error).__name__
def read(path):
    with open(path) as file:
        return file.read()
def spill(path, text=""):
    with open(path, "w") as file:
        file.write(text)
    return "written"
"""


#: A process with ballast that forks: what comes over its socket is code for a child, with the child's socket and
#: its doors.
ZYGOTE = """
import signal, socket, traceback
ballast = bytearray(b"x") * (hear() << 20)
platform = socket.socket(fileno=3)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reaped by the kernel
say(os.getpid())
while True:
    code, fds, _, _ = socket.recv_fds(platform, 65536, 8)
    if not code:
        os._exit(0)
    if os.fork() == 0:
        try:
            entered = [attempt(os.write, door, b"0") for door in fds[1:]]
            os.dup2(fds[0], 3)
            os.closerange(4, 64)
            os.setsid()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.write(3, b"H")
            if os.read(3, 1) == b"G":
                exec(code.decode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    for fd in fds:
        os.close(fd)
"""


@dataclass
class Talker:
    """A process to talk with in Python literals over its descriptor 3."""

    name: str
    pid: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hear(self) -> Any:
        line = await asyncio.wait_for(self.reader.readline(), TIMEOUT_S)
        assert line, f"{self.name} said nothing and is gone: {self.stderr()}"
        return ast.literal_eval(line.decode())

    async def ask(self, thing: Any) -> Any:
        self.writer.write(repr(thing).encode() + b"\n")
        return await self.hear()

    def stderr(self) -> str:
        return ""

    def close(self) -> None:
        self.writer.close()


@dataclass
class Child(Talker):
    """A spawned `python -c`."""

    spawned: Spawned
    link: ManagerLink

    async def exit(self) -> tuple[int | None, int | None]:
        how = await asyncio.wait_for(asyncio.shield(self.link.exited(self.name)), TIMEOUT_S)
        return how.code, how.signal

    def stdout(self) -> str:
        return _drain(self.spawned.stdout_fd)

    def stderr(self) -> str:
        return _drain(self.spawned.stderr_fd)

    def close(self) -> None:
        super().close()
        os.close(self.spawned.stdout_fd)
        os.close(self.spawned.stderr_fd)


@dataclass
class Box:
    """A container and the link to its manager."""

    container: Container
    link: ManagerLink
    uids: bool
    lost: asyncio.Future[str]
    children: list[Child] = field(default_factory=list)
    outsiders: list[Talker] = field(default_factory=list)

    async def run(
        self, name: str, code: str, *, uid: int = 1001, limit: int = 256 * MB, limits: dict[str, int] | None = None
    ) -> Child:
        argv = [PYTHON, "-I", "-S", "-c", PRELUDE + textwrap.dedent(code)]
        spawned = await self.link.spawn(
            name,
            argv,
            {"PATH": "/usr/bin:/bin", "WORD": "hello"},
            "/",
            uid=uid if self.uids else None,
            limits=limits,
            attach=lambda pid: self.container.attach(name, pid, limit=limit),
            doors=self.container.doors(name, limit=limit),
        )
        reader, writer = await asyncio.open_connection(sock=spawned.sock)
        child = Child(name, spawned.pid, reader, writer, spawned, self.link)
        self.children.append(child)
        return child

    async def zygote(self, ballast: int = 64) -> Child:
        """One with so many MB, in this box."""
        zygote = await self.run("zygote", ZYGOTE)
        await zygote.ask(ballast)
        return zygote

    async def fork(
        self, name: str, zygote: Child, code: str, *, limit: int = 256 * MB, doors: bool = True
    ) -> Talker:
        """An instance of this box that the zygote of another one forks, through its doors or without."""
        opened = self.container.doors(name, limit=limit, outside=True)
        given = opened if doors else []
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.settimeout(TIMEOUT_S)
        socket.send_fds(zygote.spawned.sock, [textwrap.dedent(code).encode()], [theirs.fileno(), *given])
        theirs.close()
        for door in opened:
            os.close(door)
        said, ancillary, _, _ = await asyncio.to_thread(ours.recvmsg, 1, socket.CMSG_SPACE(12))
        assert said == b"H", f"{name} did not begin: {zygote.stderr()}"
        pid = int(struct.unpack("3i", ancillary[0][2])[0])
        self.container.attach(name, pid, limit=limit)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        ours.send(b"G")
        ours.setblocking(False)
        outsider = Talker(name, pid, *await asyncio.open_connection(sock=ours))
        self.outsiders.append(outsider)
        return outsider


@dataclass
class World:
    variant: str
    sandbox: Sandbox
    path: Path  # for the scenario's files; containers see of it what is mounted
    boxes: list[Box] = field(default_factory=list)

    async def box(self, id_: str = "c1", *, limit: int = 512 * MB, **spec: Any) -> Box:
        number = len(self.boxes)
        wanted = ContainerSpec(id_, "tests", UID_BASE + number * 65536, limit, **spec)
        container = await self.sandbox.create(wanted)
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        link = ManagerLink(container.control, on_lost=lost.set_result)
        box = Box(container, link, self.sandbox.enforces.function_uids, lost)
        self.boxes.append(box)
        await link.hello()
        return box

    def directory(self, name: str, *, uid: int = 1001, box: int = 0) -> Path:
        """One that the function of this uid (in the box of this number) owns, closed to all others."""
        made = self.path / name
        made.mkdir()
        if self.sandbox.enforces.function_uids:
            os.chown(made, UID_BASE + box * 65536 + uid, UID_BASE + box * 65536 + uid)
        made.chmod(0o700)
        return made


@contextlib.asynccontextmanager
async def world(variant: str, path: Path) -> AsyncIterator[World]:
    sandbox = MAKE[variant](path / "state")
    await sandbox.start()
    made = World(variant, sandbox, path)
    try:
        yield made
    finally:
        for box in made.boxes:
            box.link.close()
            for child in (*box.children, *box.outsiders):
                child.close()
        await sandbox.aclose()


Scenario = Callable[[World], Coroutine[Any, Any, None]]


def play(variant: str, scenario: Scenario, loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Run it, as whom the variant is meant for."""
    if variant == "rootless" and ROOT:
        where = f"{scenario.__module__}:{scenario.__name__}"
        done = subprocess.run(
            [sys.executable, "-m", __name__, "play", variant, where],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-6000:]
        return
    _play(variant, scenario, loop)


class Contract:
    """Scenarios of one module, each with the claim that it tests ("" for every sandbox)."""

    def __init__(self, variants: list[Any] = VARIANTS) -> None:
        self._variants = variants
        self._scenarios: dict[str, tuple[Scenario, str]] = {}

    def __call__(self, claim: str = "") -> Callable[[Scenario], Scenario]:
        def register(scenario: Scenario) -> Scenario:
            self._scenarios[scenario.__name__] = (scenario, claim)
            return scenario

        return register

    def cases(self) -> list[Any]:
        """(variant, name of a scenario) wherever the variant claims what the scenario is about."""
        return [
            pytest.param(name, scenario, marks=variant.marks, id=f"{name}-{scenario}")
            for variant in self._variants
            for name in [str(variant.values[0])]
            for scenario, (_, claim) in self._scenarios.items()
            if not claim or claim in claims(name)
        ]

    def play(
        self, variant: str, scenario: str, loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    ) -> None:
        play(variant, self._scenarios[scenario][0], loop)


def _play(variant: str, scenario: Scenario, loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    async def run() -> None:
        async with world(variant, Path(directory)) as made:
            await scenario(made)

    with tempfile.TemporaryDirectory(prefix="instainfer-test-") as directory:
        Path(directory).chmod(0o755)
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(run())


def become_ordinary() -> None:
    """Give up root for good, in a mount namespace where the interpreter can still be reached: it may lie below a
    directory that is root's alone."""
    syscalls.unshare(syscalls.NEWNS)
    syscalls.mount("none", "/", "none", syscalls.MS_REC | syscalls.MS_PRIVATE)
    prefix = Path(sys.base_prefix).resolve()
    closed = next((path for path in reversed(prefix.parents) if not path.stat().st_mode & 0o001), None)
    if closed is not None:
        held = os.open(prefix, os.O_PATH)
        syscalls.mount("tmpfs", str(closed), "tmpfs", 0, "mode=755")
        prefix.mkdir(parents=True)
        syscalls.mount(f"/proc/self/fd/{held}", str(prefix), "none", syscalls.MS_BIND | syscalls.MS_REC)
        os.close(held)
    os.setgroups([])
    os.setresgid(ORDINARY, ORDINARY, ORDINARY)
    os.setresuid(ORDINARY, ORDINARY, ORDINARY)
    syscalls.prctl(4, 1)  # dumpable again (setuid has ended that), or its own /proc files are not its own
    os.environ["HOME"] = "/tmp"


async def until(true: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110 # nothing announces the end of a foreign process or of a group
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"still not: {what}") from None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def traces(state: Path) -> list[str]:
    """Whatever on this machine carries the name of the sandbox of this state directory."""
    name = (state / "owner").read_text().strip()
    found = [str(path) for place in cgroups.mounted().values() for path in Path(place).glob(f"instainfer-{name}*")]
    found += [line for line in mounts().splitlines() if str(state) in line]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"INSTAINFER_SANDBOX={name}".encode() in (entry / "environ").read_bytes():
                found.append(str(entry))
    return found


class Server:
    """A server process that has made two containers, one instance of each is frozen, and so is a fork that a third
    container's zygote made for the first."""

    def __init__(self, variant: str, state: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, "serve", variant, str(state)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        told = self._process.stdout.readline()
        assert told, "the server did not come up"
        said = json.loads(told)
        self.pids: list[int] = said["pids"]
        self.launcher: int | None = said["launcher"]

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


async def _serve(variant: str, state: Path) -> None:
    sandbox = MAKE[variant](state)
    await sandbox.start()
    made = World(variant, sandbox, state)
    pids = []
    for id_ in ("c1", "c2"):
        box = await made.box(id_)
        for name in ("i1", "i2"):
            child = await box.run(name, "say(os.fork() > 0)\nhear()")
            await child.hear()
            pids.append(child.spawned.pid)
        await box.container.freeze("i1")
    zygote = await (await made.box("a-room")).zygote()  # sorted before the containers that it forks for
    outsider = await made.boxes[0].fork("o1", zygote, "say(os.fork() > 0)\nhear()")
    await outsider.hear()
    await made.boxes[0].container.freeze("o1")
    pids += [zygote.pid, outsider.pid]
    link = getattr(sandbox, "_launcher", None)
    print(json.dumps({"pids": pids, "launcher": link and link._process.pid}), flush=True)
    await asyncio.Event().wait()


def _drain(fd: int) -> str:
    said = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(fd, 65536):
            said += more
    return said.decode(errors="replace")


def _main(arguments: list[str]) -> None:
    match arguments:
        case ["play", variant, where]:
            module, _, name = where.partition(":")
            become_ordinary()
            _play(variant, getattr(importlib.import_module(module), name))
        case ["serve", variant, state]:
            asyncio.run(_serve(variant, Path(state)))
        case _:
            raise SystemExit("play VARIANT MODULE:SCENARIO | serve VARIANT STATE")


if __name__ == "__main__":
    _main(sys.argv[1:])
