"""Text from outside, as it may be shown: on one line, and with nothing in it that cannot be seen."""

from __future__ import annotations

import re
from typing import Any

_LONGEST = 200  # characters of a text: names of files are shorter
#: What would hide, move or end text: controls, line ends, surrogates, marks of direction.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)


def plain(text: str) -> str:
    """On one line, with nothing in it that cannot be seen, and not endless."""
    text = _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def plain_values(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [plain_values(one) for one in value]
    if isinstance(value, dict):
        return {plain(key): plain_values(one) for key, one in value.items()}
    return value
