"""Who may do what: keys, roles, and what a namespace may use.

A key belongs to one namespace; the server's own (`server.api_key`) and the local admin socket may do everything.
Where there never was a key nobody is asked for one, which a server allows on loopback only. With the last key gone
the door stays shut: whoever revokes their own must not open it to all.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import math
import secrets
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from instainfer.books import Ticket
from instainfer.clock import Clock
from instainfer.errors import Forbidden, NotAllowed, NotFound, OverQuota
from instainfer.model import Key, Quota, Role
from instainfer.store.base import Store

SECRET_BYTES = 48
HINT = "set INSTAINFER_API_KEY, or send Authorization: Bearer KEY, or Basic with the key as user and password"


class Principal(NamedTuple):
    """Who asks. `namespace`: "" means every one."""

    namespace: str
    role: Role

    @property
    def everywhere(self) -> bool:
        return not self.namespace

    def sees(self, namespace: str) -> bool:
        return self.namespace in ("", namespace)

    def check(self, namespace: str, role: Role = Role.INVOKE) -> None:
        """Raises Forbidden. The same is said of namespaces that do not exist: nothing is learned of others'."""
        if not self.sees(namespace):
            raise Forbidden(
                f"this key is of namespace {self.namespace!r}, not of {namespace!r}",
                hint=f"call /…/{self.namespace}/…, or use that namespace's key",
            )
        if not self.role.includes(role):
            raise Forbidden(
                f"this needs the role {role.value!r}, and the key has {self.role.value!r}",
                hint="`instainfer namespace add NAMESPACE --role ROLE` makes another key",
            )

    def check_everywhere(self) -> None:
        """For what concerns the server as a whole. Raises Forbidden."""
        if not self.everywhere:
            raise Forbidden(
                "this concerns all namespaces, and the key is of one",
                hint="use the server's own key, or --data-dir on its machine",
            )


OWNER = Principal("", Role.ADMIN)


def who_asks(scope: Any) -> Principal:
    """As the gate has found out; of a face that has none, the owner."""
    found: Principal = scope.get("principal", OWNER)
    return found


class Access:
    """The keys and quotas, in memory as in the store. Its methods that write block."""

    def __init__(self, store: Store, clock: Clock, *, server_key: str = "") -> None:
        self._store = store
        self._clock = clock
        self._server_key = _hash(server_key.encode()) if server_key else ""
        self._keys = {key.id: key for key in store.issued()}
        self._shut = bool(self._server_key or self._keys)
        self.freed: Callable[[str], None] = lambda namespace: None  # told where one of `concurrency` has ended
        self._used = {namespace: _Use(quota) for namespace, quota in store.quotas().items()}

    @property
    def asked(self) -> bool:
        """Whether anyone is asked for a key: there is one, or was one since the start."""
        return self._shut

    def who(self, authorization: bytes) -> Principal:
        """`authorization`: the header's value. Raises NotAllowed."""
        if not self.asked:
            return OWNER
        scheme, _, given = authorization.partition(b" ")
        scheme = scheme.lower()
        if scheme == b"basic":
            try:
                given = base64.b64decode(given.strip(), validate=True)
            except binascii.Error:
                given = b""
        elif scheme != b"bearer":
            given = b""
        user, _, secret = given.partition(b":")
        if self._server_key and (
            self._is_server_key(given) or (scheme == b"basic" and self._is_server_key(secret))
        ):
            return OWNER
        key = self._keys.get(user.decode("latin-1"))
        if key is None or not hmac.compare_digest(_hash(secret), key.hash):
            raise NotAllowed("no key, or a wrong one", hint=HINT)
        return Principal(key.namespace, key.role)

    def _is_server_key(self, given: bytes) -> bool:
        return hmac.compare_digest(_hash(given), self._server_key)

    # ---- keys ----------------------------------------------------------------------------------------------

    def keys(self, namespace: str = "") -> list[Key]:
        return [key for key in self._keys.values() if namespace in ("", key.namespace)]

    def add(self, namespace: str, role: Role) -> str:
        """Make a key; returned once, as "id:secret", and kept as a hash."""
        secret = secrets.token_urlsafe(SECRET_BYTES)
        key = Key(
            id=str(uuid.uuid4()),
            namespace=namespace,
            role=role,
            hash=_hash(secret.encode()),
            created=self._clock.wall(),
        )
        self._store.add_key(key)
        self._keys[key.id] = key
        self._shut = True
        return f"{key.id}:{secret}"

    def revoke(self, namespace: str, id: str) -> None:
        """Raises NotFound, of a key of another namespace too."""
        key = self._keys.get(id)
        if key is None or key.namespace != namespace:
            raise NotFound(
                f"namespace {namespace!r} has no key {id!r}", hint="`instainfer namespace ls` shows them"
            )
        self._store.delete_key(id)
        del self._keys[id]

    # ---- quotas --------------------------------------------------------------------------------------------

    def quota(self, namespace: str) -> Quota:
        use = self._used.get(namespace)
        return use.quota if use is not None else Quota()

    def set_quota(self, namespace: str, quota: Quota) -> None:
        self._store.set_quota(namespace, quota)
        use = self._used.get(namespace)
        if use is None:
            self._used[namespace] = _Use(quota)
        else:
            use.quota = quota

    def charge(self, namespace: str) -> None:
        """Count a request that will run some time. Raises OverQuota."""
        use = self._used.get(namespace)
        if use is not None:
            use.charge(self._clock.now())

    def begin(self, namespace: str) -> Callable[[], None] | None:
        """Count an attempt of a request that was accepted to be answered later: what is to be called when it is
        over, or None where the quota has no room for it. `freed` is told when it may have."""
        use = self._used.get(namespace)
        if use is None:
            return _nothing
        if use.full:
            return None
        use.running += 1
        return functools.partial(self._end, namespace, use)

    def _end(self, namespace: str, use: _Use) -> None:
        use.running -= 1
        if use.quota.concurrency:
            self.freed(namespace)

    def admit(self, namespace: str, done: Callable[[Ticket], Any]) -> Callable[[Ticket], Any]:
        """Count a request against its namespace's quota; returns what its end is to be told to instead of `done`.
        Raises OverQuota."""
        use = self._used.get(namespace)
        if use is None:
            return done
        use.take(self._clock.now())

        def ended(ticket: Ticket) -> None:
            self._end(namespace, use)
            done(ticket)

        return ended


def _nothing() -> None:
    pass


class _Use:
    """What a namespace uses of its quota. Requests per minute are a bucket that fills evenly."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.running = 0
        self._tokens = math.inf
        self._at = 0.0

    @property
    def full(self) -> bool:
        return 0 < self.quota.concurrency <= self.running

    def take(self, now: float) -> None:
        quota = self.quota
        if self.full:
            raise OverQuota(
                f"{self.running} of its requests are under way, and its quota is {quota.concurrency}",
                hint="wait for an answer before the next request, or have the quota raised",
                retry_after_s=1.0,
            )
        self.charge(now)
        self.running += 1

    def charge(self, now: float) -> None:
        quota = self.quota
        if quota.requests_per_minute:
            rate = quota.requests_per_minute / 60.0
            tokens = min(float(quota.requests_per_minute), self._tokens + (now - self._at) * rate)
            self._at = now
            if tokens < 1.0:
                self._tokens = tokens
                raise OverQuota(
                    f"its quota of {quota.requests_per_minute} requests a minute is used up",
                    hint="send fewer, or have the quota raised",
                    retry_after_s=(1.0 - tokens) / rate,
                )
            self._tokens = tokens - 1.0


def _hash(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()
