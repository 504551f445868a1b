"""The dashboard's files, as they are in the package: no key is asked for them, and nothing of the platform is in
them. What they show they ask the API for, with the key of whoever looks.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any, NamedTuple

PREFIX = "/ui"

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
#: Nothing from elsewhere, nothing inline, in nobody's frame.
_POLICY = (
    b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-cache"),
]


class File(NamedTuple):
    type: bytes
    etag: bytes
    body: bytes


class Ui:
    """An ASGI application."""

    def __init__(self) -> None:
        self._files = {
            path.name: _file(path.name, path.read_bytes())
            for path in (resources.files("instainfer") / "ui").iterdir()
            if path.name.rpartition(".")[2] in _TYPES
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name = scope["path"].removeprefix(PREFIX)
        headers = list(_HEADERS)
        status, body = 200, b""
        found = self._files.get(name.removeprefix("/") or "index.html")
        if scope["method"] not in ("GET", "HEAD"):
            status = 405
            headers.append((b"allow", b"GET, HEAD"))
        elif not name:  # the files' addresses are relative
            status = 308
            headers.append((b"location", PREFIX.encode() + b"/"))
        elif found is None or not name.startswith("/"):
            status = 404
        else:
            headers += [(b"etag", found.etag), (b"content-type", found.type)]
            if (b"if-none-match", found.etag) in scope["headers"]:
                status = 304
            else:
                body = found.body
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _file(name: str, body: bytes) -> File:
    etag = b'"%s"' % hashlib.sha256(body).hexdigest()[:20].encode()
    return File(_TYPES[name.rpartition(".")[2]], etag, body)
