"""What things cost in the simulator: a node's own doing, and where a function's costs come from."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from instainfer.model import Function

MB = 1 << 20


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated node, seconds and bytes. Defaults are medians measured on a two-core machine; a
    function's own costs (its `Costs`) are multiplied by the factors, which stand for another processor or for
    an accelerator."""

    name: str
    memory: int
    load_slots: int = 2  # loads at a time
    #: Processors that loads share with running inferences. 0: loads share as many as there are slots with each
    #: other only, and every inference has a processor of its own (the papers' world).
    cores: int = 0
    zygote_memory: int = 0  # of `memory`; 0: no library zygotes, as in the papers
    guests: bool = True
    load_factor: float = 1.0
    inference_factor: float = 1.0
    dispatch_s: float = 0.0003  # that the platform adds to a warm call
    hop_s: float = 0.0  # to this node from where requests arrive, and back again
    freeze_s: float = 0.00025
    thaw_s: float = 0.00025
    end_s: float = 0.002  # to end a process, and
    end_s_per_byte: float = 0.049 / 500e6  # for each byte of its memory
    destroy_s: float = 0.02  # to take a container down, its processes not counted


#: One way from the gateway to an agent on another machine (a request's round trip is twice this).
HOP_S = 0.00015


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Requests and the functions they call. `which[i]` is the position in `functions` of the one that request
    i calls at `times[i]` (ascending, seconds from 0); `durations[i]` is how long its inference takes, and
    where there are none every one takes its function's `warm_s`."""

    functions: list[Function]
    times: Sequence[float]
    which: Sequence[int]
    durations: Sequence[float] = ()
    end: float  # of the trace, seconds: not before the last arrival
    cores: int = 0  # of the node where costs were measured; 0: not said
    classes: Sequence[str] = ()  # of each function, where they are told apart

    @property
    def total_bytes(self) -> int:
        """Of all functions, loaded once: what a budget is a share of."""
        return sum(function.costs.loaded_bytes for function in self.functions)
