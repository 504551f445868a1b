"""The gateways that send this server requests, as far as they say so: every look for who serves carries who looks.

Anybody may say so, since no key is asked for where they look. So it is a matter of show: nothing is decided by it,
and not much of it is kept.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

HELLO = "x-instainfer-gateway"  # name=…&url=…&held=…&sent_again=…&refused=…
HEARD_S = 10.0  # one that looked so long ago is gone
MOST, LONGEST = 64, 512
_COUNTS = ("held", "sent_again", "refused", "interrupted")


class Fronts:
    def __init__(self) -> None:
        self._heard: dict[str, tuple[float, dict[str, Any]]] = {}  # by name, the latest last

    def heard(self, said: str, now: float) -> None:
        told = dict(parse_qsl(said[:LONGEST], max_num_fields=16)) if said.isprintable() else {}
        name = told.get("name", "")
        if not name:
            return
        counts = {key: int(told[key]) for key in _COUNTS if told.get(key, "").isdecimal()}
        self._heard.pop(name, None)
        self._heard[name] = now, {"name": name, "url": told.get("url", ""), **counts}
        while len(self._heard) > MOST:
            del self._heard[next(iter(self._heard))]

    def now(self, now: float) -> list[dict[str, Any]]:
        """By name, those that were heard of lately."""
        return [about for _, (at, about) in sorted(self._heard.items()) if now - at <= HEARD_S]
