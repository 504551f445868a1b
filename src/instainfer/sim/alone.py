"""Nodes that decide each for itself: InstaInfer on a cluster.

Source: Tyche (TPDS 2026), which it improves on: every InstaInfer node forecasts and places by the arrivals that it
sees itself, and takes them to be an even share. So a node here is a world of its own, with a platform, a forecast
and containers that no other knows of, and a balancer that knows none of that deals the requests out evenly.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator

import msgspec
import numpy as np

from instainfer.sim.costs import Workload
from instainfer.sim.tally import Timeline

#: Modes that are defined like this wherever there is more than one node.
MODES = frozenset({"instainfer"})


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one node gets of a workload; `numbers[i]` is which of all requests its request i is."""

    work: Workload
    numbers: array[int]


def dealt(work: Workload, nodes: int, seed: int) -> Iterator[Share]:
    """Each request to any node with the same probability, as `seed` has it."""
    to = np.random.default_rng([seed, nodes]).integers(nodes, size=len(work.times))
    times, which = np.asarray(work.times), np.asarray(work.which)
    durations = np.asarray(work.durations)
    for node in range(nodes):
        mine = np.flatnonzero(to == node)
        yield Share(
            work=msgspec.structs.replace(
                work,
                times=array("d", times[mine].tobytes()),
                which=array("i", which[mine].astype(np.int32).tobytes()),
                durations=array("d", durations[mine].tobytes()) if len(durations) else (),
            ),
            numbers=array("q", mine.astype(np.int64).tobytes()),
        )


def part_of(timeline: Timeline, share: Share) -> Timeline:
    """For the calls that it asks for and that are this node's."""
    wanted = timeline.requests
    first, behind = (bisect_left(share.numbers, number) for number in (wanted.start, wanted.stop))
    return Timeline(range(first, behind))


def gather(timeline: Timeline, part: Timeline, share: Share) -> None:
    """What came of them, under their own numbers."""
    timeline.calls += [call._replace(request=share.numbers[call.request]) for call in part.calls]
