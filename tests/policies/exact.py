"""The exact solution of the placement problem: a mixed-integer program for HiGHS, the reference of Greedy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped] # scipy has no types

from instainfer.model import Level
from instainfer.policies.base import Bin, Item


def exact_gain(bins: Sequence[Bin], items: Sequence[Item], churn: float = 0.0, *, gap: float = 0.0) -> float:
    """The largest sum of values placed minus (1 + churn) x values displaced, or with `gap` a bound
    above it that is at most this share too high."""
    bins = [one for one in bins if one.open]
    parts = {item.function: item for item in items if item.level == Level.IMPORTED}
    models = {item.function: item for item in items if item.level > Level.IMPORTED}
    gains: list[float] = []  # of each 0/1 variable
    rows: list[tuple[dict[int, float], float]] = []  # coefficients by variable <= bound

    room: list[tuple[dict[int, float], float]] = [({}, float(one.free)) for one in bins]
    gone: dict[tuple[int, str], int] = {}  # variable: this held item is displaced
    for index, one in enumerate(bins):
        for held in one.held:
            gone[index, held.instance] = len(gains)
            room[index][0][len(gains)] = -float(held.bytes)
            gains.append(-(1.0 + churn) * held.value)
    for name in sorted({*parts, *models}):
        once: dict[int, float] = {}
        part, model = parts.get(name), models.get(name)
        item = part or model
        assert item is not None
        for index, one in enumerate(bins):
            fits = one.namespace == item.namespace and one.own in ("", name) and {*item.mounts} <= {*one.mounts}
            there = [held for held in one.held if held.function == name and held.level]
            if not fits or name in one.fixed or any(held.level >= Level.LOADED for held in there):
                continue
            choices: list[tuple[float, float]] = []
            if there and model is not None:
                whole = model.weight + (part.weight if part else 0)
                choices.append((model.value, max(whole - there[0].bytes, 0.0)))
            if not there and part is not None:
                choices.append((part.value, part.weight))
            if not there and model is not None:
                choices.append(
                    (model.value + (part.value if part else 0.0), model.weight + (part.weight if part else 0))
                )
            for value, weight in choices:
                if there:  # what is raised stays
                    rows.append(({len(gains): 1.0, gone[index, there[0].instance]: 1.0}, 1.0))
                once[len(gains)] = 1.0
                room[index][0][len(gains)] = float(weight)
                gains.append(value)
        rows.append((once, 1.0))
    if not gains:
        return 0.0
    rows += room
    matrix = np.zeros((len(rows), len(gains)))
    for number, (coefficients, _) in enumerate(rows):
        for variable, coefficient in coefficients.items():
            matrix[number, variable] = coefficient
    found = milp(
        -np.array(gains),
        constraints=LinearConstraint(matrix, ub=[bound for _, bound in rows]),
        integrality=np.ones(len(gains)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": gap},
    )
    assert found.success, found.message
    return float(-found.mip_dual_bound if gap else -found.fun)
