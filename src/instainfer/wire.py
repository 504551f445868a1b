"""Messages between a controller and the agents of other nodes, sans I/O.

A message is a u32 length (network order) and that many bytes of msgpack: a tagged struct of a known union. A
length of zero is a beat: nothing, said to show that one is there.
"""

from __future__ import annotations

import struct
from typing import Any, Generic, TypeVar

import msgspec

from instainfer.errors import BadInput

HEAD = struct.Struct("!I")
BEAT = HEAD.pack(0)
LARGEST = 1 << 30

Message = TypeVar("Message")

_encode = msgspec.msgpack.Encoder().encode


def encode(message: msgspec.Struct) -> bytes:
    """One framed message. Raises UnicodeEncodeError for text that is not Unicode (lone surrogates)."""
    body = _encode(message)
    return HEAD.pack(len(body)) + body


class Decoder(Generic[Message]):
    """Bytes in, messages of one union out; beats are left out.

    Raises BadInput on what is no such message; the stream cannot be used after it.
    """

    def __init__(self, union: Any, largest: int = LARGEST) -> None:
        self._decode: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(union)
        self._buffer = bytearray()
        self._largest = largest

    @property
    def whole(self) -> bool:
        """Whether what came so far ends with the end of a message."""
        return not self._buffer

    def feed(self, data: bytes) -> list[Message]:
        buffer = self._buffer
        buffer += data
        found: list[Message] = []
        at = 0
        with memoryview(buffer) as view:  # released before the buffer shrinks
            while len(buffer) - at >= HEAD.size:
                (length,) = HEAD.unpack_from(buffer, at)
                if length > self._largest:
                    raise BadInput(f"a message of {length} bytes is over {self._largest}")
                end = at + HEAD.size + length
                if len(buffer) < end:
                    break
                if length:
                    with view[at + HEAD.size : end] as body:
                        found.append(self._decoded(body))
                at = end
        del buffer[:at]
        return found

    def _decoded(self, body: memoryview) -> Message:
        try:
            return self._decode.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadInput(
                f"no message of ours: {error}", hint="controller and agents have to be of one version"
            ) from None
