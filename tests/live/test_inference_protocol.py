"""The Open Inference Protocol v2, spoken by the clients that people have: tritonclient and kserve, unmodified."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import re
import struct
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from instainfer.client import Client
from instainfer.gateway.inference import HEADER
from tests.live.server_helpers import Server, eventually

pytestmark = pytest.mark.slow

triton = pytest.importorskip("tritonclient.http")
BasicAuth = pytest.importorskip("tritonclient.http.auth").BasicAuth

SETTINGS: dict[str, Any] = {"python": sys.executable, "memory": "128MB"}  # where there is numpy
TENSORS: dict[str, Any] = {
    "inputs": [{"name": "x", "datatype": "fp32", "shape": [-1, 4]}],
    "outputs": [
        {"name": "twice", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "names", "datatype": "BYTES", "shape": [2]},
    ],
}
MODEL = r"""
import numpy as np

class Model:
    def load(self):
        self.factor = np.float32(2)

    def predict(self, inputs):
        x = inputs["x"]
        assert isinstance(x, np.ndarray) and x.flags.aligned and not x.flags.owndata, x.flags
        return {"twice": x * self.factor, "names": np.array([b"a\0", "grüße".encode()], dtype=object)}
"""
MIRROR = """
def handler(inputs):
    return inputs
"""
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def model(server: Server) -> Iterator[str]:
    server.deploy("oip", "model", MODEL, **SETTINGS, **TENSORS)
    yield "oip/model"
    server.client.delete("oip", "model")


@pytest.fixture(scope="module")
def mirror(server: Server) -> Iterator[str]:
    """It returns what it is given, and declares nothing."""
    server.deploy("oip", "mirror", MIRROR, **SETTINGS)
    yield "oip/mirror"
    server.client.delete("oip", "mirror")


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as found:
        yield found


def given(name: str, array: Any, datatype: str, *, binary: bool = True) -> Any:
    one = triton.InferInput(name, list(array.shape), datatype)
    one.set_data_from_numpy(array, binary_data=binary)
    return one


# ---- tritonclient --------------------------------------------------------------------------------------------


def test_triton_asks_about_server_and_models(client: Any, model: str, mirror: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert client.is_model_ready(model, "1")
    assert not client.is_model_ready(model, "2")
    assert not client.is_model_ready("oip/nosuch")
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(
        client.get_server_metadata()["extensions"]
    )
    told = client.get_model_metadata(model)
    assert (told["name"], told["versions"]) == (model, ["1"])
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert [one["datatype"] for one in told["outputs"]] == ["FP32", "BYTES"]
    assert client.get_model_metadata(model, "1") == told
    assert client.get_model_config(model)["output"][1] == {
        "name": "names",
        "data_type": "TYPE_STRING",
        "dims": [2],
    }
    assert client.get_model_metadata(mirror)["inputs"] == []


@pytest.mark.parametrize("binary", [True, False])
def test_triton_infers(client: Any, model: str, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("names", "twice")]
    for outputs in (None, wanted):
        found = client.infer(model, [given("x", X, "FP32", binary=binary)], outputs=outputs, request_id="7")
        assert np.array_equal(found.as_numpy("twice"), X * 2)
        assert [one if isinstance(one, bytes) else one.encode() for one in found.as_numpy("names")] == [
            b"a\0",
            "grüße".encode(),
        ]
        response = found.get_response()
        assert (response["id"], response["model_name"], response["model_version"]) == ("7", model, "1")
    assert [one["name"] for one in response["outputs"]] == ["names", "twice"]
    found = client.infer(model, [given("x", X, "FP32")], model_version="1", parameters={"mine": 5})
    assert found.get_response()["parameters"] == {"mine": 5}


def test_triton_infers_with_every_datatype(client: Any, mirror: str) -> None:
    for datatype, array in {
        "BOOL": np.array([[True], [False]]),
        "INT8": np.array([-128, 127], np.int8),
        "INT16": np.array([-5], np.int16),
        "INT32": np.array([1 << 30], np.int32),
        "INT64": np.array([-(1 << 63)], np.int64),
        "UINT8": np.array([255], np.uint8),
        "UINT16": np.array([65535], np.uint16),
        "UINT32": np.array([1 << 31], np.uint32),
        "UINT64": np.array([(1 << 64) - 1], np.uint64),
        "FP16": np.array([0.5], np.float16),
        "FP32": np.array([np.nan, np.inf, 1e-40], np.float32),
        "FP64": np.array([[[1e300]]]),
        "BYTES": np.array([b"", b"\0\xff"], dtype=object),
    }.items():
        found = client.infer(mirror, [given("any", array, datatype)])
        assert found.get_response()["outputs"][0]["datatype"] == datatype
        assert np.array_equal(found.as_numpy("any"), array, equal_nan=datatype.startswith("FP"))
    raw = triton.InferInput("any", [2], "BF16")
    raw._raw_data, raw._parameters["binary_data_size"] = b"\x80\x3f\0\0", 4
    assert client.infer(mirror, [raw]).as_numpy("any").tolist() == [0x3F80, 0]


def test_triton_compresses_and_asks_at_the_same_time(client: Any, model: str) -> None:
    for algorithm in ("gzip", "deflate"):
        found = client.infer(
            model,
            [given("x", X, "FP32")],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        assert np.array_equal(found.as_numpy("twice"), X * 2)
    under_way = [client.async_infer(model, [given("x", X + n, "FP32")]) for n in range(5)]
    for n, one in enumerate(under_way):
        assert np.array_equal(one.get_result().as_numpy("twice"), (X + n) * 2)


def test_triton_is_told_what_is_wrong(client: Any, model: str) -> None:
    def told(status: str, ask: Any) -> str:
        with pytest.raises(triton.InferenceServerException) as caught:
            ask()
        assert caught.value.status() == status
        return str(caught.value.message())

    good = [given("x", X, "FP32")]
    assert "no model 'oip/nosuch'" in told("404", lambda: client.infer("oip/nosuch", good))
    assert "version 9" in told("404", lambda: client.infer(model, good, model_version="9"))
    assert "INT32" in told("400", lambda: client.infer(model, [given("x", X.astype(np.int32), "INT32")]))
    assert "shape" in told("400", lambda: client.infer(model, [given("x", X.T.copy(), "FP32")]))
    assert "no input 'y'" in told("400", lambda: client.infer(model, [*good, given("y", X, "FP32")]))
    wanted = [triton.InferRequestedOutput("nosuch")]
    assert "nosuch" in told("400", lambda: client.infer(model, good, outputs=wanted))
    wanted = [triton.InferRequestedOutput("twice", class_count=3)]
    assert "not offered" in told("400", lambda: client.infer(model, good, outputs=wanted))
    shared = triton.InferInput("x", [2, 4], "FP32")
    shared.set_shared_memory("region", 32)
    assert "shared memory" in told("400", lambda: client.infer(model, [shared]))
    for missing in (client.get_trace_settings, client.get_log_settings, client.get_system_shared_memory_status):
        assert "nothing at" in told("404", missing)
    assert "parameters" in told("400", lambda: client.load_model(model, config="{}"))
    told("404", lambda: client.load_model("oip/nosuch"))
    told("404", lambda: client.unload_model("oip/nosuch"))


def test_triton_loads_and_unloads(client: Any, server: Server, ns: str) -> None:
    def state(name: str) -> str:
        rows = [one for one in client.get_model_repository_index() if one["name"] == name]
        return str(rows[0]["state"])

    server.deploy(ns, "guest", "def handler(inputs):\n    return 1\n")
    with pytest.raises(triton.InferenceServerException, match="no idle warm container") as caught:
        client.load_model(f"{ns}/guest")
    assert caught.value.status() == "409"
    assert state(f"{ns}/guest") == "UNAVAILABLE"
    assert client.is_model_ready(f"{ns}/guest")  # it would be served
    server.deploy(ns, "host", "def handler(event):\n    return 1\n", memory="256MB")
    server.result(ns, "host")
    client.load_model(f"{ns}/guest")
    assert state(f"{ns}/guest") == "READY"
    assert server.state(ns, "guest") == "preloaded"
    client.unload_model(f"{ns}/guest")
    eventually(lambda: state(f"{ns}/guest") == "UNAVAILABLE")


def test_a_load_that_fails_says_so(client: Any, server: Server, ns: str) -> None:
    server.deploy(ns, "host", "def handler(event):\n    return 1\n", memory="256MB")
    server.result(ns, "host")
    server.deploy(ns, "frail", "def handler(event):\n    return 1\n")
    (server.package(ns, "frail") / "main.py").write_text("raise ValueError('now it fails')\n")
    with pytest.raises(triton.InferenceServerException, match="was not loaded") as caught:
        client.load_model(f"{ns}/frail")
    assert caught.value.status() == "502"


def test_triton_asks_for_statistics(client: Any, server: Server, ns: str) -> None:
    server.deploy(ns, "counted", "def handler(inputs):\n    return 1 / inputs['x'][0]\n")
    assert client.get_inference_statistics(f"{ns}/counted")["model_stats"][0]["inference_count"] == 0
    for n in (1, 2):
        client.infer(f"{ns}/counted", [given("x", np.array([n]), "INT64")])
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer(f"{ns}/counted", [given("x", np.array([0]), "INT64")])
    assert (caught.value.status(), caught.value.message()) == ("502", "ZeroDivisionError: division by zero")
    (one,) = client.get_inference_statistics(f"{ns}/counted", "1")["model_stats"]
    assert (one["inference_count"], one["inference_stats"]["fail"]["count"]) == (2, 1)
    assert one["inference_stats"]["success"]["ns"] > one["inference_stats"]["compute_infer"]["ns"] > 0
    assert one["last_inference"] > 0
    assert f"{ns}/counted" in [one["name"] for one in client.get_inference_statistics()["model_stats"]]


# ---- kserve --------------------------------------------------------------------------------------------------


#: The package, and what its REST client imports. It wants an older psutil than we do, which that client does not
#: use, so they cannot be in one environment.
KSERVE = {
    "kserve": "kserve==0.21.0", "grpc": "grpcio", "google.protobuf": "protobuf<7", "orjson": "orjson",
    "pandas": "pandas<3", "cloudevents": "cloudevents<2", "dateutil": "python-dateutil", "pytz": "pytz",
    "six": "six", "yaml": "PyYAML", "deprecation": "deprecation", "packaging": "packaging",
}  # fmt: skip


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module")
def kserve(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its REST client alone: the package's own `__init__` wants Kubernetes and a server's libraries."""
    missing = [requirement for module, requirement in KSERVE.items() if not _there(module)]
    if missing:
        folder = tmp_path_factory.mktemp("kserve")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(folder),
            *missing,
        ]
        subprocess.run(command, check=True, timeout=110)
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    found = importlib.util.find_spec("kserve")
    assert found is not None
    assert found.submodule_search_locations is not None
    if "kserve" not in sys.modules:
        package = types.ModuleType("kserve")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["kserve"] = package
    return importlib.import_module("kserve.inference_client"), importlib.import_module(
        "kserve.protocol.infer_type"
    )


@pytest.mark.parametrize("binary", [True, False])
def test_kserve_speaks_to_it(server: Server, model: str, kserve: Any, binary: bool) -> None:
    clients, kinds = kserve

    async def talk() -> None:
        client = clients.InferenceRESTClient(clients.RESTConfig(protocol="v2"))
        assert await client.is_server_live(server.url)
        assert await client.is_server_ready(server.url)
        assert await client.is_model_ready(server.url, model)
        assert not await client.is_model_ready(server.url, "oip/nosuch")
        x = kinds.InferInput("x", [2, 4], "FP32")
        x.set_data_from_numpy(X, binary_data=binary)
        for wanted in ([], [kinds.RequestedOutput("twice", {"binary_data": binary})]):
            request = kinds.InferRequest(model, [x], request_id="8", request_outputs=wanted)
            found = await client.infer(server.url, request, model_name=model)
            assert found.id == "8"
            assert np.array_equal(found.get_output_by_name("twice").as_numpy(), X * 2)
        assert [one.name for one in found.outputs] == ["twice"]
        bad = kinds.InferRequest(model, [kinds.InferInput("y", [1], "FP32", [1.0])])
        with pytest.raises(httpx.HTTPStatusError, match=r"no input 'y'.*400 Bad Request"):
            await client.infer(server.url, bad, model_name=model)
        await client.close()

    asyncio.run(talk())


# ---- functions that have no numpy ----------------------------------------------------------------------------


def test_without_numpy_tensors_are_lists(client: Any, server: Server, ns: str) -> None:
    source = """
    import sys
    def handler(inputs):
        return {"y": [sum(row) for row in inputs["x"]], "n": "numpy" in sys.modules}
    """
    server.deploy(ns, "lists", source)
    found = client.infer(f"{ns}/lists", [given("x", X, "FP32")])
    assert found.as_numpy("y").tolist() == [6.0, 22.0]
    assert found.as_numpy("n").tolist() == [False]


def test_a_script_gets_a_line_and_prints_one(client: Any, server: Server, ns: str) -> None:
    source = """
    import json, sys
    while line := sys.stdin.readline():
        said = json.loads(line)
        print(json.dumps({"y": said["x"], "t": said["t"] + [said["extra"]]}))
    """
    server.deploy(ns, "script", source, params={"extra": "more"})
    texts = np.array([b"one"], dtype=object)
    found = client.infer(f"{ns}/script", [given("x", X, "FP32"), given("t", texts, "BYTES")])
    assert np.array_equal(found.as_numpy("y"), X)
    assert found.as_numpy("t").tolist() == [b"one", b"more"]


def test_its_sample_is_a_request(server: Server, ns: str) -> None:
    sample = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
    deployed = server.deploy(
        ns, "warmed", MODEL, files={"sample.json": sample}, sample="sample.json", **SETTINGS, **TENSORS
    )
    assert '"data":[2.0,4.0,6.0,8.0]' in deployed["profile"]["answer"]
    assert deployed["profile"]["paths"]["zygote"]["used"]


# ---- by hand -------------------------------------------------------------------------------------------------


def test_every_address_that_is_told_is_there(server: Server, model: str) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/reference/http.md").read_text("utf-8")
    told = re.findall(r"`(GET|POST) (/v2[^`]*)`", text)
    assert len(told) > 10
    for method, path in told:
        for name in (model, f"{model}/versions/1") if path.startswith("/v2/models/{model}") else (model,):
            status = server.http.request(method, path.replace("{model}", name)).status_code
            assert status == (400 if path.endswith("/infer") else 200), (method, path, status)


def test_both_health_addresses_send_both_keys(server: Server) -> None:
    for name in ("live", "ready"):
        response = server.http.get(f"/v2/health/{name}")
        assert (response.status_code, response.json()) == (200, {"live": True, "ready": True})


def test_answers_carry_what_every_answer_carries(server: Server, model: str) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [[1, 2, 3, 4]]}]}
    response = server.http.post(f"/v2/models/{model}/infer", json=body)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-instainfer-start"]
    assert "inference;dur=" in response.headers["server-timing"]
    assert server.client.activation(response.headers["x-instainfer-activation"])["status"] == "ok"


def test_nothing_that_is_sent_is_a_fault_of_the_server(server: Server, mirror: str, neighbour: None) -> None:
    """Every one is refused in the protocol's words, and the same process answers the next."""
    name = HEADER.decode()
    path = f"/v2/models/{mirror}/infer"
    good = json.dumps({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}]}).encode()
    binary = json.dumps(
        {"inputs": [{"name": "x", "datatype": "INT8", "shape": [3], "parameters": {"binary_data_size": 3}}]}
    ).encode()
    assert server.http.post(path, content=good).status_code == 200
    bodies: list[tuple[int, bytes, dict[str, str]]] = [
        (400, b"", {}),
        (400, b"[" * 100_000, {}),
        (400, b'{"inputs": ' + b'{"a":' * 100_000, {}),
        (400, b"\x00\xff", {}),
        (400, good, {name: "-1"}),
        (400, good, {name: "x"}),
        (400, good, {name: "9" * 40}),
        (400, good, {name: str(len(good) + 1)}),
        (400, good, {name: str(len(good) - 1)}),
        (400, binary, {name: str(len(binary))}),
        (400, binary + b"ab", {name: str(len(binary))}),
        (400, binary + b"abcd", {name: str(len(binary))}),
        (400, binary + b"abc", {}),
        (400, good.replace(b"[1]", b"[1073741824, 1073741824]"), {}),
        (400, good.replace(b'"shape": [1]', b'"shape": [-1]'), {}),
        (400, good, {"content-encoding": "gzip"}),
        (400, good, {"content-encoding": "br"}),
        (400, gzip.compress(bytes(13_000_000)), {"content-encoding": "gzip"}),
        (413, bytes(12_000_001), {}),
    ]
    for status, body, headers in bodies:
        response = server.http.post(path, content=body, headers=headers)
        assert response.status_code == status, (body[:60], headers, response.text)
        assert set(response.json()) == {"error"}
        assert response.json()["error"]
    response = server.http.post(path, content=binary + b"\1\2\3", headers={name: str(len(binary))})
    assert (response.headers["x-instainfer-start"], response.json()["outputs"][0]["data"]) == ("warm", [1, 2, 3])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nosuch", 404),
        ("GET", "/v2x", 404),
        ("GET", "/v2/models/a/b/c/d", 404),
        ("GET", "/v2/models/nosuch", 404),
        ("GET", "/v2/models/%00/ready", 404),
        ("GET", "/v2/models/../infer", 404),
        ("GET", "/v2/models/oip/mirror/infer", 405),
        ("POST", "/v2/models/oip/mirror", 405),
        ("POST", "/v2", 405),
        ("GET", "/v2/repository/index", 405),
        ("DELETE", "/v2/models/oip/mirror/ready", 405),
        ("POST", "/v2/repository/models/nosuch/load", 404),
        ("POST", "/v2/repository/models/a/b/c/load", 404),
    ],
)
def test_addresses_that_there_are_not(server: Server, mirror: str, method: str, path: str, status: int) -> None:
    response = server.http.request(method, path)
    assert (response.status_code, set(response.json())) == (status, {"error"}), response.text


def test_answers_that_are_no_tensors(server: Server, ns: str) -> None:
    answers = {"nothing": "None", "ragged": "[[1], [2, 3]]", "object": "object()", "large": "bytes(13_000_000)"}
    body: dict[str, Any] = {"inputs": []}
    for name, answer in answers.items():
        server.deploy(ns, name, f"def handler(inputs):\n    return {answer}\n")
        response = server.http.post(f"/v2/models/{ns}/{name}/infer", json=body)
        assert (response.status_code, set(response.json())) == (502, {"error"}), (name, response.text)


def test_the_plain_face_takes_tensors_too(server: Server, mirror: str) -> None:
    """By the content type that they travel with, so that `Prefer: respond-async` is there for them as well."""
    head = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}]}
    ).encode()
    kind = f"application/vnd.instainfer.tensors; header={len(head)}"
    response = server.http.post(
        f"/f/{mirror}", content=head + struct.pack("<2f", 1, 2), headers={"content-type": kind}
    )
    assert response.json()["outputs"] == [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}]
    assert (
        response.headers["content-type"] == f"application/vnd.instainfer.tensors; header={len(response.content)}"
    )


def test_a_key_sees_its_namespace_by_bare_names(own: Server) -> None:
    own.deploy("default", "theirs", MIRROR)
    own.deploy("mine", "m", MIRROR)
    with Client(data_dir=own.data) as owner:
        key = owner.add_namespace("mine", "invoke")["auth"]
        host = own.url.removeprefix("http://")
        with triton.InferenceServerClient(host) as stranger:
            with pytest.raises(triton.InferenceServerException, match="no key") as caught:
                stranger.get_server_metadata()
            assert caught.value.status() == "401"
        headers = {"Authorization": f"Bearer {key}"}
        with triton.InferenceServerClient(host) as client:

            def ask(name: str) -> Any:
                return client.infer(name, [given("x", X, "FP32")], headers=headers)

            for name in ("m", "mine/m"):
                assert np.array_equal(ask(name).as_numpy("x"), X)
            assert [one["name"] for one in client.get_model_repository_index(headers=headers)] == ["m"]
            (stats,) = client.get_inference_statistics(headers=headers)["model_stats"]
            assert (stats["name"], stats["inference_count"]) == ("m", 2)
            refused: list[tuple[Any, str]] = [
                (lambda: ask("theirs"), "404"),
                (lambda: ask("default/theirs"), "403"),
                (lambda: ask("nowhere/theirs"), "403"),
                (lambda: client.load_model("m", headers=headers), "403"),
                (lambda: client.unload_model("m", headers=headers), "403"),
            ]
            for call, status in refused:
                with pytest.raises(triton.InferenceServerException) as caught:
                    call()
                assert caught.value.status() == status
            client.register_plugin(BasicAuth(*key.split(":")))
            assert client.is_model_ready("m")
