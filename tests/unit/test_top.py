"""What `top` makes of the feed: pictures without a terminal, hostile names included."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import pytest

from instainfer.cli.output import safe
from instainfer.cli.top import draw
from instainfer.cli.top.follow import Follower
from instainfer.cli.top.picture import KEPT, Picture, Row
from instainfer.errors import InstaInferError, NotAllowed, Unavailable

#: Clears the screen, changes colours, sets the title, goes back, turns the text around, ends the line, is markup.
HOSTILE = "\x1b[2J\x1b[31m\x1b]0;owned\x07\r\u202e\n\x9b1m[red]x[/red]\t"
PHASES = ("queue", "container", "extract", "import", "load", "device", "warmup", "inference")


def call(
    id: str, function: str = "f", wall: float = 1000.0, start: str = "warm", **phases: float
) -> dict[str, Any]:
    taken = {f"{phase}_ms": phases.get(phase, 0.0) for phase in PHASES}
    return {
        "id": id,
        "namespace": "n",
        "function": function,
        "version": 1,
        "start": start,
        "status": "ok",
        "wall": wall,
        "e2e_ms": sum(taken.values()),
        "phases": taken,
        "error": "",
    }


def mark(what: str, wall: float, function: str = "f", **more: Any) -> dict[str, Any]:
    rest: dict[str, Any] = {"container": "c1", "instance": "i1", "level": "loaded", "why": "", "ms": None}
    return {"what": what, "wall": wall, "namespace": "n", "function": function, **rest, **more}


def container(name: str = "f", **more: Any) -> dict[str, Any]:
    instance = {"id": "i1", "function": name, "version": 1, "level": "loaded", "state": "running", "frozen": False}
    return {
        "id": "c1",
        "namespace": "n",
        "owner": f"n/{name}",
        "state": "busy",
        "limit_mb": 512.0,
        "used_mb": 100.0,
        "idle_mb": 412.0,
        "age_s": 3.0,
        "idle_s": 0.0,
        "expires_in_s": None,
        "pinned": False,
        "instances": [{**instance, "bytes_mb": 100.0, "served": 2}],
        **more,
    }


def event(*invocations: dict[str, Any], anew: bool = False, marks: Any = (), **now: Any) -> dict[str, Any]:
    there = {"wall": 1060.0, "node": {"sandbox": "process"}, "containers": [], "zygotes": [], "functions": []}
    return {
        "id": "e.1",
        "anew": anew,
        "left_out": 0,
        "invocations": list(invocations),
        "marks": list(marks),
        "now": {**there, "rates": {"per_s": 1.5, "hit_fraction": 0.5, "p50_ms": 2.0, "p99_ms": None}, **now},
    }


def taken(*events: dict[str, Any]) -> Picture:
    picture = Picture()
    for one in events:
        picture.take(one)
    return picture


def drawn(row: Row, wide: int, over_s: float = 10.0) -> str:
    return "".join(character for character, _ in draw.cells(row, 1000.0, over_s, wide))


# ---- the picture ---------------------------------------------------------------------------------------------


def test_a_feed_that_begins_anew_drops_what_was() -> None:
    picture = taken(event(call("a"), anew=True), event(call("b")))
    assert [one["id"] for one in picture.calls()] == ["b", "a"]
    picture.take(event(call("c"), anew=True, marks=[mark("preload", 1059.0)]))
    assert [one["id"] for one in picture.calls()] == ["c"]
    assert [one["what"] for one in picture.changes()] == ["preload"]


def test_it_keeps_no_more_than_it_may() -> None:
    picture = taken(event(*(call(str(n)) for n in range(KEPT + 7))))
    assert len(picture.invocations) == KEPT
    assert picture.calls(limit=1)[0]["id"] == str(KEPT + 6)


def test_a_copy_stays_as_it_was() -> None:
    picture = taken(event(call("a")))
    copy = picture.copy()
    picture.take(event(call("b"), wall=2000.0))
    assert ([one["id"] for one in copy.calls()], copy.wall) == (["a"], 1060.0)


def test_filter_and_sort() -> None:
    first = call("a", "slow", wall=1010.0, start="cold", load=900.0)
    others = [call("b", "busy", wall=1020.0), call("c", "busy", wall=1021.0), call("d", "late", wall=1050.0)]
    picture = taken(event(first, *others, functions=[{"function": "n/asleep"}], containers=[container("busy")]))

    def names(sort: str, wanted: str = "") -> list[str]:
        return [row.function.removeprefix("n/") for row in picture.rows(60.0, wanted, sort)]

    assert names("name") == ["asleep", "busy", "late", "slow"]
    assert names("latest") == ["late", "busy", "slow", "asleep"]
    assert names("calls")[0] == "busy"
    assert names("slowest")[0] == "slow"
    assert names("name", "SL") == ["asleep", "slow"]
    assert names("name", "n/la") == ["late"]
    assert picture.rows(20.0, "slow") == []  # its only call was before
    assert [len(picture.containers(wanted)) for wanted in ("", "busy", "slow")] == [1, 1, 0]


# ---- drawing -------------------------------------------------------------------------------------------------


def test_a_bar_is_split_into_its_phases() -> None:
    cold = call("a", wall=1001.0, start="cold", queue=1000.0, load=2000.0, inference=1000.0)
    assert drawn(Row("n/f", [cold]), 10) == " .ll██    "
    assert drawn(Row("n/f", [call("a", wall=1003.0, queue=3.0, inference=1.0)]), 10) == "   █      "
    assert drawn(Row("n/f", [call("a", wall=1003.0, start="cold", load=3.0)]), 10) == "   l      "


def test_where_calls_meet_the_longest_wait_is_seen_and_marks_lie_below() -> None:
    cold = call("a", wall=1001.0, start="cold", load=1000.0)
    warm = call("b", wall=1001.5, inference=10.0)
    marks = [mark("offload", 1001.2), mark("preload", 1007.0), mark("create", 1008.0)]
    for calls in ([cold, warm], [warm, cold]):
        assert drawn(Row("n/f", calls, marks), 10) == " l█    ▲  "


def test_what_failed_ends_in_a_mark_of_its_own() -> None:
    failed = {**call("a", wall=1001.0, start="cold", load=3000.0), "status": "timed_out"}
    assert drawn(Row("n/f", [failed]), 10) == " lll!     "


def test_calls_outside_of_the_window_are_cut() -> None:
    assert drawn(Row("n/f", [call("a", wall=990.0, load=100_000.0)]), 5) == "lllll"
    assert drawn(Row("n/f", [call("a", wall=2000.0)], [mark("preload", 10.0)]), 5) == "     "


def test_a_container_is_a_box() -> None:
    guest = {"id": "i2", "function": "g", "version": 1, "level": "loaded", "state": "ready", "frozen": True}
    one = container()
    one["instances"].append({**guest, "bytes_mb": 40.0, "served": 0})
    lines = draw.containers(taken(event(containers=[one])), 100).plain.splitlines()
    assert lines[0].startswith("╭ c1 n/f busy, limit 512 MB, age 3.0 s ──")
    assert "owner 60 MB, guests 40 MB, idle 412 MB" in lines[1]
    assert lines[2].startswith("│ ▶ i1") and "served 2" in lines[2]
    assert lines[3].startswith("│ ▲ i2") and "ready (frozen)" in lines[3] and "pre-loaded" in lines[3]
    assert {len(line) for line in lines} == {100}


def node(name: str, state: str = "joined", **more: Any) -> dict[str, Any]:
    sizes = {"memory_mb": 600.0, "used_mb": 200.0, "preloaded_mb": 50.0, "zygote_mb": 0.0, "idle_mb": 100.0}
    return {"node": name, "state": state, "cluster": "alive", **sizes, "problem": "", **more}


def test_several_nodes_are_lines_and_one_is_none() -> None:
    there = [node("a", rates={"hit_fraction": 0.5}), node("b", "lost", memory_mb=0.0, problem="no answer")]
    picture = taken(event(nodes=there, containers=[container(node="a")]))
    title, first, second, box, *_ = draw.containers(picture, 140).plain.splitlines()
    assert title == "nodes"
    assert first.split()[:3] == ["a", "●", "up"]
    assert "150 MB in use, 50 MB pre-loaded, 100 MB idle of 600 MB  hit 50.0%" in first
    assert second.split() == ["b", "✕", "lost", "no", "answer"]
    assert box.startswith("╭ c1 n/f on a busy")
    assert "nodes" not in draw.containers(taken(event(nodes=there[:1])), 140).plain
    assert draw.node_state(node("a", cluster="suspect")) == "suspect"


@pytest.mark.parametrize("width", [1, 20, 60, 200])
def test_hostile_names_are_only_shown(width: int) -> None:
    of = HOSTILE
    hostile_call = {**call(of, of, wall=1050.0, start=of, load=5.0), "namespace": of, "status": of, "error": of}
    inside = container(of, id=of, namespace=of, state=of, node=of)
    inside["instances"][0] |= {"id": of, "state": of, "level": of}
    hostile_mark = mark("preload", 1050.0, of, why=of, container=of, instance=of) | {"namespace": of}
    zygote = {"id": of, "state": of, "bytes_mb": 1.0, "age_s": 1.0, "functions": [of]}
    picture = taken(
        event(
            hostile_call,
            marks=[hostile_mark, hostile_mark | {"what": of}],
            containers=[inside],
            zygotes=[zygote],
            nodes=[node(of, of, problem=of), node("b")],
            policy={"mode": of},
            node={"sandbox": of},
        )
    )
    picture.lost(of)
    texts = [
        draw.head(picture, of),
        draw.containers(picture, width),
        draw.changes(picture, width),
        draw.timeline(picture, width, 60.0),
        *draw.call(hostile_call),
    ]
    for text in texts:
        for line in text.plain.split("\n"):
            assert line.isprintable(), line
        styles = {str(span.style) for span in text.spans}
        assert "red" not in styles  # no markup was read
    assert r"\x1b[2J" in texts[0].plain and "[red]x[/red]" in texts[0].plain


def test_safe_leaves_letters_alone() -> None:
    assert safe("Zoë 日本 [x] é") == "Zoë 日本 [x] é"
    assert safe("a\x1b\u202e\u2028b") == r"a\x1b\u202e\u2028b"


# ---- the feed ------------------------------------------------------------------------------------------------


class Fake:
    """A client whose feed is played: events until one is an error, which ends it."""

    def __init__(self, *played: dict[str, Any] | InstaInferError) -> None:
        self.played = list(played)
        self.asked: list[str] = []

    def live(self, since: str = "") -> Generator[dict[str, Any], None, None]:
        self.asked.append(since)
        while self.played:
            one = self.played.pop(0)
            if isinstance(one, InstaInferError):
                raise one
            yield one


def test_the_follower_comes_back_with_the_last_id_and_gives_up_where_nobody_is_let_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("instainfer.cli.top.follow.AGAIN_S", 0.0)
    first, second = {"id": "e.1"}, {"id": "e.2"}
    away, wrong = Unavailable("gone"), NotAllowed("no key")
    client: Any = Fake(first, second, away, away, wrong, first)
    heard: list[Any] = []
    over = threading.Event()

    def told(what: Any) -> None:
        heard.append(what)
        if what is wrong:
            over.set()

    Follower(client, told).start()
    assert over.wait(60)
    assert heard == [first, second, away, away, wrong]
    assert client.asked == ["", "e.2", "e.2"]
