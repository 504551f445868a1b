"""TLS between the parts of a cluster, and towards callers."""

from __future__ import annotations

import ssl
from typing import Any

from instainfer.config import Tls
from instainfer.errors import BadSettings


def calling(tls: Tls) -> ssl.SSLContext | None:
    """For connections to others: they are believed if `tls.ca` (or, without one, an authority of this system) has
    signed for the name or address at which they are called, and are shown `tls.cert`. None: as any program does.
    Raises BadSettings."""
    if not tls.ca and not tls.cert:
        return None
    try:
        context = ssl.create_default_context(cafile=tls.ca or None)
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key or None)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(tls, error) from None
    return context


def answering(tls: Tls) -> dict[str, Any]:
    """uvicorn's options for connections from others, who have to show a certificate of `tls.ca` where there is
    one; no options without `tls.cert`. Raises BadSettings."""
    if not tls.cert:
        return {}
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.cert, tls.key or None)
        if tls.ca:
            context.load_verify_locations(tls.ca)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(tls, error) from None
    return {
        "ssl_certfile": tls.cert,
        "ssl_keyfile": tls.key or None,
        "ssl_ca_certs": tls.ca or None,
        "ssl_cert_reqs": ssl.CERT_REQUIRED if tls.ca else ssl.CERT_NONE,
    }


def _unusable(tls: Tls, error: Exception) -> BadSettings:
    files = ", ".join(file for file in (tls.cert, tls.key, tls.ca) if file)
    return BadSettings(f"TLS cannot be had with {files}: {error}", hint="PEM files, readable by this user")
