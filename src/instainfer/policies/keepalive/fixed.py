"""A fixed keep-alive, as in OpenWhisk: a time limit, and the oldest goes first under pressure."""

from __future__ import annotations

from collections.abc import Sequence

from instainfer.policies.base import Conduct, ContainerView


class Fixed:
    """An idle container is destroyed `seconds` after its last use. OpenWhisk's containers live for
    `grace_s` = 10 s before they are paused, and the ten minutes count from there.

    Under memory pressure the idle containers used longest ago go until the need is covered. Pinned ones
    never go. Keeps no state.

    `in_line`: who waits for memory is served in the order of coming, and the first one holds up the others,
    as in OpenWhisk's invoker. What needs no memory still runs at once (there it waits too).
    """

    def __init__(self, seconds: float = 600.0, grace_s: float = 0.0, *, in_line: bool = False) -> None:
        self.seconds = seconds
        self.grace_s = grace_s
        self.conduct = Conduct(in_line=in_line)

    def used(self, container: ContainerView, now: float, *, cold_s: float) -> None:
        """Nothing to learn: the view carries the last use."""

    def gone(self, container: str) -> None:
        """Nothing to forget."""

    def expires_at(self, container: ContainerView) -> float | None:
        return None if container.pinned else container.last_used + self.grace_s + self.seconds

    def victims(
        self, containers: Sequence[ContainerView], need: int, now: float, *, alive: Sequence[ContainerView]
    ) -> list[str]:
        chosen: list[str] = []
        for container in sorted(containers, key=lambda one: (one.last_used, one.id)):
            if need <= 0:
                break
            if container.idle and not container.pinned:
                chosen.append(container.id)
                need -= container.limit
        return chosen if need <= 0 else []

    def weigh(self, container: ContainerView, now: float) -> float:
        """What was used lately is the likelier to be used again: as one use per time since."""
        return 1.0 / max(now - container.last_used, 1.0)
