"""A source by what settings call it."""

from __future__ import annotations

import ssl
from pathlib import Path

from instainfer.artifacts.directory import Directory
from instainfer.artifacts.objects import Objects
from instainfer.artifacts.peer import Peer
from instainfer.artifacts.source import Source
from instainfer.errors import BadSettings

SCHEMES = ("s3://", "gs://", "az://")


def source(text: str, key: str = "", tls: ssl.SSLContext | None = None) -> Source:
    """`/a/folder`, `http://HOST:PORT` (`key` goes with it, and `tls` is for https), or `s3://BUCKET/PREFIX`.
    Raises BadSettings."""
    if text.startswith("/"):
        return Directory(Path(text))
    if text.startswith(("http://", "https://")):
        return Peer(text, key, tls)
    if text.startswith(SCHEMES):
        return Objects(text)
    raise BadSettings(
        f"{text!r} is no source of artifacts",
        hint="write an absolute path, http://HOST:PORT, or s3://BUCKET/PREFIX",
    )
