"""A file for each run of `simulate -o DIR`: `DIR/runs/<number>.json`, written as the run ends.

A run is known by its key, a digest of all that decides it. What is there with the same key is not run again,
whatever its number was.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import instainfer
from instainfer.errors import BadInput
from instainfer.sim.tally import Tally

VERSION = 1
#: Of the package: what a run's outcome may depend on.
_CODE = (
    *("core", "policies", "sim", "traces", "model.py", "lab/costs.py", "lab/runs.py", "lab/simulate.py"),
    *("lab/bounding.py", "lab/bounds.py", "lab/intervals.py", "lab/linear.py", "lab/pool.py"),
)


def key(given: Any, *content: Path) -> str:
    """Of `given`, of what is in these files (and, of folders, in their files) and of this program. Raises
    BadInput."""
    digest = hashlib.sha256(msgspec.json.encode([VERSION, instainfer.__version__, given], order="deterministic"))
    digest.update(_code())
    for path in content:
        digest.update(_content(path))
    return digest.hexdigest()


@cache
def _content(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}", hint="check the path") from None
    return digest.digest()


@cache
def _code() -> bytes:
    """A version is not enough where somebody works on the policies."""
    root = Path(instainfer.__file__).parent
    digest = hashlib.sha256()
    for part in _CODE:
        for file in sorted((root / part).rglob("*.py")) if (root / part).is_dir() else [root / part]:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.digest()


def detail(
    settings: Any, row: dict[str, Any], classes: dict[str, Any], total: Tally, timeline: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a run file has beside version and key."""
    return {
        "settings": settings,
        "row": row,
        "classes": classes,
        "cdf": {"e2e_ms": percentiles_ms(total.e2e), "warming_loading_ms": percentiles_ms(total.waited)},
        "timeline": timeline,
    }


def percentiles_ms(seconds: array[float]) -> list[float]:
    """0 to 100; none of nothing."""
    found: list[float] = (np.percentile(seconds, np.arange(101)) * 1e3).tolist() if len(seconds) else []
    return found


class Folder:
    """The run files of one command."""

    def __init__(self, folder: Path) -> None:
        """Raises BadInput where it cannot be written."""
        self.path = folder / "runs"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        self._found: dict[str, Path] | None = None

    def load(self, wanted: str) -> dict[str, Any] | None:
        """The run with this key, if there is one."""
        if self._found is None:
            self._found = {}
            for file in sorted(self.path.glob("*.json")):
                read = _read(file)
                if read is not None:
                    self._found.setdefault(read["key"], file)
        return _read(self._found[wanted]) if wanted in self._found else None

    def save(self, number: int, run: dict[str, Any]) -> None:
        """As a whole or not at all, whenever this is stopped. Raises BadInput."""
        file = self.path / f"{number}.json"
        part = file.with_name(f".{number}.{os.getpid()}.part")
        try:
            part.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
            part.replace(file)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> BadInput:
        return BadInput(f"{self.path} cannot be written: {error.strerror}", hint="name another folder")


def _read(file: Path) -> dict[str, Any] | None:
    """None for what is not whole, or of another form: it is run again."""
    try:
        run = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return None
    known = run.get("version") == VERSION and isinstance(run.get("key"), str) and isinstance(run.get("row"), dict)
    return run if known else None
