"""Packages are hostile until checked: names, links, sizes, bytes. Settings and entries are read, never run."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instainfer.errors import BadPackage, BadSettings
from instainfer.model import Style
from instainfer.packages import (
    Package,
    digest,
    find_entry,
    open_package,
    pack,
    read_settings,
)
from instainfer.settings import Settings


def zipped(members: dict[str, bytes | str], modes: dict[str, int] | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return out.getvalue()


def package(members: dict[str, bytes | str], modes: dict[str, int] | None = None) -> Package:
    return open_package(zipped(members, modes))


LINK = stat.S_IFLNK | 0o777


# ---- packing


def folder(root: Path) -> Path:
    (root / "lib").mkdir(parents=True)
    (root / "main.py").write_text("def handler(event): return event\n")
    (root / "lib" / "tool.py").write_text("x = 1\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    for junk in ("__pycache__", ".git", ".venv", "node_modules", "lib/__pycache__"):
        (root / junk).mkdir()
        (root / junk / "junk.txt").write_text("no")
    (root / "other-env").mkdir()
    (root / "other-env" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (root / "notes.md").write_text("no")
    (root / "data").mkdir()
    (root / "data" / "big.bin").write_bytes(b"no")
    (root / ".instainferignore").write_text("# comment\n*.md\ndata/\n")
    return root


def test_pack_is_deterministic_and_leaves_junk_out(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two")
    os.utime(two / "main.py", (1, 1))
    assert pack(one) == pack(two)
    opened = open_package(pack(one))
    assert opened.names() == {"main.py", "lib/tool.py", "run.sh"}
    assert {m.name for m in opened.members if m.executable} == {"run.sh"}
    assert opened.digest == digest(pack(one))


def test_pack_one_file_and_zip_through(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text("def main(args): return args\n")
    data = pack(tmp_path / "hello.py")
    assert open_package(data).names() == {"hello.py"}
    (tmp_path / "f.zip").write_bytes(data)
    assert pack(tmp_path / "f.zip") == data


def test_pack_refuses_empty_large_and_missing(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match="no files"):
        pack(tmp_path)
    (tmp_path / "w.bin").write_bytes(bytes(2000))
    with pytest.raises(BadPackage, match="more than") as caught:
        pack(tmp_path, limit=1000)
    assert ".instainferignore" in caught.value.hint
    with pytest.raises(BadPackage, match="there is no"):
        pack(tmp_path / "absent")
    with pytest.raises(BadPackage, match="neither"):
        pack(tmp_path / "w.bin")


def test_pack_links(tmp_path: Path) -> None:
    outside = tmp_path / "weights.bin"
    outside.write_bytes(b"weights")
    root = tmp_path / "f"
    (root / "sub").mkdir(parents=True)
    (root / "main.py").write_text("x=1")
    (root / "sub" / "back.py").symlink_to("../main.py")
    (root / "alias").symlink_to("sub")
    (root / "weights.bin").symlink_to(outside)
    opened = open_package(pack(root))
    assert opened.read("weights.bin") == b"weights"
    assert {m.name: m.target for m in opened.members if m.kind == "link"} == {
        "alias": "sub",
        "sub/back.py": "../main.py",
    }
    (root / "system").symlink_to("/etc")
    with pytest.raises(BadPackage, match="system"):
        pack(root)


# ---- hostile zips


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../evil.py", "leaves the package"),
        ("a/../../evil.py", "leaves the package"),
        ("/etc/passwd", "absolute"),
        ("C:evil.py", "absolute"),
        ("a\\..\\evil.py", "backslash"),
        ("a//b.py", "impossible name"),
        ("./main.py", "impossible name"),
        ("main\n.py", "impossible name"),
        ("main.py\0.txt", "impossible name"),
        ("x" * 256, "over 255 bytes"),
        ("ä" * 128, "over 255 bytes"),
        ("/".join(["d" * 200] * 6), "over 255 bytes"),
    ],
)
def test_bad_names(name: str, says: str) -> None:
    with pytest.raises(BadPackage, match=says) as caught:
        package({"main.py": "x=1", name: "evil"})
    assert caught.value.hint
    assert repr(name)[1:12] in caught.value.message


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../x", "sub/../../x", "sub/..", "", "a/./../..", "../../etc"], ids=repr
)
def test_links_that_leave(target: str) -> None:
    with pytest.raises(BadPackage, match=r"link that leaves|there is nothing"):
        package({"main.py": "x=1", "link": target}, {"link": LINK})


def test_nothing_lies_beneath_a_link_or_a_file() -> None:
    for modes in ({"d": LINK}, None):
        with pytest.raises(BadPackage, match="beneath"):
            package({"main.py": "", "d": "sub", "d/x.py": "", "sub/y": ""}, modes)


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_special_files(kind: int) -> None:
    with pytest.raises(BadPackage, match="device, pipe or socket"):
        package({"main.py": "x=1", "dev": ""}, {"dev": kind | 0o666})


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_and_limits() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("main.py", "x=1")
        archive.writestr("main.py", "x=2")
    with pytest.raises(BadPackage, match="twice"):
        open_package(out.getvalue())
    many = zipped({f"f{n}.py": "" for n in range(11)})
    with pytest.raises(BadPackage, match="11 members"):
        open_package(many, limit_files=10)
    with pytest.raises(BadPackage, match="no files"):
        package({"empty/": ""}, {"empty/": stat.S_IFDIR | 0o755})


def test_declared_bomb() -> None:
    bomb = zipped({"main.py": "x=1", "zeros": bytes(3_000_000)})
    assert len(bomb) < 20_000
    with pytest.raises(BadPackage, match="more than"):
        open_package(bomb, limit_bytes=1_000_000)


def test_bomb_that_lies_about_its_size() -> None:
    data = zipped({"zeros": bytes(3_000_000)})
    lied = data.replace(struct.pack("<I", 3_000_000), struct.pack("<I", 100))
    assert lied != data
    with pytest.raises(BadPackage, match="zeros"):
        open_package(lied, limit_bytes=1_000_000)


def test_encrypted_and_damaged() -> None:
    data = zipped({"main.py": "x = 1\n" * 50})
    at = data.index(b"PK\x01\x02")
    encrypted = data[: at + 8] + bytes([data[at + 8] | 1]) + data[at + 9 :]
    with pytest.raises(BadPackage, match="encrypted"):
        open_package(encrypted)
    damaged = bytearray(data)
    damaged[45] ^= 0xFF
    with pytest.raises(BadPackage, match="cannot be read"):
        open_package(bytes(damaged))
    with pytest.raises(BadPackage, match="not a zip"):
        open_package(b"hello")


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_damage_is_a_clean_refusal(noise: bytes, at: int) -> None:
    data = bytearray(zipped({"main.py": "x = 1\n" * 5, "sub/a.py": "y"}))
    data[at : at + len(noise)] = noise
    try:
        opened = open_package(bytes(data))
    except BadPackage:
        return
    assert all(".." not in m.name.split("/") and not m.name.startswith("/") for m in opened.members)


# ---- extracting


def test_extract(tmp_path: Path) -> None:
    opened = package(
        {"main.py": "x=1", "bin/tool": "#!/bin/sh", "bin/link": "../main.py", "deep/er/": ""},
        {"main.py": stat.S_IFREG | 0o4666, "bin/tool": stat.S_IFREG | 0o777, "bin/link": LINK, "deep/er/": 0},
    )
    target = tmp_path / "out"
    opened.extract(target)
    modes = {
        str(p.relative_to(tmp_path)): stat.S_IMODE(p.lstat().st_mode)
        for p in tmp_path.rglob("*")
        if not p.is_symlink()
    }
    assert modes == {
        "out": 0o700,
        "out/main.py": 0o600,
        "out/bin": 0o700,
        "out/bin/tool": 0o700,
        "out/deep": 0o700,
        "out/deep/er": 0o700,
    }
    assert (target / "bin" / "link").read_text() == "x=1"
    (target / "main.py").write_text("kept")
    opened.extract(target)  # it is there: left as it is
    assert (target / "main.py").read_text() == "kept"


@pytest.mark.root
def test_extract_gives_the_files_away_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("not of the package")
    opened = package(
        {"main.py": "x=1", "sub/link": "../main.py", "dangling": "nowhere"}, {"sub/link": LINK, "dangling": LINK}
    )
    opened.extract(tmp_path / "out", uid=12345, gid=12345)
    owners = {(p.lstat().st_uid, p.lstat().st_gid) for p in [tmp_path / "out", *(tmp_path / "out").rglob("*")]}
    assert owners == {(12345, 12345)}
    assert (tmp_path / "main.py").stat().st_uid == 0


def test_a_kill_in_the_middle_leaves_nothing_that_counts(tmp_path: Path) -> None:
    (tmp_path / "p.zip").write_bytes(zipped({"main.py": "x=1", "z.bin": bytes(1000)}))
    child = """
import os, pathlib, shutil, signal, sys
from instainfer import packages
opened = packages.open_package(pathlib.Path(sys.argv[1], "p.zip").read_bytes())
packages.shutil.copyfileobj = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
opened.extract(pathlib.Path(sys.argv[1], "out"))
"""
    ended = subprocess.run([sys.executable, "-c", child, str(tmp_path)], check=False)
    assert ended.returncode == -9
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.*.tmp"))
    open_package((tmp_path / "p.zip").read_bytes()).extract(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "p.zip"]
    assert (tmp_path / "out" / "z.bin").stat().st_size == 1000


# ---- settings


@pytest.mark.parametrize("bad", ["", "big", "-1MB", "5 apples", True, float("nan"), float("inf"), -3])
def test_sizes_that_cannot_be_meant(bad: object) -> None:
    with pytest.raises(BadSettings) as caught:
        Settings().merged({"memory": bad})
    assert "512MB" in caught.value.hint


def test_sizes_as_numbers_and_as_text() -> None:
    assert Settings().merged({"memory": 1 << 30}).memory == Settings().merged({"memory": "1GiB"}).memory
    assert Settings().merged({"timeout": 2}).timeout == Settings().merged({"timeout": "2s"}).timeout


TOML = """
entry = "app:Model"
memory = "1GiB"
timeout = "5s"
concurrency = 4
requirements = ["six>=1"]
python = "3.12"
network = true
sample = "one.json"
isolation = "strict"
[env]
MODE = "fast"
LEVEL = 3
[params]
size = "big"
top = 5
"""


def test_function_toml() -> None:
    settings = read_settings(package({"function.toml": TOML, "one.json": "{}", "requirements.txt": "numpy"}))
    assert settings == Settings(
        entry="app:Model",
        memory=1 << 30,
        timeout=5.0,
        concurrency=4,
        requirements=("six>=1",),
        python="3.12",
        network=True,
        sample="one.json",
        isolation="strict",
        env={"MODE": "fast", "LEVEL": "3"},
        params={"size": "big", "top": 5},
    )
    merged = settings.merged({"memory": "64MiB", "env": {"MODE": "slow"}, "network": "false"})
    assert merged.memory == 64 << 20
    assert merged.env == {"MODE": "slow", "LEVEL": "3"}
    assert (merged.network, merged.entry) == (False, "app:Model")


def test_defaults_and_other_sources() -> None:
    assert read_settings(package({"main.py": "x=1"})) == Settings()
    assert Settings().python == f"3.{sys.version_info.minor}"
    pyproject = '[project]\ndependencies = ["six"]\n[tool.instainfer]\nmemory = "2GB"\n'
    settings = read_settings(package({"pyproject.toml": pyproject, "main.py": ""}))
    assert (settings.memory, settings.requirements) == (2_000_000_000, ("six",))
    script = '# /// script\n# dependencies = ["six", "attrs"]\n# [tool.instainfer]\n# timeout = 7\n# ///\nx = 1\n'
    settings = read_settings(package({"only.py": script}))
    assert (settings.timeout, settings.requirements) == (7.0, ("six", "attrs"))
    assert read_settings(package({"pyproject.toml": "[tool.ruff]\n", "main.py": ""})) == Settings()


def test_requirement_files() -> None:
    files: dict[str, bytes | str] = {
        "main.py": "",
        "requirements.txt": "# all\nsix>=1  # why\n\n-r req/more.txt\n--extra-index-url https://example.org/simple\n",
        "req/more.txt": "attrs \\\n  --hash=sha256:00\n-r deep.txt\n",
        "req/deep.txt": "idna",
        "other.txt": "numpy",
    }
    assert read_settings(package(files)).requirements == (
        "six>=1",
        "attrs    --hash=sha256:00",
        "idna",
        "--extra-index-url https://example.org/simple",
    )
    assert read_settings(package(files), {"requirements": "other.txt"}).requirements == ("numpy",)
    assert read_settings(package(files), {"requirements": []}).requirements == ()
    for line in ("-e .", "./local", "-c bounds.txt", "-r absent.txt", "-r requirements.txt"):
        with pytest.raises(BadSettings, match=r"requirements\.txt"):
            read_settings(package({"main.py": "", "requirements.txt": line}))


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ('memroy = "1GB"', "memroy", "memory"),
        ('zzz = "1GB"', "zzz", "timeout"),
        ('memory = "lots"', "memory = 'lots'", "512MB"),
        ("memory = 5", "memory = 5", "16MiB"),
        ("timeout = 0", "timeout = 0", "more than 0"),
        ("concurrency = 0", "concurrency = 0", "1 to 1000"),
        ("concurrency = true", "concurrency = True", "1 to 1000"),
        ("python = 3.10", "python = 3.1", "quotes"),
        ('python = "2.7"', "2.7", "3.11"),
        ('python = "3.6"', "too old", "3.9"),
        ('network = "maybe"', "network", "true, false or a list"),
        ('isolation = "none"', "isolation = 'none'", "strict"),
        ('device = "tpu"', "device = 'tpu'", "cpu"),
        ("batch = 0", "batch", "1 to 1024"),
        ("requirements = [1]", "requirements", "list"),
        ('requirements = "absent.txt"', "absent.txt", "list"),
        ('sample = "absent.json"', "absent.json", "file"),
        ('env = "A=1"', "env", "[env]"),
        ("[env]\n'A B' = 'x'", "A B", "underscores"),
        ("[env]\nA = true", "A is not a text", "quotes"),
        ("memory = ", "function.toml", "toml.io"),
    ],
)
def test_bad_settings(text: str, said: str, hint: str) -> None:
    with pytest.raises(BadSettings) as caught:
        read_settings(package({"main.py": "x=1", "function.toml": text}))
    assert said in caught.value.message
    assert hint in caught.value.hint


# ---- entries

SOURCES: dict[str, bytes | str] = {
    "main.py": "import json\nfrom lib import Model, fn\ndef handler(event): pass\nclass M:\n  "
    "def load(self): ...\n  def predict(self, x): ...\nclass Empty: pass\nclass Sub(M): pass\n"
    "if True:\n  def late(e): ...\n",
    "pkg/__init__.py": "class Deep:\n    def predict(self, x): ...\n",
    "pkg/mod.py": "async def main(args): ...\n",
    "script.py": "import sys\nfor line in sys.stdin: print(line)\n",
}


@pytest.mark.parametrize(
    ("entry", "style"),
    [
        ("main:handler", Style.MODULE),
        ("main:late", Style.MODULE),
        ("main:M", Style.CLASS),
        ("main:Sub", Style.CLASS),
        ("main:Model", Style.CLASS),
        ("main:fn", Style.MODULE),
        ("pkg:Deep", Style.CLASS),
        ("pkg.mod:main", Style.MODULE),
        ("script.py", Style.SCRIPT),
    ],
)
def test_explicit_entries(entry: str, style: Style) -> None:
    assert find_entry(package(SOURCES), Settings(entry=entry)) == (style, entry)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("main:absent", "handler, M"),
        ("main:Empty", "no method predict"),
        ("absent:main", "neither absent.py"),
        ("absent.py", "no such file"),
        ("main", "module:name"),
        ("main:a b", "module:name"),
    ],
)
def test_wrong_explicit_entries(entry: str, said: str) -> None:
    with pytest.raises(BadPackage) as caught:
        find_entry(package(SOURCES), Settings(entry=entry), function="ns/f")
    assert said in caught.value.message
    assert (caught.value.function, caught.value.phase) == ("ns/f", "package")


def test_found_by_itself() -> None:
    assert find_entry(package({"main.py": "def handler(event): return 1"}), Settings()) == (
        Style.MODULE,
        "main:handler",
    )
    assert find_entry(package({"one.py": "def main(args): return 1"}), Settings()) == (Style.MODULE, "one:main")
    model = "class Model:\n  def load(self): ...\n  def predict(self, payload): return 1\n"
    assert find_entry(package({"main.py": model}), Settings()) == (Style.CLASS, "main:Model")


@pytest.mark.parametrize(
    ("members", "said", "hint"),
    [
        ({"main.py": "x = 1\ndef helper(): ...\n"}, "helper", "handler(event)"),
        ({"a.py": "", "b.py": ""}, "no main.py", "main.py"),
        ({"f/main.py": "def handler(e): ..."}, "one in f/", "content of f/"),
        ({"main.py": "def broken(:"}, "cannot be parsed", "python"),
    ],
)
def test_no_entry(members: dict[str, bytes | str], said: str, hint: str) -> None:
    with pytest.raises(BadPackage) as caught:
        find_entry(package(members), Settings())
    assert said in caught.value.message
    assert hint in caught.value.hint
