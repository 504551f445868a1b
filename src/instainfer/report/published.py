"""What the papers report, for the tables beside ours. Nothing here was measured by this project."""

from __future__ import annotations

from typing import NamedTuple

from instainfer.report.parts import MS, TEXT, WHOLE_SHARE, Published, Table
from instainfer.report.reading import Run, spec_of

TYCHE = (
    "Sui, Yu, Hu, Li, Wang: Accelerating ML Inference via Opportunistic Pre-Loading on Serverless Clusters. IEEE "
    "Transactions on Parallel and Distributed Systems 37(2), 2026"
)

#: Order of the classes everywhere: predictable, normal, bursty.
CLASSES = ("predictable", "normal", "bursty")

Triple = tuple[float, float, float]


class Measured(NamedTuple):
    """One system: means in ms and per cent, by class."""

    e2e_ms: Triple
    warming_loading_ms: Triple
    rate: Triple | None = None


#: The end-to-end comparison: on one node but where it says otherwise. In TYCHE, which measures InstaInfer anew.
SYSTEMS = {
    "OpenWhisk": Measured((3012, 3309, 3274), (2767, 3059, 3025)),
    "Histogram": Measured((2642, 2661, 2630), (2397, 2409, 2387)),
    "Pagurus": Measured((2553, 3017, 2624), (2304, 2771, 2382)),
    "FaaSCache": Measured((2537, 2715, 2690), (2292, 2469, 2445)),
    "Tyche + Histogram": Measured((538, 707, 814), (295, 462, 567), (79, 66, 48)),
    "Tyche + Pagurus": Measured((468, 552, 618), (223, 309, 376), (85, 78, 71)),
    "Tyche + FaaSCache": Measured((826, 955, 1165), (581, 709, 917), (63, 51, 45)),
    "InstaInfer, many nodes": Measured((821, 968, 1043), (576, 725, 811), (61, 46, 42)),
    "Tyche + Pagurus, many nodes": Measured((392, 589, 542), (186, 266, 326), (84, 81, 72)),
}
_BY_CLASS = f"{TYCHE}: end-to-end comparison by class"
#: Which of them a run of ours is the like of, by mode and keep-alive policy, on one node and on many.
_LIKE = {
    ("none", "openwhisk", False): "OpenWhisk",
    ("none", "hybrid", False): "Histogram",
    ("none", "pagurus", False): "Pagurus",
    ("none", "faascache", False): "FaaSCache",
    ("tyche", "hybrid", False): "Tyche + Histogram",
    ("tyche", "pagurus", False): "Tyche + Pagurus",
    ("tyche", "faascache", False): "Tyche + FaaSCache",
    ("tyche", "pagurus", True): "Tyche + Pagurus, many nodes",
}

#: Pre-loading rate by class, per cent.
PREDICTORS: dict[str, Triple] = {
    "Poisson": (67, 56, 42),
    "histogram": (61, 51, 46),
    "random forest": (50, 47, 43),
    "ARIMA": (62, 51, 40),
}
#: How many times longer calls take without a part of Tyche, from and to.
ABLATION = {"tyche_np": (1.16, 1.28), "tyche_ns": (1.21, 1.49), "tyche_nps": (1.48, 1.73)}

_SIMULATED = (
    "Theirs are measurements on a cluster of their own with eight real models; ours are simulated at the costs "
    "that the command names, on another trace and with another amount of memory. Compare the order and the "
    "ratios, not the milliseconds."
)
_LIVE = (
    "Theirs are measurements on a cluster of their own; ours on the machine named above, with other models and "
    "another trace. Compare the order and the ratios, not the milliseconds."
)


def difference(runs: list[Run]) -> str:
    return _LIVE if runs and all(run.command == "replay" for run in runs) else _SIMULATED


def like(run: Run) -> Measured | None:
    """The published system that is set up as this run is."""
    if spec_of(run.row.policy).settings or ":" in run.spec:
        return None
    mode, many = run.row.policy, run.row.nodes > 1
    name = (
        "InstaInfer, many nodes" if mode == "instainfer" and many else _LIKE.get((mode, run.row.keep_alive, many))
    )
    return SYSTEMS[name] if name else None


def ratios(runs: list[Run]) -> tuple[str, ...]:
    """What pre-loading is worth over the same keep-alive policy, theirs and ours, with what bears on a
    difference."""
    told = []
    for alone in runs:
        theirs_alone = like(alone) if alone.row.policy == "none" else None
        if theirs_alone is None or alone.detail is None:
            continue
        for run in runs:
            theirs = like(run)
            same = run.detail and all(
                getattr(run.row, key) == getattr(alone.row, key)
                for key in ("trace", "world", "keep_alive", "nodes")
            )
            if theirs is None or not same or run.row.policy == "none" or run.detail is None:
                continue
            parts = []
            for at, name in enumerate(CLASSES):
                before, after = (one.classes.get(name) for one in (alone.detail, run.detail))
                if before and after and before.invocations and before.e2e_mean_ms and after.e2e_mean_ms:
                    published = theirs_alone.e2e_ms[at] / theirs.e2e_ms[at]
                    ours = before.e2e_mean_ms / after.e2e_mean_ms
                    parts.append(f"{name} {published:.1f} times as fast there, {ours:.2f} times here")
            if parts:
                cold = alone.row.cold_fraction
                left = "" if cold is None else f" Without pre-loading {cold:.1%} of the calls here start cold."
                said = f"{run.row.policy} against none, over {alone.row.keep_alive}: {'; '.join(parts)}.{left}"
                told.append(said)
    return tuple(dict.fromkeys(told))


def latencies(runs: list[Run]) -> Published:
    columns = [(f"{what}, {name}", MS) for what in ("E2E", "warming + loading") for name in CLASSES]
    rows = tuple((name, *one.e2e_ms, *one.warming_loading_ms) for name, one in SYSTEMS.items())
    table = Table((("system", TEXT), *columns), rows)
    return Published(_BY_CLASS, difference(runs), table, claims=ratios(runs))


def rates(runs: list[Run]) -> Published:
    columns = [(f"rate, {name}", WHOLE_SHARE) for name in CLASSES]
    rows = tuple((name, *one.rate) for name, one in SYSTEMS.items() if one.rate)
    return Published(f"{_BY_CLASS}, in %", difference(runs), Table((("system", TEXT), *columns), rows))


def predictors(runs: list[Run]) -> Published:
    return Published(
        f"{TYCHE}: comparison of predictors, pre-loading rate by class in %",
        difference(runs),
        Table(
            (("predictor", TEXT), *((name, WHOLE_SHARE) for name in CLASSES)),
            tuple((name, *values) for name, values in PREDICTORS.items()),
        ),
    )


def claims(source: str, runs: list[Run], *told: str) -> Published:
    return Published(source, difference(runs), claims=told)
