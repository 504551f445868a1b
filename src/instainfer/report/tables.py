"""The tables of `docs/results`: what is run for each. How to make one again is in `remake.py`.

Sizes are such that each takes minutes on one core.
"""

from __future__ import annotations

from typing import NamedTuple

from instainfer.lab.costs import EQUAL
from instainfer.lab.simulate import Settings
from instainfer.report import Maker, latency, nodes, policies

AZURE_2019 = "azure2019_500f_8h"
AZURE_2021 = "azure2021_200.csv"
REPLAY = tuple(f"{AZURE_2019}/replay_{kind}.csv" for kind in ("predictable", "normal", "bursty"))
BUDGETS = (0.05, 0.1, 0.2, 0.4, 0.7)
CACHES = ("lru", "gdsf")
ABLATED = ("tyche", "tyche_np", "tyche_ns", "tyche_nps")
PREDICTORS = ("hazard", "poisson", "histogram", "frequency")


class Part(NamedTuple):
    """Runs of one setting: every policy on every trace at every budget."""

    traces: tuple[str, ...]  # below the folder of traces, or recipes beside the results
    policies: tuple[str, ...]
    budgets: tuple[float, ...]
    settings: Settings = Settings()


class Check(NamedTuple):
    """The row that a test makes again: a cheap one."""

    trace: str
    policy: str
    budget: float
    part: int = 0


class Table(NamedTuple):
    title: str
    shown: tuple[Maker, ...]  # sections of the report, beside the rows
    parts: tuple[Part, ...]
    check: Check
    calls: int = 0  # of each run, one by one, in its file
    drawn: bool = True  # with figures; the numbers are there in any case


def _containers(keep_alive: str = "pressure", **more: object) -> Settings:
    given: dict[str, object] = {"world": "containers", "keep_alive": keep_alive, "min_calls": 1, **more}
    return Settings(**given)  # type: ignore[arg-type] # of many types


#: The papers' worlds: eight functions on one node with memory for all of them and some more, which a keep-alive
#: policy rules and pre-loads may use.
_PAPERS_BUDGET = (1.5,)
_PAPERS = ("none", "tyche", "instainfer", "hazard")
_PAPERS_KEEP_ALIVE = ("openwhisk", "hybrid", "pagurus", "faascache")

TABLES: dict[str, Table] = {
    "azure-2019": Table(
        "Policies by budget: Azure Functions 2019",
        (policies.savings,),
        (
            Part(
                (AZURE_2019,),
                (*CACHES, "instainfer", "tyche", "hazard", "KEEP"),
                BUDGETS,
                Settings(cap_per_minute=6),
            ),
        ),
        Check(AZURE_2019, "gdsf", 0.4),
    ),
    "azure-2021": Table(
        "Policies by budget: Azure Functions 2021",
        (policies.savings,),
        (
            Part(
                (AZURE_2021,), (*CACHES, "instainfer", "tyche", "hazard", "KEEP"), BUDGETS, Settings(warmup=0.1)
            ),
        ),
        Check(AZURE_2021, "hazard", 0.2),
    ),
    "replay-sets": Table(
        "The three replay sets in memory for half of the models",
        (policies.best,),
        (Part(REPLAY, (*CACHES, "instainfer", "tyche", "hazard", "KEEP", "JIT"), (0.5,), Settings(min_calls=1)),),
        Check(REPLAY[0], "hazard", 0.5),
    ),
    "replay-hits": Table(
        "The three replay sets where every load takes as long: hit rates",
        (policies.best,),
        (
            Part(
                REPLAY,
                (*CACHES, "instainfer", "tyche", "hazard", "KEEP"),
                (0.5,),
                Settings(min_calls=1, profiles=EQUAL),
            ),
        ),
        Check(REPLAY[1], "hazard", 0.5),
    ),
    "synthetic": Table(
        "Synthetic traces: how much of what is possible without foresight",
        (policies.savings,),
        (
            Part(
                tuple(f"{kind}.json" for kind in ("poisson", "timers", "bursts", "diurnal", "jumps", "mixed")),
                (*CACHES, "tyche", "hazard", "HAZARD", "KEEP"),
                (0.1, 0.2, 0.4),
            ),
        ),
        Check("timers.json", "hazard", 0.1),
    ),
    "papers": Table(
        "The papers' comparison: latency, pre-loading rate and memory by class and keep-alive policy",
        (latency.by_class, latency.rates, policies.memory),
        tuple(
            Part(REPLAY, _PAPERS, _PAPERS_BUDGET, _containers(keep_alive)) for keep_alive in _PAPERS_KEEP_ALIVE
        ),
        Check(REPLAY[2], "tyche", 1.5, part=2),
        drawn=False,
    ),
    "distribution": Table(
        "The papers' comparison over Pagurus: how the time of a call is distributed",
        (latency.distribution,),
        (Part(REPLAY, _PAPERS, _PAPERS_BUDGET, _containers("pagurus")),),
        Check(REPLAY[2], "tyche", 1.5),
    ),
    "timeline": Table(
        "The papers' comparison over Pagurus: call by call",
        (latency.timeline,),
        (Part(REPLAY[:1], _PAPERS, _PAPERS_BUDGET, _containers("pagurus")),),
        Check(REPLAY[0], "tyche", 1.5),
        calls=20,
    ),
    "ablation": Table(
        "Ablation of Tyche: no predictor, no scheduler, neither",
        (policies.ablation,),
        (Part(REPLAY, (*ABLATED, "hazard", "none"), (0.5, 1.5), _containers("openwhisk", headroom=0.0)),),
        Check(REPLAY[0], "tyche_np", 1.5),
    ),
    "sensitivity": Table(
        "Sensitivity of Tyche to P_load, P_offload and the window",
        (policies.sensitivity,),
        (
            Part(
                REPLAY,
                (
                    "tyche",
                    *(f"tyche(p_load={p})" for p in (0.01, 0.03, 0.12, 0.25)),
                    *(f"tyche(p_offload={p})" for p in (0.8, 0.9, 0.98, 0.995)),
                    *(f"tyche:poisson(window={window})" for window in (5, 20, 30)),
                ),
                _PAPERS_BUDGET,
                _containers("openwhisk"),
            ),
        ),
        Check(REPLAY[0], "tyche(p_load=0.12)", 1.5),
    ),
    "predictors": Table(
        "Predictors under one policy",
        (policies.predictors,),
        (
            Part(
                REPLAY,
                tuple(f"hazard:{one}" for one in (*PREDICTORS, "arima", "forest")),
                (0.5,),
                Settings(min_calls=1),
            ),
            Part(
                ("mixed.json",),
                tuple(f"hazard:{one}" for one in PREDICTORS),
                (0.2,),
            ),
        ),
        Check(REPLAY[0], "hazard:poisson", 0.5),
    ),
    "scaling-functions": Table(
        "Scaling with the number of functions",
        (policies.scaling,),
        tuple(
            Part((f"mixed-{n}.json",), ("none", "tyche", "hazard"), (0.2,), _containers(tick_s=10.0))
            for n in (50, 200, 1000)
        ),
        Check("mixed-50.json", "none", 0.2),
    ),
    "scaling-rate": Table(
        "Scaling with the rate of calls",
        (policies.scaling,),
        tuple(
            Part(
                (AZURE_2019,),
                ("none", "tyche", "hazard"),
                (0.6,),
                _containers(tick_s=10.0, cap_per_minute=cap, minutes="0:60", min_calls=10),
            )
            for cap in (1, 3, 10)
        ),
        Check(AZURE_2019, "none", 0.6),
    ),
    "scaling-nodes": Table(
        "Scaling with the number of nodes that share the memory",
        (nodes.section,),
        tuple(
            Part(("mixed-100.json",), ("none", "tyche", "hazard"), (0.4,), _containers(
                tick_s=1.0, nodes=nodes))
            for nodes in (1, 4, 16)
        ),
        Check("mixed-100.json", "none", 0.4),
    ),
    "harm": Table(
        "Containers by budget, and the harm that guests do",
        (policies.savings, policies.harm, policies.memory),
        (
            Part(
                (AZURE_2019,),
                ("none", "tyche", "hazard", "hazard(churn=1)"),
                (0.4, 0.8),
                _containers(tick_s=10.0, cap_per_minute=6, minutes="0:60", min_calls=10),
            ),
        ),
        Check(AZURE_2019, "none", 0.4),
    ),
}  # fmt: skip
