"""A parameter that is loaded from a mapped file gets a mapping of its own in place of a copy."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")
LEAST = 16 << 10  # bytes of a tensor; below it a copy is as good as a mapping
ALIGNMENT = 64  # of torch's own memory; kernels may choose another path for less
MOST_MISSES = 8  # looks at memory that is no file's, after which a load is taken to have none

_PRESENT, _SWAPPED, _OF_FILE = 0x80, 0x40, 0x20  # bits 63, 62 and 61 of /proc/self/pagemap


class Twins:
    """Second private mappings of what sources of copies map already. Each region of one is handed out once only:
    whoever writes into his changes nobody else's."""

    def __init__(self, torch: Any, settled: Callable[[str], bool], act: bool = True) -> None:
        self._torch = torch
        self._base = torch._C.TensorBase
        self._plain = (torch.Tensor, torch.nn.Parameter)
        self._settled = settled
        self._act = act  # or only count what could be done
        self.nbytes = 0  # given, or not copied by us but counted
        self._known: list[tuple] = []  # mappings of sources, with what keeps each where it is
        self._files: dict[tuple, tuple | None] = {}  # file -> (storage, regions handed out); None: it will not do
        self._misses = 0

    def begin(self) -> None:
        lone = self._torch.nn.Parameter(self._torch.empty(8))
        self._alone = self._uses(self._base.untyped_storage(lone))

    def assign(self, target: Any, source: Any) -> bool:
        """Give `target` a mapping of what `source` maps, in place of `target.copy_(source)`. Only where the two
        cannot be told apart: `target` alone uses its memory and covers it, and `source` is as its file is. To be
        called where operators are not asked about (inside a dispatch mode)."""
        if type(source) not in self._plain or type(target) not in self._plain or self._torch.is_grad_enabled():
            return False
        same = target.dtype is source.dtype and target.shape == source.shape
        if not same or target.device.type != "cpu" or source.device.type != "cpu":
            return False
        nbytes = source.numel() * source.element_size()
        if nbytes < LEAST or not (source.is_contiguous() and target.is_contiguous()):
            return False
        if source.is_conj() or source.is_neg() or target.is_conj() or target.is_neg():
            return False
        storage = self._base.untyped_storage(target)
        if storage.nbytes() != nbytes or self._uses(storage) != self._alone:
            return False
        twin = self.of(self._base.data_ptr(source), nbytes, self._base.untyped_storage(source))
        if twin is None or not (self._act and self._give(target, twin)):
            self.nbytes += 0 if twin is None or self._act else nbytes
            return False
        self.nbytes += nbytes
        return True

    def _give(self, target: Any, twin: Any) -> bool:
        aten = self._torch.ops.aten
        try:
            new = aten.empty.memory_format([0], dtype=target.dtype, device="cpu")
            shape = tuple(target.shape)
            aten.set_.source_Storage_storage_offset(new, twin, 0, shape, target.stride())
            target.data = new
        except RuntimeError:
            return False
        return True

    def _uses(self, storage: Any) -> int:
        return int(self._torch._C._storage_Use_Count(storage._cdata))

    def of(self, address: int, nbytes: int, keeper: object) -> Any:
        """A storage with what the `nbytes` at `address` hold; None unless they are mapped from a file that
        stays as it is, and none of it has been written to. `keeper` is an object that keeps their mapping."""
        mapping = self._mapping(address, nbytes, keeper)
        if mapping is None:
            return None
        low, _, private, offset, file = mapping
        start = offset + address - low
        if not private or start % ALIGNMENT or not clean(address, nbytes):
            return None
        storage = self._twin(file, start, start + nbytes)
        return None if storage is None else storage[start : start + nbytes]

    def forget(self) -> None:
        self._known.clear()
        self._files.clear()

    def _mapping(self, address: int, nbytes: int, keeper: object) -> tuple | None:
        for mapping, _ in self._known:
            if mapping[0] <= address and address + nbytes <= mapping[1]:
                return mapping  # type: ignore[no-any-return]  # a bare tuple in an annotation is one of Any
        if self._misses >= MOST_MISSES:
            return None
        found = mapping_at(address, nbytes)
        if found is None:
            self._misses += 1
        else:
            self._known.append((found, keeper))
        return found

    def _twin(self, file: tuple, low: int, high: int) -> Any:
        known = self._files.get(file, ())
        if known is None:
            return None
        if known:
            storage, regions = known
            if all(high <= first or end <= low for first, end in regions):
                regions.append((low, high))
                return storage
        storage = self._map(file)
        self._files[file] = None if storage is None else (storage, [(low, high)])
        return storage

    def _map(self, file: tuple) -> Any:
        path = file[2]
        try:
            if not self._settled(path):
                return None
            storage = self._torch.UntypedStorage.from_file(path, False, os.path.getsize(path))
        except (OSError, RuntimeError):
            return None
        # The path may lead to another file by now; the kernel's own words about both mappings tell.
        mine = mapping_at(storage.data_ptr(), 1)
        return storage if mine is not None and mine[4] == file else None


def mapping_at(address: int, nbytes: int) -> tuple | None:
    """(first byte, end, whether private, offset in the file, (device, inode, path)) of the mapping of a file
    that holds all of this memory."""
    try:
        with open("/proc/self/maps", "rb", buffering=0) as file:
            text = file.read()
            while more := file.read():
                text += more
    except OSError:
        return None
    for line in text.splitlines():
        low, _, rest = line.partition(b"-")
        first = int(low, 16)
        if first > address:
            break  # they are in order
        end, mode, offset, device, inode, *path = rest.split(None, 5)
        if address + nbytes <= int(end, 16) and path and path[0].startswith(b"/"):
            file_id = device.decode(), inode.decode(), os.fsdecode(path[0])
            return first, int(end, 16), mode.endswith(b"p"), int(offset, 16), file_id
    return None


def clean(address: int, nbytes: int) -> bool:
    """Whether this process has written to none of these pages of a private mapping: one written to is no
    longer the file's."""
    first = address // PAGE
    pages = (address + nbytes - 1) // PAGE - first + 1
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            entries = os.pread(file.fileno(), pages * 8, first * 8)
    except OSError:
        return False
    if len(entries) != pages * 8:
        return False
    # Only the highest byte of each entry matters, and few values of it occur.
    return not any(flags & _SWAPPED or flags & (_PRESENT | _OF_FILE) == _PRESENT for flags in set(entries[7::8]))
