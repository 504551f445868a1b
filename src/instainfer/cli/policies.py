"""policies: the policy in force beside those that only look on."""

from __future__ import annotations

from typing import Any

import typer

from instainfer.cli.output import clock, print_json, table
from instainfer.cli.session import Session, command
from instainfer.units import say_ms, say_s


@command("policies", example="instainfer policies  (of a server started with --shadow tyche,gdsf)")
def policies(session: Session) -> None:
    """Show what other policies would have done.

    The policy in force with what was measured, then each of the server's shadows in a simulated world: same
    arrivals, same functions, same memory. They count from the server's start.
    """
    found = session.client.policies()
    if session.json:
        print_json(found)
        return
    rows = found["policies"]
    if not rows:
        typer.echo("no policy looks on: start the server with `instainfer serve --shadow tyche,gdsf`")
        return
    live = rows[0]
    age = say_s(live["until"] - found["since"])
    typer.echo(f"since {clock(found['since'])} ({age}); keep-alive of all: {live['keep_alive']}")
    headers = ["POLICY", "PREDICTOR", "IS", "CALLS", "PRELOADED", "WARM", "COLD", "WAIT", "SAVED", "WASTED"]
    table(headers, [_cells(row) for row in rows], right=headers[3:])
    for row in rows:
        if row["reason"]:
            said = f"{row['mode']} looked on until {clock(row['until'])}: {row['reason']}"
            typer.echo(typer.style("note:", fg="yellow") + f" {said}")
        elif row["behind_s"] > 5.0:
            said = f"{row['mode']} is {say_s(row['behind_s'])} behind"
            typer.echo(typer.style("note:", fg="yellow") + f" {said}")


def _cells(row: dict[str, Any]) -> list[str]:
    named = [row["mode"], row["predictor"], row["state"]]
    if row["invocations"] is None:  # it has not told anything yet
        return [*named, *["-"] * 7]
    return [
        *named,
        str(row["invocations"]),
        f"{row['preloaded_fraction']:.1%}",
        f"{row['warm_fraction']:.1%}",
        f"{row['cold_fraction']:.1%}",
        say_ms(row["warming_loading_mean_ms"]),
        say_s(max(0.0, row["saved_s"])),
        f"{row['wasted_gb_s']:.2f} GB·s",
    ]
