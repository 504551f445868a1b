"""A synthetic trace as a file: what to draw it from, and not what was drawn. Its hazards are known.

{"synthetic": "mixed", "functions": 40, "hours": 8, "seed": 1}
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from instainfer.errors import BadInput
from instainfer.traces import table
from instainfer.traces.base import Trace
from instainfer.traces.generate import Synthetic, synthetic

_LONGEST = 4096  # characters of such a file
_MOST_FUNCTIONS, _MOST_HOURS = 100_000, 31 * 24.0  # a file from somewhere else is not to fill the memory
_HOUR_S = 3600.0
_HINT = 'write {"synthetic": "mixed", "functions": 40, "hours": 8, "seed": 1}'


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    synthetic: str  # one of `generate.KINDS`
    functions: int
    hours: float
    seed: int = 0


def is_recipe(path: Path) -> bool:
    """A short JSON object with "synthetic"."""
    return path.is_file() and '"synthetic"' in _start(path)


def read(path: Path) -> Synthetic:
    """Raises BadInput."""
    try:
        recipe = msgspec.json.decode(_start(path), type=Recipe)
    except msgspec.MsgspecError as error:
        raise BadInput(f"{path} is no recipe of a trace: {error}", hint=_HINT) from None
    if recipe.functions > _MOST_FUNCTIONS or not 0.0 < recipe.hours <= _MOST_HOURS or recipe.seed < 0:
        raise BadInput(
            f"{path}: {recipe.functions} functions, {recipe.hours:g} hours, seed {recipe.seed}",
            hint=f"up to {_MOST_FUNCTIONS} functions and {_MOST_HOURS:g} hours, and a seed from 0",
        )
    return synthetic(recipe.synthetic, recipe.functions, recipe.hours * _HOUR_S, seed=recipe.seed)


def hazards(path: Path, trace: Trace) -> Synthetic:
    """With what made the functions of `trace`, which are some of this recipe's. Raises BadInput."""
    whole = read(path)
    of = dict(zip(whole.trace.names, whole.processes, strict=True))
    return Synthetic(trace=trace, processes=tuple(of[name] for name in trace.names))


def _start(path: Path) -> str:
    """All of it, where it is short enough; else nothing."""
    with table.opened(path) as file:
        text = file.read(_LONGEST + 1)
    return text if text.lstrip()[:1] == "{" and len(text) <= _LONGEST else ""
