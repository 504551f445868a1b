"""Tensors of the Open Inference Protocol v2: what a function is given of a request, and the response made of what
it returns.

A body is a JSON object and, behind it, the bytes of those tensors whose `binary_data_size` says how many. Its
content type is that of payloads.TENSORS, with parameters:

    header    bytes of the JSON part; all of the body where it is not said
    model     what the response calls the function
    version   and its version
    encoding  "gzip" or "deflate": the body is compressed, `header` counts what it unpacks to
    limit     bytes that it may unpack to

The response travels the same way, with `header`. numpy is imported where the function's environment has it, and
only once tensors are spoken of; without it tensors are nested lists. Bytes of binary inputs are not copied.
"""

from __future__ import annotations

import math
import struct

from . import payloads
from .datatypes import BYTES, LARGEST, NUMBERS, dtype_of, fits, flat, nest, shape_of, whole
from .payloads import BadAnswer, BadPayload
from .returned import from_array, from_lists

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    from typing import Any

UNPACKED = 64_000_000  # bytes, where `limit` is not said
OUTPUT = "output"  # the name of the only output, where none is declared

_nothing = object()
_numpy: Any = _nothing


def library() -> Any:
    """numpy, or None where the function's environment has none that can be imported."""
    global _numpy
    if _numpy is _nothing:
        try:
            import numpy

            _numpy = numpy
        except Exception:  # noqa: BLE001  # one that is broken is none
            _numpy = None
    return _numpy


class Request:
    """One request. `declared`: the tensors that the function says it takes and gives, {"inputs": [{"name",
    "datatype", "shape"}], "outputs": […]}; where it says nothing, all are welcome. Raises BadPayload."""

    def __init__(self, content_type: str, body: bytes, declared: dict | None = None) -> None:
        declared = declared or {}
        told = _parameters(content_type)
        self._model = told.get("model", "")
        self._version = told.get("version", "")
        self._takes = {one["name"]: one for one in declared.get("inputs") or ()}
        self._gives = {one["name"]: one for one in declared.get("outputs") or ()}
        if told.get("encoding"):
            body = _unpacked(body, told)
        self._body = body
        at = whole(told.get("header", str(len(body))), "the header's length")
        if at > len(body):
            raise BadPayload("the header's length is %d, and the body has %d bytes" % (at, len(body)))
        said = _json(body[:at])
        self._id = said.get("id")
        if self._id is not None and not isinstance(self._id, str):
            raise BadPayload("`id` is not a text")
        self._said = _scalars(said.get("parameters"), "`parameters`")
        self._binary = _flag(self._said.pop("binary_data_output", False), "binary_data_output")
        self._wanted = self._outputs(said.get("outputs"))
        self._inputs: dict[str, _Tensor] = {}
        for one in _objects(said.get("inputs"), "`inputs`"):
            tensor = _Tensor(one, at)
            at += tensor.size
            if at > len(body):
                raise BadPayload("the body ends within the bytes of input %r" % tensor.name)
            if tensor.name in self._inputs:
                raise BadPayload("input %r is there twice" % tensor.name)
            self._inputs[tensor.name] = tensor
        if at != len(body):
            raise BadPayload("%d bytes of the body belong to no input" % (len(body) - at))
        self._check()

    def arrays(self) -> dict[str, Any]:
        """The inputs by name: read-only numpy arrays; without numpy nested lists. Raises BadPayload."""
        numpy = library()
        if numpy is None:
            return self.lists()
        return {name: tensor.array(numpy, self._body) for name, tensor in self._inputs.items()}

    def lists(self, *, text: bool = False) -> dict[str, Any]:
        """The inputs as nested lists; elements of BYTES are bytes, or str with `text`. Raises BadPayload."""
        return {name: tensor.nested(self._body, text=text) for name, tensor in self._inputs.items()}

    def encode(self, value: object, limit: int) -> tuple[str, bytes]:
        """Content type and body of the response, made of what the function returned: a dict of arrays or lists by
        name, or one of them. Raises BadAnswer; BadPayload where the request asks for what cannot be given."""
        values = self._named(value)
        parts: list[Any] = [b""]
        outputs = []
        for name in self._wanted or values:
            if name not in values:
                there = ", ".join(sorted(values))
                raise BadPayload("there is no output %r; the function returns: %s" % (name, there or "none"))
            shown, raw = self._output(name, values[name])
            outputs.append(shown)
            if raw is not None:
                parts.append(raw)
        response: dict[str, Any] = {"model_name": self._model, "model_version": self._version}
        if self._id is not None:
            response["id"] = self._id
        if self._said:
            response["parameters"] = self._said
        response["outputs"] = outputs
        parts[0] = payloads.encode_json(response)
        size = sum(memoryview(part).nbytes for part in parts)
        if size > limit:
            raise payloads.too_large(size, limit)
        return "%s; header=%d" % (payloads.TENSORS, len(parts[0])), b"".join(parts)

    # ---- requests -------------------------------------------------------------------------------------------

    def _outputs(self, asked: object) -> dict[str, bool]:
        """The requested outputs, and whether each is wanted as bytes."""
        if asked is None:
            return {}
        found: dict[str, bool] = {}
        for one in _objects(asked, "`outputs`"):
            name = _name(one, "an output")
            said = _scalars(one.get("parameters"), "the parameters of output %r" % name)
            for key in said:
                if key == "classification" or key.startswith("shared_memory"):
                    raise BadPayload("%s is not offered (output %r)" % (key, name))
            if name in found:
                raise BadPayload("output %r is asked for twice" % name)
            if self._gives and name not in self._gives:
                raise BadPayload("there is no output %r; there are: %s" % (name, ", ".join(self._gives)))
            found[name] = _flag(said.get("binary_data", self._binary), "binary_data of output %r" % name)
        return found

    def _check(self) -> None:
        """The inputs against those declared."""
        if not self._takes:
            return
        for name, tensor in self._inputs.items():
            wanted = self._takes.get(name)
            if wanted is None:
                raise BadPayload("there is no input %r; there are: %s" % (name, ", ".join(self._takes)))
            if tensor.datatype != wanted["datatype"]:
                text = "input %r is %s, and the function takes %s"
                raise BadPayload(text % (name, tensor.datatype, wanted["datatype"]))
            if not fits(tensor.shape, wanted["shape"]):
                text = "input %r has the shape %s, and the function takes %s"
                raise BadPayload(text % (name, list(tensor.shape), wanted["shape"]))
        missing = [name for name in self._takes if name not in self._inputs]
        if missing:
            raise BadPayload("there is no input named %s, which the function takes" % ", ".join(missing))

    # ---- responses ------------------------------------------------------------------------------------------

    def _named(self, value: object) -> dict[str, Any]:
        """What was returned by name: a dict as it is, a tuple by the declared outputs, one value as the first."""
        names = list(self._gives)
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, str):
                    raise BadAnswer("the answer has an output whose name is %r, not a text" % (name,))
            found = value
        elif len(names) > 1 and isinstance(value, (tuple, list)) and len(value) == len(names):
            found = {name: value[at] for at, name in enumerate(names)}
        else:
            found = {names[0] if names else OUTPUT: value}
        missing = [name for name in names if name not in found]
        if missing:
            raise BadAnswer("the answer lacks the declared output %s" % ", ".join(missing))
        return found

    def _output(self, name: str, value: object) -> tuple[dict, Any]:
        """One tensor as the response shows it, and its bytes where it is sent as such."""
        declared = self._gives.get(name)
        datatype = declared["datatype"] if declared else ""
        numpy = library()
        try:
            made = from_array(numpy, value, datatype) if numpy is not None else from_lists(value, datatype)
        except BadAnswer as error:
            raise BadAnswer("output %r: %s" % (name, error)) from None
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            raise BadAnswer("output %r cannot be made a tensor: %s" % (name, error)) from None
        datatype, shape, flat, raw = made
        if declared and not fits(shape, declared["shape"]):
            text = "output %r has the shape %s, and %s is declared"
            raise BadAnswer(text % (name, list(shape), declared["shape"]))
        shown: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
        if self._wanted.get(name, self._binary):
            data = raw()
            shown["parameters"] = {"binary_data_size": memoryview(data).nbytes}
            return shown, data
        if datatype == "BF16":
            raise BadPayload("output %r is BF16, which goes as bytes only: ask for it with binary_data" % name)
        values = flat()
        if datatype == BYTES:
            try:
                values = [element.decode() for element in values]
            except ValueError:
                text = "output %r is not UTF-8, which JSON needs: ask for it with binary_data"
                raise BadPayload(text % name) from None
        elif datatype.startswith("FP") and not all(map(math.isfinite, values)):
            text = "output %r holds NaN or Infinity, which JSON cannot carry: ask for it with binary_data"
            raise BadPayload(text % name)
        shown["data"] = values
        return shown, None


class _Tensor:
    """An input: what the header says of it, and where its bytes are (`size` of them) or its data."""

    def __init__(self, said: dict, at: int) -> None:
        self.name = _name(said, "an input")
        datatype = said.get("datatype")
        if not isinstance(datatype, str) or (datatype != BYTES and datatype not in NUMBERS):
            kinds = ", ".join((*NUMBERS, BYTES))
            raise BadPayload("input %r has the datatype %.40r; there are: %s" % (self.name, datatype, kinds))
        self.datatype = datatype
        self.shape, self.count = shape_of(said.get("shape"), self.name)
        self.size = 0
        self._at = at
        self._data: Any = None
        parameters = _scalars(said.get("parameters"), "the parameters of input %r" % self.name)
        if "shared_memory_region" in parameters:
            raise BadPayload("shared memory is not offered (input %r)" % self.name)
        size = parameters.get("binary_data_size")
        if size is None:
            if not isinstance(said.get("data"), list):
                raise BadPayload("input %r has no list `data`, and no binary_data_size" % self.name)
            self._data = said["data"]
            return
        if said.get("data") is not None:
            raise BadPayload("input %r has both `data` and a binary_data_size" % self.name)
        self.size = whole(size, "the binary_data_size of input %r" % self.name)
        expected = self.count * (NUMBERS[datatype][1] if datatype != BYTES else 4)
        if self.size < expected or (datatype != BYTES and self.size != expected):
            text = "input %r has %d bytes, and its shape %s of %s is %s%d"
            least = "at least " if datatype == BYTES else ""
            raise BadPayload(text % (self.name, self.size, list(self.shape), datatype, least, expected))

    def array(self, numpy: Any, body: bytes) -> Any:
        if self.datatype == BYTES:
            array = numpy.empty(self.count, dtype=object)
            array[:] = self._elements(body)
        elif self._data is not None:
            array = numpy.array(self._values(), dtype=dtype_of(numpy, self.datatype))
        elif self.count:
            array = numpy.frombuffer(body, dtype_of(numpy, self.datatype), self.count, self._at)
            if self.datatype == "BOOL" and array.view(numpy.uint8).max() > 1:
                raise self._no_bool()
            if not array.flags.aligned:  # some libraries cannot read it where it is
                array = array.copy()
        else:
            array = numpy.empty(0, dtype_of(numpy, self.datatype))
        array = array.reshape(self.shape)
        array.flags.writeable = False
        return array

    def nested(self, body: bytes, *, text: bool) -> Any:
        values: list
        if self.datatype == BYTES:
            values = self._elements(body)
            if text:
                try:
                    values = [element.decode() for element in values]
                except ValueError:
                    raise BadPayload("input %r is not UTF-8, which a line of JSON needs" % self.name) from None
        elif self._data is not None:
            values = self._values()
            if self.datatype.startswith("FP"):
                values = list(map(float, values))
        else:
            if self.datatype == "BOOL" and self.size and max(body[self._at : self._at + self.size]) > 1:
                raise self._no_bool()
            form = "<%d%s" % (self.count, NUMBERS[self.datatype][0])
            values = list(struct.unpack_from(form, body, self._at))
        return nest(values, self.shape, self.name)

    def _elements(self, body: bytes) -> list[bytes]:
        """Of BYTES: each behind its length, or JSON's texts."""
        if self._data is not None:
            return [text.encode("utf-8", "surrogatepass") for text in self._values()]
        found = []
        at, end = self._at, self._at + self.size
        for _ in range(self.count):
            if end - at < 4:
                break
            (length,) = struct.unpack_from("<I", body, at)
            at += 4 + length
            if at > end:
                break
            found.append(body[at - length : at])
        if len(found) != self.count or at != end:
            text = "the bytes of input %r are not %d elements, each behind its length in 4 bytes"
            raise BadPayload(text % (self.name, self.count))
        return found

    def _values(self) -> list:
        """JSON's data, flat, each element of its type and within its range."""
        _, values = flat(self._data, "the data of input %r" % self.name, BadPayload)
        if len(values) != self.count:
            text = "input %r has %d elements, and its shape %s is %d"
            raise BadPayload(text % (self.name, len(values), list(self.shape), self.count))
        datatype = self.datatype
        if datatype == "BF16":
            raise BadPayload("input %r is BF16, which goes as bytes only" % self.name)
        allowed: set[type] = {str} if datatype == BYTES else {int, float} if datatype.startswith("FP") else {int}
        kinds = set(map(type, values))
        if datatype == "BOOL" and bool in kinds:
            allowed = {bool}
        if not kinds <= allowed:
            odd = ", ".join(sorted(kind.__name__ for kind in kinds - allowed))
            raise BadPayload("input %r is %s, and its data holds %s" % (self.name, datatype, odd))
        if values and datatype != BYTES:
            _, _, lowest, highest = NUMBERS[datatype]
            if min(values) < lowest or max(values) > highest:
                raise BadPayload("input %r has elements that %s cannot hold" % (self.name, datatype))
        return list(map(bool, values)) if datatype == "BOOL" else values

    def _no_bool(self) -> BadPayload:
        return BadPayload("the bytes of input %r are not all 0 or 1, as those of BOOL are" % self.name)


# ---- hostile until proven otherwise -------------------------------------------------------------------------


def _parameters(content_type: str) -> dict[str, str]:
    found = {}
    for part in content_type.split(";")[1:]:
        key, _, value = part.partition("=")
        found[key.strip().lower()] = value.strip().strip('"')
    return found


def _unpacked(body: bytes, told: dict[str, str]) -> bytes:
    import zlib  # only compressed requests pay for it

    if told["encoding"] not in ("gzip", "deflate"):
        raise BadPayload("the encoding %.40r is not offered; gzip and deflate are" % told["encoding"])
    limit = min(whole(told.get("limit", str(UNPACKED)), "the limit"), LARGEST)
    inflate = zlib.decompressobj(47)  # either of the two, told by its first bytes
    try:
        unpacked = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadPayload("the body is not %s: %s" % (told["encoding"], error)) from None
    if len(unpacked) > limit:
        raise BadPayload("the body unpacks to more than %d bytes" % limit)
    if not inflate.eof or inflate.unused_data:
        raise BadPayload("the body is not %s: it does not end where the data does" % told["encoding"])
    return unpacked


def _json(data: bytes) -> dict:
    try:
        said = payloads.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BadPayload("the request is not valid JSON: %s" % error) from None
    if not isinstance(said, dict):
        raise BadPayload("the request is not a JSON object")
    return said


def _objects(said: object, what: str) -> list[dict]:
    if not isinstance(said, list) or not all(isinstance(one, dict) for one in said):
        raise BadPayload("%s is not a list of objects" % what)
    return said


def _name(said: dict, what: str) -> str:
    name = said.get("name")
    if not isinstance(name, str) or not name:
        raise BadPayload("%s has no name" % what)
    return name


def _scalars(said: object, what: str) -> dict[str, Any]:
    if said is None:
        return {}
    if not isinstance(said, dict) or not all(isinstance(one, (str, int, float)) for one in said.values()):
        raise BadPayload("%s is not an object of texts, numbers and booleans" % what)
    return dict(said)


def _flag(said: object, what: str) -> bool:
    if not isinstance(said, bool):
        raise BadPayload("%s is neither true nor false" % what)
    return said
