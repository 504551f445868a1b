"""Keys, roles and quotas."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from instainfer.errors import Forbidden, NotAllowed, NotFound, OverQuota
from instainfer.gateway.access import OWNER, Access, Principal
from instainfer.model import Quota, Role
from instainfer.store.sql import SqlStore


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time


@pytest.fixture
def store() -> Any:
    made = SqlStore("sqlite://")
    yield made
    made.close()


def bearer(auth: str) -> bytes:
    return f"Bearer {auth}".encode()


def basic(auth: str) -> bytes:
    return b"Basic " + base64.b64encode(auth.encode())


def test_nobody_is_asked_where_there_is_no_key(store: SqlStore) -> None:
    access = Access(store, Clock())
    assert access.who(b"") == access.who(b"Bearer anything") == OWNER


def test_a_key_is_of_a_namespace_and_kept_as_a_hash(store: SqlStore) -> None:
    access = Access(store, Clock())
    auth = access.add("a", Role.INVOKE)
    secret = auth.partition(":")[2]
    assert all(secret not in str(key) for key in store.issued())
    for again in (access, Access(store, Clock())):  # the second as after a restart
        assert again.who(bearer(auth)) == again.who(basic(auth)) == Principal("a", Role.INVOKE)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda auth: b"",
        lambda auth: auth.encode(),
        lambda auth: bearer(auth[:-1]),
        lambda auth: bearer(auth.partition(":")[0]),
        lambda auth: bearer(":" + auth.partition(":")[2]),
        lambda auth: basic(auth)[:-8],
        lambda auth: b"Basic " + b"\xff" * 20,
        lambda auth: b"Bearer \xff\xfe:\x00",
        lambda auth: b"Digest " + auth.encode(),
    ],
)
def test_wrong_keys(store: SqlStore, spoil: Callable[[str], bytes]) -> None:
    access = Access(store, Clock())
    auth = access.add("a", Role.ADMIN)
    with pytest.raises(NotAllowed):
        access.who(spoil(auth))


def test_the_servers_own_key_opens_all(store: SqlStore) -> None:
    access = Access(store, Clock(), server_key="s:e:cret")
    assert access.who(bearer("s:e:cret")) == OWNER
    assert access.who(basic("anyone:s:e:cret")) == OWNER
    with pytest.raises(NotAllowed):
        access.who(bearer("s"))


def test_a_revoked_key_opens_nothing(store: SqlStore) -> None:
    access = Access(store, Clock())
    auth, other = access.add("a", Role.ADMIN), access.add("b", Role.ADMIN)
    id = auth.partition(":")[0]
    with pytest.raises(NotFound):
        access.revoke("b", id)
    access.revoke("a", id)
    for again in (access, Access(store, Clock())):
        with pytest.raises(NotAllowed):
            again.who(bearer(auth))
        assert again.who(bearer(other)).namespace == "b"


def test_roles() -> None:
    who = Principal("a", Role.DEPLOY)
    who.check("a")
    who.check("a", Role.DEPLOY)
    with pytest.raises(Forbidden, match="'admin'"):
        who.check("a", Role.ADMIN)
    with pytest.raises(Forbidden, match="'b'"):
        who.check("b")
    with pytest.raises(Forbidden):
        who.check_everywhere()
    OWNER.check("b", Role.ADMIN)
    OWNER.check_everywhere()


def test_requests_under_way(store: SqlStore) -> None:
    access = Access(store, Clock())
    access.set_quota("a", Quota(concurrency=2))
    told: list[Any] = []
    first = access.admit("a", told.append)
    access.admit("a", told.append)
    with pytest.raises(OverQuota) as caught:
        access.admit("a", told.append)
    assert caught.value.retry_after_s
    access.admit("b", told.append)
    first("answer")  # type: ignore[arg-type]
    assert told == ["answer"]
    access.admit("a", told.append)


def test_what_is_answered_later_counts_and_waits(store: SqlStore) -> None:
    access = Access(store, Clock())
    access.set_quota("a", Quota(concurrency=2))
    freed: list[str] = []
    access.freed = freed.append
    over = access.begin("a")
    first = access.admit("a", lambda ticket: None)
    assert over is not None
    assert access.begin("a") is None
    with pytest.raises(OverQuota):
        access.admit("a", print)
    over()
    first("answer")  # type: ignore[arg-type]
    assert freed == ["a", "a"]
    assert access.begin("a") and access.begin("a") and not access.begin("a")
    for _ in range(3):
        assert access.begin("b"), "which has no quota"


def test_requests_per_minute(store: SqlStore) -> None:
    clock = Clock()
    access = Access(store, clock)
    access.set_quota("a", Quota(requests_per_minute=3))
    for _ in range(3):
        access.admit("a", print)
    with pytest.raises(OverQuota) as caught:
        access.admit("a", print)
    assert caught.value.retry_after_s == pytest.approx(20.0)
    clock.time += 20.0
    access.admit("a", print)
    with pytest.raises(OverQuota):
        access.admit("a", print)
    clock.time += 3600.0
    for _ in range(3):
        access.admit("a", print)
    with pytest.raises(OverQuota):
        access.admit("a", print)
    access.set_quota("a", Quota())
    access.admit("a", print)
