"""A folder as one file, and back: environments and what libraries keep, on their way to other nodes.

    manifest.json    what it is and where it belongs
    tree/…           folders, files and links
    end              nothing: a tar that is damaged in the middle would be read as a shorter one

An uncompressed tar: what fills it (wheels' native code, weights) gains little, and packing would wait for it. One
folder always gives the same bytes. Files' times are kept, in whole seconds: bytecode names that of its source.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from instainfer.errors import BadPackage

MANIFEST = "manifest.json"
_TREE = "tree/"
_END = "end"
_MANIFEST_LIMIT = 1 << 20
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def pack(folder: Path, manifest: bytes, out: Path) -> None:
    """Write `out`. Blocks. Links are packed as links, never followed; owners are left out, and of modes only
    who may read and execute is kept. Raises BadPackage for what is neither folder, file nor link."""
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        head = tarfile.TarInfo(MANIFEST)
        head.size = len(manifest)
        archive.addfile(head, io.BytesIO(manifest))
        for name, path in _walk(folder, ""):
            found = path.lstat()
            member = tarfile.TarInfo(_TREE + name)
            member.mtime = int(found.st_mtime)
            member.mode = stat.S_IMODE(found.st_mode) & 0o555 | 0o200
            if stat.S_ISDIR(found.st_mode):
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            elif stat.S_ISLNK(found.st_mode):
                member.type, member.mode = tarfile.SYMTYPE, 0o777
                member.linkname = os.readlink(path)  # noqa: PTH115 - not Path's normalised form
                archive.addfile(member)
            elif stat.S_ISREG(found.st_mode):
                with os.fdopen(
                    os.open(path, _OPEN), "rb"
                ) as file:  # it may have been replaced: its kind is asked again
                    opened = os.fstat(file.fileno())
                    if not stat.S_ISREG(opened.st_mode):
                        raise BadPackage(f"{name} is no file any more")
                    member.size = opened.st_size
                    archive.addfile(member, file)
            else:
                raise BadPackage(f"{name} is neither a folder, a file nor a link", hint="it cannot be packed")
        archive.addfile(tarfile.TarInfo(_END))


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """Everything below, in the order of names, a folder before what is in it."""
    for entry in sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name)):
        name = prefix + entry.name
        yield name, Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), name + "/")


def manifest_of(archive: Path) -> bytes:
    """Blocks. Raises BadPackage."""
    try:
        with tarfile.open(archive, "r:") as opened:
            return _manifest(opened, opened.next())
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise BadPackage(f"this is no packed folder: {error}") from None


def _manifest(archive: tarfile.TarFile, member: tarfile.TarInfo | None) -> bytes:
    file = archive.extractfile(member) if member is not None and member.isfile() else None
    if member is None or member.name != MANIFEST or file is None or member.size > _MANIFEST_LIMIT:
        raise BadPackage("this is no packed folder: it does not begin with a manifest")
    return file.read()


def unpack(archive: Path, target: Path, *, limit_files: int = 500_000, limit_bytes: int = 64 << 30) -> None:
    """Write the tree to `target`, which must not exist yet and is removed again when something is wrong. Blocks.

    Nothing of the archive is trusted: every name stays below `target`, nothing lies beneath a link, nothing is
    written twice, and only folders, files and links are made, without special bits. Links may point anywhere, as
    in any environment: nobody follows them here. Raises BadPackage, OSError.
    """
    target.mkdir(mode=0o755)
    try:
        with tarfile.open(archive, "r:") as opened:
            _manifest(opened, opened.next())
            _unpack(opened, target, limit_files, limit_bytes)
    except (tarfile.TarError, ValueError, EOFError) as error:
        shutil.rmtree(target, ignore_errors=True)
        raise BadPackage(f"the packed folder is damaged: {error}") from None
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _unpack(archive: tarfile.TarFile, target: Path, limit_files: int, limit_bytes: int) -> None:
    folders = {""}
    made: set[str] = set()
    times: list[tuple[Path, int]] = []
    while (member := archive.next()) is not None:
        if member.name == _END and member.isreg() and not member.size:
            break
        archive.members = []  # type: ignore[attr-defined] # it would keep them all
        name = member.name.removeprefix(_TREE)
        parts = name.split("/")
        above = name.rpartition("/")[0]
        limit_files -= 1
        limit_bytes -= member.size
        if limit_files < 0 or limit_bytes < 0 or member.size < 0:
            raise BadPackage("the packed folder holds more than is allowed")
        if not member.name.startswith(_TREE) or {"", ".", ".."} & set(parts) or "\0" in name:
            raise BadPackage(f"the packed folder has an impossible name: {member.name[:200]!r}")
        if above not in folders or name in made:
            raise BadPackage(f"{name[:200]!r} lies beneath what is no folder, or is there twice")
        made.add(name)
        path = target / name
        if member.isdir():
            path.mkdir(mode=0o755)
            folders.add(name)
            times.append((path, int(member.mtime)))
        elif member.issym():
            path.symlink_to(member.linkname)
        elif member.isreg() and not member.issparse():
            file = archive.extractfile(member)
            assert file is not None
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(path, flags, member.mode & 0o555 | 0o200), "wb") as out:
                shutil.copyfileobj(file, out, 1 << 20)
                if out.tell() != member.size:
                    raise BadPackage(f"{name[:200]!r} is cut off")
                os.fchmod(out.fileno(), member.mode & 0o555 | 0o200)
            os.utime(path, (int(member.mtime), int(member.mtime)), follow_symlinks=False)
        else:
            raise BadPackage(f"{name[:200]!r} is neither a folder, a file nor a link")
    else:
        raise BadPackage("the packed folder is damaged, or cut off")
    for path, mtime in reversed(times):
        os.utime(path, (mtime, mtime), follow_symlinks=False)
