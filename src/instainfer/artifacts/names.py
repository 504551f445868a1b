"""Names of artifacts: the digest of what they hold, and nothing else."""

from __future__ import annotations

import re

from instainfer.errors import BadInput

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FILE = re.compile(r"sha256-[0-9a-f]{64}")


def checked(digest: str) -> str:
    """The digest itself. Raises BadInput for everything else, so that no name from outside becomes a path."""
    if not _DIGEST.fullmatch(digest):
        raise BadInput(f"{digest[:100]!r} is no digest", hint="sha256: and 64 hexadecimal digits, in lower case")
    return digest


def file_name(digest: str) -> str:
    """Of its file, in every folder and bucket. Raises BadInput."""
    return checked(digest).replace(":", "-")


def digest_of(file_name: str) -> str | None:
    """The reverse; None for a file that is no artifact."""
    return file_name.replace("-", ":") if _FILE.fullmatch(file_name) else None
