"""Why a start was what it was: told from a replay of the log."""

from __future__ import annotations

import pytest

from instainfer.core import events as ev
from instainfer.core.explain import Explanation, explain
from instainfer.model import Activation, Origin, Phases
from instainfer.why import tell
from tests.core.test_zygotes import OWN, deploy, world
from tests.core.world import MB, World, platform


def told(w: World, request: int) -> Explanation:
    found = explain(platform(), w.log, request)
    assert found is not None and found.start == w.starts[request]
    return found


def test_a_forked_start_names_its_zygote() -> None:
    w = world("ns/f")
    w.settle()
    found = told(w, w.serve())
    assert (found.start, found.origin) == ("forked", "forked")
    assert found.zygote == "zygote z1 had its libraries ready"
    assert found.decisions[0].what == "start zygote z1 of its libraries on n"
    assert any("what was left is loading its model" in line for line in found.advice)


def test_a_cloned_start_says_what_would_have_spared_it() -> None:
    w = world(zygotes=0)
    deploy(w, "ns/f", cloneable=True)
    w.serve()
    w.arrive()
    waiting = w.arrive()
    w.fire("queue:ns/f")
    w.fire("queue:ns/f")
    w.create()
    w.load()
    found = told(w, waiting)
    assert (found.start, found.origin) == ("cloned", "cloned")
    assert "`concurrency`" in found.advice[0]


def refused(w: World) -> None:
    w.fire("placement")
    w.fed(ev.ZygoteLost(zygote=w.importing.pop(), reason="importing x starts threads", refused=True))


def died(w: World) -> None:
    w.fire("placement")
    w.fed(ev.ZygoteLost(zygote=w.importing.pop(), reason="signal 9"))


def importing(w: World) -> None:
    w.fire("placement")


def more_modules(w: World) -> None:
    w.settle()
    deploy(w, "ns/f", modules="many", revision="ns/f@2")
    w.fire("placement")


def not_yet(w: World) -> None:
    """The request comes before the first pass."""


@pytest.mark.parametrize(
    ("zygotes", "prepare", "says"),
    [
        (0, not_yet, "n has no memory for library zygotes (node.zygote_memory)"),
        (40, not_yet, "takes 60 MB, and n had 40 MB left for one (node.zygote_memory is 40 MB in all)"),
        (200, not_yet, "no zygote of its libraries had been started yet"),
        (200, refused, "its libraries cannot be forked: importing x starts threads"),
        (200, died, "failed or gave way lately"),
        (200, importing, "zygote z1 was importing its libraries"),
        (200, more_modules, "lacks what it imports"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_cold_start_says_why_there_was_no_zygote(zygotes: int, prepare: object, says: str) -> None:
    w = world("ns/f", zygotes=zygotes)
    prepare(w)  # type: ignore[operator] # one of the functions above
    request = w.arrive()
    w.create()
    w.load(Origin.SPAWNED)
    found = told(w, request)
    assert (found.start, found.origin) == ("cold", "spawned")
    assert says in found.zygote
    assert any(says in line for line in found.advice)


def test_a_zygote_that_could_not_be_forked_is_named() -> None:
    w = world("ns/f")
    w.settle()
    w.arrive()
    w.create()
    w.load(Origin.SPAWNED)
    w.settle()
    w.fed(ev.OffloadRequested(token=1, function="ns/f"))
    w.settle()
    request = w.arrive()
    w.load()
    assert "could not be forked for it before" in told(w, request).zygote


def test_what_cannot_be_forked_gets_no_advice_about_zygotes() -> None:
    w = world()
    deploy(w, "ns/f", forkable=False)
    found = told(w, w.serve())
    assert found.zygote == "it is not one that can be forked from a library zygote"
    assert not any("zygote" in line for line in found.advice)


def test_the_loss_of_a_zygote_is_among_the_decisions() -> None:
    w = world("ns/f")
    w.settle()
    w.fed(ev.ZygoteLost(zygote="z1", reason="signal 9"))
    found = told(w, w.serve())
    lost = next(decision for decision in found.decisions if decision.what == "z1 was lost")
    assert lost.why.rule == "signal 9"


def test_the_answer_carries_origin_and_zygote() -> None:
    w = world("ns/f")
    w.settle()
    request = w.serve()
    activation = Activation(
        id="a", namespace="ns", function="f", version=1, start="forked", status="ok", wall=0.0, e2e_s=0.1,
        phases=Phases(), instance=next(iter(w.state.instances)),
    )  # fmt: skip
    answer = tell(activation, told(w, request))
    assert answer["reproduced"] and answer["origin"] == "forked" and answer["zygote"].startswith("zygote z1")


def test_given_way_is_told_with_its_reason() -> None:
    w = world("ns/f", memory=550)
    w.settle()
    request = w.arrive()
    w.retire()
    w.settle()
    found = told(w, request)
    assert "failed or gave way lately" in found.zygote
    end = next(decision for decision in found.decisions if decision.what.startswith("end zygote"))
    assert end.why.rule == "its memory is needed for a container of ns/f" and OWN.libraries_bytes < 550 * MB
