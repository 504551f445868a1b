"""The driver of a Ray cluster: a process of its own, the only place where Ray is imported. A driver dies with its
raylet, and its threads would share the server's interpreter: neither may happen to whoever answers requests.

It says what Ray's node table says, and gets agents started on hosts by a stub there: a detached actor, pinned to
its host by the resource `node:IP` that Ray gives every node. (Pinned by node id it would die for good when its
raylet is started again, with a new one.) Lines of JSON, over an inherited socket:

    up    {"nodes": [{"node", "cpus", "memory", "warm"}]}            whenever it has looked
    down  {"id", "node", "data", "key", "environ"}                   have an agent there
    up    {"id", "node", "url"} or {"id", "error"}
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray

LOOK_S = 0.5
START_S = 90.0
REACH_S = 5.0
LABEL = "instainfer/host"  # of a Ray node: its name here, instead of its address
WARM = "warm_mb"


class Stub:
    """Of one host. It holds nothing: what it started belongs to nobody, and it finds it again."""

    def ensure(self, node: str, ip: str, data: str, key: str, environ: dict[str, str]) -> str:
        """The URL of the agent there."""
        directory = Path(data)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = directory / "key"
        with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(key)
        listen = f"[{ip}]:0" if ":" in ip else f"{ip}:0"
        command = [
            *(sys.executable, "-m", "instainfer.cli", "agent", "--detach", "--json", "--data-dir", data),
            *("--node", node, "--listen", listen, "--key-file", str(secret)),
        ]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
            env={**kept, **environ},
        )
        if done.returncode != 0:
            raise RuntimeError((done.stderr or done.stdout).strip()[-500:])
        return str(json.loads(done.stdout)["url"])


class Driver:
    def __init__(self, line: socket.socket) -> None:
        self._file = line.makefile("rwb")
        self._lock = threading.Lock()
        self._ips: dict[str, str] = {}

    def run(self, address: str) -> None:
        """Until the other end is closed."""
        host = address.rpartition(":")[0]
        if address:  # Ray itself would go on trying for a minute
            socket.create_connection((host.strip("[]"), int(address.rpartition(":")[2])), REACH_S).close()
        beside: dict[str, Any] = {"_node_ip_address": host} if host.startswith("127.") else {}
        ray.init(
            address=address or "auto", namespace="instainfer", log_to_driver=False, logging_level="error", **beside
        )
        threading.Thread(target=self._serve, daemon=True).start()
        while True:
            self.say({"nodes": self._look()})
            time.sleep(LOOK_S)

    def say(self, what: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(what).encode() + b"\n")
            self._file.flush()

    def _look(self) -> list[dict[str, Any]]:
        found = {}
        for entry in ray.nodes():
            if not entry["Alive"]:
                continue
            resources, ip = entry["Resources"], entry["NodeManagerAddress"]
            node = entry.get("Labels", {}).get(LABEL) or ip
            self._ips[node] = ip
            found[node] = {
                "node": node,
                "cpus": resources.get("CPU", 0.0),
                "memory": int(resources.get("memory", 0)),
                "warm": int(resources.get(WARM, 0) * 1e6),
            }
        return [found[node] for node in sorted(found)]

    def _serve(self) -> None:
        for line in self._file:
            threading.Thread(target=self._ensure, args=(json.loads(line),), daemon=True).start()
        os._exit(0)

    def _ensure(self, asked: dict[str, Any]) -> None:
        node = asked["node"]
        try:
            ip = self._ips[node]
            stub = (
                ray.remote(Stub)
                .options(
                    name=f"agent-{node}",
                    lifetime="detached",
                    get_if_exists=True,
                    max_restarts=-1,
                    max_task_retries=3,
                    num_cpus=0,
                    resources={f"node:{ip}": 0.001},
                )
                .remote()
            )
            call = stub.ensure.remote(node, ip, asked["data"], asked["key"], asked["environ"])
            said = {"id": asked["id"], "node": node, "url": ray.get(call, timeout=START_S)}
        except Exception as error:  # noqa: BLE001 # whatever Ray or the host says goes to whoever asked
            said = {"id": asked["id"], "error": f"{type(error).__name__}: {error}".strip()[-800:]}
        self.say(said)


def main() -> None:
    """`python -m instainfer.cluster FD ADDRESS`; an empty address is that of the cluster that this host is in."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        Driver(socket.socket(fileno=int(sys.argv[1]))).run(sys.argv[2])
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # whoever asked is gone
    except (OSError, RuntimeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
