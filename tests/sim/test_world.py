"""The `containers` world: what things take, in which order, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from instainfer.model import Function, StartKind
from instainfer.policies import registry
from instainfer.sim.tally import ByClass, Timeline

from .helpers import MB, Run, function, mixed, node, workload


def only(run: Run) -> dict[str, float]:
    return run.tally.row()


def test_a_cold_call_waits_for_container_and_load_and_a_warm_one_for_nothing() -> None:
    run = Run(workload([function()], [(10.0, 0), (100.0, 0)]), node())
    row = only(run)
    assert run.tally.starts[StartKind.COLD] == run.tally.starts[StartKind.WARM] == 1
    assert row["e2e_mean_ms"] * 2 == pytest.approx(1400.0 + 100.0)
    assert row["warming_loading_mean_ms"] * 2 == pytest.approx(1300.0)
    assert row["saved_fraction"] == pytest.approx(0.5)  # of the loading latency; the container is warming


def test_the_platforms_own_doing_is_added() -> None:
    work = workload([function()], [(10.0, 0), (100.0, 0)])
    slow = Run(work, node(dispatch_s=0.01, hop_s=0.1))
    assert only(slow)["e2e_mean_ms"] == pytest.approx(only(Run(work, node()))["e2e_mean_ms"] + 210.0)


def test_a_faster_device_loads_and_infers_faster() -> None:
    run = Run(workload([function()], [(10.0, 0)]), node(load_factor=0.5, inference_factor=0.1))
    assert only(run)["e2e_mean_ms"] == pytest.approx((0.3 + 1.0) * 0.5e3 + 10.0)


def test_the_first_inference_is_slower_unless_the_load_warmed_up() -> None:
    calls = [(10.0, 0), (100.0, 0)]
    plain = Run(workload([function(first_s=0.5)], calls), node())
    assert only(plain)["e2e_mean_ms"] * 2 == pytest.approx(1300.0 + 500.0 + 100.0)
    warmed = Run(workload([function(first_s=0.5, warmup_s=0.4)], calls), node())
    assert only(warmed)["e2e_mean_ms"] * 2 == pytest.approx(1700.0 + 100.0 + 100.0)
    assert only(warmed)["saved_fraction"] == pytest.approx(0.5)
    assert only(plain)["saved_fraction"] == pytest.approx(0.5)


def test_a_call_during_the_load_joins_it() -> None:
    """Container at 10.3, loaded at 11.3; the second runs when the first is done."""
    run = Run(workload([function()], [(10.0, 0), (11.0, 0)]), node())
    assert run.tally.starts[StartKind.ATTACHED] == 1
    row = only(run)
    assert row["e2e_mean_ms"] * 2 == pytest.approx(1400.0 + 500.0)
    assert row["saved_fraction"] == pytest.approx(1.0 - (1.0 + 0.3) / 2.0)


def test_loads_beyond_the_slots_slow_each_other() -> None:
    functions = [function(f"t/{name}") for name in "abc"]
    run = Run(workload(functions, [(10.0, 0), (10.0, 1), (10.0, 2)]), node(load_slots=1))
    assert only(run)["e2e_p99_ms"] == pytest.approx(300.0 + 3000.0 + 100.0)
    measured = run.state.functions["t/a"].costs
    assert measured.load_s > 0.6  # the core learns from what it is told: wall time


def test_memory_is_limits_over_time() -> None:
    run = Run(workload([function()], [(10.0, 0)], end=110.0), node())
    assert only(run)["memory_gb_s"] == pytest.approx(0.3 * 100.0)
    assert only(run)["wasted_gb_s"] == 0.0


def test_a_request_that_waits_too_long_is_refused() -> None:
    """One container's worth of memory, and a call that holds it for long."""
    functions = [function("t/long", warm_s=200.0, first_s=200.0), function("t/other")]
    run = Run(workload(functions, [(10.0, 0), (20.0, 1)]), node(memory=300 * MB))
    assert only(run)["rejected"] == 1
    assert only(run)["invocations"] == 1


def test_a_guest_is_loaded_ahead_and_served_from_the_owners_memory() -> None:
    """b is called every 300 s. With memory for one container it becomes a guest of a's, ahead of its calls."""
    calls = [(0.0, 1), *((300.0 * n + 150.0, 0) for n in range(12)), *((300.0 * n, 1) for n in range(1, 12))]
    functions = [function(name, memory=250 * MB, first_s=1.5, warm_s=1.5) for name in ("t/a", "t/b")]
    run = Run(workload(functions, calls), node(memory=260 * MB), mode="hazard")
    ready = run.tally.starts[StartKind.PRELOADED] + run.tally.starts[StartKind.WARM]
    assert ready > 15
    assert len(run.state.containers) == 1


def test_what_follows_a_freeze_waits_for_it() -> None:
    """Two functions in one container take turns: each call of the other one is behind a freeze and a thaw."""
    calls = [(0.0, 1), *((300.0 * n + 150.0, 0) for n in range(12)), *((300.0 * n, 1) for n in range(1, 12))]
    functions = [function(name, memory=250 * MB, first_s=1.5, warm_s=1.5) for name in ("t/a", "t/b")]
    work = workload(functions, calls)
    still = Run(work, node(memory=260 * MB), mode="hazard")
    slow = Run(work, node(memory=260 * MB, freeze_s=0.5), mode="hazard")
    assert still.tally.starts == slow.tally.starts
    turns = sum(1 for _, name in slow.seen if name == "Freeze")
    assert turns > 10
    assert only(slow)["e2e_mean_ms"] > only(still)["e2e_mean_ms"] + 200.0


@pytest.mark.parametrize("keep_alive", registry.KEEP_ALIVES)
@pytest.mark.parametrize("mode", registry.MODES)
def test_invariants_hold_and_every_request_ends_once(mode: str, keep_alive: str) -> None:
    work = mixed(end=900.0)
    run = Run(
        work,
        node(memory=700 * MB, load_slots=1, freeze_s=0.001, end_s=0.01, destroy_s=0.05),
        node(memory=500 * MB, name="n1"),
        mode=mode,
        keep_alive=keep_alive,
    )
    row = only(run)
    assert row["invocations"] + row["rejected"] == len(work.times) == run.world.settled
    assert 0.0 < row["memory_gb_s"] <= 1.2 * work.end
    total = sum(row[f"{kind}_fraction"] for kind in ("preloaded", "warm", "cold", "attached", "partial"))
    assert total == pytest.approx(1.0)


def test_zygotes_make_starts_shorter() -> None:
    """Two functions of equal libraries: once a zygote is ready, a load is a fork and the rest."""
    functions = [
        function(
            f"t/{name}",
            libraries="torch",
            forkable=True,
            libraries_bytes=50 * MB,
            fork_s=0.02,
            forked_bytes=60 * MB,
        )
        for name in "abcd"
    ]
    calls = [(60.0 * n, n % 4) for n in range(40)]
    without = Run(workload(functions, calls), node(memory=650 * MB))
    with_one = Run(workload(functions, calls), node(memory=650 * MB, zygote_memory=60 * MB))
    assert any(name == "StartZygote" for _, name in with_one.seen)
    assert with_one.tally.starts[StartKind.FORKED] > 0
    assert only(with_one)["saved_fraction"] > only(without)["saved_fraction"]


def sharing(name: str, **changes: object) -> Function:
    """It may be forked: its libraries take 0.4 s of its load, and a fork of them 0.02 s."""
    with_zygote = {"libraries": "torch", "forkable": True, "libraries_bytes": 50 * MB, "fork_s": 0.02}
    return function(name, **(with_zygote | {"forked_bytes": 60 * MB} | changes))  # type: ignore[arg-type]


def test_a_forked_start_takes_the_fork_and_holds_its_own_bytes() -> None:
    """The zygote is imported before the trace begins; then a start is a container, a fork and the model."""
    run = Run(workload([sharing("t/a")], [(10.0, 0)], 100.0), node(memory=650 * MB, zygote_memory=60 * MB))
    assert run.tally.starts[StartKind.FORKED] == 1
    assert only(run)["e2e_mean_ms"] == pytest.approx(300.0 + 20.0 + 600.0 + 100.0)
    assert next(iter(run.state.instances.values())).bytes == 60 * MB
    assert only(run)["zygote_gb_s"] == pytest.approx(0.05 * 100.0)
    assert only(run)["memory_gb_s"] == pytest.approx(0.05 * 100.0 + 0.3 * 90.0, rel=1e-3)
    first = Run(
        workload([sharing("t/a", container_s=0.0)], [(0.0, 0)]), node(memory=650 * MB, zygote_memory=60 * MB)
    )
    assert first.tally.starts[StartKind.FORKED] == 1  # functions and their zygotes were there before the trace
    assert first.state.zygotes  # and it is still there


def test_a_zygote_without_its_modules_is_none_of_its_own() -> None:
    """b came later and imports more: until a further zygote has that, it starts from nothing."""
    first, later = sharing("t/a", modules="m1"), sharing("t/b", modules="m2", import_s=0.6)
    run = Run(workload([first], [(1.0, 0)], 1.0), node(memory=900 * MB, zygote_memory=120 * MB))
    site = run.world._sites["n0"]
    assert run.world._forks(first, site) and not run.world._forks(later, site)
    assert not run.world._forks(sharing("other/a", modules="m1"), site)  # another namespace's
    run.world.deploy(later)
    run.engine.advance(3.0)
    assert run.world._forks(first, site) and run.world._forks(later, site)
    assert len(run.world._zygotes) == 1  # in place of the first


def test_whoever_waits_is_the_warm_up() -> None:
    """A demanded load makes no warm-up call: the request itself is the first inference, and pays for it. A
    pre-load makes one, and a clone comes of a warm template."""
    slow = function(first_s=0.5, warmup_s=0.5)
    run = Run(workload([slow], [(10.0, 0), (100.0, 0)]), node())
    assert only(run)["e2e_mean_ms"] * 2 == pytest.approx((300.0 + 1000.0 + 500.0) + 100.0)
    copies = function(first_s=0.5, warmup_s=0.5, clone_s=0.05, cloned_bytes=10 * MB, cloneable=True, warm_s=30.0)
    cloned = Run(workload([copies], [(10.0, 0), (41.0, 0), (41.1, 0)]), node(memory=2000 * MB))
    assert cloned.tally.starts[StartKind.CLONED] == 1


def test_a_timeline_shows_what_each_call_waited_for() -> None:
    calls = [(10.0, 0), (11.0, 0), (100.0, 0)]
    work = workload([function(first_s=0.3)], calls)
    timeline = Timeline(range(3))
    run = Run(work, node(), timeline=timeline)
    cold, attached, warm = timeline.ordered()
    assert (cold.request, cold.start, cold.function, cold.arrived_s) == (0, StartKind.COLD, 0, 10.0)
    assert cold[4:] == pytest.approx((0.3, 1.0 + 0.2, 0.1, 1.6))
    assert attached.start is StartKind.ATTACHED
    assert attached[4:] == pytest.approx((0.0, 0.3, 0.1, 0.7))  # 0.3 s of the rest for the first call to end
    assert warm[4:] == pytest.approx((0.0, 0.0, 0.1, 0.1))
    assert run.tally.invocations == 3


def test_each_class_has_a_tally_and_the_whole_is_their_sum() -> None:
    work = mixed(end=1800.0)
    of = [("timer", "random", "burst")[i % 3] for i in range(len(work.functions))]
    tally = ByClass(("timer", "random", "burst", "none"), of, 0.0, work.end)
    machine = node(memory=700 * MB, load_slots=1, end_s=0.01, destroy_s=0.05)
    Run(work, machine, mode="hazard", tally=tally, checked=False)
    one = Run(work, machine, mode="hazard", checked=False)
    whole, parts = tally.total(), tally.tallies.values()
    assert whole.row() == pytest.approx(only(one))
    assert whole.starts == one.tally.starts
    assert sum(part.invocations for part in parts) == len(work.times) - whole.rejected
    assert tally.tallies["none"].row()["invocations"] == 0 and tally.tallies["burst"].memory_byte_s > 0.0


def test_only_those_are_harmed_that_would_not_have_waited_without_guests() -> None:
    functions = [
        function("t/a", memory=260 * MB, loaded_bytes=120 * MB, first_s=1.5, warm_s=1.5),
        function("t/b", memory=110 * MB, loaded_bytes=100 * MB, first_s=1.5, warm_s=1.5),
    ]
    calls = [*((200.0 * n, 0) for n in range(30)), *((200.0 * n + 100.0, 1) for n in range(30))]
    work = workload(functions, calls)

    def run(mode: str, memory: int, usual: Sequence[float] = ()) -> Run:
        return Run(work, node(memory=memory), mode=mode, usual=usual)

    pushed = run("hazard", 270 * MB).tally.harmed
    assert pushed > 10
    alone = run("none", 270 * MB)  # one container, which the other one always takes
    assert min(alone.world.waits) > 1.0
    assert run("hazard", 270 * MB, alone.world.waits).tally.harmed == 0
    ample = run("none", 400 * MB)  # as if both were warm but for their first calls
    assert sum(wait < 0.01 for wait in ample.world.waits) == 58
    assert pushed - 2 <= run("hazard", 270 * MB, ample.world.waits).tally.harmed <= pushed


def test_guests_that_push_an_owner_out_are_reported() -> None:
    """b takes a's container, which becomes b's and too small for both: a pays with a load."""
    functions = [
        function("t/a", memory=260 * MB, loaded_bytes=120 * MB, first_s=1.5, warm_s=1.5),
        function("t/b", memory=110 * MB, loaded_bytes=100 * MB, first_s=1.5, warm_s=1.5),
    ]
    calls = [*((200.0 * n, 0) for n in range(30)), *((200.0 * n + 100.0, 1) for n in range(30))]
    run = Run(workload(functions, calls), node(memory=270 * MB), mode="hazard")
    assert run.tally.harmed > 0
    assert only(run)["harm_mean_ms"] > 0.0
    apart = Run(workload(functions, calls), node(memory=4000 * MB), mode="none")
    assert apart.tally.harmed == 0


def test_the_same_again() -> None:
    work = mixed(end=1200.0)
    runs = [Run(work, node(memory=600 * MB), mode="hazard", checked=checked) for checked in (True, False)]
    assert only(runs[0]) == only(runs[1])
    assert runs[0].tally.starts == runs[1].tally.starts


def test_a_process_that_is_not_forked_has_to_start() -> None:
    """Its interpreter's start is waited for and is no loading latency: nothing but a warm process spares it."""
    work = workload([function(start_s=0.08)], [(10.0, 0), (20.0, 0)], 100.0)
    timeline = Timeline(range(2))
    run = Run(work, node(), timeline=timeline)
    first, second = timeline.ordered()
    assert first.e2e_s == pytest.approx(0.3 + 0.08 + 1.0 + 0.1)
    assert (first.warming_s, first.loading_s) == pytest.approx((0.38, 1.0))
    assert (second.warming_s, second.loading_s) == (0.0, 0.0)
    assert only(run)["saved_fraction"] == pytest.approx(0.5)
    state = run.state.functions["t/f"].costs
    assert state.start_s == pytest.approx(0.08) and state.import_s == pytest.approx(0.4)
