"""Which sandbox this machine can run: found out by making a container, not by asking for features."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from instainfer.errors import BadSettings, InstaInferError, Unavailable
from instainfer.sandbox.base import ContainerSpec, Sandbox
from instainfer.sandbox.linux import LinuxSandbox
from instainfer.sandbox.process import ProcessSandbox

log = logging.getLogger(__name__)

NAMES = ("auto", "linux", "process")
HELLO_S = 10.0


async def choose(name: str, state: Path, *, uid_base: int = 1_000_000, networks: Sequence[str] = ()) -> Sandbox:
    """The sandbox called `name`, not started; `auto` is the strongest one that works here.

    `state` is the directory that it will keep. `uid_base` is any base that the platform will use, `networks` are
    private ones that functions may reach. Raises BadSettings for an unknown name or what is no network, and
    Unavailable when `linux` was asked for and does not work.
    """
    if name not in NAMES:
        raise BadSettings(f"there is no sandbox {name!r}", hint=f"one of {', '.join(NAMES)}")
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as wrong:
            raise BadSettings(f"sandbox.networks: {wrong}", hint='a network is written "10.1.0.0/16"') from None
    if name == "process":
        return ProcessSandbox(state)
    refused = []
    for description, make in _candidates(networks):
        error = await _try(make, uid_base)
        if error is None:
            return make(state)
        refused.append(f"{description}: {error}")
        log.info("sandbox %s does not work here: %s", description, error)
    if name == "linux":
        raise Unavailable(
            f"the linux sandbox does not work here ({'; '.join(refused)})",
            hint="run as root, allow unprivileged user namespaces, or take --sandbox process",
        )
    return ProcessSandbox(state)


def _candidates(networks: Sequence[str]) -> list[tuple[str, Callable[[Path], Sandbox]]]:
    rootless = ("linux without root", lambda state: LinuxSandbox(state, privileged=False, networks=networks))
    if os.geteuid() != 0:
        return [rootless]
    rooted = ("linux with root", lambda state: LinuxSandbox(state, privileged=True, networks=networks))
    return [rooted, rootless]


async def _try(make: Callable[[Path], Sandbox], uid_base: int) -> str | None:
    """Why it does not work, or None. In a directory of its own: what a killed server left is not its business."""
    with tempfile.TemporaryDirectory(prefix="instainfer-probe-") as directory:
        sandbox = make(Path(directory))
        try:
            await sandbox.start()
            container = await sandbox.create(ContainerSpec("probe", "probe", uid_base, 256 << 20))
            return await _greeted(container.control)
        except (InstaInferError, OSError) as error:
            return str(error)
        finally:
            await sandbox.aclose()


async def _greeted(control: socket.socket) -> str | None:
    """Wait for its manager's first word; what it says is the agent's business."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(control.fileno(), readable.set)
    try:
        async with asyncio.timeout(HELLO_S):
            await readable.wait()
    except TimeoutError:
        return f"its manager said nothing in {HELLO_S:g} s"
    finally:
        loop.remove_reader(control.fileno())
    return None if control.recv(4096) else "its manager ended at once"
