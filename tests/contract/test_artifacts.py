"""A node that lacks a package or an environment gets it from where it is told, or makes it itself."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from instainfer.agent.base import Build, Built, Deliver, Missing, Peers, Provide
from instainfer.agent.environments import Environment, Environments, whole
from instainfer.agent.http_client import HttpAgent
from instainfer.agent.http_server import serving
from instainfer.agent.installers import Sources
from instainfer.agent.local import LocalAgent
from instainfer.agent.runners import SandboxRunner
from instainfer.agent.snapshots import key
from instainfer.artifacts.cache import Cache
from instainfer.artifacts.directory import Directory
from instainfer.artifacts.peer import Peer
from instainfer.artifacts.shelf import Shelf, in_folders
from instainfer.core import events
from instainfer.errors import BadPackage, NotFound
from instainfer.sandbox.process import ProcessSandbox
from tests.artifacts.helpers import digest, keep
from tests.contract.agent_helpers import KEY, MB, SANDBOXES, UID_BASE, Reports, World, package, revision

NONE = Sources(no_index=True)
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
DATA = package()  # once: its times differ
KINDS = [pytest.param("process"), pytest.param("linux", marks=pytest.mark.root)]


class Node:
    """Nodes of these tests have the same path, one after the other: `forget` makes it a node that has nothing."""

    def __init__(
        self, path: Path, kind: str = "process", *, packs: bool = False, sources: tuple[str, ...] = ()
    ) -> None:
        self.path = path
        self.sandbox = SANDBOXES[kind](path / "state")
        self.cache = Cache(path / "artifacts", 1 << 30, [Directory(Path(text)) for text in sources])
        self.environments = Environments(
            path / "environments", SandboxRunner(self.sandbox), sources=NONE, artifacts=self.cache
        )
        self.agent = LocalAgent(
            self.sandbox,
            self.environments,
            path,
            node="n1",
            memory=2048 * MB,
            load_slots=2,
            artifacts=self.cache,
            peer=lambda url: Peer(url, KEY),
            packs=packs,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        world = World(self.agent, self.sandbox, Reports(), None)
        await self.agent.start(world.reports)
        try:
            yield world
        finally:
            await self.agent.aclose()


def forget(path: Path) -> None:
    for name in ("environments", "packages", "artifacts"):
        shutil.rmtree(path / name, ignore_errors=True)


async def built(world: World) -> Built:
    world.send(Build(token=1, namespace="ns", uid_base=UID_BASE, requirements=(), python=HERE))
    return await world.until(Built, token=1)


# ---- packages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_pulled(tmp_path: Path, kind: str) -> None:
    keep(tmp_path / "shared", DATA)

    async def work() -> None:
        async with Node(tmp_path / "n", kind, sources=(str(tmp_path / "shared"),)).running() as world:
            of = revision(data=DATA)
            world.send(Provide(revision=of))
            world.create("c1", of)
            await world.until(events.ContainerReady, container="c1")
            await world.ready("i1", "c1", of)
            await world.works("i1")
            assert not world.reports.all(Missing)

    asyncio.run(work())


def test_a_package_that_was_sent_is_there_for_another_server(tmp_path: Path) -> None:
    """One with another data directory and no controller that has it: of a server which is gone, say."""
    shared = tmp_path / "shared"

    async def work() -> None:
        of = revision(data=DATA)
        first = Node(tmp_path / "first", sources=(str(shared),))
        async with first.running() as world:
            await world.provide(of, DATA)
            while first.agent._tasks:
                await asyncio.wait(first.agent._tasks)
        async with Node(tmp_path / "second", sources=(str(shared),)).running() as world:
            world.send(Provide(revision=of))
            world.create("c1", of)
            await world.until(events.ContainerReady, container="c1")
            await world.ready("i1", "c1", of)
            await world.works("i1")
            assert not world.reports.all(Missing)
        left = [path.name for path in (tmp_path / "first" / "artifacts").iterdir()]
        assert left == [digest(DATA).replace(":", "-")]

    asyncio.run(work())


def test_a_package_that_no_source_has_or_that_is_another_comes_from_the_controller(tmp_path: Path) -> None:
    keep(tmp_path / "shared", DATA)
    wrong = tmp_path / "shared" / digest(DATA).replace(":", "-")
    wrong.write_bytes(b"something else")

    async def work() -> None:
        async with Node(
            tmp_path / "n", sources=(str(tmp_path / "shared"), str(tmp_path / "none"))
        ).running() as world:
            of = revision(data=DATA)
            world.send(Provide(revision=of))
            await world.until(Missing, revision=of.id)
            world.send(Deliver(revision=of.id, package=DATA))
            world.create("c1", of)
            await world.until(events.ContainerReady, container="c1")
            await world.ready("i1", "c1", of)

    asyncio.run(work())


def test_from_another_node_that_is_named_later(tmp_path: Path) -> None:
    name = keep(tmp_path / "other", DATA)

    async def work() -> None:
        node = Node(tmp_path / "n")
        away = LocalAgent(
            ProcessSandbox(tmp_path / "state"),
            Environments(tmp_path / "e", SandboxRunner(node.sandbox), sources=NONE),
            tmp_path / "away",
            memory=MB,
            load_slots=1,
        )
        shelf = Shelf(in_folders(tmp_path / "other"))
        async with serving(away, "127.0.0.1", 0, KEY, shelf=shelf) as url, httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/artifacts/{name}")).status_code == 401
            assert HttpAgent("n1", url, KEY).node == "n1"
            async with node.running() as world:
                world.send(Peers(urls=("no url",)), Peers(urls=(url,)))
                of = revision(data=DATA)
                world.send(Provide(revision=of))
                world.create("c1", of)
                await world.until(events.ContainerReady, container="c1")
                await world.ready("i1", "c1", of)
                assert not world.reports.all(Missing)
                assert node.cache.find(name) is not None

    asyncio.run(work())


# ---- environments --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_is_built_once_and_unpacked_elsewhere(tmp_path: Path, kind: str) -> None:
    path, shared = tmp_path / "n", str(tmp_path / "shared")
    keep(tmp_path / "shared", DATA)

    async def work() -> None:
        async with Node(path, kind, packs=True, sources=(shared,)).running() as world:
            first = await built(world)
            assert first.packed
            again = await built(world)
            assert again.packed == first.packed
        forget(path)
        node = Node(path, kind, sources=(shared,))
        node.environments._runner = None  # type: ignore[assignment] # whoever builds now fails
        async with node.running() as world:
            of = revision(
                data=DATA,
                python=first.python,
                mounts=first.mounts,
                environment=first.digest,
                packed=first.packed,
                version=HERE,
            )
            world.send(Provide(revision=of))
            world.create("c1", of)
            await world.until(events.ContainerReady, container="c1")
            await world.ready("i1", "c1", of)
            await world.works("i1")
            assert whole(Path(first.python))

    asyncio.run(work())


@pytest.mark.slow
def test_an_environment_that_nobody_has_is_built(tmp_path: Path) -> None:
    path = tmp_path / "n"

    async def work() -> None:
        async with Node(path).running() as world:
            first = await built(world)
            assert not first.packed
        forget(path)
        async with Node(path, sources=(str(tmp_path / "none"),)).running() as world:
            settings: dict[str, Any] = {"mounts": first.mounts, "environment": first.digest, "version": HERE}
            of = revision(data=DATA, python=first.python, packed="sha256:" + "0" * 64, **settings)
            world.send(Provide(revision=of), Deliver(revision=of.id, package=DATA))
            world.create("c1", of)
            await world.until(events.ContainerReady, container="c1")
            await world.ready("i1", "c1", of)
            other = revision("g", 2, python="/nowhere/bin/python", **{**settings, "environment": "a" * 64})
            world.send(Provide(revision=other))
            world.create("c2", other)
            lost = await world.until(events.ContainerLost, container="c2")
            assert "the same image" in lost.reason or "another Python" in lost.reason

    asyncio.run(work())


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Environment, str]:
    """A node with an environment; which artifact it is."""
    path = tmp_path_factory.mktemp("packed")

    async def work() -> tuple[Environment, str]:
        node = Node(path)
        async with node.running():
            found = await node.environments.ensure("ns", UID_BASE, (), HERE, lambda message: None)
            name = await node.environments.pack("ns", found.digest)
            assert await node.environments.pack("ns", found.digest) == name
        return found, name

    found, name = asyncio.run(work())
    return path, found, name


def elsewhere(packed: tuple[Path, Environment, str], path: Path) -> Environments:
    cache = Cache(path / "artifacts", 1 << 30, [Directory(packed[0] / "artifacts")])
    return Environments(path / "environments", SandboxRunner(ProcessSandbox(path)), sources=NONE, artifacts=cache)


@pytest.mark.slow
def test_it_is_the_same_afterwards(packed: tuple[Path, Environment, str]) -> None:
    path, environment, name = packed
    target = environment.python.parent.parent
    before = sorted((str(one.relative_to(target)), one.lstat().st_size) for one in target.rglob("*"))
    shutil.rmtree(path / "environments")
    cache = Cache(path / "artifacts", 1 << 30)
    again = Environments(path / "environments", SandboxRunner(ProcessSandbox(path)), sources=NONE, artifacts=cache)
    asyncio.run(again.unpack("ns", environment.digest, name))
    assert sorted((str(one.relative_to(target)), one.lstat().st_size) for one in target.rglob("*")) == before
    said = subprocess.run(
        [environment.python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True
    )
    assert said.stdout.strip() == str(target)
    asyncio.run(again.unpack("ns", environment.digest, name))  # there already
    assert again.sweep([]) == 1 and list((path / "environments" / "ns").glob("[0-9a-f]*.packed")) == []
    asyncio.run(again.unpack("ns", environment.digest, name))


@pytest.mark.slow
def test_it_is_refused_where_it_does_not_belong(packed: tuple[Path, Environment, str], tmp_path: Path) -> None:
    path, environment, name = packed
    others = elsewhere(packed, tmp_path / "n")
    with pytest.raises(BadPackage, match="here it would lie in"):
        asyncio.run(others.unpack("ns", environment.digest, name))
    with pytest.raises(BadPackage, match="another one"):
        asyncio.run(others.unpack("ns", "a" * 64, name))
    with pytest.raises(NotFound):
        asyncio.run(others.unpack("ns", environment.digest, "sha256:" + "0" * 64))
    assert not list((tmp_path / "n" / "environments" / "ns").glob("[0-9a-f]*[0-9a-f]"))
    assert path.exists()


# ---- snapshots -----------------------------------------------------------------------------------------------


def test_a_snapshot_is_brought_where_it_is_good(tmp_path: Path) -> None:
    """What it holds is nobody's business here: the file and its marker are."""
    content = b"a tenant's pickle" * 1000
    shared = tmp_path / "shared"
    name = keep(shared, content)
    keep(shared, DATA)

    async def work() -> None:
        node = Node(tmp_path / "n", sources=(str(shared),))
        async with node.running() as world:
            plain = revision(data=DATA, snapshot=True, restores=name)
            of = revision(data=DATA, snapshot=True, restores=name, restores_key=key(plain))
            other = revision("g", 2, data=DATA, snapshot=True, restores=name, restores_key="of another processor")
            gone = revision("h", 3, data=DATA, snapshot=True, restores="sha256:" + "0" * 64)
            gone = msgspec.structs.replace(gone, restores_key=key(gone))
            world.send(*(Provide(revision=one) for one in (of, other, gone)))
            for number, one in enumerate((of, other, gone)):
                world.create(f"c{number}", one)
                await world.until(events.ContainerReady, container=f"c{number}")
            async with asyncio.timeout(20):
                await asyncio.gather(*node.agent._tasks)
            found = node.agent.snapshots.file(of)
            assert found is not None and found[0].read_bytes() == content
            assert f"sha256:{found[1].sha256}" == name and found[0].stat().st_mode & 0o777 == 0o440
            assert node.agent.snapshots.file(other) is None and node.agent.snapshots.file(gone) is None
            assert not list((tmp_path / "n" / "snapshots" / "ns").glob(".work-*"))

    asyncio.run(work())
