"""Object storage (S3 and its like, Google's, Azure's), through obstore: an extra, `instainfer[objects]`.

Credentials and endpoints are the library's matter: it reads the usual variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT,
AWS_REGION, …).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from instainfer.artifacts.names import file_name
from instainfer.artifacts.source import CHUNK
from instainfer.errors import BadSettings, NotFound, Unavailable


class Objects:
    def __init__(self, url: str, **options: Any) -> None:
        """`url`: s3://BUCKET/PREFIX, gs://…, az://…; `options`: as obstore's `from_url` has them. Raises
        BadSettings, also where the library is missing."""
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError:
            raise BadSettings(
                f"{url} needs obstore, which is not installed", hint="pip install 'instainfer[objects]'"
            ) from None
        self.name = url
        self._library = obstore
        self._failed = BaseError
        try:
            self._store = from_url(url, **options)
        except (BaseError, ValueError, TypeError) as error:
            raise BadSettings(f"{url} is no object storage: {error}", hint="s3://BUCKET/PREFIX") from None

    async def read(self, digest: str, start: int = 0) -> AsyncIterator[bytes]:
        name = file_name(digest)
        try:
            if start and (await self._library.head_async(self._store, name))["size"] <= start:
                return
            asked: Any = {"range": {"offset": start}} if start else {}
            found = await self._library.get_async(self._store, name, options=asked)
            async for data in found.stream(min_chunk_size=CHUNK):
                yield bytes(data)
        except FileNotFoundError:
            raise NotFound(f"{digest} is not at {self.name}") from None
        except (self._failed, OSError) as error:
            raise Unavailable(f"{self.name}: {str(error)[:300]}") from None

    async def put(self, digest: str, file: Path) -> None:
        name = file_name(digest)
        try:
            await self._library.head_async(self._store, name)
        except FileNotFoundError:
            pass
        except (self._failed, OSError) as error:
            raise Unavailable(f"{self.name}: {str(error)[:300]}") from None
        else:
            return
        try:
            await self._library.put_async(self._store, name, file)
        except (self._failed, OSError) as error:
            raise Unavailable(f"{self.name}: {str(error)[:300]}") from None

    async def aclose(self) -> None:
        """The library closes its connections by itself."""
