"""Settings: precedence, types, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instainfer import config
from instainfer.errors import BadSettings
from instainfer.units import MB, parse_bytes, parse_seconds, say_mb, say_ms, say_s


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No instainfer.toml of the folder that the tests happen to run in."""
    monkeypatch.chdir(tmp_path)


def load(text: str = "", environ: dict[str, str] | None = None, flags: Any = None) -> config.Settings:
    file = Path("given.toml")
    file.write_text(text, encoding="utf-8")
    return config.load(file, environ or {}, flags)


def test_defaults_are_filled_in() -> None:
    settings = config.load(environ={})
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 3233)
    assert settings.server.data_dir == config.default_data_dir()
    assert 0 < settings.node.memory < config.machine_memory()
    assert settings.node.load_slots >= 1
    assert settings.policy.mode == "hazard"
    assert settings.server.max_body == 64 * MB


def test_flags_win_over_the_environment_and_it_over_the_file() -> None:
    text = "[server]\nport = 1\nmax_body = '1MB'\nmax_answer = 5\n[policy]\nmode = 'tyche'"
    environ = {"INSTAINFER_SERVER__PORT": "2", "INSTAINFER_SERVER__MAX_BODY": "2MiB", "INSTAINFER_URL": "http://x"}
    settings = load(text, environ, {"server": {"port": 3, "host": None}, "policy": {"mode": None}})
    assert settings.server.port == 3
    assert settings.server.host == "127.0.0.1"
    assert settings.server.max_body == 2 << 20
    assert settings.server.max_answer == 5
    assert settings.policy.mode == "tyche"


def test_which_file_is_read() -> None:
    Path("instainfer.toml").write_text("[server]\nport = 1", encoding="utf-8")
    Path("other.toml").write_text("[server]\nport = 2", encoding="utf-8")
    assert config.load(environ={}).server.port == 1
    assert config.load(environ={"INSTAINFER_CONFIG": "other.toml"}).server.port == 2
    assert config.load(Path("instainfer.toml"), {"INSTAINFER_CONFIG": "other.toml"}).server.port == 1


def test_values_from_text_and_from_toml_mean_the_same() -> None:
    text = "[server]\naccess_log = true\ndrain_s = 5\n[node]\nmemory = '2GB'\n[limits]\nqueue_s = '2m'"
    environ = {
        "INSTAINFER_SERVER__ACCESS_LOG": "true",
        "INSTAINFER_SERVER__DRAIN_S": "5s",
        "INSTAINFER_NODE__MEMORY": "2000000000",
        "INSTAINFER_LIMITS__QUEUE_S": "120",
    }
    assert load(text) == load(environ=environ)


def test_data_dir_is_absolute_and_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("[server]\ndata_dir = '~/here'").server.data_dir == tmp_path / "here"
    assert load("[server]\ndata_dir = 'here'").server.data_dir == tmp_path / "here"


def test_environments_are_in_the_data_directory_unless_it_is_said_where(tmp_path: Path) -> None:
    assert load(f"[server]\ndata_dir = '{tmp_path}'").environments.root == tmp_path / "environments"
    given = load(f"[server]\ndata_dir = '{tmp_path}'\n[environments]\nroot = '/srv/environments'")
    assert given.environments.root == Path("/srv/environments")


@pytest.mark.parametrize(
    ("text", "says", "hints"),
    [
        ("[server]\nprot = 1", "'prot'", "port"),
        ("[sever]\nport = 1", "[sever]", "server, node"),
        ("port = 1", "port = 1", "[server]"),
        ("[server]\nport = 'http'", "server.port = 'http'", "0 to 65535"),
        ("[server]\nport = 70000", "server.port = 70000", "0 to 65535"),
        ("[server]\nport = true", "server.port = True", "0 to 65535"),
        ("[server]\naccess_log = 'perhaps'", "server.access_log", "true or false"),
        ("[server]\nhost = 5", "server.host = 5", "text"),
        ("[server]\ndata_dir = ''", "server.data_dir", "directory"),
        ("[sandbox]\nkind = 'vm'", "sandbox.kind = 'vm'", "'auto', 'linux', 'process'"),
        ("[node]\nmemory = '2 potatoes'", "node.memory", "512MB"),
        ("[node]\nmemory = -1", "node.memory = -1", "a size"),
        ("[limits]\nload_s = '5 parsecs'", "limits.load_s", "30s"),
        ("[limits]\nqueue = 0", "limits.queue = 0", "at least 1"),
        ("[node]\nuid_base = 0", "uid_base", "65536"),
        ("[server\n", "not valid TOML", "toml"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str, hints: str) -> None:
    with pytest.raises(BadSettings) as caught:
        load(text)
    assert says in caught.value.message
    assert "given.toml" in caught.value.message
    assert hints in caught.value.hint


def test_sources_are_named() -> None:
    with pytest.raises(BadSettings, match="the environment"):
        load(environ={"INSTAINFER_SERVER__PRT": "1"})
    with pytest.raises(BadSettings, match="the command line"):
        load(flags={"server": {"port": "x"}})
    with pytest.raises(BadSettings, match="cannot be read"):
        config.load(Path("missing.toml"), {})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert load(flags={"server": {"host": host}}).server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_other_machines_reach_all_else(host: str) -> None:
    """Whether there is a key is for the server to see, which knows the namespaces'."""
    assert not config.is_loopback(load(flags={"server": {"host": host}}).server.host)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("64k", 65536), ("512MB", 512_000_000), ("1.5 GiB", 3 << 29), ("1tb", 10**12), (".5m", 1 << 19)],
)
def test_parse_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MB", "1 XB", "-1", "1e9", "1 2", "٣MB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="512MB"):
        parse_bytes(text)


@given(st.integers(0, 10**15))
def test_plain_bytes_are_exact(count: int) -> None:
    assert parse_bytes(str(count)) == count


def test_parse_seconds() -> None:
    assert [parse_seconds(t) for t in ("30", "500ms", "2 m", "1h", "1d")] == [30, 0.5, 120, 3600, 86400]
    with pytest.raises(ValueError, match="30s"):
        parse_seconds("soon")


def test_saying() -> None:
    assert [say_mb(v) for v in (0, 0.5, 87.2, 1400)] == ["0 MB", "0.5 MB", "87 MB", "1.4 GB"]
    assert [say_ms(v) for v in (0, 0.417, 87.2, 1240, 210_000)] == [
        "0 ms",
        "0.42 ms",
        "87 ms",
        "1.24 s",
        "3.5 min",
    ]
    assert [say_s(v) for v in (0, 8.2, 30, 210, 7200, 345_600)] == [
        "0 s",
        "8.2 s",
        "30 s",
        "3.5 min",
        "2.0 h",
        "4.0 d",
    ]
