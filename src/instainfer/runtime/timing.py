"""How much of a load is imports, and of what: a hook around the import system for the time of a load."""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import time
from _thread import get_ident

RUNTIME = __name__.partition(".")[0]
CAP = 2000  # names reported: a longer list only repeats what its head brings


class Imports:
    """Between `start` and `stop`, measures the outermost imports of what is not of the package at `package`.

    `seconds` is the time spent inside them since the last `start`. `failure` is the last exception that
    such an import raised, whether or not somebody caught it. Only the thread that started is watched.

    The wrapped function is importlib's own `_find_and_load`: it runs only for a module that is not there
    yet, for statements and import_module alike. `builtins.__import__` is the poorer stand-in for a Python
    that has no such function.
    """

    def __init__(self, package: str, via: tuple[object, str] | None = None) -> None:
        self.seconds = 0.0
        self.failure: BaseException | None = None
        self._package = package
        self._roots = tuple({os.path.join(path, "") for path in (package, os.path.realpath(package))})
        self._names: list[str] = []
        # One entry per import under way, [seconds of the environment's imports inside it, names known when
        # it began]; the first stands for the code that is not inside any import.
        self._under_way: list[tuple[float, int]] = []
        if via is None:
            bootstrap = getattr(importlib, "_bootstrap", None)
            found = hasattr(bootstrap, "_find_and_load")
            via = (bootstrap, "_find_and_load") if found else (builtins, "__import__")
        self._where, self._what = via
        self._original = getattr(self._where, self._what)
        self._thread = 0

    def start(self) -> None:
        self.seconds = 0.0
        self.failure = None
        self._thread = get_ident()
        setattr(self._where, self._what, self._statement if self._where is builtins else self._find_and_load)

    def stop(self) -> None:
        """Put the original function back. Idempotent."""
        setattr(self._where, self._what, self._original)

    @property
    def modules(self) -> list[str]:
        """Names of the outermost imports over all spans, in the order they completed: importing these in a
        fresh process brings the same libraries."""
        return list(dict.fromkeys(self._names))[:CAP]

    def owns(self, name: str) -> bool:
        """Whether `name` is (or, when it failed to import, would be) a module of the function's own package, or
        of this runtime."""
        if name.partition(".")[0] == RUNTIME:
            return True
        origin = getattr(_spec(name), "origin", None)
        if origin is not None:
            return bool(origin.startswith(self._roots))
        top = os.path.join(self._package, name.partition(".")[0])
        return os.path.isfile(top + ".py") or os.path.isdir(top)

    def _find_and_load(self, name: str, import_: object) -> object:
        return self._timed(name, (name, import_), {})

    def _statement(self, name: str, *rest: object, **more: object) -> object:
        level = more.get("level", rest[3] if len(rest) > 3 else 0)
        if level or name in sys.modules:
            return self._original(name, *rest, **more)
        return self._timed(name, (name, *rest), more)

    def _timed(self, name: str, args: tuple, kwargs: dict) -> object:
        if get_ident() != self._thread:
            return self._original(*args, **kwargs)
        under_way = self._under_way
        under_way.append((0.0, len(self._names)))
        began = time.monotonic()
        try:
            module = self._original(*args, **kwargs)
        except BaseException as error:
            if not self.owns(name):
                self.failure = error
            self._count(under_way.pop()[0])  # what it imported before it failed took its time all the same
            raise
        inside, names = under_way.pop()
        if self.owns(name):
            self._count(inside)
        else:
            self._count(time.monotonic() - began)
            if _importable(name):
                self._names[names:] = [name]  # it brings those that completed inside it
        return module

    def _count(self, seconds: float) -> None:
        if self._under_way:
            inside, names = self._under_way[-1]
            self._under_way[-1] = (inside + seconds, names)
        else:
            self.seconds += seconds


def _spec(name: str) -> object:
    return getattr(sys.modules.get(name), "__spec__", None)


def _importable(name: str) -> bool:
    """Whether importing `name` alone finds it in a file: not built in, not frozen, not an alias that some
    other module put there."""
    spec = _spec(name)
    return getattr(spec, "name", None) == name and bool(getattr(spec, "has_location", False))
