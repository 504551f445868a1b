"""why: what became of one invocation, and what would have made it faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from instainfer.cli.output import clock, full_block, phase_lines, print_json
from instainfer.cli.session import Session, command
from instainfer.units import say_ms, say_s


@command("why", example="instainfer why 4c1d…  (the id is in `instainfer activations`)")
def why(
    session: Session,
    activation: Annotated[str, typer.Argument(metavar="ACTIVATION", help="The id of an invocation.")],
) -> None:
    """Tell why an invocation was as fast or slow as it was.

    Shows its start kind, its phases, what the predictor said, which decisions led there, and what would have
    made it faster.
    """
    found = session.client.why(activation)
    if session.json:
        print_json(found)
        return
    for line in lines(found, full=full_block(), paint=typer.style):
        typer.echo(line)


def lines(found: dict[str, Any], *, full: str, paint: Callable[..., str]) -> Iterator[str]:
    """What the server answers, for people. `full`: the character of a bar; `paint(text, fg=…, bold=…)`."""
    yield from _head(found, paint)
    yield ""
    for line in phase_lines(found["activation"].get("phases") or {}, full=full):
        yield f"  {line}"
    yield ""
    yield (
        f"forecast   {found['predictor']}: one within a minute with probability {found['probability']:.2f} "
        f"({_rate(found['rate'])})"
    )
    if decisions := found.get("decisions"):
        yield "decisions"
        for decision in decisions:
            ago_s = decision["ago_s"]
            ago = f"{say_s(ago_s)} before" if ago_s > 0 else f"{say_s(-ago_s)} after" if ago_s < 0 else "at once"
            yield f"  {ago:>14}  {decision['what']}"
            if decision.get("why"):
                yield f"  {'':>14}  because {decision['why']}"
    if advice := found.get("advice"):
        yield "faster next time"
        for line in advice:
            yield f"  - {line}"
    if not found.get("reproduced", True):
        yield (
            paint("note:", fg="yellow") + " replaying the recorded events did not give these decisions again; "
            "what they rest on may have been dropped from the event log"
        )


def _head(found: dict[str, Any], paint: Callable[..., str]) -> Iterator[str]:
    activation = found["activation"]
    start = paint(found["start"], bold=True)
    yield (
        f"{activation['namespace']}/{activation['function']} (version {activation['version']}) at "
        f"{clock(activation['wall'])}: {start} start, {activation['status']}, {say_ms(activation['e2e_ms'])}"
    )
    if activation.get("error"):
        yield f"{paint('error:', fg='red')} {activation['error']}"
    if activation.get("hint"):
        yield f"{paint('hint:', fg='cyan')} {activation['hint']}"


def _rate(per_second: float) -> str:
    """Arrivals in the largest unit that makes a readable number."""
    for unit, seconds in (("second", 1), ("minute", 60), ("hour", 3600)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f} per {unit}"
    return f"{per_second * 86400:.1f} per day"
