"""Errors as they are answered."""

from __future__ import annotations

import pytest

from instainfer.errors import BY_CODE
from instainfer.gateway import inference, openwhisk
from instainfer.gateway.problems import render


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_whoever_may_try_again_is_told_when(code: str) -> None:
    error = BY_CODE[code]("no")
    for status, headers, _ in (render(error), inference.failed(error)):
        told = dict(headers).get(b"retry-after")
        assert (told is not None) == (status == 503), (status, told)
        assert told is None or int(told) >= 1
    assert openwhisk.failed(error)[0]


def test_who_knows_better_says_so() -> None:
    assert dict(render(BY_CODE["unavailable"]("no", retry_after_s=0.2))[1])[b"retry-after"] == b"1"
    assert dict(render(BY_CODE["overloaded"]("no", retry_after_s=12.5))[1])[b"retry-after"] == b"13"
