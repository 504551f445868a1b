"""Errors as RFC 9457 problem JSON."""

from __future__ import annotations

import json
import math

from instainfer.errors import InstaInferError

PROBLEM = b"application/problem+json"
AGAIN = (b"x-instainfer-again", b"safe")  # of answers to what may be sent again (errors.py)


def render(error: InstaInferError, activation: str = "") -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body."""
    problem = error.problem()
    if activation:
        problem["activation"] = activation
    body = json.dumps(problem, ensure_ascii=False).encode()
    headers = [(b"content-type", PROBLEM), (b"content-length", str(len(body)).encode())]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
    if error.again:
        headers.append(AGAIN)
    return error.status, headers, body
