"""The command line against a stub of the HTTP API: through typer's runner."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import instainfer
from instainfer import __version__
from instainfer.cli import VERBS, app, main
from instainfer.client import ADMIN_SOCKET
from instainfer.config import Settings

from .stub_server import ACTIVATION, CONTAINERS, PROFILE, RECORD, STATUS, WHY, Stub, serving


@pytest.fixture(scope="module")
def running() -> Iterator[Stub]:
    with serving(Stub()) as stub:
        yield stub


@pytest.fixture
def stub(running: Stub, monkeypatch: pytest.MonkeyPatch) -> Stub:
    running.seen.clear()
    monkeypatch.setenv("INSTAINFER_URL", running.url)
    return running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "greeter"
    made.mkdir()
    (made / "main.py").write_text("def handler(event):\n    return event\n", encoding="utf-8")
    return made


def run(*line: str, input: bytes | None = None) -> Result:
    return CliRunner().invoke(app, line, input=input)


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# Every verb


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"Example: instainfer {verb}" in " ".join(result.stdout.split())
    assert "--json" in result.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["ls"], {"functions": ...}),
        (["get", "magika"], ...),
        (["status"], STATUS),
        (["ps"], CONTAINERS),
        (["why", ACTIVATION], WHY),
        (["activations"], {"activations": [RECORD]}),
        (["logs", "magika"], ...),
        (["preload", "magika"], {"message": "did preload"}),
        (["offload", "magika"], {"message": "did offload"}),
        (["pin", "magika"], {"message": "did pin"}),
        (["unpin", "default/magika"], {"message": "did unpin"}),
        (["hint", "magika", "--in", "30s"], {"message": "did hint"}),
        (["delete", "magika"], {"message": "deleted"}),
        (["deploy", "magika", "--version", "2"], {"message": "did rollback"}),
        (["version"], ...),
    ],
)
def test_json_before_and_after_the_verb(stub: Stub, line: list[str], expected: Any) -> None:
    before, after = document(run("--json", *line)), document(run(*line, "--json"))
    assert before == after
    if isinstance(expected, dict) and ... not in expected.values():
        assert after == expected
    assert run(*line).exit_code == 0


# Errors and exit statuses


def test_failures_exit_1_and_say_what_to_do(stub: Stub) -> None:
    result = run("preload", "full")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: no container has room\nhint: pin it, or wait\n"


def test_failures_in_json_are_problems(stub: Stub) -> None:
    result = run("preload", "full", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["type"] == "urn:instainfer:error:conflict"
    assert result.stderr == ""


@pytest.mark.parametrize(
    "line",
    [
        ["get", "a/b/c"],
        ["get", "/b"],
        ["hint", "magika", "--in", "soon"],
        ["hint", "magika", "--in", "30s", "--probability", "2"],
        ["activations", "--since", "noon"],
        ["invoke", "magika", "--data", "not json"],
        ["invoke", "magika", "--data", "{}", "-p", "a", "1"],
        ["invoke", "magika", "--data", "@/no/such/file"],
        ["invoke", "magika", "-p", "alone"],
        ["deploy", ".", "--param", "novalue"],
        ["deploy", "magika", "--version", "2", "--memory", "1GB"],
        ["deploy", "/"],
        ["serve", "--host", "0.0.0.0"],
        ["serve", "--memory", "much"],
        ["serve", "--config", "/no/such/file"],
        ["bench", "nothing"],
        ["nothing"],
        ["ls", "--nothing"],
        ["get"],
    ],
)
def test_bad_usage_exits_2_without_asking_the_server(stub: Stub, line: list[str]) -> None:
    assert run(*line).exit_code == 2
    assert stub.seen == []


def test_the_parsers_errors_look_like_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["ls", "--nothing"])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: No such option: --nothing")
    assert "hint: `instainfer ls --help`" in err
    with pytest.raises(SystemExit):
        main(["get", "--json"])
    assert json.loads(capsys.readouterr().out)["status"] == 400


# Global options


def test_the_server_may_be_named_anywhere(running: Stub, tmp_path: Path) -> None:
    assert run("status", "--url", running.url).exit_code == 0
    assert run("--url", running.url, "status").exit_code == 0
    with serving(Stub(api_key="k"), unix=str(tmp_path / ADMIN_SOCKET)):
        assert run("status", "--data-dir", str(tmp_path), "--api-key", "k").exit_code == 0
        assert run("--data-dir", str(tmp_path), "--api-key", "k", "status").exit_code == 0
        assert run("status", "--data-dir", str(tmp_path)).exit_code == 1


# serve, demo, bench: what they hand on


def test_serve_puts_flags_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served: list[Settings] = []
    monkeypatch.setattr("instainfer.gateway.serve", served.append, raising=False)
    monkeypatch.setenv("INSTAINFER_SERVER__PORT", "1")
    monkeypatch.setenv("INSTAINFER_LIMITS__QUEUE", "7")
    file = tmp_path / "it.toml"
    file.write_text("[policy]\nmode = 'tyche'\npredictor = 'poisson'\n", encoding="utf-8")
    line = ["--host", "0.0.0.0", "--api-key", "k", "--port", "2", "--data-dir", str(tmp_path), "--memory", "1GB"]
    line += ["--sandbox", "process", "--policy", "lru", "--keep-alive", "fixed", "--keep-alive-seconds", "5m"]
    assert run("serve", *line, "--config", str(file)).exit_code == 0
    assert run("--data-dir", str(tmp_path / "other"), "serve").exit_code == 0
    first, second = served
    assert (first.server.host, first.server.port, first.server.api_key) == ("0.0.0.0", 2, "k")
    assert (first.server.data_dir, first.node.memory, first.sandbox.kind) == (tmp_path, 10**9, "process")
    assert (first.policy.mode, first.policy.predictor) == ("lru", "poisson")
    assert (first.policy.keep_alive, first.policy.keep_alive_s) == ("fixed", 300.0)
    assert first.limits.queue == 7
    assert (second.server.port, second.server.data_dir) == (1, tmp_path / "other")


def test_demo_and_bench_get_their_file(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(instainfer, "demo", SimpleNamespace(run=lambda *given: calls.append(given)), raising=False)
    monkeypatch.setattr("instainfer.bench.run", lambda *given, **_: calls.append(given), raising=False)
    assert run("demo").exit_code == 0
    assert run("demo", "--json", "d.json").exit_code == 0
    assert run("bench", "overhead", "--json", "-").exit_code == 0
    assert calls == [(None, None), (Path("d.json"), None), ("overhead", Path("-"))]


# deploy


def test_deploy_packs_the_folder_and_prints_the_profile(stub: Stub, folder: Path) -> None:
    sample = folder.parent / "ada.png"
    sample.write_bytes(b"\x89PNG")
    options = ["--memory", "1GB", "--timeout", "30s", "--concurrency", "2", "--param", "a=b=c", "--env", "X=1"]
    options += [
        "--python",
        "3.11",
        "--requirement",
        "numpy==2.4.6",
        "--requirement",
        "six",
        "--sample",
        str(sample),
    ]
    result = run("deploy", str(folder), *options)
    assert result.exit_code == 0, result.output
    ((_, path, sent),) = stub.seen
    assert path == "/instainfer/v1/functions/default/greeter"
    assert json.loads(sent["settings"]) == {
        "memory": "1GB",
        "timeout": "30s",
        "concurrency": 2,
        "params": {"a": "b=c"},
        "env": {"X": "1"},
        "python": "3.11",
        "requirements": ["numpy==2.4.6", "six"],
    }
    assert (sent["sample"], sent["sample_type"]) == (b"\x89PNG", "image/png")
    assert zipfile.ZipFile(io.BytesIO(sent["package"])).namelist() == ["main.py"]
    assert "default/greeter version 3 is deployed" in result.stdout
    assert "first inference" in result.stdout
    assert result.stderr.splitlines() == [
        "package: read 3 files",
        "environment: installing magika==1.0.3",
        "measure: loading [once]",
    ]


def test_deploy_in_json_is_one_document(stub: Stub, folder: Path) -> None:
    result = run("deploy", str(folder), "--name", "team/hi", "--hold", "--json")
    assert document(result)["profile"] == PROFILE
    assert result.stderr == ""
    ((_, path, sent),) = stub.seen
    assert path == "/instainfer/v1/functions/team/hi"
    assert json.loads(sent["settings"]) == {"hold": True}


def test_deploy_of_a_file_takes_its_name(stub: Stub, tmp_path: Path) -> None:
    file = tmp_path / "say hello.py"
    file.write_text("def handler(event): ...\n", encoding="utf-8")
    assert run("deploy", str(file)).exit_code == 0
    assert stub.seen[0][1].endswith("/say-hello")


def test_deploy_says_what_failed(stub: Stub, folder: Path) -> None:
    result = run("deploy", str(folder), "--name", "broken")
    assert result.exit_code == 1
    assert result.stderr.endswith("No matching distribution\nerror: pip failed\nhint: pin a version\n")


def test_rollback(stub: Stub) -> None:
    assert run("deploy", "magika", "--version", "2").stdout == "did rollback\n"
    assert stub.seen == [("POST", "functions/default/magika/rollback", {"version": 2})]


# invoke


def test_invoke_sends_parameters(stub: Stub, tmp_path: Path) -> None:
    file = tmp_path / "params.json"
    file.write_text('{"a": 0, "b": 2}', encoding="utf-8")
    line = ["-p", "a", "1", "-P", str(file), "-p", "name", "Ada", "-p", "flag", "--json", "-p", "e", "x=y"]
    result = run("invoke", "magika", *line)
    assert result.exit_code == 0, result.output
    ((_, path, (kind, body)),) = stub.seen
    assert (path, kind) == ("/f/default/magika", "application/json")
    assert json.loads(body) == {"a": 1, "b": 2, "name": "Ada", "flag": "--json", "e": "x=y"}


def test_invoke_prints_the_answer_and_tells_the_story_beside(stub: Stub) -> None:
    result = run("invoke", "magika")
    assert result.stdout == '{"label": "png"}\n'
    head, queue, inference = result.stderr.splitlines()
    assert head == f"preloaded start, 13 ms, activation {ACTIVATION}"
    assert queue.split()[:3] == ["queue", "0.20", "ms"]
    assert inference.split()[:3] == ["inference", "12", "ms"]


@pytest.mark.parametrize(
    ("data", "input", "options", "kind", "body"),
    [
        ('{"x": 1}', None, [], "application/json", b'{"x": 1}'),
        ("plain", None, ["--type", "text/plain"], "text/plain", b"plain"),
        ("-", b"[1]", [], "application/json", b"[1]"),
        ("-", b"\xff", [], "application/octet-stream", b"\xff"),
        ("@photo.jpg", None, [], "image/jpeg", b"\xff\xd8"),
        ("@photo.jpg", None, ["--type", "image/x"], "image/x", b"\xff\xd8"),
        ("@unknown", None, [], "application/octet-stream", b"?"),
    ],
)
def test_invoke_sends_bodies(
    stub: Stub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: str,
    input: bytes | None,
    options: list[str],
    kind: str,
    body: bytes,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(b"\xff\xd8")
    Path("unknown").write_bytes(b"?")
    result = run("invoke", "magika", "--data", data, *options, input=input)
    assert result.exit_code == 0, result.output
    assert stub.seen == [("POST", "/f/default/magika", (kind, body))]


def test_invoke_result_is_the_bytes_alone(stub: Stub) -> None:
    result = run("invoke", "bytes", "--result")
    assert (result.stdout_bytes, result.stderr) == (b"\x89PNG\xff", "")


def test_invoke_prints_text_and_bytes_as_they_are(stub: Stub) -> None:
    assert run("invoke", "text").stdout == "hello\n"
    assert run("invoke", "bytes").stdout_bytes == b"\x89PNG\xff"


def test_invoke_in_json(stub: Stub) -> None:
    assert document(run("invoke", "bytes", "--json"))["answer"] == {"base64": "iVBOR/8="}
    assert document(run("--json", "invoke", "magika")) == {
        "answer": {"label": "png"},
        "type": "application/json",
        "start": "preloaded",
        "activation": ACTIVATION,
        "phases": {"queue_ms": 0.2, "inference_ms": 12.5},
    }


def test_invoke_shows_the_functions_own_error(stub: Stub) -> None:
    result = run("invoke", "broken")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "Traceback: main.py line 3",
        "error: KeyError: 'text'",
        f"hint: `instainfer why {ACTIVATION}` says more",
    ]


# What is shown


def test_tables_in_a_pipe_are_plain(stub: Stub) -> None:
    header, row = run("ls").stdout.splitlines()
    assert header.split() == [
        *("FUNCTION", "VERSION", "STATE", "LIMIT", "LOADED", "IMPORT", "LOAD", "CALL", "CREATED")
    ]
    assert row.startswith("default/magika        3  preloaded  512 MB")
    assert run("ls").stdout.isascii()


def test_ps_tells_owner_from_guests(stub: Stub) -> None:
    shown = run("ps").stdout.splitlines()
    assert shown[0] == "512 MB of 8.0 GB given to 1 container, sandbox process"
    row = shown[3].split("  ")
    cells = [cell.strip() for cell in row if cell.strip()]
    assert cells == ["c1", "default/magika", "idle", "75 MB", "100 MB", "337 MB", "512 MB", "1.5 min", "10.0 min"]
    assert any(line.startswith("i2") and "default/ocr" in line and "ready (frozen)" in line for line in shown)


def test_activations_filter(stub: Stub) -> None:
    result = run("activations", "team/magika", "--limit", "5", "--skip", "2")
    assert ACTIVATION in result.stdout
    assert "540 ms" in result.stdout
    assert stub.seen == [("GET", "activations?namespace=team&function=magika&limit=5&skip=2", None)]


def test_logs_of_a_function_and_of_an_activation(stub: Stub) -> None:
    for what in ("magika", ACTIVATION):
        lines = run("logs", what).stdout.splitlines()
        assert [line.rpartition("stdout  ")[2] for line in lines] == ["loading [weights]", "ready"]
    assert [path for _, path, _ in stub.seen] == [
        "functions/default/magika/logs?limit=200",
        f"activations/{ACTIVATION}/logs",
    ]
    assert "there is no functions/default/other/logs" in run("logs", "other").stderr


def test_why_tells_the_story(stub: Stub) -> None:
    shown = run("why", ACTIVATION).stdout
    assert "default/magika (version 3)" in shown
    assert "cold start, ok, 540 ms" in shown
    assert "forecast   hazard: one within a minute with probability 0.03 (1.8 per hour)" in shown
    assert "12 s before  off-loaded magika from c1" in shown
    assert "because ocr was worth more there" in shown
    assert "- pin magika" in shown
    assert "note:" not in shown


def test_get_shows_profile_and_versions(stub: Stub) -> None:
    shown = run("get", "magika").stdout
    for part in ("main:Model (class style)", "magika==1.0.3", "first inference", "30 ms", "yes"):
        assert part in shown


def test_status_says_what_is_not_isolated(stub: Stub) -> None:
    assert "not isolated: functions reach the network" in run("status").stdout


def test_version() -> None:
    assert run("--version").stdout.startswith("instainfer ")
    assert __version__ in run("version").stdout
