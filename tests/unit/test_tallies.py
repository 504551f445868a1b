"""Invocations counted by runs of such as are alike: the same as one by one, however they are mixed."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from instainfer.gateway import tallies
from instainfer.gateway.tallies import Counts, Heard, Tally, counted, merge, spread, thinned
from instainfer.model import Activation, Phases


def row(
    number: int,
    *,
    wall: float = 1e9,
    took: float = 0.001,
    namespace: str = "n",
    container: str = "c",
    start: str = "warm",
    status: str = "ok",
) -> Activation:
    return Activation(
        id=f"{number:032x}", namespace=namespace, function="f", version=1, start=start, status=status,
        wall=wall, e2e_s=took, phases=Phases(), container=container,
    )  # fmt: skip


def mixed(seed: int, count: int = 400) -> list[Activation]:
    chance = random.Random(seed)
    return [
        row(
            number,
            wall=1e9 + chance.random() * 4,
            took=chance.choice([0.001, 0.5, 3.0]),
            namespace=chance.choice("abc"),
            container=chance.choice(["c", "d", ""]),
            start=chance.choice(["warm", "warm", "cold", ""]),
            status=chance.choice(["ok", "ok", "timeout"]),
        )
        for number in range(count)
    ]


def plain(counts: Counts) -> dict[tuple[int, str], tuple[int, dict[str, int], list[float]]]:
    return {
        (second, of): (one.failed, one.starts, sorted(one.took))
        for second, there in counts.items()
        for of, one in there.items()
    }


def one_by_one(rows: list[Activation], by: str) -> dict[tuple[int, str], tuple[int, dict[str, int], list[float]]]:
    keys = {(int(one.wall + one.e2e_s), getattr(one, by)) for one in rows}
    found = {}
    for second, of in keys:
        mine = [one for one in rows if (int(one.wall + one.e2e_s), getattr(one, by)) == (second, of)]
        starts = Counter(one.start or "none" for one in mine)
        took = sorted(one.e2e_s for one in mine if one.status == "ok")
        found[second, of] = len([one for one in mine if one.status != "ok"]), dict(starts), took
    return found


@pytest.mark.parametrize("by", ["namespace", "container"])
@pytest.mark.parametrize("seed", range(4))
def test_runs_are_counted_as_one_by_one(by: str, seed: int) -> None:
    rows = mixed(seed)
    whole = one_by_one(rows, by)
    assert plain(counted(rows, by)) == whole
    parts: Counts = {}
    for begin in range(0, len(rows), 70):
        merge(parts, counted(rows[begin : begin + 70], by))
    assert plain(parts) == whole
    assert counted([], by) == {}


def test_durations_are_a_sample_from_all_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "SAMPLED", 10)
    one, other = Tally(), Tally()
    one.add([row(number, took=number) for number in range(100)])
    assert one.took == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    other.add([row(0, took=7)])
    other.merge(one)
    assert other.starts == {"warm": 101}
    assert other.took == [7, 25, 45, 65, 85]
    other.merge(one)
    assert other.starts == {"warm": 201}
    assert other.took == [7, 25, 35, 45, 65, 75, 85]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_heard_in_parts_is_told_or_counted(seed: int) -> None:
    rows = mixed(seed)
    heard = Heard(50)
    for begin in range(0, len(rows), 60):
        heard.merge(Heard(50, rows[begin : begin + 60], by_container=True))
    assert heard.kept == thinned(rows, 50)
    assert plain(heard.by_container) == one_by_one(rows, "container")
    told = Counter(one.namespace for one in heard.kept)
    assert told + Counter(heard.left_out()) == Counter(one.namespace for one in rows)


def test_what_is_warm_and_old_is_left_out_first() -> None:
    rows = [row(number, start="cold" if number in (3, 5) else "warm") for number in range(10)]
    assert thinned(rows, 10) is rows
    assert thinned(rows, 4) == [rows[3], rows[5], rows[8], rows[9]]
    assert thinned(rows, 1) == [rows[5]]
    assert thinned(rows[6:], 2) == rows[8:]


@pytest.mark.parametrize(("count", "most"), [(0, 3), (3, 3), (4, 3), (9, 3), (10, 3), (100, 7), (5, 0)])
def test_what_is_spread_is_of_all(count: int, most: int) -> None:
    taken = spread(range(count), most)
    assert len(taken) <= most
    assert list(taken) == sorted(set(taken))
    if count > most > 0:
        gaps = [after - before for before, after in zip([-1, *taken], [*taken, count], strict=True)]
        assert max(gaps) <= 2 * -(-count // most)
