"""The driver of a Ray cluster: a process of its own, the only place where Ray is imported. A driver dies with its
raylet, and its threads would share the server's interpreter: neither may happen to whoever answers requests.

It says what Ray's node table says, and gets agents started on hosts by a stub there: a detached actor, pinned to
its host by the resource `node:IP` that Ray gives every node. (Pinned by node id it would die for good when its
raylet is started again, with a new one.) Lines of JSON, over an inherited socket:

    up    {"nodes": [{"node", "cpus", "memory", "warm", "most"}]}    whenever it has looked
    down  {"id", "node", "reserve"}                                  have its memory held for us, or not
    down  {"id", "node", "data", "key", "environ"}                   have an agent there
    up    {"id", "node", "url"} or {"id", "error"}
    down  {"id", "keep": {"data", "arguments", "environ"}}           have one server running from now on
    up    {"id", "about": {"node", "pid", "url"}} or {"id", "error"}
    down  {"id", "release": true}                                    … no longer: it ends
    up    {"id", "released": whether there was one} or {"id", "error"}

Memory is dealt in by the resource `warm_mb` that hosts advertise. What we use of it a placement group holds, which
belongs to the host's stub: other work on the cluster that asks for `warm_mb` has the rest, and we have what that
leaves. It goes with its host, and Ray makes it again when that is back. What others have left since then (`grow`
seconds ago) further groups hold: Ray resizes none, and one that is made anew may have lost its place.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped] # it ships no types
import ray
from ray._private.state import available_resources_per_node  # a developer API: nothing public tells nodes apart

from instainfer import lock, outliving
from instainfer.agent import process

MB = 1_000_000
LOOK_S = 0.5
RESERVE_S = 10.0
LEFT_S = 15.0  # before what a host has left is asked for
LEAST_MB, LEAST_SHARE = 64, 0.05  # of what a host advertises: less than the larger of both is not worth a group
NOTHING = 1  # byte: 0 says that the cluster does not deal in memory
START_S = 90.0
REACH_S = 5.0
SERVER_S, END_S = 120.0, 60.0
AGAIN_S = 1.0  # before a server that did not start is started again
KEEPER = "controller"
LABEL = "instainfer/host"  # of a Ray node: its name here, instead of its address
APART = "INSTAINFER_AGENT_APART"  # in the environment of a raylet: stubs start no agent there
WARM = "warm_mb"
#: Of a Ray node, such as the head's: there is no agent. A resource, since every way to start Ray hands those on.
NONE = "no_containers"


class Stub:
    """Of one host. Of processes it holds none: what it started belongs to nobody, and it finds it again. What it
    reserves is its own, and found again by its name."""

    def reserve(self, node: str, ip: str, mb: int) -> int:
        """Have so much of the host's `warm_mb` held, if it is there to be had; else none. 0 gives back what is
        held. Returns what is."""
        there = groups_of(node, ray.util.placement_group_table().values())
        if mb and standing(there) == mb:
            return mb
        for one in there:
            with contextlib.suppress(ValueError):  # raised where it is gone
                _remove(ray.util.get_placement_group(one["name"]))
        return self._hold(group_name(node), ip, mb) if mb else 0

    def grow(self, node: str, ip: str, mb: int) -> int:
        """Have so much more held, if it is there to be had. Returns what is held in all."""
        there = groups_of(node, ray.util.placement_group_table().values())
        taken = {one["name"] for one in there}
        name = next(name for n in itertools.count(1) if (name := f"{group_name(node)}#{n}") not in taken)
        return standing(there) + self._hold(name, ip, mb)

    def _hold(self, name: str, ip: str, mb: int) -> int:
        group = ray.util.placement_group([{WARM: mb, f"node:{ip}": 0.001}], strategy="STRICT_PACK", name=name)
        if group.wait(RESERVE_S):
            return mb
        ray.util.remove_placement_group(group)
        return 0

    def ensure(self, node: str, ip: str, data: str, key: str, environ: dict[str, str]) -> str:
        """The URL of the agent there. Where somebody else starts it (`APART`), it is only looked for: in a pod it
        has a container and privileges of its own, and ours would keep it from its data directory."""
        directory = Path(data)
        if os.environ.get(APART):
            if (found := process.find(directory)) is None:
                raise RuntimeError(f"no agent has started in {directory} yet")
            return found.url
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


class Keeper:
    """Has one server running, on its host: finds the one that is there, or starts it, and starts another one when
    that has ended. A detached actor: when its own process ends, Ray starts it again, elsewhere if its host is
    gone. It holds nothing: the server belongs to nobody, and of two the database's lease decides."""

    def __init__(self, data: str, arguments: list[str], environ: dict[str, str]) -> None:
        address = ray.get_runtime_context().gcs_address
        node = ray.util.get_node_ip_address()
        self._data = Path(data)
        self._command = [
            *(sys.executable, "-m", "instainfer.cli", "serve", "--detach", "--json", "--data-dir", data),
            *("--cluster", f"ray://{address}", *([] if "--host" in arguments else ["--host", node]), *arguments),
        ]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._environ = {**kept, **environ}
        self._node = node
        self._about: dict[str, Any] = {}
        self._problem = ""
        self._news = threading.Condition()
        self._over = False
        threading.Thread(target=self._keep, daemon=True).start()

    def about(self, seconds: float) -> dict[str, Any]:
        """Of the server that serves. Raises RuntimeError where none does in time, or none can be started."""
        with self._news:
            self._news.wait_for(lambda: self._about or self._problem, seconds)
            if not self._about:
                raise RuntimeError(self._problem or "no server is up yet")
            return {"node": self._node, **self._about}

    def end(self) -> None:
        self._over = True
        outliving.stop(self._data, END_S)

    def _keep(self) -> None:
        while not self._over:
            if self._about and (lock.taken(self._data) or self._alive()):
                time.sleep(LOOK_S)
                continue
            done = subprocess.run(
                self._command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                env=self._environ,
            )
            with self._news:
                failed = done.returncode != 0
                self._about = {} if failed else json.loads(done.stdout)
                self._began = 0.0 if failed else _began(self._about["pid"])
                self._problem = (done.stderr or done.stdout).strip()[-500:] if failed else ""
                self._news.notify_all()
            if failed:
                time.sleep(AGAIN_S)

    def _alive(self) -> bool:
        """One that begins anew (anew.py) lets go of its lock meanwhile."""
        began = _began(self._about["pid"])
        return began != 0.0 and began == self._began


def _began(pid: int) -> float:
    """0: it has ended."""
    try:
        server = psutil.Process(pid)
        return 0.0 if server.status() == psutil.STATUS_ZOMBIE else float(server.create_time())
    except psutil.Error:
        return 0.0


def hosts(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of Ray's node table on which containers may be."""
    found = {}
    for entry in table:
        labels = entry.get("Labels", {})
        resources, ip = entry["Resources"], entry["NodeManagerAddress"]
        if not entry["Alive"] or resources.get(NONE):
            continue
        node = labels.get(LABEL) or ip
        found[node] = {
            "node": node,
            "ip": ip,
            "cpus": resources.get("CPU", 0.0),
            "memory": int(resources.get("memory", 0)),
            "warm": int(resources.get(WARM, 0) * 1e6),
        }
    return [found[node] for node in sorted(found)]


def lives(node: str, table: list[dict[str, Any]]) -> bool:
    """Does Ray's node table have it? A driver whose raylet has died still hears of others, but its job is over."""
    return any(entry["NodeID"] == node and entry["Alive"] for entry in table)


def group_name(node: str) -> str:
    return f"warm-{node}"


def groups_of(node: str, groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of Ray's table that hold memory of this host, or are to."""
    name = group_name(node)
    return [one for one in groups if one["name"].partition("#")[0] == name and one["state"] != "REMOVED"]


def standing(groups: list[dict[str, Any]]) -> int:
    """MB that these placement groups of a host hold; 0 while one of them does not stand, as after its host came
    back."""
    if any(group["state"] != "CREATED" for group in groups):
        return 0
    return int(sum(bundle.get(WARM, 0) for group in groups for bundle in group["bundles"].values()))


def worth_having(free: int, advertised: int) -> bool:
    """MB."""
    return free >= max(LEAST_MB, LEAST_SHARE * advertised)


def _remove(group: Any) -> None:
    ray.util.remove_placement_group(group)
    until = time.monotonic() + RESERVE_S
    while ray.util.placement_group_table(group)["state"] != "REMOVED" and time.monotonic() < until:
        time.sleep(0.05)


class Driver:
    def __init__(self, line: socket.socket, grow_s: float = 0.0) -> None:
        """`grow_s`: what a host has had free for so long is asked for; 0: it is not."""
        self._grow_s = grow_s
        self._free_since: dict[str, float] = {}  # by node: when more was first seen to be free there
        self._file = line.makefile("rwb")
        self._lock = threading.Lock()
        self._ips: dict[str, str] = {}
        self._node = ""  # that of our raylet
        self._held: dict[str, int] = {}  # by node: MB that its group was seen to hold; 0: nothing was to be had
        self._missed: dict[str, float] = {}  # by node: when its group was first seen not to stand

    def run(self, address: str) -> None:
        """Until the other end is closed."""
        host = address.rpartition(":")[0]
        if address:  # Ray itself would go on trying for a minute
            socket.create_connection((host.strip("[]"), int(address.rpartition(":")[2])), REACH_S).close()
        beside: dict[str, Any] = {"_node_ip_address": host} if host.startswith("127.") else {}
        ray.init(
            address=address or "auto", namespace="instainfer", log_to_driver=False, logging_level="error", **beside
        )
        self._node = ray.get_runtime_context().get_node_id()
        threading.Thread(target=self._serve, daemon=True).start()
        while True:
            self.say({"nodes": self._look()})
            time.sleep(LOOK_S)

    def say(self, what: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(what).encode() + b"\n")
            self._file.flush()

    def _look(self) -> list[dict[str, Any]]:
        table = ray.nodes()
        if not lives(self._node, table):
            raise RuntimeError("the raylet of this host has died")
        found = hosts(table)
        self._ips.update((entry["node"], entry.pop("ip")) for entry in found)
        groups = list(ray.util.placement_group_table().values())
        for entry in found:
            node, warm = entry["node"], entry["warm"]
            entry["most"] = warm
            ours = groups_of(node, groups) if warm else []
            if ours:
                mb = self._holding(node, standing(ours), warm // MB)
                entry["warm"] = max(mb * MB, NOTHING)
                if self._grow_s and standing(ours):
                    self._watch_free(node, standing(ours), warm // MB)
            elif warm and self._held.get(node) == 0:
                entry["warm"] = NOTHING
        return found

    def _holding(self, node: str, standing: int, advertised: int) -> int:
        """MB that are held there. A group whose host has just come back is made again by Ray: until then it counts
        as it was. Where that does not come to be, the host has less than before, and we ask for what there is."""
        if standing:
            self._missed.pop(node, None)
            self._held[node] = standing
        else:
            since = self._missed.setdefault(node, time.monotonic())
            if time.monotonic() > since + LEFT_S:
                self._missed[node] = time.monotonic()
                threading.Thread(target=self._ensure, args=({"node": node, "reserve": True},), daemon=True).start()
        return self._held.get(node, advertised)

    def _watch_free(self, node: str, ours: int, advertised: int) -> None:
        """Ask for what nobody else has held for a while."""
        if not worth_having(self._free(node, self._ips[node]) - ours, advertised):
            self._free_since.pop(node, None)
        elif time.monotonic() > self._free_since.setdefault(node, time.monotonic()) + self._grow_s:
            self._free_since.pop(node)
            threading.Thread(target=self._ensure, args=({"node": node, "grow": True},), daemon=True).start()

    def _serve(self) -> None:
        for line in self._file:
            asked = json.loads(line)
            work = self._keep if "keep" in asked else self._release if "release" in asked else self._ensure
            threading.Thread(target=work, args=(asked,), daemon=True).start()
        os._exit(0)

    def _keep(self, asked: dict[str, Any]) -> None:
        wanted = asked["keep"]
        try:
            keeper = (
                ray.remote(Keeper)
                .options(
                    name=KEEPER,
                    lifetime="detached",
                    get_if_exists=True,
                    max_restarts=-1,
                    max_task_retries=-1,
                    max_concurrency=8,
                    num_cpus=0,
                )
                .remote(wanted["data"], wanted["arguments"], wanted["environ"])
            )
            about = ray.get(keeper.about.remote(SERVER_S), timeout=SERVER_S + START_S)
            said = {"id": asked["id"], "about": about}
        except Exception as error:  # noqa: BLE001 # whatever Ray or the host says goes to whoever asked
            said = {"id": asked["id"], "error": f"{type(error).__name__}: {error}".strip()[-800:]}
        self.say(said)

    def _release(self, asked: dict[str, Any]) -> None:
        try:
            keeper = ray.get_actor(KEEPER)
        except ValueError:
            self.say({"id": asked["id"], "released": False})
            return
        try:
            ray.get(keeper.end.remote(), timeout=END_S + START_S)
            ray.kill(keeper)
            said = {"id": asked["id"], "released": True}
        except Exception as error:  # noqa: BLE001 # the same
            said = {"id": asked["id"], "error": f"{type(error).__name__}: {error}".strip()[-800:]}
        self.say(said)

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
            if "grow" in asked:
                self._grow(stub, node, ip)
                return
            if "reserve" in asked:
                self._reserve(stub, node, ip, want=asked["reserve"])
                self.say({"id": asked.get("id"), "node": node, "url": ""})
                return
            call = stub.ensure.remote(node, ip, asked["data"], asked["key"], asked["environ"])
            said = {"id": asked["id"], "node": node, "url": ray.get(call, timeout=START_S)}
        except Exception as error:  # noqa: BLE001 # whatever Ray or the host says goes to whoever asked
            said = {"id": asked.get("id"), "error": f"{type(error).__name__}: {error}".strip()[-800:]}
        self.say(said)

    def _free(self, node: str, ip: str) -> int:
        """MB of a host that nobody else holds."""
        free = available_resources_per_node()
        ours = standing(groups_of(node, ray.util.placement_group_table().values()))
        for entry in ray.nodes():
            if entry["Alive"] and entry["NodeManagerAddress"] == ip and entry["Resources"].get(WARM):
                return int(free.get(entry["NodeID"], {}).get(WARM, 0)) + ours
        return 0

    def _grow(self, stub: Any, node: str, ip: str) -> None:
        ours = standing(groups_of(node, ray.util.placement_group_table().values()))
        more = self._free(node, ip) - ours
        if ours and more >= LEAST_MB:
            ray.get(stub.grow.remote(node, ip, more), timeout=START_S)
            self.say({"nodes": self._look()})

    def _reserve(self, stub: Any, node: str, ip: str, *, want: bool) -> None:
        """All that the host has and nobody else holds; a number that has changed is told with the next look."""
        mb, until = 0, time.monotonic() + RESERVE_S
        while want and not mb:
            mb = self._free(node, ip)
            if time.monotonic() > until:
                break
            time.sleep(0.0 if mb else LOOK_S)  # what was given back a moment ago is told with the next report
        held = ray.get(stub.reserve.remote(node, ip, mb), timeout=START_S)
        if want:
            self._held[node] = held
        else:
            self._held.pop(node, None)
        self._missed.pop(node, None)
        self.say({"nodes": self._look()})


def main() -> None:
    """`python -m instainfer.cluster FD ADDRESS [GROW]`; an empty address is that of the cluster that this host is
    in."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        Driver(socket.socket(fileno=int(sys.argv[1])), *map(float, sys.argv[3:])).run(sys.argv[2])
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # whoever asked is gone
    except (OSError, RuntimeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
