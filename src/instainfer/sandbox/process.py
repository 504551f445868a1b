"""The `process` sandbox: no privileges, no isolation, works everywhere Python does on Linux.

A manager is a child of the server in a session of its own. What belongs to it is found by a mark in the
environment, which every descendant inherits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from instainfer.errors import Unavailable
from instainfer.sandbox.base import ContainerSpec, Enforces
from instainfer.sandbox.children import Exit
from instainfer.sandbox.linux import MANAGER, control_pair
from instainfer.sandbox.sessions import Leader, SessionContainer, end_marked
from instainfer.sandbox.state import State

MARK = "INSTAINFER_SANDBOX"  # runtime/manager.py hands it on to its instances


class ProcessSandbox:
    name = "process"
    enforces = Enforces(
        filesystem=False,
        network=False,
        processes=False,
        function_uids=False,
        memory="polled",
        pids=False,
        calls=False,
        freezer="signal",
    )

    def __init__(self, state: Path) -> None:
        self._state = State(state)
        self._containers: dict[str, SessionContainer] = {}
        self._leaders: set[Leader] = set()

    async def start(self) -> None:
        self._state.take()
        await end_marked(MARK, f"{self._state.id}-")

    async def create(self, spec: ContainerSpec) -> SessionContainer:
        if not self._state.id:
            raise Unavailable("the sandbox was not started")
        if spec.id in self._containers:
            raise Unavailable(f"container {spec.id} exists")
        ours, theirs = control_pair()
        mark = f"{self._state.name}:{spec.id}:"  # closed: c1 is no prefix of c10
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 # returns after a vfork, in a millisecond
                [sys.executable, "-I", "-S", str(MANAGER), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
                env={"PATH": os.defpath, **spec.environ, MARK: mark},
            )
        except OSError as error:
            ours.close()
            raise Unavailable(f"a container cannot be made: start {sys.executable}: {error}") from error
        finally:
            theirs.close()
        manager = Exit(os.pidfd_open(process.pid))
        container = SessionContainer(
            spec.id, ours, spec.limit, self._end_of(spec.id, process, manager, mark), self._leaders
        )
        self._containers[spec.id] = container
        return container

    async def aclose(self) -> None:
        await asyncio.gather(*(container.destroy() for container in tuple(self._containers.values())))
        self._state.release()

    def _end_of(
        self, id_: str, process: subprocess.Popen[bytes], manager: Exit, mark: str
    ) -> Callable[[], Awaitable[None]]:
        async def end() -> None:
            manager.send(signal.SIGKILL)
            await manager.wait()
            process.wait()
            await end_marked(MARK, mark)
            self._containers.pop(id_, None)

        return end
