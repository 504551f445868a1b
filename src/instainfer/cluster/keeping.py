"""Have Ray keep one server running: asked of a driver process (cluster/ray.py) that lives until it has answered.
What it leaves is an actor of the cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instainfer.errors import BadSettings, Unavailable

ANSWER_S = 240.0


def keep(
    address: str, data: Path, arguments: Sequence[str], environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """From now on a server runs with this data directory and these arguments of `instainfer serve`; where the
    cluster keeps one already, that goes on as it is. `node`, `pid`, `url` once it serves. `address` is HOST:PORT
    of the GCS, or "": of the cluster that this host is in. `environ`: this process's, where it is not given; what
    concerns Ray and the server in it is the server's, too. Raises BadSettings, Unavailable."""
    chosen = dict(os.environ if environ is None else environ)
    passed = {name: value for name, value in chosen.items() if name.startswith(("RAY_", "INSTAINFER_"))}
    wanted = {"data": str(data.absolute()), "arguments": list(arguments), "environ": passed}
    found: dict[str, Any] = _ask(address, {"keep": wanted}, chosen)["about"]
    return found


def release(address: str, environ: Mapping[str, str] | None = None) -> bool:
    """No longer: it ends. Whether there was one. Raises BadSettings, Unavailable."""
    return bool(_ask(address, {"release": True}, dict(os.environ if environ is None else environ))["released"])


def _ask(address: str, what: dict[str, Any], environ: dict[str, str]) -> dict[str, Any]:
    if importlib.util.find_spec("ray") is None:
        raise BadSettings("Ray is not installed here", hint="pip install 'instainfer[ray]'")
    ours, theirs = socket.socketpair()
    ours.settimeout(ANSWER_S)
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "instainfer.cluster", str(theirs.fileno()), address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            cwd="/",
            env=environ,
            text=True,
        )
        theirs.close()
        try:
            said = _answer(ours, {"id": 1, **what})
        except OSError:
            said = None
        finally:
            process.kill()
            _, words = process.communicate()
    if said is None:
        last = words.strip().splitlines()[-1:] or ["it said nothing"]
        raise Unavailable(
            f"the Ray cluster {address or 'of this host'} cannot be joined: {last[0][-300:]}",
            hint="does `ray status` work on this host, with the same RAY_AUTH_MODE and token?",
        )
    if "error" in said:
        raise Unavailable(f"the server is not up: {said['error']}", hint="see server.log in its data directory")
    return said


def _answer(line: socket.socket, asked: dict[str, Any]) -> dict[str, Any] | None:
    """None where the driver ended. Raises OSError."""
    file = line.makefile("rwb")
    file.write(json.dumps(asked).encode() + b"\n")
    file.flush()
    for said in file:
        found: dict[str, Any] = json.loads(said)
        if found.get("id") == asked["id"]:
            return found
    return None
