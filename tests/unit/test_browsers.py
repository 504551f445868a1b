"""Which requests are a web page's, told by their headers."""

from __future__ import annotations

import pytest

from instainfer.errors import CrossSite
from instainfer.gateway.browsers import Browsers

HERE = (b"host", b"127.0.0.1:3233")
EVIL = (b"origin", b"https://evil.example")


def refused(*headers: tuple[bytes, bytes], asked: bool = False, pages: bool = False, hosts: str = "") -> str:
    """Why; "" if it is not."""
    try:
        Browsers(hosts.split()).check(headers, asked=asked, pages=pages)
    except CrossSite as error:
        assert error.status == 403 and error.hint
        return error.message
    return ""


def test_programs_are_served() -> None:
    assert not refused(HERE)
    assert not refused()  # HTTP/1.0


@pytest.mark.parametrize("site", [b"same-origin", b"none"])
def test_its_own_pages_are_served(site: bytes) -> None:
    assert not refused(HERE, (b"sec-fetch-site", site))
    assert not refused(HERE, (b"sec-fetch-site", site), (b"origin", b"http://127.0.0.1:3233"))


@pytest.mark.parametrize("site", [b"cross-site", b"same-site", b"", b"nonsense", b"Same-Origin"])
def test_other_pages_are_not(site: bytes) -> None:
    """same-site: what another port of this machine serves."""
    if site:
        assert "another site" in refused(HERE, (b"sec-fetch-site", site))
    assert refused(HERE, (b"sec-fetch-site", site), EVIL)


@pytest.mark.parametrize(
    "origin",
    [b"null", b"https://evil.example", b"http://127.0.0.1:8888", b"http://localhost:3233", b"http://[", b"\xff"],
)
def test_browsers_that_say_origin_alone(origin: bytes) -> None:
    assert refused(HERE, (b"origin", origin))


def test_a_page_behind_a_proxy_that_ends_tls() -> None:
    proxied = (b"host", b"Models.internal"), (b"origin", b"https://models.internal")
    assert not refused(*proxied, hosts="models.internal")


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"LOCALHOST:3233",
        b"localhost.",
        b"localhost.:3233",
        b"127.0.0.1",
        b"127.8.8.8:1",
        b"[::1]",
        b"[::1]:3233",
        b"box",
        b"10.0.0.7:80",
    ],
)
def test_names_of_this_server(host: bytes) -> None:
    assert not refused((b"host", host), hosts="box 10.0.0.7")


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:3233",
        b"localhost.evil.example",
        b"127.0.0.1.evil.example",
        b"127.0.0.1@evil.example",
        b"0.0.0.0",
        b"10.0.0.8",
        b"[::2]",
        b"",
        b"\xff\x00",
        b"a" * 5000,
    ],
)
def test_other_names(host: bytes) -> None:
    """A page whose name leads here is of the same origin as what it reads: only the name gives it away."""
    said = refused((b"host", host), (b"sec-fetch-site", b"same-origin"))
    assert "not known as" in said and len(said) < 500
    assert refused((b"host", host), pages=True)


def test_each_of_several_hosts_counts() -> None:
    assert refused(HERE, (b"host", b"evil.example"))
    assert refused((b"host", b"evil.example"), HERE)


def test_pages_may_be_linked_to() -> None:
    assert not refused(HERE, (b"sec-fetch-site", b"cross-site"), EVIL, pages=True)


def test_where_a_key_is_asked_for_none_of_it_matters() -> None:
    proxied = (b"host", b"models.example"), (b"sec-fetch-site", b"cross-site"), EVIL
    assert not refused(*proxied, asked=True)
    assert not refused(*proxied, (b"authorization", b"Bearer abc"), asked=True)


def test_a_password_that_the_browser_kept_is_no_key() -> None:
    basic = (b"authorization", b"Basic YTpi")
    assert "password" in refused(basic, HERE, (b"sec-fetch-site", b"cross-site"), asked=True)
    assert refused(basic, HERE, EVIL, asked=True)
    assert not refused(basic, HERE, asked=True)
    assert not refused(basic, (b"host", b"any.example"), asked=True)


def test_what_is_remembered_has_a_bound() -> None:
    browsers = Browsers(())
    for port in range(1000):
        browsers.check([(b"host", b"127.0.0.1:%d" % port)], asked=False, pages=False)
        assert len(browsers.known) <= 64
    assert b"127.0.0.1:999" in browsers.known
