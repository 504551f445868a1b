"""Folders as one file, and back."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from instainfer.artifacts.trees import manifest_of, pack, unpack
from instainfer.errors import BadPackage


def sample(root: Path) -> Path:
    (root / "bin").mkdir(parents=True)
    (root / "lib" / ("n" * 200)).mkdir(parents=True)
    (root / "lib" / ("n" * 200) / "mödule.py").write_text("x = 1")
    (root / "bin" / "run").write_text("#!/bin/sh")
    (root / "bin" / "run").chmod(0o4755)
    (root / "bin" / "python").symlink_to("/usr/bin/python3")
    (root / "lib64").symlink_to("lib")
    (root / "empty").write_bytes(b"")
    os.utime(root / "empty", (1_600_000_000.7, 1_600_000_000.7))
    return root


def test_there_and_back(tmp_path: Path) -> None:
    source = sample(tmp_path / "a")
    pack(source, b'{"k": 1}', tmp_path / "1.tar")
    assert manifest_of(tmp_path / "1.tar") == b'{"k": 1}'
    target = tmp_path / "b"
    unpack(tmp_path / "1.tar", target)
    assert (target / "lib" / ("n" * 200) / "mödule.py").read_text() == "x = 1"
    assert (target / "lib64").readlink() == Path("lib")
    assert (target / "bin" / "python").readlink() == Path("/usr/bin/python3")
    assert (target / "bin" / "run").stat().st_mode & 0o7777 == 0o755  # without its setuid bit
    assert (target / "empty").stat().st_mtime == 1_600_000_000
    pack(target, b'{"k": 1}', tmp_path / "2.tar")
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    os.mkfifo(sample(tmp_path / "a") / "pipe")
    with pytest.raises(BadPackage, match="pipe"):
        pack(tmp_path / "a", b"{}", tmp_path / "1.tar")


Add = Callable[[tarfile.TarFile], None]


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"x") -> Add:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        info.size = len(data) if kind == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)

    return add


def write(path: Path, *members: Add) -> Path:
    with tarfile.open(path, "w") as archive:
        for add in members:
            add(archive)
    return path


MANIFEST = member("manifest.json", data=b"{}")
END = member("end", data=b"")


@pytest.mark.parametrize(
    "members",
    [
        [member("tree/../../escaped")],
        [member("tree//escaped")],
        [member("tree/./x")],
        [member("/etc/escaped")],
        [member("escaped")],
        [member("tree/nowhere/x")],
        [member("tree/a", tarfile.SYMTYPE, "/tmp"), member("tree/a/escaped")],
        [member("tree/a", tarfile.SYMTYPE, "/tmp/escaped"), member("tree/a")],
        [member("tree/a"), member("tree/a")],
        [member("tree/a"), member("tree/b", tarfile.LNKTYPE, "tree/a")],
        [member("tree/b", tarfile.LNKTYPE, "/etc/passwd")],
        [member("tree/b", tarfile.CHRTYPE)],
        [member("tree/b", tarfile.FIFOTYPE)],
        [member("tree/a", tarfile.DIRTYPE), member("tree/a", tarfile.SYMTYPE, "/tmp"), member("tree/a/escaped")],
    ],
)
def test_hostile_archives_leave_nothing(tmp_path: Path, members: list[Add]) -> None:
    archive = write(tmp_path / "bad.tar", MANIFEST, *members, END)
    with pytest.raises(BadPackage):
        unpack(archive, tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar"]
    assert not Path("/tmp/escaped").exists() and not Path("/etc/escaped").exists()


def test_no_manifest_too_much_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match="manifest"):
        manifest_of(write(tmp_path / "1", member("tree/a")))
    big = write(tmp_path / "2", MANIFEST, member("tree/a", data=b"x" * 2000), member("tree/b"), END)
    with pytest.raises(BadPackage, match="more than"):
        unpack(big, tmp_path / "t", limit_bytes=1000)
    with pytest.raises(BadPackage, match="more than"):
        unpack(big, tmp_path / "t", limit_files=1)
    whole = big.read_bytes()
    for data in (whole[:1700], b"", b"no tar" * 1000, whole[:1100] + b"\xff" * 400 + whole[1500:]):
        (tmp_path / "3").write_bytes(data)
        with pytest.raises(BadPackage):
            unpack(tmp_path / "3", tmp_path / "t")
        assert not (tmp_path / "t").exists()


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine").write_text("x")
    with pytest.raises(FileExistsError):
        unpack(write(tmp_path / "1", MANIFEST, END), tmp_path / "t")
    assert (tmp_path / "t" / "mine").exists()
