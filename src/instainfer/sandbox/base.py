"""What a sandbox is, and what it declares to enforce.

A container is one running intra-container manager (`runtime/manager.py`, the platform's Python) inside
whatever isolation the sandbox gives, reached by one end of a socketpair. Everything that runs in it is a
child that the manager spawned on request. The sandbox knows nothing of functions.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True)
class Enforces:
    """A declaration. The contract suite runs the tests of every line that is claimed."""

    filesystem: bool  # sees only its own mounts, root read-only
    network: bool  # no network unless the spec grants it
    processes: bool  # own pid namespace; sees and signals nothing outside
    function_uids: bool  # every function may have its own uid: functions are kept apart inside a container
    memory: Literal["kernel", "polled"]  # who holds it under its limit
    pids: bool  # the number of processes is limited
    calls: bool  # system calls that lead out are denied
    freezer: Literal["cgroup", "signal"]  # whether descendants that ran away are frozen too

    def missing(self) -> list[str]:
        """What it cannot isolate, in sentences to be said aloud at start; [] when it enforces all."""
        said = []
        if not self.filesystem:
            said.append("functions see this machine's files")
        if not self.network:
            said.append("functions reach the network")
        if not self.processes:
            said.append("functions see this machine's processes")
        if not self.function_uids:
            said.append("functions of one container share a uid")
        if self.memory == "polled":
            said.append("memory limits are checked by polling, a fast growth can pass them for a moment")
        if not self.pids:
            said.append("the number of processes is not limited")
        if not self.calls:
            said.append("functions reach every system call of the kernel")
        if self.freezer == "signal":
            said.append("a process that leaves its instance's session is not frozen with it")
        return said


@dataclass(frozen=True)
class Mount:
    """A host path seen inside at the identical path."""

    path: Path
    writable: bool = False


@dataclass(frozen=True)
class ContainerSpec:
    id: str
    namespace: str
    uid_base: int  # inner uid 0 is this host uid, inner uid n is uid_base + n (ignored without function_uids)
    limit: int  # bytes
    mounts: Sequence[Mount] = ()
    network: bool = False  # this machine's own
    egress: tuple[str, ...] = ()  # what a proxy lets through (sandbox/egress.py), without a network
    pids: int = 256
    scratch: int = 512 << 20  # bytes of /tmp and /dev/shm, each (they count towards the limit)
    cpus: float = 1.0  # its share when processors are short; no ceiling
    uids: tuple[int, ...] | None = None  # with function_uids: the only ones (and gids) there are besides 0
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """Bytes of anonymous and shared memory that was made here: what an instance still shares with the process
    that it was forked from is not its own. From the kernel's accounts where those are (then late by two seconds
    or 256 kB a processor at most, whichever is less), else estimated (measure.held)."""

    anonymous: int  # of the whole container
    instances: Mapping[str, int]  # of every attached one


class Container(Protocol):
    id: str
    control: socket.socket  # the agent's end; SOCK_SEQPACKET, non-blocking

    def doors(self, instance: str, *, limit: int, outside: bool = False) -> list[int]:
        """Open files into each of which the child that is about to become the instance writes "0" and so
        moves itself under the instance's own cgroup: hand them to `ManagerLink.spawn`, which closes them.
        `outside`: for a child that is forked in another container (its room), which has to enter what is the
        whole container's too; at most four. It must be single-threaded. Whoever holds one can move any process
        of its pid namespace in, so it is closed as soon as it was used.
        An optimisation only (on cgroup v1 30 µs instead of 15-25 ms): `attach` decides. May be empty. Where the
        spawn fails, `detach` undoes it."""
        ...

    def attach(self, instance: str, pid: int, *, limit: int) -> None:
        """Take the process `pid` (as this host numbers it), which waits for its go, under the instance's
        own cgroup, unless it came in through the doors. Every later child of it belongs to the instance.
        It leads a session and has touched little of what its parent left it. One that was forked elsewhere
        stays in its room's namespaces and ends with that room too; all else is as for any instance, but where
        nothing but a mark finds who left its session, such a one ends with the room only.
        Raises ProcessLookupError when it is gone."""
        ...

    async def freeze(self, instance: str) -> None:
        """Return once it is confirmed frozen (descendants too). Raises TimeoutError after 2 s."""
        ...

    def thaw(self, instance: str) -> None: ...

    def kill(self, instance: str) -> None:
        """SIGKILL to the whole instance, frozen or not, descendants included. Idempotent."""
        ...

    async def detach(self, instance: str) -> None:
        """After its process was reaped: wait until the last descendant is gone and drop its cgroup."""
        ...

    def resize(self, limit: int) -> None:
        """Raises OSError (EBUSY) when the kernel cannot shrink to it."""
        ...

    def share(self, cpus: float) -> None:
        """Change the weight that the spec gave it. Does nothing where nobody weighs."""
        ...

    def usage(self) -> Usage:
        """Reads /proc or cgroup files; takes milliseconds where it is estimated; may be called from a thread."""
        ...

    def oom_killed(self, instance: str) -> bool:
        """Whether the kernel (or the poller) has killed in it for memory."""
        ...

    async def destroy(self) -> None:
        """End it whatever its state: processes, cgroups, mounts, sockets. Idempotent."""
        ...


class Sandbox(Protocol):
    name: str  # "linux", "process"

    @property
    def enforces(self) -> Enforces: ...

    async def start(self) -> None:
        """Remove what an earlier, killed server of the same `state` directory left (processes, cgroups,
        mounts, sockets), then get ready to create."""
        ...

    async def create(self, spec: ContainerSpec) -> Container:
        """A new container whose manager was started (its hello comes over `control`). Raises
        errors.Unavailable with the operation that failed."""
        ...

    async def aclose(self) -> None:
        """Destroy every container and leave nothing."""
        ...
