"""A function's package, as a client sends it and as it is kept: one zip.

Nothing here runs or imports what it reads. `open_package` looks at every byte before anything is written,
`Package.extract` writes it so that a kill in the middle leaves nothing that is taken for whole.
"""

from __future__ import annotations

import ast
import hashlib
import io
import itertools
import os
import posixpath
import re
import shutil
import stat
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from instainfer.errors import BadPackage, BadSettings
from instainfer.model import Style
from instainfer.packing import link_inside, pack, too_large
from instainfer.settings import Settings, settings_from

__all__ = [
    "Member",
    "Package",
    "Settings",
    "digest",
    "find_entry",
    "open_package",
    "pack",
    "read_settings",
    "remove_leftovers",
]

NAME_LIMIT = 255  # bytes of one path component, what ext4 and xfs take
PATH_LIMIT = 1024
LINK_LIMIT = 4096

_CHUNK = 1 << 20
_temporary = itertools.count()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Member:
    name: str  # without a trailing slash
    kind: Literal["file", "folder", "link"]
    size: int
    executable: bool = False
    target: str = ""  # of a link


@dataclass(frozen=True)
class Package:
    """A zip that `open_package` has checked."""

    data: bytes
    digest: str
    members: tuple[Member, ...]

    def names(self) -> set[str]:
        """Of its files and links."""
        return {member.name for member in self.members if member.kind != "folder"}

    def read(self, name: str) -> bytes:
        """Content of a file. Raises KeyError when there is none of this name."""
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            return archive.read(name)

    def extract(self, target: Path, *, uid: int | None = None, gid: int | None = None) -> None:
        """Write it to `target`, whole or not at all; folders 0700, files 0600 plus the owner's x bit.

        Does nothing when `target` is there: it got there whole. What an earlier, killed call left beside it is
        removed. Nobody but the caller may write to the folder that `target` is in.
        """
        remove_leftovers(target)
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        working = target.with_name(f".{target.name}.{os.getpid()}-{next(_temporary)}.tmp")
        working.mkdir(mode=0o700)
        try:
            self._write(working)
            if uid is not None or gid is not None:
                owner = (-1 if uid is None else uid, -1 if gid is None else gid)
                for folder, folders, files in os.walk(working, topdown=False):
                    for name in (*files, *folders):
                        os.lchown(os.path.join(folder, name), *owner)  # noqa: PTH118 - thousands of them
                os.lchown(working, *owner)
            working.rename(target)
        except OSError:
            if not target.exists():  # else another call was faster with the same content
                raise
        finally:
            shutil.rmtree(working, ignore_errors=True)

    def _write(self, working: Path) -> None:
        made: set[str] = set()
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            for member in self.members:
                folder = member.name if member.kind == "folder" else posixpath.dirname(member.name)
                if folder and folder not in made:
                    for part in itertools.accumulate(folder.split("/"), posixpath.join):
                        if part not in made:
                            (working / part).mkdir(mode=0o700, exist_ok=True)
                            made.add(part)
                path = working / member.name
                if member.kind == "link":
                    path.symlink_to(member.target)
                elif member.kind == "file":
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    handle = os.open(path, flags, 0o700 if member.executable else 0o600)
                    with os.fdopen(handle, "wb") as out, archive.open(member.name) as source:
                        shutil.copyfileobj(source, out, _CHUNK)


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left of extracting to `target`."""
    for path in target.parent.glob(f".{target.name}.*.tmp"):
        owner = path.name.removeprefix(f".{target.name}.").partition("-")[0]
        if owner.isdigit() and int(owner) != os.getpid() and not Path("/proc", owner).exists():
            shutil.rmtree(path, ignore_errors=True)


def open_package(data: bytes, *, limit_files: int = 10_000, limit_bytes: int = 1 << 30) -> Package:
    """Check every name, kind and byte of a zip; nothing is written or run.

    Raises BadPackage that names the member and says what to do.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise BadPackage(f"this is not a zip: {error}", hint="send a zip of the function's folder") from None
    with archive:
        if len(infos) > limit_files:
            raise BadPackage(
                f"{len(infos)} members, more than {limit_files}", hint="install libraries as requirements"
            )
        if (total := sum(info.file_size for info in infos)) > limit_bytes:
            raise too_large(total, limit_bytes)
        members: dict[str, Member] = {}
        left = limit_bytes
        for info in infos:
            member = _member(archive, info)
            if member.name in members:
                raise _bad(info, "is there twice", "pack the folder again")
            members[member.name] = member
            if member.kind == "file":
                left -= _count(archive, info, left)
    for name in members:
        above = posixpath.dirname(name)
        while above:
            if above in members and members[above].kind != "folder":
                raise BadPackage(
                    f"{name!r} lies beneath {above!r}, which is no folder", hint="pack the folder again"
                )
            above = posixpath.dirname(above)
    if not any(member.kind == "file" for member in members.values()):
        raise BadPackage("the package has no files", hint="zip at least a main.py")
    return Package(data, digest(data), tuple(members[name] for name in sorted(members)))


def _bad(info: zipfile.ZipInfo, what: str, hint: str) -> BadPackage:
    return BadPackage(f"member {info.orig_filename[:200]!r} {what}", hint=hint)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    raw = info.orig_filename  # what the zip says; `filename` is already cut at a null byte
    name = raw.removesuffix("/")
    parts = name.split("/")
    if raw.startswith("/") or re.match(r"[A-Za-z]:", raw):
        raise _bad(info, "has an absolute name", "zip the folder's content with relative names")
    if "\\" in raw:
        raise _bad(info, "has a backslash in its name", "use / between folders")
    if ".." in parts:
        raise _bad(info, "leaves the package with '..'", "zip the folder's content with plain names")
    if "" in parts or "." in parts or any(ord(c) < 32 or ord(c) == 127 for c in raw) or info.filename != raw:
        raise _bad(info, "has an impossible name", "rename it: no empty parts, no '.', no control characters")
    if max(len(os.fsencode(part)) for part in parts) > NAME_LIMIT or len(os.fsencode(name)) > PATH_LIMIT:
        raise _bad(info, f"has a name over {NAME_LIMIT} bytes (or a path over {PATH_LIMIT})", "shorten it")
    if info.flag_bits & 0x1:
        raise _bad(info, "is encrypted", "zip without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _bad(info, "is compressed in an unusual way", "use plain deflate")
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if raw.endswith("/") or kind == stat.S_IFDIR:
        if info.file_size or not raw.endswith("/"):
            raise _bad(info, "is a folder with content of its own", "pack the folder again")
        return Member(name, "folder", 0)
    if kind == stat.S_IFLNK:
        if info.file_size > LINK_LIMIT:
            raise _bad(info, "is a link with an impossible target", "replace it by the file")
        target = os.fsdecode(_read(archive, info, LINK_LIMIT))
        if not link_inside(name, target):
            raise _bad(info, f"is a link that leaves the package, to {target[:200]!r}", "replace it by the file")
        return Member(name, "link", 0, target=target)
    if kind not in (0, stat.S_IFREG):
        raise _bad(info, "is a device, pipe or socket", "leave it out")
    return Member(name, "file", info.file_size, bool(mode & stat.S_IXUSR))


def _count(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> int:
    """Bytes that the member really gives."""
    return sum(map(len, _chunks(archive, info, limit)))


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    return b"".join(_chunks(archive, info, limit))


def _chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> Iterator[bytes]:
    """Its content, read to the end (which checks its CRC), never more than `limit` and what it declares."""
    seen = 0
    try:
        with archive.open(info) as source:
            while chunk := source.read(_CHUNK):
                seen += len(chunk)
                if seen > min(limit, info.file_size):
                    raise _bad(info, "unpacks to more than is allowed", "install large data as a requirement")
                yield chunk
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise _bad(info, f"cannot be read: {error}", "zip the folder again") from None
    if seen != info.file_size:
        raise _bad(info, "is cut off", "zip the folder again")


_REFUSED_LINES = {
    "-e": "put the code into the package",
    "--editable": "put the code into the package",
    "-c": "write the bounds as requirements",
    "--constraint": "write the bounds as requirements",
}
_SCRIPT_BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # PEP 723's own expression


def read_settings(package: Package, overrides: Mapping[str, Any] | None = None) -> Settings:
    """What the package says of itself, with `overrides` on top and a file of requirements read in.

    Looked for in this order: function.toml, [tool.instainfer] of pyproject.toml, the inline metadata (PEP 723)
    of a package's only .py file. Without `requirements`, a requirements.txt is used. Raises BadSettings.
    """
    table, where = _settings_table(package)
    given = {**table, **(overrides or {})}
    names = package.names()
    if isinstance(given.get("requirements"), str):
        table.pop("requirements", None)
        file = given.pop("requirements")
        if file not in names:
            raise BadSettings(
                f"{where}: requirements = {file!r}: the package has no such file",
                hint='name a file in the package, or write a list like ["numpy>=2"]',
            )
        lines: tuple[str, ...] | None = _requirement_lines(package, file, ())
    elif "requirements" not in given and "requirements.txt" in names:
        lines = _requirement_lines(package, "requirements.txt", ())
    else:
        lines = None
    settings = settings_from(table, where)
    if overrides:
        settings = settings.merged({key: value for key, value in overrides.items() if key in given})
    if lines is not None:
        settings = settings.merged({"requirements": lines})
    if settings.sample and settings.sample not in names:
        raise BadSettings(
            f"{where}: sample = {settings.sample!r}: the package has no such file",
            hint="name a file in the package, as a path from its root",
        )
    return settings


def _settings_table(package: Package) -> tuple[dict[str, Any], str]:
    names = package.names()
    if "function.toml" in names:
        return _toml(package.read("function.toml"), "function.toml"), "function.toml"
    if "pyproject.toml" in names:
        project = _toml(package.read("pyproject.toml"), "pyproject.toml")
        table = project.get("tool", {}).get("instainfer")
        if isinstance(table, dict):
            table = dict(table)
            dependencies = project.get("project", {}).get("dependencies")
            if dependencies is not None:
                table.setdefault("requirements", dependencies)
            return table, "pyproject.toml [tool.instainfer]"
    scripts = [name for name in names if name.endswith(".py")]
    if len(scripts) == 1 and (block := _SCRIPT_BLOCK.search(package.read(scripts[0]).decode("utf-8", "replace"))):
        text = "".join(
            line[2:] if line.startswith("# ") else line[1:] for line in block["content"].splitlines(True)
        )
        where = f"the metadata in {scripts[0]}"
        metadata = _toml(text.encode(), where)
        table = dict(metadata.get("tool", {}).get("instainfer", {}))
        if "dependencies" in metadata:
            table.setdefault("requirements", metadata["dependencies"])
        return table, where
    return {}, "the package"


def _toml(data: bytes, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadSettings(f"{where}: {error}", hint="https://toml.io shows the notation") from None


def _requirement_lines(package: Package, file: str, seen: tuple[str, ...]) -> tuple[str, ...]:
    """The lines of a requirements file: comments gone, continued lines joined, `-r` files read in."""
    lines: list[str] = []
    text = package.read(file).decode("utf-8-sig", "replace").replace("\\\r\n", " ").replace("\\\n", " ")
    for raw in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        option, _, rest = line.replace("=", " ", 1).partition(" ")
        if option in _REFUSED_LINES or line.startswith((".", "/")):
            hint = _REFUSED_LINES.get(option, "put the code into the package")
            raise BadSettings(f"{file}: {line!r} cannot be installed on the server", hint=hint)
        if option in ("-r", "--requirement"):
            inner = posixpath.normpath(posixpath.join(posixpath.dirname(file), rest.strip()))
            if inner not in package.names() or inner in seen or inner == file:
                raise BadSettings(
                    f"{file}: {line!r}: the package has no such file", hint="add it, or drop the line"
                )
            lines += _requirement_lines(package, inner, (*seen, file))
        elif line:
            lines.append(line)
    return tuple(lines)


#: A function without `entry` is looked for in these files, then in the only .py file at the package's root.
ENTRY_FILES = ("main.py", "__main__.py")


def find_entry(package: Package, settings: Settings, *, function: str = "") -> tuple[Style, str]:
    """The style and the full entry of the function, from its source's syntax alone.

    Raises BadPackage saying which names are looked for and what the file defines.
    """
    if settings.entry:
        return _explicit(package, settings.entry, function)
    names = package.names()
    root = sorted(name for name in names if "/" not in name and name.endswith(".py"))
    found = [name for name in ENTRY_FILES if name in names] or (root if len(root) == 1 else [])
    for name in found:
        source = package.read(name).decode("utf-8-sig", "replace")
        defined = _defined(source, name, function)
        from instainfer.runtime.styles import detect

        if (answer := detect(source, name)) is not None:
            return Style(answer[0]), answer[1]
        raise _no_entry(
            f"{name} defines no function that could be called; it defines {_listed(_written(defined))}", function
        )
    inside = sorted({name.partition("/")[0] for name in names if name.endswith("/main.py")})
    if inside and not root:
        raise _no_entry(f"there is no main.py at the package's root, but one in {inside[0]}/", function, inside[0])
    raise _no_entry(f"there is no main.py; the package's root has {_listed(root)}", function)


def _explicit(package: Package, entry: str, function: str) -> tuple[Style, str]:
    names = package.names()
    if entry.endswith(".py"):
        if entry not in names:
            raise _no_entry(f"entry {entry!r}: the package has no such file", function)
        _defined(package.read(entry).decode("utf-8-sig", "replace"), entry, function)
        return Style.SCRIPT, entry
    module, _, attribute = entry.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise _no_entry(f'entry {entry!r} is not "module:name" or a .py file', function)
    path = module.replace(".", "/")
    file = next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in names), None)
    if file is None:
        raise _no_entry(f"entry {entry!r}: the package has neither {path}.py nor {path}/__init__.py", function)
    defined = _defined(package.read(file).decode("utf-8-sig", "replace"), file, function)
    if attribute not in defined and "*" not in defined:  # which may bring it
        raise _no_entry(f"entry {entry!r}: {file} defines {_listed(_written(defined))}, not {attribute}", function)
    node = defined.get(attribute)
    if isinstance(node, ast.ClassDef):
        methods = {item.name for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))}
        if "predict" not in methods and not node.bases:  # a base may bring it
            raise _no_entry(f"entry {entry!r}: the class has no method predict", function)
        return Style.CLASS, entry
    # An imported or assigned name: by the custom that classes begin with a capital.
    imported = not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    return (Style.CLASS if imported and attribute[0].isupper() else Style.MODULE), entry


def _defined(source: str, file: str, function: str) -> dict[str, ast.stmt]:
    """Names that a module binds at its top level (also under if/try/with), with the statement."""
    try:
        tree = ast.parse(source, file)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadPackage(
            f"{file} cannot be parsed: {error}", hint="run it once with python", function=function
        ) from None
    found: dict[str, ast.stmt] = {}
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                found[(alias.asname or alias.name).partition(".")[0]] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    found[target.id] = node
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            waiting += [item for item in ast.iter_child_nodes(node) if isinstance(item, ast.stmt)]
    return found


def _written(defined: Mapping[str, ast.stmt]) -> list[str]:
    """Functions and classes, in the order of the file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [name for name, node in defined.items() if isinstance(node, kinds)]


def _listed(names: Any) -> str:
    shown = list(names)
    return ", ".join(shown[:8]) + (", …" if len(shown) > 8 else "") if shown else "nothing"


def _no_entry(message: str, function: str, wrapped: str = "") -> BadPackage:
    hint = (
        f"zip the content of {wrapped}/, not the folder itself"
        if wrapped
        else "main.py needs `handler(event)`, `main(args)` or a class with `load` and `predict`; "
        'or set entry = "file:name"'
    )
    return BadPackage(message, hint=hint, function=function, phase="package")
