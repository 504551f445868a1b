"""Sources by name, the shelf's answers, object storage."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from instainfer.artifacts.directory import Directory
from instainfer.artifacts.open import source
from instainfer.artifacts.peer import Peer
from instainfer.artifacts.source import Source, Store
from instainfer.errors import BadInput, BadSettings, InstaInferError, NotFound, Unavailable
from tests.artifacts.helpers import content, digest, keep, raw, shelf

DATA = content(2_500_000)
NAME = digest(DATA)


async def read(one: Source, name: str = NAME, start: int = 0) -> bytes:
    return b"".join([part async for part in one.read(name, start)])


def test_by_name() -> None:
    assert isinstance(source("/shared"), Directory)
    peer = source("http://10.0.0.1:3233", "secret")
    assert isinstance(peer, Peer) and "secret" not in peer.name
    assert not isinstance(peer, Store) and isinstance(source("/shared"), Store)
    for text in ("shared", "ftp://x", "http://", "http://user:key@host", "http://host?x=1", ""):
        with pytest.raises(BadSettings):
            source(text)


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-0", 206, DATA[:1]),
        ("bytes=100-", 206, DATA[100:]),
        ("bytes=-100", 206, DATA[-100:]),
        (f"bytes=0-{10**17}", 206, DATA),
        (f"bytes={len(DATA)}-", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=5-2", 416, b""),
        ("bytes=-", 200, DATA),
        ("bytes=0-1,3-4", 200, DATA),
        ("lines=1-2", 200, DATA),
    ],
)
def test_ranges(tmp_path: Path, asked: str, status: int, expected: bytes) -> None:
    keep(tmp_path / "s", DATA)

    async def work() -> None:
        async with shelf(tmp_path / "s") as url, httpx.AsyncClient() as client:
            answer = await client.get(f"{url}/artifacts/{NAME}", headers={"range": asked})
            assert (answer.status_code, answer.content) == (status, expected)
            if status == 206:
                first = DATA.index(expected) if len(expected) > 1 else 0
                last = first + len(expected) - 1
                assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(DATA)}"

    asyncio.run(work())


def test_other_questions(tmp_path: Path) -> None:
    keep(tmp_path / "s", DATA)
    (tmp_path / "s" / "secret").write_text("x")

    async def work() -> None:
        async with shelf(tmp_path / "s") as url, httpx.AsyncClient() as client:
            head = await client.head(f"{url}/artifacts/{NAME}")
            assert head.status_code == 200 and head.headers["content-length"] == str(len(DATA))
            assert (await client.post(f"{url}/artifacts/{NAME}")).status_code == 405
            assert (await client.get(f"{url}/artifacts/{digest(b'no')}")).status_code == 404
            for name in ("secret", "../secret", "..%2fsecret", "sha256:%2e%2e%2fsecret", ""):
                assert (await client.get(f"{url}/artifacts/{name}")).status_code == 400

    asyncio.run(work())


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Directory(tmp_path / "s")
    with pytest.raises(FileNotFoundError):
        asyncio.run(store.put(NAME, tmp_path / "none"))
    assert list((tmp_path / "s").iterdir()) == []
    (tmp_path / "f").write_bytes(DATA)
    asyncio.run(store.put(NAME, tmp_path / "f"))
    assert asyncio.run(read(store, start=17)) == DATA[17:]
    with pytest.raises(BadInput):
        asyncio.run(read(store, "../f"))


# ---- object storage ------------------------------------------------------------------------------------------


@pytest.fixture
def objects(tmp_path: Path) -> Source:
    pytest.importorskip("obstore")
    from instainfer.artifacts.objects import Objects

    (tmp_path / "bucket").mkdir()
    return Objects(f"file://{tmp_path}/bucket")


def test_objects(objects: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)

    async def work() -> None:
        with pytest.raises(NotFound):
            await read(objects)
        with pytest.raises(NotFound):
            await read(objects, start=5)
        await objects.put(NAME, tmp_path / "f")
        await objects.put(NAME, tmp_path / "f")
        assert await read(objects) == DATA
        assert await read(objects, start=2_000_001) == DATA[2_000_001:]
        assert await read(objects, start=len(DATA)) == b""
        with pytest.raises(BadInput):
            await read(objects, "../f")

    asyncio.run(work())


def test_s3_itself(tmp_path: Path) -> None:
    """The requests of the real client, answered by a server that knows as much of S3 as they need."""
    pytest.importorskip("obstore")
    from instainfer.artifacts.objects import Objects

    keep(tmp_path / "s", DATA)
    asked: list[bytes] = []

    async def s3(head: bytes, writer: asyncio.StreamWriter) -> None:
        asked.append(head)
        path = head.split()[1].decode()
        name = path.removeprefix("/models/artifacts/").partition("?")[0]
        found = (tmp_path / "s" / name).read_bytes() if path.startswith("/models/artifacts/sha256-") else b""
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n") if b": " in line)
        status, extra = b"200 OK", b""
        if b"range" in lines:
            start = int(lines[b"range"].removeprefix(b"bytes=").partition(b"-")[0])
            status = b"206 Partial Content"
            extra = b"content-range: bytes %d-%d/%d\r\n" % (start, len(DATA) - 1, len(DATA))
            found = found[start:]
        fixed = b'etag: "x"\r\nlast-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nconnection: close\r\n'
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s%s\r\n" % (status, len(found), fixed, extra))
        writer.write(found if not head.startswith(b"HEAD") else b"")
        await writer.drain()

    async def work() -> None:
        async with raw(s3) as url:
            options = {"endpoint": url, "access_key_id": "id", "secret_access_key": "never sent", "region": "r"}
            one = Objects("s3://models/artifacts", **options, client_options={"allow_http": True})
            assert await read(one) == DATA
            assert await read(one, start=1000) == DATA[1000:]
            assert await read(one, start=len(DATA)) == b""

    asyncio.run(work())
    assert b"authorization: AWS4-HMAC-SHA256" in asked[0] and not any(b"never sent" in head for head in asked)


def test_s3_that_cannot_be_reached_and_urls_that_are_none() -> None:
    pytest.importorskip("obstore")
    from instainfer.artifacts.objects import Objects

    one = Objects(
        "s3://models",
        endpoint="http://127.0.0.1:1",
        access_key_id="id",
        secret_access_key="x",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    with pytest.raises(Unavailable) as failed:
        asyncio.run(read(one))
    assert isinstance(failed.value, InstaInferError)
    with pytest.raises(BadSettings):
        Objects("s4://x")
