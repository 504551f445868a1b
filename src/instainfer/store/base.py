"""What is remembered across restarts: namespaces, their keys and quotas, functions, versions, profiles,
activations, logs, pins, drained nodes.

Calls block (a shell makes them through `asyncio.to_thread`) and may come from several threads at once. Ids
and wall times come from the caller. Errors: NotFound for what is not there, Unavailable when the database
cannot be used, with a hint that says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from instainfer.model import Activation, FunctionSpec, Job, JobState, Key, Profile, Quota


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line that a function printed."""

    activation: str
    stream: str  # "stdout" or "stderr"
    wall: float
    text: str


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What an activation answered, where its caller may ask again for it."""

    activation: str
    wall: float
    type: str
    body: bytes


class Store(Protocol):
    def namespace(self, name: str) -> int:
        """Its number, created on first sight: 1, 2, …; never reused."""
        ...

    def namespaces(self) -> dict[str, int]: ...

    def next_epoch(self) -> int:
        """A number larger than any that this gave before: a controller's, by which its nodes know that it is later
        than others."""
        ...

    def add_key(self, key: Key) -> None:
        """Its namespace is created as needed."""
        ...

    def issued(self) -> list[Key]:
        """All keys, the oldest first."""
        ...

    def delete_key(self, id: str) -> None:
        """Raises NotFound."""
        ...

    def set_quota(self, namespace: str, quota: Quota) -> None:
        """Its namespace is created as needed."""
        ...

    def quotas(self) -> dict[str, Quota]: ...

    def function_number(self, namespace: str, name: str) -> int:
        """Its number within the namespace, created on first sight: 1, 2, …. A name keeps its number, even
        through deletion, and no other name ever gets it: numbers become uids, and files may outlive a function."""
        ...

    def add_version(self, spec: FunctionSpec) -> FunctionSpec:
        """Keep a new version and make it current. Returns the spec with `version` assigned, one above every
        earlier one of this name; `spec.version` is ignored. Creates namespace and function as needed."""
        ...

    def functions(self, namespace: str | None = None) -> list[tuple[FunctionSpec, Profile | None]]:
        """The current version of each function that is not deleted, with its profile, by (namespace, name)."""
        ...

    def versions(self, namespace: str, name: str) -> list[FunctionSpec]:
        """Every version, oldest first. Raises NotFound."""
        ...

    def set_current(self, namespace: str, name: str, version: int) -> FunctionSpec:
        """Roll back or forward. Raises NotFound that lists the versions there are."""
        ...

    def delete_function(self, namespace: str, name: str) -> None:
        """It is no longer listed and its pin is gone; activations stay. Raises NotFound."""
        ...

    def put_profile(self, namespace: str, name: str, version: int, profile: Profile, wall: float) -> None: ...

    def set_pin(self, namespace: str, name: str, pinned: bool) -> None: ...

    def pins(self) -> list[tuple[str, str]]:
        """(namespace, name), sorted."""
        ...

    def set_drained(self, node: str, drained: bool) -> None: ...

    def drained(self) -> list[str]:
        """Nodes that take nothing new until somebody says so, sorted."""
        ...

    def add_records(
        self, activations: Sequence[Activation], logs: Sequence[LogLine] = (), answers: Sequence[Answered] = ()
    ) -> None:
        """All in one transaction. An activation or answer whose id is there already is replaced."""
        ...

    def activations(
        self,
        namespace: str | None = None,
        function: str | None = None,
        *,
        limit: int = 50,
        skip: int = 0,
        since: float | None = None,
        upto: float | None = None,
    ) -> list[Activation]:
        """Newest first; `since` and `upto` are wall times, both included."""
        ...

    def activation(self, id: str) -> Activation:
        """Raises NotFound."""
        ...

    def answer(self, activation: str) -> Answered | None: ...

    def save_jobs(self, jobs: Sequence[Job]) -> list[bool]:
        """Write them, new or changed, in one transaction that outlives a power failure. False for a new one
        whose key another job of the function has: that one is not written."""
        ...

    def job(self, id: str) -> Job:
        """Raises NotFound."""
        ...

    def job_by_key(self, namespace: str, function: str, key: str) -> Job | None: ...

    def unfinished_jobs(self) -> list[Job]:
        """In order of creation, without their bodies."""
        ...

    def jobs(
        self, namespace: str | None = None, *, state: JobState | None = None, limit: int = 50, skip: int = 0
    ) -> list[Job]:
        """Newest first, without their bodies and answers."""
        ...

    def logs(self, activation: str) -> list[LogLine]:
        """In the order they were added; [] for an unknown activation."""
        ...

    def prune(self, *, keep_activations: int, keep_s: float, wall: float) -> int:
        """Drop activations older than `wall - keep_s` and all but the newest `keep_activations`, with their
        logs. Returns how many activations went."""
        ...

    def prune_answers(self, before: float) -> None:
        """Drop answers, and jobs that are over, of before that wall time."""
        ...

    def close(self) -> None: ...
