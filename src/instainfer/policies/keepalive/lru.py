"""No time limit; the container used longest ago goes when memory is needed."""

from __future__ import annotations

from instainfer.policies.base import ContainerView
from instainfer.policies.keepalive.fixed import Fixed


class Lru(Fixed):
    """A fixed keep-alive whose time never ends."""

    def __init__(self) -> None:
        super().__init__()

    def expires_at(self, container: ContainerView) -> float | None:
        return None
