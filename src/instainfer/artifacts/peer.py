"""A server or another node, over HTTP (shelf.py is its other end)."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx

from instainfer.artifacts.names import checked
from instainfer.errors import BadSettings, NotFound, Unavailable

PREFIX = "/artifacts/"
CONNECT_S = 5.0
SILENT_S = 60.0  # whoever pulls gives a slow source up before that


class Peer:
    def __init__(self, url: str, key: str = "", tls: ssl.SSLContext | None = None) -> None:
        """Raises BadSettings for what is no server's URL. `key`: sent to this URL only, never after a redirect."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise BadSettings(f"{url!r} is no source", hint="write http://HOST:PORT, without a key in it")
        self.name = url
        self._base = url.rstrip("/") + PREFIX
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._tls = tls
        self._client: httpx.AsyncClient | None = None

    async def read(self, digest: str, start: int = 0) -> AsyncIterator[bytes]:
        if self._client is None:
            timeout = httpx.Timeout(SILENT_S, connect=CONNECT_S)
            # trust_env: a proxy for the outside is none for the nodes of a cluster, and would see the key
            self._client = httpx.AsyncClient(
                timeout=timeout, follow_redirects=False, trust_env=False, verify=self._tls or True
            )
        headers = {**self._headers, "accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        try:
            async with self._client.stream("GET", self._base + checked(digest), headers=headers) as response:
                skip = self._skip(response, digest, start)
                if skip is None:
                    return
                async for data in response.aiter_raw():
                    if skip >= len(data):
                        skip -= len(data)
                        continue
                    yield data[skip:]
                    skip = 0
        except httpx.HTTPError as error:
            raise Unavailable(f"{self.name}: {str(error) or type(error).__name__}") from None

    def _skip(self, response: httpx.Response, digest: str, start: int) -> int | None:
        """Bytes to pass over before `start`; None where nothing follows it. Raises NotFound, Unavailable."""
        status = response.status_code
        if status == 404:
            raise NotFound(f"{digest} is not at {self.name}")
        if status == 416 and start:
            return None
        if status == 200:
            return start  # it cannot send a part: what we have is sent once more
        if status == 206 and start:
            found = re.fullmatch(r"bytes (\d{1,18})-.*", response.headers.get("content-range", ""))
            if found and int(found[1]) == start:
                return 0
        raise Unavailable(f"{self.name} answers {status}", hint="is its key the one that was given?")

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            async with asyncio.timeout(CONNECT_S):
                await client.aclose()
