"""What a server and its shadows say to each other, over two pipes: length-prefixed msgpack.

Down: one Start, then (moment, event) pairs in their order, and Ticks between them. Up: a Report for each Tick.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import msgspec

from instainfer.core import events as ev
from instainfer.core.events import AnyEvent

LENGTH = 4

#: What comes from outside and would have happened under any policy. All other events are consequences of what
#: the live policy decided, and a shadow has its own.
FOLLOWED: frozenset[type[ev.Event]] = frozenset(
    {
        ev.NodeJoined,
        ev.NodeLost,
        ev.NodeClosed,
        ev.NodeOpened,
        ev.NodeResized,
        ev.FunctionDeployed,
        ev.FunctionDeleted,
        ev.RequestArrived,
        ev.RequestCancelled,
        ev.NamespaceLimited,
        ev.HintReceived,
        ev.PreloadRequested,
        ev.OffloadRequested,
        ev.PinChanged,
    }
)


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Which policies, as the registry reads them, and the server's settings that bear on them. `at`: the moment
    from which it counts."""

    mode: str
    predictor: str
    keep_alive: str
    keep_alive_s: float
    queue_limit: int
    give_up_s: float
    at: float = 0.0

    @property
    def name(self) -> str:
        """As one asks for it, predictor and all."""
        return f"{self.mode}:{self.predictor}"


class Tick(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It is `now`; all that happened before has been told."""

    number: int
    now: float


class Report(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The figures so far, when that Tick had been reached."""

    tick: int
    now: float
    events: int  # followed
    row: dict[str, Any]


class Gave(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It cannot go on."""

    reason: str


_encoder = msgspec.msgpack.Encoder()
_told: msgspec.msgpack.Decoder[Start | Tick | tuple[float, AnyEvent]] = msgspec.msgpack.Decoder(
    Start | Tick | tuple[float, AnyEvent]
)
_reported: msgspec.msgpack.Decoder[Report | Gave] = msgspec.msgpack.Decoder(Report | Gave)


def put(message: Start | Tick | Report | Gave | tuple[float, AnyEvent], buffer: bytearray) -> None:
    """Append it, ready to be sent."""
    start = len(buffer)
    _encoder.encode_into(message, buffer, start + LENGTH)
    buffer[start : start + LENGTH] = (len(buffer) - start - LENGTH).to_bytes(LENGTH, "big")


def packed(message: Start | Tick | Report | Gave | tuple[float, AnyEvent]) -> bytes:
    buffer = bytearray()
    put(message, buffer)
    return bytes(buffer)


def take(file: BinaryIO) -> Start | Tick | tuple[float, AnyEvent] | None:
    """The next message to a shadow; None at the end, also in the middle of one."""
    prefix = file.read(LENGTH)
    if len(prefix) < LENGTH:
        return None
    size = int.from_bytes(prefix, "big")
    data = file.read(size)
    return None if len(data) < size else _told.decode(data)


def reported(data: bytes) -> Report | Gave:
    return _reported.decode(data)
