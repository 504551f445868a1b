"""why: what became of one invocation, and what would have made it faster."""

from __future__ import annotations

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
    _head(found)
    typer.echo()
    for line in phase_lines(found["activation"].get("phases") or {}, full=full_block()):
        typer.echo(f"  {line}")
    typer.echo()
    typer.echo(
        f"forecast   {found['predictor']}: one within a minute with probability {found['probability']:.2f} "
        f"({_rate(found['rate'])})"
    )
    if decisions := found.get("decisions"):
        typer.echo("decisions")
        for decision in decisions:
            ago_s = decision["ago_s"]
            ago = f"{say_s(ago_s)} before" if ago_s > 0 else f"{say_s(-ago_s)} after" if ago_s < 0 else "at once"
            typer.echo(f"  {ago:>14}  {decision['what']}")
            if decision.get("why"):
                typer.echo(f"  {'':>14}  because {decision['why']}")
    if advice := found.get("advice"):
        typer.echo("faster next time")
        for line in advice:
            typer.echo(f"  - {line}")
    if not found.get("reproduced", True):
        typer.echo(
            typer.style("note:", fg="yellow")
            + " replaying the recorded events did not give these decisions again; "
            "what they rest on may have been dropped from the event log"
        )


def _head(found: dict[str, Any]) -> None:
    activation = found["activation"]
    start = typer.style(found["start"], bold=True)
    typer.echo(
        f"{activation['namespace']}/{activation['function']} (version {activation['version']}) at "
        f"{clock(activation['wall'])}: {start} start, {activation['status']}, {say_ms(activation['e2e_ms'])}"
    )
    if activation.get("error"):
        typer.echo(f"{typer.style('error:', fg='red')} {activation['error']}")
    if activation.get("hint"):
        typer.echo(f"{typer.style('hint:', fg='cyan')} {activation['hint']}")


def _rate(per_second: float) -> str:
    """Arrivals in the largest unit that makes a readable number."""
    for unit, seconds in (("second", 1), ("minute", 60), ("hour", 3600)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f} per {unit}"
    return f"{per_second * 86400:.1f} per day"
