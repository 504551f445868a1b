"""The gateway's process: composed, started, and taken down in order."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import uvloop

from instainfer import ending, tls
from instainfer.config import Settings, Tls, is_loopback
from instainfer.errors import BadSettings
from instainfer.front import announced
from instainfer.front.forward import Forward, Protocol
from instainfer.front.hold import Hold
from instainfer.front.servers import Server, Servers
from instainfer.listening import bind, most_connections, serving, sweep, url

log = logging.getLogger("instainfer.gateway")


def run(settings: Settings, ready: Callable[[str], None]) -> None:
    """Until SIGINT or SIGTERM; a second one ends at once. `ready` is told the URL. Raises BadSettings, Unavailable
    where its address cannot be listened on."""
    uvloop.run(_run(settings, ready))


async def _run(settings: Settings, ready: Callable[[str], None]) -> None:
    wanted = settings.gateway
    if not wanted.servers and not wanted.store:
        raise BadSettings(
            "a gateway needs a server", hint="--server http://HOST:PORT of each that may serve, or gateway.store"
        )
    secret = tls.calling(settings.tls)
    encrypted = tls.answering(Tls(cert=wanted.cert, key=wanted.cert_key))
    there = [Server(one, secret) for one in wanted.servers]
    stop = ending.told()
    async with AsyncExitStack() as stack:
        listening = bind(wanted.host, wanted.port)
        stack.callback(listening.close)
        where = url(listening, tls=bool(encrypted))
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"

        def hello() -> dict[str, Any]:
            return {
                "name": name,
                "url": where,
                "held": hold.held,
                "sent_again": forward.sent_again,
                "refused": hold.refused,
                "interrupted": forward.interrupted,
            }

        servers = Servers(there, public=not is_loopback(wanted.host), hello=hello)
        hold = Hold(servers, most=wanted.hold, memory=wanted.hold_memory, seconds=wanted.hold_s)
        forward = Forward(servers, hold)
        stack.push_async_callback(servers.aclose)
        servers.start()
        if wanted.store:
            stack.callback(asyncio.create_task(announced.follow(wanted.store, servers, secret)).cancel)
        connections = await stack.enter_async_context(
            serving(
                forward,
                listening,
                http=functools.partial(Protocol, most=most_connections()),
                end_s=wanted.drain_s,
                access_log=False,
                date_header=False,
                **encrypted,
            )
        )
        stack.callback(asyncio.create_task(sweep(connections, settings.limits.read_s)).cancel)
        ready(where)
        await stop.wait()
        log.info("stopping: waiting up to %g s for what is under way", wanted.drain_s)
        servers.stop_waiting()
