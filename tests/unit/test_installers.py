"""What is asked of uv and pip, and what their words mean."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from instainfer.agent import installers
from instainfer.agent.environments import _choice, digest_of
from instainfer.agent.installers import Sources
from instainfer.agent.interpreters import Interpreter


def test_digest_ignores_spelling_only() -> None:
    base = Interpreter(
        executable="/a",
        base="/a",
        prefix="/",
        version=(3, 11, 4),
        implementation="cpython-311",
        platform="linux-x86_64",
    )
    key = digest_of(["NumPy >= 2.0", "Foo_Bar[x] ; python_version  < '4'"], base)
    assert key == digest_of(["foo-bar[x];python_version < '4'", "numpy>=2.0", "numpy>=2.0"], base)
    assert key == digest_of(
        ["numpy>=2.0", "foo.bar[x];python_version < '4'"], msgspec.structs.replace(base, base="/b")
    )
    for other in (["numpy>=2.1", "foo-bar[x]"], ["numpy>=2.0"], []):
        assert key != digest_of(other, base)
    assert digest_of([], base) != digest_of([], msgspec.structs.replace(base, version=(3, 11, 5)))
    assert digest_of([], base) != digest_of([], msgspec.structs.replace(base, platform="linux-aarch64"))


def test_pip_configuration_is_read_and_its_paths_found(tmp_path: Path) -> None:
    for name in ("links", "mirror/simple", "mirror/files"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bounds.txt").write_text("six<2\n")
    (tmp_path / "ca.pem").touch()
    config = tmp_path / "xdg" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True)
    config.write_text(
        f"[global]\nindex-url = https://index.example/simple\nextra-index-url =\n    file://{tmp_path}/mirror/simple\n"
        f"    https://more.example/simple\nfind_links = {tmp_path}/links https://links.example/\n"
        f"cert = {tmp_path}/ca.pem\n"
        f"[install]\nconstraint = {tmp_path}/bounds.txt\n"
    )
    environ = {
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
        "XDG_CONFIG_DIRS": str(tmp_path),
        "PIP_INDEX_URL": "https://mine.example/",
    }
    sources = Sources.read(environ)
    assert sources.index == "https://mine.example/"  # a variable beats the files
    assert sources.extra_indexes == (f"file://{tmp_path}/mirror/simple", "https://more.example/simple")
    assert sources.paths({}) == sorted(tmp_path / name for name in ("bounds.txt", "ca.pem", "links", "mirror"))
    uv = {
        "UV_INDEX": f"mine=file://{tmp_path}/mirror/simple",
        "UV_FIND_LINKS": f"{tmp_path}/links,https://x.example/",
    }
    assert Sources().paths(uv) == [tmp_path / "links", tmp_path / "mirror"]
    assert sources.variables()["PIP_FIND_LINKS"] == f"{tmp_path}/links https://links.example/"
    arguments = sources.for_uv()
    assert arguments[arguments.index("--default-index") + 1] == "https://mine.example/"
    assert arguments[arguments.index("--constraints") + 1] == f"{tmp_path}/bounds.txt"
    assert arguments.count("--index") == 2
    assert sources.variables()["SSL_CERT_FILE"] == f"{tmp_path}/ca.pem"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Resolved 14 packages in 120ms", "resolved 14 packages"),
        ("Downloading scikit-learn (8.5MiB)", "downloading scikit-learn 8.5 MB"),
        ("  Downloading numpy-2.0.1-cp311-cp311-manylinux_2_17_x86_64.whl (18.3 MB)", "downloading numpy 18.3 MB"),
        ("Collecting six>=1", "resolving six"),
        ("Installing collected packages: a, b", "installing a, b"),
        ("   Building foo @ file:///x.tar.gz", "building foo"),
        (" + six==1.17.0", ""),
        ("WARNING: something", ""),
    ],
)
def test_progress_is_for_people(line: str, said: str) -> None:
    assert installers.progress_of(line) == said


@pytest.mark.parametrize(
    ("output", "kind", "named"),
    [
        (
            "  ╰─▶ Because nosuch was not found in the package registry and you require nosuch, we can",
            "missing",
            "nosuch",
        ),
        (
            "  ╰─▶ Because there is no version of six==99 and you require six==99, we can conclude",
            "missing",
            "six==99",
        ),
        ("ERROR: No matching distribution found for six==99", "missing", "six==99"),
        ("error: No space left on device (os error 28)", "disk", "full"),
        (
            "dns error: failed to lookup address information: Temporary failure in name resolution",
            "network",
            "index",
        ),
        ("NewConnectionError: Failed to establish a new connection: [Errno 101]", "network", "index"),
        ("error: command 'gcc' failed: No such file or directory", "compiler", "compiled"),
        ("error: [Errno 2] No such file or directory: 'x86_64-linux-gnu-gcc'", "compiler", "compiled"),
        (
            "Because a>=2 depends on c<1 and b depends on c>1 ... No solution found when resolving",
            "conflict",
            "contradict",
        ),
        ("Segmentation fault", "", ""),
    ],
)
def test_failures_are_diagnosed(output: str, kind: str, named: str) -> None:
    found = installers.diagnose(["some line", *output.splitlines()])
    assert found.kind == kind
    assert named in found.message
    assert found.hint


def test_torch_goes_to_pip_where_pip_has_further_sources(tmp_path: Path) -> None:
    more = Sources(find_links=("/wheels",))
    assert _choice(["torch==2.13.0"], more, "/uv") == ["pip"]
    assert _choice(["torch==2.13.0"], Sources(), "/uv") == ["uv", "pip"]
    assert _choice(["six"], more, "/uv") == ["uv", "pip"]
    assert _choice(["six"], more, None) == ["pip"]
