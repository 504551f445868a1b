"""Parameters that a checkpoint overwrites are not initialised first, and are mapped instead of copied.

A constructor fills every parameter with random numbers; `load_state_dict` then overwrites them. Here, while a
recorded load runs, an initialiser on fresh memory is put off (`normal_`, `uniform_`, `fill_` … on what `empty`
has just returned): it is dropped when the whole memory is overwritten or freed, and run before anything else can
see the values. So a load that deviates from its recording costs time, never a wrong number.

What sees values:
- operators: a torch dispatch mode is asked before every one of this thread, and knows an alias by its storage;
- accessors that are no operators (`data_ptr`, `numpy`, `untyped_storage` …): shadowed while the mode is on;
- other threads, where the mode is not: before one starts, everything put off is run and the mode is over;
- the end of the load: `Interception.loaded`.
Not seen is an extension that takes tensors past torch's dispatcher, and code that switches dispatch modes off,
where they read a parameter during the load before anything was loaded into it.

Random numbers: skipped draws leave torch's generator where it was, and a put-off initialiser that runs after all
draws from a generator of its own. That is the same distribution as long as nobody can foretell the generator's
numbers, so it is given a seed by chance when the mode begins, and a seed of the function's own (or a look at the
generator's state) ends the putting off. A load that was recorded with such a seed is never skipped.
"""

from __future__ import annotations

import functools
import os
import sys

from . import operators, twins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from .intercept import Interception

VERSION = 1  # of a recording
LEAST = 16 << 10  # bytes: below it, running an initialiser costs no more than putting it off
PAYS = 4 << 20  # bytes that a recorded load skipped or copied from a file, below which the mode is not worth it
MOST_OPERATORS = 50_000  # asked about, at about 5 µs each; after that the load is no constructor's
MOST_ITEMS = 20_000

_ACCESSORS = ("data_ptr", "numpy", "tolist", "untyped_storage", "__dlpack__")


def patch_torch(torch: ModuleType, interception: Interception) -> None:
    """Begin, where there is a recording of this torch that says it pays, or one is to be made."""
    recorded = interception.options.get("skip_init") or None
    recording = bool(interception.options.get("record_init"))
    if not recording:
        reason = _unusable(torch, recorded)
        if reason:
            interception.note("skip_init", "left", reason)
            return
    if len(sys._current_frames()) > 1:
        interception.note("skip_init", "left", "other threads")
        return
    Window(torch, interception, None if recording else recorded).open()


def _unusable(torch: Any, recorded: dict | None) -> str:
    if recorded is None or recorded.get("version") != VERSION:
        return "no recording"
    if recorded.get("torch") != str(torch.__version__):
        return "another torch"
    if recorded.get("ended"):
        return str(recorded["ended"])
    return "" if recorded["skipped_bytes"] + recorded["copied_bytes"] >= PAYS else "would not pay"


class _Item:
    """Memory that `empty` returned and nothing has read yet, with the initialisers put off so far."""

    __slots__ = ("chain", "nbytes", "ref", "row")

    def __init__(self, ref: Any, nbytes: int) -> None:
        self.ref = ref  # weak: what the load throws away is not kept for our sake
        self.nbytes = nbytes
        self.chain: list[tuple] = []
        self.row: list | None = None  # of the recording


class Window:
    """The time from torch's import to the end of the load, in the thread that opened it."""

    def __init__(self, torch: Any, interception: Interception, recorded: dict | None) -> None:
        self._torch = torch
        self._aten = torch.ops.aten
        self._base = torch._C.TensorBase
        self._interception = interception
        self._recorded = recorded
        self._rows: list[list] = [] if recorded is None else recorded["rows"]
        self._next = 0  # row that the next item put off must match
        self._items: dict[int, _Item] = {}  # by storage
        self._kinds: dict[object, int] = {}
        self._putting_off = True
        self._ended = ""  # why, when it ended early
        self._over = False
        self._quiet = False  # inside an initialiser that was put on record as a whole
        self._operators = 0
        self._skipped = self._ran = 0
        self._seed = 0
        self._generator: Any = None
        self._mode: Any = None
        self._shadows: list[Any] = []
        self._twins = twins.Twins(torch, interception.settled, act=recorded is not None)
        self._plain = (torch.Tensor, torch.nn.Parameter)
        self._floats = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

    # ---- beginning and end --------------------------------------------------------------------------

    def open(self) -> None:
        from torch.multiprocessing.reductions import StorageWeakRef  # type: ignore[import-not-found]
        from torch.utils._python_dispatch import (  # type: ignore[import-not-found]
            TorchDispatchMode,
            _disable_current_modes,
        )

        self._weak = StorageWeakRef
        self._without_modes = _disable_current_modes
        window = self

        class Mode(TorchDispatchMode):  # type: ignore[misc]
            supports_higher_order_operators = True

            @classmethod
            def _should_skip_dynamo(cls) -> bool:
                return False  # skipping would import torch._dynamo at the first operator

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return window._asked(func, types, args, kwargs or {})

        torch = self._torch
        self._twins.begin()
        if self._recorded is None:
            self._seed = torch.default_generator.initial_seed()
        else:
            self._seed = int.from_bytes(os.urandom(8), "little") >> 1
            torch.default_generator.manual_seed(self._seed)
            self._generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
        self._shadow()
        self._interception.at_loaded(self.close)
        self._mode = Mode()
        self._mode.__enter__()

    def close(self) -> None:
        """Run what is still put off, report, and be out of the way."""
        if not self._leave():
            self._over = True  # somebody's mode lies on top for good: pass everything through
            self._interception.note("skip_init", "left", "another mode on top")
        self._run_all()
        self._unshadow()
        self._twins.forget()
        if self._recorded is None:
            self._interception.record(self._facts())
            return
        note = {
            "skipped_bytes": self._skipped,
            "mapped_bytes": self._twins.nbytes,
            "run_after_all": self._ran,
            "operators": self._operators,
        }
        for name, value in note.items():
            self._interception.count("skip_init", name, value)
        if self._ended:
            self._interception.note("skip_init", "left", self._ended)

    def _leave(self) -> bool:
        if self._mode is None:
            return True
        from torch.utils._python_dispatch import _get_current_dispatch_mode

        if _get_current_dispatch_mode() is not self._mode:
            return False
        self._mode.__exit__(None, None, None)
        self._mode = None
        return True

    def _leave_early(self) -> None:
        """When all that was recorded has happened, further operators need not ask us."""
        if self._recorded is None:
            return
        done = self._next >= len(self._rows) and self._twins.nbytes >= self._recorded["copied_bytes"]
        pending = any(item.chain and not item.ref.expired() for item in self._items.values())
        if (done or self._ended) and not pending and self._leave():
            self._unshadow()

    def _unshadow(self) -> None:
        while self._shadows:
            self._shadows.pop()()

    def _facts(self) -> dict:
        if self._seed != self._torch.default_generator.initial_seed():
            self._end("seeded")
        return {
            "version": VERSION,
            "torch": str(self._torch.__version__),
            "rows": [] if self._ended else self._rows,
            "skipped_bytes": self._skipped,
            "copied_bytes": self._twins.nbytes,
            "operators": self._operators,
            "ended": self._ended,
        }

    def _end(self, reason: str) -> None:
        """No more is put off; what is, stays so."""
        self._ended = self._ended or reason
        self._putting_off = False

    def _give_up(self, reason: str) -> None:
        self._end(reason)
        self._run_all()
        self._items.clear()
        self._over = True

    # ---- who might look -----------------------------------------------------------------------------

    def _shadow(self) -> None:
        torch = self._torch

        def replace(owner: Any, name: str, new: object) -> None:
            self._shadows.append(self._interception.replace(owner, name, new))

        for name in _ACCESSORS:
            if hasattr(torch.Tensor, name):
                replace(torch.Tensor, name, self._watched(getattr(torch.Tensor, name)))
        if hasattr(torch.utils, "dlpack"):
            replace(torch.utils.dlpack, "to_dlpack", self._watched(torch.utils.dlpack.to_dlpack))
        state = self._before(torch.get_rng_state, lambda: self._end("generator's state was read"))
        replace(torch, "get_rng_state", state)
        replace(torch.random, "get_rng_state", state)
        self._shadow_truncated(replace)
        load = torch.nn.Module.load_state_dict

        @functools.wraps(load)
        def load_state_dict(*args: Any, **kwargs: Any) -> Any:
            result = load(*args, **kwargs)
            self._leave_early()
            return result

        replace(torch.nn.Module, "load_state_dict", load_state_dict)
        import _thread
        import threading  # torch has it loaded

        def before() -> None:
            if not self._over and self._mode is not None:
                self._give_up("a thread was started")

        replace(threading.Thread, "start", self._before(threading.Thread.start, before))
        replace(_thread, "start_new_thread", self._before(_thread.start_new_thread, before))

    def _shadow_truncated(self, replace: Any) -> None:
        init = self._torch.nn.init
        truncated = init.trunc_normal_
        if "generator" not in truncated.__code__.co_varnames:
            return

        @functools.wraps(truncated)
        def trunc_normal_(
            tensor: Any,
            mean: float = 0.0,
            std: float = 1.0,
            a: float = -2.0,
            b: float = 2.0,
            generator: Any = None,
        ) -> Any:
            if generator is None and self._put_off_truncated(truncated, tensor, mean, std, a, b):
                return tensor
            return truncated(tensor, mean, std, a, b, generator)

        replace(init, "trunc_normal_", trunc_normal_)

    def _watched(self, original: Any) -> Any:
        @functools.wraps(original)
        def access(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if self._items:
                item = self._item(tensor)
                if item is not None:
                    self._look(item)
            return original(tensor, *args, **kwargs)

        return access

    def _before(self, original: Any, act: Any) -> Any:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            act()
            return original(*args, **kwargs)

        return call

    # ---- operators ----------------------------------------------------------------------------------

    def _asked(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if self._over or self._quiet:
            return func(*args, **kwargs)
        self._operators += 1
        if self._operators > MOST_OPERATORS or len(self._items) > MOST_ITEMS:
            self._give_up("too many operators")
            return func(*args, **kwargs)
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = operators.kind_of(func)
        if kind == operators.EMPTY:
            result = func(*args, **kwargs)
            self._born(result)
            return result
        touched = self._touched(args, kwargs)
        if kind == operators.VIEW and touched:
            return func(*args, **kwargs)
        if kind == operators.INIT and touched and self._put_off(func, args, kwargs):
            return args[0]
        if kind == operators.COPY:
            return self._copy(func, args, kwargs, touched)
        for item in touched:
            self._look(item)
        return func(*args, **kwargs)

    def _born(self, tensor: Any) -> None:
        if type(tensor) is not self._torch.Tensor or tensor.device.type != "cpu":
            return
        if tensor.layout is not self._torch.strided or not tensor.numel():
            return
        storage = self._base.untyped_storage(tensor)
        if storage.nbytes() >= LEAST:
            self._items[storage._cdata] = _Item(self._weak(storage), storage.nbytes())

    def _item(self, tensor: Any) -> _Item | None:
        try:
            return self._items.get(self._base.untyped_storage(tensor)._cdata)
        except (NotImplementedError, RuntimeError):
            return None  # sparse and the like have no storage; what they are made of was looked at then

    def _touched(self, args: Any, kwargs: Any) -> list[_Item]:
        found: list[_Item] = []
        if self._items:
            self._gather(args, found)
            if kwargs:
                self._gather(kwargs.values(), found)
        return found

    def _gather(self, values: Any, found: list[_Item]) -> None:
        for value in values:
            if isinstance(value, self._torch.Tensor):
                item = self._item(value)
                if item is not None:
                    found.append(item)
            elif isinstance(value, (list, tuple)):
                self._gather(value, found)
            elif isinstance(value, dict):
                self._gather(value.values(), found)
            elif isinstance(value, self._torch.UntypedStorage):
                item = self._items.get(value._cdata)
                if item is not None:
                    found.append(item)

    def _put_off(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether the operator was put off (in a recording: run, and noted)."""
        target, *rest = args
        item = self._fit(target)
        name = str(func)
        if item is None or not operators.valid(name, rest, kwargs, self._torch.finfo(target.dtype).max):
            return False
        if name in operators.DRAWS and not self._may_draw_later():
            return False
        full = name in operators.FULL and self._covers(target, item)
        if item.row is None and not (full and self._begin_item(item, name, target)):
            return False
        if not full and 0 in target.stride():
            return False  # of an expanded view: an error, in most cases
        if self._recorded is None:
            func(*args, **kwargs)
        else:
            self._chain(item, full, name, func, target, tuple(rest), dict(kwargs))
        return True

    def _put_off_truncated(self, original: Any, target: Any, *numbers: float) -> bool:
        """The same for `trunc_normal_`, as a whole."""
        item = self._fit(target) if self._mode is not None and not self._over else None
        if item is None or not operators.valid(
            operators.TRUNCATED, numbers, {}, self._torch.finfo(target.dtype).max
        ):
            return False
        if not self._may_draw_later() or not self._covers(target, item):
            return False
        if not (item.row or self._begin_item(item, operators.TRUNCATED, target)):
            return False
        if self._recorded is None:
            self._quiet = True
            try:
                original(target, *numbers)
            finally:
                self._quiet = False
        else:
            self._chain(item, True, operators.TRUNCATED, original, target, numbers, {})
        return True

    def _fit(self, target: Any) -> _Item | None:
        """The target's item, where an initialiser of it may be put off."""
        if type(target) not in self._plain or target.dtype not in self._floats:
            return None
        return self._item(target)

    def _chain(
        self, item: _Item, full: bool, name: str, call: Any, target: Any, rest: tuple, kwargs: dict
    ) -> None:
        if full:
            item.chain.clear()
        place = (target.storage_offset(), tuple(target.shape), target.stride(), target.dtype)
        if name in operators.DRAWS:
            kwargs["generator"] = self._generator
        item.chain.append((call, place, rest, kwargs))

    def _begin_item(self, item: _Item, name: str, target: Any) -> bool:
        """Whether it is to be put off, by the recording; in a recording, note it."""
        what = [name, list(target.shape), str(target.dtype)]
        if self._recorded is None:
            item.row = [*what, "read"]  # until it turns out otherwise
            self._rows.append(item.row)
            return True
        if not self._putting_off:
            return False
        row = self._rows[self._next] if self._next < len(self._rows) else None
        if row is None or row[:3] != what:
            self._end("deviates from the recording")
            return False
        self._next += 1
        item.row = row
        if row[3] == "read":
            del self._items[item.ref.cdata]
            return False
        return True

    def _may_draw_later(self) -> bool:
        """Whether nobody can tell that numbers were drawn later, and from another generator."""
        if self._recorded is None:
            return True
        if self._putting_off and self._seed != self._torch.default_generator.initial_seed():
            self._end("seeded")
        return self._putting_off

    def _covers(self, tensor: Any, item: _Item) -> bool:
        return bool(tensor.is_contiguous() and tensor.numel() * tensor.element_size() == item.nbytes)

    def _look(self, item: _Item) -> None:
        """Somebody may see the values from now on."""
        if self._items.pop(item.ref.cdata, None) is not None:
            self._run(item)

    def _run(self, item: _Item) -> None:
        if not item.chain:
            return
        storage = self._torch.UntypedStorage._new_with_weak_ptr(item.ref.cdata)
        if storage is None:
            self._skipped += item.nbytes
            return
        self._ran += 1
        with self._without_modes(), self._torch.no_grad():
            for call, (offset, shape, stride, dtype), rest, kwargs in item.chain:
                target = self._aten.empty.memory_format([0], dtype=dtype, device="cpu")
                self._aten.set_.source_Storage_storage_offset(target, storage, offset, shape, stride)
                call(target, *rest, **kwargs)
        item.chain = []

    def _run_all(self) -> None:
        items, self._items = self._items, {}
        for item in items.values():
            if self._recorded is None:
                if item.row is not None and item.ref.expired():
                    self._overwritten(item)
            else:
                self._run(item)

    def _overwritten(self, item: _Item) -> None:
        if self._recorded is not None:
            self._skipped += item.nbytes if item.chain else 0
        elif item.row is not None and item.row[3] == "read":
            item.row[3] = "overwritten"
            self._skipped += item.nbytes

    def _copy(self, func: Any, args: Any, kwargs: Any, touched: list[_Item]) -> Any:
        """`copy_`, which is what `load_state_dict` does to every parameter."""
        target, source = args[0], args[1]
        item = self._item(target) if touched else None
        for other in touched:
            if other is not item:
                self._look(other)
        whole = item is not None and self._covers(target, item) and self._item(source) is not item
        if item is not None and not whole:
            self._look(item)
        if not self._twins.assign(target, source):
            try:
                func(*args, **kwargs)
            except BaseException:
                if item is not None:
                    self._look(item)
                raise
        if item is not None and whole:
            self._items.pop(item.ref.cdata, None)
            self._overwritten(item)
        return target
