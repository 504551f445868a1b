"""Views that are made anew only where what they show has changed: between two placement passes little has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instainfer.core.prices import price
from instainfer.model import Function, Level, Origin
from instainfer.policies.base import FunctionView, ResidentView

if TYPE_CHECKING:
    from instainfer.core.state import FunctionState, Instance

_SPARE = 1024  # residents remembered beyond those that are there


class Views:
    """Knows nothing that it could not find out again, so none of it is kept in a checkpoint."""

    def __init__(self) -> None:
        self._functions: dict[str, tuple[Function, bool, FunctionView]] = {}
        self.at_rest: dict[str, tuple[Function, FunctionView]] = {}  # of those that nothing is there of
        self._residents: dict[str, ResidentView] = {}

    def __reduce__(self) -> tuple[type[Views], tuple[()]]:
        return Views, ()

    def function(self, function: FunctionState, *, forked: bool, blocked: bool) -> FunctionView:
        """`forked`: that is how a further instance would begin."""
        spec = function.spec
        ready = function.best_level(anywhere=False) if function.instances else Level.NONE
        known = self._functions.get(spec.name)
        if known is not None:
            before, was_forked, view = known
            same = before is spec and was_forked is forked and view.ready is ready and view.blocked is blocked
            if same and view.service_s == function.usual_s:
                return view
        found = price(spec.costs, Origin.FORKED if forked else Origin.SPAWNED)
        view = FunctionView(
            name=spec.name,
            namespace=spec.zone,
            libraries=spec.libraries,
            mounts=spec.mounts,
            import_s=found.import_s,
            load_s=found.loading_s - found.import_s,
            imported_bytes=found.imported_bytes,
            loaded_bytes=found.loaded_bytes,
            ready=ready,
            blocked=blocked,
            service_s=function.usual_s,
            concurrency=spec.concurrency,
        )
        self._functions[spec.name] = spec, forked, view
        if not (ready or blocked or forked):
            self.at_rest[spec.name] = spec, view
        return view

    def resident(self, instance: Instance, *, evictable: bool, stale: bool) -> ResidentView:
        level = instance.target if instance.state == "loading" else instance.level
        view = self._residents.get(instance.id)
        if (
            view is not None
            and view.level is level
            and view.bytes == instance.bytes
            and view.evictable is evictable
            and view.stale is stale
        ):
            return view
        view = ResidentView(
            instance=instance.id,
            function=instance.function.spec.name,
            level=level,
            bytes=instance.bytes,
            evictable=evictable,
            stale=stale,
        )
        self._residents[instance.id] = view
        return view

    def forget(self, functions: dict[str, FunctionState], instances: dict[str, Instance]) -> None:
        """What is gone, once there is much of it."""
        if len(self._functions) > len(functions) + _SPARE:
            self._functions = {name: known for name, known in self._functions.items() if name in functions}
            self.at_rest = {name: known for name, known in self.at_rest.items() if name in functions}
        if len(self._residents) > len(instances) + _SPARE:
            self._residents = {name: view for name, view in self._residents.items() if name in instances}
