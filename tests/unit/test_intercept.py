"""The registry and its hook on imports, with small modules, and numpy's patch; torch, joblib and onnxruntime are
checked by `torch_intercept_checks.py` where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instainfer.runtime import intercept, twins

OURS = "tt_patch"
WATCHED = {"tt_lib": (("torch", OURS, "patch"),), "tt_other": (("numpy", OURS, "patch"),)}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with a library in it; what is imported from there is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tt_lib.py").write_text(
        "origin = type(__loader__).__name__\ndef load(x):\n    'Doc.'\n    return x\n"
    )
    (tmp_path / "tt_other.py").write_text("import tt_lib\n")
    ours = types.ModuleType(OURS)

    def patch(module: Any, interception: intercept.Interception) -> None:
        original = module.load

        def load(x: int) -> int:
            interception.note("load", "acted")
            return int(original(x)) + 1

        interception.replace(module, "load", load)

    vars(ours)["patch"] = patch
    monkeypatch.setitem(sys.modules, f"{intercept.__package__}.{OURS}", ours)
    known, finders = set(sys.modules), list(sys.meta_path)
    yield tmp_path
    assert sys.meta_path == finders
    for name in set(sys.modules) - known:
        del sys.modules[name]


def begin(**options: Any) -> intercept.Interception:
    interception = intercept.Interception(options, WATCHED)
    interception.begin()
    return interception


def test_a_loaded_library_is_patched_at_once_and_put_back(library: Path) -> None:
    lib: Any = importlib.import_module("tt_lib")
    original = lib.load
    interception = begin(torch=True)
    assert lib.load(1) == 2
    assert json.loads(json.dumps(interception.report())) == {"load": {"acted": 1}}
    interception.remove()
    interception.remove()
    assert lib.load is original


def test_a_library_is_patched_right_after_its_import_by_whomever(library: Path) -> None:
    interception = begin(torch=True)
    try:
        assert "tt_lib" not in sys.modules, "nothing is imported for a patch's sake"
        other: Any = importlib.import_module("tt_other")
        assert other.tt_lib.load(1) == 2
    finally:
        interception.remove()
    assert other.tt_lib.load(1) == 1


def test_the_hook_leaves_no_mark_on_the_library(library: Path) -> None:
    plain: Any = importlib.import_module("tt_lib")
    expected = plain.origin, type(plain.__loader__), type(plain.__spec__.loader)
    del sys.modules["tt_lib"]
    interception = begin(torch=True)
    lib: Any = importlib.import_module("tt_lib")
    assert (lib.origin, type(lib.__loader__), type(lib.__spec__.loader)) == expected
    assert interception not in sys.meta_path, "there is nothing left to wait for"
    interception.remove()


def test_looking_for_a_library_does_not_patch_it_and_loading_its_spec_does(library: Path) -> None:
    interception = begin(torch=True)
    spec = importlib.util.find_spec("tt_lib")
    assert spec is not None and spec.loader is not None and spec.origin == str(library / "tt_lib.py")
    assert "tt_lib" not in sys.modules
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.load(1) == 2
    interception.remove()


def test_an_import_that_fails_is_the_librarys_own_failure(library: Path) -> None:
    source = (library / "tt_lib.py").read_text()
    (library / "tt_lib.py").write_text("raise ValueError('theirs')")
    interception = begin(torch=True)
    with pytest.raises(ValueError, match="theirs"):
        importlib.import_module("tt_lib")
    (library / "tt_lib.py").write_text(source + "# longer, or its cached bytecode would do\n")
    importlib.invalidate_caches()
    assert importlib.import_module("tt_lib").load(1) == 2
    interception.remove()


def test_a_patch_that_fails_leaves_the_library_alone(library: Path) -> None:
    (library / "tt_lib.py").write_text("other_name = 1\n")
    interception = begin(torch=True)
    assert importlib.import_module("tt_lib").other_name == 1
    assert interception.report() == {"tt_lib": {"failed": {"tt_patch.patch: AttributeError": 1}}}
    interception.remove()


@pytest.mark.parametrize("options", [{}, {"torch": False}, {"numpy": True}])
def test_what_is_switched_off_is_not_touched(library: Path, options: dict[str, Any]) -> None:
    interception = begin(**options)
    assert importlib.import_module("tt_lib").load(1) == 1
    assert interception.report() == {}
    interception.remove()


def test_replacing_restores_own_and_inherited_attributes_and_nobody_elses() -> None:
    class Base:
        def one(self) -> int:
            return 1

    class Derived(Base):
        def two(self) -> int:
            return 2

    before = dict(vars(Derived))
    interception = intercept.Interception({})
    interception.replace(Derived, "one", lambda self: 10)
    undo = interception.replace(Derived, "two", lambda self: 20)
    assert (Derived().one(), Derived().two()) == (10, 20)
    undo()
    assert Derived().two() == 2
    interception.remove()
    assert dict(vars(Derived)) == before
    interception.replace(Derived, "two", lambda self: 20)
    setattr(Derived, "two", lambda self: 30)  # noqa: B010 # as others patch
    interception.remove()
    assert Derived().two() == 30


def test_the_end_of_the_load_comes_once() -> None:
    interception = intercept.Interception({})
    times: list[int] = []
    interception.at_loaded(lambda: times.append(1))
    interception.record({"rows": []})
    interception.loaded()
    interception.remove()
    assert times == [1]
    assert interception.report() == {"record": {"rows": []}}


# ---- numpy ----------------------------------------------------------------------------------------------


@pytest.fixture
def array(tmp_path: Path) -> Path:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(1 << 18, dtype=np.float64).reshape(512, -1))
    return path


def load_mapped(path: Any, fixed: Path, **more: Any) -> tuple[Any, dict[str, Any]]:
    interception = intercept.install({"numpy": True, "fixed": [str(fixed)]})
    try:
        return np.load(path, **more), interception.report()["numpy.load"]
    finally:
        interception.remove()


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_mapped_and_is_what_a_read_gives(tmp_path: Path, order: Any) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.asarray(np.arange(1 << 18, dtype=">i4").reshape(512, -1), order=order))
    before = path.read_bytes()
    plain = np.load(path)
    mapped, report = load_mapped(path, tmp_path)
    assert report == {"mapped": 1}
    assert type(mapped) is np.ndarray and mapped.dtype == plain.dtype and mapped.strides == plain.strides
    assert np.array_equal(mapped, plain)
    flags: Any = "WRITEABLE", "ALIGNED", "C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEBACKIFCOPY"
    assert [mapped.flags[flag] for flag in flags] == [plain.flags[flag] for flag in flags]
    assert np.array_equal(pickle.loads(pickle.dumps(mapped)), plain)
    mapped[:] = 7
    assert path.read_bytes() == before
    assert twins.mapping_at(mapped.ctypes.data, mapped.nbytes) is not None


def test_numpy_calls_that_are_left(tmp_path: Path, array: Path) -> None:
    np.savez(tmp_path / "z.npz", a=np.zeros(1 << 18))
    np.save(tmp_path / "small.npy", np.zeros(3))
    np.save(tmp_path / "objects.npy", np.array([str(n) for n in range(1 << 18)], dtype=object))
    cases: list[tuple[Any, str, dict[str, Any]]] = [
        (tmp_path / "z.npz", "not .npy", {}),
        (tmp_path / "small.npy", "small", {}),
        (tmp_path / "objects.npy", "failed: ValueError", {"allow_pickle": True}),
        (array, "mmap_mode given", {"mmap_mode": "r"}),
    ]
    for path, reason, more in cases:
        loaded, report = load_mapped(path, tmp_path, **more)
        plain = np.load(path, **more)
        assert type(loaded) is type(plain)
        assert report == {"left": {reason: 1}}
    with array.open("rb") as file:
        assert load_mapped(file, tmp_path)[1] == {"left": {"not a path": 1}}


@pytest.mark.parametrize(
    ("name", "content", "more"),
    [
        ("objects.npy", None, {}),
        ("absent.npy", b"", {}),
        ("cut.npy", b"cut", {}),
        ("junk.npy", b"\x93NUMPY" + bytes(2 << 20), {}),
        ("a.npy", b"", {"encoding": "klingon"}),
    ],
)
def test_errors_are_numpys_own(
    tmp_path: Path, array: Path, name: str, content: bytes | None, more: dict[str, Any]
) -> None:
    if content is None:
        np.save(tmp_path / name, np.array([str(n) for n in range(1 << 18)], dtype=object))
    elif content:
        (tmp_path / name).write_bytes(array.read_bytes()[: 3 << 19] if content == b"cut" else content)
    with pytest.raises((ValueError, OSError)) as plain:
        np.load(tmp_path / name, **more)
    with pytest.raises((ValueError, OSError)) as mapped:
        load_mapped(tmp_path / name, tmp_path, **more)
    assert (mapped.type, str(mapped.value)) == (plain.type, str(plain.value))
    assert mapped.value.__context__ is None or plain.value.__context__ is not None


def test_a_file_that_may_change_is_read(tmp_path: Path, array: Path) -> None:
    other = tmp_path / "fixed"
    other.mkdir()
    assert load_mapped(array, other)[1] == {"left": {"may change": 1}}
    (other / "link.npy").symlink_to(array)
    assert load_mapped(other / "link.npy", other)[1] == {"left": {"may change": 1}}


# ---- twins ----------------------------------------------------------------------------------------------


def test_pages_written_to_are_told_from_the_files_own(array: Path) -> None:
    mapped = np.load(array, mmap_mode="c")
    address, nbytes = mapped.ctypes.data, mapped.nbytes
    mapping = twins.mapping_at(address, nbytes)
    assert mapping is not None and mapping[2] and mapping[4][2] == str(array)
    assert mapping[3] + address - mapping[0] == mapped.offset
    assert twins.clean(address, nbytes)
    assert mapped.sum() > 0 and twins.clean(address, nbytes), "reading is not writing"
    row = mapped.strides[0]
    mapped[100, 0] = 5
    assert not twins.clean(address, nbytes)
    assert not twins.clean(address + 100 * row, row)
    assert twins.clean(address + 200 * row, row)
    assert twins.mapping_at(np.zeros(1 << 20).ctypes.data, 1) is None, "no file is behind it"
