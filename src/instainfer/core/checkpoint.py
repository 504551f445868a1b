"""The core's state as bytes and back, so that a replay can start in the middle of a long life.

Pickle of our own plain objects only, written and read by the platform itself. Objects that refer to each
other (a container to its instances, those to their function …) are stored side by side and refer by number:
nested, a thousand functions would be deeper than any recursion limit.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from instainfer.core.libraries import Libraries, Zygote
from instainfer.core.state import Container, FunctionState, Instance, Request, State

_LINKED = (Container, FunctionState, Instance, Libraries, Request, Zygote)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.numbers: dict[int, int] = {}
        self.objects: list[Any] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, _LINKED):
            return None
        if id(obj) not in self.numbers:
            self.numbers[id(obj)] = len(self.objects)
            self.objects.append(obj)
        return self.numbers[id(obj)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, objects: list[Any]) -> None:
        super().__init__(file)
        self._objects = objects

    def persistent_load(self, pid: int) -> Any:
        return self._objects[pid]


def _slots(obj: Any) -> list[str]:
    return [name for kind in type(obj).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(obj, name)]


def dump(state: State) -> bytes:
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(state.__dict__)
    parts = [file.getvalue()]
    done = 0
    while done < len(pickler.objects):  # dumping one may find further ones
        obj = pickler.objects[done]
        file.seek(0)
        file.truncate()
        pickler.clear_memo()
        pickler.dump({name: getattr(obj, name) for name in _slots(obj)})
        parts.append(file.getvalue())
        done += 1
    kinds = [_LINKED.index(type(obj)) for obj in pickler.objects]
    return pickle.dumps((kinds, parts), protocol=5)


def load(data: bytes) -> State:
    kinds, parts = pickle.loads(data)  # noqa: S301 - written by `dump` into a directory that only the platform can write
    objects: list[Any] = [object.__new__(_LINKED[kind]) for kind in kinds]
    for obj, part in zip(objects, parts[1:], strict=True):
        for name, value in _Unpickler(io.BytesIO(part), objects).load().items():
            setattr(obj, name, value)
    state = State.__new__(State)
    state.__dict__.update(_Unpickler(io.BytesIO(parts[0]), objects).load())
    return state
