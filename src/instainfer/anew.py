"""A process that begins anew in its place: its number, arguments and address stay, its program is read again."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def begin(*options: str) -> NoReturn:
    """Once everything is taken down. `options`: in the place of what the command line said of these."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, arguments(sys.orig_argv, options))


def arguments(line: Sequence[str], options: Sequence[str]) -> list[str]:
    """The command line with these options last, where they win; those that an earlier beginning put there go."""
    kept = list(line)
    if options and kept[-len(options) :: 2] == list(options[::2]):
        del kept[-len(options) :]
    return [*kept, *options]
