"""ls, get, delete, and what acts on one function by hand: preload, offload, pin, unpin, hint."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from instainfer.cli.output import clock, facts, print_json, table
from instainfer.cli.session import Session, Usage, command, split_name
from instainfer.units import parse_seconds, say_mb, say_ms, say_s

Name = Annotated[str, typer.Argument(metavar="NAME", help="A function: NAME, or NAMESPACE/NAME.")]


@command("ls", example="instainfer ls --namespace default")
def ls(
    session: Session,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Only this one's.")
    ] = None,
) -> None:
    """List functions, how ready each is and what loading it takes."""
    found = session.client.functions(namespace)
    if session.json:
        print_json({"functions": found})
        return
    rows = []
    for function in found:
        profile = function.get("profile") or {}
        rows.append(
            [
                f"{function['namespace']}/{function['name']}",
                str(function["version"]),
                function.get("state", "") + (" (pinned)" if function.get("pinned") else ""),
                say_mb(function["memory_mb"]),
                say_mb(profile["loaded_mb"]) if profile else "-",
                say_ms(profile["import_ms"]) if profile else "-",
                say_ms(profile["load_ms"]) if profile else "-",
                say_ms(profile["warm_ms"]) if profile and profile["warm_ms"] else "-",
                clock(function["created"]),
            ]
        )
    numbers = ("VERSION", "LIMIT", "LOADED", "IMPORT", "LOAD", "CALL")
    table(
        ["FUNCTION", "VERSION", "STATE", "LIMIT", "LOADED", "IMPORT", "LOAD", "CALL", "CREATED"],
        rows,
        right=numbers,
        spare=("CREATED", "VERSION"),
    )
    if not found:
        typer.echo("no functions yet: `instainfer deploy PATH` deploys one", err=True)


@command("get", example="instainfer get magika")
def get(session: Session, name: Name) -> None:
    """Show one function's settings, profile and versions."""
    function = session.client.function(*split_name(name))
    if session.json:
        print_json(function)
        return
    facts(
        {
            "function": f"{function['namespace']}/{function['name']}",
            "state": function.get("state", "") + (" (pinned)" if function.get("pinned") else ""),
            "entry": f"{function.get('entry', '')} ({function.get('style', '')} style)",
            "limits": f"{say_mb(function['memory_mb'])}, {say_s(function.get('timeout_s', 0))}, "
            f"{function.get('concurrency', 1)} at a time",
            "python": str(function.get("python", "")),
            "requirements": ", ".join(function.get("requirements") or ()),
            "environment": str(function.get("environment", "")),
            "package": str(function.get("digest", "")),
        }
    )
    if function.get("profile"):
        typer.echo()
        print_profile(function["profile"])
    if versions := function.get("versions"):
        typer.echo()
        rows = [
            [str(v["version"]), "yes" if v.get("current") else "", clock(v["created"]), str(v["digest"])[:19]]
            for v in versions
        ]
        table(["VERSION", "CURRENT", "CREATED", "DIGEST"], rows, right=("VERSION",))


def print_profile(profile: dict[str, Any]) -> None:
    """What real loads and calls showed, and which ways to make a load short are taken."""
    times = [
        ("import", "import_ms"),
        ("load", "load_ms"),
        ("load, plain", "plain_load_ms"),
        ("warm-up", "warmup_ms"),
    ]
    times += [("first inference", "first_ms"), ("warm inference", "warm_ms")]
    times += [("fork, instead of import", "fork_ms"), ("clone, instead of all", "clone_ms")]
    rows = [[name, say_ms(profile[key])] for name, key in times if profile.get(key)]
    sizes = [("memory, imported", "imported_mb"), ("memory, loaded", "loaded_mb")]
    sizes += [("  of it its own, forked", "forked_mb"), ("  of it its own, cloned", "cloned_mb")]
    sizes += [("snapshot", "snapshot_mb")]
    rows += [[name, say_mb(profile[key])] for name, key in sizes if profile.get(key)]
    rows.append(["modules", str(profile.get("modules", 0))])
    rows.append(["threads after load", str(profile.get("tasks", 1))])
    table(["MEASURED", ""], rows, right=("",))
    if paths := profile.get("paths"):
        typer.echo()
        rows = [[name, "yes" if path["used"] else "no", path["reason"]] for name, path in paths.items()]
        table(["SHORT WAY", "TAKEN", "IF NOT, WHY"], rows)
    if profile.get("answer"):
        typer.echo(f"sample answer: {profile['answer']}")


def _say(session: Session, answer: dict[str, Any], otherwise: str) -> None:
    if session.json:
        print_json(answer)
    else:
        typer.echo(answer.get("message") or otherwise)


@command("delete", example="instainfer delete team/magika")
def delete(session: Session, name: Name) -> None:
    """Delete a function with all its versions.

    Running requests finish first.
    """
    _say(session, session.client.delete(*split_name(name)), f"{name} is deleted")


@command("preload", example="instainfer preload magika")
def preload(session: Session, name: Name) -> None:
    """Load a function now into idle memory.

    That is the idle memory of a warm container: this never creates one (`pin` does).
    """
    _say(session, session.client.preload(*split_name(name)), f"{name} is loaded")


@command("offload", example="instainfer offload magika")
def offload(session: Session, name: Name) -> None:
    """End a function's idle instances and get their memory back.

    The next request loads it again.
    """
    _say(session, session.client.offload(*split_name(name)), f"{name} is off-loaded")


@command("pin", example="instainfer pin magika")
def pin(session: Session, name: Name) -> None:
    """Keep a function loaded, whatever the forecast says.

    In a container of its own if need be.
    """
    _say(session, session.client.pin(*split_name(name)), f"{name} is pinned")


@command("unpin", example="instainfer unpin magika")
def unpin(session: Session, name: Name) -> None:
    """Leave a pinned function to the policies again."""
    _say(session, session.client.unpin(*split_name(name)), f"{name} is no longer pinned")


@command("hint", example="instainfer hint magika --in 30s --probability 0.8")
def hint(
    session: Session,
    name: Name,
    in_: Annotated[str, typer.Option("--in", metavar="TIME", help="From now: 30s, 5m, 2h.")],
    probability: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, max=1.0, help="How sure that it comes.")
    ] = 1.0,
) -> None:
    """Say that a request is coming.

    The forecast then expects it, so that the function is loaded by that time.
    """
    try:
        seconds = parse_seconds(in_)
    except ValueError as error:
        raise Usage(f"--in {error}") from None
    answer = session.client.hint(*split_name(name), seconds, probability)
    _say(session, answer, f"{name} is expected in {say_s(seconds)}")
