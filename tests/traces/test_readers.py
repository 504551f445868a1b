"""Every format: what is read, what is refused, and that what is odd is counted with its row and reason."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instainfer.errors import BadInput
from instainfer.traces import azure2019, csvfile, placement, recipe, table
from instainfer.traces.base import Trace, gather
from instainfer.traces.generate import synthetic
from instainfer.traces.open import open_trace, parse_minutes

INVOCATIONS = """HashOwner,HashApp,HashFunction,Trigger,1,2,3,4
o,a,f,timer,1,2,0,1
o,a,g,http,0,3,0,0
o,b,h,queue,0,0,0,5
"""
DURATIONS = (
    "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum,"
    + ",".join(f"percentile_Average_{p}" for p in (0, 1, 25, 50, 75, 99, 100))
    + "\n"
)


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def per_minute(trace: Trace, function: str) -> list[int]:
    minutes = (trace.arrivals(function) // 60).astype(int)
    found: list[int] = np.bincount(minutes, minlength=int(trace.length_s // 60)).tolist()
    return found


def test_an_invocations_file_alone_is_a_trace(tmp_path: Path) -> None:
    trace = open_trace(written(tmp_path, INVOCATIONS))
    assert trace.names == ("f", "g", "h")
    assert [per_minute(trace, name) for name in trace.names] == [[1, 2, 0, 1], [0, 3, 0, 0], [0, 0, 0, 5]]
    assert trace.triggers == ("timer", "http", "queue")
    assert (trace.length_s, trace.report.rows, trace.report.malformed) == (240, 3, 0)
    assert not len(trace.durations)
    assert not len(trace.memory_mb)


def test_timers_keep_one_offset_and_equal_spacing(tmp_path: Path) -> None:
    trace = open_trace(written(tmp_path, INVOCATIONS))
    first, second, third, fourth = trace.arrivals("f")
    assert abs(first % 60 - fourth % 60) < 1e-6
    assert abs(third - second - 30) < 1e-6
    assert min(abs(first % 60 - at % 60) for at in (second, third)) < 1e-6


def test_minutes_are_half_open_positions_and_move_no_arrival(tmp_path: Path) -> None:
    path = written(tmp_path, INVOCATIONS)
    whole, part = open_trace(path), open_trace(path, minutes="1:3")
    assert part.length_s == 120
    assert part.names == whole.names
    assert np.allclose(part.times + 60, whole.times[(whole.times >= 60) & (whole.times < 180)], atol=1e-9)
    assert open_trace(path, minutes="3:").times.tolist() == open_trace(path, minutes=(3, 4)).times.tolist()


def test_a_cap_cuts_counts_before_they_are_placed(tmp_path: Path) -> None:
    trace = open_trace(written(tmp_path, INVOCATIONS), cap_per_minute=2)
    assert [per_minute(trace, name) for name in trace.names] == [[1, 2, 0, 1], [0, 2, 0, 0], [0, 0, 0, 2]]
    assert trace.report.dropped_by_cap == 4


def test_other_rows_and_their_order_move_no_arrival(tmp_path: Path) -> None:
    head, *rows = INVOCATIONS.splitlines()
    whole = open_trace(written(tmp_path, INVOCATIONS))
    turned = open_trace(written(tmp_path, "\n".join([head, *reversed(rows)]), "turned.csv"))
    only = open_trace(written(tmp_path, INVOCATIONS), only={"g"})
    assert turned.names == ("h", "g", "f")
    assert only.names == ("g",)
    for name in whole.names:
        assert turned.arrivals(name).tolist() == whole.arrivals(name).tolist()
    assert only.arrivals("g").tolist() == whole.arrivals("g").tolist()
    assert open_trace(written(tmp_path, INVOCATIONS), seed=1).times.tolist() != whole.times.tolist()


def test_placement_is_the_same_in_every_process() -> None:
    code = (
        "from instainfer.traces import placement; import numpy as np;"
        "seeds = np.array([placement.seed_of('f'), placement.seed_of('g')], np.uint64);"
        "print(placement.place(np.array([[2, 0], [1, 3]], np.int32), seeds, np.array([True, False]))[0].tolist())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(placement.__file__).parents[2])},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=5), st.booleans())
@settings(deadline=None)
def test_every_count_stays_in_its_minute(counts: list[list[int]], timers: bool) -> None:
    seeds = np.array([placement.seed_of(str(row)) for row in range(len(counts))], np.uint64)
    matrix = np.array(counts, np.int32)
    times, rows, minutes, _ = placement.place(matrix, seeds, np.full(len(counts), timers))
    found = np.zeros_like(matrix)
    np.add.at(found, (rows, (times // 60).astype(int)), 1)
    assert (found == matrix).all()
    assert (minutes == times // 60).all()
    assert (np.diff(times) >= 0).all()


def test_uniform_draws_are_uniform_and_independent() -> None:
    ranks = np.arange(20_000)
    zeros = np.zeros_like(ranks)
    seeds = np.array([placement.seed_of("f"), placement.seed_of("g")], np.uint64)
    first = placement.uniform(seeds[zeros], zeros, ranks)
    for other in (
        placement.uniform(seeds[zeros + 1], zeros, ranks),
        placement.uniform(seeds[zeros], zeros + 1, ranks),
        placement.uniform(seeds[zeros], zeros, ranks, stream=1),
    ):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.03
    assert np.abs(np.histogram(first, 10, (0, 1))[0] - 2000).max() < 200


def test_days_follow_each_other(tmp_path: Path) -> None:
    second = INVOCATIONS.replace("o,a,f,timer,1,2,0,1", "o,a,x,timer,0,0,0,1")
    days = [
        written(tmp_path, second, "invocations.d02.csv"),
        written(tmp_path, INVOCATIONS, "invocations.d01.csv"),
    ]
    trace = open_trace(tmp_path)
    assert trace.names == ("f", "g", "h", "x")
    assert per_minute(trace, "g") == [0, 3, 0, 0, 0, 3, 0, 0]
    assert per_minute(trace, "x") == [0, 0, 0, 0, 0, 0, 0, 1]
    across = open_trace(tmp_path, minutes="3:6")
    assert per_minute(across, "h") == [5, 0, 0]
    assert len(np.unique(trace.arrivals("g") % 60)) == 6  # another day, other places
    days[0].rename(tmp_path / "invocations.d03.csv")
    with pytest.raises(BadInput, match=r"d03.csv does not follow day 01"):
        open_trace(tmp_path)
    (tmp_path / "invocations.d03.csv").rename(tmp_path / "more.csv")
    with pytest.raises(BadInput, match="which day"):
        open_trace(tmp_path)


def test_durations_and_memory_are_the_functions_own_where_known(tmp_path: Path) -> None:
    written(tmp_path, INVOCATIONS, "i.csv")
    rows = "o,a,f,2,9,1,3,1000,1000,1000,1000,1000,1000,1000\no,b,h,2,9,1,3,0,0,1000,2000,3000,4000,5000\n"
    written(tmp_path, DURATIONS + rows + "o,a,g,2,9,1,3,5,4,3,2,1,1,1\nz,z,z,2,9,1,3,1,1,1,1,1,1,1\n", "d.csv")
    written(tmp_path, "HashOwner,HashApp,SampleCount,AverageAllocatedMb\no,a,3,100\n", "m.csv")
    trace = open_trace(tmp_path)
    by_function = {name: trace.durations[trace.functions == at] for at, name in enumerate(trace.names)}
    assert by_function["f"].tolist() == [1, 1, 1, 1]
    assert np.isnan(by_function["g"]).all()
    assert ((by_function["h"] >= 0) & (by_function["h"] <= 5)).all()
    assert len(np.unique(by_function["h"])) == 5
    assert trace.memory_mb[:2].tolist() == [50, 50]  # an application's, over its functions
    assert np.isnan(trace.memory_mb[2])
    assert trace.report.malformed == 1
    assert trace.report.reasons == ("d.csv, row 4: its percentiles do not ascend",)
    written(tmp_path, "HashFunction,HashOwner,HashApp,AverageAllocatedMb\nf,o,a,70\n", "m.csv")
    assert open_trace(tmp_path).memory_mb[0] == 70


def test_a_functions_second_row_adds_arrivals_elsewhere(tmp_path: Path) -> None:
    trace = open_trace(written(tmp_path, INVOCATIONS + "o,a,g,http,0,3,0,0\n"))
    assert per_minute(trace, "g") == [0, 6, 0, 0]
    assert len(np.unique(trace.arrivals("g"))) == 6


def test_one_hash_in_two_applications_is_two_functions(tmp_path: Path) -> None:
    path = written(tmp_path, INVOCATIONS + "o,c,g,http,1,0,0,0\n")
    trace = open_trace(path)
    assert trace.names == ("f", "g", "h", "o/c/g")
    assert per_minute(trace, "o/c/g") == [1, 0, 0, 0]
    assert azure2019.names(path) == list(trace.names)
    later = open_trace(path, only=["o/c/g"])
    assert (later.names, later.times.tolist()) == (("o/c/g",), trace.arrivals("o/c/g").tolist())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("o,a,x,http,1,2,3", "7 fields where the header has 8"),
        ("o,a,x,http,1,2,3,4,5", "9 fields where the header has 8"),
        ("o,a,x,http,1,-2,3,4", "'-2' in column '2' is no count"),
        ("o,a,x,http,1,2.5,3,4", "'2.5' in column '2' is no count"),
        ("o,a,x,http,1,,3,4", "'' in column '2' is no count"),
        ("o,a,x,http,1,9999999999,3,4", "'9999999999' in column '2' is no count"),
        ("o,a,,http,1,2,3,4", "nothing in column 'HashFunction'"),
    ],
)
def test_a_malformed_row_is_left_out_counted_and_named(tmp_path: Path, row: str, reason: str) -> None:
    head, *rows = INVOCATIONS.splitlines()
    trace = open_trace(written(tmp_path, "\n".join([head, rows[0], "", row, *rows[1:]])))
    assert trace.names == ("f", "g", "h")
    assert (trace.report.rows, trace.report.malformed) == (4, 1)
    assert trace.report.reasons == (f"trace.csv, row 4: {reason}",)
    assert trace.times.tolist() == open_trace(written(tmp_path, INVOCATIONS, "clean.csv")).times.tolist()


def test_only_the_first_few_reasons_are_kept(tmp_path: Path) -> None:
    report = open_trace(written(tmp_path, INVOCATIONS + "bad\n" * 20)).report
    assert (report.malformed, len(report.reasons)) == (20, 5)


CELLS = st.sampled_from(["0", "1", "07", " 3", "4 ", "x", "", "-1", "1.5", "1e3", "nan", "inf", '"2"'])


@given(st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=6))
@settings(deadline=None)
def test_read_whole_or_row_by_row_a_file_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("t")
    path = written(folder, "\n".join(["name,number,count", *(",".join(row) for row in rows)]) + "\n")
    wanted = table.Columns(text=("name",), numbers=("number",), counts=("count",))
    names = table.header(path)
    whole, by_row = table._whole(path, names, wanted), table._by_row(path, names, wanted)
    if whole is not None:
        assert not by_row.report.malformed
        assert whole.text == by_row.text
        assert whole.numbers["number"].tolist() == by_row.numbers["number"].tolist()
        assert whole.counts.tolist() == by_row.counts.tolist()
        assert whole.rows.tolist() == by_row.rows.tolist()
        assert whole.report == by_row.report


def test_crlf_a_byte_order_mark_quotes_and_gzip(tmp_path: Path) -> None:
    expected = open_trace(written(tmp_path, INVOCATIONS)).times.tolist()
    variants = {
        "crlf.csv": INVOCATIONS.replace("\n", "\r\n").encode(),
        "bom.csv": b"\xef\xbb\xbf" + INVOCATIONS.encode(),
        "quoted.csv": INVOCATIONS.replace("timer", '"timer"').encode(),
        "packed.csv.gz": gzip.compress(INVOCATIONS.encode()),
    }
    for name, content in variants.items():
        (tmp_path / name).write_bytes(content)
        trace = open_trace(tmp_path / name)
        assert (name, trace.times.tolist(), trace.report.malformed) == (name, expected, 0)
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress((INVOCATIONS + "bad\n").encode()))
    assert open_trace(tmp_path / "packed.csv.gz").report.reasons[0].startswith("packed.csv.gz, row 5")


def test_without_triggers_and_owners(tmp_path: Path) -> None:
    trace = open_trace(written(tmp_path, "HashFunction,CV,AvgIAT_min,1,2\nx,1.1,0.4,4,0\ny,1.2,0.5,0,1\n"))
    assert trace.names == ("x", "y")
    assert trace.triggers == ()
    assert per_minute(trace, "x") == [4, 0]


def test_azure_2021(tmp_path: Path) -> None:
    rows = "a,f,10.5,0.5\na,g,12,1\nb,f,13,0.1\na,f,2,3\nq,q,x,1\n"
    trace = open_trace(written(tmp_path, "app,func,end_timestamp,duration\n" + rows))
    assert trace.names == ("f", "g", "b/f")
    assert np.allclose(trace.times, [0, 11, 12, 13.9])  # one second before the file's zero, which starts the clock
    assert np.allclose(trace.durations, [3, 0.5, 1, 0.1])
    assert trace.functions.tolist() == [0, 0, 1, 2]
    assert trace.report.reasons == ("trace.csv, row 6: 'x' in column 'end_timestamp' is no number",)


def test_plain_csv_there_and_back(tmp_path: Path) -> None:
    trace = gather(
        ["a", 'b,"c"'],
        np.array([0.5, 0.25, 61.0]),
        np.array([0, 1, 0], np.int32),
        np.array([0.1, 0.2, 0.3], np.float32),
    )
    csvfile.write(trace, tmp_path / "t.csv")
    back = open_trace(tmp_path / "t.csv")
    assert back.names == ('b,"c"', "a")
    assert back.times.tolist() == trace.times.tolist()
    assert np.allclose(back.durations, trace.durations)
    assert open_trace(written(tmp_path, "func,t_ms\nx,1500\nx,20\n")).times.tolist() == [0.02, 1.5]
    with pytest.raises(BadInput, match="no row"):
        open_trace(written(tmp_path, "t_ms,func\n-1,x\n"))


def record(wall: object, function: str = "f", inference_ms: float = 50.0) -> dict[str, object]:
    phases = {"queue_ms": 1.0, "inference_ms": inference_ms}
    return {"id": "1", "namespace": "n", "function": function, "start": "warm", "wall": wall, "phases": phases}


def test_activations_as_lines_as_listing_and_as_list(tmp_path: Path) -> None:
    records = [record(1005.5), record(1002.0, "g", 0.0), record(1000.0)]  # newest first, as a server lists them
    forms = [
        "\n".join(map(json.dumps, records)),
        json.dumps({"activations": records}, indent=1),
        json.dumps(records),
    ]
    for form in forms:
        trace = open_trace(written(tmp_path, form, "a.jsonl"))
        assert trace.names == ("n/f", "n/g")
        assert trace.times.tolist() == [0, 2, 5.5]
        assert np.allclose(trace.durations, [0.05, np.nan, 0.05], equal_nan=True)
    lines = [json.dumps(record("soon")), "{", json.dumps(record(5)), json.dumps({"function": "f"})]
    report = open_trace(written(tmp_path, "\n".join(lines), "a.jsonl")).report
    assert (report.rows, report.malformed) == (4, 3)
    assert report.reasons[0].startswith("a.jsonl, row 1: Expected `float`, got `str`")
    with pytest.raises(BadInput, match="no activation"):
        open_trace(written(tmp_path, '{"activations": []}', "a.jsonl"))


def test_what_is_no_trace_is_refused_with_what_one_looks_like(tmp_path: Path) -> None:
    for path in (
        written(tmp_path, "a,b\n1,2\n", "x.csv"),
        written(tmp_path, "", "empty.csv"),
        tmp_path,
    ):
        with pytest.raises(BadInput) as caught:
            open_trace(path)
        assert "t_ms,func" in caught.value.hint
    with pytest.raises(BadInput, match="cannot be read"):
        open_trace(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\x80\xff\x00")
    with pytest.raises(BadInput, match="no text"):
        open_trace(tmp_path / "binary.csv")
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match="holds no trace"):
        open_trace(tmp_path / "none")
    with pytest.raises(BadInput, match="no file"):
        open_trace([])
    with pytest.raises(BadInput, match="no row of"):
        open_trace(written(tmp_path, "HashFunction,1\nf,x\n"))
    with pytest.raises(BadInput, match="do not run on by one"):
        open_trace(written(tmp_path, "HashFunction,1,3\nf,1,1\n"))
    for name in ("one.csv", "two.csv"):
        written(tmp_path / "none", "t_ms,func\n1,f\n", name)
    with pytest.raises(BadInput, match="2 traces in one"):
        open_trace(tmp_path / "none")


@pytest.mark.parametrize("first", ["1732492800000", "1e17"])  # since 1970; in other units
def test_times_that_are_not_of_a_trace_are_refused(tmp_path: Path, first: str) -> None:
    with pytest.raises(BadInput, match="spread over") as caught:
        open_trace(written(tmp_path, f"t_ms,func\n{first},f\n{first},g\n"))
    assert "milliseconds" in caught.value.hint


@pytest.mark.parametrize("minutes", ["0:5", "2:2", "3:1", "x", "1-2", (0, 9)])
def test_minutes_that_are_not_there(tmp_path: Path, minutes: str | tuple[int, int]) -> None:
    for path in (
        written(tmp_path, INVOCATIONS),
        written(tmp_path, "t_ms,func\n200000,f\n", "plain.csv"),
    ):
        with pytest.raises(BadInput, match="minutes"):
            open_trace(path, minutes=minutes)


def test_only_names_that_are_there(tmp_path: Path) -> None:
    for path in (written(tmp_path, INVOCATIONS), written(tmp_path, "t_ms,func\n3,f\n5,h\n", "plain.csv")):
        assert open_trace(path, only=["h", "f", "h"]).names == ("f", "h")
        with pytest.raises(BadInput, match="no function 'x'"):
            open_trace(path, only=["f", "x"])


def test_minutes_of_a_plain_trace(tmp_path: Path) -> None:
    path = written(tmp_path, "t_ms,func\n30000,f\n90000,g\n95000,g\n200000,f\n")
    trace = open_trace(path, minutes="1:3", cap_per_minute=1, only=["g"])
    assert (trace.names, trace.times.tolist(), trace.length_s) == (("g",), [30], 120)
    assert parse_minutes(":", 4) == (0, 4)


def test_a_recipe_is_the_trace_that_it_makes(tmp_path: Path) -> None:
    path = written(tmp_path, '{"synthetic": "timers", "functions": 3, "hours": 2, "seed": 5}', "made.json")
    trace, made = open_trace(path), synthetic("timers", 3, 7200.0, seed=5)
    assert trace.names == made.trace.names and trace.length_s == 7200
    assert trace.times.tolist() == made.trace.times.tolist()
    some = trace.only([trace.names[2]])
    assert recipe.hazards(path, some).processes == made.processes[2:]


@pytest.mark.parametrize(
    "text",
    [
        '{"synthetic": "timers", "functions": 3}',
        '{"synthetic": "luck", "functions": 3, "hours": 1}',
        '{"synthetic": "timers", "functions": 3, "hours": 1, "cap": 2}',
        '{"synthetic": "timers", "functions": 3, "hours": 1e9}',
        '{"synthetic": "timers", "functions": 0, "hours": 1}',
    ],
)
def test_recipes_that_make_nothing(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput):
        open_trace(written(tmp_path, text, "made.json"))
