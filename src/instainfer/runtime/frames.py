"""Frames between the platform and an instance, sans I/O.

A frame is a 13-byte head, a JSON meta part and a body that nobody on the way parses:

    u32 length of meta + body | u8 kind | u32 request | u32 length of meta
"""

from __future__ import annotations

import json
import struct

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    import socket

HEAD = struct.Struct("!IBII")

# platform -> instance
GO = 1  # meta: the instance spec; the first frame
RAISE = 2  # meta: {"level": int}
CALL = 3  # meta: {"type": content type, "activation": id}, body: the payload
STOP = 4  # end in good order
CANCEL = 5  # nobody wants the rest of what this request streams

# instance -> platform
READY = 10  # meta: {"level", "import_s", "load_s", "aside_s" (writing a snapshot), "warmup_s", "first_s",
#             "modules", "tasks", "answer", "digest", "snapshot": {"written" | "restored" | "refused"},
#             "unforkable", "intercepted"}
FAILED = 11  # meta: {"phase", "error", "trace"}; the process exits after it
RESULT = 12  # meta: {"type": content type, "s": seconds of inference}, body: the answer
PART = 14  # meta: {"type"}, body: a part of an answer that is streamed; a RESULT without a body ends it
ERROR = 13  # meta: {"phase", "error", "trace", "s", "bad_input": bool}; the instance lives on

LARGEST = 1 << 30

_dumps = json.JSONEncoder(separators=(",", ":")).encode  # kept: json.dumps makes one per call
loads = json.JSONDecoder().decode


def encode(kind: int, request: int = 0, meta: dict | bytes | None = None, body: bytes = b"") -> bytes:
    """One frame as bytes. `meta` may be JSON already: whoever has a faster encoder uses it."""
    head = meta if isinstance(meta, bytes) else _dumps(meta).encode() if meta else b""
    return b"".join((HEAD.pack(len(head) + len(body), kind, request, len(head)), head, body))


class Decoder:
    """Bytes in, frames out: `feed` returns [(kind, request, meta, body)].

    Raises ValueError on a frame that nobody of ours would write; the stream cannot be used after it.
    `missing` is how many bytes the frame begun still needs (0 when its head is not here yet): how much to
    ask the socket for.
    """

    def __init__(self, largest: int = LARGEST) -> None:
        self._buffer = bytearray()
        self._largest = largest
        self.missing = 0

    def feed(self, data: bytes) -> list[tuple[int, int, dict, bytes]]:
        buffer = self._buffer
        buffer += data
        found = []
        at = missing = 0
        while len(buffer) - at >= HEAD.size:
            length, kind, request, meta_length = HEAD.unpack_from(buffer, at)
            _check(length, meta_length, self._largest)
            start = at + HEAD.size
            body_at = start + meta_length
            end = start + length
            if len(buffer) < end:
                missing = end - len(buffer)
                break
            with memoryview(buffer) as view:  # released before the buffer shrinks
                meta = _meta(bytes(view[start:body_at]))
                found.append((kind, request, meta, bytes(view[body_at:end])))
            at = end
        if at:
            del buffer[:at]
        self.missing = missing
        return found


def read_frame(sock: socket.socket) -> tuple[int, int, dict, bytes] | None:
    """The next frame from a blocking socket, or None at its end."""
    head = _exactly(sock, HEAD.size)
    if head is None:
        return None
    length, kind, request, meta_length = HEAD.unpack(head)
    _check(length, meta_length, LARGEST)
    meta = _exactly(sock, meta_length) if meta_length else b""
    body = _exactly(sock, length - meta_length) if length > meta_length else b""
    if meta is None or body is None:
        return None
    return kind, request, _meta(meta), body


def _check(length: int, meta_length: int, largest: int) -> None:
    if length > largest:
        raise ValueError("frame of %d bytes is over %d" % (length, largest))
    if meta_length > length:
        raise ValueError("meta of %d bytes in a frame of %d" % (meta_length, length))


def _meta(data: bytes) -> dict:
    if not data:
        return {}
    try:
        meta = loads(data.decode())
    except RecursionError:  # nested on purpose: the other end may be a tenant's
        raise ValueError("meta is nested too deep") from None
    if not isinstance(meta, dict):
        raise ValueError("meta is not an object")
    return meta


def _exactly(sock: socket.socket, count: int) -> bytes | None:
    data = sock.recv(count)
    if len(data) == count:
        return data
    parts = bytearray(data)
    while len(parts) < count:
        data = sock.recv(min(count - len(parts), 1 << 20))
        if not data:
            return None
        parts += data
    return bytes(parts)
