"""The hosts of a Ray cluster, by way of a driver process (cluster/ray.py). When that dies, with its raylet or by
itself, another one is started; meanwhile everybody is where they were last seen. That is kept in a file, so that a
server can be started while there is no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import logging
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from instainfer.agent.base import Agent
from instainfer.agent.http_client import HttpAgent
from instainfer.cluster.base import Change, Joined, Lost, Member, Resized, Suspect
from instainfer.errors import BadSettings, Unavailable

log = logging.getLogger(__name__)

START_S = 60.0
AGAIN_S = 1.0  # before another driver is started
GONE_S = 10.0  # a host that Ray has not had for so long is lost to us, too
ANSWER_S = 120.0
KNOWN = "hosts.json"  # in the data directory
LEAST = 1_000_000  # bytes: with less there is no node


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A host as it was last, and where its agent was."""

    member: Member
    url: str


def agent_data(data: Path, node: str) -> Path:
    """Where a node's agent keeps its own, on its host."""
    return data / "agents" / node.replace("/", "_")


class RayHosts:
    """`address`: HOST:PORT of the cluster's GCS (what `ray start --address` takes), or "": of the cluster that
    this host is in. Either way a raylet runs on this host. `data`: agents keep theirs below it, each on its own
    host; `environ`: settings that they are started with; `grow_s`: memory of a host that nobody has held for so
    long is asked for, 0: it is not."""

    def __init__(
        self,
        address: str,
        key: str,
        data: Path,
        *,
        epoch: int,
        lost_s: float,
        environ: Mapping[str, str] | None = None,
        gone_s: float = GONE_S,
        grow_s: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._address = address
        self._key = key
        self._data = data
        self._epoch = epoch
        self._lost_s = lost_s
        self._environ = dict(environ or {})
        self._gone_s = gone_s
        self._grow_s = grow_s
        self._tls = tls
        self._members: dict[str, Member] = {}
        self._missed: dict[str, asyncio.TimerHandle] = {}
        self._known = _read(data / KNOWN)
        self._writing = asyncio.Lock()  # of that file
        self._changes: asyncio.Queue[Change] = asyncio.Queue()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._seen = asyncio.Event()  # the present driver has looked
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise BadSettings("Ray is not installed here", hint="pip install 'instainfer[ray]'")
        failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._keeping = asyncio.create_task(self._keep(failed))
        seen = asyncio.create_task(self._seen.wait())
        either: set[asyncio.Future[Any]] = {seen, failed}
        await asyncio.wait(either, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if not self._seen.is_set():
            said = failed.result() if failed.done() else f"it said nothing in {START_S:g} s"
            seen.cancel()
            if self._known:
                log.warning("Ray cannot be joined now, the hosts that it had last are asked: %s", said)
                for node, known in self._known.items():
                    self._members.setdefault(node, known.member)
                    self._changes.put_nowait(Joined(member=known.member))
                return
            await self.aclose()
            raise Unavailable(
                f"the Ray cluster {self._address or 'of this host'} cannot be joined: {said}",
                hint="does `ray status` work on this host, with the same RAY_AUTH_MODE and token?",
            )

    def members(self) -> dict[str, Member]:
        return dict(self._members)

    async def ensure_agent(self, node: str) -> Agent:
        member = self._members.get(node)
        if member is not None and not self._seen.is_set() and node in self._known:
            return self._agent(node, self._known[node].url)
        if member is None or self._writer is None:
            raise Unavailable(f"Ray has no host {node} now", hint="`ray status` shows its hosts")
        environ = dict(self._environ)
        if member.warm:
            await self._ask({"node": node, "reserve": True})
            member = self._members.get(node, member)
            if member.warm < LEAST:
                said = f"other work on the cluster has all the memory of {node}"
                raise Unavailable(said, hint="`ray status` shows who has its warm_mb", retry_after_s=AGAIN_S)
            environ["INSTAINFER_NODE__MEMORY"] = str(max(member.warm, member.most))  # what it has, `warm` says
        data = str(agent_data(self._data, node))
        url = await self._ask({"node": node, "data": data, "key": self._key, "environ": environ})
        await self._know({**self._known, node: Known(member=member, url=url)})
        return self._agent(node, url)

    async def release(self, node: str) -> None:
        """Raises Unavailable."""
        await self._ask({"node": node, "reserve": False})

    async def reserve(self, node: str) -> None:
        """Raises Unavailable."""
        await self._ask({"node": node, "reserve": True})

    async def _ask(self, request: dict[str, Any]) -> str:
        if self._writer is None:
            raise Unavailable("the Ray driver is being started", retry_after_s=AGAIN_S)
        number, node = next(self._numbers), request["node"]
        asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        try:
            self._writer.write(json.dumps({"id": number, **request}).encode() + b"\n")
            async with asyncio.timeout(ANSWER_S):
                return await asked
        except TimeoutError:
            said = f"the stub on {node} did not answer in {ANSWER_S:g} s"
            raise Unavailable(said, hint="see agent.log there, and `ray list actors`") from None
        finally:
            self._asked.pop(number, None)

    def _agent(self, node: str, url: str) -> Agent:
        return HttpAgent(node, url, self._key, lost_s=self._lost_s, epoch=self._epoch, stays=True, tls=self._tls)

    async def _know(self, known: dict[str, Known]) -> None:
        if known == self._known:
            return
        self._known = known
        try:
            async with self._writing:
                await asyncio.to_thread(_write, self._data / KNOWN, self._known)
        except OSError as error:
            log.warning("where agents are is not remembered: %s", error)

    async def watch(self) -> AsyncIterator[Change]:
        while True:
            yield await self._changes.get()

    async def aclose(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        for timer in self._missed.values():
            timer.cancel()

    # ---- the driver

    async def _keep(self, failed: asyncio.Future[str]) -> None:
        while True:
            said = await self._drive()
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_exception(Unavailable(f"the Ray driver ended: {said}", retry_after_s=1.0))
            if not failed.done() and not self._seen.is_set():
                failed.set_result(said)
            log.warning("the Ray driver ended, another one is started: %s", said)
            await asyncio.sleep(AGAIN_S)

    async def _drive(self) -> str:
        """One of them, to its end. Returns its last words."""
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "instainfer.cluster",
                    str(theirs.fileno()),
                    self._address,
                    str(self._grow_s),
                ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                cwd="/",
            )
        assert process.stderr is not None
        self._writer = writer
        words = asyncio.create_task(process.stderr.read())
        try:
            while line := await reader.readline():
                self._heard(json.loads(line))
        except (OSError, ValueError) as error:
            log.warning("the Ray driver cannot be understood: %s", error)
        finally:
            self._writer = None
            self._seen.clear()
            writer.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        said = (await words).decode(errors="replace").strip().splitlines()
        return said[-1][-300:] if said else f"with status {process.returncode}"

    def _heard(self, said: dict[str, Any]) -> None:
        if "nodes" in said:
            self._looked({entry["node"]: msgspec.convert(entry, Member) for entry in said["nodes"]})
            self._seen.set()
            return
        asked = self._asked.get(said["id"])
        if asked is None or asked.done():
            return
        if "url" in said:
            asked.set_result(said["url"])
        else:
            asked.set_exception(Unavailable(f"no agent: {said['error']}", hint="see agent.log on that host"))

    def _looked(self, there: dict[str, Member]) -> None:
        for node, member in there.items():
            timer = self._missed.pop(node, None)
            if timer is not None:
                timer.cancel()
            before = self._members.get(node)
            self._members[node] = member
            if timer is not None or before is None:
                self._changes.put_nowait(Joined(member=member))
            elif member.warm != before.warm:
                self._changes.put_nowait(Resized(member=member))
        for node in self._members.keys() - there.keys() - self._missed.keys():
            self._changes.put_nowait(Suspect(node=node))
            self._missed[node] = asyncio.get_running_loop().call_later(self._gone_s, self._gone, node)

    def _gone(self, node: str) -> None:
        self._missed.pop(node, None)
        self._members.pop(node, None)
        self._known = {other: known for other, known in self._known.items() if other != node}
        self._changes.put_nowait(Lost(node=node))


def _read(file: Path) -> dict[str, Known]:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Known])
    return {}


def _write(file: Path, known: dict[str, Known]) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(known))
    new.replace(file)
