"""A trace sent to a live server: every call at its time, whatever became of the ones before; and a look now and
then at what the server holds meanwhile.
"""

from __future__ import annotations

import asyncio
import signal
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from instainfer import garbage
from instainfer.client import PREFIX
from instainfer.lab.plan import Plan
from instainfer.lab.sender import Call, Counts, Sender, Target
from instainfer.units import MB

LOOK_S = 2.0  # between two looks at the server's containers: what memory they have


@dataclass(kw_only=True)
class Sent:
    """What was sent, and what came back. Seconds since `began` (wall time)."""

    plan: Plan
    calls: list[Call]
    counts: Counts
    began: float
    interrupted: bool
    looks: list[tuple[float, int, int]] = field(default_factory=list)  # when, bytes of containers, of zygotes
    wasted_byte_s: float = 0.0  # since calls count


def send(plan: Plan, target: Target, progress: Callable[[float, Counts, int], None] | None = None) -> Sent:
    """All of it, to the end; ^C ends it with what there is. `progress` gets seconds, counts and how many calls are
    in flight, twice a second. Raises nothing: a call that fails is a call that failed."""
    import uvloop

    with garbage.settled():  # a look through everything that is loaded here would be a late call
        return uvloop.run(_send(plan, target, progress))


async def _send(plan: Plan, target: Target, progress: Callable[[float, Counts, int], None] | None) -> Sent:
    settings = plan.settings
    requests = [target.request("POST", f"/f/{one.key}", *one.payload) for one in plan.stands]
    due_s = array("d", plan.trace.times / settings.speed)
    sender = Sender(
        target,
        due_s,
        array("i", plan.trace.functions),
        requests,
        in_flight=settings.in_flight,
        timeout_s=settings.timeout_s,
        late_s=settings.late_s,
    )
    sent = Sent(plan=plan, calls=sender.calls, counts=sender.counts, began=0.0, interrupted=False)
    with _interruptible(sender):
        work = asyncio.ensure_future(sender.run())
        others = [asyncio.ensure_future(_look(sender, sent))]
        if progress is not None:
            others.append(asyncio.ensure_future(_tell(sender, progress)))
        try:
            await work
        finally:
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)
    sent.began, sent.interrupted = sender.began, sender.interrupted
    return sent


@contextmanager
def _interruptible(sender: Sender) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, sender.interrupt)
    except (ValueError, RuntimeError):  # not the main thread, whose signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _tell(sender: Sender, progress: Callable[[float, Counts, int], None]) -> None:
    while True:
        await asyncio.sleep(0.5)
        progress(sender.elapsed, sender.counts, sender.in_flight)


async def _look(sender: Sender, sent: Sent) -> None:
    """What the server's containers hold now and then, and what its pre-loads wasted meanwhile."""
    namespace = sent.plan.settings.namespace
    before: float | None = None
    await asyncio.sleep(0)  # it has begun
    while True:
        with suppress(OSError, msgspec.DecodeError):
            shown = msgspec.json.decode(await sender.get(f"{PREFIX}/containers"), type=_Containers)
            held = [one.limit_mb for one in shown.containers if namespace in (None, one.namespace)]
            forked = [one.bytes_mb for one in shown.zygotes if namespace in (None, one.namespace)]
            sent.looks.append((sender.elapsed, round(sum(held) * MB), round(sum(forked) * MB)))
        with suppress(OSError, ValueError):
            wasted = await _wasted(sender)
            if before is None and sender.elapsed >= sent.plan.since:
                before = wasted
            sent.wasted_byte_s = wasted - before if before is not None else 0.0
        await asyncio.sleep(LOOK_S)


class _Container(msgspec.Struct):
    namespace: str
    limit_mb: float


class _Zygote(msgspec.Struct):
    namespace: str
    bytes_mb: float


class _Containers(msgspec.Struct):
    containers: list[_Container]
    zygotes: list[_Zygote] = []


async def _wasted(sender: Sender) -> float:
    """Raises OSError, and ValueError where the metric is not there."""
    return metric((await sender.get("/metrics")).decode(), "instainfer_wasted_byte_seconds_total")


def metric(text: str, name: str) -> float:
    """The value of one without labels, in Prometheus's text. Raises ValueError where it is not there."""
    for line in text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise ValueError(f"no {name}")
