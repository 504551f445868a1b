"""One contract, every sandbox. Each scenario runs for the variants that claim what it is about."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from instainfer.agent.link import Exit
from instainfer.errors import InstanceCrashed, Unavailable
from instainfer.sandbox.base import Mount
from tests.contract.sandbox_helpers import (
    MB,
    PYTHON,
    Box,
    Contract,
    World,
    alive,
    claimed,
    claims,
    parent,
    until,
)

contract = Contract()

COUNT = """
    import mmap
    file = open(hear(), "r+b")
    page = mmap.mmap(file.fileno(), 16)
    at = 0 if os.fork() else 8
    say("counting")
    n = 0
    while True:
        n += 1
        page[at:at + 8] = n.to_bytes(8, "little")
"""
ECHO = "while True: say(hear())"


@contract()
async def declares_what_it_is_tested_for(world: World) -> None:
    assert claimed(world.sandbox) == claims(world.variant)


@contract()
async def runs_a_program(world: World) -> None:
    box = await world.box()
    child = await box.run(
        "i1",
        """
        fds = sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1]  # without the listing's own
        say((os.environ["WORD"], os.getcwd(), fds, os.getpid() == os.getsid(0), os.read(0, 1)))
        print("to stdout")
        print("to stderr", file=sys.stderr)
        sys.exit(hear())
        """,
    )
    assert await child.hear() == ("hello", "/", [0, 1, 2, 3], True, b"")
    child.writer.write(b"7\n")
    assert await child.exit() == (7, None)
    assert child.stdout() == "to stdout\n"
    assert child.stderr() == "to stderr\n"


@contract()
async def says_why_a_program_does_not_start(world: World) -> None:
    box = await world.box()
    spawned = await box.link.spawn(
        "i1", ["/no/such/program"], {}, "/", uid=1001 if box.uids else None, attach=lambda pid: None
    )
    exit_ = await box.link.exited("i1")
    said = os.read(spawned.stderr_fd, 4096)
    spawned.close()
    assert exit_.code == 127
    assert said == b"cannot start /no/such/program: [Errno 2] No such file or directory: '/no/such/program'\n"


@contract()
async def runs_nothing_before_it_is_attached(world: World) -> None:
    out = world.directory("out")
    box = await world.box(mounts=[Mount(out, writable=True)])
    seen: list[bool] = []

    def refuse(pid: int) -> None:
        seen.append(alive(pid))
        raise PermissionError("not this one")

    with pytest.raises(PermissionError, match="not this one"):
        await box.link.spawn(
            "i1", [PYTHON, "-c", f"open('{out}/ran', 'w')"], {}, "/", uid=1001 if box.uids else None, attach=refuse
        )
    # killed, or by itself when its socket was closed instead of opened to it: whichever was first
    assert await box.link.exited("i1") in (Exit(signal=signal.SIGKILL), Exit(code=127))
    assert seen == [True]
    assert list(out.iterdir()) == []


@contract()
async def applies_limits(world: World) -> None:
    box = await world.box()
    child = await box.run(
        "i1",
        "import resource\nsay([resource.getrlimit(getattr(resource, 'RLIMIT_' + n)) for n in ('NOFILE', 'CORE')])",
        limits={"nofile": 64, "core": 0},
    )
    assert await child.hear() == [(64, 64), (0, 0)]


async def counting(world: World, box: Box, name: str = "i1") -> tuple[Path, Callable[[], tuple[int, int]]]:
    """A child that counts, and its child that does too, in a file that is read here."""
    page = world.path / "shared" / name
    page.write_bytes(bytes(16))
    page.chmod(0o666)
    child = await box.run(name, COUNT)
    assert await child.ask(str(page)) == "counting"
    assert await child.hear() == "counting"

    def read() -> tuple[int, int]:
        data = page.read_bytes()
        return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")

    await until(lambda: min(read()) > 0, "both count")
    return page, read


@contract()
async def freezes_and_thaws(world: World) -> None:
    world.directory("shared").chmod(0o755)
    box = await world.box(mounts=[Mount(world.path / "shared", writable=True)])
    _, count = await counting(world, box)
    other = await box.run("i2", ECHO)
    for _ in range(5):
        await box.container.freeze("i1")
        stopped = count()
        for number in range(50):  # time in which it would count, and in which others go on
            assert await other.ask(number) == number
        assert count() == stopped
        box.container.thaw("i1")
        await until(lambda: min(a - b for a, b in zip(count(), stopped, strict=True)) > 0, "both go on")  # noqa: B023 # awaited here


@contract()
async def kills_what_is_frozen(world: World) -> None:
    world.directory("shared").chmod(0o755)
    box = await world.box(mounts=[Mount(world.path / "shared", writable=True)])
    await counting(world, box)
    child = box.children[0]
    await box.container.freeze("i1")
    box.container.kill("i1")
    assert await child.exit() == (None, signal.SIGKILL)
    await box.container.detach("i1")
    box.container.kill("i1")  # idempotent
    await box.container.detach("i1")


@contract("descendants")
async def ends_descendants_that_ran_away(world: World) -> None:
    box = await world.box()
    child = await box.run(
        "i1",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                say(1)
                hear()
            os._exit(0)
        hear()
        """,
    )
    await child.hear()
    group = box.container._groups  # type: ignore[attr-defined] # the only witness of who is in it
    await until(lambda: len(group.pids("c1", "i1")) == 2, "parent and runaway")
    runaway = max(group.pids("c1", "i1"))
    box.container.kill("i1")
    await box.container.detach("i1")
    assert not alive(runaway)


@contract("memory")
async def kills_who_passes_its_memory_limit(world: World) -> None:
    box = await world.box()
    code = "\nkept = []\nwhile True:\n    kept.append(bytearray(hear() << 20))\n    say(len(kept))"
    greedy = await box.run("greedy", code, limit=96 * MB)
    modest = await box.run("modest", code, limit=96 * MB)
    assert await modest.ask(16) == 1
    greedy.writer.write(b"160\n")
    assert await greedy.exit() == (None, signal.SIGKILL)
    assert box.container.oom_killed("greedy")
    assert not box.container.oom_killed("modest")
    assert await modest.ask(16) == 2
    await box.container.detach("greedy")
    assert box.container.oom_killed("greedy")


@contract("memory")
async def resizes(world: World) -> None:
    box = await world.box(limit=128 * MB)
    box.container.resize(512 * MB)
    code = "kept = bytearray(hear() << 20)\nsay(len(kept))\nhear()"
    child = await box.run("i1", code, limit=1024 * MB)
    assert await child.ask(256) == 256 * MB
    if world.sandbox.enforces.memory == "kernel":
        with pytest.raises(OSError, match="bytes are in use"):
            box.container.resize(64 * MB)
    else:
        box.container.resize(64 * MB)
        assert await child.exit() == (None, signal.SIGKILL)


@contract()
async def measures_memory(world: World) -> None:
    box = await world.box()
    child = await box.run("i1", "say(0)\nkept = bytearray(hear() << 20)\nsay(len(kept))\nhear()")
    await child.hear()
    before = await asyncio.to_thread(box.container.usage)
    await child.ask(64)
    after = await asyncio.to_thread(box.container.usage)
    assert after.instances.keys() == {"i1"}
    assert after.instances["i1"] - before.instances["i1"] == pytest.approx(64 * MB, rel=0.05)
    assert after.anonymous - before.anonymous == pytest.approx(64 * MB, rel=0.05)


@contract("pids")
async def limits_processes(world: World) -> None:
    box = await world.box(pids=20)
    child = await box.run(
        "i1",
        """
        import signal
        n = 0
        try:
            while n < 100:
                if os.fork() == 0:
                    signal.pause()
                n += 1
        except BlockingIOError:
            pass
        say(n)
        hear()
        """,
    )
    assert 10 <= await child.hear() < 20


CONNECT = """
    import socket
    while True:
        say(attempt(lambda: socket.create_connection(("127.0.0.1", hear()), 5).recv(16)))
"""


async def _reach(world: World, *, network: bool) -> object:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"outside")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        box = await world.box(network=network)
        # `socket` needs the interpreter's own library only
        child = await box.run("i1", CONNECT)
        return await child.ask(server.sockets[0].getsockname()[1])


@contract("network")
async def has_no_network_unless_granted(world: World) -> None:
    assert await _reach(world, network=False) == "ConnectionRefusedError"


@contract()
async def has_the_network_that_is_granted(world: World) -> None:
    assert await _reach(world, network=True) == b"outside"


@contract("network")
async def talks_to_itself(world: World) -> None:
    box = await world.box()
    child = await box.run(
        "i1",
        """
        import socket
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname(), 5)
        server.accept()[0].send(b"inside")
        say(client.recv(16))
        """,
    )
    assert await child.hear() == b"inside"


@contract("filesystem")
async def sees_only_its_mounts(world: World) -> None:
    given = world.directory("given")
    kept = world.directory("kept")
    shown = world.path / "shown"
    shown.mkdir()
    (shown / "file").write_text("shown")
    (world.path / "hidden").write_text("hidden")
    (given / "own").write_text("mine")
    (given / "own").chmod(0o644)
    box = await world.box(mounts=[Mount(given, writable=True), Mount(shown), Mount(kept)])
    child = await box.run(
        "i1",
        """
        say({
            "given": attempt(read, hear() + "/own"), "write": attempt(spill, hear()),
            "shown": attempt(read, hear()), "change": attempt(spill, hear()), "kept": attempt(spill, hear()),
            "hidden": attempt(read, hear()), "root": attempt(spill, "/file"), "usr": attempt(spill, "/usr/file"),
            "etc": attempt(spill, "/etc/passwd"), "shadow": attempt(read, "/etc/shadow"),
            "tmp": attempt(spill, "/tmp/file"), "shm": attempt(spill, "/dev/shm/file"),
            "user": read("/etc/passwd").startswith("root:"),
        })
        """,
    )
    names = (given, given / "new", shown / "file", shown / "file", kept / "new", world.path / "hidden")
    child.writer.write(b"".join(repr(str(name)).encode() + b"\n" for name in names))
    seen = await child.hear()
    assert seen == {
        "given": "mine", "write": "written", "shown": "shown", "change": "OSError", "kept": "OSError",
        "hidden": "FileNotFoundError", "root": "OSError", "usr": "OSError", "etc": "OSError",
        "shadow": "FileNotFoundError", "tmp": "written", "shm": "written", "user": True,
    }  # fmt: skip
    assert (given / "new").exists()


@contract("filesystem")
async def limits_scratch(world: World) -> None:
    box = await world.box(scratch=8 * MB)
    child = await box.run(
        "i1",
        """
        def fill(path):
            with open(path, "wb", buffering=0) as file:
                for written in range(64):
                    file.write(bytes(1 << 20))
        for path in ("/tmp/big", "/dev/shm/big"):
            say((attempt(fill, path), os.stat(path).st_size >> 20))
        """,
    )
    assert [await child.hear(), await child.hear()] == [("OSError", 8), ("OSError", 8)]


@contract("processes")
async def sees_no_foreign_process(world: World) -> None:
    box = await world.box()
    child = await box.run(
        "i1",
        f"""
        say(sorted(name for name in os.listdir("/proc") if name.isdigit()))
        say((attempt(os.kill, {os.getpid()}, 0), os.uname().nodename, os.getppid()))
        """,
    )
    assert len(await child.hear()) <= 2  # itself, and its manager where they share a uid
    assert await child.hear() == ("ProcessLookupError", "c1", 1)


@contract("function_uids")
async def keeps_functions_of_a_container_apart(world: World) -> None:
    one = world.directory("one", uid=1001)
    two = world.directory("two", uid=1002)
    (one / "weights").write_text("secret")
    box = await world.box(mounts=[Mount(one, writable=True), Mount(two, writable=True)])
    first = await box.run("i1", "spill('/tmp/first', 'x')\nsay(os.getpid())\n" + ECHO, uid=1001)
    pid = await first.hear()
    second = await box.run(
        "i2",
        f"""
        import ctypes, signal
        libc = ctypes.CDLL(None)
        say((
            attempt(read, "{one}/weights"), attempt(os.listdir, "{one}"), attempt(read, "/tmp/first"),
            attempt(os.kill, {pid}, signal.SIGKILL), libc.ptrace(16, {pid}, None, None),
            attempt(read, "/proc/{pid}/environ"), "{pid}" in os.listdir("/proc"), attempt(spill, "{two}/own"),
            attempt(os.setuid, 1001), attempt(os.setuid, 0), os.getresuid(), os.getgroups(),
        ))
        """,
        uid=1002,
    )
    denied = "PermissionError"
    assert await second.hear() == (
        denied, denied, denied, denied, -1, "FileNotFoundError", False, "written", denied, denied,
        (1002, 1002, 1002), [],
    )  # fmt: skip
    assert await first.ask("still here") == "still here"


@contract("function_uids")
async def runs_no_function_as_its_root(world: World) -> None:
    box = await world.box()
    for uid in (None, 0):
        with pytest.raises(Unavailable, match="a uid other than 0 is needed"):
            await box.link.spawn("i1", ["/bin/true"], {}, "/", uid=uid, attach=lambda pid: None)
    child = await box.run("i1", "say(os.getuid())")
    assert await child.hear() == 1001


@contract()
async def reports_a_lost_manager(world: World) -> None:
    box = await world.box()
    child = await box.run("i1", "say(os.getppid())\nhear()")
    inner = await child.hear()
    outer = parent(child.spawned.pid)
    assert inner == (1 if world.sandbox.enforces.processes else outer)
    os.kill(outer, signal.SIGKILL)
    await asyncio.wait_for(box.lost, 10)
    assert await child.exit() == (None, None)
    await until(lambda: not alive(child.spawned.pid), "an instance dies with its manager")
    with pytest.raises(Unavailable):
        await box.run("i2", ECHO)
    await box.container.destroy()


@contract()
async def tells_when_a_process_dies_before_its_go(world: World) -> None:
    box = await world.box()
    with pytest.raises((InstanceCrashed, Unavailable, ProcessLookupError)):
        # inner uid over the container's 65536 or, with one uid only, any other
        await box.link.spawn("i1", ["/bin/true"], {}, "/", uid=70000, attach=_unless_root(world))
    child = await box.run("i2", "say(1)")
    assert await child.hear() == 1


def _unless_root(world: World) -> Callable[[int], None]:
    """As root and without namespaces, uid 70000 is a uid like any other: refuse it by hand."""

    def attach(pid: int) -> None:
        if world.variant == "process":
            raise ProcessLookupError(pid)

    return attach


@contract("filesystem")
async def says_which_operation_failed(world: World) -> None:
    with pytest.raises(Unavailable, match=r"bind /no/such/path read-only .*[Nn]o such file"):
        await world.box(mounts=[Mount(Path("/no/such/path"))])
    box = await world.box("c2")  # and goes on
    assert (await box.link.hello()).pid == 1


@contract()
async def leaves_no_socket_of_the_host_within_reach(world: World) -> None:
    """Nothing is inherited: the child's descriptors are its own three and its socket."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0instainfer-test")
    listener.set_inheritable(True)
    box = await world.box()
    child = await box.run("i1", "say(sorted(os.listdir('/proc/self/fd'))[:-1])")
    assert await child.hear() == ["0", "1", "2", "3"]
    listener.close()


@pytest.mark.parametrize(("variant", "scenario"), contract.cases())
def test_contract(variant: str, scenario: str) -> None:
    contract.play(variant, scenario)
