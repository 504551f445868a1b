"""The link to a manager, with somebody else at the other end: nothing that is said there may do harm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator

import pytest

from instainfer.agent.link import Exit, Hello, ManagerLink
from instainfer.errors import InstanceCrashed, Unavailable

SPAWNED = b'{"event": "spawned", "instance": "i1", "pid": 2}'
NONSENSE = {
    "not json": b"\xff\xfe hello",
    "no object": b"[1, 2]",
    "no event": b"{}",
    "number": b"7",
    "deep": b"[" * 50_000,
    "unknown event": b'{"event": "sing"}',
    "hello without a pid": b'{"event": "hello"}',
    "hello of a list": b'{"event": "hello", "pid": [1], "python": "3"}',
    "exit of nobody": b'{"event": "exited"}',
    "exit of a list": b'{"event": "exited", "instance": ["i1"], "code": 0, "signal": null}',
    "exit with words": b'{"event": "exited", "instance": "i1", "code": "0", "signal": null}',
    "spawned without descriptors": SPAWNED,
    "its own failure": b'{"event": "failed", "error": "OSError"}',
    "end": b"",
}


@contextlib.asynccontextmanager
async def link() -> AsyncIterator[tuple[ManagerLink, socket.socket, asyncio.Future[str]]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    made = ManagerLink(ours, on_lost=lost.set_result)
    try:
        yield made, theirs, lost
    finally:
        made.close()
        theirs.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 # counted, not walked


@pytest.mark.parametrize("said", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_a_loss(said: bytes) -> None:
    async def run() -> None:
        async with link() as (made, theirs, lost):
            if said:
                theirs.send(said)
            else:
                theirs.close()
            assert await asyncio.wait_for(lost, 10)
            with pytest.raises(Unavailable):
                await made.hello()
            with pytest.raises(Unavailable):
                await made.spawn("i2", ["/bin/true"], {}, "/", attach=lambda pid: None)

    asyncio.run(run())


def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    async def run() -> None:
        async with link() as (_, theirs, lost):
            before = descriptors()
            with open(os.devnull) as null:  # noqa: PTH123, ASYNC230 # opens at once
                socket.send_fds(theirs, [SPAWNED], [null.fileno()] * 3)
                socket.send_fds(theirs, [b'{"event": "hello", "pid": 1, "python": "3"}'], [null.fileno()] * 2)
            assert "descriptors" in await asyncio.wait_for(lost, 10)
            assert descriptors() == before - 1  # and the control socket itself

    asyncio.run(run())


def test_waiters_learn_of_the_loss() -> None:
    async def run() -> None:
        async with link() as (made, theirs, _):
            spawning = asyncio.create_task(made.spawn("i1", ["/bin/true"], {}, "/", attach=lambda pid: None))
            await asyncio.sleep(0)
            assert json.loads(theirs.recv(1 << 18))["instance"] == "i1"
            exited = made.exited("i1")
            theirs.close()
            with pytest.raises(Unavailable, match="gone"):
                await spawning
            assert await exited == Exit()

    asyncio.run(run())


def test_a_refusal_names_the_reason() -> None:
    async def run() -> None:
        async with link() as (made, theirs, lost):
            theirs.send(b'{"event": "hello", "pid": 1, "python": "3.11.7"}')
            assert await made.hello() == Hello(1, "3.11.7")
            theirs.send(b'{"event": "refused", "instance": "i1", "error": "no more processes"}')
            with pytest.raises(Unavailable, match="no more processes"):
                await made.spawn("i1", ["/bin/true"], {}, "/", attach=lambda pid: None)
            assert not lost.done()

    asyncio.run(run())


@pytest.mark.parametrize("said", [b"", b"X"])
def test_a_child_that_does_not_say_the_word_is_not_let_go(said: bytes) -> None:
    async def run() -> None:
        attached: list[int] = []
        async with link() as (made, theirs, _):
            before = descriptors()
            ours, child = socket.socketpair()
            out, out_in = os.pipe()
            err, err_in = os.pipe()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            socket.send_fds(theirs, [SPAWNED], [ours.fileno(), out, err])
            os.write(err_in, b"cannot become uid 5: no\n")
            if said:
                child.send(said)
            else:
                child.close()
            for fd in (ours.detach(), out, out_in, err, err_in):
                os.close(fd)
            with pytest.raises(InstanceCrashed) as caught:
                await made.spawn("i1", ["/bin/true"], {}, "/", attach=attached.append)
            child.close()
            assert caught.value.detail == "cannot become uid 5: no"
            assert attached == []
            assert descriptors() == before

    asyncio.run(run())


def test_more_than_the_socket_holds_is_sent_in_order() -> None:
    async def run() -> None:
        async with link() as (made, theirs, _):
            names = [f"i{n}" for n in range(40)]
            big = {"BIG": "x" * 100_000}
            spawns = [asyncio.create_task(made.spawn(n, ["/x"], big, "/", attach=lambda pid: None)) for n in names]
            await asyncio.sleep(0)
            heard: list[str] = []
            while len(heard) < len(names):
                with contextlib.suppress(BlockingIOError):
                    heard.append(json.loads(theirs.recv(1 << 18))["instance"])
                await asyncio.sleep(0)
            assert heard == names
            theirs.close()
            ended = await asyncio.gather(*spawns, return_exceptions=True)
            assert all(isinstance(end, Unavailable) for end in ended)

    asyncio.run(run())
