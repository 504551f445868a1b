"""The contract of sandboxes, continued: what is charged to whom, and who may become whom."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from instainfer.errors import InstanceCrashed, Unavailable
from instainfer.sandbox import cgroupfs, cgroups, pages
from instainfer.sandbox.base import Mount
from tests.contract.sandbox_helpers import MB, UID_BASE, Box, Contract, World, parent

contract = Contract()
ECHO = "while True: say(hear())"

READ = """
    import mmap
    with open(hear(), "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    say(sum(mapped[::4096]))
    hear()
"""


def charged(box: Box, instance: str, *names: str) -> int:
    """One of these counters of the instance's group, whichever its kernel has."""
    groups = box.container._groups  # type: ignore[attr-defined] # where else
    place = "memory" if isinstance(groups, cgroups.V1) else ""
    path = groups._path(place, "c1", instance) if place else groups._base / "c1" / instance
    table = cgroupfs.table(path / "memory.stat")
    return next(table[name] for name in names if name in table)


@contextmanager
def cold_file(size: int) -> Iterator[Path]:
    """A file on a disk, none of it in memory. (/var/tmp: a tmpfs has nowhere else to keep it.)"""
    with tempfile.TemporaryDirectory(prefix="instainfer-test-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        path = Path(directory, "file")
        path.write_bytes(b"x" * size)
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield path


@contract("memory_at_once")
async def charges_a_file_to_whom_made_it_resident(world: World) -> None:
    with cold_file(64 * MB) as warm, cold_file(64 * MB) as cold:
        assert pages.prefault(warm) == 64 * MB
        box = await world.box(mounts=[Mount(warm.parent), Mount(cold.parent)])
        first = await box.run("i1", READ, limit=48 * MB)
        assert await first.ask(str(warm)) == 64 * 256 * ord("x")
        assert charged(box, "i1", "total_cache", "file") < 16 * MB
        second = await box.run("i2", READ, limit=48 * MB)
        assert await second.ask(str(cold)) == 64 * 256 * ord("x")
        assert charged(box, "i2", "total_cache", "file") > 24 * MB
        usage = await asyncio.to_thread(box.container.usage)
        assert max(usage.instances.values()) < 16 * MB  # neither: the kernel can drop it
        assert pages.resident(warm) == 64 * MB


@contract("memory_at_once")
async def weighs_groups_within_an_instance(world: World) -> None:
    box = await world.box()
    child = await box.run("i1", "kept = bytearray(b'x') * (hear() << 20)\nsay(1)\nhear()")
    groups = box.container._groups  # type: ignore[attr-defined] # nobody else nests them
    if isinstance(groups, cgroups.V1):  # in version 2 what is below has no account of its own unless given one
        inner = groups._path("memory", "c1", "i1", "inner")
        inner.mkdir()
        cgroupfs.write(inner / "cgroup.procs", str(child.pid))
    before = await asyncio.to_thread(box.container.usage)
    await child.ask(64)
    after = await asyncio.to_thread(box.container.usage)
    assert after.instances["i1"] - before.instances["i1"] == pytest.approx(64 * MB, rel=0.05)
    box.container.kill("i1")
    await child.exit()
    if isinstance(groups, cgroups.V1):
        inner.rmdir()


@contract()
async def shares_processors(world: World) -> None:
    box = await world.box(cpus=2.0)
    groups = getattr(box.container, "_groups", None)
    shares = groups.mounts.get("cpu") if isinstance(groups, cgroups.V1) else None
    for cpus, expected in ((2.0, "2048"), (0.5, "512"), (0.0, "2"), (10_000.0, "262144")):
        box.container.share(cpus)
        if shares is not None and groups is not None:
            assert (shares / groups.name / "c1" / "cpu.shares").read_text().strip() == expected
    child = await box.run("i1", ECHO)
    assert await child.ask(1) == 1


@contract("function_uids")
async def has_the_granted_uids_only(world: World) -> None:
    other = world.path / "other"
    other.write_text("secret")
    other.chmod(0o600)
    os.chown(other, UID_BASE + 1002, UID_BASE + 1002)
    own = world.directory("own", uid=1001)
    box = await world.box(
        uids=(1003, 1001, 1004, 1001), mounts=[Mount(path, writable=True) for path in (other, own)]
    )
    child = await box.run(
        "i1",
        f"""
        say((os.getresuid(), os.getresgid(), read("/proc/self/uid_map").split(), attempt(spill, "{own}/new")))
        say((os.stat("{other}").st_uid, attempt(read, "{other}"), attempt(os.chmod, "{other}", 0o666)))
        """,
        uid=1001,
    )
    one, three = str(UID_BASE + 1001), str(UID_BASE + 1003)
    extents = ["0", str(UID_BASE), "1", "1001", one, "1", "1003", three, "2"]
    assert await child.hear() == ((1001,) * 3, (1001,) * 3, extents, "written")
    assert await child.hear() == (65534, "PermissionError", "PermissionError")
    another = await box.run("i2", "say(os.getuid())", uid=1004)
    assert await another.hear() == 1004
    for uid in (1002, 1, 65534):
        # it is the manager's own attempt (it may set any uid that there is), and the kernel's EINVAL
        with pytest.raises(InstanceCrashed) as caught:
            await box.run(f"u{uid}", "say(1)", uid=uid)
        assert caught.value.detail == f"cannot become uid {uid}: [Errno 22] Invalid argument"


@contract("function_uids")
async def says_which_uids_cannot_be_granted(world: World) -> None:
    with pytest.raises(Unavailable, match="no uid 65536"):
        await world.box(uids=(65536,))
    with pytest.raises(Unavailable, match="350 uids in 350 separate runs"):
        await world.box(uids=tuple(range(2, 700, 2)))
    box = await world.box("most", uids=tuple(range(1000, 1400)) + tuple(range(2000, 2300, 2)))
    assert await (await box.run("i1", ECHO, uid=2298)).ask(1) == 1


def capabilities(pid: int) -> dict[str, int]:
    lines = (line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {line[0]: int(line[1], 16) for line in lines if line[0] in ("CapBnd", "CapEff", "CapPrm")}


@contract("function_uids")
async def leaves_its_manager_three_capabilities(world: World) -> None:
    box = await world.box()
    child = await box.run("i1", ECHO)
    kill, setgid, setuid = 1 << 5, 1 << 6, 1 << 7
    for pid, effective in ((parent(child.pid), kill | setgid | setuid), (child.pid, 0)):
        assert capabilities(pid) == {"CapBnd": kill | setgid | setuid, "CapEff": effective, "CapPrm": effective}


@pytest.mark.parametrize(("variant", "scenario"), contract.cases())
def test_contract(variant: str, scenario: str) -> None:
    contract.play(variant, scenario)
