"""Metrics of functions that come and go."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from instainfer.observe import DELETED, DELETED_S, Metrics


def shown(metrics: Metrics) -> dict[str, float]:
    """Invocations by function, as a scrape has them."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name == "instainfer_invocations_total":
                name = f"{sample.labels['namespace']}/{sample.labels['function']}"
                found[name] = found.get(name, 0) + sample.value
    return found


def call(metrics: Metrics, function: str, now: float) -> None:
    namespace, _, name = function.partition("/")
    for start in ("cold", "warm"):
        metrics.invocation(namespace, name, start, "ok")
    metrics.spent_by(function, now).ok += 2


def test_a_deleted_function_is_shown_for_some_time() -> None:
    metrics = Metrics()
    for name in ("a/f", "a/g", "b/f"):
        metrics.deployed(name)
        call(metrics, name, 0.0)
    metrics.deleted("a/f", 1.0)
    metrics.sweep(DELETED_S)
    assert shown(metrics) == {"a/f": 2, "a/g": 2, "b/f": 2}
    metrics.sweep(DELETED_S + 1)
    assert shown(metrics) == {"a/g": 2, "b/f": 2}
    assert metrics.spent.keys() == {"a/g", "b/f"}


def test_one_that_is_deployed_again_in_time_goes_on() -> None:
    metrics = Metrics()
    metrics.deployed("a/f")
    call(metrics, "a/f", 0.0)
    metrics.deleted("a/f", 1.0)
    metrics.deployed("a/f")
    call(metrics, "a/f", 2.0)
    metrics.sweep(10 * DELETED_S)
    assert shown(metrics) == {"a/f": 4}


def test_a_request_that_ends_long_after_its_function_stays_no_longer() -> None:
    metrics = Metrics()
    metrics.deployed("a/f")
    call(metrics, "a/f", 0.0)
    metrics.deleted("a/f", 1.0)
    metrics.sweep(1 + DELETED_S)
    call(metrics, "a/f", 2 * DELETED_S)
    assert shown(metrics) == {"a/f": 2}
    metrics.sweep(3 * DELETED_S)
    assert shown(metrics) == {}


def test_hundreds_that_come_and_go_at_once_have_a_bound() -> None:
    metrics = Metrics()
    metrics.deployed("n/lives")
    before = 0.0
    for n in range(5 * DELETED):
        name = f"n/f{n}"
        metrics.deployed(name)
        call(metrics, name, float(n) / 100)
        call(metrics, "n/lives", float(n) / 100)
        metrics.deleted(name, float(n) / 100)
        assert len(metrics.spent) <= DELETED + 1
        if n % DELETED == 0:
            counts = shown(metrics)
            assert counts["n/lives"] > before
            before = counts["n/lives"]
    counts = shown(metrics)
    assert len(counts) == DELETED + 1
    assert counts["n/lives"] == 10 * DELETED
    assert f"n/f{5 * DELETED - 1}" in counts, "the latest are kept"
