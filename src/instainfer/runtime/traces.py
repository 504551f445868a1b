"""What went wrong in a function, as text for its author."""

from __future__ import annotations

import os
import traceback

from . import payloads, styles

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
LONGEST_TRACE = 8 << 10  # bytes; its end is kept
LONGEST_ERROR = 1000  # characters
OWN_ERRORS = (styles.Unusable, payloads.BadPayload, payloads.BadAnswer)  # their text is the whole story


def describe(error: BaseException) -> str:
    """One line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001  # a tenant's exception may fail to say what it is
        text = ""
    if not isinstance(error, OWN_ERRORS):
        name = type(error).__name__
        text = "%s: %s" % (name, text) if text else name
    return text[:LONGEST_ERROR]


def trace(error: BaseException) -> str:
    """The traceback as the function's author should see it: none of this runtime's frames, at most 8 KB,
    cut at the start. Empty for errors of our own making."""
    if isinstance(error, OWN_ERRORS):
        return ""
    told = traceback.TracebackException(type(error), error, error.__traceback__)
    _without_ours(told)
    text = "".join(told.format()).encode("utf-8", "backslashreplace")
    if len(text) > LONGEST_TRACE:
        text = b"[...]\n" + text[len(text) - LONGEST_TRACE + 6 :]
    return text.decode("utf-8", "ignore")


def _without_ours(told: traceback.TracebackException) -> None:
    told.stack[:] = [frame for frame in told.stack if not frame.filename.startswith((HERE, "<frozen importlib"))]
    for other in (told.__cause__, told.__context__, *(getattr(told, "exceptions", None) or ())):
        if other is not None:
            _without_ours(other)
