"""Object snapshots of what is torch's. No pytest: `python torch_snapshot_checks.py` in an interpreter with torch
prints what it checked and exits 0, or ends with the traceback of the first check that failed."""

from __future__ import annotations

import collections
import functools
import gc
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2] / "src"), str(HERE.parent)]

import numpy as np  # noqa: E402  # the path comes first
import torch  # type: ignore[import-not-found]  # noqa: E402  # not among the project's own dependencies
from torch import nn  # noqa: E402

from instainfer.runtime import snapshot  # noqa: E402  # found by the path above

if __name__ == "__main__":  # its classes are to be found by other processes
    import torch_snapshot_checks  # type: ignore[import-not-found]  # this file

    sys.exit(torch_snapshot_checks.main())

NUMBERS = itertools.count()
CHECKS: list[Any] = []


@functools.cache
def folder() -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(prefix="snapshot"))


def check(function: Any) -> Any:
    CHECKS.append(function)
    return function


def written(model: object) -> pathlib.Path:
    path = folder() / f"{next(NUMBERS)}.snapshot"
    snapshot.write(model, str(path), "key")
    return path


def restored(path: pathlib.Path) -> Any:
    found = path.stat()
    return snapshot.restore(str(path), "key", found.st_size, found.st_ino)


def again(model: Any) -> Any:
    return restored(written(model))


def refusal(model: object) -> str:
    try:
        written(model)
    except snapshot.Refused as refused:
        return str(refused)
    raise AssertionError("not refused")


class Net(nn.Module):  # type: ignore[misc]  # torch is not there for mypy
    """Tied weights, a buffer that is not saved, a frozen layer, a normalised one, a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(500, 32)
        self.conv = nn.Conv1d(32, 64, 3)
        self.norm = nn.BatchNorm1d(64)
        self.frozen = nn.Linear(64, 32).requires_grad_(False)
        self.out = nn.Linear(32, 500, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(500, dtype=torch.bool), persistent=False)
        self.register_forward_hook(count)
        self.called = 0

    def forward(self, x: Any) -> Any:
        y = self.norm(self.conv(self.embed(x).transpose(1, 2))).mean(-1)
        return self.out(self.frozen(torch.relu(y))).masked_fill(~self.mask, 0)


def count(net: Any, given: object, result: object) -> None:
    net.called += 1


INPUT = torch.arange(60).reshape(4, 15)


@check
def a_module_answers_as_before() -> None:
    net = Net().eval()
    with torch.no_grad():
        expected = net(INPUT)
        copy = again(net)
        assert torch.equal(copy(INPUT), expected)
    assert (net.called, copy.called) == (1, 2)
    assert not copy.training
    assert list(copy.state_dict()) == list(net.state_dict())
    assert [type(each) for each in copy.parameters()] == [nn.Parameter] * len(list(net.parameters()))
    assert [each.requires_grad for each in copy.parameters()] == [each.requires_grad for each in net.parameters()]
    assert "mask" in dict(copy.named_buffers())


@check
def weights_that_were_tied_are_tied() -> None:
    copy = again(Net())
    assert copy.out.weight is copy.embed.weight
    with torch.no_grad():
        copy.out.weight[3] = 9
    assert copy.embed.weight[3, 0] == 9


@check
def views_and_other_tensors_of_one_storage_share_it() -> None:
    whole = torch.arange(10_000.0)
    parts = {
        "whole": whole,
        "rows": whole.view(100, 100)[5:10],
        "columns": whole.view(100, 100).t()[3],
        "every other": whole[::2],
        "bits": whole.view(torch.int32),
        "parameter": nn.Parameter(whole[100:200]),
        "array": whole.numpy(),
        "storage": whole.untyped_storage(),
    }
    copy = again(parts)
    for name in ("whole", "rows", "columns", "every other", "bits", "parameter"):
        assert torch.equal(copy[name], parts[name]), name
        assert copy[name].stride() == parts[name].stride(), name
    copy["whole"].fill_(1.5)
    for name in ("rows", "columns", "every other", "parameter"):
        assert (copy[name] == 1.5).all(), name
    assert (copy["array"] == 1.5).all()
    assert copy["storage"].data_ptr() == copy["whole"].data_ptr()


@check
def every_kind_of_tensor() -> None:
    floats = torch.randn(2000)
    kinds = {
        str(dtype): floats.to(dtype)
        for dtype in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.float8_e4m3fn,
            torch.complex64,
            torch.int8,
            torch.uint8,
            torch.uint16,
            torch.bool,
        )
    }
    kinds["scalar"] = torch.tensor(3)
    kinds["empty"] = torch.zeros(0, 5)
    kinds["empty storage with a shape"] = torch.zeros(0, 5, 7).transpose(0, 1)
    kinds["expanded"] = torch.ones(1).expand(3000)
    kinds["channels last"] = torch.randn(2, 8, 16, 16).to(memory_format=torch.channels_last)
    kinds["conjugate"] = torch.randn(900, dtype=torch.complex64).conj()
    copies = again(kinds)
    for name, tensor in kinds.items():
        copy = copies[name]
        assert (copy.dtype, copy.shape, copy.stride()) == (tensor.dtype, tensor.shape, tensor.stride()), name
        assert copy.is_conj() == tensor.is_conj(), name
        if tensor.dtype.itemsize == 1:
            copy, tensor = copy.view(torch.uint8), tensor.view(torch.uint8)
        assert torch.equal(copy, tensor), name
    sparse = torch.eye(500).to_sparse()
    assert torch.equal(again(sparse).to_dense(), sparse.to_dense())
    assert torch.equal(again(sparse.to_dense().to_sparse_csr()).to_dense(), sparse.to_dense())
    legacy = torch.FloatStorage(2000).fill_(2)
    assert list(again(legacy)) == list(legacy)


@check
def quantised_tensors() -> None:
    floats = torch.randn(50, 40)
    for tensor in (
        torch.quantize_per_tensor(floats, 0.1, 10, torch.quint8),
        torch.quantize_per_channel(floats, torch.full((50,), 0.1), torch.zeros(50), 0, torch.qint8),
    ):
        copy = again(tensor)
        assert torch.equal(copy.int_repr(), tensor.int_repr())
        assert torch.equal(copy.dequantize(), tensor.dequantize())


@check
def attributes_and_subclasses_of_tensors() -> None:
    tensor = torch.randn(1000)
    tensor.label = "of a tensor"
    parameter = nn.Parameter(torch.randn(1000))
    parameter.label = "of a parameter"
    first, second, buffer = again([tensor, parameter, nn.Buffer(torch.ones(1000))])
    assert (first.label, second.label) == ("of a tensor", "of a parameter")
    assert isinstance(buffer, nn.Buffer)


@check
def training_goes_on_as_before() -> None:
    torch.manual_seed(0)
    net = Net()
    copy = again(net)
    for each in (net, copy):
        optimiser = torch.optim.Adam(each.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(each(INPUT), INPUT[:, 0]).backward()
            optimiser.step()
    for mine, its in zip(net.state_dict().values(), copy.state_dict().values(), strict=True):
        assert torch.equal(mine, its)


@check
def an_optimiser_comes_along() -> None:
    net = Net()
    optimiser = torch.optim.Adam(net.parameters())
    net(INPUT).sum().backward()
    optimiser.step()
    copy, its = again((net, optimiser))
    assert its.param_groups[0]["params"][0] is copy.embed.weight
    moments = its.state[copy.embed.weight]["exp_avg"]
    assert torch.equal(moments, optimiser.state[net.embed.weight]["exp_avg"])


CHANGE = """
import sys, pathlib
sys.path[:0] = %r
import torch, torch_snapshot_checks
net = torch_snapshot_checks.restored(pathlib.Path(sys.argv[1]))
before = net.embed.weight.sum().item()
with torch.no_grad():
    net.embed.weight.add_(1)
    net.norm.running_mean.fill_(2)
    net.frozen.weight.numpy()[:] = 3
print(before, net.out.weight.sum().item(), flush=True)
sys.stdin.read()
"""


@check
def changes_in_place_stay_in_their_process() -> None:
    net = Net()
    with torch.no_grad():
        net.embed.weight.fill_(1)
    path = written(net)
    bytes_before = path.read_bytes()
    mine = restored(path)
    command = [sys.executable, "-c", CHANGE % sys.path[:2], str(path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:  # the first is still there, changed, when the second reads
        assert process.stdout is not None
        assert process.stdout.readline().split() == [b"16000.0", b"32000.0"]
    assert mine.embed.weight.sum() == 16000
    with torch.no_grad():
        mine.embed.weight.zero_()
    assert restored(path).embed.weight.sum() == 16000
    assert path.read_bytes() == bytes_before
    for process in processes:
        process.communicate()


@check
def a_tensor_keeps_the_mapping_and_nothing_else_does() -> None:
    path = written(Net())
    maps = pathlib.Path("/proc/self/maps")
    copy = restored(path)
    assert str(path) in maps.read_text()
    assert not any(target == str(path) for target in snapshot._descriptors().values())
    path.unlink()
    weight = copy.embed.weight.detach()[100:].numpy()
    expected = copy.embed.weight[100:].sum().item()
    del copy
    gc.collect()
    assert abs(weight.sum() - expected) < 1e-3
    del weight
    gc.collect()
    assert str(path) not in maps.read_text()


@check
def storages_are_resized_safely() -> None:
    tensor = again({"t": torch.ones(5000)})["t"]
    tensor.resize_(100)
    try:
        tensor.resize_(50_000)
    except RuntimeError as error:
        assert "resiz" in str(error)
    else:
        raise AssertionError("a storage grew past its mapping")
    tensor.data = torch.zeros(50_000)
    assert tensor.sum() == 0
    empty = again({"t": torch.zeros(0)})["t"]
    assert empty.resize_(10).shape == (10,)


@check
def weights_are_not_copied_by_a_write() -> None:
    import resource

    big = torch.ones(64 << 20, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = written({"big": big, "array": np.ones(64 << 20, np.uint8), "view": big[5:]})
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert path.stat().st_size < (128 << 20) + 100_000
    assert grown < (64 << 10) + (16 << 10), grown  # KB: the array, made after `before`, and little else


@check
def what_is_elsewhere_or_cannot_be_pickled_is_named() -> None:
    net = Net()
    net.norm.extra = torch.zeros(5, device="meta")
    assert refusal(net).startswith("self.norm.extra: torch.Tensor is on meta"), refusal(net)
    net = Net()
    net.frozen.weight = nn.Parameter(torch.zeros(5, device="meta"))
    assert refusal({"model": net}).startswith("model.frozen.weight: torch.nn.parameter.Parameter is on meta")
    net = Net()
    net.conv.register_forward_hook(lambda *_: None)
    assert "<lambda> is defined inside a function" in refusal(net)
    assert refusal(net).startswith("self.conv._forward_hooks["), refusal(net)
    net = Net()
    net.stack = collections.OrderedDict(a=[0, (n for n in INPUT)])
    assert refusal(net).startswith("self.stack['a'][1]: generator cannot be pickled"), refusal(net)
    scripted = torch.jit.script(nn.Linear(2, 2))
    assert "cannot be pickled" in refusal({"model": scripted})


@check
def damaged_files_are_refused() -> None:
    path = written(Net())
    data = path.read_bytes()
    at = data.index(b"_rebuild_parameter")
    for broken in (
        data[:at] + b"x" + data[at + 1 :],
        data[: len(data) // 2],
        data[:100],
        b"PK" + data[2:],
        data + data,
    ):
        path.write_bytes(broken)
        try:
            restored(path)
        except snapshot.Refused:
            continue
        raise AssertionError("not refused")


@check
def a_process_without_torch_imports_it_for_the_restore() -> None:
    path = written({"t": torch.arange(5000)})
    found = path.stat()
    code = (
        f"import sys; sys.path[:0] = {sys.path[:2]!r}\n"
        "from instainfer.runtime import snapshot\n"
        "assert 'torch' not in sys.modules\n"
        f"print(int(snapshot.restore({str(path)!r}, 'key', {found.st_size}, {found.st_ino})['t'].sum()))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert told.stdout.strip() == b"12497500", told


def main() -> int:
    import shutil
    import warnings

    warnings.simplefilter("ignore")  # torch's about what it will drop; not what is checked here
    torch.set_num_threads(1)
    try:
        for function in CHECKS:
            function()
            print("checked:", function.__name__.replace("_", " "), flush=True)
    finally:
        shutil.rmtree(folder())
    print("torch", torch.__version__, "-", len(CHECKS), "checks", "in process", os.getpid())
    return 0
