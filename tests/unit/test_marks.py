"""Marks: bounded, in order, each with its namespace and reason."""

from __future__ import annotations

from instainfer.core import actions as act
from instainfer.marks import MOST, NODES, Marks
from instainfer.model import Level


class Fixed:
    def now(self) -> float:
        return 1.0

    def wall(self) -> float:
        return 1e9


WHY = act.Why(rule="because")


def load(number: int, *, ahead: bool = True, waiting: bool = False) -> act.Load:
    return act.Load(
        instance=f"i{number}",
        container="c1",
        function="n/f",
        revision="n/f@1:x",
        level=Level.LOADED,
        ahead=ahead,
        waiting=waiting,
        why=WHY,
    )


def test_the_latest_are_kept_and_counted() -> None:
    marks = Marks(Fixed())
    for number in range(MOST + 10):
        marks.commanded(load(number), "n/f", "c1")
    assert marks.count == MOST + 10
    assert len(marks.latest) == MOST
    assert [one.instance for one in marks.since(MOST + 7)] == [f"i{MOST + 7}", f"i{MOST + 8}", f"i{MOST + 9}"]
    assert len(marks.since(0)) == MOST
    assert marks.since(marks.count) == marks.since(marks.count + 5) == []


def test_what_a_request_waits_for_is_no_mark() -> None:
    marks = Marks(Fixed())
    marks.commanded(load(1, ahead=False, waiting=True), "n/f", "c1")
    marks.commanded(load(2, ahead=False), "n/f", "c1")
    assert [(one.what, one.instance) for one in marks.latest] == [("load", "i2")]


def test_containers_are_told_to_their_namespace_alone() -> None:
    marks = Marks(Fixed())
    create = act.CreateContainer(container="c1", node="m", function="n/f", revision="n/f@1:x", limit=1, why=WHY)
    marks.commanded(create, "", "")
    marks.commanded(act.DestroyContainer(container="c1", why=WHY), "", "")
    start = act.StartZygote(zygote="z1", node="m", libraries="k", revisions=("n/f@1:x",), limit=1, why=WHY)
    marks.commanded(start, "", "")
    marks.commanded(act.EndZygote(zygote="z1", why=WHY), "", "")
    assert {(one.namespace, one.node) for one in marks.latest} == {("n", "m")}
    assert [one.what for one in marks.latest] == ["create", "destroy", "zygote", "end_zygote"]
    marks.gone("c1")
    marks.commanded(act.DestroyContainer(container="c1", why=WHY), "", "")
    assert marks.latest[-1].namespace == ""  # nobody's but the owner's


def test_a_reason_is_a_line() -> None:
    marks = Marks(Fixed())
    marks.failed("n/f", "c1", "i1", "x" * 1000 + "\nand its traceback")
    why = marks.latest[0].why
    assert why is not None
    assert why.rule == "x" * 300


def test_what_concerns_a_node_is_of_no_namespace() -> None:
    marks = Marks(Fixed())
    marks.node("m", "node_joined")
    marks.adopted("c1", "n/f", "m")
    marks.commanded(act.DestroyContainer(container="c1", why=WHY), "", "")
    marks.node("m", "node_lost", "r" * 1000)
    joined, destroyed, lost = marks.latest
    assert (joined.namespace, joined.node, joined.why) == ("", "m", None)
    assert (destroyed.namespace, destroyed.node) == ("n", "m")
    assert lost.why is not None
    assert len(lost.why.rule) == 300
    assert {one.what for one in (joined, lost)} <= set(NODES)
