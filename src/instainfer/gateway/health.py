"""What the server knows about itself."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instainfer import __version__
from instainfer.clock import Clock
from instainfer.config import Settings
from instainfer.controller import Controller
from instainfer.errors import InstaInferError
from instainfer.gateway.fronts import Fronts
from instainfer.membership import Membership
from instainfer.sandbox.base import Sandbox
from instainfer.shadow.watch import Shadows
from instainfer.store.base import Store
from instainfer.store.writer import BatchWriter


@dataclass
class Health:
    controller: Controller
    store: Store
    writer: BatchWriter
    sandbox: Sandbox | None  # None: each node has its own
    membership: Membership
    clock: Clock
    settings: Settings
    events: Path  # directory of the event log
    predictor: str
    epoch: str  # of this start of the server
    started: float
    shadows: Shadows
    number: int = 0  # of this server among all that ever had its database; 0: nobody else can have it
    url: str = ""
    asks: Callable[[], bool] = lambda: False  # whether anyone is asked for a key
    restart: Callable[[], None] = lambda: None  # begin anew
    fronts: Fronts = field(default_factory=Fronts)
    stopping: bool = False

    def isolation(self) -> dict[str, Any]:
        if self.sandbox is None:
            return {"sandbox": "of each node", "missing": []}
        return {"sandbox": self.sandbox.name, "missing": self.sandbox.enforces.missing()}

    @property
    def memory(self) -> int:
        """Bytes for containers, of all nodes."""
        return sum(node.memory for node in self.controller.nodes.values())

    async def check(self) -> dict[str, Any]:
        """Each part looked at, not assumed."""
        parts = {"server": "stopping" if self.stopping else "ok", "store": "ok", "node": "ok"}
        try:
            await asyncio.to_thread(self.store.namespaces)
        except InstaInferError as error:
            parts["store"] = error.message
        if not self.controller.platform.state.ledger.nodes:
            parts["node"] = "no node has joined"
        return {"ready": all(state == "ok" for state in parts.values()), "parts": parts}

    def serving(self) -> dict[str, str]:
        """What gateways go by, as headers."""
        return {
            "x-instainfer-serving": "no" if self.stopping else "yes",
            "x-instainfer-number": str(self.number),
            "x-instainfer-keys": "asked" if self.asks() else "none",
        }

    def status(self) -> dict[str, Any]:
        policy = self.settings.policy
        return {
            "version": __version__,
            "uptime_s": self.clock.now() - self.started,
            **self.isolation(),
            "policy": {"mode": policy.mode, "predictor": self.predictor, "keep_alive": policy.keep_alive},
            "memory_mb": self.memory / 1e6,
            "server": {"url": self.url, "host": socket.gethostname(), "pid": os.getpid(), "number": self.number},
            "gateways": self.fronts.now(self.clock.now()),
            "records_dropped": self.writer.dropped,
        }
