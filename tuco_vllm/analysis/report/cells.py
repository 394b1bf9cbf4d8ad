"""What every cell's TuCo is, and how it compares with the baseline group's, at equal prompt length too."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tuco_vllm.analysis.database import EXACT_ROWS, quantiles
from tuco_vllm.analysis.report.data import Runs
from tuco_vllm.analysis.report.document import visible
from tuco_vllm.analysis.statistics import LEVEL, Estimate, auc, tpr_at_fpr
from tuco_vllm.errors import InputError

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
FPR = 0.05
LARGEST = 20
"""So many groups of a series are compared and drawn, the largest; the others are in the tables of counts."""
_BUCKETS = 5
_FEWEST = 5
"""Rows of either group that a length bucket needs."""


@dataclass(frozen=True)
class Spread:
    """How TuCo is distributed in a cell: over all of its scored rows."""

    cell: int
    rows: int
    errors: int
    n: int
    """Rows with a finite TuCo."""
    mean: float
    sd: float
    low: float
    high: float
    quantiles: list[float]


@dataclass(frozen=True)
class Comparison:
    """A group against the baseline, of sampled rows."""

    cell: int
    baseline: int
    auc: Estimate
    tpr: Estimate
    """At a false positive rate of ``FPR``, in the direction in which the group lies."""
    matched: Estimate
    """AUC within buckets of prompt length, pooled; NaN where no bucket has both."""
    buckets: list[tuple[float, float, int, int, Estimate]] = field(default_factory=list)
    """Shortest and longest prompt, rows of the group and of the baseline, AUC."""

    @property
    def direction(self) -> str:
        return "higher" if self.auc.value > 0.5 else "lower" if self.auc.value < 0.5 else "equal"


class Cells:
    """The cells of runs by series, with their names."""

    def __init__(self, runs: Runs, against: str | None) -> None:
        self.runs = runs
        [self.scored] = runs.one("SELECT count(tuco) FROM rows")
        self.exact = self.scored <= EXACT_ROWS
        query = (
            "SELECT cell, count(*), count(error), count(tuco), avg(tuco), stddev_samp(tuco), min(tuco),"
            f" max(tuco), {quantiles('tuco', SHARES, self.exact)} FROM rows GROUP BY cell ORDER BY cell"
        )
        self.spreads: dict[int, Spread] = {}
        for cell, rows, errors, n, *moments, between in runs.all(query):
            mean, sd, low, high = (np.nan if each is None else float(each) for each in moments)
            self.spreads[cell] = Spread(cell, rows, errors, n, mean, sd, low, high, between or [])
        self.against = self._baseline(against)

    def of(self, series: int) -> list[int]:
        """The ``LARGEST`` cells of a series with scored rows, in order of first appearance."""
        return sorted(self._by_size(series)[:LARGEST])

    def all_of(self, series: int) -> list[int]:
        """All cells of a series."""
        return [number for number, cell in enumerate(self.runs.cells) if cell.series == series]

    def left_out(self) -> int:
        """Cells with scored rows that are not among the largest."""
        return sum(len(self._by_size(series)[LARGEST:]) for series in range(len(self.runs.series)))

    def name(self, cell: int) -> str:
        """The group's."""
        return self.group_name(self.runs.cells[cell].group)

    def group_name(self, group: int) -> str:
        """A value of the column, as it is."""
        value = self.runs.groups[group]
        if value is None:
            return "all rows" if self.runs.group is None else "(none)"
        return value if value.strip() else f"'{value}'"

    def series_name(self, series: int) -> str:
        """The run's, the adapter's, or both."""
        source, ft = self.runs.series[series]
        label = self.runs.sources[source].label
        if ft is None:
            return label
        short = "/".join([part for part in ft.split("/") if part][-2:]) or ft
        return short if len(self.runs.sources) == 1 else f"{label}: {short}"

    def baseline(self, series: int) -> int | None:
        """The series' cell of the group that others are compared with."""
        for cell in self._by_size(series):
            if self.runs.cells[cell].group == self.against:
                return cell
        return None

    def dtypes(self, series: int) -> tuple[str, str]:
        """In what a series was scored: dtype, and that of rows."""
        source = self.runs.sources[self.runs.series[series][0]]
        dtype = source.fact("dtype")
        return dtype, source.fact("row_dtype") or dtype

    def _by_size(self, series: int) -> list[int]:
        cells = [cell for cell in self.all_of(series) if self.spreads[cell].n]
        return sorted(cells, key=lambda cell: -self.spreads[cell].n)

    def _baseline(self, against: str | None) -> int | None:
        """The group's number; None where there is nothing to compare."""
        names = {self.group_name(group): group for group in range(len(self.runs.groups))}
        if against is not None:
            if against not in names:
                known = ", ".join(visible(name, 60) for name in list(names)[:20])
                raise InputError(f"--against {against}: there is no such group; there are {known}")
            return names[against]
        sizes = {
            group: sum(s.n for c, s in self.spreads.items() if self.runs.cells[c].group == group)
            for group in range(len(self.runs.groups))
        }
        return max(sizes, key=lambda group: sizes[group]) if len(sizes) > 1 else None


def compare(cells: Cells) -> list[Comparison]:
    """Every shown group of every series with its baseline."""
    found = []
    for series in range(len(cells.runs.series)):
        if (baseline := cells.baseline(series)) is None:
            continue
        below, below_tokens = cells.runs.sample(baseline, "tuco", "prompt_tokens")
        for cell in cells.of(series):
            if cell == baseline:
                continue
            above, above_tokens = cells.runs.sample(cell, "tuco", "prompt_tokens")
            area = auc(above, below)
            rate = tpr_at_fpr(above, below, FPR, above=area.value >= 0.5)
            buckets = _in_buckets(above, above_tokens, below, below_tokens)
            found.append(Comparison(cell, baseline, area, rate, _pooled(buckets), buckets))
    return found


def of_moments(n: int, mean: float | None, sd: float | None) -> Estimate:
    """A mean with Student's interval, of counts and moments that were added up elsewhere."""
    if not n or mean is None:
        return Estimate(np.nan, np.nan, np.nan, 0)
    if n < 2 or sd is None or np.isnan(sd):
        return Estimate(mean, np.nan, np.nan, n)
    spread = stats.t.ppf((1 + LEVEL) / 2, n - 1) * sd / np.sqrt(n)
    return Estimate(mean, float(mean - spread), float(mean + spread), n)


def _in_buckets(
    above: NDArray[np.float64],
    above_tokens: NDArray[np.float64],
    below: NDArray[np.float64],
    below_tokens: NDArray[np.float64],
) -> list[tuple[float, float, int, int, Estimate]]:
    """AUC in each fifth of the two groups' prompt lengths that has enough of both."""
    lengths = np.concatenate([above_tokens, below_tokens])
    lengths = lengths[np.isfinite(lengths)]
    if not len(lengths):
        return []
    inner = np.quantile(lengths, np.linspace(0, 1, _BUCKETS + 1)[1:-1], method="inverted_cdf")
    edges = np.unique(np.concatenate([[-np.inf], inner, [np.inf]]))
    found = []
    for low, high in pairwise(edges):
        ups, downs = ((t > low) & (t <= high) for t in (above_tokens, below_tokens))
        if min(ups.sum(), downs.sum()) >= _FEWEST:
            inside = lengths[(lengths > low) & (lengths <= high)]
            area = auc(above[ups], below[downs], resamples=300)
            ends = float(inside.min()), float(inside.max())
            found.append((*ends, int(ups.sum()), int(downs.sum()), area))
    return found


def _pooled(buckets: list[tuple[float, float, int, int, Estimate]]) -> Estimate:
    """The buckets' mean, each weighted by what it says (mn / (m + n)), with a normal interval."""
    if not buckets:
        return Estimate(np.nan, np.nan, np.nan, 0)
    weights = np.array([m * n / (m + n) for _, _, m, n, _ in buckets])
    weights /= weights.sum()
    value = float(sum(w * bucket[4].value for w, bucket in zip(weights, buckets, strict=True)))
    wide = np.array([(bucket[4].high - bucket[4].low) / 2 for bucket in buckets])
    spread = float(np.sqrt(((weights * wide) ** 2).sum()))
    n = sum(m + n for _, _, m, n, _ in buckets)
    return Estimate(value, max(0.0, value - spread), min(1.0, value + spread), n)
