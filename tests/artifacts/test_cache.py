"""The cache: whole or nothing, whoever sends what."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from instainfer.artifacts.cache import Cache
from instainfer.artifacts.directory import Directory
from instainfer.artifacts.peer import Peer
from instainfer.errors import BadInput, NotFound, TooLarge, Unavailable
from tests.artifacts.helpers import Fake, content, digest, empty, keep, raw, sending, shelf

DATA = content(300_000)
NAME = digest(DATA)
BUDGET = 1 << 20


def held(cache: Cache, name: str = NAME, most: int | None = None) -> bytes:
    async def work() -> bytes:
        async with cache.hold(name, most=most) as path:
            return path.read_bytes()

    return asyncio.run(work())


def files(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.root.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "sha256:../../../../etc/passwd",
        "sha256:" + "a" * 63,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "a" * 62 + "/x",
        "md5:" + "a" * 32,
        "",
        "\0",
    ],
)
def test_what_is_no_digest_reaches_no_source_and_no_path(tmp_path: Path, name: str) -> None:
    source = sending(DATA)
    cache = Cache(tmp_path / "c", BUDGET, [source])
    with pytest.raises(BadInput):
        held(cache, name)
    with pytest.raises(BadInput):
        cache.find(name)
    assert source.asked == [] and files(cache) == []


def test_it_is_pulled_once_and_found_again_after_a_restart(tmp_path: Path) -> None:
    source = sending(DATA)
    assert held(Cache(tmp_path / "c", BUDGET, [source])) == DATA
    again = Cache(tmp_path / "c", BUDGET)
    assert held(again) == DATA and again.bytes == len(DATA)
    assert len(source.asked) == 1
    assert (tmp_path / "c" / NAME.replace(":", "-")).stat().st_mode & 0o777 == 0o400


def test_of_nothing(tmp_path: Path) -> None:
    assert held(Cache(tmp_path / "c", BUDGET, [sending(b"")]), digest(b"")) == b""


def test_a_cut_one_goes_on_where_it_stopped(tmp_path: Path) -> None:
    source = sending(DATA, stop=100_000, error=ConnectionResetError("cut"))
    cache = Cache(tmp_path / "c", BUDGET, [source])
    assert held(cache) == DATA
    assert [start for _, start in source.asked] == [0, 100_000, 200_000]


def test_the_next_process_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    first = sending(DATA, stop=100_000, error=ConnectionResetError("cut"))

    async def dies(_: str, start: int) -> AsyncIterator[bytes]:
        if not start:
            yield DATA[:123_456]
        raise ConnectionResetError("down")

    with pytest.raises(Unavailable):
        held(Cache(tmp_path / "c", BUDGET, [Fake(dies)]))
    cache = Cache(tmp_path / "c", BUDGET, [first])
    assert cache.bytes == 123_456 and cache.find(NAME) is None
    assert held(cache) == DATA
    assert first.asked[0] == (NAME, 123_456)


def test_another_source_goes_on_with_it(tmp_path: Path) -> None:
    async def dies(_: str, start: int) -> AsyncIterator[bytes]:
        yield DATA[start : start + 1000] if not start else b""
        raise OSError("broken")

    good = sending(DATA)
    assert held(Cache(tmp_path / "c", BUDGET, [empty(), Fake(dies), good])) == DATA
    assert good.asked == [(NAME, 1000)]


def test_what_ends_early_is_never_taken_for_whole(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", BUDGET, [sending(DATA[:-1])])
    with pytest.raises(Unavailable, match="something else"):
        held(cache)
    assert files(cache) == [] and cache.bytes == 0


def test_one_wrong_bit_is_noticed_and_the_next_source_asked_from_the_start(tmp_path: Path) -> None:
    wrong = bytearray(DATA)
    wrong[200_000] ^= 1
    bad, good = sending(bytes(wrong)), sending(DATA)
    assert held(Cache(tmp_path / "c", BUDGET, [bad, good])) == DATA
    assert good.asked == [(NAME, 0)] and len(bad.asked) == 1


def test_a_good_source_is_asked_again_where_the_part_of_another_was_wrong(tmp_path: Path) -> None:
    bad = sending(content(300_000, seed=1), stop=50_000, error=OSError("broken"))
    good = sending(DATA)
    assert held(Cache(tmp_path / "c", BUDGET, [bad, good])) == DATA
    assert good.asked == [(NAME, 50_000), (NAME, 0)]


def test_a_damaged_part_of_an_earlier_run_is_thrown_away(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", BUDGET)
    (cache.root / f"{NAME.replace(':', '-')}.part").write_bytes(b"x" * 5000)
    good = sending(DATA)
    assert held(Cache(tmp_path / "c", BUDGET, [good])) == DATA
    assert good.asked == [(NAME, 5000), (NAME, 0)]


def test_a_part_that_is_longer_than_all_of_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", BUDGET)
    (cache.root / f"{NAME.replace(':', '-')}.part").write_bytes(DATA + b"more")
    good = sending(DATA)
    assert held(Cache(tmp_path / "c", BUDGET, [good])) == DATA
    assert good.asked[-1] == (NAME, 0)


def test_a_source_without_an_end_is_stopped(tmp_path: Path) -> None:
    async def endless(_: str, start: int) -> AsyncIterator[bytes]:
        while True:
            yield bytes(10_000)

    cache = Cache(tmp_path / "c", BUDGET, [Fake(endless)])
    with pytest.raises(TooLarge):
        held(cache, most=400_000)
    assert files(cache) == []
    cache.sources.append(sending(DATA))
    assert held(cache, most=400_000) == DATA  # it keeps nobody from asking the others
    with pytest.raises(TooLarge):
        held(cache, most=1000)


def test_a_silent_source_is_left_for_the_next(tmp_path: Path) -> None:
    async def silent(_: str, start: int) -> AsyncIterator[bytes]:
        yield DATA[:1000]
        await asyncio.Event().wait()

    good = sending(DATA)
    assert held(Cache(tmp_path / "c", BUDGET, [Fake(silent), good], stall_s=0.05)) == DATA
    assert good.asked == [(NAME, 1000)]


def test_a_trickling_source_is_left_for_the_next(tmp_path: Path) -> None:
    async def trickle(_: str, start: int) -> AsyncIterator[bytes]:
        for at in range(start, len(DATA)):
            yield DATA[at : at + 1]
            await asyncio.sleep(0.001)

    slow, good = Fake(trickle, "slow"), sending(DATA)
    assert held(Cache(tmp_path / "c", BUDGET, [slow, good], stall_s=0.05, least=100_000)) == DATA
    assert len(slow.asked) == 1 and 0 < good.asked[0][1] < len(DATA)


def test_nobody_has_it(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="one does not have it; two"):
        held(Cache(tmp_path / "c", BUDGET, [empty("one"), empty("two")]))
    with pytest.raises(NotFound, match="no sources"):
        held(Cache(tmp_path / "c", BUDGET))


def test_many_who_ask_at_once_pull_it_once(tmp_path: Path) -> None:
    async def work() -> None:
        gate = asyncio.Event()

        async def waits(_: str, start: int) -> AsyncIterator[bytes]:
            await gate.wait()
            yield DATA[start:]

        source = Fake(waits)
        cache = Cache(tmp_path / "c", BUDGET, [source])

        async def one() -> bytes:
            async with cache.hold(NAME) as path:
                return path.read_bytes()

        impatient = asyncio.create_task(one())
        others = [asyncio.create_task(one()) for _ in range(20)]
        for _ in range(5):  # turns of the loop: all of them wait now
            await asyncio.sleep(0)
        assert source.asked
        impatient.cancel()
        gate.set()
        assert await asyncio.gather(*others) == [DATA] * 20
        assert impatient.cancelled() and len(source.asked) == 1

    asyncio.run(work())


def test_a_failed_pull_is_begun_anew_by_who_asks_next(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", BUDGET, [empty()])
    with pytest.raises(NotFound):
        held(cache)
    cache.sources.append(sending(DATA))
    assert held(cache) == DATA


def test_what_was_used_longest_ago_goes_first_and_nothing_that_is_in_use(tmp_path: Path) -> None:
    parts = [content(300_000, seed) for seed in range(4)]
    names = [keep(tmp_path / "s", part) for part in parts]

    async def work() -> None:
        cache = Cache(tmp_path / "c", 1_000_000, [Directory(tmp_path / "s")])
        async with cache.hold(names[0]):
            for name in names[1:3]:
                async with cache.hold(name):
                    pass
            async with cache.hold(names[1]):
                pass  # used since
            async with cache.hold(names[3]):
                there = [cache.find(name) is not None for name in names]
                assert there == [True, True, False, True]  # the first is older, but in use
                assert cache.bytes <= 1_000_000 and len(files(cache)) == 3

    asyncio.run(work())
    cache = Cache(tmp_path / "c", 1_000_000, [Directory(tmp_path / "s")])
    os.utime(cache.root / names[3].replace(":", "-"), (1, 1))
    held(Cache(tmp_path / "c", 1_000_000, [Directory(tmp_path / "s")]), names[2])
    assert names[3].replace(":", "-") not in files(cache)  # the order outlives the process


def test_no_room_beside_what_is_in_use(tmp_path: Path) -> None:
    first, second = (keep(tmp_path / "s", content(300_000, seed)) for seed in range(2))

    async def work() -> None:
        cache = Cache(tmp_path / "c", 500_000, [Directory(tmp_path / "s")])
        async with cache.hold(first) as path:
            with pytest.raises(Unavailable, match="no room"):
                async with cache.hold(second):
                    pass
            assert path.exists()
        async with cache.hold(second):
            assert cache.find(first) is None

    asyncio.run(work())


def test_a_part_that_nobody_wants_makes_room_first(tmp_path: Path) -> None:
    async def dies(_: str, start: int) -> AsyncIterator[bytes]:
        yield content(300_000, 5)[start : start + 200_000]
        raise OSError("broken")

    wanted = keep(tmp_path / "s", DATA)
    cache = Cache(tmp_path / "c", 400_000, [Fake(dies)])
    with pytest.raises(Unavailable):
        held(cache, digest(content(300_001, 5)))
    assert cache.bytes > 0
    cache.sources = [Directory(tmp_path / "s")]
    assert held(cache, wanted) == DATA
    assert files(cache) == [NAME.replace(":", "-")]


def test_what_was_made_here_is_linked_and_published(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_bytes(DATA)
    store = Directory(tmp_path / "store")

    async def work() -> None:
        cache = Cache(tmp_path / "c", BUDGET, [sending(DATA), store])
        assert await cache.add(made) == NAME
        found = cache.find(NAME)
        assert found is not None and found.stat().st_ino == made.stat().st_ino
        await cache.publish(NAME)
        await cache.publish(NAME)

    asyncio.run(work())
    assert [path.name for path in (tmp_path / "store").iterdir()] == [NAME.replace(":", "-")]
    assert held(Cache(tmp_path / "other", BUDGET, [store])) == DATA


def test_remains_of_a_killed_add_go_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".sha256-x.tmp").write_bytes(b"x")
    assert files(Cache(tmp_path / "c", BUDGET)) == []


# ---- real ones ---------------------------------------------------------------------------------------------


def test_a_folder_whose_file_is_a_link_or_a_fifo_gives_nothing(tmp_path: Path) -> None:
    root = tmp_path / "s"
    root.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    path = root / NAME.replace(":", "-")
    path.symlink_to(secret)
    with pytest.raises(Unavailable):
        held(Cache(tmp_path / "c", BUDGET, [Directory(root)]))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Unavailable, match="not a file"):
        held(Cache(tmp_path / "c", BUDGET, [Directory(root)]))


def test_from_another_node(tmp_path: Path) -> None:
    keep(tmp_path / "s", DATA)

    async def work() -> None:
        async with shelf(tmp_path / "s", key="k") as url:
            with pytest.raises(Unavailable, match="401"):
                async with Cache(tmp_path / "c", BUDGET, [Peer(url, "wrong")]).hold(NAME):
                    pass
            cache = Cache(tmp_path / "c", BUDGET, [Peer(url, "k")])
            (cache.root / f"{NAME.replace(':', '-')}.part").write_bytes(DATA[:100_001])
            async with cache.hold(NAME) as path:
                assert path.read_bytes() == DATA
            with pytest.raises(NotFound):
                async with cache.hold(digest(b"other")):
                    pass
            await cache.aclose()

    asyncio.run(work())


def test_a_whole_part_asks_for_nothing_behind_its_end(tmp_path: Path) -> None:
    keep(tmp_path / "s", DATA)

    async def work() -> None:
        async with shelf(tmp_path / "s") as url:
            cache = Cache(tmp_path / "c", BUDGET, [Peer(url)])
            (cache.root / f"{NAME.replace(':', '-')}.part").write_bytes(DATA)
            async with cache.hold(NAME) as path:
                assert path.read_bytes() == DATA
            await cache.aclose()

    asyncio.run(work())


def test_a_node_that_dies_in_the_middle_and_one_that_knows_no_ranges(tmp_path: Path) -> None:
    async def dies(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(DATA) + DATA[:90_000])
        await writer.drain()

    async def whole(head: bytes, writer: asyncio.StreamWriter) -> None:
        assert b"range: bytes=90000-" in head.lower()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(DATA) + DATA)
        await writer.drain()

    async def work() -> None:
        async with raw(dies) as one, raw(whole) as two:
            cache = Cache(tmp_path / "c", BUDGET, [Peer(one), Peer(two)])
            async with cache.hold(NAME) as path:
                assert path.read_bytes() == DATA
            await cache.aclose()

    asyncio.run(work())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-9/10\r\ncontent-length: 10\r\n\r\n0123456789",
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"",
    ],
)
def test_strange_answers(tmp_path: Path, answer: bytes) -> None:
    async def strange(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    async def work() -> None:
        async with raw(strange) as url:
            cache = Cache(tmp_path / "c", BUDGET, [Peer(url)])
            (cache.root / f"{NAME.replace(':', '-')}.part").write_bytes(DATA[:10])
            with pytest.raises(Unavailable):
                async with cache.hold(NAME):
                    pass
            await cache.aclose()

    asyncio.run(work())


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        held(Cache(tmp_path / "c", BUDGET, [Peer("http://127.0.0.1:1")]))
