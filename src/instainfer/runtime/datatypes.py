"""Datatypes and shapes of the Open Inference Protocol v2, and what of them a stranger may say."""

from __future__ import annotations

import sys
from itertools import chain

from .payloads import BadPayload

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    from typing import Any

LARGEST = 1 << 30  # elements of a tensor: no frame holds more bytes
RANK = 32  # dimensions: as many as every numpy can do
EMPTY = 1 << 16  # the other dimensions of a tensor without elements, multiplied: as lists they would cost memory
LISTS = 8  # lists per element, where there is no numpy

#: datatype -> struct's character, bytes of an element, lowest and highest value that JSON may give
NUMBERS: dict[str, tuple[str, int, float, float]] = {
    "BOOL": ("?", 1, 0, 1),
    "INT8": ("b", 1, -(1 << 7), (1 << 7) - 1),
    "INT16": ("h", 2, -(1 << 15), (1 << 15) - 1),
    "INT32": ("i", 4, -(1 << 31), (1 << 31) - 1),
    "INT64": ("q", 8, -(1 << 63), (1 << 63) - 1),
    "UINT8": ("B", 1, 0, (1 << 8) - 1),
    "UINT16": ("H", 2, 0, (1 << 16) - 1),
    "UINT32": ("I", 4, 0, (1 << 32) - 1),
    "UINT64": ("Q", 8, 0, (1 << 64) - 1),
    "FP16": ("e", 2, -65504.0, 65504.0),
    "FP32": ("f", 4, -3.4028234663852886e38, 3.4028234663852886e38),
    "FP64": ("d", 8, -sys.float_info.max, sys.float_info.max),
    "BF16": ("H", 2, 0, 0),  # raw bits: neither JSON nor numpy has a word for it
}
BYTES = "BYTES"
TEXTS = frozenset((str, bytes, bytearray, memoryview))  # what its elements may be returned as


def dtype_of(numpy: Any, datatype: str) -> Any:
    return numpy.dtype("<" + NUMBERS[datatype][0])


def datatype_of(dtype: Any) -> str:
    kind = {"b": "BOOL", "i": "INT%d", "u": "UINT%d", "f": "FP%d"}.get(dtype.kind, "")
    name = kind % (dtype.itemsize * 8) if "%" in kind else kind
    return name if name in NUMBERS else ""


def shape_of(said: object, name: str) -> tuple[tuple, int]:
    """Dimensions and how many elements they are. Raises BadPayload for those that cannot be meant."""
    if not isinstance(said, list) or len(said) > RANK:
        raise BadPayload("input %r has no list of at most %d dimensions as its shape" % (name, RANK))
    count = spread = 1
    for size in said:
        count *= whole(size, "a dimension of input %r" % name)
        spread *= size or 1
        if spread > LARGEST:
            raise BadPayload("the shape of input %r has more than %d elements" % (name, LARGEST))
    if not count and spread > EMPTY:
        raise BadPayload("input %r has no elements, and a shape that is too large for it" % name)
    return tuple(said), count


def fits(shape: tuple, declared: list) -> bool:
    return len(shape) == len(declared) and all(declared[at] in (-1, size) for at, size in enumerate(shape))


def flat(data: list, what: str, error: type[Exception]) -> tuple[tuple, list]:
    """The shape of nested lists, and their elements in one."""
    shape = [len(data)]
    while data and isinstance(data[0], (list, tuple)):
        lengths = {len(row) if isinstance(row, (list, tuple)) else -1 for row in data}
        if len(lengths) > 1 or len(shape) == RANK:
            raise error("%s is not of one shape" % what)
        data = list(chain.from_iterable(data))
        shape.append(lengths.pop())
    if not {list, tuple}.isdisjoint(map(type, data)):
        raise error("%s is not of one shape" % what)
    return tuple(shape), data


def nest(values: list, shape: tuple, name: str) -> Any:
    if not shape:
        return values[0]
    many = [1]  # lists on each level
    for size in shape[:-1]:
        many.append(many[-1] * size)
    if sum(many) > LISTS * len(values) + EMPTY:
        raise BadPayload("input %r has too many dimensions to be lists" % name)
    for axis in range(len(shape) - 1, 0, -1):
        size = shape[axis]
        values = [values[at * size : (at + 1) * size] for at in range(many[axis])]
    return values


def whole(said: object, what: str) -> int:
    """A number of something: an int, or its digits."""
    if isinstance(said, str) and said.isascii() and said.isdigit() and len(said) < 20:
        said = int(said)
    if type(said) is not int or not 0 <= said <= 1 << 62:
        raise BadPayload("%s is %.40r, and not a whole number of 0 or more" % (what, said))
    return said
