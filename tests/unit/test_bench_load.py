"""`bench load`: what it deploys, what it counts, what it makes of it; and one run on a real server."""

from __future__ import annotations

import ast
import base64
import csv
import hashlib
import io
import os
import tempfile
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path
from typing import Any

import pytest

from instainfer import bench
from instainfer.agent.installers import Sources
from instainfer.bench import load, load_picture, wheels
from instainfer.bench.further import Further, One
from instainfer.bench.http import Reply
from instainfer.bench.load import Samples, Variant
from instainfer.bench.models import HERE, PAPERS, QUICK, Model, catalogue, choose
from instainfer.bench.report import Report
from instainfer.cli import main
from instainfer.errors import BadInput, BuildFailed, Unavailable
from instainfer.model import Style
from instainfer.packages import find_entry, open_package, read_settings

PLAIN, MAPPED, OURS, ALONE = load.VARIANTS
EIGHT = ["alexnet", "googlenet", "inceptionv3", "resnet18", "resnet50", "resnet152", "vgg19", "bert"]


def named(name: str) -> Model:
    (found,) = choose([name])
    return found


# ---- models ----------------------------------------------------------------------------------------------------


def test_models_are_chosen_by_name_in_the_order_of_the_table() -> None:
    assert [model.name for model in choose(["bert", "alexnet"])] == ["alexnet", "bert"]
    assert {model.name for model in choose(quick=True)} == set(QUICK)
    assert choose() == list(catalogue())
    assert [model.name for model in catalogue() if model.kind == PAPERS] == EIGHT
    assert len([model for model in catalogue() if model.kind != PAPERS]) >= 6


@pytest.mark.parametrize("names", [["alexnet", "lenet"], []])
def test_an_unknown_model_is_refused_with_those_there_are(names: list[str]) -> None:
    with pytest.raises(BadInput) as raised:
        choose(names)
    assert "resnet50" in raised.value.hint


@pytest.mark.parametrize("model", catalogue(), ids=lambda model: model.name)
def test_a_models_package_is_a_function(model: Model) -> None:
    for mode in ("plain", "mapped") if model.mapped else ("plain",):
        package = open_package(model.package(mode))
        settings = read_settings(package, {"entry": "held:Model", "sample": model.sample})
        assert find_entry(package, settings) == (Style.CLASS, "held:Model")
        assert package.read(model.sample) == model.body
        for name in package.names():
            if name.endswith(".py"):
                ast.parse(package.read(name))
        assert ("weights.py" in package.names()) == (model.kind == PAPERS)


def test_the_papers_models_all_have_a_rival_that_is_loaded_by_hand() -> None:
    assert all(model.mapped for model in catalogue() if model.kind == PAPERS)


def test_every_source_belongs_to_a_model() -> None:
    used = {f"{model.source or model.name}_{mode}.py" for model in catalogue() for mode in ("plain", "mapped")}
    others = {"__init__.py", "held.py", "make_weights.py"}
    assert {path.name for path in HERE.glob("*.py")} - others <= used


def test_every_kind_has_a_figure_to_reach() -> None:
    for path in load.REACH:
        assert all(load.reach(model.kind, "ours", path) for model in catalogue()), path
    assert load.reach(PAPERS, "mapped", "hit") is None
    assert load.reach(PAPERS, "ours", "miss") is None


# ---- wheels ----------------------------------------------------------------------------------------------------


def test_one_environment_holds_what_its_models_share_and_their_weights() -> None:
    lines = wheels.requirements(choose(["resnet18", "bert"]))
    assert len(lines) == len(set(lines))
    assert "instainfer-bench-weights-resnet18==1+local" in lines
    assert "instainfer-bench-weights-bert==1+local" in lines
    assert "instainfer-bench-pytorchcv==1+local" in lines
    assert [line for line in lines if line.startswith("torch")] == ["torch==2.13.0"]
    magika = named("magika")
    assert wheels.requirements([magika]) == list(magika.requirements)


def test_a_wheel_records_what_is_in_it(tmp_path: Path) -> None:
    with wheels._Wheel(tmp_path, "some_weights") as wheel:
        wheel.add("some_weights/__init__.py", [b"PATH = 1\n"])
        wheel.add("some_weights/weights.pt", iter([b"ab", b"cd"]))
    (file,) = tmp_path.iterdir()
    assert file.name == "some_weights-1+local-py3-none-any.whl"
    with zipfile.ZipFile(file) as archive:
        assert archive.read("some_weights/weights.pt") == b"abcd"
        record = archive.read("some_weights-1+local.dist-info/RECORD").decode()
        rows = {name: (digest, size) for name, digest, size in csv.reader(io.StringIO(record))}
        assert set(rows) == set(archive.namelist())
        for name in set(rows) - {"some_weights-1+local.dist-info/RECORD"}:
            content = archive.read(name)
            encoded = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert rows[name] == (f"sha256={encoded}", str(len(content)))


def test_builds_look_for_wheels_here_for_as_long_as_it_lasts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for before in ("/some/wheels", None):
        if before is None:
            monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        else:
            monkeypatch.setenv("PIP_FIND_LINKS", before)
        with wheels._looked_into(tmp_path):
            sources = Sources.read()
            assert tmp_path.as_uri() in sources.find_links
            assert before is None or before in sources.find_links
            assert tmp_path in sources.paths({})
        assert os.environ.get("PIP_FIND_LINKS") == before


# ---- counting --------------------------------------------------------------------------------------------------


def reply(start: str, body: bytes = b'"a"', status: int = 200, phases: dict[str, float] | None = None) -> Reply:
    timing = ", ".join(f"{name};dur={ms}" for name, ms in (phases or {}).items())
    return Reply(status, start, True, f"http/1.1\r\nserver-timing: {timing}\r\n".encode(), body)


def test_a_start_that_is_not_what_its_path_claims_is_an_error_and_no_sample() -> None:
    samples = Samples(OURS)
    samples.add("miss_zygote", "forked", 0.3, reply("cold"))
    samples.add("miss_zygote", "forked", 0.3, reply("forked", status=502))
    samples.add("miss_zygote", "forked", 0.3, reply("forked", b'"b"'))
    assert len(samples.errors) == 3
    assert samples.ms("miss_zygote") is None
    samples.add("miss_zygote", "forked", 0.2, reply("forked", phases={"load": 150}))
    assert samples.ms("miss_zygote") == pytest.approx(200)
    assert samples.paths["miss_zygote"].phase("load") == 150
    assert len(samples.errors) == 3


def test_a_path_that_no_start_took_has_a_row_without_figures() -> None:
    plain = taken(PLAIN, 50, miss=(1050, {}))
    ours = taken(OURS, 40, hit=(40, {}))
    ours.add("miss_zygote", "forked", 1.0, reply("cold"))
    missed, hit = load._rows(named("bert"), ours, plain, "linux")
    assert (missed["path"], missed["e2e_ms"], missed["removed_fraction"], missed["n"]) == (
        "miss_zygote",
        None,
        None,
        0,
    )
    assert (hit["path"], hit["removed_fraction"], hit["errors"]) == ("hit", 1.0, 1)
    assert "no start was" in load.remains(ours, "miss_zygote")


def test_what_fails_is_an_error_and_no_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = taken(PLAIN, 50, miss=(1050, {}), hit=(60, {}))

    def fails() -> None:
        raise Unavailable("gone")

    with plain.failing():
        fails()
    assert plain.errors == ["gone"]

    def group(models: list[Model], rounds: int, report: Report) -> load.Found:
        if models[0].name == "spacy":
            raise BuildFailed("no network")
        return {models[0].name: {"plain": plain}}

    monkeypatch.setattr(load, "_group", group)
    with Report("bench load") as report:
        load.measure(choose(["magika", "spacy"]), 1, report)
        assert [row["model"] for row in report.rows] == ["magika", "magika"]
        with pytest.raises(BuildFailed):
            load.measure(choose(["spacy"]), 1, report)
    out = capsys.readouterr().out
    assert "spacy not measured: no network" in out
    assert "magika: gone" in out


def test_fast_paths_that_a_deployment_refused_are_told() -> None:
    ours = taken(OURS, 40, hit=(40, {}))
    ours.profile = {
        "paths": {"snapshot": {"used": False, "reason": "a thread"}, "zygote": {"used": 1, "reason": ""}}
    }
    row = load._rows(named("bert"), ours, taken(PLAIN, 50), "linux")[0]
    assert row["fast_paths"] == {"snapshot": "a thread", "zygote": "used"}


def test_what_is_not_mapped_by_hand_has_no_such_variant() -> None:
    assert [one.suffix for one in load.variants(named("magika"))] == ["plain", "ours", "alone"]
    assert [one.suffix for one in load.variants(named("resnet18"))] == ["plain", "mapped", "ours", "alone"]


def taken(variant: Variant, warm_ms: float, **paths: tuple[float, dict[str, float]]) -> Samples:
    samples = Samples(variant)
    starts = {"hit": "preloaded", variant.path: variant.start}
    samples.add("warm", "warm", warm_ms / 1e3, reply("warm", phases={"inference": warm_ms - 1}))
    for path, (ms, phases) in paths.items():
        samples.add(path, starts[path], ms / 1e3, reply(starts[path], phases=phases))
    return samples


def rows(model: Model) -> list[dict[str, Any]]:
    plain = taken(
        PLAIN,
        50,
        miss=(1050, {"container": 100, "import": 500, "load": 350, "inference": 99}),
        hit=(75, {"inference": 74}),
    )
    ours = taken(
        OURS, 40, miss_zygote=(90, {"container": 20, "load": 30, "inference": 39}), hit=(40, {"inference": 39})
    )
    came = [One("i1", "forked", 9.0, 80.0), One("i2", "cloned", 9.0, 12.0), One("i3", "cloned", 8.0, 14.0)]
    ours.further = Further(came, [400.0, 10.0, 8.0], (500.0, None))
    return load._rows(model, plain, plain, "linux") + load._rows(model, ours, plain, "linux")


def test_removed_is_measured_against_plain_loading() -> None:
    found = {(row["mode"], row["path"]): row for row in rows(named("resnet18"))}
    assert found["plain", "miss"]["removed_fraction"] == 0.0
    assert found["plain", "hit"]["removed_fraction"] == pytest.approx(1 - 25 / 1000)
    assert found["ours", "miss_zygote"]["removed_fraction"] == pytest.approx(1 - 50 / 1010)
    assert found["ours", "hit"]["removed_fraction"] == 1.0
    for row in found.values():
        cold, warm = row["e2e_cold_ms"], row["e2e_warm_ms"]
        assert row["removed_fraction"] == pytest.approx(1 - (row["e2e_ms"] - warm) / (cold - warm))
    assert found["plain", "miss"]["import_ms"] == 500
    assert found["ours", "miss_zygote"]["reach_fraction"] == 0.95
    assert found["ours", "hit"]["memory_first_mb"] == 400
    assert found["ours", "hit"]["memory_nth_mb"] == 8
    assert (found["ours", "hit"]["further_ms"], found["ours", "hit"]["further_container_ms"]) == (13, 8.5)
    assert found["ours", "hit"]["instances"] == 3


def test_memory_is_compared_with_the_first_instance_and_with_plain_loading() -> None:
    came = [One("i1", "forked", 9.0, 80.0), One("i2", "cloned", 8.0, 14.0)]
    ours, plain = Further(came, [40.0, 10.0], (500.0, None)), Further(came[:1], [400.0], (None, None))
    cells = ["40.0", "10.0", "10.0", "25.0%", "2.5%", "500", "-", "2", "cloned", "14.0", "8.0"]
    assert ours.cells(plain) == cells
    assert plain.cells(plain) == ["400", "-", "-", "-", "-", "-", "-", "1", "-", "-", "-"]
    assert Further([], [], (None, None)).cells(None)[0] == "-"


def test_what_remains_is_told_by_phase_largest_first() -> None:
    samples = taken(OURS, 40, miss_zygote=(90, {"container": 20, "load": 25, "inference": 39}))
    assert load.remains(samples, "miss_zygote") == "50 ms: load 25 ms, container 20 ms, between the phases 5.00 ms"


def test_the_picture_has_a_bar_per_row_and_one_for_warm_calls() -> None:
    found = rows(named("resnet18")) + rows(named("bert"))
    root = ET.fromstring(load_picture.draw(found))
    space = "{http://www.w3.org/2000/svg}"
    bars = {bar.findtext(f"{space}title"): bar for bar in root.iter(f"{space}rect") if len(bar)}
    assert set(bars) == {
        f"{model}, {label}"
        for model in ("resnet18", "bert")
        for label in ("plain cold start: 1.05 s", "miss with a zygote: 90 ms", "hit: 40 ms", "warm: 50 ms")
    }
    widths = [
        float(bars[f"bert, {label}"].attrib["width"]) for label in ("hit: 40 ms", "miss with a zygote: 90 ms")
    ]
    assert widths[0] < widths[1] < float(bars["bert, plain cold start: 1.05 s"].attrib["width"])
    assert len({colour for *_, colour in load_picture.BARS}) == len(load_picture.BARS)


# ---- the command -----------------------------------------------------------------------------------------------


def test_the_command_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(bench, "run", lambda *given, **options: seen.append((given, options)))
    picture = tmp_path / "l.svg"
    with pytest.raises(SystemExit) as ended:
        main(["bench", "load", "--models", "bert,vgg19", "--quick", "--rounds", "2", "--picture", str(picture)])
    assert not ended.value.code
    ((given, options),) = seen
    assert given == ("load", None)
    assert options == {
        "examples": None,
        "models": ["bert", "vgg19"],
        "quick": True,
        "rounds": 2,
        "picture": picture,
    }


def test_what_cannot_be_meant_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no model 'lenet'"):
        bench.run("load", models=["lenet"])
    with pytest.raises(BadInput, match="cannot be written"):
        bench.run("load", quick=True, picture=tmp_path / "missing" / "l.svg")


class Tiny(Model):
    """A model that needs no environment."""

    def package(self, mode: str) -> bytes:
        main = "class Model:\n    def load(self):\n        self.answer = bytes(5_000_000)\n"
        main += "\n    def predict(self, payload):\n        return len(self.answer)\n"
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("main.py", main)
            archive.writestr("held.py", (HERE / "held.py").read_text("utf-8"))
            archive.writestr(self.sample, self.body)
        return buffer.getvalue()


@pytest.mark.slow
def test_a_run_on_a_real_server(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INSTAINFER_SANDBOX__KIND", "process")
    # a short name: the server's socket lies in it, and the path of a socket is at most 107 bytes
    monkeypatch.setattr("tempfile.tempdir", None)
    place = Path(tempfile.mkdtemp(prefix="b-"))
    request.addfinalizer(place.rmdir)  # fails unless it is empty again
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    tiny = Tiny(
        name="tiny",
        kind="package",
        environment="tiny",
        requirements=(),
        memory_mb=64,
        sample="sample.json",
        body=b'{"n": 1}',
    )
    with Report("bench load") as report:
        load.measure([tiny], 1, report)
    assert list(place.glob("instainfer-bench-*")) == []
    found = {(row["mode"], row["path"]): row for row in report.rows}
    assert {("plain", "miss"), ("plain", "hit")} <= set(found)
    for (_, path), row in found.items():
        assert row["sandbox"] == "process"
        if path != "miss_zygote":  # it has no libraries that a zygote could hold
            assert row["n"] == 1, row
            assert row["e2e_ms"] > 0 and row["e2e_warm_ms"] > 0
    for path in ("miss", "hit"):
        assert found["plain", path]["errors"] == 0
    plain = found["plain", "miss"]
    assert plain["instances"] == 2
    assert plain["memory_nth_mb"] > 5
    assert plain["further_start"] == "cold"
    assert "tiny, " in capsys.readouterr().out
