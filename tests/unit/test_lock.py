"""A data directory that nothing can be kept in, and addresses that nobody can listen on, say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from instainfer import lock
from instainfer.errors import BadSettings, Unavailable
from instainfer.listening import bind


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for data in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadSettings, match="cannot be used") as caught, lock.alone(data):
            pass
        assert "--data-dir" in caught.value.hint


def test_a_data_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with lock.alone(tmp_path / "new"):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
        with pytest.raises(Unavailable, match="another server uses"), lock.alone(tmp_path / "new"):
            pass


def test_an_address_says_what_is_wrong_with_it() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(Unavailable) as caught:
            bind("127.0.0.1", taken.getsockname()[1])
        assert "--port" in caught.value.hint
    with pytest.raises(Unavailable) as caught:
        bind("192.0.2.1", 0)  # for documentation: no machine has it
    assert "--host" in caught.value.hint
