"""Packing programs: maximise the value of what is taken, when what it takes must fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instainfer.errors import Unavailable
from instainfer.traces.base import Floats, Ints

#: Above so many columns the interior-point method is faster than the simplex.
_SIMPLEX_COLUMNS = 5_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """Sparse, by columns: column c has `values[begins[c]:begins[c + 1]]` in those `rows`."""

    begins: Ints
    rows: Ints
    values: Floats
    height: int

    @property
    def columns(self) -> Ints:
        """Of each entry."""
        return np.repeat(np.arange(len(self.begins) - 1), np.diff(self.begins))

    def times(self, prices: Floats) -> Floats:
        """Of each column: its entries times the prices of their rows, summed."""
        paid = np.bincount(self.columns, self.values * prices[self.rows], len(self.begins) - 1)
        return paid.astype(np.float64)  # of no entries it counts in integers

    def above(self, below: Matrix) -> Matrix:
        """Both on top of each other; they have the same columns."""
        return by_columns(
            np.concatenate([self.columns, below.columns]),
            np.concatenate([self.rows, below.rows + self.height]),
            np.concatenate([self.values, below.values]),
            max(len(self.begins), len(below.begins)) - 1,
            self.height + below.height,
        )

    def after(self, columns: int) -> Matrix:
        """With so many empty columns before its own."""
        return Matrix(
            begins=np.concatenate([np.zeros(columns, np.int64), self.begins]),
            rows=self.rows,
            values=self.values,
            height=self.height,
        )


def by_columns(columns: Ints, rows: Ints, values: Floats, width: int, height: int) -> Matrix:
    order = np.lexsort((rows, columns))
    begins = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=width))])
    return Matrix(begins=begins, rows=rows[order], values=values[order], height=height)


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    bound: float  # no choice is worth more
    chosen: Floats  # of each column: how much of it was taken, 0 to 1, in a solution that is good or best
    priced: Floats  # of each column: what it takes, at the prices that prove the bound


def maximise(values: Floats, matrix: Matrix, room: Floats) -> Solved:
    """The most of sum(values x) with matrix x <= room, 0 <= x <= 1; all numbers are >= 0.

    Any prices y >= 0 of the rows prove the bound y room + sum(max(0, values - y matrix)): it is computed here from
    the solver's prices, so that an unfinished or inaccurate solution only makes it looser.
    """
    # Rows are scaled to a room of about 1: MB and seconds of all magnitudes meet here.
    scale = 1.0 / np.maximum(room, 1e-9)
    taken, duals = _solve(values, matrix, room, scale)
    chosen = np.clip(taken, 0.0, 1.0)
    prices = np.maximum(duals, 0.0) * scale
    priced = matrix.times(prices)
    bound = float(prices @ room + np.maximum(values - priced, 0.0).sum())
    return Solved(bound=min(bound, float(values.sum())), chosen=chosen, priced=priced)


def _solve(values: Floats, matrix: Matrix, room: Floats, scale: Floats) -> tuple[Floats, Floats]:
    """(columns, prices of the scaled rows); zeros where the solver has none."""
    try:
        import highspy
    except ModuleNotFoundError as error:
        raise Unavailable("bounds need HiGHS", hint="pip install 'instainfer[lab]'") from error
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(values), matrix.height
    program.sense_ = highspy.ObjSense.kMaximize
    program.col_cost_ = values
    program.col_lower_, program.col_upper_ = np.zeros(len(values)), np.ones(len(values))
    program.row_lower_, program.row_upper_ = np.full(matrix.height, -highspy.kHighsInf), room * scale
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_ = matrix.begins
    program.a_matrix_.index_ = matrix.rows
    program.a_matrix_.value_ = matrix.values * scale[matrix.rows]
    # highspy.Highs prints a banner on stdout as it is made, before any option can stop it; its base does not.
    highs = highspy._core._Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    if len(values) > _SIMPLEX_COLUMNS:
        highs.setOptionValue("solver", "ipm")
        highs.setOptionValue("run_crossover", "off")
    highs.passModel(program)
    highs.run()
    solution = highs.getSolution()
    columns = np.array(solution.col_value, np.float64) if solution.value_valid else np.zeros(len(values))
    duals = np.array(solution.row_dual, np.float64) if solution.dual_valid else np.zeros(matrix.height)
    return columns, duals
