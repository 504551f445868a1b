"""The memory ledger of the nodes: what is promised to containers, never more than there is."""

from __future__ import annotations


class Ledger:
    """Bytes. A container's limit is a promise from the moment it is to be created until it is known gone."""

    def __init__(self) -> None:
        self._memory: dict[str, int] = {}
        self._promised: dict[str, int] = {}

    def join(self, node: str, memory: int) -> None:
        self._memory[node] = memory
        self._promised.setdefault(node, 0)

    def resize(self, node: str, memory: int) -> None:
        """May be less than is promised: until that is given back nothing is free."""
        self._memory[node] = memory

    def excess(self, node: str) -> int:
        """Bytes that are promised and are no longer there."""
        return max(0, self._promised.get(node, 0) - self._memory.get(node, 0))

    def leave(self, node: str) -> None:
        self._memory.pop(node, None)
        self._promised.pop(node, None)

    @property
    def nodes(self) -> list[str]:
        return sorted(self._memory)

    def memory(self, node: str) -> int:
        """What it is to have; `excess` comes on top for as long as it is promised."""
        return self._memory.get(node, 0)

    def promised(self, node: str) -> int:
        return self._promised.get(node, 0)

    def free(self, node: str) -> int:
        return max(0, self._memory.get(node, 0) - self._promised.get(node, 0))

    @property
    def largest(self) -> int:
        """Memory of the largest node: what no container can exceed."""
        return max(self._memory.values(), default=0)

    def promise(self, node: str, size: int) -> None:
        """Raises ValueError when it is not there: the caller has to look first."""
        if size > self.free(node):
            raise ValueError(f"{size} bytes promised on {node}, which has {self.free(node)} free")
        self._promised[node] += size

    def release(self, node: str, size: int) -> None:
        if node in self._promised:
            self._promised[node] -= size
