"""replay: a trace sent to a live server."""

from __future__ import annotations

import json as jsons
import mimetypes
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instainfer.cli.invoke import JSON
from instainfer.cli.options import CapPerMinute, MinCalls, Minutes, Seed, left_out, seconds
from instainfer.cli.output import is_terminal, print_json, table
from instainfer.cli.session import Session, Usage, command
from instainfer.errors import BadSettings
from instainfer.units import say_mb, say_ms, say_s

if TYPE_CHECKING:
    from instainfer.lab.counted import Counted
    from instainfer.lab.plan import Payload, Plan
    from instainfer.lab.sender import Counts

_NAMED = re.compile(r"([\w.-]+(?:/[\w.-]+)?)=(.*)", re.DOTALL)
_TELL_EVERY = 20  # half seconds, where nobody watches
_INTERRUPTED = 130


@command("replay", example="instainfer replay trace.csv --speed 10 --data magika=@sample.bin -o results")
def replay(
    session: Session,
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A file or a folder, as `simulate` reads them.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write results.json, calls.jsonl, runs/.")
    ] = None,
    speed: Annotated[float, typer.Option(metavar="X", help="Times as fast as the trace.")] = 1.0,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", "-d", metavar="[NAME=]JSON|@FILE", help="What to call with: one function, or all others."
        ),
    ] = None,
    map_file: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help='JSON: {"function of the trace": "function of the server"}.'),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Only this one's functions stand in.")
    ] = None,
    minutes: Minutes = None,
    cap_per_minute: CapPerMinute = None,
    min_calls: MinCalls = 1,
    seed: Seed = 0,
    warmup: Annotated[float, typer.Option(metavar="SHARE", help="Of the trace: sent, not counted.")] = 0.25,
    late: Annotated[
        str, typer.Option(metavar="TIME", help="A call that goes out so long after its time is late.")
    ] = "10ms",
    in_flight: Annotated[
        int, typer.Option(metavar="N", min=1, help="Calls under way at most; one beyond is counted, not sent.")
    ] = 256,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="For how long an answer is awaited.")] = "120s",
) -> None:
    """Send a trace to a live server.

    Open loop: each call goes out at its time, whatever became of those before it. ^C ends it with what there is.
    """
    from instainfer.lab import counted as counting
    from instainfer.lab import plan as planning
    from instainfer.lab import replay
    from instainfer.lab.sender import target

    settings = planning.Settings(
        url=session.client.where,
        namespace=namespace,
        speed=speed,
        minutes=minutes,
        cap_per_minute=cap_per_minute,
        min_calls=min_calls,
        seed=seed,
        warmup=warmup,
        late_s=seconds("--late", late),
        in_flight=in_flight,
        timeout_s=seconds("--timeout", timeout),
    )
    try:
        settings.check()
    except BadSettings as error:
        raise Usage(error.message, hint=error.hint) from None
    mapping = {} if map_file is None else _mapping(map_file)
    payloads = _payloads(data or [])
    server = planning.ask(session.client, namespace)
    plan = planning.plan(trace, settings, server.functions, mapping=mapping, payloads=payloads)
    _introduce(plan)
    key = session.api_key or os.environ.get("INSTAINFER_API_KEY", "")
    watch = _watch(plan)
    sent = replay.send(plan, target(session.client.where, key), watch)
    if is_terminal(sys.stderr):
        typer.echo("\r\033[K", nl=False, err=True)
    counted = counting.Counted(sent, server)
    document = counting.results(counted, server) if output is None else counting.write(output, counted, server)
    counting.check_answered(counted)
    if session.json:
        print_json(document)
    else:
        _show(counted)
    if sent.interrupted:
        raise typer.Exit(_INTERRUPTED)


def _mapping(file: Path) -> dict[str, str]:
    try:
        found = jsons.loads(file.read_bytes())
    except OSError as error:
        raise Usage(f"{file} cannot be read: {error.strerror}", hint="give the path of an existing file") from None
    except ValueError as error:
        raise Usage(
            f"{file} is not JSON: {error}", hint='write {"function of the trace": "function of the server", …}'
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise Usage(
            f"{file} maps no functions", hint='write {"function of the trace": "function of the server", …}'
        )
    return found


def _payloads(given: Sequence[str]) -> dict[str, Payload]:
    """By the name that each is given; "" for the one without."""
    found: dict[str, Payload] = {}
    for text in given:
        named = _NAMED.fullmatch(text)
        name, body = (named[1], named[2]) if named else ("", text)
        if name in found:
            raise Usage(f"--data is given twice for {name or 'all functions'}", hint="name each function once")
        found[name] = _payload(body)
    return found


def _payload(text: str) -> Payload:
    """JSON, or @FILE with the content type of its name."""
    from instainfer.lab.plan import Payload

    if text.startswith("@"):
        file = Path(text[1:])
        try:
            body = file.read_bytes()
        except OSError as error:
            raise Usage(
                f"{file} cannot be read: {error.strerror}", hint="give the path of an existing file"
            ) from None
        return Payload(body, mimetypes.guess_type(file.name)[0] or "application/octet-stream")
    try:
        jsons.loads(text)
    except ValueError:
        raise Usage(
            f"--data {text!r} is not JSON", hint="write JSON or @FILE, for one function NAME=JSON or NAME=@FILE"
        ) from None
    return Payload(text.encode(), JSON)


def _introduce(plan: Plan) -> None:
    """What is going to be sent, and what should be known of it."""
    trace, speed, report = plan.trace, plan.settings.speed, plan.trace.report
    count = len(plan.stands)
    typer.echo(
        f"{len(trace)} calls of {len(plan.sources)} functions to {count} of {plan.settings.url}, "
        f"in {say_s(plan.length_s)}",
        err=True,
    )
    if report.malformed:
        typer.echo(left_out(report), err=True)
    if speed > 1:
        typer.echo(
            f"at {speed:g} times the trace's speed idle times are shorter and loads are not: more of them is "
            "waited for than would be at speed 1",
            err=True,
        )


def _watch(plan: Plan) -> Callable[[float, Counts, int], None]:
    """Progress on stderr: one line that changes, or one now and then where nobody watches."""
    live, total = is_terminal(sys.stderr), len(plan.trace)
    told = 0

    def watch(elapsed: float, counts: Counts, in_flight: int) -> None:
        nonlocal told
        told += 1
        if not live and told % _TELL_EVERY:
            return
        answered = counts.sent - in_flight - counts.errors
        ready = f"{counts.ready / answered:.0%} ready" if answered > 0 else "none answered yet"
        more = f", {counts.unsent} not sent" if counts.unsent else ""
        line = (
            f"{say_s(elapsed)} of {say_s(plan.length_s)}: {counts.sent}/{total} sent, {counts.late} late, "
            f"{in_flight} in flight, {counts.errors} errors{more}, {ready}"
        )
        typer.echo(f"\r{line}\033[K" if live else line, nl=not live, err=True)

    return watch


def _show(counted: Counted) -> None:
    row = counted.row
    headers = ["POLICY", "TRACE", "SPEED", "MEMORY", "CALLS", "SAVED", "PRELOADED", "WARM", "COLD", "WAIT", "P99"]
    more = {"LATE": f"{row['late_fraction']:.1%}"}
    for header, key in (("REFUSED", "rejected"), ("ERRORS", "errors"), ("NOT SENT", "unsent")):
        if row[key]:
            more[header] = str(row[key])
    cells = [
        row["policy"],
        row["trace"],
        f"{row['speed']:g}",
        say_mb(row["budget_mb"]),
        str(row["invocations"]),
        f"{row['saved_fraction']:.1%}",
        f"{row['preloaded_fraction']:.1%}",
        f"{row['warm_fraction']:.1%}",
        f"{row['cold_fraction']:.1%}",
        say_ms(row["warming_loading_mean_ms"]),
        say_ms(row["e2e_p99_ms"]),
    ]
    table([*headers, *more], [[*cells, *more.values()]], right=[*headers[2:], *more])
    for reason, count in counted.reasons.most_common(3):
        typer.echo(f"{count} of them: {reason}", err=True)
