"""The instance's process, started as the manager starts it, without a sandbox around it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instainfer.runtime import frames

BOOT = Path(frames.__file__).with_name("boot.py")
PATIENCE_S = 60.0  # of a socket: only a broken instance ever uses it up


SCRIPT = """
import json, sys
print("loading")
while True:
    line = sys.stdin.readline()
    if not line:
        print("bye")
        break
    event = json.loads(line)
    print("working on", event)
    print(json.dumps({"twice": event["n"] * 2}))
    print("7")
"""


def style_of(entry: str) -> str:
    if entry.endswith(".py"):
        return "script"
    return "class" if entry.endswith("Model") else "module"


class Live:
    """One instance and the platform's end of its socket and pipes."""

    def __init__(
        self, package: Path, python: str = sys.executable, variables: Mapping[str, str] | None = None
    ) -> None:
        self.package = package
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE_S)
        with theirs:
            self.process = subprocess.Popen(
                [python, str(BOOT), "instance", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env={"PATH": os.environ["PATH"], **(variables or {})},
            )
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._request = 0

    def go(self, entry: str = "main:handler", **spec: object) -> tuple[int, dict[str, Any]]:
        """Send the spec; the first frame that comes back."""
        style = "script" if entry.endswith(".py") else "module"
        self.send(
            frames.GO,
            meta={
                "function": "ns/f",
                "package": str(self.package),
                "style": style,
                "entry": entry,
                "level": 2,
                "modules": [],
                "params": {},
                "sample": "",
                "sample_type": "",
                "concurrency": 1,
                "max_answer": 1 << 20,
                **spec,
            },
        )
        return self.told()

    def ready(self, entry: str = "main:handler", **spec: object) -> dict[str, Any]:
        kind, meta = self.go(entry, **spec)
        assert kind == frames.READY, meta
        return meta

    def failed(self, entry: str = "main:handler", **spec: object) -> dict[str, Any]:
        kind, meta = self.go(entry, **spec)
        assert kind == frames.FAILED, meta
        assert self.frame() is None
        assert self.process.wait(PATIENCE_S) == 1
        return meta

    def send(self, kind: int, request: int = 0, meta: dict[str, Any] | None = None, body: bytes = b"") -> None:
        self.socket.sendall(frames.encode(kind, request, meta, body))

    def frame(self) -> tuple[int, int, dict[str, Any], bytes] | None:
        return frames.read_frame(self.socket)

    def told(self) -> tuple[int, dict[str, Any]]:
        frame = self.frame()
        assert frame is not None, self.errors()
        return frame[0], frame[2]

    def ask(self, body: bytes, content_type: str = "application/json") -> int:
        self._request += 1
        self.send(frames.CALL, self._request, {"type": content_type, "activation": "a" * 32}, body)
        return self._request

    def call(self, body: bytes, content_type: str = "application/json") -> tuple[int, dict[str, Any], bytes]:
        request = self.ask(body, content_type)
        frame = self.frame()
        assert frame is not None, self.errors()
        kind, number, meta, answer = frame
        assert number == request
        return kind, meta, answer

    def result(self, payload: object) -> Any:
        kind, meta, answer = self.call(json.dumps(payload).encode())
        assert kind == frames.RESULT, meta
        return json.loads(answer)

    def error(self, body: bytes = b"{}", content_type: str = "application/json") -> dict[str, Any]:
        kind, meta, answer = self.call(body, content_type)
        assert (kind, answer) == (frames.ERROR, b""), answer
        return meta

    def stop(self) -> int:
        self.send(frames.STOP)
        assert self.frame() is None
        return self.process.wait(PATIENCE_S)

    def output(self) -> str:
        """What is in the pipe at this moment."""
        assert self.process.stdout is not None
        return (self.process.stdout.read() or b"").decode()

    def errors(self) -> str:
        assert self.process.stderr is not None
        return (self.process.stderr.read() or b"").decode()

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


class Start:
    """Writes files into a package and starts instances of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.package = tmp_path / "package"
        self.package.mkdir()
        self.library = tmp_path / "library"
        self.library.mkdir()
        self.started: list[Live] = []

    def __call__(self, main: str, python: str = sys.executable, **files: str) -> Live:
        for name, text in {"main": main, **files}.items():
            (self.package / f"{name}.py").write_text(text)
        live = Live(self.package, python, {"PYTHONPATH": str(self.library)})
        self.started.append(live)
        return live
