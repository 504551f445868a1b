"""`why`: an activation's start, explained by replaying the logged events through the core."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from instainfer import eventlog
from instainfer.core import checkpoint
from instainfer.core.explain import Explanation, explain
from instainfer.core.platform import Platform
from instainfer.model import Activation

log = logging.getLogger("instainfer")

_unfit: set[str] = set()  # runs of the server of which it was said


def replay(directory: Path, activation: Activation) -> Explanation | None:
    """None when the log no longer reaches back to it, or was written by a core that knew other things: its state
    may not load, or load and lack what this one looks for, or its events be of other kinds. What is written stays
    as it is, for the version that wrote it."""
    try:
        found = eventlog.find(directory, activation.epoch, activation.request)
        if found is None:
            return None
        head, segments = found
        platform = Platform(checkpoint.load(head.state))
        return explain(platform, eventlog.read(segments), activation.request)
    except Exception as error:  # noqa: BLE001 # whatever the state of another version makes of itself here
        if activation.epoch not in _unfit:
            _unfit.add(activation.epoch)
            log.warning(
                "the events of run %s cannot be replayed, as of another version: %s: %s",
                activation.epoch,
                type(error).__name__,
                error,
            )
        return None


def tell(activation: Activation, explanation: Explanation | None) -> dict[str, Any]:
    """The JSON of `/activations/{id}/why`, without the activation itself."""
    if explanation is None:
        return {
            "start": activation.start,
            "reproduced": False,
            "probability": None,
            "rate": None,
            "decisions": [],
            "advice": [
                "the event log no longer reaches back to it (records.keep_events_mb), or is of an earlier version"
            ],
        }
    return {
        "start": explanation.start or activation.start,
        "reproduced": explanation.start == activation.start and explanation.instance == activation.instance,
        "probability": explanation.probability,
        "rate": explanation.rate,
        "last_s": explanation.last_s,
        "owner": explanation.owner,
        "origin": explanation.origin,
        "zygote": explanation.zygote,
        "decisions": [
            {
                "ago_s": decision.ago_s,
                "what": decision.what,
                "why": decision.why.rule,
                "probability": decision.why.probability,
                "rate": decision.why.rate,
                "saves_s": decision.why.saves_s,
                "weight_mb": None if decision.why.weight is None else decision.why.weight / 1e6,
                "displaced": list(decision.why.displaced),
            }
            for decision in explanation.decisions
        ],
        "advice": list(explanation.advice),
    }
