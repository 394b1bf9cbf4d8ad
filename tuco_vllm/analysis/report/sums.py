"""Means and deviations of lists by place (a layer, a token of a response) and by cell, added up as rows pass.

Legend: N rows, P places.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Moments:
    """Of each place ``[P]``: how many numbers there are, their mean and standard deviation (n - 1)."""

    n: Ints
    mean: Floats
    sd: Floats


class Sums:
    """Counts, sums and sums of squares, per cell; memory is cells times places."""

    def __init__(self) -> None:
        self._sums: dict[int, Floats] = {}  # [3, P]

    def add(self, cells: Ints, values: Floats) -> None:
        """Rows ``[N]`` of these cells, their values ``[N, P]``; what is not finite is left out."""
        if not len(cells):
            return
        order = np.argsort(cells, kind="stable")
        distinct, starts = np.unique(cells[order], return_index=True)
        sorted_values = values[order]
        there = np.isfinite(sorted_values)
        numbers = np.where(there, sorted_values, 0.0)
        summed = [np.add.reduceat(part, starts, axis=0) for part in (there, numbers, numbers**2)]
        for place, cell in enumerate(distinct):
            self._add(int(cell), np.stack([part[place] for part in summed]).astype(np.float64))

    def add_lists(self, cells: Ints, lists: pa.Array, places: int) -> None:
        """Rows ``[N]`` of these cells, a list each; the first ``places`` count, null is an empty one."""
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        if not len(values):
            return
        place = np.arange(len(values)) - np.repeat(lengths.cumsum() - lengths, lengths)
        distinct, row = np.unique(cells, return_inverse=True)
        wide = int(min(lengths.max(), places))
        kept = np.isfinite(values) & (place < wide)
        flat, kept_values = np.repeat(row, lengths)[kept] * wide + place[kept], values[kept]
        size = len(distinct) * wide
        summed = [np.bincount(flat, weights, size) for weights in (None, kept_values, kept_values**2)]
        for index, cell in enumerate(distinct):
            self._add(int(cell), np.stack([part[index * wide : (index + 1) * wide] for part in summed]))

    def _add(self, cell: int, new: Floats) -> None:
        old = self._sums.get(cell, np.zeros((3, 0)))
        total = np.zeros((3, max(old.shape[1], new.shape[1])))
        total[:, : old.shape[1]] = old
        total[:, : new.shape[1]] += new
        self._sums[cell] = total

    def __bool__(self) -> bool:
        return any(total[0].any() for total in self._sums.values())

    def of(self, cell: int) -> Moments:
        """A cell's moments; of length 0 where it has none."""
        n, total, squares = self._sums.get(cell, np.zeros((3, 0)))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(n > 0, total / n, np.nan)
            variance = np.where(n > 1, np.maximum(squares - n * mean**2, 0.0) / (n - 1), np.nan)
        return Moments(n.astype(np.int64), mean, np.sqrt(variance))
