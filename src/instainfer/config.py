"""The only reader of settings: one typed file, the environment above it, flags above both.

`instainfer.toml` holds the sections below; every key is also an environment variable
`INSTAINFER_SECTION__KEY` (`INSTAINFER_SERVER__PORT=8080`). Reading is strict: a key nobody knows or a value
that cannot be meant raises BadSettings with its place, its value and what is allowed. Nothing is read at
import time, and nothing is looked up later: what `load` returns is what the server runs with.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec

from instainfer.errors import BadSettings
from instainfer.units import MB, listed, parse_bytes, parse_seconds

Size = Annotated[int, msgspec.Meta(ge=0, extra={"reader": parse_bytes})]
Seconds = Annotated[float, msgspec.Meta(ge=0, extra={"reader": parse_seconds})]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Names = tuple[str, ...]  # written as a list, or with commas in one text
#: Above every real user's, below 2**31 (some file systems and tools read uids as signed): systemd's
#: container range starts at 0x00080000 and ends at 0x6FFFFFFF; this is 0x70000000.
UID_BASE = 1879048192
Uid = Annotated[int, msgspec.Meta(ge=65536, le=(1 << 31) - (1 << 24))]

#: Share of this machine's memory that a server takes when `node.memory` does not say.
MEMORY_SHARE = 0.7
#: Share of `node.memory` that library zygotes may take when `node.zygote_memory` does not say.
ZYGOTE_SHARE = 0.5
UNSAID = 1 << 62  # of a size whose 0 means something


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes are bytes (written "64MB"), durations seconds (written 10, "10s" or "5m")."""


class Server(Section, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: Port = 3233  # 0: any free one
    data_dir: Path = Path()  # resolved by `load`; see `default_data_dir`
    cert: str = ""  # PEM: callers are answered by TLS; "": in the clear
    cert_key: str = ""  # to it, where that is not in the same file
    api_key: str = ""  # of the owner; "" and no namespace's key: none is asked for, allowed on loopback only
    hosts: Names = ()  # names that it is called by beside those of loopback, looked at while there is no key
    max_body: Size = 64 * MB
    max_answer: Size = 64 * MB
    drain_s: Seconds = 10.0  # how long a stop waits for running requests
    access_log: bool = False
    log: Literal["text", "json"] = "text"


class Node(Section, frozen=True, kw_only=True):
    memory: Size = 0  # of all containers' limits together; 0 or "": MEMORY_SHARE of this machine's
    zygote_memory: Size = UNSAID  # of library zygotes, out of `memory`; 0: none; not said: ZYGOTE_SHARE of it
    load_slots: Count = 0  # loads at a time; 0: one per core
    uid_base: Uid = UID_BASE  # first host uid of those that containers use


class Cluster(Section, frozen=True, kw_only=True):
    address: str = ""  # "": this machine alone; "ray", "ray://HOST:PORT", or "a=http://HOST:PORT,b=http://…"
    key: str = ""  # that the agents of other machines ask for; "": one is made and kept in the data directory
    lost_s: Seconds = 3.0  # an agent out of reach for so long is lost; by then it has ended what it ran
    grow_s: Seconds = 0.0  # memory that no other work of Ray's has held for so long becomes ours; 0: it does not
    drain_s: Seconds = 60.0  # the longest that a drained node serves until what it has stands elsewhere


class Gateway(Section, frozen=True, kw_only=True):
    """Of `instainfer gateway`."""

    servers: Names = ()  # that may serve, http://HOST:PORT each; requests go to the one that does
    store: str = ""  # the servers' database: the one that has it says there where it is
    host: str = "127.0.0.1"
    port: Port = 3233  # 0: any free one
    cert: str = ""  # PEM: callers are answered by TLS; "": in the clear
    cert_key: str = ""  # to it, where that is not in the same file
    hold: Count = 1000  # requests that wait while no server serves
    hold_memory: Size = 256 * MB  # of bodies that wait, or may have to be sent again
    hold_s: Seconds = 60.0  # longest wait of each
    drain_s: Seconds = 10.0  # how long a stop waits for requests under way


class Tls(Section, frozen=True, kw_only=True):
    """Between server and agents, and from gateways to servers; PEM files."""

    cert: str = ""  # what this process shows of itself
    key: str = ""  # to it, where that is not in the same file
    ca: str = ""  # whom it believes; an agent then asks for a certificate of theirs


class Sandbox(Section, frozen=True, kw_only=True):
    kind: Literal["auto", "linux", "process"] = "auto"
    pids: Positive = 256  # processes per container
    scratch: Size = 512 * MB  # of /tmp and of /dev/shm, each, per container
    networks: Names = ()  # private ones that functions with a network may reach, "10.1.0.0/16"


class Policy(Section, frozen=True, kw_only=True):
    """Names are checked by whoever builds the policies: this layer knows none."""

    mode: str = "hazard"
    predictor: str = ""  # "": the mode's own
    keep_alive: str = "pressure"
    keep_alive_s: Seconds = 600.0  # for keep-alive policies with a time
    shadow: Names = ()  # modes that decide beside it and never act, MODE or MODE:PREDICTOR


class Environments(Section, frozen=True, kw_only=True):
    installer: Literal["auto", "uv", "pip"] = "auto"
    root: Path = Path()  # where they are, at the same path on all nodes; not said: in the data directory
    build_timeout_s: Seconds = 1800.0


class Artifacts(Section, frozen=True, kw_only=True):
    sources: Names = ()  # asked in this order: /FOLDER, http://HOST:PORT, s3://BUCKET/PREFIX
    key: str = ""  # sent to those that are servers
    budget: Size = 20_000 * MB  # of what is kept on this node


class Limits(Section, frozen=True, kw_only=True):
    queue: Positive = 1000  # waiting requests per function
    requests: Positive = 20_000  # accepted and not answered, of all functions together
    bodies: Size = 1_000 * MB  # of requests that are accepted and not answered, all together
    read_s: Seconds = 30.0  # a client that sends or takes nothing for so long in the middle of a request is let go
    queue_s: Seconds = 60.0  # longest wait of a request for its instance
    load_s: Seconds = 300.0  # longest load of an instance, frozen time not counted
    log_bytes: Size = 65536  # kept of what one activation prints
    jobs: Positive = 10_000  # requests to be answered later that wait, per namespace
    attempts: Positive = 5  # of such a request, when its instance or the platform fails it
    interruptions: Positive = 20  # of such a request: ends of the server that one of its attempts ended with


class Telemetry(Section, frozen=True, kw_only=True):
    otlp: str = ""  # of a collector, such as http://127.0.0.1:4318; "": no spans
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0  # of the traces that begin here


class Store(Section, frozen=True, kw_only=True):
    url: str = ""  # "": SQLite in the data directory; or postgresql://USER:PASSWORD@HOST/DATABASE
    lease_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 15.0  # so long it is a server's that is not heard of
    standby: bool = False  # wait for the end of the server that uses the database, then take over


class Records(Section, frozen=True, kw_only=True):
    keep_activations: Positive = 1_000_000
    keep_answers_s: Seconds = 86400.0  # of requests that were answered later, and of OpenWhisk's activations
    keep_events_mb: Positive = 256


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    server: Server = Server()
    node: Node = Node()
    cluster: Cluster = Cluster()
    gateway: Gateway = Gateway()
    tls: Tls = Tls()
    sandbox: Sandbox = Sandbox()
    policy: Policy = Policy()
    environments: Environments = Environments()
    artifacts: Artifacts = Artifacts()
    limits: Limits = Limits()
    store: Store = Store()
    telemetry: Telemetry = Telemetry()
    records: Records = Records()


SECTIONS: dict[str, type[Section]] = get_type_hints(Settings)

Raw = Mapping[str, Mapping[str, Any]]  # section -> key -> value


def default_data_dir() -> Path:
    """/var/lib/instainfer for root, the XDG data directory's `instainfer` for everyone else."""
    if os.geteuid() == 0:
        return Path("/var/lib/instainfer")
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "instainfer"


def load(file: Path | None = None, environ: Mapping[str, str] | None = None, flags: Raw | None = None) -> Settings:
    """The settings in force, every default filled in (`server.data_dir`, `environments.root`, those of `node`).

    `file`: must exist when given; otherwise INSTAINFER_CONFIG's, otherwise `./instainfer.toml` if there is
    one. `environ`: defaults to this process's. `flags`: {section: {key: value}} from the command line;
    a value of None means not given. Raises BadSettings.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    if file is None and (named := environ.get("INSTAINFER_CONFIG")):
        file = Path(named)
    if file is None and Path("instainfer.toml").is_file():
        file = Path("instainfer.toml")
    if file is not None:
        _merge(values, _from_file(file), str(file))
    _merge(values, _from_environ(environ), "the environment")
    given = {s: {k: v for k, v in keys.items() if v is not None} for s, keys in (flags or {}).items()}
    _merge(values, given, "the command line")
    sections: dict[str, Any] = {name: section(**values[name]) for name, section in SECTIONS.items()}
    return _filled(Settings(**sections))


def _from_file(file: Path) -> Raw:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSettings(
            f"{file} cannot be read: {error.strerror}", hint="give --config an existing file"
        ) from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise BadSettings(f"{file} is not valid TOML: {error}", hint="see https://toml.io") from None
    for name, keys in content.items():
        if not isinstance(keys, dict):
            raise BadSettings(
                f"{file}: {name} = {keys!r} stands outside any section",
                hint=f"put it under one of {_listed(f'[{s}]' for s in SECTIONS)}",
            )
    return content


def _from_environ(environ: Mapping[str, str]) -> Raw:
    found: dict[str, dict[str, str]] = {}
    for variable, value in sorted(environ.items()):
        section, double, key = variable.removeprefix("INSTAINFER_").partition("__")
        if double and variable.startswith("INSTAINFER_"):
            found.setdefault(section.lower(), {})[key.lower()] = value
    return found


def _merge(values: dict[str, dict[str, Any]], raw: Raw, source: str) -> None:
    for section, keys in raw.items():
        if section not in SECTIONS:
            raise BadSettings(
                f"{source}: there is no section [{section}]", hint=f"the sections are {_listed(SECTIONS)}"
            )
        hints = get_type_hints(SECTIONS[section], include_extras=True)
        for key, value in keys.items():
            if key not in hints:
                raise BadSettings(
                    f"{source}: there is no key {key!r} in [{section}]", hint=f"its keys are {_listed(hints)}"
                )
            values[section][key] = _value(hints[key], value, f"{source}: {section}.{key} = {value!r}")


def _value(hint: Any, value: Any, place: str) -> Any:
    """`value` as the key's type, from TOML's types or an environment variable's text."""
    if hint is Path:
        if not isinstance(value, str | Path) or not str(value):
            raise BadSettings(f"{place} is not a path", hint='write a directory, such as "/var/lib/instainfer"')
        return Path(value).expanduser().absolute()
    if hint == Names:
        return _names(value, place)
    metas = [meta for meta in get_args(hint) if isinstance(meta, msgspec.Meta)]
    reader = (metas[0].extra or {}).get("reader") if metas else None
    try:
        if reader and isinstance(value, str):
            value = reader(value) if value else 0
        if hint is str and not isinstance(value, str):
            raise ValueError("text in quotes is expected")
        if isinstance(value, bool) and hint is not bool:
            raise ValueError(f"{_allowed(hint)} is expected")
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError:
        raise BadSettings(f"{place} cannot be used", hint=f"allowed: {_allowed(hint)}") from None
    except ValueError as error:
        raise BadSettings(f"{place} cannot be used", hint=str(error)) from None


def _names(value: Any, place: str) -> Names:
    if isinstance(value, str):
        inner = value.strip().removeprefix("[").removesuffix("]")
        value = [name.strip("\"'") for name in listed(inner)]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise BadSettings(f"{place} cannot be used", hint='write a list, such as ["tyche", "gdsf"], or tyche,gdsf')
    return tuple(name for name in value if name)


def _allowed(hint: Any) -> str:
    if hint is bool:
        return "true or false"
    choices = get_args(hint)
    metas = [meta for meta in choices if isinstance(meta, msgspec.Meta)]
    if not metas:
        return _listed(map(repr, choices)) or "text"
    (meta,) = metas
    kind = "a whole number" if choices[0] is int else "a number"
    if meta.extra:
        kind = 'a size such as "512MB"' if choices[0] is int else 'seconds, or a duration such as "30s"'
    if meta.le is not None:
        return f"{kind} from {meta.ge} to {meta.le}"
    return f"{kind} of at least {meta.ge}" if meta.ge is not None else kind


def _filled(settings: Settings) -> Settings:
    """With what depends on this machine and user."""
    server, node = settings.server, settings.node
    if server.data_dir == Path():
        server = msgspec.structs.replace(server, data_dir=default_data_dir())
    memory = node.memory or int(machine_memory() * MEMORY_SHARE)
    slots = node.load_slots or len(os.sched_getaffinity(0))
    zygotes = int(memory * ZYGOTE_SHARE) if node.zygote_memory == UNSAID else node.zygote_memory
    node = msgspec.structs.replace(node, memory=memory, load_slots=slots, zygote_memory=zygotes)
    environments = settings.environments
    if environments.root == Path():
        environments = msgspec.structs.replace(environments, root=server.data_dir / "environments")
    return msgspec.structs.replace(settings, server=server, node=node, environments=environments)


def machine_memory() -> int:
    """Bytes that this server could use: the machine's, or less where a cgroup (a container) allows less."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():  # "max" says: no limit
            found = min(found, int(text))
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. A name other than localhost counts as reachable: what it
    resolves to can change."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _listed(names: Any) -> str:
    return ", ".join(names)
