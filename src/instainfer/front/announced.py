"""The server that has the database, as it says there."""

from __future__ import annotations

import asyncio
import logging
import ssl

from instainfer.errors import InstaInferError
from instainfer.front.servers import Server, Servers

log = logging.getLogger("instainfer.gateway")

LOOK_S = 2.0  # between two looks while a server serves
SEEK_S = 0.3  # … while none does


async def follow(url: str, servers: Servers, tls: ssl.SSLContext | None = None) -> None:
    """Let it be the one of `servers` that may serve beside those that were named. While the database is away, the
    last one that it said stays."""
    from instainfer.store.sql import SqlStore  # which takes long, and not every gateway needs it

    store: SqlStore | None = None
    said: Server | None = None
    problem = ""
    while True:
        try:
            if store is None:
                store = await asyncio.to_thread(SqlStore, url)
            address = await asyncio.to_thread(store.announced)
        except InstaInferError as error:
            if error.message != problem:
                log.warning("where the server is cannot be asked: %s", error.message)
            problem = error.message
        else:
            problem = ""
            if address and address not in (one.url for one in servers.all):
                new = Server(address, tls)
                servers.add(new)
                if said is not None:
                    servers.drop(said)
                said = new
        await asyncio.sleep(LOOK_S if servers.serving is not None else SEEK_S)
