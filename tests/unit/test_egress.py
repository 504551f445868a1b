"""What a container may reach: rules, addresses, requests, and the proxy over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instainfer.errors import BadSettings
from instainfer.model import reach
from instainfer.sandbox.egress import ANYWHERE, Proxy, Refused, Rules, target
from instainfer.settings import settings_from

NOBODY: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::",
        "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
        "2002:7f00:1::", "2001:0:1::1", "", "example.com", "8.8.8.8:80",
    ],
)  # fmt: skip
def test_no_public_addresses(address: str) -> None:
    assert not Rules([ANYWHERE]).reachable(address, NOBODY)


def test_public_addresses_are_reachable_but_this_machines() -> None:
    rules = Rules([ANYWHERE])
    for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"):
        assert rules.reachable(address, NOBODY)
    assert not rules.reachable("8.8.8.8", frozenset({"8.8.8.8"}))
    assert not rules.reachable("::ffff:8.8.8.8", frozenset({"8.8.8.8"}))


def test_networks_of_the_owner_are_reachable_and_this_machine_is_not_whatever_they_say() -> None:
    rules = Rules([ANYWHERE], ["10.0.0.0/8", "0.0.0.0/0", "::/0"])
    assert rules.reachable("10.2.3.4", NOBODY)
    for address in ("127.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254", "0.0.0.0"):
        assert not rules.reachable(address, NOBODY)
    assert not rules.reachable("10.2.3.4", frozenset({"10.2.3.4"}))


def test_names() -> None:
    rules = Rules(["api.example.com:443", "*.Example.org:80"])
    assert rules.permit("api.example.com", 443) and rules.permit("a.b.example.org", 80)
    for host, port in (("api.example.com", 80), ("example.org", 80), ("badexample.org", 80), ("com", 443)):
        assert not rules.permit(host, port)


def test_settings() -> None:
    assert settings_from({"network": True}, "x").network is True
    assert settings_from({"network": ["B.example:1", "a.example:2", "b.example:1"]}, "x").network == (
        "a.example:2", "b.example:1",
    )  # fmt: skip
    assert settings_from({"network": []}, "x").network is False
    assert settings_from({"network": "a.b:1,c.d:2"}, "x").network == ("a.b:1", "c.d:2")
    unclear = ("example.com", ["example.com"], ["*:443"], ["a.b:0"], ["a.b:65536"], ["a b:1"], [1], 1)
    for wrong in unclear:
        with pytest.raises(BadSettings):
            settings_from({"network": wrong}, "x")


def test_zones_of_different_rules_differ() -> None:
    assert len({reach(False), reach(True), reach(("a:1",)), reach(("a:1", "b:2"))}) == 4
    assert reach(("b:2", "a:1")) == reach(("a:1", "b:2"))


def test_requests() -> None:
    assert target(b"CONNECT Example.COM.:8443 HTTP/1.1\r\n\r\n") == ("example.com", 8443, b"")
    head = b"POST http://a.example:81/p?q HTTP/1.1\r\nHost: evil\r\nProxy-Authorization: x\r\nX: y\r\n\r\n"
    assert target(head) == (
        "a.example", 81, b"POST /p?q HTTP/1.1\r\nHost: a.example:81\r\nConnection: close\r\nX: y\r\n\r\n",
    )  # fmt: skip


@given(
    st.binary(max_size=200) | st.binary(max_size=60).map(lambda more: b"CONNECT " + more + b" HTTP/1.1\r\n\r\n")
)
def test_whatever_is_asked_is_read_or_refused(head: bytes) -> None:
    try:
        host, port, _ = target(head)
    except Refused:
        return
    assert host and 0 < port < 65536 and host == host.lower()


def play(
    scenario: Callable[[tuple[str, int]], Awaitable[None]], allowed: str, resolved: list[str], connect: Any
) -> list[str]:
    """Against a proxy that resolves every name so; returns the names it was asked for."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return resolved

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            proxy = Proxy(listener, Rules([allowed]), resolve=resolve, connect=connect, own=lambda: NOBODY)
            async with asyncio.timeout(20):
                await scenario(listener.getsockname())
            proxy.close()

    asyncio.run(run())
    return asked


async def say(where: tuple[str, int], text: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*where)
    writer.write(text)
    said = await reader.read()
    writer.close()
    return said


def test_a_name_that_leads_inside_is_refused_and_the_address_checked_is_the_one_connected_to() -> None:
    reached = []

    async def connect(address: str, port: int) -> Any:
        reached.append((address, port))
        raise ConnectionRefusedError

    async def scenario(where: tuple[str, int]) -> None:
        said = await say(where, b"CONNECT rebinds.example:80 HTTP/1.1\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 502 ")

    asked = play(scenario, ANYWHERE, ["127.0.0.1", "169.254.169.254", "93.184.216.34"], connect)
    assert asked == ["rebinds.example"]
    assert reached == [("93.184.216.34", 80)]


def test_what_no_rule_names_is_not_even_looked_up() -> None:
    async def scenario(where: tuple[str, int]) -> None:
        assert (await say(where, b"CONNECT secret.example:443 HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
        assert await say(where, b"x" * 40_000) == b""
        assert (await say(where, b"\0\r\n\r\n")).startswith(b"HTTP/1.1 400 ")

    assert play(scenario, "a.example:443", ["93.184.216.34"], None) == []


def test_a_tunnel_carries_both_ways() -> None:
    async def scenario(where: tuple[str, int]) -> None:
        said = await say(where, b"CONNECT a.example:443 HTTP/1.1\r\n\r\n" + b"x" * 300_000 + b"\n")
        assert said == b"HTTP/1.1 200 Connection established\r\n\r\n" + b"x" * 300_000 + b"\n"

    async def connect(address: str, port: int) -> Any:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0, limit=1 << 20)
        return await asyncio.open_connection(*server.sockets[0].getsockname())

    play(scenario, "a.example:443", ["93.184.216.34"], connect)
