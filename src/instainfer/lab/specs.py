"""How a policy is asked for: MODE or MODE:PREDICTOR, each with settings of its own where that is wanted, such as
`tyche(p_load=0.1):poisson(window=20)`."""

from __future__ import annotations

import re
from typing import NamedTuple

from instainfer.errors import BadSettings

_SPEC = re.compile(r"\s*([\w.-]+)\s*(?:\((.*)\))?\s*", re.ASCII)
_HINT = "write a name, or a name and its settings, such as tyche(p_load=0.1)"


class Spec(NamedTuple):
    name: str
    settings: dict[str, float]

    @property
    def text(self) -> str:
        """The one way to write it, whatever the order and the spaces."""
        given = ",".join(f"{key}={value:.12g}" for key, value in sorted(self.settings.items()))
        return f"{self.name}({given})" if given else self.name


def parse(text: str) -> Spec:
    """Raises BadSettings."""
    found = _SPEC.fullmatch(text)
    if found is None:
        raise BadSettings(f"{text!r} is no policy", hint=_HINT)
    settings: dict[str, float] = {}
    for pair in (part for part in (found[2] or "").split(",") if part.strip()):
        key, equals, value = pair.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not equals or not abs(number) < float("inf"):
            raise BadSettings(f"{pair.strip()!r} in {text!r} sets nothing", hint=_HINT)
        settings[key.strip()] = number
    return Spec(found[1], settings)


def listed(text: str) -> list[str]:
    """The parts between commas; commas in brackets are a part's own."""
    parts, depth, part = [], 0, ""
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth <= 0:
            parts.append(part)
            part = ""
        else:
            part += letter
    return [one.strip() for one in (*parts, part) if one.strip()]
