"""Pages of files in the kernel's cache.

A page is charged to the control group of whoever made it resident, for as long as it stays, and to nobody who
maps it later. So what many instances map is made resident here, by a process outside of their groups, and
weighs nothing in any of them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

STEP = 1 << 20  # bytes of a read

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_FAILED = ctypes.c_void_p(-1).value


def resident(path: Path) -> int:
    """Bytes of the file that are in memory, in whole pages. The kernel tells those only who own the file or may
    write to it; to others all of it looks resident. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        return _cached(file.fileno()).count(1) * mmap.PAGESIZE


def prefault(path: Path) -> int:
    """Make it all resident, charged to the calling process, and return the bytes that were read for it. Blocks:
    for a thread. What is there already is not touched (looking takes some 30 ms per GB) and stays charged
    to whom it is. Raises OSError."""
    read = 0
    buffer = bytearray(STEP)
    with path.open("rb", buffering=0) as file:
        for start, end in _gaps(_cached(file.fileno())):
            at = start
            while at < end:
                got = os.preadv(file.fileno(), [memoryview(buffer)[: end - at]], at)
                if got == 0:  # the end of the file
                    break
                at += got
            read += at - start
    return read


def _cached(fd: int) -> bytes:
    """1 for every page that is in memory, 0 for every other. By mincore(2), since cachestat(2) came with Linux
    6.5 and counts only."""
    size = os.fstat(fd).st_size
    if size == 0:
        return b""
    # by hand: a read-only mapping of the module `mmap` does not give its address away
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
        if _libc.mincore(address, size, pages) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        _libc.munmap(address, size)
    # the other bits are reserved, and none is set
    return pages.raw


def _gaps(pages: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) in bytes of every run that is missing."""
    start = pages.find(0)
    while start >= 0:
        end = pages.find(1, start)
        if end < 0:
            end = len(pages)
        yield start * mmap.PAGESIZE, end * mmap.PAGESIZE
        start = pages.find(0, end)
