"""The nodes of a cluster as people see them: who is a member, what its memory is used for, whose home it is."""

from __future__ import annotations

from typing import Any

from instainfer.gateway.health import Health
from instainfer.gateway.present import MB
from instainfer.policies.routing import home


def home_of(health: Health, function: str) -> str:
    """The node on which its containers are made first; "" where there is none that takes any."""
    return home(function, tuple(health.controller.platform.state.open_nodes))


def shown(health: Health) -> list[dict[str, Any]]:
    """Everybody that is a member or was joined. Of the memory that is committed, `used_mb` is what instances hold,
    `preloaded_mb` the part of it that no request has used yet, `zygote_mb` the libraries', `idle_mb` the rest of
    the containers'."""
    state, books = health.controller.platform.state, health.controller.books
    used: dict[str, int] = {}
    idle: dict[str, int] = {}
    ahead: dict[str, int] = {}
    libraries: dict[str, int] = {}
    homes: dict[str, int] = {}
    for container in state.containers.values():
        node = container.node
        used[node] = used.get(node, 0) + container.used
        idle[node] = idle.get(node, 0) + max(0, container.free)
        for name, instance in container.instances.items():
            if books.waiting(name):
                ahead[node] = ahead.get(node, 0) + instance.bytes
    for zygote in state.zygotes.values():
        libraries[zygote.node] = libraries.get(zygote.node, 0) + zygote.bytes
    nodes = tuple(state.open_nodes)
    for function in state.functions:
        at = home(function, nodes)
        homes[at] = homes.get(at, 0) + 1
    found = health.membership.nodes()
    for one in found:
        node = one["node"]
        one |= {
            "used_mb": used.get(node, 0) / MB,
            "preloaded_mb": ahead.get(node, 0) / MB,
            "zygote_mb": libraries.get(node, 0) / MB,
            "idle_mb": idle.get(node, 0) / MB,
            "homes": homes.get(node, 0),
        }
    return found
