"""A shadow's process: reads what the server tells, follows it, reports. `python -m instainfer.shadow.process`.

A process and not a thread: a policy's pass is milliseconds of Python, during which a thread would hold the
interpreter that the server answers requests with. It yields to everything else on the machine, and ends with the
server, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import BinaryIO

from instainfer import garbage
from instainfer.sandbox import syscalls
from instainfer.shadow.follower import Follower
from instainfer.shadow.messages import Gave, Report, Start, Tick, packed, take

NICE = 19


def main(server: int) -> None:
    """`server`: the process id of whoever started it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a terminal's or a service's whole group: the server
        signal.signal(number, signal.SIG_IGN)  # goes on for a while, and tells us when it is over
    _end_with(server)
    with contextlib.suppress(OSError):
        os.nice(NICE)
    reports = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what somebody prints is not a report
    garbage.settle()
    with contextlib.suppress(BrokenPipeError):  # the server is gone
        serve(sys.stdin.buffer, reports)


def _end_with(server: int) -> None:
    """The end of its input tells it as well, but not before it has followed all that is in there."""
    if sys.platform == "linux":
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        sys.exit(1)


def serve(told: BinaryIO, reports: BinaryIO) -> None:
    """Until the end of `told`, or until the policy fails, which is reported as well."""
    follower: Follower | None = None
    while (message := take(told)) is not None:
        try:
            if isinstance(message, Start):
                follower = Follower(message)
            elif follower is None:
                raise ValueError("something was told before the start")
            elif isinstance(message, Tick):
                follower.advance(message.now)
                report = Report(tick=message.number, now=message.now, events=follower.events, row=follower.row())
                reports.write(packed(report))
            else:
                follower.follow(*message)
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 # whatever a policy raises ends this shadow, and says why
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            place = f" ({where.tb_frame.f_code.co_filename}:{where.tb_lineno})" if where is not None else ""
            reports.write(packed(Gave(reason=f"{type(error).__name__}: {error}{place}")))
            return


if __name__ == "__main__":
    main(int(sys.argv[1]))
