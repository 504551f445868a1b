"""Parsers of what strangers send: good inputs, torn and twisted, and noise. FUZZ_EXAMPLES sets how many."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))


@st.composite
def twisted(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A good input with a few cuts, repetitions, changed bytes and insertions."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.sampled_from([0, 1, 2, 4, 16, 1000])))
        data[at:to] = draw(
            st.binary(max_size=4)
            | st.sampled_from(
                [b"\0", b"\xff" * 4, b"\r\n", b"..", b"/", b"-1", b"9" * 30, b'"', b"[", b"{", b"\x80"]
            )
            | st.just(bytes(data[at:to]) * 2)
        )
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_seeds(target: Target) -> None:
    for seed in TARGETS[target]:
        target(seed)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_whatever_comes_is_read_or_refused(target: Target) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(twisted(TARGETS[target]) | st.binary(max_size=300))
    def fuzz(data: bytes) -> None:
        try:
            target(data)
        except BaseException as error:  # as bytes that can be pasted, however many
            raise AssertionError(f"{target.__name__}({data[:2000]!r})") from error

    fuzz()
