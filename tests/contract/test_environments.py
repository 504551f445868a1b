"""Environments: built once, whole or not at all, by uv as by pip; failures say which requirement and why."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import psutil  # type: ignore[import-untyped] # ships no types
import pytest

from instainfer.agent import installers
from instainfer.agent.environments import Environment, Environments
from instainfer.agent.installers import Sources
from instainfer.agent.interpreters import Interpreters, mounts, probe
from instainfer.errors import BuildFailed
from tests.contract.subprocess_runner import SubprocessRunner

HERE = f"3.{sys.version_info.minor}"
NOWHERE = Sources(no_index=True)  # builds that must not need a network


def wheel(folder: Path, name: str, body: str, version: str = "1.0") -> str:
    """A pure wheel, and the requirement line that names it."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": body,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    built = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(built, "w") as archive:
        for inner, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(inner, text)
    return f"{name} @ {built.as_uri()}"


BACKEND = """
import base64, os, pathlib, sys, zipfile
{work}
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as archive:
        archive.writestr("{name}.py", "VALUE = %r\\n" % (globals().get("FOUND", 1),))
        archive.writestr("{name}-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        wheel = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        archive.writestr("{name}-1.0.dist-info/WHEEL", wheel)
        archive.writestr("{name}-1.0.dist-info/RECORD", "")
    return name
"""


def sdist(folder: Path, name: str, work: str) -> str:
    """A source distribution whose own build backend does `work` first; what that leaves in FOUND becomes the
    module's VALUE."""
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "{name}"\nversion = "1.0"\n',
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "backend.py": BACKEND.format(work=work, name=name),
    }
    path = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for inner, text in files.items():
            entry = tarfile.TarInfo(f"{name}-1.0/{inner}")
            entry.size = len(text.encode())
            archive.addfile(entry, BytesIO(text.encode()))
    return f"{name} @ {path.as_uri()}"


class Counting(SubprocessRunner):
    """The real runner; remembers what it ran."""

    def __init__(self) -> None:
        self.ran: list[Sequence[str]] = []

    async def run(self, *, argv: Sequence[str], **rest: Any) -> int:
        self.ran.append(argv)
        return await super().run(argv=argv, **rest)


Installer = Callable[[], Environments]


@pytest.fixture(params=["uv", "pip"])
def installer(request: pytest.FixtureRequest) -> str:
    if request.param == "uv" and installers.find_uv() is None:
        pytest.skip("uv is not installed")
    return str(request.param)


def made(root: Path, installer: str = "auto", runner: SubprocessRunner | None = None) -> Environments:
    return Environments(root, runner or SubprocessRunner(), installer, sources=NOWHERE)  # type: ignore[arg-type] # parametrised


def ensure(environments: Environments, *requirements: str, said: list[str] | None = None) -> Environment:
    said = [] if said is None else said
    return asyncio.run(environments.ensure("ns", 0, requirements, HERE, said.append))


def run(environment: Environment, code: str) -> str:
    command = [str(environment.python), "-I", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# ---- building


@pytest.mark.slow
def test_built_once_and_kept(tmp_path: Path, installer: str) -> None:
    line = wheel(tmp_path, "tiny_thing", "VALUE = 41 + 1\n")
    runner = Counting()
    said: list[str] = []
    environment = ensure(made(tmp_path / "envs", installer, runner), line, said=said)
    assert run(environment, "import tiny_thing; print(tiny_thing.VALUE)") == "42"
    assert list(environment.python.parent.parent.glob("lib/*/site-packages/__pycache__/tiny_thing.*.pyc"))
    assert "installed 1 package" in said[-1]
    assert environment.mounts[0] == environment.python.parent.parent
    assert run(environment, "import sys; print(sys.base_prefix)") in map(str, environment.mounts)
    assert len(runner.ran) == 2
    again = ensure(made(tmp_path / "envs", "auto", runner), line)
    assert again == environment
    assert len(runner.ran) == 2
    left = {path.name.rpartition(".")[2] for path in (tmp_path / "envs" / "ns").iterdir()}
    assert left == {environment.digest[:24], "json", "lock", "cache"}


def test_a_bare_environment_has_nothing_of_the_platform(tmp_path: Path) -> None:
    said: list[str] = []
    environment = ensure(made(tmp_path), said=said)
    assert environment.digest
    assert said == ["made a bare environment"]
    leaked = (
        "import importlib.util as u; print([n for n in ('instainfer', 'msgspec', 'pytest') if u.find_spec(n)])"
    )
    assert run(environment, leaked) == "[]"


def test_what_the_server_has_in_its_environment_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "UV_PUBLISH_TOKEN", "PYTHONPATH", "INSTAINFER_API_KEY", "PIP_TARGET"):
        monkeypatch.setenv(name, "/secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    work = f"import json; pathlib.Path({str(tmp_path / 'seen')!r}).write_text(json.dumps(dict(os.environ)))"
    ensure(made(tmp_path / "envs"), sdist(tmp_path, "nosy", work))
    seen = json.loads((tmp_path / "seen").read_text())
    assert "/secret" not in seen.values()
    assert seen["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert seen["HOME"].startswith(f"{tmp_path}/envs/ns/.build-")


@pytest.mark.slow
def test_a_missing_package_is_named(tmp_path: Path, installer: str) -> None:
    with pytest.raises(BuildFailed, match="no-such-package-here") as caught:
        ensure(made(tmp_path, installer), "no-such-package-here==1.0")
    assert caught.value.phase == "build"
    assert caught.value.detail
    assert "name" in caught.value.hint
    assert [path.name for path in (tmp_path / "ns").iterdir() if path.suffix != ".lock"] == [".cache"]


@pytest.mark.slow
def test_a_broken_sdist_shows_its_own_words(tmp_path: Path, installer: str) -> None:
    line = sdist(tmp_path, "broken", "raise RuntimeError('the moon is wrong')")
    with pytest.raises(BuildFailed) as caught:
        ensure(made(tmp_path / "envs", installer), line)
    assert "the moon is wrong" in caught.value.detail
    assert caught.value.hint


@pytest.mark.slow
def test_what_uv_cannot_do_pip_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "uv"
    broken.write_text("#!/bin/sh\necho 'No solution found' >&2\nexit 2\n")
    broken.chmod(0o755)
    monkeypatch.setattr(installers, "find_uv", lambda: str(broken))
    said: list[str] = []
    environment = ensure(made(tmp_path / "envs"), wheel(tmp_path, "tiny", "VALUE = 1"), said=said)
    assert run(environment, "import tiny; print(tiny.VALUE)") == "1"
    assert "uv could not install these requirements; trying pip" in said


@pytest.mark.slow
def test_a_build_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    line = sdist(
        tmp_path,
        "endless",
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\nwhile True: pass",
    )
    environments = Environments(tmp_path / "envs", SubprocessRunner(), timeout_s=0.9, sources=NOWHERE)
    with pytest.raises(BuildFailed, match="longer than"):
        ensure(environments, line)
    with suppress(FileNotFoundError, psutil.NoSuchProcess):  # it may not have come that far
        psutil.Process(int((tmp_path / "pid").read_text())).wait(10)


def test_two_at_once_build_once(tmp_path: Path) -> None:
    line = wheel(tmp_path, "shared", "VALUE = 1")
    runner = Counting()

    async def both() -> list[Environment]:
        environments = made(tmp_path / "envs", "auto", runner)
        other = made(
            tmp_path / "envs", "auto", runner
        )  # as another process would be: only the file lock is shared
        said: list[str] = []
        found = await asyncio.gather(
            environments.ensure("ns", 0, [line], HERE, said.append),
            environments.ensure("ns", 0, [line], HERE, said.append),
            other.ensure("ns", 0, [line], HERE, said.append),
        )
        # Whoever got the lock builds: the one that two wait on, who both hear of it, or the other.
        assert len([text for text in said if "installed 1" in text]) in (1, 2)
        return list(found)

    found = asyncio.run(both())
    assert found[0] == found[1] == found[2]
    assert len(runner.ran) == 2


def test_who_gives_up_leaves_the_build_to_the_others(tmp_path: Path) -> None:
    line = wheel(tmp_path, "patient", "VALUE = 1")

    async def scenario() -> Environment:
        started = asyncio.Event()

        class Signalling(SubprocessRunner):
            def owner(self, uid_base: int) -> int | None:
                started.set()  # only a build that has begun asks
                return super().owner(uid_base)

        environments = made(tmp_path / "envs", "auto", Signalling())
        first = asyncio.create_task(environments.ensure("ns", 0, [line], HERE, lambda _: None))
        second = asyncio.create_task(environments.ensure("ns", 0, [line], HERE, lambda _: None))
        await started.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
        return await second

    assert run(asyncio.run(scenario()), "import patient; print(patient.VALUE)") == "1"


CHILD = """
import asyncio, sys
from pathlib import Path
from tests.contract.test_environments import HERE, made
asyncio.run(made(Path(sys.argv[1])).ensure("ns", 0, [sys.argv[2]], HERE, print))
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_nothing_that_counts(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    flag = tmp_path / "wait"
    flag.touch()
    # The first build tells us where it is and waits to be killed; the second finds no flag and goes on.
    work = (
        f"if os.path.exists({str(flag)!r}):\n"
        f"    open({str(fifo)!r}, 'w').write('here'); open({str(fifo)!r}).read()"
    )
    line = sdist(tmp_path, "slow_one", work)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CHILD, str(tmp_path / "envs"), line]
    child = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert fifo.read_text() == "here"
    installer = psutil.Process(child.pid).children(recursive=True)
    for process in (child, *installer):  # as when a machine or a container goes
        process.send_signal(signal.SIGKILL)
    child.wait()
    psutil.wait_procs(installer, 10)
    flag.unlink()
    folder = tmp_path / "envs" / "ns"
    assert not list(folder.glob("*.json"))
    assert [path for path in folder.iterdir() if path.name.startswith(".build-")]
    environment = ensure(made(tmp_path / "envs"), line)
    assert run(environment, "import slow_one; print(slow_one.VALUE)") == "1"
    assert not [path for path in folder.iterdir() if path.name.startswith(".build-")]


def test_sweep(tmp_path: Path) -> None:
    environments = made(tmp_path)
    kept = ensure(environments)
    gone = ensure(environments, wheel(tmp_path, "gone", "VALUE = 1"))
    remains = tmp_path / "ns" / ("a" * 24)
    remains.mkdir()
    assert environments.sweep({kept.digest}) == 2
    assert kept.python.exists()
    assert not gone.python.exists()
    assert not remains.exists()
    assert environments.sweep({kept.digest}) == 0


def test_an_environment_whose_marker_lies_is_built_again(tmp_path: Path) -> None:
    runner = Counting()
    environments = made(tmp_path, "auto", runner)
    environment = ensure(environments)
    shutil.rmtree(environment.python.parent)
    assert ensure(environments) == environment
    assert run(environment, "print(1)") == "1"
    assert len(runner.ran) == 2


@pytest.mark.slow
def test_the_registry(tmp_path: Path) -> None:
    """Needs a package index, as configured for pip."""
    environment = ensure(Environments(tmp_path, SubprocessRunner()), "six")
    assert run(environment, "import six; print(six.__name__)") == "six"


# ---- interpreters


def test_an_existing_interpreter_is_used_as_it_is(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"

    async def use(path: str, *requirements: str) -> Environment:
        return await made(tmp_path / "envs").ensure("ns", 0, requirements, path, lambda _: None)

    found = asyncio.run(use(str(python)))
    assert (found.digest, found.python) == ("", python)
    assert found.mounts[0] == tmp_path / "venv"
    assert Path(sys.base_prefix) in found.mounts
    with pytest.raises(BuildFailed, match="used as it is"):
        asyncio.run(use(str(python), "six"))
    for wrong in (str(tmp_path / "absent"), "/bin/sh", "bin/python"):
        with pytest.raises(BuildFailed, match="not a Python"):
            asyncio.run(use(wrong))


def test_an_old_interpreter_is_refused(tmp_path: Path) -> None:
    real = asyncio.run(probe(sys.executable))
    assert real is not None
    old = msgspec.json.encode(msgspec.structs.replace(real, version=(3, 8, 1))).decode()
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho '{old}'\n")
    fake.chmod(0o755)
    with pytest.raises(BuildFailed, match=r"3\.8\.1"):
        asyncio.run(made(tmp_path).ensure("ns", 0, (), str(fake), lambda _: None))


def test_versions_are_verified_by_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    liar = tmp_path / "python3.99"
    liar.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    liar.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildFailed, match=r"no Python 3\.99") as caught:
        asyncio.run(Interpreters().find("3.99"))
    assert HERE in caught.value.hint
    found = asyncio.run(Interpreters().find(HERE))
    assert found.version[:2] == sys.version_info[:2]
    assert not Path(found.base).is_symlink()


def test_links_outside_the_prefix_are_mounted_too(tmp_path: Path) -> None:
    (tmp_path / "real" / "bin").mkdir(parents=True)
    (tmp_path / "real" / "bin" / "python3").touch()
    for name, target in (("one", tmp_path / "real" / "bin" / "python3"), ("two", Path("../one/python"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "python").symlink_to(target)
    assert mounts([tmp_path / "real"], tmp_path / "two" / "python") == tuple(
        tmp_path / n for n in ("real", "two", "one")
    )


@pytest.mark.slow
def test_every_version_on_path(tmp_path: Path) -> None:
    line = wheel(tmp_path, "tiny", "VALUE = 1")
    tried = []
    for version in [HERE, *(f"3.{minor}" for minor in range(9, 20) if f"3.{minor}" != HERE)]:
        path = shutil.which(f"python{version}") if version != HERE else sys.executable
        if path is None or (there := asyncio.run(probe(path))) is None or there.version[:2] != _parts(version):
            continue  # not there, or a stand-in that starts none
        environment = asyncio.run(made(tmp_path / "envs").ensure("ns", 0, [line], version, lambda _: None))
        assert run(environment, "import sys, tiny; print('%d.%d' % sys.version_info[:2])") == version
        tried.append(environment.digest)
    assert len(set(tried)) == len(tried) >= 1


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.slow
def test_sources_reach_both_installers(tmp_path: Path, installer: str) -> None:
    (tmp_path / "links").mkdir()
    for version in ("1.0", "2.0"):
        wheel(tmp_path / "links", "linked", f"VALUE = {version!r}", version)
    (tmp_path / "bounds.txt").write_text("linked<2\n")
    sources = Sources(
        no_index=True, find_links=(str(tmp_path / "links"),), constraints=(str(tmp_path / "bounds.txt"),)
    )
    environments = Environments(tmp_path / "envs", SubprocessRunner(), installer, sources=sources)  # type: ignore[arg-type] # parametrised
    assert run(ensure(environments, "linked"), "import linked; print(linked.VALUE)") == "1.0"
