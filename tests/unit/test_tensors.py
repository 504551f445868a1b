"""Tensors of the Open Inference Protocol: what is sent is what the function gets, what it returns is what is
answered, with numpy and without; and whatever else is sent is refused, at no cost."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import struct
import tracemalloc
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from instainfer.errors import BadSettings
from instainfer.gateway import inference
from instainfer.gateway.access import OWNER, Principal
from instainfer.model import Role, Tensor
from instainfer.runtime import datatypes, tensors
from instainfer.runtime.payloads import TENSORS, BadAnswer, BadPayload
from instainfer.settings import DATATYPES, settings_from

LIMIT = 1 << 20
NUMPY = {
    "BOOL": np.bool_, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BF16": np.uint16,
}  # fmt: skip


@pytest.fixture(params=["numpy", "lists"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of environments."""
    found: str = request.param
    monkeypatch.setattr(tensors, "_numpy", np if found == "numpy" else None)
    return found


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tensors, "_numpy", None)
    yield


def asked(inputs: object, *raw: bytes, declared: Mapping[str, Any] | None = None, **more: Any) -> tensors.Request:
    """A request as a client would send it."""
    head = json.dumps({"inputs": inputs, **more}).encode()
    kind = f"{TENSORS}; model=m; version=3; header={len(head)}"
    return tensors.Request(kind, head + b"".join(raw), dict(declared or {}))


def tensor(datatype: str, shape: list[Any], data: object = None, size: int | None = None) -> dict[str, Any]:
    one: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": shape}
    if size is not None:
        one["parameters"] = {"binary_data_size": size}
    else:
        one["data"] = data
    return one


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def got(request: tensors.Request) -> Any:
    return request.arrays()["x"]


def answered(request: tensors.Request, value: object, limit: int = LIMIT) -> tuple[dict[str, Any], bytes]:
    """The header of the response, and the bytes behind it."""
    kind, body = request.encode(value, limit)
    base, _, at = kind.partition("; header=")
    assert base == TENSORS
    return json.loads(body[: int(at)]), body[int(at) :]


def output(value: object, *, declared: Mapping[str, Any] | None = None, binary: bool = False) -> dict[str, Any]:
    """The only output of a function that returns this."""
    request = asked(
        [], parameters={"binary_data_output": binary}, declared={"outputs": [declared] if declared else []}
    )
    header, raw = answered(request, value)
    (found,) = header["outputs"]
    if binary:
        assert found["parameters"]["binary_data_size"] == len(raw)
        found["raw"] = raw
    return dict(found)


def refused(request: Any) -> str:
    with pytest.raises(BadPayload) as caught:
        request()
    return str(caught.value)


# ---- inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", sorted(NUMPY))
def test_bytes_of_every_datatype_arrive(kind: str, datatype: str) -> None:
    sent: Any = np.array([[0, 1, 1], [1, 0, 1]], NUMPY[datatype])
    found = got(asked([tensor(datatype, [2, 3], size=sent.nbytes)], sent.tobytes()))
    assert plain(found) == sent.tolist()
    if kind == "numpy":
        assert found.dtype == sent.dtype
        assert not found.flags.writeable


@pytest.mark.parametrize("datatype", sorted(NUMPY.keys() - {"BF16"}))
@pytest.mark.parametrize("nested", [False, True])
def test_json_of_every_datatype_arrives(kind: str, datatype: str, nested: bool) -> None:
    sent: Any = np.array([[0, 1, 1], [1, 0, 1]], NUMPY[datatype])
    found = got(asked([tensor(datatype, [2, 3], sent.tolist() if nested else sent.ravel().tolist())]))
    assert plain(found) == sent.tolist()
    if kind == "numpy":
        assert found.dtype == sent.dtype


def test_bytes_of_bytes(kind: str) -> None:
    elements = [b"", b"a\0", b"\xff" * 300, "grüße".encode()]
    raw = b"".join(struct.pack("<I", len(one)) + one for one in elements)
    assert plain(got(asked([tensor("BYTES", [2, 2], size=len(raw))], raw))) == [elements[:2], elements[2:]]
    assert plain(got(asked([tensor("BYTES", [2], ["a", "grüße"])]))) == [b"a", "grüße".encode()]


def test_bytes_that_are_aligned_are_not_copied() -> None:
    data = np.arange(1000, dtype="<f8")
    head = json.dumps({"inputs": [tensor("FP64", [10, 100], size=data.nbytes)]}).encode()
    for blanks in range(8):
        padded = head + b" " * blanks
        body = padded + data.tobytes()
        found = got(tensors.Request(f"{TENSORS}; header={len(padded)}", body))
        assert np.array_equal(found, data.reshape(10, 100))
        assert found.flags.aligned
        assert np.shares_memory(found, np.frombuffer(body, np.uint8)) == (len(padded) % 8 == 0)


def test_several_inputs_in_their_order(kind: str) -> None:
    one, two = {**tensor("INT8", [2], size=2), "name": "a"}, {**tensor("INT16", [1], size=2), "name": "b"}
    found = asked([one, tensor("FP32", [1], [0.5]), two], b"\1\2", b"\3\0").arrays()
    assert {name: plain(value) for name, value in found.items()} == {"a": [1, 2], "x": [0.5], "b": [3]}


@pytest.mark.parametrize("shape", [[0], [0, 3], [3, 0], [2, 0, 3], [1, 1, 1], [], [1, 0]])
def test_shapes_at_the_edge(kind: str, shape: list[int]) -> None:
    count = math.prod(shape)
    wanted = np.zeros(shape, np.int32).tolist()
    assert plain(got(asked([tensor("INT32", shape, size=count * 4)], bytes(count * 4)))) == wanted
    assert plain(got(asked([tensor("INT32", shape, [0] * count)]))) == wanted


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_compressed(kind: str, pack: Any) -> None:
    head = json.dumps({"inputs": [tensor("INT8", [3], size=3)]}).encode()
    encoding = "gzip" if pack is gzip.compress else "deflate"
    said = f"{TENSORS}; header={len(head)}; encoding={encoding}; limit={len(head) + 3}"
    assert plain(got(tensors.Request(said, pack(head + b"\1\2\3")))) == [1, 2, 3]
    assert "more than" in refused(lambda: tensors.Request(said, pack(head + b"\1\2\3\4")))
    for broken in (b"", pack(head)[:-5], pack(head) + b"more", b"\x1f\x8b" + bytes(50)):
        refused(lambda broken=broken: tensors.Request(said, broken))


# ---- outputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", sorted(NUMPY.keys() - {"BF16"}))
def test_arrays_are_answered_as_they_are(datatype: str) -> None:
    array: Any = np.array([[0, 1, 1], [1, 0, 1]], NUMPY[datatype])
    for value in (
        array,
        np.asfortranarray(array),
        array[:, ::-1][:, ::-1],
        array.astype(array.dtype.newbyteorder()),
    ):
        found = output(value)
        assert (found["datatype"], found["shape"], found["data"]) == (datatype, [2, 3], array.ravel().tolist())
        assert output(value, binary=True)["raw"] == array.tobytes()


@pytest.mark.parametrize(
    ("value", "datatype", "shape", "data"),
    [
        (1.5, "FP64", [1], [1.5]),
        (True, "BOOL", [1], [True]),
        (7, "INT64", [1], [7]),
        ("text", "BYTES", [1], ["text"]),
        (b"bytes", "BYTES", [1], ["bytes"]),
        (["a", b"b\0"], "BYTES", [2], ["a", "b\0"]),
        ([[1, 2], [3, 4]], "INT64", [2, 2], [1, 2, 3, 4]),
        (((0.5, 2), (3, 4)), "FP64", [2, 2], [0.5, 2.0, 3.0, 4.0]),
        ([True, False], "BOOL", [2], [True, False]),
        ([], "FP64", [0], []),
        ([[]], "FP64", [1, 0], []),
    ],
)
def test_lists_are_answered_as_their_elements_suggest(
    kind: str, value: object, datatype: str, shape: list[int], data: object
) -> None:
    found = output(value)
    assert (found["name"], found["datatype"], found["shape"], found["data"]) == ("output", datatype, shape, data)


@pytest.mark.parametrize(
    ("value", "datatype", "raw"),
    [
        ([1, 2], "FP32", struct.pack("<2f", 1, 2)),
        ([0.5], "FP16", struct.pack("<e", 0.5)),
        ([1, 255], "UINT8", b"\1\xff"),
        ([True, False], "BOOL", b"\1\0"),
        (["a", ""], "BYTES", b"\1\0\0\0a\0\0\0\0"),
        (3, "INT16", b"\3\0"),
    ],
)
def test_declared_outputs_have_their_datatype(kind: str, value: object, datatype: str, raw: bytes) -> None:
    declared = {"name": "y", "datatype": datatype, "shape": [-1]}
    found = output(value, declared=declared, binary=True)
    assert (found["name"], found["datatype"], found["raw"]) == ("y", datatype, raw)
    assert output({"y": value}, declared=declared, binary=True) == found


@pytest.mark.parametrize(
    ("value", "datatype", "shape"),
    [
        ([0.5], "INT32", [1]),
        ([300], "UINT8", [1]),
        ([-1], "UINT64", [1]),
        (["a"], "FP32", [1]),
        ([1], "BYTES", [1]),
        ([1], "BOOL", [1]),
        ([1.0, 2.0], "FP32", [1]),
        ([1.0], "FP32", [1, 1]),
        ([[1.0], [2.0, 3.0]], "FP32", [-1, -1]),
        ([[1.0], 2.0], "FP32", [-1]),
        ([None], "FP32", [1]),
        (object(), "FP32", [1]),
        ({"z": 1.0}, "FP32", [1]),
        ({1: 1.0, "y": 2.0}, "FP32", [1]),
        (None, "FP32", [1]),
    ],
)
def test_what_is_not_as_declared_is_the_functions_fault(
    kind: str, value: object, datatype: str, shape: list[int]
) -> None:
    with pytest.raises(BadAnswer):
        output(value, declared={"name": "y", "datatype": datatype, "shape": shape}, binary=True)


def test_arrays_that_no_datatype_can_hold() -> None:
    for value in (np.array([1j]), np.array([object()]), np.array(["2020"], "M8[D]"), object()):
        with pytest.raises(BadAnswer):
            output(value)
    with pytest.raises(BadAnswer):
        output(np.array([1.5]), declared={"name": "y", "datatype": "INT32", "shape": [1]})


class TorchLike:
    """As much of a tensor of torch as is asked for."""

    def __init__(self, array: Any, dtype: str) -> None:
        self.array, self.dtype = array, dtype

    def detach(self) -> TorchLike:
        return self

    cpu = detach

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.array


def test_tensors_of_torch_are_taken_off_their_graph_and_device() -> None:
    found = output(TorchLike(np.ones((2, 1), np.float32), "torch.float32"))
    assert (found["datatype"], found["shape"], found["data"]) == ("FP32", [2, 1], [1.0, 1.0])


def test_bfloat16_goes_as_bytes_only() -> None:
    request = asked([tensor("BF16", [2], size=4)], b"\x80\x3f\0\0", parameters={"binary_data_output": True})
    declared = {"outputs": [{"name": "y", "datatype": "BF16", "shape": [2]}]}
    assert got(request).tolist() == [0x3F80, 0]
    head = asked([], parameters={"binary_data_output": True}, declared=declared)
    assert answered(head, got(request))[1] == b"\x80\x3f\0\0"
    assert "binary_data" in refused(lambda: answered(asked([], declared=declared), got(request)))
    refused(lambda: got(asked([tensor("BF16", [1], [1])])))


def test_several_outputs_by_dict_and_by_their_declared_order(kind: str) -> None:
    declared = {"outputs": [{"name": n, "datatype": "FP32", "shape": [-1]} for n in ("a", "b")]}
    for value in ({"b": [2.0], "a": [1.0]}, ([1.0], [2.0])):
        header, _ = answered(asked([], declared=declared), value)
        assert {one["name"]: one["data"] for one in header["outputs"]} == {"a": [1.0], "b": [2.0]}


def test_requested_outputs_in_the_requested_order_and_form(kind: str) -> None:
    wanted = [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}]
    header, raw = answered(asked([], outputs=wanted), {"a": [1], "b": [2], "c": [3]})
    assert [(one["name"], one.get("data")) for one in header["outputs"]] == [("b", None), ("a", [1])]
    assert raw == struct.pack("<q", 2)
    assert "the function returns: a" in refused(lambda: answered(asked([], outputs=wanted), {"a": [1]}))


def test_id_and_parameters_come_back() -> None:
    header, _ = answered(asked([], id="7", parameters={"p": 1, "q": "r", "binary_data_output": False}), 1.0)
    assert header["id"] == "7"
    assert header["parameters"] == {"p": 1, "q": "r"}
    assert (header["model_name"], header["model_version"]) == ("m", "3")
    assert "id" not in answered(asked([]), 1.0)[0]


def test_what_json_cannot_carry_goes_as_bytes(kind: str) -> None:
    for value, raw in (([math.nan, math.inf], struct.pack("<2d", math.nan, math.inf)), (b"\xff", b"\1\0\0\0\xff")):
        assert "binary_data" in refused(lambda value=value: output(value))
        assert output(value, binary=True)["raw"] == raw


def test_answers_over_the_limit(kind: str) -> None:
    for binary in (True, False):
        with pytest.raises(BadAnswer, match="over the limit"):
            answered(asked([], parameters={"binary_data_output": binary}), [1.0] * 1000, limit=1000)


# ---- hostile until proven otherwise --------------------------------------------------------------------------


BAD_INPUTS: list[Any] = [
    None, 5, {}, [5], [{}], [{"name": 5}], [{"name": ""}],
    [tensor("FP31", [1], [1])], [{"name": "x", "datatype": 5, "shape": [1]}],
    [tensor("INT8", [-1], [])], [tensor("INT8", [True], [1])], [tensor("INT8", [1.0], [1])],
    [tensor("INT8", [1] * 33, [1])], [tensor("INT8", [1 << 40], [])], [tensor("INT8", [1 << 16, 1 << 16], [])],
    [tensor("INT8", [0, 1 << 30], [])], [tensor("INT8", [1 << 62, 1 << 62, 1 << 62, 0], [])],
    [{"name": "x", "datatype": "INT8"}], [{"name": "x", "datatype": "INT8", "shape": {}}],
    [tensor("INT8", [2], [1])], [tensor("INT8", [2], [[1], [2, 3]])], [tensor("INT8", [2], [1, [2]])],
    [tensor("INT8", [1], [128])], [tensor("UINT8", [1], [-1])], [tensor("INT8", [1], [0.5])],
    [tensor("INT8", [1], [True])], [tensor("INT8", [1], ["1"])], [tensor("INT8", [1], [None])],
    [tensor("FP32", [1], [1e39])], [tensor("FP16", [1], [65505])], [tensor("FP64", [1], [10**400])],
    [tensor("BOOL", [1], [2])], [tensor("BOOL", [2], [True, 1])], [tensor("BYTES", [1], [1])],
    [tensor("INT8", [1], 5)], [tensor("INT8", [1])], [tensor("INT8", [1], [1]), tensor("INT8", [1], [1])],
    [{**tensor("INT8", [1], [1]), "parameters": 5}], [{**tensor("INT8", [1], [1]), "parameters": {"p": []}}],
    [{**tensor("INT8", [1], [1]), "parameters": {"binary_data_size": 1}}],
    [{**tensor("INT8", [1]), "parameters": {"shared_memory_region": "r"}}],
    [tensor("INT8", [1], size=1)], [tensor("INT8", [1], size=-1)], [tensor("INT8", [1], size=1 << 80)],
    [{**tensor("INT8", [1], size=1), "parameters": {"binary_data_size": True}}],
    [{**tensor("INT8", [1], size=1), "parameters": {"binary_data_size": 1.0}}],
]  # fmt: skip


@pytest.mark.parametrize("inputs", BAD_INPUTS)
def test_inputs_that_cannot_be_meant(kind: str, inputs: object) -> None:
    refused(lambda: asked(inputs).arrays())


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("INT32", [1], b"123"),
        ("INT32", [1], b"12345"),
        ("BOOL", [2], b"\1\2"),
        ("BYTES", [1], b"\1\0\0"),
        ("BYTES", [1], b"\2\0\0\0a"),
        ("BYTES", [1], b"\xff\xff\xff\xffa"),
        ("BYTES", [1], b"\1\0\0\0ab"),
        ("BYTES", [2], b"\4\0\0\0aaaa"),
        ("BYTES", [0], b"\0\0\0\0"),
    ],
)
def test_bytes_that_are_not_their_tensor(kind: str, datatype: str, shape: list[int], raw: bytes) -> None:
    refused(lambda: asked([tensor(datatype, shape, size=len(raw))], raw).arrays())


@pytest.mark.parametrize(
    "more",
    [
        {"id": 5}, {"parameters": []}, {"parameters": {"binary_data_output": 1}}, {"outputs": 5}, {"outputs": [5]},
        {"outputs": [{"name": 5}]}, {"outputs": [{"name": "a"}, {"name": "a"}]},
        {"outputs": [{"name": "a", "parameters": {"classification": 3}}]},
        {"outputs": [{"name": "a", "parameters": {"shared_memory_region": "r"}}]},
        {"outputs": [{"name": "a", "parameters": {"binary_data": "yes"}}]},
    ],
)  # fmt: skip
def test_wishes_that_cannot_be_meant(more: dict[str, Any]) -> None:
    refused(lambda: asked([], **more))


@pytest.mark.parametrize("said", ["5", "-1", "x", "", "1e3", "9" * 30, "²"])
def test_headers_that_end_elsewhere(said: str) -> None:
    refused(lambda: tensors.Request(f"{TENSORS}; header={said}", b"{}"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"5",
        b"[5]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"inputs": [], "x": NaN}',
        b"9" * 5000,
    ],
)
def test_bodies_that_are_no_request(body: bytes) -> None:
    refused(lambda: tensors.Request(TENSORS, body))
    refused(lambda: tensors.Request(TENSORS, b'{"inputs": ' + body + b"}"))


def test_inputs_are_held_to_what_is_declared(kind: str) -> None:
    declared = {"inputs": [{"name": "x", "datatype": "INT8", "shape": [-1, 2]}]}
    good = tensor("INT8", [1, 2], [1, 2])
    assert plain(asked([good], declared=declared).arrays()["x"]) == [[1, 2]]
    for bad in (
        [],
        [tensor("INT16", [1, 2], [1, 2])],
        [tensor("INT8", [2, 1], [1, 2])],
        [tensor("INT8", [2], [1, 2])],
        [good, {**good, "name": "y"}],
    ):
        refused(lambda bad=bad: asked(bad, declared=declared))
    outputs = {"outputs": [{"name": "y", "datatype": "INT8", "shape": [1]}]}
    assert "there are: y" in refused(lambda: asked([], outputs=[{"name": "z"}], declared=outputs))


@pytest.mark.parametrize(
    "shape", [[65536, 0], [0, 65536], [1] * 32, [65536, *[1] * 31], [256, 256, *[1] * 29, 0], [2, *[1] * 31]]
)
def test_small_requests_take_little_memory(bare: None, shape: list[int]) -> None:
    count = math.prod(shape)
    tracemalloc.start()
    try:
        with contextlib.suppress(BadPayload):  # which is cheap as well
            asked([tensor("INT8", shape, size=count)], bytes(count)).arrays()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_a_bomb_takes_no_more_than_the_limit() -> None:
    packed = zlib.compress(bytes(30_000_000), 9)
    tracemalloc.start()
    try:
        refused(lambda: tensors.Request(f"{TENSORS}; encoding=deflate; limit=1000000", packed))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalars, lambda kids: st.lists(kids, max_size=4) | st.dictionaries(st.text(max_size=5), kids, max_size=3)
)
sizes = st.integers(-2, 5) | st.integers(-(2**70), 2**70)
a_tensor = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y", ""]) | anything,
        "datatype": st.sampled_from([*NUMPY, "BYTES"]) | anything,
        "shape": st.lists(sizes, max_size=4) | anything,
        "data": st.lists(st.integers(-1, 2) | scalars, max_size=6) | anything,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": sizes}) | anything,
    },
)
a_request = st.fixed_dictionaries(
    {"inputs": st.lists(a_tensor, max_size=3) | anything},
    optional={
        "id": anything,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_output": st.booleans(), "p": anything}),
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(["output", "x"])}, optional={}), max_size=2
        )
        | anything,
    },
)
lengths = st.none() | st.integers(-3, 400) | st.integers(-(2**70), 2**70)


def attempt(kind: str, body: bytes, library: Any) -> None:
    """Whatever it is: a request, or the client's fault. And what was understood can be answered."""
    before, tensors._numpy = tensors._numpy, library
    try:
        request = tensors.Request(kind, body)
        request.lists()
        found = request.arrays()
        said, answer = request.encode(found, LIMIT)
        header = int(said.partition("; header=")[2])
        json.loads(answer[:header])
    except BadPayload as error:
        assert str(error)
        assert len(str(error)) < 2000 + 2 * len(body)
    finally:
        tensors._numpy = before


@given(a_request, st.binary(max_size=40), lengths, st.sampled_from([np, None]))
def test_no_request_is_anybody_elses_fault(said: object, raw: bytes, length: int | None, library: Any) -> None:
    head = json.dumps(said).encode()
    attempt(f"{TENSORS}; header={len(head) if length is None else length}", head + raw, library)


@given(st.text(max_size=60), st.binary(max_size=100), st.sampled_from([np, None]))
def test_no_content_type_is_either(more: str, body: bytes, library: Any) -> None:
    attempt(f"{TENSORS};{more}", body, library)


@given(st.sampled_from(["gzip", "deflate"]), st.binary(max_size=60))
def test_nor_what_claims_to_be_compressed(encoding: str, body: bytes) -> None:
    attempt(f"{TENSORS}; encoding={encoding}; limit=1000", body, np)
    attempt(f"{TENSORS}; encoding={encoding}; limit=1000; header=2", zlib.compress(b"{}" + body), np)


@given(
    st.lists(st.sampled_from([*NUMPY]), min_size=1, max_size=3),
    st.lists(st.integers(0, 3), max_size=4),
    st.binary(min_size=700, max_size=700),
    st.sampled_from([np, None]),
)
def test_what_is_sent_as_bytes_comes_back_the_same(
    kinds: list[str], shape: list[int], noise: bytes, library: Any
) -> None:
    """Through a function that returns its inputs. Lists know no sizes behind a 0, and no payloads of NaNs."""
    assume(library is not None or (0 not in shape and not any(kind.startswith("FP") for kind in kinds)))
    inputs, raw = [], b""
    for place, datatype in enumerate(kinds):
        size = math.prod(shape) * np.dtype(NUMPY[datatype]).itemsize
        part = bytes(byte & 1 for byte in noise[:size]) if datatype == "BOOL" else noise[:size]
        inputs.append({**tensor(datatype, shape, size=size), "name": str(place)})
        raw += part
    declared = [{"name": one["name"], "datatype": one["datatype"], "shape": one["shape"] or [1]} for one in inputs]
    before, tensors._numpy = tensors._numpy, library
    try:
        request = asked(inputs, raw, declared={"outputs": declared}, parameters={"binary_data_output": True})
        header, answer = answered(request, request.arrays())
    finally:
        tensors._numpy = before
    assert answer == raw
    assert [one["datatype"] for one in header["outputs"]] == kinds


# ---- the gateway's part --------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.data())
def test_blanks_go_where_the_header_ends(body: bytes, data: st.DataObject) -> None:
    header = data.draw(st.integers(0, len(body)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=4)))
    parts: list[bytes | memoryview] = [
        body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)
    ]
    inference._pad(parts, header)
    blanks = b" " * (-header % inference.ALIGNED)
    assert b"".join(parts) == body[:header] + blanks + body[header:]


@given(st.text(max_size=40), st.integers(0, 100))
def test_an_answers_type_is_believed_only_as_far_as_it_can_be_true(more: str, size: int) -> None:
    found = inference._header_of(f"{TENSORS}; header={more}", size)
    assert found is None or 0 <= found <= size
    assert inference._header_of(f"{TENSORS}; header={size}", size) == size
    assert inference._header_of(f"{TENSORS}; header={size + 1}", size) is None
    assert inference._header_of("application/json", size) is None


@pytest.mark.parametrize(
    ("path", "namespace", "function", "version", "verb"),
    [
        ("m", "default", "m", "", ""),
        ("m/infer", "default", "m", "", "infer"),
        ("infer", "default", "infer", "", ""),
        ("infer/infer", "default", "infer", "", "infer"),
        ("n/m", "n", "m", "", ""),
        ("n/m/versions/2/ready", "n", "m", "2", "ready"),
        ("m/versions/2", "default", "m", "2", ""),
        ("versions/m", "versions", "m", "", ""),
        ("m/versions/2/stats", "default", "m", "2", "stats"),
    ],
)
def test_paths_of_models(path: str, namespace: str, function: str, version: str, verb: str) -> None:
    found = inference._parsed(OWNER, path.split("/"))
    assert found[1:] == (namespace, function, version, verb)
    assert inference._parsed(Principal("mine", Role.INVOKE), ["m"]).namespace == "mine"


# ---- what function.toml says ---------------------------------------------------------------------------------


def test_declared_tensors_are_read_and_merged() -> None:
    said = {"inputs": [{"name": "x", "datatype": "fp32", "shape": [-1, 4]}], "outputs": []}
    found = settings_from(said, "function.toml")
    assert found.inputs == (Tensor(name="x", datatype="FP32", shape=(-1, 4)),)
    other = found.merged({"inputs": [{"name": "y", "datatype": "BYTES", "shape": []}]})
    assert [one.name for one in other.inputs] == ["y"]


@pytest.mark.parametrize(
    "value",
    [
        5, "x", [5], [{}], [{"name": "x", "datatype": "FP32"}],
        [{"name": "", "datatype": "FP32", "shape": [1]}], [{"name": "x", "datatype": "FP31", "shape": [1]}],
        [{"name": "x", "datatype": "FP32", "shape": [-2]}], [{"name": "x", "datatype": "FP32", "shape": [0.5]}],
        [{"name": "x", "datatype": "FP32", "shape": [1] * 33}],
        [{"name": "x", "datatype": "FP32", "shape": [1], "dims": 1}],
        [{"name": "x", "datatype": "FP32", "shape": [1]}] * 2,
        [{"name": str(n), "datatype": "FP32", "shape": [1]} for n in range(300)],
    ],
)  # fmt: skip
def test_declared_tensors_that_cannot_be_meant(value: object) -> None:
    with pytest.raises(BadSettings, match=r"function\.toml: inputs = ") as caught:
        settings_from({"inputs": value}, "function.toml")
    assert caught.value.hint


def test_datatypes_are_known_alike_by_both_sides() -> None:
    assert set(DATATYPES) == {*datatypes.NUMBERS, datatypes.BYTES}
