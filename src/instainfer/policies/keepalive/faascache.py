"""Greedy-dual keep-alive to the letter, for comparison.

Source: Fuerst, Sharma: FaasCache (ASPLOS'21), "Greedy-Dual Keep-Alive Policy": priority = clock + frequency x
(cold - warm) / MB.
"""

from __future__ import annotations

from collections.abc import Sequence

from instainfer.policies.base import Conduct, ContainerView
from instainfer.policies.keepalive.pressure import Pressure


class FaasCache(Pressure):
    """Priorities are those of Pressure: the frequency of a function is its uses over all its live containers
    and is lost with the last of them. Here the lowest go until the need is covered, and nothing is spared: not
    the last container of a tenant, nor one that a larger victim made superfluous. No time limit.

    The clock becomes the priority of the last victim. It never goes back: a container that ran when better
    ones went may have less than that.

    A request that no eviction makes room for waits. With `drops` it is refused, and with `whole` room is made
    for all of its container rather than for what is missing: so does the simulator published with the paper.
    """

    def __init__(self, *, whole: bool = False, drops: bool = False) -> None:
        super().__init__()
        self.conduct = Conduct(whole=whole, drops=drops)

    def victims(
        self, containers: Sequence[ContainerView], need: int, now: float, *, alive: Sequence[ContainerView]
    ) -> list[str]:
        able = [one for one in containers if one.idle and not one.pinned]
        able.sort(key=lambda one: (self.priority(one.id), one.last_used, one.id))
        chosen: list[str] = []
        for one in able:
            if need <= 0:
                break
            chosen.append(one.id)
            need -= one.limit
        if need > 0 or not chosen:
            return []
        self._clock = max(self._clock, self.priority(chosen[-1]))
        return chosen
