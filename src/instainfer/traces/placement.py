"""Where in its minute an arrival falls, when all that is known is how many there were.

Timers fire at one fixed offset per function with equal spacing inside the minute; every other trigger's arrivals
are uniform. Each draw is a hash of (function, minute, rank), not the next number of a generator: an arrival
falls at the same time whatever else is read, in whichever order and from whichever minute on, and whatever
PYTHONHASHSEED.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from instainfer.traces.base import Floats, Indices, Ints

Words = NDArray[np.uint64]

_BLOCK = 2_000_000  # arrivals placed and sorted at a time: a few arrays of that many stay in cache
_STEPS = 2.0**32  # offsets are whole multiples of 60 s / 2^32, so that none rounds up into the next minute


def seed_of(name: str, salt: int = 0) -> int:
    """64 bits of its SHA-256; another salt, other draws."""
    text = name if not salt else f"{name}#{salt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def uniform(seeds: Words, minutes: Ints, ranks: Ints, stream: int = 0) -> Floats:
    """In [0, 1), one for each. Streams are independent of each other."""
    keys = (minutes.astype(np.uint64) << np.uint64(32)) | ranks.astype(np.uint64)
    return (_mix(_mix(seeds + np.uint64(stream)) ^ keys) >> np.uint64(32)).astype(np.float64) / _STEPS


def place(
    counts: NDArray[np.int32],
    seeds: Words,
    timers: NDArray[np.bool_],
    *,
    first_minute: int = 0,
) -> tuple[Floats, Indices, Ints, Ints]:
    """`counts` is rows x minutes. Returns for each arrival, in order of time and then row: seconds from the first
    column's start, its row, its minute and its rank in that minute. `first_minute` is the column's number
    in the whole trace, which the draws depend on."""
    per_minute = counts.sum(axis=0, dtype=np.int64)
    ends = np.cumsum(per_minute)
    blocks = [(np.empty(0), np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64))]
    start = 0
    while start < counts.shape[1]:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _BLOCK, "right")))
        blocks.append(_place_block(counts[:, start:stop], seeds, timers, start, first_minute))
        start = stop
    times, rows, minutes, ranks = zip(*blocks, strict=True)
    return np.concatenate(times), np.concatenate(rows), np.concatenate(minutes), np.concatenate(ranks)


def _place_block(
    counts: NDArray[np.int32], seeds: Words, timers: NDArray[np.bool_], start: int, first_minute: int
) -> tuple[Floats, Indices, Ints, Ints]:
    minute, row = np.nonzero(counts.T)
    many = counts[row, minute].astype(np.int64)
    size = np.repeat(many, many)
    rank = np.arange(len(size)) - np.repeat(np.cumsum(many) - many, many)
    row, minute = np.repeat(row, many), np.repeat(minute, many) + start
    seed = seeds[row]
    drawn = uniform(seed, minute + first_minute, rank)
    fixed = (
        uniform(seed, np.zeros_like(minute), np.zeros_like(rank), stream=1) + rank / np.maximum(size, 1)
    ) % 1.0
    offset = np.floor(np.where(timers[row], fixed, drawn) * _STEPS) / _STEPS
    times = (minute + offset) * 60.0
    order = np.lexsort((row, times))
    return times[order], row[order].astype(np.int32), minute[order], rank[order]


def _mix(words: Words) -> Words:
    """Steele, Lea and Flood's splitmix64 finaliser (OOPSLA 2014): every bit of a word reaches every bit of the
    result."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
