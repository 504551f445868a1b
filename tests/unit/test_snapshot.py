"""Object snapshots of plain objects and arrays, damaged files, and what a load may leave behind. What is torch's
is in torch_snapshot_checks.py, for an interpreter that has it."""

from __future__ import annotations

import dataclasses
import functools
import gc
import hashlib
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse  # type: ignore[import-untyped]  # it has none

from instainfer.runtime import snapshot
from instainfer.runtime.snapshot import Refused, Watch

KEY = "code+weights"


@dataclasses.dataclass
class Model:
    name: str = "net"
    parts: Any = None
    session: Any = None

    def predict(self, x: int) -> int:
        return x + 1


class Slotted:
    __slots__ = ("deep",)
    deep: Any


def double(x: int) -> int:
    return 2 * x


def restored(path: Path, key: str = KEY) -> Any:
    found = path.stat()
    return snapshot.restore(str(path), key, found.st_size, found.st_ino)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.snapshot"


@pytest.fixture
def again(path: Path) -> Callable[[Any], Any]:
    """What a model is after its way through a file."""

    def through(model: Any) -> Any:
        path.unlink(missing_ok=True)
        snapshot.write(model, str(path), KEY)
        return restored(path)

    return through


# ---- there and back ----

LONG = bytes(range(256)) * 1024


def test_plain_objects(again: Callable[[Any], Any]) -> None:
    model = Model(parts={"a": [1, (2.5, None)], "s": {3}, "f": double, "p": functools.partial(double, 4)})
    model.session = model.predict
    copy = again(model)
    assert copy.parts["a"] == [1, (2.5, None)]
    assert copy.parts["f"] is double
    assert copy.parts["p"]() == 8
    assert copy.session.__self__ is copy
    assert type(copy) is Model


def test_long_bytes_lie_outside_the_skeleton_and_stay_one_object(path: Path) -> None:
    array = bytearray(LONG)
    told = snapshot.write([LONG, array, LONG, array, b"short"], str(path), KEY)
    assert told["size"] == path.stat().st_size
    assert told["buffers"] == 2
    assert told["skeleton"] < 1000
    assert told["seconds"] > 0
    first, second, third, fourth, short = restored(path)
    assert first == LONG
    assert first is third
    assert second == LONG
    assert second is fourth
    assert type(second) is bytearray
    assert short == b"short"


ARRAYS = {
    "floats": np.linspace(0, 1, 5000),
    "small": np.arange(3),
    "zero-dimensional": np.array(2.5),
    "empty": np.zeros((0, 7), np.float32),
    "Fortran's order": np.asfortranarray(np.arange(6000).reshape(60, 100)),
    "every other": np.arange(9000)[::2],
    "backwards": np.arange(9000)[::-1],
    "a part of a matrix": np.arange(10000).reshape(100, 100)[10:90, 5:50],
    "truth": np.arange(5000) % 3 == 0,
    "complex": np.arange(5000) * 1j,
    "half": np.arange(5000, dtype=np.float16),
    "big-endian": np.arange(5000, dtype=">i4"),
    "dates": np.arange("2001-01", "2301-01", dtype="datetime64[M]"),
    "records": np.ones(500, dtype=[("a", "i4"), ("b", "f8", (3,))]),
    "text": np.array(["a", "bc"] * 800),
    "objects": np.array([{"a": 1}, None, "x"], dtype=object),
    "masked": np.ma.masked_greater(np.arange(5000), 9),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(again: Callable[[Any], Any], case: str) -> None:
    array = ARRAYS[case]
    copy = again(array)
    assert type(copy) is type(array)
    assert copy.dtype == array.dtype
    assert copy.shape == array.shape
    assert str(copy.tolist()) == str(array.tolist())
    assert copy.flags.writeable
    assert copy.flags.f_contiguous >= array.flags.f_contiguous


def test_arrays_that_are_one_memory_stay_one(again: Callable[[Any], Any]) -> None:
    array = np.arange(6000.0)
    model = again({"a": array, "same": array, "other view": array.reshape(60, 100), "copy": array.copy()})
    model["a"][0] = -1
    assert model["same"] is model["a"]
    assert model["other view"][0, 0] == -1
    assert model["copy"][0] == 0


def test_a_constant_array_stays_constant(again: Callable[[Any], Any]) -> None:
    array = np.arange(6000)
    array.flags.writeable = False
    copy = again(array)
    with pytest.raises(ValueError, match="read-only"):
        copy[0] = 1


def test_sparse_matrices(again: Callable[[Any], Any]) -> None:
    matrix = scipy.sparse.random(300, 200, density=0.2, format="csr", random_state=1)
    copy = again({"m": matrix})["m"]
    assert (copy != matrix).nnz == 0
    copy.data *= 2
    assert copy.sum() == pytest.approx(2 * matrix.sum())


def test_buffers_of_a_page_begin_on_one_and_small_ones_share(path: Path) -> None:
    arrays = [np.full(n, n % 251, np.uint8) for n in (1024, 50_000, 1500, 4096, 1025)]
    snapshot.write(arrays, str(path), KEY)
    data = path.read_bytes()
    regions = {length: offset for offset, length in table_of(data)}
    assert sorted(regions) == [1024, 1025, 1500, 4096, 50_000]
    assert regions[50_000] % mmap.PAGESIZE == regions[4096] % mmap.PAGESIZE == 0
    assert all(regions[small] < mmap.PAGESIZE and regions[small] % 64 == 0 for small in (1024, 1500))
    assert len(data) < 50_000 + 5 * mmap.PAGESIZE
    assert all((copy == array).all() for copy, array in zip(restored(path), arrays, strict=True))


def test_the_mapping_lives_as_long_as_an_array_and_keeps_no_descriptor(path: Path) -> None:
    snapshot.write({"a": np.arange(100_000), "b": np.ones(10_000)}, str(path), KEY)
    model = restored(path)
    part = model["a"][50_000:]
    assert str(path) not in set(snapshot._descriptors().values())
    assert str(path) in Path("/proc/self/maps").read_text()
    path.unlink()
    del model
    gc.collect()
    assert part.sum() == sum(range(50_000, 100_000))
    del part
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


CHANGE = """
import json, os, sys
from instainfer.runtime import snapshot
path, size, inode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = snapshot.restore(path, "code+weights", size, inode)
array = model["weights"]
before = int(array.sum())
array += 1
array[0] = 7
print(json.dumps([before, int(array.sum()), type(model["net"]).__module__]), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_changes_stay_in_the_process_that_makes_them(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "snapshot_main.py").write_text("class Net:\n weight = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from snapshot_main import Net  # type: ignore[import-not-found]  # written above

    snapshot.write({"weights": np.zeros(100_000, np.int64), "net": Net()}, str(path), KEY)
    digest = hashlib.sha256(path.read_bytes()).digest()
    mine = restored(path)["weights"]
    found = path.stat()
    command = [sys.executable, "-c", CHANGE, str(path), str(found.st_size), str(found.st_ino)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    # The first is still there, changed, when the second reads.
    first, second = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in range(2)
    )
    with first, second:
        for process in (first, second):
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == [0, 100_006, "snapshot_main"]
        assert mine.sum() == 0
        mine[:] = 5
        assert restored(path)["weights"].sum() == 0
    assert hashlib.sha256(path.read_bytes()).digest() == digest


def test_collection_is_as_it_was_before(path: Path) -> None:
    snapshot.write(Model(), str(path), KEY)
    assert gc.isenabled()
    restored(path)
    assert gc.isenabled()
    gc.disable()
    try:
        restored(path)
        assert not gc.isenabled()
    finally:
        gc.enable()


# ---- files that do not fit ----


def table_of(data: bytes) -> list[tuple[int, int]]:
    _, _, _, named, _, _, held, handed = snapshot.HEAD.unpack_from(data)
    at = snapshot.HEAD.size + named
    return list(snapshot.ENTRY.iter_unpack(data[at : at + (held + handed) * snapshot.ENTRY.size]))


def forged(data: bytes, place: int, value: int) -> bytes:
    """With another number at a place in the head, or from 10 on in the table, and a digest that fits."""
    head = list(snapshot.HEAD.unpack_from(data))
    named, pickled, entries = head[3], head[5], head[6] + head[7]
    table_at = snapshot.HEAD.size + named
    table = [number for entry in table_of(data) for number in entry]
    front = table_at + entries * snapshot.ENTRY.size + pickled
    if place < 10:
        head[place] = value
    else:
        table[place - 10] = value
    packed = b"".join(snapshot.ENTRY.pack(*table[n : n + 2]) for n in range(0, len(table), 2))
    rest = data[snapshot.HEAD.size : table_at] + packed + data[table_at + len(packed) : front]
    head[1] = hashlib.sha256(snapshot.HEAD.pack(*head)[40:] + rest).digest()
    return snapshot.HEAD.pack(*head) + rest + data[front:]


@pytest.fixture
def data(path: Path) -> bytes:
    snapshot.write({"a": np.arange(5000), "b": LONG}, str(path), KEY)
    return path.read_bytes()


def test_forging_nothing_gives_a_snapshot(path: Path, data: bytes) -> None:
    path.write_bytes(forged(data, 2, snapshot.VERSION))
    assert restored(path)["b"] == LONG


HUGE = 1 << 62

FORGED = {
    "version": ("has format 7, not 1", 2, 7),
    "size of the key": ("head speaks of", 3, (1 << 32) - 1),
    "size of the file": ("head speaks of", 4, HUGE),
    "size of a smaller file": ("head speaks of", 4, 100),
    "size of the skeleton": ("head speaks of", 5, HUGE),
    "count of entries held": ("head speaks of", 6, HUGE),
    "count of entries handed": ("head speaks of", 7, HUGE),
    "entry behind the end": ("table names bytes", 10, 1 << 40),
    "entry before the buffers": ("table names bytes", 10, 64),
    "entry that overflows": ("table names bytes", 12, (1 << 64) - 64),
    "entry too long": ("table names bytes", 11, 1 << 40),
    "entry at an odd place": ("table names bytes", 12, 8193),
    "an entry less": ("damaged", 6, 0),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged(path: Path, data: bytes, case: str) -> None:
    complaint, place, value = FORGED[case]
    path.write_bytes(forged(data, place, value))
    with pytest.raises(Refused, match=complaint):
        restored(path)


def test_every_damaged_byte_before_the_buffers_is_noticed(path: Path) -> None:
    snapshot.write({"a": np.arange(300)}, str(path), KEY)
    data = path.read_bytes()
    front = table_of(data)[0][0] - 63  # all but what aligns
    for at in range(0, front, 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        with pytest.raises(Refused):
            restored(path)


def test_damaged_skeleton(path: Path, data: bytes) -> None:
    at = data.index(b"_frombuffer")
    path.write_bytes(data[:at] + b"x" + data[at + 1 :])
    with pytest.raises(Refused, match="damaged"):
        restored(path)


@pytest.mark.parametrize("length", [0, 10, 100, 5000])
def test_truncated(path: Path, data: bytes, length: int) -> None:
    path.write_bytes(data[:length])
    with pytest.raises(Refused, match=r"not a snapshot|speaks of"):
        restored(path)


def test_longer(path: Path, data: bytes) -> None:
    path.write_bytes(data + b"\0")
    with pytest.raises(Refused, match="speaks of"):
        restored(path)


def test_stale_key(path: Path, data: bytes) -> None:
    for key in ("code+weight", "code+weights2", "", "é"):
        with pytest.raises(Refused, match="made for other code"):
            restored(path, key)


def test_a_key_that_no_file_has(path: Path) -> None:
    with pytest.raises(ValueError, match="key of 5000 bytes"):
        snapshot.write(1, str(path), "k" * 5000)


def test_foreign_file(path: Path) -> None:
    path.write_bytes(b"PK\3\4" + bytes(5000))
    with pytest.raises(Refused, match="not a snapshot"):
        restored(path)


def test_another_file(path: Path, data: bytes) -> None:
    found = path.stat()
    for size, inode in ((found.st_size + 1, found.st_ino), (found.st_size, found.st_ino + 1)):
        with pytest.raises(Refused, match="another file than the one written"):
            snapshot.restore(str(path), KEY, size, inode)


def test_what_is_no_file(path: Path, data: bytes, tmp_path: Path) -> None:
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(path)
    os.mkfifo(fifo)
    for name, complaint in (
        (link, "cannot be opened"),
        (fifo, "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "none", "cannot be opened: No such file"),
        ("nul\0", "cannot be opened"),
    ):
        with pytest.raises(Refused, match=complaint):
            snapshot.restore(str(name), KEY, len(data), path.stat().st_ino)


def test_a_class_that_is_gone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot.write(Model(), str(path), KEY)
    monkeypatch.delattr(sys.modules[__name__], "Model")
    with pytest.raises(Refused, match=r"cannot be built here: AttributeError.*Model"):
        restored(path)


# ---- models that cannot be written ----


def _local() -> Any:
    class Local:
        pass

    return Local()


def _of_main() -> Any:
    made = type("OfMain", (), {"__module__": "__main__"})
    return made()


def _of_no_file() -> Any:
    made = type("Made", (), {"__module__": "snapshot_no_file"})
    return made()


class Stubborn:
    def __getstate__(self) -> Any:
        raise RuntimeError("a handle\nof the driver")


def _slotted() -> Slotted:
    slotted = Slotted()
    slotted.deep = [0, threading.Lock()]
    return slotted


def _generator() -> Any:
    yield 1


def _deep() -> Any:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "lock": (
        threading.Lock,
        r"^self\.session: _thread\.lock cannot be pickled: cannot pickle '_thread.lock' object$",
    ),
    "in a dict": (
        lambda: {"a": [1, {2: threading.Lock()}]},
        r"^self\.session\['a'\]\[1\]\[2\]: _thread\.lock cannot",
    ),
    "in slots": (_slotted, r"^self\.session\.deep\[1\]: _thread\.lock cannot"),
    "socket": (socket.socket, r"^self\.session: socket\.socket cannot"),
    "file": (lambda: open(os.devnull), r"^self\.session: _io\.TextIOWrapper cannot"),  # noqa: SIM115, PTH123  # it is to be open
    "module": (lambda: sys, r"^self\.session: module cannot"),
    "generator": (_generator, r"^self\.session: generator cannot"),
    "lambda": (lambda: lambda: 1, r"^self\.session: .*<lambda> is defined inside a function or expression"),
    "closure in a partial": (
        lambda: functools.partial(lambda: 1),
        r"^self\.session\.func: .*<lambda> is defined inside a function",
    ),
    "local class": (_local, r"^self\.session: .*_local\.<locals>\.Local is defined inside a function"),
    "class of main": (_of_main, r"^self\.session: __main__\.OfMain is defined in __main__.*move it to a module"),
    "class of no file": (
        _of_no_file,
        r"^self\.session: snapshot_no_file\.Made is of a module that no import finds",
    ),
    "what raises": (Stubborn, r"^self\.session: .*Stubborn cannot be pickled: a handle of the driver$"),
    "deep": (_deep, "nested too deep"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit(path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    make, complaint = UNFIT[case]
    monkeypatch.setitem(sys.modules, "snapshot_no_file", types.ModuleType("snapshot_no_file"))
    model = Model(session=make())
    try:
        with pytest.raises(Refused, match=complaint):
            snapshot.write(model, str(path), KEY)
    finally:
        if hasattr(model.session, "close"):
            model.session.close()
    assert not path.exists()


def test_the_globals_of_a_module_are_called_by_their_names(path: Path) -> None:
    with pytest.raises(Refused, match=r"^tokens\.session: _thread\.lock cannot"):
        snapshot.write({"model": 1, "tokens": Model(session=threading.Lock())}, str(path), KEY)


def test_the_model_itself(path: Path) -> None:
    with pytest.raises(Refused, match=r"^self: generator cannot"):
        snapshot.write(_generator(), str(path), KEY)


def test_a_file_that_is_there_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        snapshot.write(Model(), str(path), KEY)
    assert path.read_text() == "precious"


def test_a_full_disk_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes, at: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        snapshot.write(Model(), str(path), KEY)
    assert not path.exists()


def test_writes_that_the_kernel_cuts_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:1000], at))
    monkeypatch.setattr(os, "pread", lambda fd, length, at: read(fd, min(length, 100), at))
    snapshot.write({"a": np.arange(5000)}, str(path), KEY)
    assert restored(path)["a"].tolist() == list(range(5000))


# ---- what a load leaves behind ----


def test_nothing_left() -> None:
    watch = Watch()
    threads = [threading.Thread(target=double, args=(1,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open(os.devnull) as _, socket.socket() as _:  # noqa: PTH123  # any file
        pass
    subprocess.run(["true"], check=True)
    watch.check()


class Holder:
    def __init__(self) -> None:
        self.me = self
        self.fd = os.open(os.devnull, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.fd)


def test_what_a_collection_closes_is_not_left() -> None:
    watch = Watch()
    Holder()
    watch.check()


def test_a_thread_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "SETTLING", 0.0)  # it is not going to end
    watch = Watch()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="refresher")
    thread.start()
    try:
        with pytest.raises(Refused, match=r"left behind.*: 1 thread \(refresher\)$"):
            watch.check()
    finally:
        end.set()
        thread.join()


def test_descriptors_left(tmp_path: Path) -> None:
    watch = Watch()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        (tmp_path / "weights.db").open("w"),
    ):
        ends = os.pipe()
        try:
            with pytest.raises(Refused) as refused:
                watch.check()
        finally:
            for end in ends:
                os.close(end)
        told = str(refused.value)
        assert "5 open descriptors (" in told
        assert f"a socket to 127.0.0.1:{client.getpeername()[1]}" in told
        assert "a pipe" in told
        assert str(tmp_path / "weights.db") in told
    watch.check()


def test_a_descriptor_that_became_another_is_left(tmp_path: Path) -> None:
    with (tmp_path / "before").open("w") as before:
        watch = Watch()
        with (tmp_path / "after").open("w") as after:
            os.dup2(after.fileno(), before.fileno())
        with pytest.raises(Refused, match=r"1 open descriptor \(.*/after\)"):
            watch.check()


def test_a_child_left() -> None:
    watch = Watch()
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            with pytest.raises(Refused, match=rf"1 child process \(sleep, process {child.pid}\)$"):
                watch.check()
        finally:
            child.kill()
    watch.check()
