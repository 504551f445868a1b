"""How people write sizes, durations and lists. The lowest layer: pure, imports nothing of ours."""

from __future__ import annotations

import re

# "512MB" is decimal and "512MiB" binary, as the standards have it; the bare letters are binary, as docker and
# the kernel's cgroup files read them.
_BYTES = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _BYTES |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power, _letter: 1024**_power}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)
_COMMA = re.compile(r",(?![^(]*\))")

MB = 1_000_000  # what `_mb` in a key means: decimal, as `parse_bytes` reads it


def parse_bytes(text: str) -> int:
    """Bytes in "512MB" (10^6), "1.5 GiB" (2^30), "64k" (2^10) or "1048576". Raises ValueError with what is
    allowed."""
    number, unit = _split(text)
    if unit not in _BYTES:
        raise ValueError(f"{text!r} is no size: write a number and B, KB, MB, GB or TB, such as 512MB")
    return round(number * _BYTES[unit])


def parse_seconds(text: str) -> float:
    """Seconds in "30", "30s", "500ms", "5m", "2h" or "1d". Raises ValueError with what is allowed."""
    number, unit = _split(text)
    if unit not in _SECONDS:
        raise ValueError(f"{text!r} is no duration: write a number and ms, s, m, h or d, such as 30s")
    return number * _SECONDS[unit]


def _split(text: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text)
    return (float(found[1]), found[2].lower()) if found else (0.0, "?")


def listed(text: str) -> list[str]:
    """The parts between commas, none of them empty; commas in brackets are a part's own."""
    return [part for part in map(str.strip, _COMMA.split(text)) if part]


def say_mb(mb: float) -> str:
    """A size for people: "87 MB", "1.4 GB", "0.5 MB"."""
    if mb >= 1000:
        return f"{mb / 1000:.1f} GB"
    return f"{mb:.0f} MB" if mb >= 10 or mb == 0 else f"{mb:.1f} MB"


def say_ms(ms: float) -> str:
    """A latency for people, three digits or so: "0.42 ms", "87 ms", "1.24 s", "3.5 min"."""
    if ms >= 60_000:
        return say_s(ms / 1000)
    if ms >= 1000:
        return f"{ms / 1000:.2f} s"
    return f"{ms:.0f} ms" if ms >= 10 or ms == 0 else f"{ms:.2f} ms"


def say_s(seconds: float) -> str:
    """An age or a wait for people: "8 s", "3.5 min", "2.0 h", "4.0 d"."""
    for limit, unit, name in ((86400, 86400, "d"), (3600, 3600, "h"), (60, 60, "min")):
        if seconds >= limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"
