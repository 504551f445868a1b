"""Wheels of the benchmark's own: weights that are made here, and a package without a requirement it never uses.

Large weights come to a function as a requirement, as anybody's would: a wheel in a folder that pip looks into
(`find-links`). They lie in the environment once, whatever the number of functions that load them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from instainfer.agent.installers import Sources, find_uv
from instainfer.bench.models import HERE, PYTORCHCV, WEIGHTS, Model
from instainfer.bench.report import Report
from instainfer.bench.server import NAMESPACE, package, serving
from instainfer.client import Client
from instainfer.errors import BuildFailed

#: A local version (PEP 440): no index may carry one, so that nothing else can be taken for these.
VERSION = "1+local"
PIECE = 32 << 20  # bytes of an answer
MAKER = "make-weights"
MAKER_MEMORY = "3GB"  # the largest model, its file, and what the file grows through
_SOURCE = "pytorchcv==0.0.74"


def requirements(models: Sequence[Model]) -> list[str]:
    """Of the environment that these models share, their weights included."""
    lines = [line if line != PYTORCHCV else _line(PYTORCHCV) for model in models for line in model.requirements]
    lines += [_line(WEIGHTS + model.name) for model in models if model.architecture]
    return list(dict.fromkeys(lines))


@contextmanager
def offered(models: Sequence[Model], report: Report) -> Iterator[None]:
    """Within this block servers that are started find the wheels that `requirements` names. Nothing stays."""
    made = [model for model in models if model.architecture]
    if not made:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="instainfer-bench-wheels-") as directory:
        folder = Path(directory) / "wheels"
        folder.mkdir(mode=0o755)
        with _looked_into(folder):
            if any(PYTORCHCV in model.requirements for model in made):
                report.say(f"fetching {_SOURCE}")
                _without_requirements(_SOURCE, PYTORCHCV, folder)
            _make_weights(made, folder, report)
            yield


def _line(name: str) -> str:
    return f"{name.replace('_', '-')}=={VERSION}"


@contextmanager
def _looked_into(folder: Path) -> Iterator[None]:
    """By builds of servers that are started meanwhile, besides what pip is configured for."""
    before = os.environ.get("PIP_FIND_LINKS")
    os.environ["PIP_FIND_LINKS"] = " ".join((*Sources.read().find_links, folder.as_uri()))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PIP_FIND_LINKS"]
        else:
            os.environ["PIP_FIND_LINKS"] = before


def _make_weights(models: Sequence[Model], folder: Path, report: Report) -> None:
    """By a function, in an environment that has the libraries: the platform's own has none."""
    files: dict[str, str] = {"main.py": (HERE / "make_weights.py").read_text("utf-8")}
    files |= {f"of_{model.name}.py": model.architecture for model in models}
    lines = [line for line in requirements(models) if not line.startswith(WEIGHTS.replace("_", "-"))]
    with serving("--memory", "4GB", "--policy", "none") as server:
        report.say("building the environment in which the weights are made")
        server.deploy(MAKER, package(files), {"memory": MAKER_MEMORY, "timeout": "10m", "requirements": lines})
        for model in models:
            report.say(f"making the weights of {model.name}")
            module = WEIGHTS + model.name
            init = b'from pathlib import Path\n\nPATH = Path(__file__).with_name("weights.pt")\n'
            with _Wheel(folder, module) as wheel:
                wheel.add(f"{module}/__init__.py", [init])
                wheel.add(f"{module}/weights.pt", _pieces(server.client, f"of_{model.name}"))


def _pieces(client: Client, module: str) -> Iterator[bytes]:
    at = 0
    while True:
        body = json.dumps({"model": module, "at": at, "bytes": PIECE}).encode()
        piece = client.invoke(NAMESPACE, MAKER, body).body
        if not piece:
            return
        yield piece
        at += len(piece)


def _without_requirements(requirement: str, name: str, folder: Path) -> None:
    """A wheel of this name with the modules of that package, which asks for nothing. Raises BuildFailed."""
    uv = find_uv()
    if uv is None:
        raise BuildFailed("uv is not installed", hint="it comes with instainfer: install that again")
    with tempfile.TemporaryDirectory(dir=folder.parent) as directory:
        install = [uv, "pip", "install", "--no-deps", "--python", sys.executable, "--target", directory]
        done = subprocess.run(
            [*install, *Sources.read().for_uv(), requirement], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BuildFailed(
                f"{requirement} could not be fetched",
                hint="check the network and the index that pip is configured for",
                detail=done.stderr[-4000:],
            )
        root = Path(directory)
        with _Wheel(folder, name.replace("-", "_")) as wheel:
            for path in sorted(root.rglob("*.py")):
                wheel.add(path.relative_to(root).as_posix(), [path.read_bytes()])


class _Wheel:
    """A pure wheel (PEP 427), stored: weights do not compress."""

    def __init__(self, folder: Path, name: str) -> None:
        self._info = f"{name}-{VERSION}.dist-info"
        self._name = name
        self._archive = zipfile.ZipFile(folder / f"{name}-{VERSION}-py3-none-any.whl", "w")
        self._record: list[str] = []

    def add(self, name: str, pieces: Iterator[bytes] | Sequence[bytes]) -> None:
        digest, size = hashlib.sha256(), 0
        with self._archive.open(name, "w", force_zip64=True) as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        encoded = base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")
        self._record.append(f"{name},sha256={encoded},{size}\n")

    def __enter__(self) -> _Wheel:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            metadata = f"Metadata-Version: 2.1\nName: {self._name}\nVersion: {VERSION}\n"
            tags = "Wheel-Version: 1.0\nGenerator: instainfer\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            self.add(f"{self._info}/METADATA", [metadata.encode()])
            self.add(f"{self._info}/WHEEL", [tags.encode()])
            record = "".join([*self._record, f"{self._info}/RECORD,,\n"])
            self._archive.writestr(f"{self._info}/RECORD", record)
        self._archive.close()
