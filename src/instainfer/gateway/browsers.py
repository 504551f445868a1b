"""Requests that a web page had its reader's browser send.

Where no key is asked for, whoever can reach the server may use it: on loopback that is every program of this
machine, browsers among them, and a browser does what any page tells it. It says so, though:

- `Sec-Fetch-Site` tells whose page asked. No script can set or leave out a header of that name. What is not a
  browser sends none, and what somebody typed or opened from a bookmark says `none`.
- `Origin` tells the same of browsers that know no `Sec-Fetch-Site`, of all but simple reads, whose answers they
  keep from a foreign page.
- `Host` is the name that the page knows this server by. A page of evil.example whose name leads to 127.0.0.1 (DNS
  rebinding) is of the same origin as what it reads there, and its requests name evil.example.

Where a key is asked for a page has none, and none of this is looked at; unless it comes as a user and password,
which a browser that was once told them adds by itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from instainfer.errors import CrossSite

#: What a request is that was not sent by another site's page. `same-site` is one: any port of this machine.
OURS = frozenset({b"same-origin", b"none"})
_LONGEST = 100  # of what is repeated of a header
_REMEMBERED = 64  # values of Host that were found good


class Browsers:
    def __init__(self, hosts: Iterable[str]) -> None:
        """`hosts`: names and addresses by which this server is known, beside those of loopback."""
        self._hosts = frozenset(host.strip("[]").rstrip(".").lower() for host in hosts)
        self.known: set[bytes] = set()  # values of Host that need not be looked at again

    def check(self, headers: Iterable[tuple[bytes, bytes]], *, asked: bool, pages: bool) -> None:
        """Raises CrossSite. `asked`: whether anyone is asked for a key; `pages`: what is wanted may be linked to
        from anywhere. Names of headers are in lower case."""
        site, host, origin, basic = b"", b"", b"", False
        for name, value in headers:
            if name == b"host":
                host = value
                if not asked:
                    self._check_host(value)
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"origin":
                origin = value
            elif name == b"authorization":
                basic = value[:6].lower() == b"basic "
        if pages or (asked and not basic):
            return
        if site:
            if site not in OURS:
                raise _foreign(f"a page of another site ({_said(site)})", asked=asked)
        elif origin and not _is_own(origin, host):
            raise _foreign(f"a page of {_said(origin)}", asked=asked)

    def _check_host(self, value: bytes) -> None:
        if value in self.known:
            return
        if not self._expected(_name(value)):
            raise CrossSite(
                f"this server is not known as {_said(value)}",
                hint="name it in server.hosts, or set a key (server.api_key): then any name will do",
            )
        if len(self.known) >= _REMEMBERED:
            self.known.clear()
        self.known.add(value)

    def _expected(self, name: str) -> bool:
        if name in self._hosts or name == "localhost":
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def _is_own(origin: bytes, host: bytes) -> bool:
    """A page that came from here; its scheme may be that of a proxy."""
    try:
        parts = urlsplit(origin.decode("latin-1").lower())
    except ValueError:
        return False
    return bool(parts.netloc) and parts.netloc == host.decode("latin-1").lower()


def _name(host: bytes) -> str:
    """Of a Host header: without its port, brackets and final dot."""
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


def _foreign(whose: str, *, asked: bool) -> CrossSite:
    if asked:
        return CrossSite(
            f"{whose} sent this request, with a user and password that the browser added",
            hint="send the key as Authorization: Bearer KEY",
        )
    return CrossSite(
        f"{whose} sent this request, and the server asks for no key",
        hint="only its own pages may: set a key (server.api_key) and have it sent, or call it from a program",
    )


def _said(value: bytes) -> str:
    return repr(value[:_LONGEST].decode("latin-1"))
