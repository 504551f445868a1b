"""Runs that differ in their seed only, taken together: their mean, and how far they lie apart."""

from __future__ import annotations

from statistics import fmean
from typing import Any, TypeVar

import msgspec

from instainfer.report.reading import Results, Run, identity

S = TypeVar("S", bound=msgspec.Struct)


def merged(results: Results) -> Results:
    """With one run for those of several seeds: their mean, of which they are the members."""
    found: dict[str, list[Run]] = {}
    for run in results.runs:
        setting = {name: value for name, value in run.setting.items() if name != "seed"}
        found.setdefault(f"{results.name(run)} {identity(setting)}", []).append(run)
    if all(len(same) == 1 for same in found.values()):
        return results
    runs = [same[0] if len(same) == 1 else _mean(same) for same in found.values()]
    return Results(runs, results.benches, results.machines, results.sources, results.logs)


def _mean(runs: list[Run]) -> Run:
    """Of runs that differ in their seed. Its timeline is the first one's: there is no mean of that."""
    row = _mean_of([run.row for run in runs], seed=None)
    details = [run.detail for run in runs if run.detail]
    detail = None
    if len(details) == len(runs):
        names = [name for name in details[0].classes if all(name in one.classes for one in details)]
        cdfs = {
            name: [fmean(at) for at in zip(*(one.cdf[name] for one in details), strict=True)]
            for name in details[0].cdf
            if all(one.cdf.get(name) for one in details)
        }
        detail = msgspec.structs.replace(
            details[0],
            classes={name: _mean_of([one.classes[name] for one in details]) for name in names},
            cdf=cdfs,
        )
    return Run(runs[0].command, runs[0].folder, row, runs[0].raw, detail, tuple(runs))


def _mean_of(structs: list[S], **other: Any) -> S:
    """Of their numbers, where all have one; the first one's of all else."""
    changed: dict[str, Any] = {}
    for name in structs[0].__struct_fields__:
        values = [getattr(one, name) for one in structs]
        if all(isinstance(value, int | float) for value in values):
            mean = fmean(values)
            changed[name] = round(mean) if all(isinstance(value, int) for value in values) else mean
    return msgspec.structs.replace(structs[0], **{**changed, **other})
