"""Object snapshots: a loaded model as one file, from which another process has it again in milliseconds.

The file is a pickle without its bulk (the skeleton) and the bulk itself (torch storages, arrays, long bytes) as
buffers that a restore maps privately: nothing is copied until it is written to, and what is written to stays in
the process.

    head: magic, sha256 of all that follows up to the buffers, version, sizes | key | table | skeleton | buffers

The table has (offset, bytes) of each buffer: first those that the skeleton asks for by persistent id, then those
that it takes one by one (PickleBuffer). Buffers smaller than a page come first and share pages, since a fault and
a copy are paid by the page; each other begins on a page of its own.

Unpickling runs code, so a snapshot is restored in its owner's sandbox only; the digest is there to notice damage.
A file must not change while it is mapped; this module never writes to one that exists.
"""

from __future__ import annotations

import gc
import os
import stat
import sys
import time
from _pickle import Pickler, Unpickler
from copyreg import dispatch_table
from io import BytesIO
from struct import Struct

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Region = tuple[int, int]  # offset, bytes

MAGIC = b"\x89snap\r\n\x1a"
VERSION = 1
HEAD = Struct("<8s32sIIQQQQ")  # magic, digest, version, bytes of key, of file, of skeleton, entries held, handed
UNDIGESTED = 40  # bytes of it: magic and digest
ENTRY = Struct("<QQ")
PAGE = 4096
ALIGNMENT = 64  # of buffers that share a page: the widest that a vector instruction asks for
SMALLEST_ARRAY = 1 << 10  # bytes; smaller ones stay in the skeleton
SMALLEST_BYTES = 64 << 10  # they are copied at a restore in any case; out of the skeleton they are not hashed
LONGEST_KEY = 4096

STORAGE, TYPED, BYTES, BYTEARRAY = range(4)  # kinds of persistent ids: (kind, entry[, dtype])

MOST_SEEN = 200_000  # objects looked at to name the one that failed
SETTLING = 0.2  # seconds that a joined thread is given to leave the kernel's list


class Refused(Exception):
    """No snapshot, or none that can be used here. The text is the whole story, for the function's author."""


def write(model: object, path: str, key: str) -> dict:
    """A snapshot of `model` in a new file. Returns {"size", "skeleton", "buffers", "seconds"}.

    Raises Refused where the model cannot be one, OSError where the file cannot be written (one that exists is
    left alone); neither leaves a file behind. Nothing is fsynced.
    """
    began = time.monotonic()
    name = key.encode()
    if len(name) > LONGEST_KEY:
        raise ValueError("a key of %d bytes" % len(name))
    skeleton = BytesIO()
    pickler = _Writer(skeleton)
    try:
        pickler.dump(model)
    except _Unfit as unfit:
        raise Refused(_complaint(model, pickler.last, str(unfit))) from None
    except RecursionError:
        raise Refused("the model is nested too deep to be pickled") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Refused(_complaint(model, pickler.last, "cannot be pickled: " + reason)) from error
    with skeleton.getbuffer() as pickled:
        front = HEAD.size + len(name) + ENTRY.size * len(pickler.entries) + len(pickled)
        offsets, size = _lay_out(front, pickler.buffers)
        table = b"".join(ENTRY.pack(offsets[entry], len(pickler.buffers[entry])) for entry in pickler.entries)
        sizes = (VERSION, len(name), size, len(pickled), len(pickler.held), len(pickler.handed))
        digest = _sha256(HEAD.pack(MAGIC, b"", *sizes)[UNDIGESTED:], name, table, pickled)
        head = HEAD.pack(MAGIC, digest, *sizes)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)  # an empty buffer at the end writes nothing
            at = 0
            for part in (head, name, table, pickled):
                at = _write_at(fd, at, part)
            for place, buffer in enumerate(pickler.buffers):
                _write_at(fd, offsets[place], buffer)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        return {
            "size": size,
            "skeleton": len(pickled),
            "buffers": len(offsets),
            "seconds": time.monotonic() - began,
        }


def restore(path: str, key: str, size: int, inode: int) -> Any:
    """The model of the snapshot at `path`, which must be that very file. Raises Refused where it is not, or where
    what it holds cannot be built in this process.

    Arrays and tensors lie in the mapping, which lives as long as the last of them. They may be changed in place;
    a storage cannot be made larger (torch raises, as for every storage that it does not own).
    """
    try:
        # Not to wait for the writer of a FIFO is what O_NONBLOCK is for.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise Refused("the snapshot cannot be opened: %s" % (getattr(error, "strerror", None) or error)) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Refused("the snapshot is not a regular file")
        if found.st_ino != inode or found.st_size != size:
            raise Refused(
                "the snapshot is another file than the one written: inode %d of %d bytes, not inode %d of %d"
                % (found.st_ino, found.st_size, inode, size)
            )
        skeleton, held, handed = _read_front(fd, key, size)
        mapping = _map(fd, size) if held or handed else b""
    except OSError as error:
        raise Refused("the snapshot cannot be read: %s" % error.strerror) from None
    finally:
        os.close(fd)
    collecting = gc.isenabled()
    gc.disable()  # nothing that is being built is garbage yet, and looking for it doubles the time
    try:
        return _Restorer(skeleton, mapping, held, handed).load()
    except Exception as error:  # whatever the classes' own code raises
        reason = "%s: %s" % (type(error).__name__, " ".join(str(error).split()))
        raise Refused("what the snapshot holds cannot be built here: %s" % reason) from error
    finally:
        if collecting:
            gc.enable()


# ---- pickling -------------------------------------------------------------------------------------------


class _Unfit(Exception):
    """What is wrong with the object that is being pickled; `write` says where it sits."""


class _Writer(Pickler):
    """Pickles the skeleton and keeps the buffers, each as a view of the memory that it already has.

    `entries` are the table's, as places in `buffers`: two entries share a buffer where two objects share memory
    exactly (an array and the tensor made of it), so that they do again after a restore.
    """

    def __init__(self, skeleton: BytesIO) -> None:
        super().__init__(skeleton, protocol=5, buffer_callback=self._hand)
        self.last: object = None  # that pickle asked about; where it raises, this one is the reason
        self.buffers: list[memoryview] = []
        self.held: list[int] = []
        self.handed: list[int] = []
        self._known: dict[Any, int] = {}
        self._alive: list[object] = []  # what `_known` knows by address
        self._modules: dict[str, bool] = {}
        self._kinds: dict[type, Any] = {bytes: self._bytes, bytearray: self._bytes}
        torch = sys.modules.get("torch")
        self._tensor: Any = getattr(torch, "Tensor", _Unfit)
        self._array: Any = getattr(sys.modules.get("numpy"), "ndarray", _Unfit)
        self._storages = hasattr(torch, "UntypedStorage")
        if self._storages:
            self._kinds[torch.UntypedStorage] = self._storage  # type: ignore[union-attr]  # hasattr says so
            self._kinds[torch.storage.TypedStorage] = self._typed  # type: ignore[union-attr]

    @property
    def entries(self) -> list[int]:
        return self.held + self.handed

    def persistent_id(self, value: Any) -> Any:
        keep = self._kinds.get(type(value))
        return None if keep is None else keep(value)

    def reducer_override(self, value: Any) -> Any:
        self.last = value
        if isinstance(value, (type, _Function)):
            self._check_findable(value)
        elif isinstance(value, self._tensor):
            return self._reduce_tensor(value)
        elif type(value) is self._array and not value.dtype.hasobject:
            flags = value.flags
            if not (flags.c_contiguous or flags.f_contiguous):
                # numpy would copy it too, but into bytes, which a restore would have to copy once more
                return sys.modules["numpy"].ascontiguousarray(value).__reduce_ex__(5)
        return NotImplemented

    def _check_findable(self, value: Any) -> None:
        """A class or function is pickled by its name only."""
        module, name = value.__module__, value.__qualname__
        if type(value) in dispatch_table or not isinstance(module, str):
            return
        if module == "__main__":
            raise _Unfit("is defined in __main__, where another process does not find it; move it to a module")
        if "<lambda>" in name or "<locals>" in name:
            raise _Unfit("is defined inside a function or expression, where another process does not find it")
        top = module.partition(".")[0]
        if getattr(sys.modules.get(top, sys), "__spec__", None) is None:
            raise _Unfit("is of a module that no import finds again")

    def _reduce_tensor(self, tensor: Any) -> Any:
        if tensor.device.type != "cpu":
            raise _Unfit("is on %s, and only what is on the CPU can be mapped" % tensor.device)
        if not self._storages:
            raise _Unfit("is of a torch older than 2.0, whose storages cannot be mapped")
        if type(tensor) in dispatch_table:
            return NotImplemented
        return _with_typed_storages(tensor.__reduce_ex__(5))

    def _hand(self, buffer: Any) -> bool:
        """Called by pickle with each PickleBuffer; whether it is to stay in the skeleton."""
        raw = buffer.raw()
        if len(raw) < SMALLEST_ARRAY:
            return True
        self.handed.append(self._buffer(raw, None if raw.readonly else _address(raw)))
        return False

    def _bytes(self, value: Any) -> Any:
        if len(value) < SMALLEST_BYTES:
            return None
        kind = BYTES if type(value) is bytes else BYTEARRAY
        return kind, self._hold(("bytes", id(value)), value, lambda: (memoryview(value), None))

    def _typed(self, storage: Any) -> Any:
        return TYPED, self._storage(storage._untyped_storage)[1], storage.dtype

    def _storage(self, storage: Any) -> Any:
        if storage.device.type != "cpu":
            raise _Unfit("is on %s, and only what is on the CPU can be mapped" % storage.device)
        return STORAGE, self._hold(("storage", storage._cdata), storage, lambda: _memory_of(storage))

    def _hold(self, identity: tuple, value: object, view: Any) -> int:
        entry = self._known.get(identity)
        if entry is None:
            entry = self._known[identity] = len(self.held)
            self._alive.append(value)
            self.held.append(self._buffer(*view()))
        return entry

    def _buffer(self, view: memoryview, address: int | None) -> int:
        where = (address or id(view), len(view))
        place = self._known.get(where)
        if place is None:
            place = self._known[where] = len(self.buffers)
            self.buffers.append(view)
        return place


_Function = type(lambda: None)


def _with_typed_storages(reduced: Any) -> Any:
    """Of a tensor's reduction. For its newer dtypes it holds an untyped storage, but what rebuilds one of these
    wants a typed one, which torch.load makes of every storage."""
    torch = sys.modules["torch"]
    if type(reduced) is torch.UntypedStorage:
        return torch.storage.TypedStorage(wrap_storage=reduced, dtype=torch.uint8, _internal=True)
    return tuple(map(_with_typed_storages, reduced)) if type(reduced) is tuple else reduced


def _address(view: memoryview) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _memory_of(storage: Any) -> tuple[memoryview, int | None]:
    import ctypes

    size, address = storage.nbytes(), storage.data_ptr()
    if not size:
        return memoryview(b""), None
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B"), address


def _lay_out(front: int, buffers: list[memoryview]) -> tuple[list[int], int]:
    """Where each buffer begins in the file, and the size of the file."""
    offsets = [0] * len(buffers)
    at = front
    for small in (True, False):
        step = ALIGNMENT if small else PAGE
        for place, buffer in enumerate(buffers):
            if (len(buffer) < PAGE) is small:
                at = -(-at // step) * step
                offsets[place] = at
                at += len(buffer)
    return offsets, at


def _write_at(fd: int, at: int, data: bytes | memoryview) -> int:
    """Where it ends."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], at + done)
    return at + done


# ---- restoring ------------------------------------------------------------------------------------------


def _read_front(fd: int, key: str, size: int) -> tuple[bytes, list[Region], list[Region]]:
    """Skeleton and table. Nothing is believed, or allocated for, before it fits the file's size."""
    head = os.pread(fd, HEAD.size, 0)
    if len(head) < HEAD.size or not head.startswith(MAGIC):
        raise Refused("the file is not a snapshot")
    _, digest, version, named, whole, pickled, held, handed = HEAD.unpack(head)
    if version != VERSION:
        raise Refused("the snapshot has format %d, not %d" % (version, VERSION))
    table = (held + handed) * ENTRY.size
    front = HEAD.size + named + table + pickled
    if whole != size or front > size:
        raise Refused("the snapshot's head speaks of %d bytes in a file of %d" % (max(whole, front), size))
    rest = _read_at(fd, HEAD.size, front - HEAD.size)
    if _sha256(head[UNDIGESTED:], rest) != digest:
        raise Refused("the snapshot is damaged: its skeleton is not the one written")
    if rest[:named] != key.encode():
        raise Refused("the snapshot was made for other code, libraries or parameters")
    entries = list(ENTRY.iter_unpack(rest[named : named + table]))
    for offset, length in entries:
        if offset < front or offset + length > size or offset % ALIGNMENT:
            raise Refused(
                "the snapshot's table names bytes %d to %d, outside its buffers" % (offset, offset + length)
            )
    return rest[named + table :], entries[:held], entries[held:]


def _read_at(fd: int, at: int, length: int) -> bytes:
    data = os.pread(fd, length, at)
    if len(data) == length:
        return data
    parts = [data]
    while length > (have := sum(map(len, parts))):  # read(2) returns 2 GB at most
        data = os.pread(fd, length - have, at + have)
        if not data:
            raise Refused("the snapshot ends before its skeleton does")
        parts.append(data)
    return b"".join(parts)


def _map(fd: int, size: int) -> Any:
    """The file, private and writable.

    mmap.mmap would keep a duplicate of `fd` open for as long as it lives and close that number in the end,
    whoever owns it by then, a clone that had closed all its descriptors for one. So it maps memory of no file,
    and the file is mapped over it.
    """
    try:
        import ctypes
        import mmap
    except ImportError as error:
        raise Refused("this Python lacks %s, without which no snapshot is mapped" % error.name) from None

    access = mmap.PROT_READ | mmap.PROT_WRITE
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=access)
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype = ctypes.c_void_p
    word, number = ctypes.c_size_t, ctypes.c_int
    call.argtypes = [ctypes.c_void_p, word, number, number, number, ctypes.c_long]
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    fixed = 0x10  # MAP_FIXED, which the mmap module does not name
    if call(address, size, access, mmap.MAP_PRIVATE | fixed, fd, 0) != address:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return mapping


class _Restorer(Unpickler):
    def __init__(self, skeleton: bytes, mapping: Any, held: list[Region], handed: list[Region]) -> None:
        self._mapping = mapping
        self._view = view = memoryview(mapping)
        self._held = held
        self._made: dict[tuple, Any] = {}
        super().__init__(BytesIO(skeleton), buffers=[view[at : at + length] for at, length in handed])

    def persistent_load(self, pid: Any) -> Any:
        made = self._made.get(pid)
        if made is None:
            made = self._made[pid] = self._make(*pid)
        return made

    def _make(self, kind: int, entry: int, dtype: object = None) -> Any:
        at, length = self._held[entry]
        if kind == BYTES:
            return bytes(self._view[at : at + length])
        if kind == BYTEARRAY:
            return bytearray(self._view[at : at + length])
        import torch  # type: ignore[import-not-found]  # the tenant's, where he has it

        if kind == TYPED:
            storage = self.persistent_load((STORAGE, entry))
            return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
        if not length:
            return torch.UntypedStorage(0)
        whole = torch.frombuffer(self._mapping, dtype=torch.uint8, count=length, offset=at)
        return whole.untyped_storage()


def _sha256(*parts: bytes | memoryview) -> bytes:
    from hashlib import sha256

    digest = sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


# ---- saying what was wrong ------------------------------------------------------------------------------


def _complaint(model: object, culprit: object, reason: str) -> str:
    named = culprit if isinstance(culprit, (type, _Function)) else type(culprit)
    what = named.__qualname__ if named.__module__ == "builtins" else named.__module__ + "." + named.__qualname__
    try:
        path = _path_to(model, culprit)
    except Exception:  # noqa: BLE001  # a tenant's objects may do what they like when looked at
        path = ""
    return ("%s: %s %s" % (path, what, reason) if path else "%s %s" % (what, reason))[:1000]


def _path_to(model: object, culprit: object) -> str:
    """The shortest way from the model to the object or to one of that class; "" where none is found."""
    if model is culprit or type(model) is culprit:
        return "self"
    seen = {id(model)}
    queue: list[tuple[object, str]] = [(model, "" if type(model) is dict else "self")]
    for value, path in queue:  # it grows meanwhile
        for child, name in _parts(value, path):
            if child is culprit or type(child) is culprit:
                return name
            if id(child) not in seen and not isinstance(child, (str, bytes, int, float, type, type(sys))):
                seen.add(id(child))
                queue.append((child, name))
        if len(seen) > MOST_SEEN:
            break
    return ""


def _parts(value: Any, path: str) -> Iterator[tuple[object, str]]:
    if isinstance(value, dict):
        for key, child in list(value.items()):
            yield child, "%s[%.60r]" % (path, key) if path else str(key)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, child in enumerate(list(value)):
            yield child, "%s[%d]" % (path, index)
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict):
        for key, child in list(own.items()):
            if key in ("_modules", "_parameters", "_buffers") and isinstance(child, dict):  # a torch module's
                for name, part in list(child.items()):
                    yield part, "%s.%s" % (path, name)
            else:
                yield child, "%s.%s" % (path, key)
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for key in (slots,) if isinstance(slots, str) else tuple(slots):
            yield getattr(value, key, None), "%s.%s" % (path, key)
    for key in ("__self__", "func", "args", "keywords"):  # of bound methods and partials
        if type(value).__name__ in ("method", "partial") and hasattr(value, key):
            yield getattr(value, key), "%s.%s" % (path, key)


class Watch:
    """What a load leaves behind that no snapshot of its objects holds: made before the load, asked after it."""

    def __init__(self) -> None:
        self._tasks = _tasks()
        self._descriptors = _descriptors()
        self._children = _children()

    def check(self) -> None:
        """Raises Refused, naming the threads, open descriptors and child processes that were not there before."""
        gc.collect()  # a file or a thread pool in a cycle is closed, not left behind
        settled = time.monotonic() + SETTLING
        while _tasks() - self._tasks and time.monotonic() < settled:
            time.sleep(0.002)  # join() returns before the thread has left the process
        tasks = sorted(_tasks() - self._tasks)
        found = _descriptors()
        opened = [fd for fd, target in sorted(found.items()) if self._descriptors.get(fd) != target]
        children = sorted(_children() - self._children)
        left = [
            _count(len(tasks), "thread", "threads", [_task_name(task) for task in tasks]),
            _count(len(opened), "open descriptor", "open descriptors", [_opened(fd, found[fd]) for fd in opened]),
            _count(len(children), "child process", "child processes", [_child_name(pid) for pid in children]),
        ]
        told = [part for part in left if part]
        if told:
            raise Refused("the load left behind what a snapshot cannot hold: %s" % ", and ".join(told))


def _count(number: int, one: str, many: str, names: list[str]) -> str:
    if not number:
        return ""
    listed = ", ".join(names[:5]) + (", …" if number > 5 else "")
    return "%d %s (%s)" % (number, one if number == 1 else many, listed)


def _tasks() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def _task_name(task: int) -> str:
    threading = sys.modules.get("threading")
    for thread in threading.enumerate() if threading else ():
        if thread.native_id == task:
            return str(thread.name)
    return _text("/proc/self/task/%d/comm" % task) or "a thread of a library"


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink("/proc/self/fd/" + name)
        except OSError:  # the one that listdir had
            continue
    return found


def _opened(fd: int, target: str) -> str:
    if target.startswith("socket:"):
        return "a socket" + _peer(fd)
    if target.startswith("pipe:"):
        return "a pipe"
    if target.startswith("anon_inode:"):
        return "an " + target.partition(":")[2].strip("[]")
    return target


def _peer(fd: int) -> str:
    from socket import socket

    try:
        with socket(fileno=os.dup(fd)) as copy:
            peer = copy.getpeername()
    except OSError:  # it is not connected
        return ""
    if isinstance(peer, tuple):
        return " to %s:%s" % peer[:2]
    return " to %s" % peer if isinstance(peer, str) and peer else ""


def _children() -> set[int]:
    """By asking every process for its parent: the kernel's own list of children is a build option."""
    me = os.getpid()
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _text("/proc/%s/stat" % name).rpartition(")")[2].split()
            if len(fields) > 1 and int(fields[1]) == me:
                found.add(int(name))
    return found


def _child_name(pid: int) -> str:
    return "%s, process %d" % (_text("/proc/%d/comm" % pid) or "unnamed", pid)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:  # it ended meanwhile
        return ""
