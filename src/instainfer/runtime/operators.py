"""Torch's operators as seen by what puts initialisers off: which make, which fill, which only look like it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

EMPTY, VIEW, INIT, COPY, OTHER = range(5)

# Initialisers that write all of their target, and those that go on with what is there.
FULL = ("aten.normal_.default", "aten.uniform_.default", "aten.fill_.Scalar", "aten.zero_.default")
CHAINED = (
    "aten.erfinv_.default",
    "aten.clamp_.default",
    *("aten.%s_.%s" % (name, kind) for name in ("mul", "add", "sub", "div") for kind in ("Tensor", "Scalar")),
)
FRESH = (  # not their variants with `out`, which return memory that somebody has had before
    "aten.empty.memory_format",
    "aten.empty_like.default",
    "aten.empty_strided.default",
    "aten.new_empty.default",
    "aten.new_empty_strided.default",
)
# By name, not by what their schemas say: those of `reshape`, `contiguous` and `to` promise an alias, and in
# inference mode they come here whole and may copy.
VIEWS = (
    "aten.alias.default",
    "aten.detach.default",
    "aten.lift_fresh.default",
    "aten.view.default",
    "aten.view.dtype",
    "aten.as_strided.default",
    "aten.select.int",
    "aten.slice.Tensor",
    "aten.t.default",
    "aten.transpose.int",
    "aten.permute.default",
    "aten.expand.default",
    "aten.unsqueeze.default",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.split.Tensor",
    "aten.split_with_sizes.default",
    "aten.unbind.int",
    "aten.diagonal.default",
    "aten.unfold.default",
)
TRUNCATED = "nn.init.trunc_normal_"  # looks at what it has drawn: put off as a whole
DRAWS = ("aten.normal_.default", "aten.uniform_.default", TRUNCATED)


def kind_of(func: Any) -> int:
    name = str(func)
    if name in FRESH:
        return EMPTY
    if name in FULL or name in CHAINED:
        return INIT
    if name == "aten.copy_.default":
        return COPY
    return VIEW if name in VIEWS else OTHER


def valid(name: str, rest: Any, kwargs: dict, largest: float) -> bool:
    """Whether the initialiser's arguments are numbers with which it neither raises nor warns: an error must
    come from the call that earned it."""
    numbers = [value for value in (*rest, *kwargs.values()) if value is not None]
    if not all(type(value) in (int, float) and -largest <= value <= largest for value in numbers):  # nor NaN
        return False
    if name == "aten.normal_.default":
        return bool((rest[1] if len(rest) > 1 else kwargs.get("std", 1.0)) >= 0)
    if name == "aten.uniform_.default":
        low = rest[0] if rest else kwargs.get("from", 0.0)
        high = rest[1] if len(rest) > 1 else kwargs.get("to", 1.0)
        return bool(low <= high and high - low <= largest)
    if name == TRUNCATED:
        mean, std, low, high = rest
        return bool(std > 0 and low < high and low - 2 * std <= mean <= high + 2 * std)
    return True
