"""The libraries of one key: the functions that use them, and the zygotes that have imported them, by node.

A zygote is one process per node that has imported the libraries and waits to be forked. An instance forked from
it belongs to its container as any other, holds only what is its own, and lives on when the zygote ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from instainfer.core.lifecycle import Lifecycle
from instainfer.model import Function

if TYPE_CHECKING:
    from instainfer.core.state import FunctionState


class Zygote(Lifecycle):
    __slots__ = ("bytes", "id", "libraries", "modules", "node", "started")

    def __init__(self, id: str, node: str, libraries: Libraries, bytes: int, now: float) -> None:
        super().__init__(f"zygote {id} on {node}", "zygote", now)
        self.id = id
        self.node = node
        self.libraries = libraries
        self.bytes = bytes  # promised in the node's ledger: expected until measured
        self.modules = libraries.modules  # that it was started with
        self.started = now

    @property
    def live(self) -> bool:
        return self.state in ("starting", "ready")


class Libraries:
    """Of one namespace, whatever the key: nothing is shared between namespaces."""

    __slots__ = (
        "blocked_until", "failures", "functions", "key", "measured", "measured_with", "namespace", "ready",
        "refused", "starting",
    )  # fmt: skip

    def __init__(self, namespace: str, key: str) -> None:
        self.namespace = namespace
        self.key = key  # Function.libraries
        self.functions: dict[str, FunctionState] = {}  # that may be forked
        self.ready: dict[str, Zygote] = {}  # by node: what is forked there
        self.starting: dict[str, Zygote] = {}  # by node: the first one, or one that is to replace the ready one
        self.failures: dict[str, int] = {}  # by node, since one was ready
        self.blocked_until: dict[str, float] = {}  # by node
        self.refused = ""  # why they cannot be forked, until another function of the key is deployed
        self.measured = 0  # bytes that a zygote of these was seen to hold
        self.measured_with: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """What a policy knows them by."""
        return f"{self.namespace}/{self.key}"

    @property
    def modules(self) -> frozenset[str]:
        """Digests of what the functions import."""
        return frozenset(f.spec.modules for f in self.functions.values() if f.spec.modules)

    @property
    def expected_bytes(self) -> int:
        """Of a zygote that is started now. What was measured is believed until more modules are to come in."""
        if self.measured and self.modules <= self.measured_with:
            return self.measured
        each = [f.costs.libraries_bytes or f.costs.imported_bytes for f in self.functions.values()]
        return max(self.measured, *each) if each else self.measured

    def serving(self, function: Function, node: str | None = None, *, but: str = "") -> str:
        """A ready zygote with all that `function` imports, on `node` or (None) anywhere; "" if there is none."""
        if node is None:
            for there in self.ready:
                if found := self.serving(function, there, but=but):
                    return found
            return ""
        zygote = self.ready.get(node)
        if zygote is None or zygote.id == but or (function.modules and function.modules not in zygote.modules):
            return ""
        return zygote.id

    def complete(self, zygote: Zygote) -> bool:
        """Was it started with all that the functions import?"""
        return self.modules <= zygote.modules

    def importing(self, since: float) -> bool:
        """Is the first zygote anywhere on its way, started after `since`?"""
        return not self.ready and any(zygote.started > since for zygote in self.starting.values())
