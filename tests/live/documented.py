"""Pages as scripts: what their blocks of commands and files say is done, in order, in one shell in one folder.

In a page, before a block of commands (```console, ```sh), where GitHub and the site show nothing of it:

    <!-- not run: why it cannot be -->         the block is left out
    <!-- until: PATTERN -->                    its last command is repeated until what it prints matches
    <!-- setup … -->                           lines of commands that the reader of the page has behind them

and before any block

    <!-- file: PATH -->                        the block is what this file holds

Commands are known by their prompts, `$ ` and, for root, `# `. One must end well, or badly where the page shows
that it prints `error:`. Lines of output that the page shows must be printed, those with digits (times, sizes, ids)
or an ellipsis aside. An activation's id of the page stands for the one that was printed in its place.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from .server_helpers import SANDBOX, environment

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0
PORT = "3233"  # of the pages: the one that the test has stands in for it

_PART = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w.-]*)[^\n]*\n(?P<body>.*?)^ *```$|<!-- (?P<note>.*?)-->",
    re.DOTALL | re.MULTILINE,
)
_PROMPT = re.compile(r"^[$#] (?=\S)")
_SERVE = re.compile(r"(?:^|\s)instainfer serve\b")
_ID = re.compile(r"\b[0-9a-f]{32}\b")
_VARIES = re.compile(r"\d|…|\.\.\.")
_NOTES = ("not run:", "until:", "file:", "setup")


@dataclass
class Command:
    line: str
    printed: list[str] = field(default_factory=list)
    until: str = ""

    @property
    def fails(self) -> bool:
        return any(line.startswith("error:") for line in self.printed)


@dataclass
class Step:
    """Of a page, in its order: a file to write, or commands to run, or to leave out for a reason."""

    commands: list[Command] = field(default_factory=list)
    file: str = ""
    content: str = ""
    reason: str | None = None


def steps(text: str) -> Iterator[Step]:
    """Raises ValueError where a page is marked in a way that means nothing."""
    notes: dict[str, str] = {}
    for part in _PART.finditer(text):
        note = part["note"]
        if note is not None:
            kind = next((one for one in _NOTES if note.startswith(one)), None)
            if kind == "setup":
                lines = [line for line in note.removeprefix(kind).splitlines() if line.strip()]
                yield Step([Command(line) for line in lines])
            elif kind is not None:
                notes[kind] = note.removeprefix(kind).strip()
            continue
        told, notes = notes, {}
        if "file:" in told:
            yield Step(file=told["file:"], content=part["body"])
        elif part["language"] in ("console", "sh", "bash", "shell"):
            reason = told.get("not run:")
            if reason is not None and len(reason) < 10:
                raise ValueError(f"{reason!r} is no reason")
            found = _commands(part["body"], part["language"])
            if not found:
                raise ValueError(f"there is no command in {part['body']!r}")
            found[-1].until = told.get("until:", "")
            yield Step(found, reason=reason)
        elif told:
            raise ValueError(f"{told} stands before no block of commands")
    if notes:
        raise ValueError(f"{notes} stands before nothing")


def _commands(body: str, language: str) -> list[Command]:
    if language != "console":
        return [Command(body.rstrip("\n"))]
    found: list[Command] = []
    for line in body.splitlines():
        if _PROMPT.match(line):
            found.append(Command(_PROMPT.sub("", line)))
        elif not found:
            raise ValueError(f"{line!r} is printed by no command")
        elif found[-1].line.endswith("\\"):
            found[-1].line += "\n" + line
        elif line.strip():
            found[-1].printed.append(line)
    return found


class Shell:
    """bash in `folder`, with what a reader of the page has: this program on the path, and the examples."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = str(listener.getsockname()[1])
        shutil.copytree(ROOT / "examples", folder / "examples")
        self._ids: dict[str, str] = {}  # of the page -> ours
        self._servers = 0
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=environment(
                {
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "HOME": str(folder),
                    "CLONE": str(ROOT),  # for hidden lines of pages about this program's own code
                    "INSTAINFER_URL": f"http://127.0.0.1:{self.port}",
                    "INSTAINFER_SERVER__PORT": self.port,
                    "INSTAINFER_SERVER__DATA_DIR": str(folder / "data"),
                    "INSTAINFER_SANDBOX__KIND": SANDBOX,
                }
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        try:
            self._stop_server()
        except (AssertionError, OSError):
            if failed is None:
                raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._shell.pid, signal.SIGKILL)
            self._shell.wait()
            for pipe in (self._shell.stdin, self._shell.stdout):
                assert pipe is not None
                pipe.close()

    def follow(self, step: Step) -> None:
        if step.file:
            file = self.folder / step.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(step.content.replace(PORT, self.port), "utf-8")
        elif step.reason is None:
            for command in step.commands:
                self._follow(command)

    def _follow(self, command: Command) -> None:
        line = _ID.sub(lambda found: self._ids.get(found[0], found[0]), command.line).replace(PORT, self.port)
        if _SERVE.search(line):
            self._serve(line)
            return
        status, printed = self._run(line)
        end = time.monotonic() + PATIENCE_S
        while command.until and not re.search(command.until, printed):
            assert time.monotonic() < end, f"$ {line}\nnever printed {command.until!r}, but\n{printed}"
            time.sleep(0.1)  # between two looks
            status, printed = self._run(line)
        assert (status != 0) == command.fails, f"$ {line}\nended with {status}:\n{printed}"
        there = {" ".join(one.split()) for one in printed.splitlines()}
        for told in command.printed:
            wanted = " ".join(told.split())
            assert _VARIES.search(wanted) or wanted in there, f"$ {line}\ndid not print {wanted!r}, but\n{printed}"
        self._ids |= zip(_ID.findall("\n".join(command.printed)), _ID.findall(printed), strict=False)

    def _serve(self, line: str) -> None:
        """In the background, until the next one: the page has a terminal for it."""
        self._stop_server()
        self._servers += 1
        said = self.folder / f"serve.{self._servers}.txt"
        line = line.rstrip().removesuffix("&")
        said.touch()  # the shell makes it when it comes to it
        status, printed = self._run(f"{line} >> {said} 2>&1 & echo $! > serve.pid")
        assert status == 0, printed
        pid = int((self.folder / "serve.pid").read_text())
        end = time.monotonic() + PATIENCE_S
        while "instainfer serves at" not in said.read_text():
            assert time.monotonic() < end and _alive(pid), f"$ {line}\n{said.read_text()}"
            time.sleep(0.05)  # between two looks

    def _stop_server(self) -> None:
        file = self.folder / "serve.pid"
        if not file.exists():
            return
        pid = int(file.read_text())
        file.unlink()
        status, printed = self._run(f"kill {pid}; wait {pid}")
        assert status == 0, f"the server ended with {status}: {printed}"

    def _run(self, line: str) -> tuple[int, str]:
        """The exit status, and what was printed: stdout and stderr as they came."""
        assert self._shell.stdin is not None and self._shell.stdout is not None
        mark = f"-- {time.monotonic_ns()} --"
        self._shell.stdin.write(f"{{ {line}\n}} < /dev/null\n_ended=$?; echo; echo '{mark}' $_ended\n".encode())
        self._shell.stdin.flush()
        printed = b""
        end = time.monotonic() + PATIENCE_S
        while not (match := re.search(rf"\n{mark} (\d+)\n$", text := printed.decode(errors="replace"))):
            ready, _, _ = select.select([self._shell.stdout], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"$ {line}\ndoes not end; so far:\n{text}"
            more = os.read(self._shell.stdout.fileno(), 65536)
            assert more, f"$ {line}\nended the shell:\n{text}"
            printed += more
        return int(match[1]), text[: match.start()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
