"""Files that a function reads whole are mapped instead: `torch.load`, `numpy.load`, joblib's arrays.

A mapping is private: what is written into an array stays this process's. Its pages are read when they are used
and shared by all who map the file. Whatever is unusual (a file object, another device, an old or compressed
format, a file that may yet change) goes to the library's own call as it came.
"""

from __future__ import annotations

import functools
import io
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from .intercept import Interception

LEAST = 1 << 20  # bytes of a file; below it a read is as fast
LEAST_ARRAY = 64 << 10  # bytes of one array in a joblib file: each is a mapping of its own
ALIGNMENT = 64  # of torch's storages, in memory and in files that it wrote


# ---- torch ----------------------------------------------------------------------------------------------


def patch_torch(torch: ModuleType, interception: Interception) -> None:
    original = torch.load
    if "mmap" not in (original.__kwdefaults__ or {}):
        return  # torch before 2.1

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        reason = _torch_refusal(torch, interception, *args, **kwargs)
        if not reason:
            try:
                result = original(*args, **{**kwargs, "mmap": True})
            except Exception as error:  # noqa: BLE001  # the call below tells it in the caller's terms
                reason = "failed: " + type(error).__name__
            else:
                interception.note("torch.load", "mapped")
                return result
        interception.note("torch.load", "left", reason)
        return original(*args, **kwargs)

    interception.replace(torch, "load", load)
    interception.replace(torch.serialization, "load", load)


def _torch_refusal(
    torch: Any,
    interception: Interception,
    f: object = None,
    map_location: object = None,
    *rest: object,
    **more: Any,
) -> str:
    """Why this call is not for mapping; "" when it is."""
    if more.get("mmap") is not None:
        return "mmap given"
    if not isinstance(f, (str, os.PathLike)):
        return "not a path"
    device = isinstance(map_location, (str, torch.device))
    if map_location is not None and not (device and str(map_location) == "cpu"):
        return "map_location"
    options = getattr(torch.serialization, "get_default_mmap_options", None)
    if options is not None and options() != 2:  # MAP_PRIVATE, which `mmap` would have to be imported for
        return "shared mapping asked for"
    try:
        path = os.fspath(f)
        if os.path.getsize(path) < LEAST:
            return "small"
        return _archive_refusal(path) or ("" if interception.settled(path) else "may change")
    except (OSError, ValueError, TypeError):
        return "unreadable"


def _archive_refusal(path: str) -> str:
    """torch itself maps a record of any archive, and reads nonsense from one that is compressed."""
    import zipfile  # torch has it loaded

    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            return "old format"
        try:
            entries = zipfile.ZipFile(file).infolist()
        except zipfile.BadZipFile:
            return "unreadable"
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            return "TorchScript"
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                return "compressed"
            if "/data/" in entry.filename and entry.file_size:
                head = os.pread(file.fileno(), 30, entry.header_offset)
                start = entry.header_offset + 30 + int.from_bytes(head[26:28], "little")
                if (start + int.from_bytes(head[28:30], "little")) % ALIGNMENT:
                    return "unaligned"
    return ""


# ---- numpy ----------------------------------------------------------------------------------------------


def patch_numpy(numpy: Any, interception: Interception) -> None:
    original = numpy.load

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        reason = _numpy_refusal(interception, *args, **kwargs)
        if not reason:
            try:
                # The plain class, as a read gives it; the memmap stays alive as its base.
                if len(args) > 1:
                    result = numpy.asarray(original(args[0], "c", *args[2:], **kwargs))
                else:
                    result = numpy.asarray(original(*args, **{**kwargs, "mmap_mode": "c"}))
                if result.flags.writeable and result.flags.aligned:
                    interception.note("numpy.load", "mapped")
                    return result
                reason = "flags"
            except Exception as error:  # noqa: BLE001  # the call below tells it in the caller's terms
                reason = "failed: " + type(error).__name__
        interception.note("numpy.load", "left", reason)
        return original(*args, **kwargs)

    interception.replace(numpy, "load", load)


def _numpy_refusal(
    interception: Interception, file: object = None, mmap_mode: object = None, *rest: object, **more: object
) -> str:
    if mmap_mode is not None:
        return "mmap_mode given"
    if not isinstance(file, (str, os.PathLike)):
        return "not a path"
    try:
        path = os.fspath(file)
        if os.path.getsize(path) < LEAST:
            return "small"
        with open(path, "rb", buffering=0) as opened:
            if opened.read(6) != b"\x93NUMPY":
                return "not .npy"
        return "" if interception.settled(path) else "may change"
    except (OSError, ValueError, TypeError):
        return "unreadable"


# ---- joblib ---------------------------------------------------------------------------------------------


def patch_joblib(joblib: ModuleType, interception: Interception) -> None:
    """Arrays are mapped one by one where joblib would read them into memory: its own `mmap_mode` gives memmaps
    inside estimators, keeps foreign byte orders and warns about compressed files."""
    from joblib import numpy_pickle  # loaded with joblib, which called us

    wrapper = numpy_pickle.NumpyArrayWrapper
    original = wrapper.read_array

    @functools.wraps(original)
    def read_array(self: Any, unpickler: Any, *args: Any, **kwargs: Any) -> Any:
        array = _map_array(self, unpickler, interception)
        if array is not None:
            interception.note("joblib.load", "mapped")
            return array
        return original(self, unpickler, *args, **kwargs)

    interception.replace(wrapper, "read_array", read_array)


def _map_array(wrapper: Any, unpickler: Any, interception: Interception) -> Any:
    """The array at the unpickler's position, mapped, and the position moved behind it; None, and the position
    as it was, where it is to be read."""
    numpy, dtype, file = unpickler.np, wrapper.dtype, unpickler.file_handle
    if dtype.hasobject or not dtype.isnative or not dtype.itemsize:
        return None
    count = 1
    for length in wrapper.shape:
        count *= int(length)
    size = count * dtype.itemsize
    if size < LEAST_ARRAY:
        return None
    # A decompressor is buffered just like a file: what counts is what it reads from.
    if type(file) is not io.BufferedReader or type(file.raw) is not io.FileIO:
        return None
    path = file.raw.name
    if not isinstance(path, str) or not interception.settled(path):
        interception.note("joblib.load", "left", "may change")
        return None
    start = file.tell()
    position = start
    if getattr(wrapper, "numpy_array_alignment_bytes", None) is not None:
        padding = file.read(1)
        file.seek(start)
        if not padding:
            return None
        position += 1 + padding[0]
    found = os.fstat(file.fileno())
    if position % dtype.alignment or position % 16 or position + size > found.st_size:
        return None
    import mmap

    offset = position - position % mmap.ALLOCATIONGRANULARITY
    try:
        mapping = mmap.mmap(file.fileno(), position - offset + size, access=mmap.ACCESS_COPY, offset=offset)
    except (OSError, ValueError):
        return None
    array = numpy.frombuffer(mapping, dtype=dtype, count=count, offset=position - offset)
    file.seek(position + size)
    if wrapper.order == "F":
        return array.reshape(wrapper.shape[::-1]).transpose()
    return array.reshape(wrapper.shape)
