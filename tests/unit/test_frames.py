"""The codec: any split of the stream gives the same frames, and nothing else gets through."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instainfer.runtime import frames

Frame = tuple[int, int, dict[str, Any], bytes]

metas = st.dictionaries(
    st.text(max_size=8),
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=20)
    | st.lists(st.integers(), max_size=3),
    max_size=4,
)
a_frame = st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), metas, st.binary(max_size=200))


def written(some: Sequence[Frame]) -> bytes:
    return b"".join(frames.encode(*frame) for frame in some)


@given(st.lists(a_frame, max_size=5), st.data())
def test_any_split_of_the_stream_gives_the_same_frames(some: list[Frame], data: st.DataObject) -> None:
    stream = written(some)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = frames.Decoder()
    got: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == some
    assert decoder.missing == 0


@given(a_frame)
def test_byte_by_byte_what_is_missing_is_exact(frame: Frame) -> None:
    stream = written([frame])
    decoder = frames.Decoder()
    for at in range(len(stream) - 1):
        assert decoder.feed(stream[at : at + 1]) == []
        left = len(stream) - at - 1
        assert decoder.missing == (left if at + 1 >= frames.HEAD.size else 0)
    assert decoder.feed(stream[-1:]) == [frame]


@given(st.lists(a_frame, min_size=1, max_size=3), st.data())
def test_read_frame_reads_the_same_and_ends_at_a_torn_one(some: list[Frame], data: st.DataObject) -> None:
    stream = written(some)
    torn = len(written(some[:-1])) + data.draw(st.integers(0, len(written(some[-1:])) - 1))
    for until, expected in ((len(stream), some), (torn, some[:-1])):
        left, right = socket.socketpair()
        with left, right:
            left.sendall(stream[:until])
            left.shutdown(socket.SHUT_WR)
            got = []
            while (frame := frames.read_frame(right)) is not None:
                got.append(frame)
        assert got == expected


def test_a_body_of_megabytes_over_a_socket() -> None:
    body = bytes(range(256)) * (3 << 12)
    left, right = socket.socketpair()
    with left, right:
        sender = threading.Thread(target=left.sendall, args=(frames.encode(frames.CALL, 5, {"type": ""}, body),))
        sender.start()
        assert frames.read_frame(right) == (frames.CALL, 5, {"type": ""}, body)
        sender.join()


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (frames.HEAD.pack(1001, frames.CALL, 1, 0), "over 1000"),
        (frames.HEAD.pack(10, frames.CALL, 1, 11), "meta of 11 bytes"),
        (frames.HEAD.pack(2, frames.CALL, 1, 2) + b"[]", "not an object"),
        (frames.HEAD.pack(2, frames.CALL, 1, 2) + b"{]", "Expecting"),
        (frames.HEAD.pack(2, frames.CALL, 1, 2) + b"\xff\xff", "utf-8"),
    ],
)
def test_what_nobody_of_ours_writes_is_refused(stream: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        frames.Decoder(largest=1000).feed(stream)


def test_a_meta_nested_too_deep_is_refused() -> None:
    meta = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    stream = frames.HEAD.pack(len(meta), frames.RESULT, 1, len(meta)) + meta
    with pytest.raises(ValueError, match="nested"):
        frames.Decoder().feed(stream)


def test_frames_before_a_torn_one_are_given_at_once() -> None:
    decoder = frames.Decoder()
    first: Frame = (frames.CALL, 1, {"type": "a"}, b"x")
    second: Frame = (frames.CALL, 2, {}, b"y" * 50)
    stream = written([first, second])
    assert decoder.feed(stream[:-20]) == [first]
    assert decoder.missing == 20
    assert decoder.feed(stream[-20:]) == [second]
