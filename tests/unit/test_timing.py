"""The import hook, in this process; what a real load records is tested with the instance."""

from __future__ import annotations

import builtins
import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from instainfer.runtime.timing import Imports


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A package and a library on sys.path; what is imported from them is forgotten afterwards."""
    package, library = tmp_path / "package", tmp_path / "library"
    for folder in (package, library):
        folder.mkdir()
        monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)
    yield package, library
    for name in set(sys.modules) - known:
        del sys.modules[name]


@pytest.mark.parametrize("via", [None, (builtins, "__import__")], ids=["find_and_load", "__import__"])
def test_only_outermost_imports_of_others_are_recorded(
    folders: tuple[Path, Path], via: tuple[object, str] | None
) -> None:
    package, library = folders
    (package / "tt_main.py").write_text("import tt_big, tt_helper")
    (package / "tt_helper.py").write_text("import tt_small\nimport tt_big")
    (library / "tt_big.py").write_text("import tt_inner")
    (library / "tt_inner.py").write_text("")
    (library / "tt_small.py").write_text("")
    before = importlib._bootstrap._find_and_load, builtins.__import__  # type: ignore[attr-defined]  # not in typeshed
    imports = Imports(str(package), via)
    imports.start()
    try:
        import tt_main  # type: ignore[import-not-found]  # noqa: F401  # written above
    finally:
        imports.stop()
    assert imports.modules == ["tt_big", "tt_small"]
    assert imports.seconds > 0
    assert before == (importlib._bootstrap._find_and_load, builtins.__import__)  # type: ignore[attr-defined]


def test_a_failed_import_is_kept_and_what_it_had_imported_counts(folders: tuple[Path, Path]) -> None:
    package, library = folders
    (package / "tt_own.py").write_text("raise ValueError('own')")
    (library / "tt_broken.py").write_text("import tt_part\nraise ValueError('theirs')")
    (library / "tt_part.py").write_text("")
    imports = Imports(str(package))
    imports.start()
    try:
        for name in ("tt_broken", "tt_own"):
            with pytest.raises(ValueError, match=r"own|theirs"):
                importlib.import_module(name)
    finally:
        imports.stop()
    assert imports.modules == ["tt_part"]
    assert str(imports.failure) == "theirs"
    assert imports.seconds > 0


def test_another_thread_is_not_watched(folders: tuple[Path, Path]) -> None:
    package, library = folders
    (library / "tt_elsewhere.py").write_text("")
    imports = Imports(str(package))
    imports.start()
    try:
        thread = threading.Thread(target=importlib.import_module, args=("tt_elsewhere",))
        thread.start()
        thread.join()
    finally:
        imports.stop()
    assert "tt_elsewhere" in sys.modules
    assert imports.modules == []


def test_a_second_span_counts_anew_and_goes_on_recording(folders: tuple[Path, Path]) -> None:
    package, library = folders
    for name in ("tt_first", "tt_second"):
        (library / f"{name}.py").write_text("")
    imports = Imports(str(package))
    for name in ("tt_first", "tt_second"):
        imports.start()
        assert imports.seconds == 0
        importlib.import_module(name)
        imports.stop()
        assert imports.seconds > 0
    assert imports.modules == ["tt_first", "tt_second"]
