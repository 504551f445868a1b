"""Interception and thread counts against the real libraries. Not a test module: a script for a Python that has
torch, and whichever of numpy, joblib, scikit-learn, safetensors and onnxruntime (with onnx) there are.

    python torch_intercept_checks.py [NAME…]

Runs the checks whose libraries are there, prints one line each and exits 0 when all of them hold.
"""

# mypy: disable-error-code="import-not-found, no-any-return"
# These libraries are not among the development ones, so nothing is known of their types.

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import os
import pickle
import sys
import tempfile
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from instainfer.runtime import intercept, threads

WIDTH = 1100  # of a layer: 4.8 MB of weights, more than it takes for skipping to pay
STD = 0.02
CHECKS: list[tuple[str, tuple[str, ...], Callable[[Path], None]]] = []
State = dict[str, Any]


def check(*libraries: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def add(function: Callable[[Path], None]) -> Callable[[Path], None]:
        CHECKS.append((function.__name__, libraries, function))
        return function

    return add


@contextlib.contextmanager
def installed(folder: Path, **options: Any) -> Iterator[intercept.Interception]:
    interception = intercept.install({"fixed": [str(folder)], **options})
    try:
        yield interception
    finally:
        interception.remove()


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gave, or how it failed."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 # any error is to be the same
        return type(error), str(error)


# ---- torch.load -----------------------------------------------------------------------------------------


def state(torch: Any) -> State:
    base = torch.arange(WIDTH * WIDTH, dtype=torch.float32).reshape(WIDTH, WIDTH)
    return {
        "w": base,
        "tied": base,
        "view": base[3:7, ::2],
        "half": base.half(),
        "n": torch.tensor(3),
        "s": "text",
    }


def same_state(torch: Any, one: State, other: State) -> bool:
    def equal(a: Any, b: Any) -> bool:
        if not isinstance(a, torch.Tensor):
            return bool(a == b)
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)

    return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)


@check("torch")
def torch_load(folder: Path) -> None:
    import torch

    path = folder / "w.pt"
    torch.save(state(torch), path)
    before = path.read_bytes()
    plain = torch.load(path)
    with installed(folder, torch=True) as interception:
        for form in (path, str(path)):
            loaded = torch.load(form, map_location="cpu")
            assert same_state(torch, plain, loaded)
            assert loaded["w"].data_ptr() == loaded["tied"].data_ptr()
            loaded["w"].mul_(2)
            loaded["half"].numpy()[:] = 1
            assert torch.equal(loaded["tied"], plain["w"] * 2), "a tie holds"
            assert torch.equal(loaded["view"], plain["view"] * 2)
        assert same_state(torch, plain, torch.load(path)), "another load is not touched"
        assert interception.report()["torch.load"] == {"mapped": 3}
        assert torch.serialization.load is torch.load
        assert torch.load.__name__ == "load" and torch.load.__wrapped__.__module__ == "torch.serialization"
    assert path.read_bytes() == before, "what is written into a mapping stays in the process"
    assert not hasattr(torch.load, "__wrapped__")


@check("torch")
def torch_load_left(folder: Path) -> None:
    import torch

    good = folder / "w.pt"
    torch.save(state(torch), good)
    torch.save(state(torch), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"a": 1}, folder / "small.pt")
    torch.save({"w": state(torch)["w"], "x": Path("x")}, folder / "unsafe.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(WIDTH, WIDTH)), str(folder / "script.pt"))
    (folder / "cut.pt").write_bytes(good.read_bytes()[: 2 << 20])
    (folder / "junk.pt").write_bytes(b"PK\3\4" + bytes(2 << 20))
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(folder / "packed.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(folder / "shifted.pt", "w") as new:
        new.writestr(zipfile.ZipInfo("archive/x"), b"x")
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name), old.read(name))
    names = ["legacy", "small", "unsafe", "script", "cut", "junk", "packed", "shifted", "absent"]

    def calls(name: str) -> list[Callable[[], Any]]:
        path = folder / f"{name}.pt"
        return [lambda: torch.load(path), lambda: torch.load(path, weights_only=False)]

    def shown(result: Any) -> Any:
        return sorted(result.items(), key=str) if isinstance(result, dict) else result

    plain = {name: [outcome(call) for call in calls(name)] for name in names}
    left: list[Callable[[], Any]] = [
        lambda: torch.load(io.BytesIO(good.read_bytes())),
        lambda: torch.load(good, mmap=False),
        lambda: torch.load(good, map_location="meta"),
        lambda: torch.load(good, map_location=lambda storage, place: storage),
    ]
    with installed(folder, torch=True) as interception:
        for name in names:
            for one, call in zip(plain[name], calls(name), strict=True):
                other = outcome(call)
                if isinstance(one, dict):
                    assert isinstance(other, dict) and same_state(torch, one, other), name
                elif isinstance(one, tuple):
                    assert one == other, (name, one, other)
                else:
                    assert type(one) is type(other), name
        for call in left:
            call()
        counts = interception.report()["torch.load"]
    assert counts["mapped"] == 1, counts  # unsafe.pt with weights_only=False
    reasons = ("old format", "small", "TorchScript", "compressed", "unreadable", "not a path", "map_location")
    assert set(reasons) <= set(counts["left"]), counts
    if os.getuid() == 0 or os.access(good, os.W_OK):
        with installed(folder / "elsewhere", torch=True) as interception:
            torch.load(good)
            assert interception.report()["torch.load"] == {"left": {"may change": 1}}


# ---- skipped initialisation -----------------------------------------------------------------------------


def make_model(torch: Any) -> Any:
    nn = torch.nn

    class Model(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WIDTH, WIDTH, padding_idx=0)
            self.first = nn.Linear(WIDTH, WIDTH)
            self.norm = nn.LayerNorm(WIDTH)
            self.last = nn.Linear(WIDTH, WIDTH, bias=False)
            self.last.weight = self.words.weight  # tied
            self.register_buffer("positions", torch.arange(WIDTH).float(), persistent=False)
            nn.init.normal_(self.first.weight, 0.0, STD)
            self.words.weight.data.normal_(0.0, STD)
            self.words.weight.data[0].zero_()

        def forward(self, x: Any) -> Any:
            return self.last(self.norm(self.first(self.words(x) + self.positions)))

    return Model()


class Skipping:
    """A checkpoint of the model, and loads of it: plain, recorded and replayed."""

    def __init__(self, folder: Path) -> None:
        import torch

        self.torch = torch
        self.folder = folder
        self.path = folder / "model.pt"
        torch.save(make_model(torch).state_dict(), self.path)
        self.bytes = self.path.read_bytes()
        self.facts = self.record(self.load)

    def load(self) -> Any:
        model = make_model(self.torch)
        model.load_state_dict(self.torch.load(self.path))
        return model.eval()

    def record(self, load: Callable[[], Any]) -> dict[str, Any]:
        with installed(self.folder, torch=True, record_init=True) as interception:
            load()
            interception.loaded()
            facts = interception.report()["record"]
        assert isinstance(facts, dict)
        return facts

    def replay(self, load: Callable[[], Any], facts: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        options = {"torch": True, "skip_init": facts or self.facts}
        with installed(self.folder, **options) as interception:
            result = load()
            interception.loaded()
            report = interception.report().get("skip_init", {})
        return result, report

    def answer(self, model: Any) -> Any:
        with self.torch.no_grad():
            return model(self.torch.arange(16)[None])

    def drawn(self, weight: Any, std: float = STD) -> bool:
        """Whether a weight has its initialiser's distribution."""
        values = weight.detach().double()
        return abs(values.std().item() / std - 1) < 0.05 and abs(values.mean().item()) < std / 10


@check("torch")
def skip_init(folder: Path) -> None:
    s = Skipping(folder)
    torch = s.torch
    assert [row[3] for row in s.facts["rows"]] == ["overwritten"] * 3, s.facts["rows"]
    plain = s.load()
    modules = set(sys.modules)
    model, report = s.replay(s.load)
    assert "torch._dynamo" in modules or "torch._dynamo" not in sys.modules
    assert report["skipped_bytes"] == 3 * 4 * WIDTH**2 and report["mapped_bytes"] == 3 * 4 * WIDTH**2, report
    assert report["run_after_all"] == 0 and "left" not in report
    assert torch.equal(s.answer(plain), s.answer(model))
    assert model.last.weight is model.words.weight
    assert torch.equal(model.positions, plain.positions)
    for (name, one), (_, other) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert type(one) is type(other) and one.dtype == other.dtype and one.stride() == other.stride(), name
        assert one.requires_grad == other.requires_grad and other.is_leaf and torch.equal(one, other), name
        assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes(), name
    # It can be trained, and the file knows nothing of it.
    for one in (plain, model):
        one(torch.arange(16)[None]).square().sum().backward()
        torch.optim.SGD(one.parameters(), 0.1).step()
    assert torch.equal(plain.first.weight, model.first.weight)
    assert s.path.read_bytes() == s.bytes


@check("torch")
def skip_init_copies(folder: Path) -> None:
    """Mapped instead of copied only where nobody can tell."""
    s = Skipping(folder)
    torch = s.torch
    plain = s.load()

    def two() -> Any:
        weights = torch.load(s.path)
        models = make_model(torch), make_model(torch)
        for model in models:
            model.load_state_dict(weights)
        with torch.no_grad():
            models[0].first.weight.zero_()
        return models[1], weights

    (model, weights), report = s.replay(two, s.record(two))
    assert report["mapped_bytes"] == 6 * 4 * WIDTH**2, report
    assert torch.equal(model.first.weight, plain.first.weight), "two models of one state dict are two"
    assert torch.equal(weights["first.weight"], plain.first.weight), "and so is the state dict"

    def changed(how: Callable[[Any], None]) -> Callable[[], Any]:
        def load() -> Any:
            model = make_model(torch)
            weights = torch.load(s.path)
            how(weights["first.weight"])
            model.load_state_dict(weights)
            return model

        return load

    def by_numpy(tensor: Any) -> None:
        tensor.numpy()[5, 5] = 7.0

    ways: list[Callable[[Any], None]] = [lambda tensor: tensor[5, 5].fill_(7.0), by_numpy]
    for how in ways if importlib.util.find_spec("numpy") else ways[:1]:
        model, report = s.replay(changed(how))
        assert model.first.weight[5, 5] == 7.0, "a changed state dict is copied as it is"
        assert report["mapped_bytes"] == 2 * 4 * WIDTH**2, report

    def aliased() -> Any:
        model = make_model(torch)
        alias = model.first.weight.detach()
        model.load_state_dict(torch.load(s.path))
        return model, alias

    (model, alias), _ = s.replay(aliased)
    assert torch.equal(alias, plain.first.weight) and alias.data_ptr() == model.first.weight.data_ptr()

    def updated() -> Any:
        model = make_model(torch)
        weights = model.state_dict()
        weights.update(torch.load(s.path))
        model.load_state_dict(weights)
        return model

    model, report = s.replay(updated)
    assert torch.equal(s.answer(plain), s.answer(model)) and report["skipped_bytes"] == 3 * 4 * WIDTH**2


@check("torch")
def skip_init_deviations(folder: Path) -> None:
    """What a recorded load never did: every one has the values that it would have had, in distribution."""
    s = Skipping(folder)
    torch = s.torch

    def looked_at(look: Callable[[Any], Any]) -> Callable[[], Any]:
        def load() -> Any:
            model = make_model(torch)
            seen = look(model.first.weight)
            kept = model.first.weight.detach().clone()
            model.load_state_dict(torch.load(s.path))
            return seen, kept, model

        return load

    def in_thread(weight: Any) -> Any:
        found = []
        thread = threading.Thread(target=lambda: found.append(weight.detach().clone()))
        thread.start()
        thread.join()
        return found[0]

    def saved(weight: Any) -> Any:
        file = io.BytesIO()
        torch.save(weight, file)
        return torch.load(io.BytesIO(file.getvalue()))

    def in_inference_mode(weight: Any) -> Any:
        with torch.inference_mode():
            return weight.t().contiguous().t().clone()

    def reshaped_in_inference_mode(weight: Any) -> Any:
        with torch.inference_mode():
            return weight.t().reshape(-1).reshape(WIDTH, WIDTH).t().clone()

    looks: dict[str, Callable[[Any], Any]] = {
        "operator": lambda weight: weight * 1,
        "list of tensors": lambda weight: torch.cat([weight[:600], weight[600:]]),
        "out": lambda weight: torch.mul(weight.detach(), 1, out=torch.empty(WIDTH, WIDTH)),
        "tolist": lambda weight: torch.tensor(weight.tolist()),
        "deepcopy": lambda weight: copy.deepcopy(weight),
        "pickle": lambda weight: pickle.loads(pickle.dumps(weight)),
        "save": saved,
        "storage": lambda weight: torch.tensor(weight.untyped_storage()[:0].tolist() or weight.tolist()),
        "dlpack": lambda weight: torch.from_dlpack(weight.detach()).clone(),
        "thread": in_thread,
        "contiguous": in_inference_mode,
        "reshape": reshaped_in_inference_mode,
        "bytes": lambda weight: torch.frombuffer(bytearray(_bytes_at(weight)), dtype=torch.float32).clone(),
    }
    if importlib.util.find_spec("numpy"):
        looks["numpy"] = lambda weight: torch.from_numpy(weight.detach().numpy().copy())
        looks["asarray"] = lambda weight: torch.tensor(importlib.import_module("numpy").asarray(weight.detach()))
    plain = s.load()
    for name, look in looks.items():
        (seen, kept, model), report = s.replay(looked_at(look))
        assert s.drawn(seen), (name, seen.std())
        assert torch.equal(seen.reshape(-1), kept.reshape(-1)), name
        assert torch.equal(s.answer(model), s.answer(plain)), name
        assert report["run_after_all"] >= 1, (name, report)

    def partly() -> Any:
        model = make_model(torch)
        weights = torch.load(s.path)
        del weights["first.weight"]
        model.load_state_dict(weights, strict=False)
        return model

    model, report = s.replay(partly)
    assert s.drawn(model.first.weight) and report["run_after_all"] == 1, report
    (model, report) = s.replay(lambda: make_model(torch))
    assert s.drawn(model.first.weight) and s.drawn(model.words.weight[1:]), "nothing was loaded at all"
    assert not model.words.weight[0].any(), "an initialiser of a part runs after that of the whole"
    assert torch.equal(model.norm.weight, torch.ones(WIDTH))
    assert report["skipped_bytes"] == 4 * WIDTH**2, "of the layer whose weight a tie replaced"

    def other_shape() -> Any:
        return torch.nn.init.normal_(torch.empty(WIDTH, WIDTH + 1), 0, STD), s.load()

    (weight, model), report = s.replay(other_shape)
    assert s.drawn(weight) and torch.equal(s.answer(model), s.answer(plain))
    assert report["left"] == {"deviates from the recording": 1} and report["skipped_bytes"] == 0

    def mismatch() -> Any:
        model = make_model(torch)
        weights = torch.load(s.path)
        weights["first.weight"] = weights["first.weight"][:3]
        return outcome(lambda: model.load_state_dict(weights)), model

    (error, model), _ = s.replay(mismatch)
    assert error == mismatch()[0] and error[0] is RuntimeError
    assert s.drawn(model.first.weight)
    for bad in (lambda w: w.normal_(0, -1), lambda w: w.uniform_(1, 0), lambda w: w.normal_(0, 1, 2, 3)):
        (error, _), _ = s.replay(lambda bad=bad: (outcome(lambda: bad(torch.empty(WIDTH, WIDTH))), 0))  # type: ignore[misc]
        assert error == outcome(lambda bad=bad: bad(torch.empty(WIDTH, WIDTH))), error  # type: ignore[misc]

    def reused() -> Any:
        used = torch.ones(WIDTH, WIDTH)
        torch.empty(WIDTH, WIDTH, out=used)
        seen = used.clone()
        used.normal_(0, STD)
        return seen, used

    (seen, used), _ = s.replay(reused, s.record(reused) | {"skipped_bytes": 8 << 20})
    assert seen.eq(1).all() and s.drawn(used), "`out` is not fresh memory"


def _bytes_at(tensor: Any) -> bytes:
    import ctypes

    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


@check("torch")
def skip_init_random(folder: Path) -> None:
    """A function's own seed gives its own numbers; an untold seed gives independent ones."""
    s = Skipping(folder)
    torch = s.torch

    def seeded() -> Any:
        torch.manual_seed(5)
        model = make_model(torch)
        drawn = torch.rand(3)
        kept = model.first.weight.detach().clone()
        model.load_state_dict(torch.load(s.path))
        return drawn, kept, torch.rand(3)

    plain = seeded()
    torch.seed()  # or the recording would begin with the seed that it is to notice
    facts = s.record(seeded)
    assert facts["ended"] == "seeded" and facts["rows"] == []
    for recording in (facts, s.facts):  # the second never saw a seed
        replayed, report = s.replay(seeded, recording)
        assert all(torch.equal(one, other) for one, other in zip(plain, replayed, strict=True)), report

    def state_read() -> Any:
        before = torch.get_rng_state()
        one = make_model(torch)
        torch.set_rng_state(before)
        return one, make_model(torch)

    (one, other), _ = s.replay(state_read)
    assert torch.equal(one.first.weight, other.first.weight)
    (one, other), report = s.replay(lambda: (make_model(torch), torch.empty(WIDTH, WIDTH).normal_(0, STD)))
    assert not torch.equal(one.first.weight, other) and s.drawn(other)

    def seeded_between() -> Any:
        model = make_model(torch)
        torch.manual_seed(5)
        torch.nn.init.normal_(model.first.weight)
        torch.nn.init.trunc_normal_(model.words.weight)
        return model.first.weight.detach(), model.words.weight.detach(), torch.rand(3)

    replayed, report = s.replay(seeded_between)
    assert all(torch.equal(one, other) for one, other in zip(seeded_between(), replayed, strict=True))
    assert report["left"] == {"seeded": 1}
    # What was put off is run without the generator that the function has seeded meanwhile.

    def seeded_late() -> Any:
        model = make_model(torch)
        torch.manual_seed(5)
        numbers = torch.rand(3)
        model.first.weight.sum()
        return model, numbers, torch.rand(3)

    (model, first, second), _ = s.replay(seeded_late)
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(3)) and torch.equal(second, torch.rand(3)) and s.drawn(model.first.weight)


@check("torch")
def skip_init_initialisers(folder: Path) -> None:
    s = Skipping(folder)
    torch = s.torch
    init = torch.nn.init
    fans = (2 / (WIDTH + WIDTH)) ** 0.5

    def erfinv(weight: Any) -> None:  # as older libraries truncate
        weight.uniform_(-0.5, 0.5).erfinv_().mul_(STD).add_(0.0).clamp_(min=-STD, max=STD)

    cases: list[tuple[Callable[[Any], Any], Callable[[Any], bool]]] = [
        (lambda w: init.trunc_normal_(w, std=STD), lambda w: s.drawn(w)),
        (lambda w: init.trunc_normal_(w, 0.0, 1.0, 0.5, 2.0), lambda w: w.min() >= 0.5 and w.max() <= 2),
        (init.xavier_uniform_, lambda w: s.drawn(w, fans)),
        (init.kaiming_normal_, lambda w: s.drawn(w, (2 / WIDTH) ** 0.5)),
        (lambda w: init.constant_(w, 3.0), lambda w: bool(w.eq(3).all())),
        (lambda w: w.t().normal_(0, STD), lambda w: s.drawn(w)),
        (erfinv, lambda w: w.abs().max() <= STD and 0.003 < w.std() < STD),
        (init.orthogonal_, lambda w: torch.allclose(w @ w.t(), torch.eye(WIDTH), atol=1e-3)),
        (lambda w: init.eye_(w), lambda w: torch.equal(w, torch.eye(WIDTH))),
    ]
    for number, (initialise, right) in enumerate(cases):

        def load(overwrite: bool, initialise: Callable[[Any], Any] = initialise) -> Any:
            layer = torch.nn.Linear(WIDTH, WIDTH, bias=False)
            with torch.no_grad():
                initialise(layer.weight)
            if overwrite:
                layer.load_state_dict({"weight": torch.full((WIDTH, WIDTH), 9.0)})
            return layer.weight.detach()

        facts = s.record(lambda load=load: load(True))  # type: ignore[misc]
        assert facts["rows"][0][3] == "overwritten" or number >= 7, (number, facts["rows"])
        weight, _ = s.replay(lambda load=load: load(False), facts)  # type: ignore[misc]
        assert right(weight), (number, weight)
        weight, _ = s.replay(lambda load=load: load(True), facts)  # type: ignore[misc]
        assert weight.eq(9).all(), number


@check("torch")
def skip_init_off(folder: Path) -> None:
    """Without a fitting recording everything is as ever, and afterwards too."""
    s = Skipping(folder)
    torch = s.torch
    accessors = [getattr(torch.Tensor, name) for name in ("numpy", "data_ptr", "untyped_storage")]
    start = threading.Thread.start
    for facts in (s.facts | {"torch": "1.0"}, s.facts | {"version": 0}, s.facts | {"ended": "seeded"}):
        _, report = s.replay(s.load, facts)
        assert set(report) == {"left"}, report
    s.replay(s.load)
    assert accessors == [getattr(torch.Tensor, name) for name in ("numpy", "data_ptr", "untyped_storage")]
    assert "numpy" not in vars(torch.Tensor) and threading.Thread.start is start
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    assert _get_current_dispatch_mode_stack() == []


@check("torch", "safetensors")
def safetensors_maps(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    s = Skipping(folder)
    path = folder / "w.safetensors"
    save_file({name: tensor for name, tensor in torch.load(s.path).items() if name != "last.weight"}, path)
    before = path.read_bytes()
    loaded = load_file(path)
    assert str(path) in Path("/proc/self/maps").read_text(), "it maps by itself"
    loaded["first.weight"].zero_()
    assert path.read_bytes() == before

    def load() -> Any:
        model = make_model(torch)
        model.load_state_dict(load_file(path), strict=False)
        return model

    model, report = s.replay(load, s.record(load))
    assert torch.equal(s.answer(model), s.answer(load()))
    assert report["skipped_bytes"] == 3 * 4 * WIDTH**2, report  # its tensors are copied where they lie unaligned


# ---- numpy, joblib --------------------------------------------------------------------------------------


@check("joblib", "sklearn", "numpy")
def joblib_estimators(folder: Path) -> None:
    import joblib
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    x, y = rng.random((4000, 30)), rng.integers(0, 3, 4000)
    for model in (KNeighborsClassifier(), RandomForestClassifier(20, random_state=0)):
        model.fit(x, y)
        path = folder / "model.joblib"
        joblib.dump(model, path)
        before = path.read_bytes()
        plain = joblib.load(path)
        with installed(folder, joblib=True) as interception:
            mapped = joblib.load(path)
            counts = interception.report().get("joblib.load", {})
        assert np.array_equal(plain.predict_proba(x), mapped.predict_proba(x))
        again = pickle.loads(pickle.dumps(mapped))
        assert np.array_equal(plain.predict(x), again.predict(x))
        again = copy.deepcopy(mapped)
        assert np.array_equal(plain.predict(x), again.predict(x))
        assert b"memmap" not in pickle.dumps(mapped)
        if hasattr(mapped, "_fit_X"):
            assert counts["mapped"] >= 1 and type(mapped._fit_X) is np.ndarray
            assert str(mapped._fit_X.flags) == str(plain._fit_X.flags)
            mapped._fit_X[:] = 0
            assert np.array_equal(joblib.load(path)._fit_X, plain._fit_X)
        assert path.read_bytes() == before
    for compress in (3, ("gzip", 3)):
        joblib.dump(model, path, compress=compress)
        with installed(folder, joblib=True) as interception:
            mapped = joblib.load(path)
            assert "joblib.load" not in interception.report()
        assert np.array_equal(plain.predict(x), mapped.predict(x))


# ---- onnxruntime ----------------------------------------------------------------------------------------


@check("onnxruntime", "onnx", "numpy")
def onnxruntime_sessions(folder: Path) -> None:
    import numpy as np
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    names = [f"w{n}" for n in range(60)]
    weights = [numpy_helper.from_array(rng.random((256, 256), np.float32) / 100, name) for name in names]
    nodes = [
        helper.make_node("MatMul" if n % 2 else "Gemm", [f"x{n}", name], [f"x{n + 1}"])
        for n, name in enumerate(names)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 256]) for name in ("x0", f"x{len(names)}")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"labels": "a,b"})
    package, cache = folder / "package", folder / "cache"
    package.mkdir()
    cache.mkdir()
    path = package / "m.onnx"
    onnx.save(model, str(path))
    x = {"x0": rng.random((4, 256), np.float32)}
    plain = ort.InferenceSession(str(path)).run(None, x)[0]
    tasks = len(list(Path("/proc/self/task").iterdir()))
    options: dict[str, Any] = {"fixed": [str(package)], "onnxruntime": True, "threads": 1, "cache": str(cache)}

    def count(interception: intercept.Interception) -> dict[str, Any]:
        return dict(interception.report()["onnxruntime"])

    with installed(package, **options, cache_write=True) as interception:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert np.array_equal(session.run(None, x)[0], plain)
        counts = count(interception)
        assert counts["missed"] == 1 and counts["pinned"] == 1, counts
    kept = "kept" in counts  # whether it pays is the machine's to say
    assert kept or counts["left"] == {"would not pay": 1}, counts
    assert len(list(cache.iterdir())) == kept
    with installed(package, **options) as interception:
        session = ort.InferenceSession(path)
        assert np.array_equal(session.run(None, x)[0], plain)
        assert isinstance(session, ort.InferenceSession) and session._model_path == str(path)
        assert session.get_modelmeta().custom_metadata_map == {"labels": "a,b"}
        assert session.get_session_options().intra_op_num_threads == 1
        assert len(list(Path("/proc/self/task").iterdir())) == tasks, "one thread is no thread more"
        assert count(interception) == ({"cached": 1} if kept else {"missed": 1, "pinned": 1})
        session.set_providers(["CPUExecutionProvider"])
        assert np.array_equal(session.run(None, x)[0], plain)
        given = ort.SessionOptions()
        ort.InferenceSession(path.read_bytes(), given)
        assert given.intra_op_num_threads == 0, "a caller's options are as they were"
        given.intra_op_num_threads = 2
        assert ort.InferenceSession(str(path), given).get_session_options().intra_op_num_threads == 2
        for file in cache.rglob("model.onnx"):
            file.write_bytes(b"junk")
        assert np.array_equal(ort.InferenceSession(str(path)).run(None, x)[0], plain), "a broken cache is none"
        errors = outcome(lambda: ort.InferenceSession(str(folder / "absent.onnx")))
    assert errors == outcome(lambda: ort.InferenceSession(str(folder / "absent.onnx")))
    assert "wrapped" not in str(ort.InferenceSession.__init__)


# ---- threads --------------------------------------------------------------------------------------------


@check("torch")
def thread_counts(folder: Path) -> None:
    import torch

    for n in (2, 1):
        done = threads.set_counts(n)
        assert done["torch"] == n and torch.get_num_threads() == n and os.environ["OMP_NUM_THREADS"] == str(n)
    torch.ones(2000, 2000) @ torch.ones(2000, 2000)
    assert "cv2" not in done or "cv2" in sys.modules
    print("    ", done)


def main(chosen: list[str]) -> int:
    failed = 0
    for name, libraries, function in CHECKS:
        if chosen and name not in chosen:
            continue
        missing = [library for library in libraries if importlib.util.find_spec(library) is None]
        if missing:
            print("not here:", name, "for want of", ", ".join(missing))
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                function(Path(folder))
            except BaseException:  # noqa: BLE001 # all others are still to be checked
                failed += 1
                print("FAILED:  ", name)
                traceback.print_exc(file=sys.stdout)
            else:
                print("holds:   ", name)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
