"""When which function is due."""

from __future__ import annotations

from heapq import heappop, heappush


class Agenda:
    """At most one time per function. Equal times are due in the order of names."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # with entries that were changed since

    def set(self, function: str, at: float | None) -> None:
        """None: not at all."""
        if at is None:
            self._at.pop(function, None)
        elif self._at.get(function) != at:
            self._at[function] = at
            heappush(self._heap, (at, function))

    def take(self, now: float) -> list[str]:
        """Those that are due, which are on it no longer."""
        due: list[str] = []
        while (at := self.next()) is not None and at <= now:
            _, function = heappop(self._heap)
            del self._at[function]
            due.append(function)
        return due

    def next(self) -> float | None:
        heap = self._heap
        while heap and self._at.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None
