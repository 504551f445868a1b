"""What a function says about itself: `function.toml`, or `[tool.instainfer]` of pyproject.toml.

Reading is strict: an unknown key or an impossible value raises BadSettings with the key, the value and what
is allowed. Nothing here touches files; `packages.read_settings` finds the text.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from instainfer import units
from instainfer.errors import BadSettings
from instainfer.model import Batch, Tensor

OLDEST_PYTHON = (3, 9)
LONGEST_VARIABLE = 100_000  # bytes: the kernel starts no process with one of 128 KiB, its name included
LEAST_MEMORY = 16 << 20  # below this an interpreter with one library does not start
MOST_TENSORS = 256  # inputs, and as many outputs
DATATYPES = (
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "FP16", "FP32", "FP64", "BF16", "BYTES",
)  # fmt: skip
LONGEST_TIMEOUT_S = 24 * 3600.0
LARGEST_BATCH = 1024
LONGEST_WAIT_MS = 10_000.0


def _size(value: Any) -> int:
    """Bytes from "512MB" (10^6), "1GiB" (2^30), "64m" (2^20) or a plain number."""
    return int(_number(value, units.parse_bytes, '"512MB", "1GiB" or a number of bytes'))


def _duration(value: Any) -> float:
    """Seconds from "30s", "500ms", "2m", "1h" or a plain number."""
    return _number(value, units.parse_seconds, '"30s", "500ms", "2m" or a number of seconds')


def _number(value: Any, read: Callable[[str], float], allowed: str) -> float:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return read(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return value
    raise BadSettings(f"{value!r} cannot be read", hint=f"write {allowed}")


#: None of the short ways to a loaded model: what a cold start is elsewhere.
PLAIN = dict.fromkeys(("zygote", "snapshot", "clone", "intercept"), False)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One function's wishes, defaults filled in. Sizes in bytes, times in seconds.

    `requirements` are lines of pip's requirements format; `python` is "3.11" or the absolute path of an
    interpreter that exists already.
    """

    entry: str = ""
    memory: int = 512_000_000
    timeout: float = 60.0
    concurrency: int = 1
    batch: Batch | None = None
    requirements: tuple[str, ...] = ()
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"
    device: str = "cpu"
    network: bool | tuple[str, ...] = False
    sample: str = ""
    isolation: str = "freeze"
    cpus: int = 1
    zygote: bool = True
    snapshot: bool | tuple[str, ...] = True  # names: the globals that are the model (module style)
    clone: bool = True
    intercept: bool = True
    env: dict[str, str] = {}
    params: dict[str, Any] = {}  # JSON values
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()

    def merged(self, overrides: Mapping[str, Any]) -> Settings:
        """These with the overrides on top: the tables `env` and `params` key by key, the rest whole."""
        return _decode(overrides, "the given options", self)


def settings_from(table: Mapping[str, Any], where: str) -> Settings:
    """Settings from a parsed TOML table. `where` names its source in errors."""
    return _decode(table, where, Settings())


def _decode(table: Mapping[str, Any], where: str, base: Settings) -> Settings:
    values = msgspec.structs.asdict(base)
    for key, value in table.items():
        read = _READERS.get(key)
        if read is None:
            near = difflib.get_close_matches(key, _READERS, n=1)
            raise BadSettings(
                f"{where}: unknown key {key!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(sorted(_READERS))}",
            )
        try:
            decoded = read(value)
        except BadSettings as error:
            raise BadSettings(f"{where}: {key} = {_shown(value)}: {error.message}", hint=error.hint) from None
        values[key] = {**values[key], **decoded} if isinstance(decoded, dict) else decoded
    return Settings(**values)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse(message: str, allowed: str) -> BadSettings:
    return BadSettings(message, hint=f"allowed: {allowed}")


def _text(allowed: str, pattern: str = r"[^\x00-\x1f]*") -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise _refuse("not understood", allowed)
        return value

    return read


def _memory(value: Any) -> int:
    size = _size(value)
    if size < LEAST_MEMORY:
        raise _refuse("too little to run in", f"at least {LEAST_MEMORY >> 20}MiB")
    return size


def _timeout(value: Any) -> float:
    seconds = _duration(value)
    if not 0 < seconds <= LONGEST_TIMEOUT_S:
        raise _refuse("out of range", f"more than 0 and at most {LONGEST_TIMEOUT_S:.0f} seconds")
    return float(seconds)


def _concurrency(value: Any) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 1000:
        raise _refuse("not a number of requests", "a whole number from 1 to 1000")
    return number


def _flag(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):  # from a command line
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise _refuse("not a yes or no", "true or false")
    return value


def _cpus(value: Any) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 256:
        raise _refuse("not a number of processors", "a whole number from 1 to 256")
    return number


def _snapshot(value: Any) -> bool | tuple[str, ...]:
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(name, str) and name.isidentifier() for name in value):
            return tuple(value)
        raise _refuse("not a list of names", 'true, false, or the globals that are the model: ["model", "labels"]')
    return _flag(value)


def _python(value: Any) -> str:
    if isinstance(value, float):
        raise _refuse("a number loses its last zero", 'a version in quotes, "3.11"')
    if isinstance(value, str):
        if value.startswith("/"):
            return value
        if re.fullmatch(r"3\.[0-9]{1,2}", value):
            if (3, int(value[2:])) < OLDEST_PYTHON:
                raise _refuse("too old", "3.9 and later")
            return value
    raise _refuse("not a version", '"3.11", or the absolute path of an interpreter')


def _requirements(value: Any) -> tuple[str, ...]:
    if isinstance(value, (list, tuple)) and all(isinstance(line, str) for line in value):
        return tuple(line.strip() for line in value if line.strip())
    raise _refuse("not a list of requirements", 'a list like ["numpy>=2"], or the name of a file in the package')


def _table(kind: str) -> Callable[[Any], dict[str, Any]]:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _refuse("not a table", f'[{kind}] with lines like name = "value"')
        out: dict[str, Any] = {}
        for name, item in value.items():
            if kind == "env" and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise _refuse(f"{name!r} cannot name a variable", "letters, digits and underscores")
            if kind == "env" and (isinstance(item, bool) or not isinstance(item, (str, int, float))):
                raise _refuse(f"{name} is not a text", f'a text in quotes, {name} = "…"')
            if kind == "env" and ("\0" in str(item) or len(str(item).encode()) > LONGEST_VARIABLE):
                raise _refuse(
                    f"{name} is no value of a variable", f"up to {LONGEST_VARIABLE} bytes, none of them 0"
                )
            # What JSON has no word for (TOML's dates) travels as text; variables are text anyway.
            out[name] = str(item) if kind == "env" else json.loads(json.dumps(item, default=str))
        return out

    return read


def _network(value: Any) -> bool | tuple[str, ...]:
    allowed = 'true, false or a list like ["api.example.com:443", "*.example.org:80"], at most 64'
    if isinstance(value, str):  # from a command line
        value = value.split(",") if ":" in value else {"true": True, "false": False}.get(value.lower())
    if isinstance(value, bool):
        return value
    if not isinstance(value, (list, tuple)) or not all(isinstance(rule, str) for rule in value) or len(value) > 64:
        raise _refuse("no list of places", allowed)
    for rule in value:
        match = re.fullmatch(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?:([0-9]{1,5})", rule)
        if match is None or not 0 < int(match[3]) < 65536:
            raise _refuse(f"{rule[:300]!r} is no place", allowed)
    return tuple(sorted({rule.lower() for rule in value})) or False


def _tensors(value: Any) -> tuple[Tensor, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > MOST_TENSORS:
        raise _refuse("not a list of tensors", f"at most {MOST_TENSORS} tables, each a [[…]] of its own")
    try:
        found = msgspec.convert([_upper(one) for one in value], tuple[Tensor, ...])
    except msgspec.ValidationError as error:
        raise _refuse(
            str(error), 'tables of name, datatype and shape: {name = "x", datatype = "FP32", …}'
        ) from None
    for one in found:
        if not re.fullmatch(r"[^\x00-\x1f]{1,255}", one.name):
            raise _refuse(f"{one.name!r} cannot name a tensor", "1 to 255 characters")
        if one.datatype not in DATATYPES:
            raise _refuse(f"{one.name}: {one.datatype!r} is no datatype", ", ".join(DATATYPES))
        if len(one.shape) > 32 or not all(-1 <= size <= 1 << 30 for size in one.shape):
            raise _refuse(f"{one.name}: {list(one.shape)} is no shape", "at most 32 sizes of 0 or more; -1 is any")
    if len({one.name for one in found}) < len(found):
        raise _refuse("two tensors have one name", "a name for each")
    return found


def _upper(one: Any) -> Any:
    """A tensor's table, its datatype in the protocol's spelling."""
    if isinstance(one, Mapping) and isinstance(one.get("datatype"), str):
        if extra := set(one) - {"name", "datatype", "shape"}:
            raise _refuse(f"a tensor has no {min(extra)!r}", "name, datatype and shape")
        return {**one, "datatype": one["datatype"].upper()}
    return one


def _batch(value: Any) -> Batch:
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"max": value}
    if not isinstance(value, Mapping) or "max" not in value or set(value) - {"max", "wait_ms"}:
        raise _refuse("not a batch", "{max = 8, wait_ms = 5}")
    most, wait_ms = value["max"], value.get("wait_ms", 5)
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= LARGEST_BATCH:
        raise _refuse(f"max = {_shown(most)}", f"a whole number from 1 to {LARGEST_BATCH}")
    if not isinstance(wait_ms, (int, float)) or isinstance(wait_ms, bool) or not 0 <= wait_ms <= LONGEST_WAIT_MS:
        raise _refuse(f"wait_ms = {_shown(wait_ms)}", f"milliseconds from 0 to {LONGEST_WAIT_MS:g}")
    return Batch(max=most, wait_s=wait_ms / 1e3)


_READERS: dict[str, Callable[[Any], Any]] = {
    "entry": _text('"main:handler", "main:Model" or "script.py"'),
    "memory": _memory,
    "timeout": _timeout,
    "concurrency": _concurrency,
    "requirements": _requirements,
    "python": _python,
    "device": _text('"cpu": no other device is offered yet', r"cpu"),
    "network": _network,
    "sample": _text("the path of a file in the package"),
    "isolation": _text('"freeze" or "strict"', r"freeze|strict"),
    "cpus": _cpus,
    "zygote": _flag,
    "snapshot": _snapshot,
    "clone": _flag,
    "intercept": _flag,
    "batch": _batch,
    "env": _table("env"),
    "params": _table("params"),
    "inputs": _tensors,
    "outputs": _tensors,
}
