"""The ways in which a load is made short, for one instance: its model restored from an object snapshot instead of
loaded, its own loading code intercepted. Each falls back to the plain load and says why.

What the instance is told of them (keys of its spec, all optional):

    "snapshot": {"path", "key", "size", "inode"}   restore from it
    "snapshot_to": {"path", "key"}                 load plainly, then write it
    "declared": [names]                            module style: the globals that are the model
    "intercept": {…}                               options of intercept.install
"""

from __future__ import annotations

import functools
import os
import sys

from . import forker, styles

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any


class FastPaths:
    """One load. `begin` before it, `load` is it (class and module style; a script runs by itself), `loaded`
    after it; `report` is what READY tells of them."""

    def __init__(self, spec: dict) -> None:
        self._spec = spec
        self._snapshot: dict[str, Any] = {}
        self._model: Any = None  # what a snapshot would hold
        self._watch: Any = None
        self._left = ""  # what the load left behind that a snapshot or a fork would miss
        self._interception: Any = None

    def begin(self) -> None:
        """Before anything of the function is imported, and before what it imports is recorded."""
        if self._spec.get("digest"):
            import hashlib  # noqa: F401 # for later
        if self._spec.get("snapshot_to") or self._spec.get("template") or self._spec.get("digest"):
            from . import snapshot

            self._watch = snapshot.Watch()
        if self._spec.get("intercept"):
            from . import intercept

            self._interception = intercept.install(self._spec["intercept"])

    def load(self, wait: Callable[[Awaitable], Any]) -> Callable[[Any], Any]:
        """The function. Raises Unusable, or what the tenant's code raised."""
        spec = self._spec
        if spec.get("snapshot"):
            function = self._restore()
            if function is not None:
                return function
        if spec["style"] == styles.CLASS:
            self._model = styles.load_class(spec["entry"], spec["package"], wait)
            return self._model.predict  # type: ignore[no-any-return]  # a method of a class we do not know
        function = styles.load_module(spec["entry"], spec["package"])
        self._model = sys.modules[spec["entry"].partition(":")[0]]
        return function

    def loaded(self) -> None:
        """Finish what was intercepted; then write the snapshot, where one is wanted: before the first call, so
        that it holds what `load` made."""
        if self._interception is not None:
            self._interception.loaded()
        if self._watch is None:
            return
        from . import snapshot

        try:
            self._watch.check()
        except snapshot.Refused as refused:
            self._left = str(refused)
        to = self._spec.get("snapshot_to")
        if to is None:
            return
        try:
            if self._left:
                raise snapshot.Refused(self._left)
            self._snapshot["written"] = snapshot.write(self._content(), to["path"], to["key"])
        except (snapshot.Refused, OSError) as refused:
            self._snapshot["refused"] = str(refused)

    def unforkable(self) -> str:
        """Why children of this process would lack something, or ""."""
        threads = forker.tasks_too_many()
        if threads:
            return "it has %d threads of its own after its load and first call" % threads
        return self._left

    def report(self) -> dict:
        said: dict[str, Any] = {"snapshot": self._snapshot}
        if self._watch is not None:
            said["unforkable"] = self.unforkable()
        if self._interception is not None:
            said["intercepted"] = self._interception.report()
        return said

    def _content(self) -> Any:
        """What a snapshot holds: the object, or the declared globals of the module."""
        if self._spec["style"] == styles.CLASS:
            return self._model
        from . import declared

        return declared.capture(vars(self._model), tuple(self._spec.get("declared") or ()))

    def _restore(self) -> Callable[[Any], Any] | None:
        """None, with the reason kept, where the plain load has to do it."""
        from . import snapshot

        spec = self._spec
        name, _, attribute = spec["entry"].partition(":")
        known = set(sys.modules)
        try:
            if spec["style"] == styles.CLASS:
                function = snapshot.restore(**spec["snapshot"]).predict
            else:
                restore = functools.partial(snapshot.restore, **spec["snapshot"])
                function = styles.handler_of(self._module_around(name, restore), attribute)
        except BaseException as error:  # noqa: BLE001  # unpickling runs the tenant's code and his libraries'
            for module in set(sys.modules) - known:
                if styles.is_within(sys.modules[module], spec["package"]):
                    del sys.modules[module]  # half made
            why = str(error) if isinstance(error, snapshot.Refused) else "%s: %s" % (type(error).__name__, error)
            self._snapshot["refused"] = why[:500]
            return None
        self._snapshot["restored"] = True
        return function  # type: ignore[no-any-return]

    def _module_around(self, name: str, restore: Callable[[], dict]) -> Any:
        """The entry's module, run without the statements that make its model. It is there before the model is:
        what it defines, the model may be an instance of."""
        from . import declared

        parent = name.rpartition(".")[0]
        if parent:
            __import__(parent)
        path = os.path.join(self._spec["package"], *name.split("."))
        path = path + ".py" if os.path.exists(path + ".py") else os.path.join(path, "__init__.py")
        module = type(sys)(name)
        module.__file__ = path
        module.__package__ = parent
        sys.modules[name] = module
        declared.run(path, module, tuple(self._spec.get("declared") or ()), restore)
        return module
