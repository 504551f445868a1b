"""A cluster on one machine, for trying: Ray nodes on loopback addresses, an agent on each, a server that Ray keeps
running, and a gateway in front.

Ray is started by its own command and ended by the process id that this gave: `ray stop` would end every Ray on the
machine, and a bare `ray.init()` would join whichever was started last.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped] # it ships no types

from instainfer import outliving
from instainfer.cluster import keeping
from instainfer.errors import BadSettings, Conflict, Unavailable
from instainfer.units import parse_bytes

FIRST = 11  # 127.0.0.11: Ray takes 127.0.0.1 for the address of some interface
NODES_S, SERVER_S, END_S = 60.0, 120.0, 30.0
#: A raylet that is gone is known to be so within two or three seconds, not twelve.
TUNED = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_memory_monitor_refresh_ms": "0",  # it would end agents where containers fill the memory
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
STATE = "trial.json"


def environment(data: Path) -> dict[str, str]:
    """Of all that belongs to it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "INSTAINFER_"))}
    return {**kept, **TUNED, "RAY_AUTH_TOKEN_PATH": str(data / "ray.token")}


def up(data: Path, *, nodes: int, memory: str, port: int, sandbox: str) -> dict[str, Any]:
    """Start it. Raises BadSettings, Conflict where it is up, Unavailable; then nothing is left of it."""
    try:
        warm = parse_bytes(memory) // 1_000_000
    except ValueError as error:
        raise BadSettings(f"--memory {memory!r}", hint=str(error)) from None
    if importlib.util.find_spec("ray") is None:
        raise BadSettings("Ray is not installed here", hint="pip install 'instainfer[ray]'")
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _alive(data):
        raise Conflict(f"the cluster in {data} is up", hint="`instainfer cluster down` first")
    token = data / "ray.token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_urlsafe(36))
    state: dict[str, Any] = {"pids": []}
    try:
        gcs = _free_port(f"127.0.0.{FIRST}")
        for number in range(nodes):
            _ray_node(data, state, f"127.0.0.{FIRST + number}", gcs, warm, head=number == 0)
        server = _server(data, state, f"127.0.0.{FIRST}:{gcs}", sandbox)
        state["url"] = _gateway(data, state, server["url"], port)
    except BaseException:
        down(data)
        raise
    _save(data, state)
    return {
        "url": state["url"],
        "server": server["url"],
        "gcs": f"127.0.0.{FIRST}:{gcs}",
        "data_dir": str(data / "server"),
        "ray_dir": state["tmp"],
        "nodes": nodes,
    }


def down(data: Path) -> int:
    """End it, however far it came: the gateway, Ray, which would start the rest again, the server, the agents and
    all that they run. How many processes."""
    state = _load(data)
    pids = [_process(entry) for entry in reversed(state.get("pids", []))]
    ended = sum(_end(one) for one in pids if one is not None)
    ended += outliving.stop(data / "server")
    for agent in sorted((data / "server" / "agents").glob("*")):
        ended += outliving.stop(agent)
    (data / STATE).unlink(missing_ok=True)
    if "tmp" in state:
        shutil.rmtree(state["tmp"], ignore_errors=True)
    return ended


def _ray_node(data: Path, state: dict[str, Any], ip: str, gcs: int, warm: int, *, head: bool) -> None:
    if head:  # a short path: there are sockets in it, whose names have 107 bytes
        state["tmp"] = tempfile.mkdtemp(prefix="instainfer-", dir="/tmp")
    where = ["--head", f"--port={gcs}", "--include-dashboard=false", f"--temp-dir={state['tmp']}"]
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={ip}"),
        *(where if head else [f"--address=127.0.0.{FIRST}:{gcs}"]),
        *("--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"),
        *("--min-worker-port=0", "--max-worker-port=0", "--include-log-monitor=false"),
        f"--resources={json.dumps({'warm_mb': warm})}",
    ]
    log = data / f"ray-{ip}.log"
    started = _start(data, state, command, log)
    _until(
        lambda: "Ray runtime started" in log.read_text(errors="replace"), started, log, NODES_S, f"Ray node {ip}"
    )


def _server(data: Path, state: dict[str, Any], address: str, sandbox: str) -> dict[str, Any]:
    """It is Ray's to keep, on a port that the gateway knows."""
    _save(data, state)
    line = ["--host", "127.0.0.1", "--port", str(_free_port("127.0.0.1")), "--sandbox", sandbox]
    return keeping.keep(address, data / "server", line, environment(data))


def _gateway(data: Path, state: dict[str, Any], server: str, port: int) -> str:
    command = [*(sys.executable, "-m", "instainfer.cli", "gateway", "--server", server, "--port", str(port))]
    log = data / "gateway.log"
    log.write_text("")
    started = _start(data, state, command, log)
    said = "instainfer gateway at "
    _until(lambda: said in log.read_text(errors="replace"), started, log, SERVER_S, "the gateway")
    return log.read_text(errors="replace").partition(said)[2].partition("\n")[0]


def _start(data: Path, state: dict[str, Any], command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(data),
            cwd=data,
            start_new_session=True,
        )
    state["pids"].append([started.pid, psutil.Process(started.pid).create_time()])
    _save(data, state)
    return started


def _until(holds: Any, started: subprocess.Popen[bytes], log: Path, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if started.poll() is not None or time.monotonic() > until:
            said = log.read_text(errors="replace").strip()[-500:]
            raise Unavailable(f"{what} did not start: {said}", hint=f"see {log}")
        time.sleep(0.05)


def _process(entry: list[Any]) -> Any:
    """The process of this number that began then, if it is still that one."""
    with suppress(psutil.Error):
        found = psutil.Process(int(entry[0]))
        if abs(found.create_time() - entry[1]) < 1.0 and found.status() != psutil.STATUS_ZOMBIE:
            return found
    return None


def _end(one: Any) -> int:
    """It and all that it started: `ray start` waits long for its own."""
    family = [one]
    with suppress(psutil.Error):
        family += one.children(recursive=True)
    ray = "ray.scripts.scripts" in _line(one)
    for each in family if ray else [one]:
        with suppress(psutil.Error):
            each.terminate()
    _, left = psutil.wait_procs(family, 3.0 if ray else END_S)
    for each in left:
        with suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(left, END_S)
    return 1


def _line(one: Any) -> list[str]:
    with suppress(psutil.Error):
        found: list[str] = one.cmdline()
        return found
    return []


def _alive(data: Path) -> bool:
    return any(_process(entry) is not None for entry in _load(data).get("pids", []))


def _load(data: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((data / STATE).read_text())
        return found
    return {}


def _save(data: Path, state: dict[str, Any]) -> None:
    (data / STATE).write_text(json.dumps(state))


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
