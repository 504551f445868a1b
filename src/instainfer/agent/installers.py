"""uv and pip as lists of arguments: what to run, with which indexes, and what their output means.

uv does not read pip's configuration, and inside a sandbox pip cannot: so it is read here, once, and given to
both by arguments and variables.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Projects of which several builds share one version number, told apart only by where they come from. pip
#: compares all sources alike; uv has rules of its own for them.
SEVERAL_BUILDS = frozenset({"torch", "torchvision", "torchaudio", "pytorch-triton", "jaxlib", "tensorflow"})

_PASSED = re.compile(
    r"(https?|all|no|ftp)_proxy|pip_.+|uv_.+|ssl_cert_(file|dir)|(requests|curl)_ca_bundle", re.IGNORECASE
)
_NOT_PASSED = re.compile(
    r".*(token|password|secret|username|keyring).*"
    r"|(pip|uv)_(python|target|prefix|root|user|requirement|cache_dir|no_cache.*|dry_run|system_python|config_file|"
    r"project.*|working_dir.*|editable|report|log|quiet|verbose|offline|env_file|link_mode|require_virtualenv)",
    re.IGNORECASE,
)


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables of the server that a build gets: proxies, indexes, certificates; nothing secret, nothing that
    changes where things are installed."""
    return {k: v for k, v in environ.items() if _PASSED.fullmatch(k) and not _NOT_PASSED.fullmatch(k)}


@dataclass(frozen=True)
class Sources:
    """Where packages come from, as pip's configuration has it."""

    index: str = ""
    extra_indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    cert: str = ""
    no_index: bool = False

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Sources:
        """pip's order: variables over the environment's file, the user's, the machine's."""
        environ = os.environ if environ is None else environ
        values: dict[str, str] = {}
        for file in _files(environ):
            parser = configparser.RawConfigParser()
            try:
                parser.read(file, "utf-8")
            except (configparser.Error, UnicodeDecodeError, OSError):
                continue  # pip itself says what is wrong with it
            for section in ("global", "install"):
                if parser.has_section(section):
                    values |= {key.replace("_", "-"): value for key, value in parser.items(section)}
        for name, value in environ.items():
            if name.startswith("PIP_"):
                values[name[4:].lower().replace("_", "-")] = value
        several = {key: tuple(value.split()) for key, value in values.items()}
        return cls(
            index=values.get("index-url", "").strip(),
            extra_indexes=several.get("extra-index-url", ()),
            find_links=several.get("find-links", ()),
            constraints=several.get("constraint", ()),
            trusted_hosts=several.get("trusted-host", ()),
            cert=values.get("cert", "").strip(),
            no_index=values.get("no-index", "").strip().lower() in ("1", "true", "yes", "on"),
        )

    @property
    def unusual(self) -> bool:
        """Beyond one index."""
        return bool(self.extra_indexes or self.find_links or self.constraints)

    def paths(self, environ: Mapping[str, str]) -> list[Path]:
        """What of this machine's disk a build has to see, and is there."""
        found = [_local(place) for place in (*self.find_links, *self.constraints, self.cert)]
        indexes = [self.index, *self.extra_indexes]
        for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL"):
            indexes += [part.rpartition("=")[2] for part in environ.get(name, "").split()]  # "name=url" is uv's
        for index in indexes:
            place = _local(index)
            if place is not None:
                # The pages of an index in its usual place, `simple`, link to files beside it.
                found.append(place.parent if place.name == "simple" else place)
        for name in ("UV_FIND_LINKS", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_BUILD_CONSTRAINT"):
            found += [_local(part) for part in re.split(r"[,\s]+", environ.get(name, ""))]
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            found += [_local(part) for part in environ.get(name, "").split(os.pathsep)]
        there = {path.absolute() for path in found if path is not None and path.exists()}
        # A link is followed inside as it is here: its target has to be there too.
        return sorted(there | {path.resolve() for path in there})

    def variables(self) -> dict[str, str]:
        """For pip, in place of the files; for uv, what has no argument."""
        several = {
            "PIP_EXTRA_INDEX_URL": self.extra_indexes,
            "PIP_FIND_LINKS": self.find_links,
            "PIP_CONSTRAINT": self.constraints,
            "PIP_TRUSTED_HOST": self.trusted_hosts,
        }
        out = {name: " ".join(values) for name, values in several.items() if values}
        if self.index:
            out["PIP_INDEX_URL"] = self.index
        if self.no_index:
            out["PIP_NO_INDEX"] = "1"
        if self.cert:
            out["PIP_CERT"] = self.cert
            out["SSL_CERT_FILE"] = self.cert
        out["PIP_CONFIG_FILE"] = os.devnull  # all of it is in these variables
        return out

    def for_uv(self) -> list[str]:
        given = ["--index-strategy", "unsafe-best-match"]  # pip's rule: the best version of any source
        if self.index:
            given += ["--default-index", self.index]
        for option, values in (
            ("--index", self.extra_indexes),
            ("--find-links", self.find_links),
            ("--constraints", self.constraints),
            ("--allow-insecure-host", self.trusted_hosts),
        ):
            for value in values:
                given += [option, value]
        return [*given, "--no-index"] if self.no_index else given


def _files(environ: Mapping[str, str]) -> list[Path]:
    """pip's configuration files, weakest first."""
    own = environ.get("PIP_CONFIG_FILE", "")
    if own == os.devnull:
        return []
    home = Path(environ.get("HOME", "/nonexistent"))
    machine = environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    return [
        *(Path(folder, "pip", "pip.conf") for folder in reversed(machine.split(os.pathsep)) if folder),
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
        Path(sys.prefix, "pip.conf"),
        *([Path(own)] if own else []),
    ]


def _local(place: str) -> Path | None:
    if place.startswith("file:"):
        return Path(unquote(urlsplit(place).path))
    return Path(place) if place.startswith("/") else None


def find_uv() -> str | None:
    """uv's binary: of the platform's own environment, else on PATH."""
    try:
        import uv

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError):
        return shutil.which("uv")


def project(requirement: str) -> str:
    """The normalised name (PEP 503) that a requirement line begins with, or "" for an option or a bare URL."""
    match = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*($|[\s\[(<>=!~;@,])", requirement)
    return re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""


def normalised(requirement: str) -> str:
    """One spelling for lines that ask for the same: case, separators and blanks aside."""
    name = project(requirement)
    if not name:
        return " ".join(requirement.split())
    rest = requirement[re.match(r"[A-Za-z0-9._-]+", requirement).end() :]  # type: ignore[union-attr] # project() matched
    specifier, marker, condition = rest.partition(";")
    if "@" not in specifier and "--" not in specifier:
        specifier = re.sub(r"\s+", "", specifier)
    return name + specifier.strip() + (marker + " ".join(condition.split()) if marker else "")


def steps(
    installer: str, *, uv: str | None, base: Path, target: Path, listed: Path | None, sources: Sources
) -> list[list[str]]:
    """The command lines that make the virtual environment `target` of the interpreter `base` and install the
    requirements file `listed` into it (none: bare), bytecode included: import time is what people wait for."""
    python = str(target / "bin" / "python")
    if installer == "uv" and uv is not None:
        made = [uv, "venv", "--no-project", "--no-python-downloads", "--python", str(base), str(target)]
        if listed is None:
            return [made]
        # Copied, not linked: a later build may write to the cache, and must not reach a finished environment.
        install = [uv, "pip", "install", "--python", python, "--link-mode", "copy", "--compile-bytecode"]
        return [made, [*install, *sources.for_uv(), "-r", str(listed)]]
    if listed is None:
        return [[str(base), "-I", "-m", "venv", "--without-pip", str(target)]]
    install = [
        python,
        "-I",
        "-m",
        "pip",
        "install",
        "--no-input",
        "--progress-bar",
        "off",
        "--no-warn-script-location",
    ]
    return [[str(base), "-I", "-m", "venv", str(target)], [*install, "-r", str(listed)]]


_SAID: tuple[tuple[str, str], ...] = (
    (r"Resolved (\d+ packages?) in .*", r"resolved \1"),
    (r"Downloading (?:\S*/)?([\w.]+)-\d\S*\.(?:whl|gz|zip) \(([\d.]+) ?([kMG])i?B\)", r"downloading \1 \2 \3B"),
    (r"Downloading ([\w.-]+) \(([\d.]+) ?([kMG])i?B\)", r"downloading \1 \2 \3B"),
    (r"(?:Building|Building wheel for) ([\w.-]+).*", r"building \1"),
    (r"Prepared (\d+ packages?) in .*", r"prepared \1"),
    (r"Collecting ([\w.-]+).*", r"resolving \1"),
    (r"Installing collected packages: (.*)", r"installing \1"),
    (r"Bytecode compiled .*", r"compiled bytecode"),
)


def progress_of(line: str) -> str:
    """A line of uv or pip for people, or "" for one that says nothing to them."""
    for pattern, said in _SAID:
        if match := re.fullmatch(pattern, line.strip()):
            text = match.expand(said)
            return text if len(text) <= 100 else text[:99] + "…"
    return ""


@dataclass(frozen=True)
class Diagnosis:
    kind: str  # "missing", "conflict", "network", "disk", "compiler", "memory", ""
    message: str
    hint: str


_NETWORK = (
    r"name resolution|dns error|Failed to establish a new|Network is unreachable|Connection refused"
    r"|error sending request"
)
_COMPILER = (
    r"command '?\S*(gcc|cc|g\+\+|clang|rustc|cargo)'? failed"
    r"|No such file or directory: '?\S*(gcc|cc|g\+\+|cargo)\b"
    r"|can't find Rust compiler|not find a(ny)? (C|C\+\+) compiler|Unknown compiler"
)
_MISSING = (
    r"Because ([\w.-]+) was not found in the package registry",
    r"Because there (?:is|are) no versions? of ([\w.-]+(?:[<>=!~][^\s,]*)?)",
    r"Because only .{0,200}? of ([\w.-]+)\S* (?:is|are) available",
    r"No matching distribution found for ([^\s(]+)",
    r"Could not find a version that satisfies the requirement ([^\s(]+)",
    r"([\w.-]+) was not found in the provided package locations",
)


def diagnose(lines: Sequence[str]) -> Diagnosis:
    """Why a build failed, from the installer's output."""
    text = " ".join(" ".join(lines).replace("╰─▶", " ").replace("│", " ").split())
    if "No space left on device" in text or "os error 28" in text:
        return Diagnosis(
            "disk",
            "the disk is full",
            "free space under the data directory; environments of deleted functions go at the server's next start",
        )
    if re.search(_NETWORK, text):
        hint = "check the network of this machine, its proxy variables and the index that pip is configured for"
        return Diagnosis("network", "the package index cannot be reached", hint)
    for pattern in _MISSING:
        if match := re.search(pattern, text):
            return Diagnosis(
                "missing",
                f"there is no {match[1]} for this Python",
                "check the name and the version; `python` in function.toml chooses another interpreter",
            )
    if re.search(_COMPILER, text):
        hint = "choose a version that has a wheel for this Python, or install a compiler on the server"
        return Diagnosis("compiler", "a requirement has to be compiled and that failed", hint)
    if "No solution found" in text or "ResolutionImpossible" in text or "conflicting dependencies" in text:
        return Diagnosis(
            "conflict", "the requirements contradict each other", "loosen a bound; the detail names which"
        )
    return Diagnosis("", "", "the detail has the installer's own words")
