"""Thread counts of the numeric libraries that a process has loaded."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Read by a library when it is loaded, so they reach those that come later, and child processes.
VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
# A part of a shared library's file name, and the functions that set its count (the first that it has). numpy's
# and scipy's wheels carry an OpenBLAS whose names are prefixed, so that several can live in a process.
RUNTIMES = (
    (b"openblas", tuple(p + "openblas_set_num_threads" + s for p in ("scipy_", "") for s in ("64_", "_64", ""))),
    (b"libmkl_rt", ("MKL_Set_Num_Threads",)),
    (b"libblis", ("bli_thread_set_num_threads",)),
    (b"libgomp", ("omp_set_num_threads",)),
    (b"libiomp", ("omp_set_num_threads",)),
    (b"libomp", ("omp_set_num_threads",)),
)


def set_counts(n: int) -> dict:
    """Let every library of this process compute with `n` threads; those that are not loaded are not touched.
    Returns {what was set: n}.

    For a process that has just been forked, or has just begun: OpenMP keeps its count per thread, so what
    other threads are at already stays. A session of onnxruntime has the count it was made with.
    """
    done = dict.fromkeys(VARIABLES, n)
    for name in VARIABLES:
        os.environ[name] = str(n)
    for name in _runtimes(n):
        done[name] = n
    # After the runtimes, which torch sets too, and remembers.
    torch = sys.modules.get("torch")
    if _tried(torch, "set_num_threads", n):
        done["torch"] = n
    if _tried(torch, "set_num_interop_threads", n):  # once per process, and before any work of that kind
        done["torch interop"] = n
    if _tried(sys.modules.get("cv2"), "setNumThreads", n):
        done["cv2"] = n
    if _tried(sys.modules.get("numexpr"), "set_num_threads", n):
        done["numexpr"] = n
    return done


def _tried(module: Any, function: str, n: int) -> bool:
    call = getattr(module, function, None)
    if call is None:
        return False
    try:
        call(n)
    except Exception:  # noqa: BLE001  # too late for this library, or more than it was built for
        return False
    return True


def _runtimes(n: int) -> list[str]:
    """By their own functions, found where the loader put them: their Python wrappers cannot be asked."""
    if "ctypes" not in sys.modules:  # numpy and torch import it, and without them there is no such runtime
        return []
    found = []
    for path in _libraries():
        name = os.path.basename(path)
        for part, functions in RUNTIMES:
            if part in name and _call(path, functions, n):
                found.append(os.fsdecode(name))
                break
    return found


def _libraries() -> list[bytes]:
    """Paths of the shared libraries in this process, in the order in which they were loaded: by the loader,
    which takes a tenth of the time that the kernel needs to write /proc/self/maps."""
    import ctypes

    class Info(ctypes.Structure):  # the head of dl_phdr_info
        _fields_ = (("address", ctypes.c_void_p), ("name", ctypes.c_char_p))

    paths: list[bytes] = []

    def add(info: Any, size: int, data: object) -> int:
        if info.contents.name:
            paths.append(info.contents.name)
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
    try:
        ctypes.CDLL(None).dl_iterate_phdr(kind(add), None)
    except (AttributeError, MemoryError, OSError):
        return []
    return paths


def _call(path: bytes, functions: tuple, n: int) -> bool:
    import ctypes

    try:
        library = ctypes.CDLL(os.fsdecode(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    for name in functions:
        function = getattr(library, name, None)
        if function is not None:
            function(ctypes.c_int(n))
            return True
    return False
