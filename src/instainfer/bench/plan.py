"""How much a benchmark measures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from instainfer.errors import BadSettings

PREFIX = "INSTAINFER_BENCH_"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Each field is also an environment variable, INSTAINFER_BENCH_ and its name in capitals. More rounds make
    medians steadier; each round measures everything once, so that a slow minute of the machine hits all alike.
    """

    rounds: int = 7  # repetitions of everything, interleaved
    requests: int = 4000  # per load of `overhead`
    preloads: int = 100  # pre-loaded starts of `overhead`, all rounds together
    watch_s: int = 6  # of the loads of a round of `overhead` that somebody looks at, and as long without
    rest_s: int = 23  # after the former has left: the feed waits 20 s for somebody to come back

    @classmethod
    def of(cls, environ: Mapping[str, str] | None = None) -> Plan:
        """From the environment. Raises BadSettings."""
        environ = os.environ if environ is None else environ
        given: dict[str, int] = {}
        for field in fields(cls):
            variable = PREFIX + field.name.upper()
            if variable not in environ:
                continue
            try:
                given[field.name] = int(environ[variable])
            except ValueError:
                given[field.name] = 0
            if given[field.name] < 1:
                raise BadSettings(
                    f"{variable}={environ[variable]!r} cannot be used", hint="give a whole number above 0"
                )
        return cls(**given)
