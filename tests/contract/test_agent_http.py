"""What only the HTTP agent has to do: nothing lost, nothing doubled, whatever becomes of its connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from instainfer import listening, wire
from instainfer.agent.base import Answered, Carried, Command, Deliver, Invoke, Progress, Report, Sink, Withdraw
from instainfer.agent.http_client import HttpAgent
from instainfer.agent.http_connection import Address, Connection
from instainfer.agent.http_server import AgentServer, serving
from instainfer.core import actions, events
from instainfer.core.events import NodeJoined, NodeLost
from instainfer.errors import BadInput, BadSettings, Unavailable
from instainfer.model import Level
from tests.contract.agent_helpers import KEY, PATIENCE_S, Proxy, Reports, world


class Recorder:
    """An agent that remembers its commands and reports what it is told to."""

    node = "n1"
    shelf = ""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.starts = 0
        self.ends = 0
        self.came = asyncio.Event()
        self.report: Sink = lambda report: None

    async def start(self, sink: Sink) -> NodeJoined:
        self.starts += 1
        self.report = sink
        return NodeJoined(node=self.node, memory=1)

    def send(self, command: Command) -> None:
        self.commands.append(command)
        self.came.set()

    async def aclose(self) -> None:
        self.ends += 1
        self.report(events.ContainerLost(container=f"c{self.ends}"))

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.commands) < count:
                self.came.clear()
                await self.came.wait()

    def say(self, *tokens: int) -> None:
        for token in tokens:
            self.report(Progress(token=token, message="m"))


def withdraw(*names: str) -> list[Command]:
    return [Withdraw(revision=name) for name in names]


class Client:
    """A controller that speaks the protocol by hand."""

    def __init__(self, url: str, session: str = "s1", epoch: int = 0, more: str = "") -> None:
        self._address = Address(url, KEY)
        self._session = f"{session}&epoch={epoch}{more}"

    async def post(self, batch: int, commands: list[Command], after: int = 0, body: bytes | None = None) -> int:
        line = await Connection.open(self._address)
        target = f"/agent/commands?session={self._session}&batch={batch}&after={after}"
        data = b"".join(map(wire.encode, commands)) if body is None else body
        try:
            status, _ = await line.request("POST", target, [data])
        finally:
            line.close()
        return status

    async def read(self, after: int, until: Callable[[list[Any]], bool] = bool) -> tuple[int, list[Any]]:
        """Status and the reports after a number, as soon as `until` says that they are enough."""
        decoder: wire.Decoder[Report | NodeJoined | Carried] = wire.Decoder(Report | NodeJoined | Carried)
        got: list[Any] = []
        enough = asyncio.Event()

        def heard(data: bytes) -> None:
            got.extend(decoder.feed(data))
            if until(got):
                enough.set()

        line = await Connection.open(self._address)
        target = f"/agent/reports?session={self._session}&after={after}"
        asked = asyncio.create_task(line.request("GET", target, on_body=heard))
        waiting = asyncio.create_task(enough.wait())
        done, _ = await asyncio.wait({asked, waiting}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        assert done
        waiting.cancel()
        asked.cancel()
        line.close()
        return (asked.result()[0] if asked in done else 200), got


def tokens(reports: list[Any]) -> list[int]:
    return [report.token for report in reports if isinstance(report, Progress)]


# ---- the protocol, by hand


def test_a_batch_that_comes_twice_is_carried_out_once() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            client = Client(url)
            assert await client.post(1, withdraw("early")) == 409  # nobody has joined
            await client.read(0)
            assert await client.post(1, withdraw("a", "b")) == 204
            assert await client.post(1, withdraw("a", "b")) == 204
            assert await client.post(2, withdraw("c")) == 204
            assert await client.post(1, withdraw("a", "b")) == 204
            assert await client.post(4, withdraw("d")) == 409  # one is missing
        assert agent.commands == withdraw("a", "b", "c")

    asyncio.run(main())


def test_a_batch_is_carried_out_whole_or_not_at_all() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            client = Client(url)
            await client.read(0)
            good = wire.encode(Withdraw(revision="a"))
            for bad in (good[:-1], b"\xff" * 8, wire.HEAD.pack(1) + b"\xc1", wire.encode(NodeLost(node="x"))):
                assert await client.post(1, [], body=good + bad) == 400
            assert not agent.commands
            assert await client.post(1, withdraw("a")) == 204
        assert agent.commands == withdraw("a")

    asyncio.run(main())


def test_a_reader_that_comes_back_goes_on_where_it_was() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            client = Client(url)
            _, [joined] = await client.read(0)
            assert joined == NodeJoined(node="n1", memory=1)
            agent.say(1, 2, 3)
            assert tokens((await client.read(1, lambda got: len(got) == 3))[1]) == [1, 2, 3]
            agent.say(4)  # while nobody reads
            assert tokens((await client.read(3, lambda got: len(got) == 2))[1]) == [3, 4]
            assert await client.post(1, [], after=4) == 204
            status, got = await client.read(4)
            assert (status, tokens(got)) == (200, [4])
            assert (await client.read(3))[0] == 409  # it had said that it had them
            assert (await client.read(9))[0] == 409  # there never was a ninth
        assert agent.starts == 1

    asyncio.run(main())


def test_a_new_reader_takes_over() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            client = Client(url)
            reads = asyncio.Event()

            def for_good(got: list[Any]) -> bool:
                reads.set()
                return False

            first = asyncio.create_task(client.read(0, for_good))
            await asyncio.wait_for(reads.wait(), PATIENCE_S)
            await client.read(0)
            status, got = await asyncio.wait_for(first, PATIENCE_S)  # its stream has ended
            assert status == 200
            assert got == [NodeJoined(node="n1", memory=1)]

    asyncio.run(main())


def test_what_nobody_takes_is_kept_up_to_a_bound() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY, kept=1000) as url:
            client = Client(url)
            await client.read(0)
            agent.report(Progress(token=1, message="x" * 400))
            assert tokens((await client.read(1))[1]) == [1]
            agent.report(Progress(token=2, message="x" * 5000))
            assert (await client.read(1))[0] == 409
            assert await client.post(1, withdraw("a")) == 409
            _, [joined] = await Client(url, "s2").read(0)
            assert isinstance(joined, NodeJoined)
        assert not agent.commands
        assert (agent.starts, agent.ends) == (2, 2)

    asyncio.run(main())


def test_another_controller_ends_what_runs_and_shuts_the_first_one_out() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            first, second = Client(url), Client(url, "s2")
            await first.read(0)
            stale = agent.report
            _, [joined] = await second.read(0)
            assert isinstance(joined, NodeJoined)
            assert agent.ends == 1
            assert await first.post(1, withdraw("a")) == 409
            assert (await first.read(1))[0] == 409
            stale(Progress(token=1, message="of what was ended"))
            agent.say(2)
            assert tokens((await second.read(1))[1]) == [2]
        assert not agent.commands

    asyncio.run(main())


def test_an_earlier_controller_has_no_say_once_a_later_one_came() -> None:
    async def main() -> None:
        agent, remembered = Recorder(), list[int]()
        async with serving(agent, "127.0.0.1", 0, KEY, epoch=3, remember=remembered.append) as url:
            assert (await Client(url, "s0", epoch=2).read(0))[0] == 409
            first, second = Client(url, "s1", epoch=3), Client(url, "s2", epoch=4)
            await first.read(0)
            assert remembered == []
            await second.read(0)
            assert remembered == [4]
            assert await first.post(1, withdraw("a")) == 409
            assert (await first.read(0))[0] == 409  # nor may it take the node back
            assert (await Client(url, "s3", epoch=3).read(0))[0] == 409
            assert await second.post(1, withdraw("b")) == 204
        assert agent.commands == withdraw("b")
        assert agent.starts == 2

    asyncio.run(main())


class Keeper(Recorder):
    """One that can do without a controller."""

    def __init__(self) -> None:
        super().__init__()
        self.rested = asyncio.Event()
        self.handed = 0

    async def rest(self, reason: str) -> None:
        self.rested.set()

    async def hand_over(self, sink: Sink) -> NodeJoined:
        self.handed += 1
        self.report = sink
        held = events.HeldContainer(container="c1", function="ns/f", limit=1)
        return NodeJoined(node=self.node, memory=1, held=(held,))


def test_the_next_controller_is_told_what_is_held() -> None:
    async def main() -> None:
        agent = Keeper()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            await Client(url, "s1", epoch=1).read(0)
            _, [joined] = await Client(url, "s2", epoch=2).read(0)
            assert [one.container for one in joined.held] == ["c1"]
            assert (agent.starts, agent.handed, agent.ends) == (1, 1, 0)

    asyncio.run(main())


def test_a_node_whose_controller_is_not_heard_of_ends_what_it_runs() -> None:
    async def main() -> None:
        agent = Keeper()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            await Client(url, more="&lease=50").read(0)
            await asyncio.wait_for(agent.rested.wait(), PATIENCE_S)

    asyncio.run(main())


def test_a_controller_that_has_nothing_to_say_is_heard_of() -> None:
    async def main() -> None:
        heard: asyncio.Queue[str] = asyncio.Queue()
        agent = Recorder()
        app = AgentServer(agent, KEY)

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["method"] == "POST":
                heard.put_nowait(scope["path"])
            await app(scope, receive, send)

        with listening.bind("127.0.0.1", 0) as bound:
            async with listening.serving(watched, bound):
                remote, _ = await joined(agent, listening.url(bound), lost_s=1.0)
                for _ in range(3):
                    assert await asyncio.wait_for(heard.get(), PATIENCE_S) == "/agent/commands"
                await remote.aclose()
                await app.aclose()
        assert not agent.commands

    asyncio.run(main())


@pytest.mark.parametrize("key", ["", "wrong", KEY + "x"])
def test_nothing_without_the_key(key: str) -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url, httpx.AsyncClient(base_url=url) as http:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            for method, path in (
                ("GET", "/agent/reports?session=s&after=0"),
                ("POST", "/agent/commands?session=s&batch=1&after=0"),
                ("POST", "/agent/close?session=s"),
                ("GET", "/"),
            ):
                answer = await http.request(method, path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["type"] == "urn:instainfer:error:not_allowed"
            with pytest.raises(Unavailable, match="key"):
                await HttpAgent("n1", url, key).start(Reports())
        assert agent.starts == 0

    asyncio.run(main())


def test_bad_questions_are_refused() -> None:
    async def main() -> None:
        async with serving(Recorder(), "127.0.0.1", 0, KEY) as url, httpx.AsyncClient(base_url=url) as http:
            http.headers["authorization"] = f"Bearer {KEY}"
            assert (await http.get("/agent/reports")).status_code == 400
            assert (await http.get("/agent/reports?session=s&after=-1")).status_code == 400
            assert (await http.get("/agent/reports?session=s")).status_code == 400
            assert (await http.get("/agent/commands?session=s")).status_code == 404

    asyncio.run(main())


def test_settings_that_cannot_work() -> None:
    with pytest.raises(BadSettings):
        AgentServer(Recorder(), "")
    for url in ("n1:3000", "ftp://n1", "http://"):
        with pytest.raises(BadSettings):
            HttpAgent("n1", url, KEY)


def test_messages_survive_any_cut() -> None:
    messages = [Progress(token=n, message="x" * n) for n in range(20)]
    data = b"".join((wire.BEAT, *map(wire.encode, messages), wire.BEAT))
    for step in (1, 3, 7, len(data)):
        decoder: wire.Decoder[Report] = wire.Decoder(Report)
        got = [m for at in range(0, len(data), step) for m in decoder.feed(data[at : at + step])]
        assert got == messages
        assert decoder.whole
    with pytest.raises(BadInput, match="over"):
        wire.Decoder[Report](Report, largest=10).feed(wire.HEAD.pack(11))


# ---- the client


async def joined(agent: Recorder, url: str, lost_s: float = 10.0) -> tuple[HttpAgent, Reports]:
    remote, reports = HttpAgent("n1", url, KEY, lost_s=lost_s), Reports()
    assert await remote.start(reports) == NodeJoined(node="n1", memory=1)
    return remote, reports


def test_cut_connections_lose_and_double_nothing() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            proxy = Proxy("127.0.0.1", int(url.rpartition(":")[2]))
            await proxy.start()
            remote, reports = await joined(agent, proxy.url)
            rounds, each = 12, 40
            for n in range(rounds):
                for k in range(each):
                    remote.send(Withdraw(revision=f"{n}.{k}"))
                    agent.say(n * each + k)
                if n % 3 == 0:
                    remote.send(Deliver(revision=f"big {n}", package=bytes(3 << 20)))
                await asyncio.sleep(0)  # the batch goes out …
                proxy.cut()  # … and is cut somewhere on its way
                await agent.until((n + 1) * each + n // 3 + 1)
                await reports.until(Progress, token=n * each + each - 1)
            names = [c.revision for c in agent.commands if isinstance(c, Withdraw)]
            assert names == [f"{n}.{k}" for n in range(rounds) for k in range(each)]
            assert tokens(reports.seen) == list(range(rounds * each))
            assert proxy.carried > rounds
            await remote.aclose()
            proxy.refuse()
        assert not reports.all(NodeLost)
        assert agent.starts == 1

    asyncio.run(main())


def test_a_node_out_of_reach_is_lost_once_and_can_be_joined_anew() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            proxy = Proxy("127.0.0.1", int(url.rpartition(":")[2]))
            await proxy.start()
            remote, reports = await joined(agent, proxy.url, lost_s=0.3)
            proxy.refuse()
            remote.send(Withdraw(revision="a"))
            assert (await reports.until(NodeLost)).node == "n1"
            remote.send(Withdraw(revision="b"))
            await remote.aclose()
            assert len(reports.all(NodeLost)) == 1
            assert not reports.all(Progress)
            again, fresh = await joined(agent, url)
            again.send(Withdraw(revision="c"))
            await agent.until(1)
            agent.say(1)
            await fresh.until(Progress, token=1)
            await again.aclose()
        assert agent.commands == withdraw("c")
        assert agent.starts == 2

    asyncio.run(main())


def invoke(request: int, instance: str = "i1") -> Invoke:
    return Invoke(request=request, instance=instance, activation="a", content_type="", body=b"")


def test_a_request_that_crosses_the_loss_of_its_instance_is_known_to_be_unread() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            proxy = Proxy("127.0.0.1", int(url.rpartition(":")[2]))
            await proxy.start()
            remote, reports = await joined(agent, proxy.url)
            remote.send(invoke(1))
            await agent.until(1)
            agent.report(events.InstanceLost(instance="i1", unread=()))  # and meanwhile:
            remote.send(invoke(2))
            remote.send(invoke(3, "i2"))
            assert (await reports.until(events.InstanceLost)).unread == (2,)
            await agent.until(3)
            agent.report(events.InstanceLost(instance="i2"))
            assert (await reports.until(events.InstanceLost)).unread == ()
            await remote.aclose()

    asyncio.run(main())


def test_the_same_when_its_container_is_lost() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            remote, reports = await joined(agent, url)
            why = actions.Why(rule="")
            remote.send(
                actions.Load(
                    instance="i1",
                    container="c1",
                    function="f",
                    revision="f@1",
                    level=Level.LOADED,
                    ahead=False,
                    why=why,
                )
            )
            await agent.until(1)
            agent.report(events.ContainerLost(container="c1"))
            remote.send(invoke(1))
            assert (await reports.until(events.ContainerLost)).unread == (1,)
            await remote.aclose()

    asyncio.run(main())


def test_what_a_lost_node_was_never_sent_is_known() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            proxy = Proxy("127.0.0.1", int(url.rpartition(":")[2]))
            await proxy.start()
            remote, reports = await joined(agent, proxy.url, lost_s=0.5)
            remote.send(invoke(1))
            await agent.until(1)
            proxy.refuse()
            await reports.until(events.NodeClosed)
            remote.send(invoke(2))
            assert (await reports.until(NodeLost)).unread == (2,)

    asyncio.run(main())


def test_a_node_that_is_back_in_time_is_open_again() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            proxy = Proxy("127.0.0.1", int(url.rpartition(":")[2]))
            await proxy.start()
            remote, reports = await joined(agent, proxy.url, lost_s=1e6)
            proxy.refuse()
            await reports.until(events.NodeClosed)
            await proxy.start(int(proxy.url.rpartition(":")[2]))
            await reports.until(events.NodeOpened)
            remote.send(invoke(1))
            await agent.until(1)
            await remote.aclose()
            proxy.refuse()

    asyncio.run(main())


def test_a_node_that_ends_is_emptied_first_while_somebody_listens() -> None:
    why = actions.Why(rule="why not")

    def create(name: str) -> Command:
        return actions.CreateContainer(
            container=name, node="n1", function="ns/f", revision="f@1", limit=1, why=why
        )

    def destroy(name: str) -> Command:
        return actions.DestroyContainer(container=name, why=why)

    async def main() -> None:
        agent = Recorder()
        server = AgentServer(agent, KEY)
        await server.leave(60.0)  # of nobody
        with listening.bind("127.0.0.1", 0) as bound:
            async with listening.serving(server, bound, access_log=False):
                await scenario(agent, server, listening.url(bound))

    async def scenario(agent: Recorder, server: AgentServer, url: str) -> None:
        remote, reports = HttpAgent("n1", url, KEY, lost_s=10.0, stays=True), Reports()
        await remote.start(reports)
        for name in ("c1", "c2"):
            remote.send(create(name))
        await agent.until(2)
        leaving = asyncio.create_task(server.leave(60.0))
        closed = await reports.until(events.NodeClosed)
        assert (closed.drain, closed.within_s) == (True, 60.0)
        remote.send(destroy("c1"))
        await agent.until(3)
        agent.report(events.ContainerLost(container="c1"))
        remote.send(destroy("c2"))
        await agent.until(4)
        assert not leaving.done(), "its memory is not free yet"
        agent.report(events.ContainerLost(container="c2"))
        await leaving
        remote.send(create("c3"))
        await agent.until(5)
        leaving = asyncio.create_task(server.leave(60.0))
        await reports.until(events.NodeClosed)
        await remote.aclose()  # there is nobody left to have it made elsewhere
        await leaving
        await server.aclose()

    asyncio.run(main())


def test_a_node_that_stays_goes_on_without_us() -> None:
    async def main() -> None:
        agent = Keeper()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            remote = HttpAgent("n1", url, KEY, stays=True)
            await remote.start(Reports())
            await remote.aclose()
            assert agent.ends == 0
            assert (await HttpAgent("n1", url, KEY, stays=True).start(Reports())).held

    asyncio.run(main())


def test_a_node_that_stops_or_is_taken_is_lost_at_once() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            first, reports = await joined(agent, url, lost_s=1e6)
            second, others = await joined(agent, url, lost_s=1e6)
            await reports.until(NodeLost)
        await others.until(events.ContainerLost)
        await others.until(NodeLost)
        await first.aclose()
        await second.aclose()

    asyncio.run(main())


def test_what_was_taken_is_not_kept_even_when_there_are_no_commands() -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY, kept=8 << 20) as url:
            remote, reports = await joined(agent, url)
            for n in range(20):
                agent.report(Progress(token=n, message="x" * (1 << 20)))
                await reports.until(Progress, token=n)
                remote.send(Withdraw(revision=str(n)))
                await agent.until(n + 1)
            for n in range(20, 60):  # no commands any more
                agent.report(Progress(token=n, message="x" * (1 << 18)))
                await reports.until(Progress, token=n)
            assert not reports.all(NodeLost)
            await remote.aclose()

    asyncio.run(main())


def test_a_node_that_is_not_there_or_another_cannot_be_joined() -> None:
    async def main() -> None:
        async with serving(Recorder(), "127.0.0.1", 0, KEY) as url:
            with pytest.raises(Unavailable, match="n1"):
                await HttpAgent("n2", url, KEY).start(Reports())
        with pytest.raises(Unavailable, match="cannot be joined") as caught:
            await HttpAgent("n1", url, KEY, lost_s=0.2).start(Reports())
        assert "running" in caught.value.hint

    asyncio.run(main())


def test_a_sink_that_raises_loses_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        agent = Recorder()
        async with serving(agent, "127.0.0.1", 0, KEY) as url:
            reports = Reports()

            def sink(report: Report) -> None:
                if isinstance(report, Progress) and report.token == 2:
                    raise RuntimeError("a fault of the controller")
                reports(report)

            remote = HttpAgent("n1", url, KEY)
            await remote.start(sink)
            agent.say(1, 2, 3)
            await reports.until(Progress, token=3)
            assert tokens(reports.seen) == [1, 3]
            await remote.aclose()

    asyncio.run(main())
    assert "a fault of the controller" in caplog.text


@pytest.mark.slow
def test_cuts_in_the_middle_of_real_invocations(tmp_path: Path) -> None:
    async def main() -> None:
        async with world("http", "process", tmp_path) as w:
            await w.opened()
            for _ in range(10):
                requests = [w.invoke("i1", {"n": n}) for n in range(30)]
                await w.until(Answered, request=requests[3])
                w.proxy.cut()
                await w.until(Answered, request=requests[-1])
            answered = w.reports.all(Answered)
            assert [report.request for report in answered] == list(range(1, 301))
            assert [json.loads(report.body)["n"] for report in answered] == list(range(30)) * 10

    asyncio.run(main())
