"""The only way out of a container: an HTTP proxy that looks names up itself and says no.

A container that may reach something has a network namespace with nothing in it but loopback, and there a
listening socket that was made inside and handed out: connections from inside are accepted here, outside, and no
process of ours runs beside the tenant's. The function finds it by the usual variables.

What is asked for is a name; what is connected to is an address that this name had when it was checked, so that a
name which changes its mind (DNS rebinding) gains nothing. However a name is allowed, never reached are: this
machine by any of its addresses (the server's own port and its neighbours' among them), loopback, link-local (the
metadata services of clouds) and everything else that is not a public address, but for the networks that the
server's owner names.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence

import psutil  # type: ignore[import-untyped] # it ships no types

log = logging.getLogger(__name__)

PORT = 3128  # inside
ANYWHERE = "*"  # a rule: every public address
HEAD = 16_384  # bytes of a request's line and headers
HEAD_S = 10.0
CONNECT_S = 10.0
IDLE_S = 600.0
LINGER_S = 10.0
MOST = 64  # connections of one container at a time
CHUNK = 65_536
VARIABLES = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), f"http://127.0.0.1:{PORT}"),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1"),
}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connect = Callable[[str, int], Awaitable[Streams]]

#: Addresses that hold another one, which is where the packet goes in the end.
_CARRIERS = [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]
#: Never, whatever the owner names: this machine and what speaks for it.
_NEVER = [
    ipaddress.ip_network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8")
] + [ipaddress.ip_network("fd00:ec2::254/128")]
_LINE = re.compile(rb"([A-Z]{1,16}) (\S{1,8192}) HTTP/1\.[01]")
_HOST = re.compile(r"(?i)[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?\.?")


class Refused(Exception):
    """With the status and the reason that the function is told."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Rules:
    """`allowed`: "host:port" and "*.domain:port", or ANYWHERE. `networks`: private ones that count as public."""

    def __init__(self, allowed: Sequence[str], networks: Sequence[str] = ()) -> None:
        self._anywhere = ANYWHERE in allowed
        self._named = {rule.lower() for rule in allowed}
        self._networks: list[Network] = [ipaddress.ip_network(text) for text in networks]

    def permit(self, host: str, port: int) -> bool:
        """By name alone: the address is looked at afterwards, too."""
        if self._anywhere:
            return True
        if f"{host}:{port}" in self._named:
            return True
        labels = host.split(".")
        return any(f"*.{'.'.join(labels[n:])}:{port}" in self._named for n in range(1, len(labels)))

    def reachable(self, text: str, own: frozenset[str]) -> bool:
        """An address, as the resolver gave it. `own`: this machine's."""
        try:
            address: Address = ipaddress.ip_address(text)
        except ValueError:  # with a scope: link-local
            return False
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                return self.reachable(str(address.ipv4_mapped), own)
            if any(address in carrier for carrier in _CARRIERS):
                return False
        if str(address) in own or any(address in never for never in _NEVER):
            return False
        if any(address in network for network in self._networks):
            return True
        return address.is_global and not address.is_multicast


def own_addresses() -> frozenset[str]:
    """Of this machine now, on any interface."""
    return frozenset(
        address.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    )


async def resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


async def connect(address: str, port: int) -> Streams:
    return await asyncio.open_connection(address, port, limit=CHUNK)


class Proxy:
    """Of one container, until `close`. `listener`: from inside it, bound and listening."""

    def __init__(
        self,
        listener: socket.socket,
        rules: Rules,
        *,
        resolve: Resolve = resolve,
        connect: Connect = connect,
        own: Callable[[], frozenset[str]] = own_addresses,
    ) -> None:
        self._listener = listener
        self._rules = rules
        self._resolve = resolve
        self._connect = connect
        self._own = own
        self._connections: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._task = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        self._task.cancel()
        for task in self._connections:
            task.cancel()
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptors, say: those who wait wait on
                log.warning("egress: %s", error)
                await asyncio.sleep(1.0)
                continue
            if len(self._connections) >= MOST:
                connection.close()
                continue
            task = loop.create_task(self._serve(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            inner = await asyncio.open_connection(sock=connection, limit=HEAD)
        except OSError:
            connection.close()
            return
        reader, writer = inner
        try:
            try:
                async with asyncio.timeout(HEAD_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                outer, first = await self._reach(head)
            except Refused as refused:
                log.info("egress refused: %s", refused)
                writer.write(answer(refused.status, str(refused)))
                await writer.drain()
                return
            try:
                if first:
                    outer[1].write(first)
                else:
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await _relay(inner, outer)
            finally:
                _close(outer[1])
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # one of the two went away, or sent what is no request: the other is closed below
        finally:
            _close(writer)

    async def _reach(self, head: bytes) -> tuple[Streams, bytes]:
        """The connection that is asked for, and what is to be sent over it first."""
        host, port, first = target(head)
        if not self._rules.permit(host, port):
            raise Refused(403, f"{host}:{port} is not in this function's `network`")
        try:
            async with asyncio.timeout(CONNECT_S):
                addresses = await self._resolve(host, port)
        except (OSError, TimeoutError, UnicodeError):
            raise Refused(502, f"{host} cannot be found") from None
        own = self._own()
        good = [address for address in addresses if self._rules.reachable(address, own)]
        if not good:
            raise Refused(403, f"{host}:{port} is no public address")
        for address in good[:4]:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_S):
                    return await self._connect(address, port), first
        raise Refused(502, f"{host}:{port} does not answer")


def target(head: bytes) -> tuple[str, int, bytes]:
    """Host (lower case, without a last dot), port, and what its server is to be sent: nothing for a tunnel, else
    the request without what was meant for a proxy. Raises Refused."""
    line, _, rest = head.partition(b"\r\n")
    match = _LINE.fullmatch(line)
    if match is None:
        raise Refused(400, "this is no request to a proxy")
    method, where = match[1], match[2].decode("latin-1")
    if method == b"CONNECT":
        host, port = _place(where, 443)
        return host, port, b""
    if where[:7].lower() != "http://":
        raise Refused(400, "a proxy is asked for http://… or to CONNECT")
    authority, slash, path = where[7:].partition("/")
    if not authority or set(authority) & set("@?#"):
        raise Refused(400, "this address cannot be read")
    host, port = _place(authority, 80)
    kept = [
        field
        for field in rest.split(b"\r\n")
        if field and not field.lower().startswith((b"proxy-", b"connection:", b"host:", b"keep-alive:"))
    ]
    shown = authority.encode("latin-1")
    request = match[1] + b" " + (slash + path or "/").encode("latin-1") + b" HTTP/1.1"
    return host, port, b"\r\n".join([request, b"Host: " + shown, b"Connection: close", *kept, b"", b""])


def _place(text: str, default: int) -> tuple[str, int]:
    bracketed = re.fullmatch(r"\[([0-9a-fA-F:.]{2,45})\](?::([0-9]{1,5}))?", text)
    if bracketed:
        host, digits = bracketed[1], bracketed[2]
    else:
        host, _, digits = text.partition(":")
        if not _HOST.fullmatch(host) or (digits and not re.fullmatch("[0-9]{1,5}", digits)):
            raise Refused(400, "this address cannot be read")
        host = host.rstrip(".")
    port = int(digits) if digits else default
    if not 0 < port < 65536:
        raise Refused(400, "this port cannot be")
    return host.lower(), port


def answer(status: int, reason: str) -> bytes:
    words = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}[status]
    body = f"{reason}\n".encode()
    head = f"HTTP/1.1 {status} {words}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


def _close(writer: asyncio.StreamWriter) -> None:
    """What is written gets a while to be read, and no more: a peer that reads nothing holds nothing."""
    writer.close()
    asyncio.get_running_loop().call_later(LINGER_S, writer.transport.abort)


async def _relay(inner: Streams, outer: Streams) -> None:
    """Until both have said all, or neither says anything for IDLE_S."""
    loop = asyncio.get_running_loop()

    async def one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            lasting.reschedule(loop.time() + IDLE_S)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async with asyncio.timeout(IDLE_S) as lasting:
        await _both(one_way(inner[0], outer[1]), one_way(outer[0], inner[1]))


async def _both(*ways: Coroutine[None, None, None]) -> None:
    both = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.gather(*both)
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
