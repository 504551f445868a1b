"""Which sandbox is chosen."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from instainfer.errors import BadSettings, Unavailable
from instainfer.sandbox import probe
from instainfer.sandbox.base import Container, ContainerSpec
from instainfer.sandbox.linux import LinuxSandbox
from instainfer.sandbox.process import ProcessSandbox


class Unable(ProcessSandbox):
    async def create(self, spec: ContainerSpec) -> Container:  # type: ignore[override] # there is none to return
        raise Unavailable("unshare: Operation not permitted")


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="'chroot'") as caught:
        asyncio.run(probe.choose("chroot", tmp_path))
    assert caught.value.hint == "one of auto, linux, process"


def test_process_is_taken_when_asked_for(tmp_path: Path) -> None:
    assert isinstance(asyncio.run(probe.choose("process", tmp_path)), ProcessSandbox)


@pytest.mark.root
def test_auto_takes_the_strongest_that_works(tmp_path: Path) -> None:
    chosen = asyncio.run(probe.choose("auto", tmp_path))
    assert isinstance(chosen, LinuxSandbox)
    assert chosen.enforces.function_uids == (os.geteuid() == 0)


def test_auto_falls_back_to_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_candidates", lambda _networks: [("one", Unable), ("two", Unable)])
    assert isinstance(asyncio.run(probe.choose("auto", tmp_path)), ProcessSandbox)


def test_linux_does_not_fall_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_candidates", lambda _networks: [("one", Unable), ("two", Unable)])
    with pytest.raises(Unavailable, match=r"one: unshare: .*; two: unshare: "):
        asyncio.run(probe.choose("linux", tmp_path))


def test_a_probe_leaves_nothing(tmp_path: Path) -> None:
    asyncio.run(probe.choose("auto", tmp_path))
    assert list(tmp_path.iterdir()) == []
