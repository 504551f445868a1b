"""OpenWhisk's actions as functions: the package that an action is kept as, and the record that it is shown as."""

from __future__ import annotations

import base64
import binascii
import io
import re
import zipfile
import zlib
from datetime import UTC, datetime
from typing import Any

import msgspec

from instainfer.errors import BadInput, BadPackage, InstaInferError
from instainfer.model import FunctionSpec

#: What is kept of an action beside its code, as a file of its package.
NOTES = "openwhisk.json"
#: OpenWhisk's code is `__main__`, which is somebody else's name in a running interpreter.
MAIN = "main__"
KINDS = ("python:3", "python:default", "python:3.9", "python:3.10", "python:3.11", "python:3.12", "python:3.13")
MIB = 1 << 20
LARGEST_LIMIT = 10**12  # beyond any that a function can have: what it may be is checked with the other settings
_SITE = re.compile(r"virtualenv/lib/python3\.\d+/site-packages/(.+)")
_OURS = re.compile(rf"\b{MAIN}\b")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def package(
    wanted: dict[str, Any],
    before: FunctionSpec | None,
    old: bytes | None,
    *,
    namespace: str,
    name: str,
    api_host: str,
) -> tuple[bytes, dict[str, Any]]:
    """The package of an action that is put, and the settings over those it has. `before`, `old`: the version that
    it replaces; what is not said stays as it was. Raises BadInput, BadPackage."""
    notes = _notes(old) if old is not None else {}
    exec_ = wanted.get("exec")
    if exec_ is not None:
        files, notes["exec"] = _code(exec_)
    elif old is not None:
        files = _files(old)
    else:
        raise BadInput("the action has no code", hint="send exec with kind and code")
    notes["annotations"] = _annotations(wanted, notes.get("annotations", []))
    settings: dict[str, Any] = {}
    if "exec" in notes:
        main = notes["exec"]["main"]
        settings["entry"] = f"{MAIN}:{main}"
        python = notes["exec"]["kind"].partition(":")[2]
        if python not in ("3", "default"):
            settings["python"] = python
    if "parameters" in wanted:
        pairs = _pairs(wanted["parameters"], "parameters")
        settings["params"] = {pair["key"]: pair.get("value") for pair in pairs}
    elif before is not None:
        settings["params"] = before.params
    settings |= _limits(wanted.get("limits"), before)
    number = 1 if before is None else before.version + 1
    settings["env"] = {
        "__OW_API_HOST": api_host,
        "__OW_NAMESPACE": namespace,
        "__OW_ACTION_NAME": f"/{namespace}/{name}",
        "__OW_ACTION_VERSION": version(number),
    }
    files[NOTES] = msgspec.json.encode(notes)
    return _zip(files), settings


def _code(exec_: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of its code, and what to keep of `exec`."""
    if not isinstance(exec_, dict):
        raise BadInput("exec is not an object", hint='send {"kind": "python:3", "code": "…"}')
    kind = exec_.get("kind")
    if kind not in KINDS:
        raise BadInput(f"kind {kind!r} not in Set({', '.join(KINDS)})", hint="actions are written in Python here")
    code, main = exec_.get("code"), exec_.get("main") or "main"
    if not isinstance(code, str) or not code:
        raise BadInput("exec.code is missing", hint="send the source, or a zip in base64")
    if not isinstance(main, str) or not main.isidentifier():
        raise BadInput(
            f"exec.main = {main!r} is no function's name",
            hint="name one that __main__.py defines or imports, without dots",
        )
    binary = exec_.get("binary")
    files = None
    if binary is not False and (binary or _looks_zipped(code)):
        try:
            files = _files(base64.b64decode(code, validate=True))
        except (binascii.Error, ValueError) as error:
            raise BadPackage(f"exec.code is no zip in base64: {error}") from None
        if f"{MAIN}.py" not in files:
            raise BadPackage("the zip has no __main__.py at its root", hint="zip the folder's content")
    return files or {f"{MAIN}.py": code.encode()}, {"kind": kind, "main": main, "binary": files is not None}


def in_its_words(error: InstaInferError) -> InstaInferError:
    """What is wrong with the package of an action, of which its author knows other names."""
    if isinstance(error, BadPackage):
        text = _OURS.sub("__main__", error.message)
        hint = "define main(args) in __main__.py, or name your function in exec.main"
        hint = hint if "main.py needs" in error.hint else error.hint
        return BadPackage(text, hint=hint, function=error.function, phase=error.phase, detail=error.detail)
    return error


def _looks_zipped(code: str) -> bool:
    return code.startswith("UEsDB")  # "PK\3\4" in base64


def _files(data: bytes) -> dict[str, bytes]:
    """Of a zip, under the names that they have in a function's package. Sizes are checked as those of any package
    are, when it is deployed: here, so that a bomb is not unpacked before."""
    found = {}
    left = 256_000_000
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                left -= info.file_size
                if left < 0:
                    raise BadPackage("the zip unpacks to more than 256 MB")
                if info.is_dir():
                    continue
                with archive.open(info) as file:
                    content = file.read(info.file_size + 1)
                name = f"{MAIN}.py" if info.filename == "__main__.py" else info.filename
                site = _SITE.fullmatch(name)
                found[site[1] if site else name] = content
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error) as error:
        raise BadPackage(f"the code is not a zip that can be read: {error}") from None
    return found


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in sorted(files.items()):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            try:
                archive.writestr(info, content)
            except ValueError as error:
                raise BadPackage(f"{name!r} cannot be in a package: {error}") from None
    return out.getvalue()


def _notes(data: bytes) -> dict[str, Any]:
    """Empty for a function that was not deployed as an action."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if NOTES not in archive.namelist():
            return {}
        found = msgspec.json.decode(archive.read(NOTES))
    return found if isinstance(found, dict) else {}


def _pairs(given: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not all(
        isinstance(one, dict) and isinstance(one.get("key"), str) for one in given
    ):
        raise BadInput(f"{what} is not a list of keys and values", hint='send [{"key": "…", "value": …}]')
    return given


def _annotations(wanted: dict[str, Any], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As OpenWhisk amends them: those it had, without the deleted, under those that are given. Raises BadInput."""
    deleted = wanted.get("delAnnotations") or []
    if not isinstance(deleted, list) or not all(isinstance(key, str) for key in deleted):
        raise BadInput("delAnnotations is not a list of keys", hint='send ["description"]')
    given = _pairs(wanted.get("annotations") or [], "annotations")
    gone = {*deleted, *(pair["key"] for pair in given)}
    return [pair for pair in before if pair["key"] not in gone] + given


def _limits(given: Any, before: FunctionSpec | None) -> dict[str, Any]:
    """As settings; `logs` is the server's. Raises BadInput."""
    settings: dict[str, Any] = {}
    if before is not None:
        settings = {
            "timeout": before.timeout_s, "memory": before.memory, "concurrency": before.concurrency
        }  # fmt: skip
    if given is None:
        return settings
    if not isinstance(given, dict):
        raise BadInput("limits is not an object", hint='send {"timeout": 60000, "memory": 256}')
    for name, value in given.items():
        if name not in ("timeout", "memory", "logs", "concurrency"):
            raise BadInput(f"limits has no {name!r}")
        least = 0 if name == "logs" else 1
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST_LIMIT:
            raise BadInput(f"limits.{name} = {value!r} is no number from {least} to {LARGEST_LIMIT}")
    if "timeout" in given:
        settings["timeout"] = given["timeout"] / 1e3
    if "memory" in given:
        settings["memory"] = given["memory"] * MIB
    if "concurrency" in given:
        settings["concurrency"] = given["concurrency"]
    return settings


# ---- as it is shown ----------------------------------------------------------------------------------------


def summary(spec: FunctionSpec) -> dict[str, Any]:
    return {
        "namespace": spec.namespace,
        "name": spec.name,
        "version": version(spec.version),
        "publish": False,
        "exec": {"binary": False},
        "annotations": [{"key": "exec", "value": kind(spec)}],
        "limits": limits(spec),
        "updated": round(spec.wall * 1e3),
    }


def record(spec: FunctionSpec, data: bytes, *, code: bool) -> dict[str, Any]:
    """Of an action, with its code as it was put; a function that was deployed otherwise is shown as a zip."""
    notes = _notes(data)
    known = notes.get("exec", {})
    binary = bool(known.get("binary", True))
    shown: dict[str, Any] = {
        "kind": known.get("kind", kind(spec)),
        "main": known.get("main", spec.entry.partition(":")[2]),
        "binary": binary,
    }
    if code and binary:
        files = _files(data)
        files.pop(NOTES, None)
        if known and f"{MAIN}.py" in files:
            files["__main__.py"] = files.pop(f"{MAIN}.py")
        shown["code"] = base64.b64encode(_zip(files)).decode()
    elif code:
        shown["code"] = _files(data)[f"{MAIN}.py"].decode()
    annotations = [one for one in notes.get("annotations", []) if one["key"] != "exec"]
    return summary(spec) | {
        "exec": shown,
        "annotations": [*annotations, {"key": "exec", "value": shown["kind"]}],
        "parameters": [{"key": key, "value": value} for key, value in spec.params.items()],
    }


def kind(spec: FunctionSpec) -> str:
    return f"python:{spec.python}" if re.fullmatch(r"3\.\d+", spec.python) else "python:3"


def limits(spec: FunctionSpec) -> dict[str, Any]:
    return {
        "timeout": round(spec.timeout_s * 1e3),
        "memory": round(spec.memory / MIB),
        "logs": 10,
        "concurrency": spec.concurrency,
    }


def version(number: int) -> str:
    return f"0.0.{number}"


def moment(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
