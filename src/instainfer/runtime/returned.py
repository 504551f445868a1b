"""What a function returned, as a tensor: its datatype, its shape, and functions that make its elements in JSON's
terms and its bytes. Raises BadAnswer for what is no tensor, or none of the datatype that was declared.
"""

from __future__ import annotations

import struct
import sys
from itertools import chain

from .datatypes import BYTES, NUMBERS, TEXTS, datatype_of, dtype_of, flat
from .payloads import BadAnswer

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    from typing import Any


def from_array(numpy: Any, value: Any, datatype: str) -> tuple[str, tuple, Any, Any]:
    if callable(getattr(value, "detach", None)):  # torch's
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.view(sys.modules["torch"].int16).numpy().view(numpy.uint16)
            datatype = same(datatype, "BF16")
    array = _as_array(numpy, value, datatype)
    if array.dtype.name == "bfloat16":
        array = array.view(numpy.uint16)
        datatype = same(datatype, "BF16")
    if array.ndim == 0:
        array = array.reshape(1)
    if array.dtype.kind in "OSU":
        elements = _texts(array.reshape(-1).tolist(), datatype)
        return BYTES, array.shape, lambda: elements, lambda: _packed(elements)
    found = datatype or datatype_of(array.dtype)
    wanted = dtype_of(numpy, found) if found in NUMBERS else None
    if wanted is None or not numpy.can_cast(array.dtype, wanted, "same_kind"):
        raise BadAnswer("an array of %s is no tensor of %s" % (array.dtype, found or "any datatype"))
    array = numpy.ascontiguousarray(array.astype(wanted, copy=False))
    return found, array.shape, array.reshape(-1).tolist, lambda: array.reshape(-1).view(numpy.uint8)


def _as_array(numpy: Any, value: Any, datatype: str) -> Any:
    if isinstance(value, (list, tuple)):
        shape, values = flat(list(value), "the value", BadAnswer)
        kinds = set(map(type, values))
        if kinds and kinds <= TEXTS:
            array = numpy.empty(len(values), dtype=object)  # numpy's own text types lose zeros at the end
            array[:] = _texts(values, datatype)
            return array.reshape(shape)
        plain = datatype in NUMBERS and datatype != "BF16" and kinds <= {bool, int, float}
        return numpy.asarray(value, dtype=dtype_of(numpy, datatype) if plain and _exact(kinds, datatype) else None)
    if type(value) in TEXTS:
        array = numpy.empty(1, dtype=object)
        array[0] = value
        return array
    array = numpy.asarray(value)
    if array.dtype.kind == "O" and array.ndim == 0:
        raise BadAnswer("a %s is no tensor" % type(value).__name__)
    return array


def _exact(kinds: set, datatype: str) -> bool:
    """Whether Python's numbers of these kinds may become the datatype: numpy would cut off a float's fraction."""
    return datatype.startswith("FP") or (float not in kinds and (datatype != "BOOL" or kinds <= {bool}))


def from_lists(value: Any, datatype: str) -> tuple[str, tuple, Any, Any]:
    if not isinstance(value, (list, tuple)) and callable(getattr(value, "tolist", None)):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        value = [value]
    shape, values = flat(list(value), "the value", BadAnswer)
    kinds = set(map(type, values))
    if (kinds and kinds <= TEXTS) or datatype == BYTES:
        elements = _texts(values, datatype)
        return BYTES, shape, lambda: elements, lambda: _packed(elements)
    if not kinds <= {bool, int, float}:
        odd = ", ".join(sorted(kind.__name__ for kind in kinds - {bool, int, float}))
        raise BadAnswer("it holds %s; return numbers, texts, bytes, or lists of one of them" % odd)
    if not datatype:
        datatype = "BOOL" if kinds == {bool} else "FP64" if float in kinds or not kinds else "INT64"
    if not _exact(kinds, datatype):
        raise BadAnswer("numbers of these kinds are no tensor of %s" % datatype)
    if datatype.startswith("FP"):
        values = list(map(float, values))
    data = struct.pack("<%d%s" % (len(values), NUMBERS[datatype][0]), *values)
    return datatype, shape, lambda: values, lambda: data


def _texts(values: list, datatype: str) -> list[bytes]:
    same(datatype, BYTES)
    found = []
    for value in values:
        if isinstance(value, str):
            found.append(value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, (bytes, bytearray, memoryview)):
            found.append(bytes(value))
        else:
            raise BadAnswer(
                "it holds a %s among its elements, which are to be texts or bytes" % type(value).__name__
            )
    return found


def _packed(elements: list[bytes]) -> bytes:
    return b"".join(chain.from_iterable((struct.pack("<I", len(one)), one) for one in elements))


def same(declared: str, found: str) -> str:
    if declared and declared != found:
        raise BadAnswer("it is %s, and %s is declared" % (found, declared))
    return found
