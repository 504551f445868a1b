"""top: the platform while it works, in a terminal."""

from __future__ import annotations

import contextlib
import sys

from instainfer.cli.output import is_terminal, print_json
from instainfer.cli.session import Session, Usage, command


@command("top", example="instainfer top")
def top(session: Session) -> None:
    """Watch the platform while it works, in the terminal.

    Keys: t switches between containers and timeline, / filters, s sorts, p pauses, + and - zoom, enter tells why
    the chosen call was as it was, q leaves. With --json: what there is now, once.
    """
    if session.json:
        with contextlib.closing(session.client.live()) as feed:
            print_json(next(feed))
        return
    if not (is_terminal() and is_terminal(sys.stdin)):
        raise Usage("top needs a terminal", hint="`instainfer top --json` prints once what there is")
    from instainfer.cli.top.app import Top

    error = Top(session.client).run()
    if error is not None:
        raise error
