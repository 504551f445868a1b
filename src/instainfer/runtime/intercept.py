"""Interception of code that loads by itself: the registry, and what hooks it to imports.

Every library has its patches in a module of its own; they are put on libraries that are loaded already (an
instance forked from a zygote) and on others right after their import (a fresh one). No library is ever imported
for its patch's sake. A patch that meets a version it does not know leaves it alone: the worst outcome of an
interception is the call as its caller wrote it.

- `mapped`: `torch.load`, `numpy.load` and joblib map files instead of reading them;
- `skip_init`: parameters that a checkpoint overwrites are not initialised first;
- `sessions`: onnxruntime's threads, and its optimised models kept from one run to the next.

safetensors needs nothing: its `load_file` and `safe_open` map the file privately by themselves.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

# What to do when a library is there: (option, module of ours, function in it), in this order.
PATCHES = {
    "torch": (("torch", "mapped", "patch_torch"), ("skip_init", "skip_init", "patch_torch")),
    "numpy": (("numpy", "mapped", "patch_numpy"),),
    "joblib": (("joblib", "mapped", "patch_joblib"),),
    "onnxruntime": (("onnxruntime", "sessions", "patch_onnxruntime"),),
}


def install(options: dict) -> Interception:
    """Start to intercept, in this process and for code run by this thread. Options, each off when absent:

    - `torch`, `numpy`, `joblib`, `onnxruntime`: whether that library's calls are intercepted (`safetensors` is
      accepted and does nothing, see above);
    - `skip_init`: what an earlier run of the same code recorded, or None; `record_init`: record it;
    - `threads`: threads of an onnxruntime session whose caller named no number; 0 leaves them;
    - `cache`: directory of optimised models, which must belong to one version of code and environment;
      `cache_write`: fill it;
    - `fixed`: directories whose files nobody changes while the process lives. A file outside them is mapped only
      if this process may not write to it, since a mapped file that is cut short ends its reader with SIGBUS.

    Call `loaded` when the load has ended and before anything else runs.
    """
    interception = Interception(options)
    interception.begin()
    return interception


class Interception:
    def __init__(self, options: dict, patches: dict | None = None) -> None:
        self.options = options
        self.fixed = tuple(os.path.join(os.path.realpath(path), "") for path in options.get("fixed") or ())
        self._acted: dict[str, dict] = {}
        self._record: dict | None = None
        self._waiting: dict[str, list] = {}
        self._undo: list[Callable[[], None]] = []
        self._at_loaded: list[Callable[[], None]] = []
        wanted = {name for name in options if options[name]}
        if options.get("record_init"):
            wanted.add("skip_init")
        for library, steps in (PATCHES if patches is None else patches).items():
            chosen = [step[1:] for step in steps if step[0] in wanted]
            if chosen:
                self._waiting[library] = chosen

    def begin(self) -> None:
        for library in list(self._waiting):
            module = sys.modules.get(library)
            if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
                self._patch(library, module)
        if self._waiting:
            sys.meta_path.insert(0, self)

    def report(self) -> dict:
        """What acted and how often, for JSON: {"torch.load": {"mapped": 2, "left": {reason: times}}, …}. After
        `loaded` of a recording it holds under "record" what `skip_init` takes."""
        told: dict[str, Any] = {name: dict(counts) for name, counts in self._acted.items()}
        if self._record is not None:
            told["record"] = self._record
        return told

    def loaded(self) -> None:
        """The load has ended: what it left uninitialised on our account gets its values now."""
        for finish in self._at_loaded:
            finish()
        self._at_loaded.clear()

    def remove(self) -> None:
        """Put everything back. What has been loaded stays as it is. Idempotent."""
        self.loaded()
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self._waiting.clear()
        while self._undo:
            self._undo.pop()()

    # ---- for the patches ----------------------------------------------------------------------------

    def note(self, call: str, outcome: str, reason: str = "") -> None:
        counts = self._acted.setdefault(call, {})
        if reason:
            counts = counts.setdefault(outcome, {})
            outcome = reason
        counts[outcome] = counts.get(outcome, 0) + 1

    def count(self, call: str, outcome: str, number: int) -> None:
        self._acted.setdefault(call, {})[outcome] = number

    def record(self, facts: dict) -> None:
        self._record = facts

    def replace(self, owner: Any, name: str, new: object) -> Callable[[], None]:
        """`owner.name` becomes `new` until `remove`, or until the returned function is called. An inherited
        attribute is shadowed, then bare again."""
        own = name in vars(owner)
        before = vars(owner).get(name)

        def restore() -> None:
            if vars(owner).get(name) is not new:
                return  # somebody has put his own on top: leave it, ours passes everything on
            if own:
                setattr(owner, name, before)
            else:
                delattr(owner, name)

        setattr(owner, name, new)
        self._undo.append(restore)
        return restore

    def at_loaded(self, finish: Callable[[], None]) -> None:
        self._at_loaded.append(finish)

    def settled(self, path: str) -> bool:
        """Whether the file stays as it is while this process lives, as far as can be known."""
        return os.path.realpath(path).startswith(self.fixed) or not os.access(path, os.W_OK)

    # ---- the hook -----------------------------------------------------------------------------------

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        """As a finder on sys.meta_path: a watched library's own spec, whose loader tells us when it is done."""
        if name not in self._waiting:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self._patch)
                return spec
        return None

    def _patch(self, library: str, module: ModuleType) -> None:
        steps = self._waiting.pop(library, ())
        if not self._waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        for ours, function in steps:
            try:
                getattr(_import(ours), function)(module, self)
            except Exception as error:  # noqa: BLE001  # a library of another version than we know
                self.note(library, "failed", "%s.%s: %s" % (ours, function, type(error).__name__))


def _import(name: str) -> ModuleType:
    full = __package__ + "." + name
    __import__(full)
    return sys.modules[full]


class _Loader:
    """A library's own loader, with a word to us after the library has run."""

    def __init__(self, loader: Any, done: Callable[[str, ModuleType], None]) -> None:
        self._loader = loader
        self._done = done

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Whoever looks at the module, itself included, sees the loader that it would have without us.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._done(module.__name__, sys.modules.get(module.__name__, module))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
