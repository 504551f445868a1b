"""Greedy-dual size frequency over containers.

Source: Cherkasova: Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy (HP Labs,
1998): priority = clock + frequency x cost / size.
"""

from __future__ import annotations

from instainfer.policies.keepalive.faascache import FaasCache


class Gdsf(FaasCache):
    """As FaasCache, but a function's frequency counts all its uses so far: it is not lost with its last
    container (of the two readings of the source the stronger one here, and the one that the simulator's `gdsf`
    has). The cost is what a cold start takes beyond a warm one, the size a container's limit in MB."""

    def __init__(self) -> None:
        super().__init__()

    def _left(self, function: str) -> None:
        self._live[function] -= 1
        if not self._live[function]:
            del self._live[function]
