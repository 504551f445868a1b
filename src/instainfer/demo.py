"""The whole story on this machine: real models, cold, forked from a library zygote, pre-loaded by the platform's
own prediction, and warm.

A private server on a free port with a data directory of its own. A heartbeat function called every second keeps
one container warm; its idle memory is what the platform pre-loads the models into after their own containers
have scaled to zero. Nobody tells it to: it sees arrivals and decides.
"""

from __future__ import annotations

import contextlib
import json
import mimetypes
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instainfer.client import Answer, Client
from instainfer.errors import BadInput, InstaInferError, Unavailable
from instainfer.packing import pack
from instainfer.picture import draw
from instainfer.samples import example
from instainfer.settings import PLAIN

MODELS = ("magika", "ocr", "profanity")
KEEP_ALIVE_S = 4.0  # OpenWhisk keeps idle containers for ten minutes; nobody wants to watch that
WARM_CALLS = 5
START_S = 60.0
PRELOAD_S = 60.0

HEARTBEAT = """
def handler(event):
    return {"alive": True}
"""


def run(json_path: Path | None = None, picture_path: Path | None = None) -> None:
    """Print the story; write its rows to `json_path` ("-": standard output) and a picture of them (SVG) to
    `picture_path`. Raises InstaInferError when a step does not come about."""
    from rich.console import Console

    console = Console(stderr=str(json_path) == "-")
    for path in (json_path, picture_path):  # found out now, not after minutes
        if path is not None and str(path) != "-" and not os.access(path.absolute().parent, os.W_OK):
            raise BadInput(f"{path} cannot be written", hint="give a file in a folder that you may write to")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # nothing stays then either
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="instainfer-demo-") as directory:
        home = Path(directory)
        sandbox = "auto" if os.geteuid() == 0 else "process"
        if sandbox == "process":
            console.print(
                "not root: functions could not be kept apart inside a container, so --sandbox process is used"
            )
        with _server(home, sandbox) as client:
            status = client.status()
            console.print(f"a server of its own is up, sandbox [bold]{status['sandbox']}[/bold], {home}")
            _deploy_all(client, home, console)
            with _heartbeat(client):
                rows, reasons = _story(client, console)
            machine = {
                "cpus": os.cpu_count(),
                "system": f"{platform.system()} {platform.release()} {platform.machine()}",
                "python": platform.python_version(),
                "sandbox": status["sandbox"],
            }
    _table(rows, reasons, console)
    left = _left_behind(home)
    console.print(f"stopped after {time.monotonic() - began:.0f} s; left behind: {', '.join(left) or 'nothing'}")
    if picture_path is not None:
        title = "One call of a real model, as its caller sees it"
        where = f"{machine['cpus']} CPUs, {machine['system']}, {machine['sandbox']} sandbox"
        together = sorted(rows, key=lambda row: MODELS.index(row["function"]))
        picture_path.write_text(draw(together, title, f"One run of instainfer demo: {where}"))
    if json_path is not None:
        text = json.dumps({"version": 1, "command": "demo", "machine": machine, "rows": rows}, indent=2)
        if str(json_path) == "-":
            print(text)
        else:
            json_path.write_text(text + "\n")


# ---- the server ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(home: Path, sandbox: str) -> Iterator[Client]:
    log = home / "server.log"
    argv = [sys.executable, "-m", "instainfer.cli", "serve", "--port", "0", "--data-dir", str(home / "data")]
    argv += ["--memory", "3GB", "--sandbox", sandbox]
    argv += ["--keep-alive", "fixed", "--keep-alive-seconds", str(KEEP_ALIVE_S)]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=output, text=True, cwd=home)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://\S+", line):
                break
        else:
            raise Unavailable(f"the server did not start:\n{log.read_text()[-2000:]}")
        with Client(found.group(), api_key="") as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _left_behind(home: Path) -> list[str]:
    """Anything of this server that is still there: directories, processes, mounts."""
    left = [str(home)] if home.exists() else []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(home) in entry.read_bytes().decode(errors="replace"):
                left.append(f"process {entry.parent.name}")
    with contextlib.suppress(OSError):
        left += [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if str(home) in line]
    return left


# ---- the steps -----------------------------------------------------------------------------------------------


def _deploy_all(client: Client, home: Path, console: Any) -> None:
    """All at once, each with a line of progress."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    heart = home / "heartbeat"
    heart.mkdir()
    (heart / "main.py").write_text(HEARTBEAT)
    folders = {"heartbeat": heart} | {name: example(name) for name in MODELS}
    folders |= {_plain(name): example(name) for name in MODELS}
    failures: dict[str, InstaInferError] = {}
    columns = (SpinnerColumn(), TextColumn("{task.fields[name]:<15}"), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:

        def deploy(name: str, folder: Path) -> None:
            task = progress.add_task("packing", name=name, total=1)
            settings: dict[str, Any] = {"memory": "1GB"} if name == "heartbeat" else {}
            if name not in (*MODELS, "heartbeat"):
                settings = PLAIN
            try:
                for event in client.deploy("default", name, pack(folder), settings):
                    if event["event"] == "progress":
                        progress.update(task, description=f"{event['phase']}: {event['message']}"[:90])
                    else:
                        said = f"deployed: {_measured(event['profile'])}"
                        progress.update(task, description=said, completed=1)
            except InstaInferError as error:
                failures[name] = error
                progress.update(task, description=f"failed: {error.message}")

        threads = [threading.Thread(target=deploy, args=item) for item in folders.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name, error in failures.items():
        raise type(error)(f"{name}: {error.message}", hint=error.hint, detail=error.detail)


def _plain(name: str) -> str:
    return f"{name}-plain"


def _measured(profile: dict[str, Any]) -> str:
    loading = profile["import_ms"] + profile["load_ms"] + profile["warmup_ms"]
    warm = f", a warm call {profile['warm_ms']:.1f} ms" if profile["warm_ms"] else ""
    return f"loading takes {loading:.0f} ms{warm}, {profile['loaded_mb']:.0f} MB"


@contextlib.contextmanager
def _heartbeat(client: Client) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        with Client(client.where, api_key="") as own:
            while not stop.wait(1.0):
                with contextlib.suppress(InstaInferError):
                    own.invoke("default", "heartbeat", b"{}", "application/json")

    client.invoke("default", "heartbeat", b"{}", "application/json")
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _story(client: Client, console: Any) -> tuple[list[dict[str, Any]], dict[str, str]]:
    rows: list[dict[str, Any]] = []
    reasons: dict[str, str] = {}
    console.print("\nfirst calls, plainly: every process imports and loads for itself")
    for name in MODELS:
        rows.append(_call(client, name, console, expect="cold", deployed=_plain(name)))
        client.delete("default", _plain(name))
    console.print("\nfirst calls, forked from a process that has imported their libraries")
    for name in MODELS:
        _until_zygote(client, name, console)
        rows.append(_call(client, name, console, expect="forked"))
    console.print(
        f"\ntheir containers scale to zero after {KEEP_ALIVE_S:g} s; the platform decides what to pre-load"
    )
    for name in MODELS:
        _until_preloaded(client, name, console)
        row = _call(client, name, console, expect="preloaded")
        reasons[name] = _reason(client, row["activation"])
        rows.append(row)
        warm = [_call(client, name, None, expect="warm") for _ in range(WARM_CALLS)]
        median = sorted(warm, key=lambda one: one["e2e_ms"])[WARM_CALLS // 2]
        _say(median, console)
        rows.append(median)
    return rows, reasons


def _call(client: Client, name: str, console: Any, *, expect: str, deployed: str = "") -> dict[str, Any]:
    body, kind = _sample(name)
    started = time.perf_counter()
    answer: Answer = client.invoke("default", deployed or name, body, kind)
    e2e_ms = (time.perf_counter() - started) * 1e3
    row = {
        "function": name,
        "start": answer.start,
        "container_ms": answer.phases.get("container", 0.0) + answer.phases.get("extract", 0.0),
        **{f"{phase}_ms": answer.phases.get(phase, 0.0) for phase in ("import", "load", "warmup")},
        "inference_ms": answer.phases.get("inference", 0.0),
        "e2e_ms": e2e_ms,
        "answer": answer.body.decode("utf-8", "replace"),
        "activation": answer.activation,
    }
    if answer.start != expect:
        raise Unavailable(
            f"{name}: the call was {answer.start}, not {expect}",
            hint="other load on this machine may have come between; run it again",
        )
    if console is not None:
        _say(row, console)
    return row


def _say(row: dict[str, Any], console: Any) -> None:
    console.print(
        f"  {row['function']:<10} {row['start']:<10} {row['e2e_ms']:9.1f} ms   {row['answer'][:40]}",
        highlight=False,
    )


def _sample(name: str) -> tuple[bytes, str]:
    """One real input, with its content type."""
    (path,) = example(name).glob("sample.*")
    return path.read_bytes(), mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _until_zygote(client: Client, name: str, console: Any) -> None:
    deadline = time.monotonic() + PRELOAD_S
    with console.status(f"waiting for the libraries of {name}"):
        while time.monotonic() < deadline:
            zygotes = client.containers()["zygotes"]
            if any(z["state"] == "ready" and f"default/{name}" in z["functions"] for z in zygotes):
                return
            time.sleep(0.1)
    raise Unavailable(f"{name} has no zygote after {PRELOAD_S:g} s", hint="`instainfer get` tells why")


def _until_preloaded(client: Client, name: str, console: Any) -> None:
    deadline = time.monotonic() + PRELOAD_S
    with console.status(f"waiting for the platform to pre-load {name}"):
        while time.monotonic() < deadline:
            if client.function("default", name)["state"] == "preloaded":
                return
            time.sleep(0.1)
    raise Unavailable(
        f"{name} was not pre-loaded within {PRELOAD_S:g} s", hint="`instainfer ps` and `why` tell more"
    )


def _reason(client: Client, activation: str) -> str:
    """The decision that pre-loaded it, replayed from the log."""
    told = client.why(activation)
    loads = [decision for decision in told["decisions"] if decision["what"].startswith("pre-load")]
    if not loads:
        return ""
    last = loads[-1]
    sure = "replayed: same decision" if told["reproduced"] else "not reproduced"
    return f"{last['ago_s']:.1f} s before the call: {last['what']}: {last['why']} ({sure})"


# ---- the result ----------------------------------------------------------------------------------------------


def _table(rows: list[dict[str, Any]], reasons: dict[str, str], console: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title="milliseconds, as a client sees them", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in ("function", "start", "container", "import", "load", "warmup", "call", "total", "removed"):
        table.add_column(column, justify="left" if column in ("function", "start") else "right", no_wrap=True)
    shares: dict[str, list[float]] = {"forked": [], "preloaded": []}
    for name in MODELS:
        of = {row["start"]: row for row in rows if row["function"] == name}
        cold, warm = of["cold"]["e2e_ms"], of["warm"]["e2e_ms"]
        for start, removed in shares.items():
            removed.append(1 - (of[start]["e2e_ms"] - warm) / (cold - warm))
        for row in of.values():
            phases = [row[f"{phase}_ms"] for phase in ("container", "import", "load", "warmup", "inference")]
            times = [f"{ms:.1f}" if ms else "-" for ms in phases]
            shown = f"{shares[row['start']][-1]:.1%}" if row["start"] in shares else ""
            table.add_row(
                name, row["start"], *times, f"{row['e2e_ms']:.1f}", shown, end_section=row["start"] == "warm"
            )
    console.print()
    console.print(table)
    hit, miss = (statistics.median(shares[start]) for start in ("preloaded", "forked"))
    console.print(
        f"a pre-loaded call removes {hit:.1%} of the loading latency, one that nobody foresaw {miss:.1%}"
        f" (medians of {len(MODELS)} models; 100% is a warm call)"
    )
    console.print("\nwhy they were pre-loaded:")
    for name, reason in reasons.items():
        console.print(f"  {name}: {reason}", highlight=False)
