"""Which libraries are imported where: the policy alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from instainfer.policies.base import HORIZON_S, LibrariesView, ShelfView, ZygoteView
from instainfer.policies.libraries import NEVER_CALLED, MostSaved

MB = 1 << 20


class Rates:
    """A forecast that is a table."""

    def __init__(self, **rates: float) -> None:
        self.rates = rates

    def observe(self, function: str, now: float) -> None: ...

    def forget(self, function: str) -> None: ...

    def rate(self, function: str, now: float) -> float:
        return self.rates.get(function, 0.0)

    def probability(self, function: str, now: float, horizon_s: float = HORIZON_S) -> float:
        return 0.0

    def last(self, function: str) -> float | None:
        return None


def libraries(name: str, size: int = 50, *functions: str, saves_s: float = 1.0, not_on: str = "") -> LibrariesView:
    return LibrariesView(
        name=name,
        bytes=size * MB,
        functions=tuple((one, saves_s) for one in functions or (name,)),
        not_on=(not_on,) if not_on else (),
    )


def zygote(of: str, size: int = 50, *, complete: bool = True, ending: bool = False, id: str = "") -> ZygoteView:
    return ZygoteView(zygote=id or f"z-{of}", libraries=of, bytes=size * MB, complete=complete, ending=ending)


def shelf(*zygotes: ZygoteView, cap: int = 100, free: int = 1000, slots: int = 2, node: str = "n") -> ShelfView:
    return ShelfView(node=node, cap=cap * MB, free=free * MB, slots=slots, zygotes=zygotes)


def chosen(
    views: list[LibrariesView], *shelves: ShelfView, **rates: float
) -> list[tuple[str, str, tuple[str, ...]]]:
    plan = MostSaved().plan(views, shelves, Rates(**rates), 0.0)
    return [(one.libraries, one.node, one.displaced) for one in plan]


def test_value_is_what_all_its_functions_save() -> None:
    value = MostSaved().value(libraries("a", 50, "f", "g", saves_s=2.0), Rates(f=0.1, g=0.2), 0.0)
    assert abs(value - 2.0 * (0.3 + 2 * NEVER_CALLED)) < 1e-12


def test_the_densest_come_first_within_cap_memory_and_turns() -> None:
    views = [libraries("a"), libraries("b"), libraries("c")]
    rates = {"a": 0.1, "b": 0.3, "c": 0.2}
    assert [name for name, _, _ in chosen(views, shelf(), **rates)] == ["b", "c"]
    assert [name for name, _, _ in chosen(views, shelf(cap=60), **rates)] == ["b"]
    assert [name for name, _, _ in chosen(views, shelf(free=60), **rates)] == ["b"]
    assert [name for name, _, _ in chosen(views, shelf(slots=1), **rates)] == ["b"]
    assert chosen(views, shelf(slots=0), **rates) == []


def test_a_smaller_one_takes_what_a_better_one_leaves() -> None:
    assert chosen([libraries("a", 150), libraries("b", 40)], shelf(), a=9.0, b=0.1) == [("b", "n", ())]


def test_never_called_ones_come_when_memory_is_free_and_displace_nothing() -> None:
    views = [libraries("a"), libraries("b")]
    assert chosen(views, shelf(zygote("a"))) == [("b", "n", ())]
    assert chosen(views, shelf(zygote("a"), cap=50)) == []


def test_what_saves_nothing_is_not_imported() -> None:
    assert chosen([libraries("a", saves_s=0.0)], shelf(), a=1.0) == []


def test_displacing_takes_more_than_a_little_more_value() -> None:
    views = [libraries("a"), libraries("b")]
    held = shelf(zygote("a"), cap=60)
    assert chosen(views, held, a=0.1, b=0.14) == []
    assert chosen(views, held, a=0.1, b=0.16) == [("b", "n", ("z-a",))]


def test_only_as_many_give_way_as_are_needed() -> None:
    views = [libraries("a", 10), libraries("b", 50), libraries("c", 50)]
    held = shelf(zygote("a", 10), zygote("b"), cap=60)
    assert chosen(views, held, a=0.001, b=0.01, c=1.0) == [("c", "n", ("z-b",))]


def test_several_small_ones_are_not_ended_for_one_that_saves_less_in_all() -> None:
    views = [libraries("a", 20), libraries("b", 20), libraries("c", 100)]
    held = shelf(zygote("a", 20), zygote("b", 20))
    assert chosen(views, held, a=0.1, b=0.1, c=0.25) == []  # its density is below theirs


def test_memory_on_its_way_back_is_waited_for() -> None:
    views = [libraries("a"), libraries("b")]
    assert chosen(views, shelf(zygote("a"), zygote("x", ending=True), cap=100), b=1.0) == [("b", "n", ())]


def test_not_where_it_failed_lately() -> None:
    two = (shelf(node="m"), shelf(node="n"))
    assert chosen([libraries("a", not_on="m")], *two) == [("a", "n", ())]


def test_further_nodes_count_less_so_that_small_ones_hold_different_libraries() -> None:
    views = [libraries("a"), libraries("b")]
    two = (shelf(node="m", cap=50), shelf(node="n", cap=50))
    assert chosen(views, *two, a=0.15, b=0.1) == [("a", "m", ()), ("b", "n", ())]
    assert chosen(views, *two, a=0.5, b=0.1) == [("a", "m", ()), ("a", "n", ())]


def test_an_incomplete_one_is_replaced_last_and_never_at_anothers_cost() -> None:
    views = [libraries("a"), libraries("b")]
    lacking = zygote("a", complete=False)
    assert chosen(views, shelf(lacking, cap=150)) == [("b", "n", ()), ("a", "n", ())]
    assert chosen(views, shelf(lacking, cap=100)) == [("b", "n", ())]
    assert chosen(views, shelf(lacking, zygote("b"), cap=100), a=9.0) == []


sizes = st.integers(1, 100)


@given(
    st.lists(st.tuples(sizes, st.floats(0.0, 1.0)), min_size=1, max_size=8),
    st.integers(0, 200),
    st.integers(0, 300),
)
def test_carried_out_again_and_again_it_comes_to_rest_within_the_cap(
    keys: list[tuple[int, float]], cap: int, free: int
) -> None:
    views = [libraries(f"k{number}", size) for number, (size, _) in enumerate(keys)]
    rates = {f"k{number}": rate for number, (_, rate) in enumerate(keys)}
    size_of = {view.name: view.bytes for view in views}
    held: dict[str, str] = {}
    for step in range(4 * len(keys)):
        there = [zygote(name, size_of[name] // MB, id=id) for name, id in sorted(held.items())]
        left = free - sum(size_of[name] for name in held) // MB
        plan = MostSaved().plan(views, [shelf(*there, cap=cap, free=max(left, 0))], Rates(**rates), 0.0)
        if not plan:
            return
        for number, one in enumerate(plan):
            for name in [name for name, id in held.items() if id in one.displaced]:
                del held[name]
            assert one.libraries not in held
            held[one.libraries] = f"z{step}.{number}"
        assert sum(size_of[name] for name in held) <= min(cap, free) * MB
    raise AssertionError(f"it goes on and on: {held}")
