"""When a long-running process looks for garbage in cycles: seldom, and not among what lives for good.

At Python's usual pace a look comes with every 700 objects more, and now and then it is one at all that there is:
of a large server tens of milliseconds, in the middle of a decision that takes five. What decisions make is
short-lived and free of cycles, so that counting references frees it at once.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

#: Objects that came and did not go again until the young are looked at: more than one decision makes, and few
#: enough that what hangs on to a request's body does not live on for thousands of requests. Then how many of such
#: looks until those that survived are looked at as well.
_PACE = (20_000, 20, 50)


def settle() -> None:
    """Free what is garbage now; what is left is not looked at before this is called again. It stops this process
    for as long as a look at everything takes: for when nobody waits."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_PACE)


@contextmanager
def settled() -> Iterator[None]:
    """For as long as something goes on that is like a server, then as before."""
    before = gc.get_threshold()
    settle()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
