"""Namespaces, their keys and quotas: routes of the management API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, Depends, Request

from instainfer.deploy import check_name
from instainfer.errors import BadInput
from instainfer.gateway.access import Access, Principal, who_asks
from instainfer.model import Key, Quota, Role
from instainfer.store.base import Store

LARGEST = 10**15  # of a quota: more than there is of anything, and a number in every language


def caller(request: Request) -> Principal:
    return who_asks(request.scope)


Caller = Annotated[Principal, Depends(caller)]


def routes(
    store: Store, access: Access, limited: Callable[[str, Quota], None], locked: Callable[[], None]
) -> APIRouter:
    """`limited` hears of a changed quota, `locked` of a new key: from now on keys are asked for."""
    api = APIRouter(prefix="/namespaces", tags=["namespaces"])

    @api.get("")
    async def list_namespaces(who: Caller) -> dict[str, Any]:
        """Those that the key may see, with their keys (never a secret) and quotas."""
        names = [name for name in await asyncio.to_thread(store.namespaces) if who.sees(name)]
        return {"namespaces": [_namespace(name, access) for name in names]}

    @api.put("/{namespace}")
    async def add_namespace(
        who: Caller, namespace: str, role: Annotated[Role, Body(embed=True)] = Role.ADMIN
    ) -> dict[str, Any]:
        """Make it, if it is new, and a key for it. `auth` is told this once."""
        check_name(namespace, "namespace")
        who.check(namespace, Role.ADMIN)
        auth = await asyncio.to_thread(access.add, namespace, role)
        locked()
        return {"namespace": namespace, "auth": auth, "role": role.value}

    @api.delete("/{namespace}/keys/{key}")
    async def revoke(who: Caller, namespace: str, key: str) -> dict[str, str]:
        who.check(namespace, Role.ADMIN)
        await asyncio.to_thread(access.revoke, namespace, key)
        return {"message": f"{key} opens nothing any more"}

    @api.patch("/{namespace}/quota")
    async def set_quota(who: Caller, namespace: str, quota: Annotated[dict[str, int], Body()]) -> dict[str, Any]:
        """Change what is named; 0: no limit of its own. For the server's owner."""
        who.check_everywhere()
        check_name(namespace, "namespace")
        known = {field.name for field in msgspec.structs.fields(Quota)}
        for name, value in quota.items():
            if name not in known:
                raise BadInput(f"there is no quota {name!r}", hint=f"these exist: {', '.join(sorted(known))}")
            if not 0 <= value <= LARGEST:
                raise BadInput(f"{name} = {value}", hint=f"give 0 to {LARGEST}; 0 sets no limit")
        changed = msgspec.structs.replace(access.quota(namespace), **quota)
        await asyncio.to_thread(access.set_quota, namespace, changed)
        limited(namespace, changed)
        return _namespace(namespace, access)

    return api


def _namespace(name: str, access: Access) -> dict[str, Any]:
    return {
        "namespace": name,
        "keys": [_key(key) for key in access.keys(name)],
        "quota": msgspec.structs.asdict(access.quota(name)),
    }


def _key(key: Key) -> dict[str, Any]:
    return {"id": key.id, "role": key.role.value, "created": key.created}
