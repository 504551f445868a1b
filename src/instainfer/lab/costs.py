"""What the functions of a trace cost: the papers' eight models as they are or alike, or profiles measured on a
server.

A trace's functions take the models in turn, in the order of their first row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from instainfer.errors import BadInput
from instainfer.model import Costs
from instainfer.traces.base import Floats
from instainfer.units import MB

#: The papers' models; and with one load time for all, so that a share of time saved is a hit rate.
PAPER, EQUAL = BUILT_IN = "paper", "equal"

#: MB of libraries and model in one process, and ms of import and load (InstaInfer, SoCC'24).
PAPER_MODELS = {
    "AlexNet": (923, 671),
    "VGG19": (1648, 2410),
    "InceptionV3": (957, 2281),
    "ResNet18": (649, 210),
    "ResNet50": (907, 486),
    "ResNet152": (1348, 1180),
    "GoogLeNet": (1027, 1351),
    "BERT-base": (1333, 2078),
}
_WARMING_S, _INFERENCE_S = 0.3, 0.2  # of all eight
_EQUAL_MS = 1000  # any: only how much of it is saved is looked at


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One function of a profile file: a JSON list of these. What is not given is not there: no warm-up, the
    first inference as fast as the others, nothing to gain from libraries alone."""

    function: str
    import_ms: float
    load_ms: float
    memory_mb: float
    inference_ms: float
    container_ms: float = _WARMING_S * 1e3
    start_ms: float = 0.0  # of a process that is not forked, until its interpreter runs
    warmup_ms: float = 0.0
    first_ms: float | None = None
    imported_mb: float = 0.0
    libraries: str = ""  # functions with equal ones may be forked from one zygote; "": it cannot be forked
    libraries_mb: float = 0.0  # of such a zygote
    fork_ms: float = 0.0
    forked_mb: float = 0.0
    clone_ms: float = 0.0  # 0: it cannot be cloned
    cloned_mb: float = 0.0
    limit_mb: float = 0.0  # of its container; 0: not said
    concurrency: int = 1
    cores: int = 0  # of the node that it was measured on, which loads and inferences share; 0: not said

    def costs(self) -> Costs:
        """Where a warm-up was measured and no first inference, the warm-up was one."""
        first_ms = max(self.inference_ms, self.warmup_ms) if self.first_ms is None else self.first_ms
        return Costs(
            container_s=self.container_ms / 1e3,
            start_s=self.start_ms / 1e3,
            import_s=self.import_ms / 1e3,
            load_s=self.load_ms / 1e3,
            warmup_s=self.warmup_ms / 1e3,
            first_s=first_ms / 1e3,
            warm_s=self.inference_ms / 1e3,
            imported_bytes=round(self.imported_mb * MB),
            loaded_bytes=round(self.memory_mb * MB),
            libraries_bytes=round(self.libraries_mb * MB),
            fork_s=self.fork_ms / 1e3,
            forked_bytes=round(self.forked_mb * MB),
            clone_s=self.clone_ms / 1e3,
            cloned_bytes=round(self.cloned_mb * MB),
        )


#: Of a Measured.
_NOT_NEGATIVE = (
    *("import_ms", "load_ms", "inference_ms", "container_ms", "warmup_ms", "imported_mb", "libraries_mb"),
    *("start_ms", "fork_ms", "forked_mb", "clone_ms", "cloned_mb", "limit_mb", "cores"),
)


def paper_profiles(*, equal: bool = False) -> list[Measured]:
    """Import and load are published as one figure, so all of it is `load_ms`: in the papers a function is loaded
    or it is not. `equal`: all take as long to load."""
    return [
        Measured(
            function=name,
            import_ms=0.0,
            load_ms=_EQUAL_MS if equal else load_ms,
            memory_mb=memory_mb,
            inference_ms=_INFERENCE_S * 1e3,
        )
        for name, (memory_mb, load_ms) in PAPER_MODELS.items()
    ]


def read_profiles(path: Path) -> list[Measured]:
    """Raises BadInput that says which entry is wrong, and how."""
    try:
        profiles = msgspec.json.decode(path.read_bytes(), type=list[Measured])
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}", hint="name a profile file") from error
    except msgspec.MsgspecError as error:
        raise BadInput(
            f"{path} holds no profiles: {error}",
            hint='it is a JSON list of {"function", "import_ms", "load_ms", "memory_mb", "inference_ms"}',
        ) from error
    for number, one in enumerate(profiles):
        if one.memory_mb <= 0 or one.concurrency < 1 or any(getattr(one, name) < 0 for name in _NOT_NEGATIVE):
            raise BadInput(
                f"{path}, entry {number} ({one.function}): a size or time below zero", hint="measure again"
            )
    if not profiles:
        raise BadInput(f"{path} holds no profile", hint="it needs at least one function")
    return profiles


def assign(names: Sequence[str], profiles: Sequence[Measured]) -> list[Measured]:
    """Of each of these functions: its own where a profile has its name, else the profiles in turn, by its
    place."""
    by_name = {one.function: one for one in profiles}
    return [by_name.get(name, profiles[at % len(profiles)]) for at, name in enumerate(names)]


def profiles_of(names: Sequence[str], source: str | Path = PAPER) -> list[Measured]:
    """`source`: "paper", "equal" or a profile file. Raises BadInput."""
    if source in BUILT_IN:
        return assign(names, paper_profiles(equal=source == EQUAL))
    return assign(names, read_profiles(Path(source)))


def costs_of(names: Sequence[str], source: str | Path = PAPER) -> list[Costs]:
    """Likewise. Raises BadInput."""
    return [one.costs() for one in profiles_of(names, source)]


def sizes_mb(costs: Sequence[Costs]) -> Floats:
    return np.array([one.loaded_bytes / MB for one in costs])


def latencies_s(costs: Sequence[Costs]) -> Floats:
    """What a call saves that finds the function loaded."""
    return np.array([one.loading_s for one in costs])
