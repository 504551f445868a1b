"""Pages of files: what is in memory, and bringing in what is not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from instainfer.sandbox import pages

MB = 1 << 20


@pytest.fixture
def file() -> Iterator[Path]:
    """Three MB and a half page on a disk (in a tmpfs nothing is ever elsewhere), none of it in memory."""
    with tempfile.TemporaryDirectory(prefix="instainfer-test-", dir="/var/tmp") as directory:
        path = Path(directory, "file")
        path.write_bytes(os.urandom(3 * MB + 2048))
        evict(path)
        yield path


def evict(path: Path, offset: int = 0, size: int = 0) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_DONTNEED)


def test_a_file_is_made_resident_once(file: Path) -> None:
    assert pages.resident(file) == 0
    assert pages.prefault(file) == 3 * MB + 2048
    assert pages.resident(file) == 3 * MB + 4096
    assert pages.prefault(file) == 0


def test_only_what_is_missing_is_read(file: Path) -> None:
    pages.prefault(file)
    evict(file, MB, MB)
    missing = 3 * MB + 4096 - pages.resident(file)
    assert 0 < missing <= MB
    assert pages.prefault(file) == missing
    assert pages.resident(file) == 3 * MB + 4096


def test_an_empty_file_has_no_pages(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert (pages.resident(empty), pages.prefault(empty)) == (0, 0)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    for look in (pages.resident, pages.prefault):
        with pytest.raises(FileNotFoundError):
            look(tmp_path / "none")


def test_gaps_are_runs_of_missing_pages() -> None:
    page = os.sysconf("SC_PAGESIZE")
    assert list(pages._gaps(b"\0\1\1\0\0\1")) == [(0, page), (3 * page, 5 * page)]
    assert list(pages._gaps(b"\1\0\0")) == [(page, 3 * page)]
    assert list(pages._gaps(b"\1\1")) == list(pages._gaps(b"")) == []
