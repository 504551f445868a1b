"""A folder or file of the user's as one zip: the client's half of `packages`."""

from __future__ import annotations

import fnmatch
import io
import itertools
import os
import posixpath
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from instainfer.errors import BadPackage

IGNORE_FILE = ".instainferignore"
PACK_LIMIT = 256_000_000

_SKIPPED = frozenset({"__pycache__", ".git", ".venv", "node_modules"})
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold
_STORED_FROM = 8 << 20  # weights do not compress, and deflating them is what a deploy would wait for


def pack(path: Path, *, limit: int = PACK_LIMIT) -> bytes:
    """A zip of a folder or of one .py file; equal content gives equal bytes. A zip is passed through.

    Left out: caches, .git, virtual environments, node_modules, and what `.instainferignore` names (one
    fnmatch pattern a line, matched against the name and the path). Raises BadPackage when there is nothing
    to pack, or more than `limit` bytes.
    """
    if path.is_file():
        if zipfile.is_zipfile(path):
            data = path.read_bytes()
            if len(data) > limit:
                raise too_large(len(data), limit)
            return data
        if path.suffix != ".py":
            raise BadPackage(f"{path} is neither a folder, a .py file nor a zip", hint="give one of these")
        found = [(path.name, path)]
    elif path.is_dir():
        found = sorted(_walk(path))
    else:
        raise BadPackage(f"there is no {path}", hint="give a folder, a .py file or a zip")
    if not found:
        raise BadPackage(
            f"{path} has no files to pack", hint=f"write a main.py; {IGNORE_FILE} may exclude too much"
        )
    total = sum(file.lstat().st_size for _, file in found)
    if total > limit:
        raise too_large(total, limit)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, file in found:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3  # Unix, on whatever system it is packed: the mode bits count
            if file.is_symlink() and (target := link_inside(name, os.readlink(file))):  # noqa: PTH115 - not Path's normalised form
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, target)
                continue
            data = file.read_bytes()
            mode = 0o755 if file.stat().st_mode & stat.S_IXUSR else 0o644
            info.external_attr = (stat.S_IFREG | mode) << 16
            info.compress_type = zipfile.ZIP_STORED if len(data) >= _STORED_FROM else zipfile.ZIP_DEFLATED
            archive.writestr(info, data, compresslevel=6)
    return out.getvalue()


def too_large(size: int, limit: int) -> BadPackage:
    return BadPackage(
        f"the package has {size / 1e6:.0f} MB, more than {limit / 1e6:.0f} MB",
        hint=f"exclude data with {IGNORE_FILE}, or install large weights as a requirement",
    )


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """(name in the package, file) of everything to pack. Links to directories are packed as links if they
    stay inside, else refused; links to files outside are packed as what they point at."""
    ignore = root / IGNORE_FILE
    lines = ignore.read_text("utf-8").splitlines() if ignore.is_file() else []
    patterns = [text for line in lines if (text := line.strip().strip("/")) and not text.startswith("#")]

    def ignored(name: str) -> bool:
        base = posixpath.basename(name)
        return base in _SKIPPED or any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(base, p) for p in patterns)

    for folder, folders, files in os.walk(root):
        here = Path(folder)
        if here != root and (here / "pyvenv.cfg").exists():  # a virtual environment under another name
            folders.clear()
            continue
        prefix = "" if here == root else here.relative_to(root).as_posix() + "/"
        folders[:] = sorted(name for name in folders if not ignored(prefix + name))
        for name in [*files, *(name for name in folders if (here / name).is_symlink())]:
            file = here / name
            if ignored(prefix + name) or name == IGNORE_FILE:
                continue
            outside = file.is_symlink() and not link_inside(prefix + name, os.readlink(file))  # noqa: PTH115 - as above
            if (outside or not file.is_symlink()) and not file.is_file():
                raise BadPackage(
                    f"{prefix + name} is no plain file and no link within the folder",
                    hint=f"remove it, or name it in {IGNORE_FILE}",
                )
            yield prefix + name, file


def link_inside(name: str, target: str) -> str:
    """`target` if a link `name` to it stays in the package whatever else is a link there, else "".

    `..` may only lead: the package lets nothing lie beneath a link, so leading `..` walk up real folders,
    while one further on could leave through a link that the path went down by.
    """
    parts = target.split("/")
    rest = [part for part in itertools.dropwhile(lambda part: part == "..", parts) if part]
    up = len(parts) - len(list(itertools.dropwhile(lambda part: part == "..", parts)))
    if not target or target.startswith("/") or ".." in rest or up > name.count("/") or "\0" in target:
        return ""
    return target
