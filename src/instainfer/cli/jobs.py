"""jobs: what was sent with `invoke --async`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from instainfer.cli.invoke import say
from instainfer.cli.output import clock, facts, print_json, table
from instainfer.cli.session import Session, command
from instainfer.model import JobState


@command("jobs", example="instainfer jobs --state dead")
def jobs(
    session: Session,
    job: Annotated[str, typer.Argument(metavar="[ID]", help="One job: its answer, if it is over.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until it is over.")] = False,
    result: Annotated[bool, typer.Option("--result", help="Print only the answer's bytes, as they are.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="A dead one gets its attempts again.")] = False,
    state: Annotated[JobState | None, typer.Option(help="Only these.")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Only this one's.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=2000, help="How many.")] = 50,
) -> None:
    """Show requests that are answered later, or the answer of one."""
    if not job:
        _list(session, session.client.jobs(namespace=namespace, state=state and state.value, limit=limit))
        return
    if retry:
        _show(session, session.client.retry(job))
        return
    answer = session.client.result(job, None if wait else 0.0)
    if answer is None:
        _show(session, session.client.job(job))
    else:
        say(session, answer, result=result)


def _list(session: Session, found: list[dict[str, Any]]) -> None:
    if session.json:
        print_json({"jobs": found})
        return
    rows = [
        [
            one["id"],
            f"{one['namespace']}/{one['function']}",
            one["state"],
            str(len(one["attempts"])),
            clock(one["created"]),
            one["error"],
        ]
        for one in found
    ]
    table(["JOB", "FUNCTION", "STATE", "ATTEMPTS", "CREATED", "ERROR"], rows, right=("ATTEMPTS",))


def _show(session: Session, found: dict[str, Any]) -> None:
    if session.json:
        print_json(found)
        return
    attempts = ", ".join(f"{clock(one['began'])} {one['status']}" for one in found["attempts"])
    facts(
        {
            "job": found["id"],
            "function": f"{found['namespace']}/{found['function']}",
            "state": found["state"],
            "created": clock(found["created"]),
            "next attempt": clock(found["due"]) if found["due"] else "",
            "attempts": attempts,
            "error": found["error"],
        }
    )
