"""What every kind of cluster does: it names its members, and has an agent on each."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from instainfer import outliving
from instainfer.agent import process
from instainfer.cluster.base import Change, ClusterBackend, Joined, Lost, Resized, Suspect
from instainfer.cluster.embedded import Embedded
from instainfer.cluster.fixed import Fixed
from instainfer.cluster.rayhosts import RayHosts
from instainfer.core.events import NodeLost
from instainfer.errors import BadSettings, Unavailable
from instainfer.trial import environment
from tests.contract.agent_helpers import KEY, MB, Reports
from tests.contract.test_agent_http import Recorder

SOON_S = 60.0
SETTINGS = {"INSTAINFER_SANDBOX__KIND": "process"}


class Started(Recorder):
    node = "here"


class Cluster:
    """A backend, and hands on the world that it tells of."""

    def __init__(self, make: Callable[[int], ClusterBackend], data: Path | None, hosts: list[Any]) -> None:
        self.make = make
        self.data = data  # of the agents, where they are processes
        self.hosts = hosts  # Ray's nodes, to be killed


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Any], Any]]:
    """Two of Ray's, at addresses of their own."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    data = tmp_path_factory.mktemp("ray")
    (data / "ray.token").write_text("a token of the tests, of some length")
    before, terminated = dict(os.environ), signal.getsignal(signal.SIGTERM)
    os.environ.update(environment(data))
    from ray.cluster_utils import Cluster as RayCluster

    cluster = RayCluster(
        initialize_head=True, head_node_args={"node_ip_address": "127.0.0.21", "resources": {"warm_mb": 300}}
    )
    try:
        other = cluster.add_node(node_ip_address="127.0.0.22", resources={"warm_mb": 200})
        yield cluster.address, [cluster.head_node, other], cluster
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
        signal.signal(signal.SIGTERM, terminated)


@pytest.fixture(params=["embedded", "fixed", pytest.param("ray", marks=pytest.mark.slow)])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    if request.param == "embedded":
        yield Cluster(lambda epoch: Embedded(Started(), 100 * MB), None, [])
        return
    data = tmp_path / "data"
    agents = data / "agents"
    if request.param == "fixed":
        flags = ["--node", "a", "--listen", "127.0.0.1:0", "--memory", "300MB"]
        about = process.ensure(agents / "a", flags, {**os.environ, **SETTINGS, "INSTAINFER_CLUSTER__KEY": KEY})
        made = Cluster(lambda epoch: Fixed(f"a={about.url}", KEY, epoch=epoch, lost_s=3.0), agents, [])
    else:
        address, nodes, _ = request.getfixturevalue("hosts")
        made = Cluster(
            lambda epoch: RayHosts(address, KEY, data, epoch=epoch, lost_s=3.0, environ=SETTINGS, gone_s=1.0),
            agents,
            nodes,
        )
    try:
        yield made
    finally:
        for agent in agents.glob("*"):
            outliving.stop(agent)


@contextlib.asynccontextmanager
async def started(backend: ClusterBackend) -> AsyncIterator[ClusterBackend]:
    await backend.start()
    try:
        yield backend
    finally:
        await backend.aclose()


async def until(changes: AsyncIterator[Change], kind: type[Change], node: str) -> Change:
    async with asyncio.timeout(SOON_S):
        async for change in changes:
            name = change.member.node if isinstance(change, Joined | Resized) else change.node
            if isinstance(change, kind) and name == node:
                return change
    raise AssertionError("it ended")


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


def test_members_join_and_have_agents(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with started(cluster.make(1)) as backend:
            members = backend.members()
            assert members
            changes = backend.watch()
            async with asyncio.timeout(SOON_S):
                seen = [await anext(changes) for _ in members]
            assert {change.member.node for change in seen if isinstance(change, Joined)} == set(members)
            for node in members:
                agent = await backend.ensure_agent(node)
                reports = Reports()
                joined = await agent.start(reports)
                assert joined.node == node
                await agent.aclose()
            with pytest.raises(Unavailable):
                await backend.ensure_agent("nobody")

    run(scenario)


def test_an_agent_that_runs_is_not_started_again(cluster: Cluster) -> None:
    if cluster.data is None:
        return

    async def scenario() -> None:
        assert cluster.data is not None
        pids = []
        for epoch in (1, 2):
            async with started(cluster.make(epoch)) as backend:
                node = min(backend.members())
                agent = await backend.ensure_agent(node)
                await agent.start(Reports())
                about = process.find(cluster.data / node)
                assert about is not None
                pids.append(about.pid)
                await agent.aclose()
        assert pids[0] == pids[1]

    run(scenario)


def test_memory_is_given_back_and_had_again(cluster: Cluster) -> None:
    """Where the cluster deals in it a change is told; elsewhere nobody asks for it."""

    async def scenario() -> None:
        async with started(cluster.make(1)) as backend:
            node = min(backend.members())
            agent = await backend.ensure_agent(node)
            before = backend.members()[node].warm
            await backend.release(node)
            await backend.release(node)
            await backend.reserve(node)
            assert backend.members()[node].warm == before
            await agent.aclose()

    run(scenario)


def test_what_is_ours_is_known() -> None:
    member = Embedded(Started(), 100 * MB).members()["here"]
    assert member.cpus >= 1
    assert member.warm == 100 * MB


@pytest.mark.parametrize("address", ["http://h:1", "a=", "a=h:1", "a=http://h:1,a=http://h:2"])
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(BadSettings):
        Fixed(address, KEY, epoch=1, lost_s=1.0)


@pytest.mark.slow
def test_which_of_rays_nodes_have_containers() -> None:
    """Those that live, by their label or else their address; not those that say they have none. And a driver needs
    a raylet that lives."""
    pytest.importorskip("ray")
    from instainfer.cluster.ray import hosts, lives

    def entry(number: int, labels: dict[str, str] | None = None, *, alive: bool = True, **resources: float) -> Any:
        ip = f"10.0.0.{number}"
        return {
            "NodeID": f"n{number}",
            "Alive": alive,
            "NodeManagerAddress": ip,
            "Labels": labels or {},
            "Resources": resources,
        }

    table = [
        entry(1, no_containers=1.0, CPU=2.0),
        entry(2, {"instainfer/host": "b"}, warm_mb=300.0, CPU=4.0, memory=1e9),
        entry(3, {"instainfer/host": "b"}, alive=False),
        entry(4),
    ]
    assert hosts(table) == [
        {"node": "10.0.0.4", "ip": "10.0.0.4", "cpus": 0.0, "memory": 0, "warm": 0},
        {"node": "b", "ip": "10.0.0.2", "cpus": 4.0, "memory": 1_000_000_000, "warm": 300_000_000},
    ]
    assert [lives(node, table) for node in ("n1", "n3", "n9")] == [True, False, False]


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_said_to_be(hosts: tuple[str, list[Any], Any], tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = RayHosts("127.0.0.21:1", KEY, tmp_path, epoch=1, lost_s=1.0)
        with pytest.raises(Unavailable, match="cannot be joined"):
            await backend.start()

    run(scenario)


@pytest.mark.slow
def test_without_ray_the_hosts_that_it_had_last_are_asked(
    hosts: tuple[str, list[Any], Any], tmp_path: Path
) -> None:
    """A server that is started while the head is away finds the agents where they were."""
    address, _, _ = hosts

    async def scenario() -> None:
        async with started(RayHosts(address, KEY, tmp_path, epoch=1, lost_s=3.0, environ=SETTINGS)) as backend:
            await until(backend.watch(), Joined, "127.0.0.21")
            await backend.ensure_agent("127.0.0.21")
        before = process.find(tmp_path / "agents" / "127.0.0.21")
        async with started(RayHosts("127.0.0.21:1", KEY, tmp_path, epoch=2, lost_s=3.0)) as backend:
            assert list(backend.members()) == ["127.0.0.21"]
            await until(backend.watch(), Joined, "127.0.0.21")
            agent = await backend.ensure_agent("127.0.0.21")
            assert (await agent.start(Reports())).node == "127.0.0.21"
            await agent.aclose()
            with pytest.raises(Unavailable, match="no host"):
                await backend.ensure_agent("127.0.0.22")
        assert process.find(tmp_path / "agents" / "127.0.0.21") == before

    try:
        run(scenario)
    finally:
        for directory in (tmp_path / "agents").glob("*"):
            outliving.stop(directory)


@pytest.mark.slow
def test_a_raylet_that_dies_takes_no_agent_with_it(hosts: tuple[str, list[Any], Any], tmp_path: Path) -> None:
    """The host is suspect, then lost, then back with a new raylet; its agent never notices."""
    address, (_, other), cluster = hosts

    async def scenario() -> None:
        backend = RayHosts(address, KEY, tmp_path, epoch=1, lost_s=3.0, environ=SETTINGS, gone_s=1.0)
        async with started(backend):
            assert {node: member.warm for node, member in backend.members().items()} == {
                "127.0.0.21": 300_000_000,
                "127.0.0.22": 200_000_000,
            }
            changes = backend.watch()
            await until(changes, Joined, "127.0.0.22")
            reports = Reports()
            agent = await backend.ensure_agent("127.0.0.22")
            joined = await agent.start(reports)
            assert joined.memory == 200_000_000
            before = process.find(tmp_path / "agents" / "127.0.0.22")
            await asyncio.to_thread(cluster.remove_node, other, False)
            await until(changes, Suspect, "127.0.0.22")
            await until(changes, Lost, "127.0.0.22")
            assert "127.0.0.22" not in backend.members()
            cluster.add_node(node_ip_address="127.0.0.22", resources={"warm_mb": 200}, wait=False)
            await until(changes, Joined, "127.0.0.22")
            assert backend.members()["127.0.0.22"].warm == 200_000_000, "as before, while Ray reserves it again"
            again = await backend.ensure_agent("127.0.0.22")
            assert process.find(tmp_path / "agents" / "127.0.0.22") == before
            assert not reports.all(NodeLost)
            await agent.aclose()
            await again.aclose()

    try:
        run(scenario)
    finally:
        for directory in (tmp_path / "agents").glob("*"):
            outliving.stop(directory)


#: Another driver on the cluster: it takes MB of a host, says so, and holds them until its input ends.
OTHER = """
import sys
import ray

mine = {"logging_level": "error", "log_to_driver": False, "_node_ip_address": "127.0.0.21"}
ray.init(address=sys.argv[1], namespace="other", **mine)
ip, mb = sys.argv[2], int(sys.argv[3])
group = ray.util.placement_group([{"warm_mb": mb, f"node:{ip}": 0.001}])
print("has" if group.wait(float(sys.argv[4])) else "waits", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def other_work(address: str, ip: str, mb: int, *, wait_s: float = 20.0) -> Iterator[str]:
    """What became of it: "has", or "waits"."""
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, address, ip, str(mb), str(wait_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd="/",
    )
    assert other.stdout is not None and other.stdin is not None
    try:
        yield other.stdout.readline().strip()
    finally:
        other.stdin.close()
        other.wait(30)
        other.stdout.close()


@pytest.mark.slow
def test_what_other_work_leaves_becomes_ours(hosts: tuple[str, list[Any], Any], tmp_path: Path) -> None:
    address = hosts[0]
    node = "127.0.0.21"

    async def scenario() -> None:
        backend = RayHosts(address, KEY, tmp_path, epoch=1, lost_s=3.0, environ=SETTINGS, grow_s=0.5)
        async with started(backend):
            changes = backend.watch()
            await until(changes, Joined, node)
            await backend.release(node)
            with other_work(address, node, 120) as has:
                assert has == "has"
                await backend.reserve(node)
                assert (backend.members()[node].warm, backend.members()[node].most) == (180_000_000, 300_000_000)
            async with asyncio.timeout(SOON_S):
                while backend.members()[node].warm != 300_000_000:
                    await until(changes, Resized, node)
            await backend.release(node)  # of both groups
            with other_work(address, node, 300) as has:
                assert has == "has"

    run(scenario)


@pytest.mark.slow
def test_other_work_on_the_cluster_and_ours_respect_each_other(
    hosts: tuple[str, list[Any], Any], tmp_path: Path
) -> None:
    address = hosts[0]
    node = "127.0.0.21"

    async def scenario() -> None:
        backend = RayHosts(address, KEY, tmp_path, epoch=1, lost_s=3.0, environ=SETTINGS, gone_s=1.0)
        async with started(backend):
            changes = backend.watch()
            await until(changes, Joined, node)
            for member in backend.members():
                await backend.release(member)  # what tests before this one had
            with other_work(address, node, 120) as has:
                assert has == "has"
                agent = await backend.ensure_agent(node)
                joined = await agent.start(Reports())
                assert joined.memory == 300_000_000, "it may have more later; what it has now is the member's"
                change = await until(changes, Resized, node)
                assert isinstance(change, Resized) and change.member.warm == 180_000_000
                await agent.aclose()
            await backend.reserve(node)
            assert backend.members()[node].warm == 300_000_000
            with other_work(address, node, 120, wait_s=2.0) as has:
                assert has == "waits"
            await backend.release(node)
            with other_work(address, node, 300) as has:
                assert has == "has"
                with pytest.raises(Unavailable, match="other work"):
                    await backend.ensure_agent(node)

    try:
        run(scenario)
    finally:
        for directory in (tmp_path / "agents").glob("*"):
            outliving.stop(directory)
