"""A hostile source distribution: whatever its build does, it does in its namespace's sandbox."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from instainfer.agent.environments import Environment, Environments
from instainfer.agent.installers import Sources
from instainfer.agent.runners import BUILDER_UID, SandboxRunner
from instainfer.errors import BuildFailed
from instainfer.sandbox.linux import LinuxSandbox
from tests.contract.test_environments import HERE, sdist, wheel

pytestmark = [pytest.mark.root, pytest.mark.slow]
UID_BASE = 700_000

ATTACK = """
FOUND = dict(uid=os.getuid(), env=sorted(os.environ), wrote=[], read=[], killed=[])
for place in {places!r}:
    try:
        pathlib.Path(place).write_text("owned")
        FOUND["wrote"].append(place)
    except OSError:
        pass
for place in {secrets!r}:
    try:
        pathlib.Path(place).read_bytes()
        FOUND["read"].append(place)
    except OSError:
        pass
try:
    os.kill({pid}, 0)
    FOUND["killed"].append({pid})
except OSError:
    pass
if os.fork() == 0:  # a process that would outlive the build, and lets nobody wait for it
    os.setsid()
    os.closerange(0, 256)
    import signal
    while True: signal.pause()
"""


def build(tmp_path: Path, *requirements: str) -> Environment:
    async def scenario() -> Environment:
        sandbox = LinuxSandbox(tmp_path / "state")
        await sandbox.start()
        try:
            sources = Sources(no_index=True, find_links=(str(tmp_path / "links"),))
            environments = Environments(tmp_path / "envs", SandboxRunner(sandbox), sources=sources)
            return await environments.ensure("ns", UID_BASE, requirements, HERE, lambda _: None)
        finally:
            await sandbox.aclose()

    return asyncio.run(scenario())


def value(environment: Environment, module: str) -> str:
    code = f"import json, {module}; print(json.dumps({module}.VALUE))"
    return subprocess.run(
        [environment.python, "-I", "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_a_build_cannot_reach_what_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "links").mkdir()
    other = tmp_path / "envs" / "other"
    other.mkdir(parents=True, mode=0o777)
    secret = tmp_path / "secret"
    secret.write_text("key")
    marker = tmp_path / "envs" / "ns" / "forged.json"
    places = [
        str(other / "x.pth"),
        str(marker),
        str(tmp_path / "links" / "evil.whl"),
        str(secret),
        "/usr/evil",
        "/etc/evil",
    ]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    victim = subprocess.Popen(["sleep", "600"])
    try:
        work = ATTACK.format(places=places, secrets=[str(secret), "/etc/shadow", "/root/.ssh"], pid=victim.pid)
        sdist(tmp_path / "links", "hostile", work)
        environment = build(tmp_path, "hostile")
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    found = json.loads(value(environment, "hostile"))
    assert found["uid"] == BUILDER_UID
    assert found["killed"] == []
    assert found["read"] == []
    assert found["wrote"] == []
    assert not [place for place in places if place != str(secret) and Path(place).exists()]
    assert secret.read_text() == "key"
    assert "AWS_SECRET_ACCESS_KEY" not in found["env"]
    processes = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    left = [pid for pid in processes if _uid(pid) == UID_BASE + BUILDER_UID]
    assert left == []


def _uid(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def test_what_is_built_is_readable_for_every_function_and_not_ours(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    wheel(tmp_path / "links", "plain", "VALUE = 5\n")
    environment = build(tmp_path, "plain")
    assert value(environment, "plain") == "5\n"
    for path in environment.mounts[0].rglob("*"):
        assert path.lstat().st_uid == UID_BASE + BUILDER_UID
        assert path.lstat().st_mode & 0o004
    marker = tmp_path / "envs" / "ns" / f"{environment.digest[:24]}.json"
    assert marker.stat().st_uid == os.geteuid()


def test_a_failure_in_the_sandbox_is_told(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    sdist(tmp_path / "links", "broken", "raise RuntimeError('the moon is wrong')")
    with pytest.raises(BuildFailed) as caught:
        build(tmp_path, "broken")
    assert "the moon is wrong" in caught.value.detail
