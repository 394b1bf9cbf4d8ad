"""Several runs or adapters next to each other, joined on ids: checkpoints of one fine-tuning, say."""

from dataclasses import dataclass

import numpy as np

from tuco_vllm.analysis.report.cells import Cells, of_moments
from tuco_vllm.analysis.report.data import SAMPLED
from tuco_vllm.analysis.report.document import Figure, Section, Table, Value
from tuco_vllm.analysis.report.figures import Line, lines
from tuco_vllm.analysis.statistics import Estimate, spearman

_ONCE = (
    "CREATE OR REPLACE TABLE once AS SELECT series, id, any_value(grp) AS grp, any_value(tuco) AS tuco,"
    " any_value(draw) AS draw FROM rows JOIN cells USING (cell)"
    " WHERE id IS NOT NULL GROUP BY series, id HAVING count(*) = 1 AND count(tuco) = 1"
)
"""Rows whose id is theirs alone in the series."""


@dataclass(frozen=True)
class Pairing:
    """A series against the first: over rows with an id that both have once, scored in both."""

    series: int
    difference: Estimate
    """TuCo less that of the first series, and 95 %."""
    correlation: Estimate


def pair(cells: Cells) -> list[Pairing]:
    """Every series with the first; none where there is one only."""
    runs = cells.runs
    if len(runs.series) < 2:
        return []
    runs.database.execute(_ONCE)
    found = []
    for series in range(1, len(runs.series)):
        joined = _joined(series)
        n, mean, sd = runs.one(
            f"SELECT count(*), avg(b.tuco - a.tuco), stddev_samp(b.tuco - a.tuco) {joined}"
        )
        if n:
            share = min(1.0, SAMPLED / n)
            drawn = runs.database.execute(
                f"SELECT a.tuco AS one, b.tuco AS two {joined} AND a.draw < {share!r}"
            ).fetchnumpy()
            correlation = spearman(drawn["one"], drawn["two"])
            found.append(Pairing(series, of_moments(n, mean, sd), correlation))
    return found


def _joined(series: int) -> str:
    return f"FROM once a JOIN once b USING (id) WHERE a.series = 0 AND b.series = {series}"


def side_by_side(cells: Cells, pairings: list[Pairing]) -> Section:
    """Means of each series, and paired differences from the first."""
    section = Section("side_by_side", "Runs side by side")
    runs = cells.runs
    if len(runs.series) < 2:
        section.left_out = "there is one run, of one fine-tuned model"
        return section
    first = cells.series_name(0)
    section.words.append(
        f"Differences are TuCo less that of “{first}”, row by row where both have the id once and scored it; "
        "means with 95 % intervals. Spearman's correlation says whether the runs order rows alike."
    )
    _means(cells, section)
    if not pairings:
        section.words.append(f"No row of another run has an id of “{first}”: nothing can be paired.")
        return section
    rows: list[tuple[Value, ...]] = [
        (cells.series_name(each.series), each.difference.n, each.difference, each.correlation)
        for each in pairings
    ]
    section.tables.append(Table("paired", ("run", "rows in both", "difference", "Spearman"), rows))
    _by_group(cells, section)
    return section


def _means(cells: Cells, section: Section) -> None:
    """The mean of every group in every series: a curve a group."""
    runs = cells.runs
    count = len(runs.series)
    of_group: dict[int, list[Estimate]] = {}
    nothing = Estimate(np.nan, np.nan, np.nan, 0)
    for number, cell in enumerate(runs.cells):
        s = cells.spreads[number]
        means = of_group.setdefault(cell.group, [nothing] * count)
        means[cell.series] = of_moments(s.n, s.mean, s.sd)
    groups = sorted(of_group, key=lambda group: -sum(mean.n for mean in of_group[group]))
    curves = []
    for group in groups:
        means = of_group[group]
        x = np.arange(1, count + 1)
        y, low, high = ([getattr(mean, end) for mean in means] for end in ("value", "low", "high"))
        curves.append(Line(cells.group_name(group), x, y, low, high))
    caption = "Mean TuCo of each group in each run; " + ", ".join(
        f"{number + 1}: {cells.series_name(number)}" for number in range(min(count, 12))
    )
    section.figures.append(Figure(lines(curves, "run", "mean TuCo", whole_x=True), caption))
    rows: list[tuple[Value, ...]] = [
        (cells.group_name(group), cells.series_name(series), mean.n, mean)
        for group in groups
        for series, mean in enumerate(of_group[group])
    ]
    section.tables.append(Table("runs", ("group", "run", "n", "TuCo"), rows, shown=30))


def _by_group(cells: Cells, section: Section) -> None:
    rows: list[tuple[Value, ...]] = []
    for series in range(1, len(cells.runs.series)):
        query = (
            "SELECT a.grp, count(*), avg(a.tuco), avg(b.tuco), avg(b.tuco - a.tuco),"
            f" stddev_samp(b.tuco - a.tuco) {_joined(series)} GROUP BY a.grp ORDER BY a.grp"
        )
        for group, n, one, two, mean, sd in cells.runs.all(query):
            name = cells.series_name(series)
            rows.append((name, cells.group_name(group), n, one, two, of_moments(n, mean, sd)))
    headings = ("run", "group", "rows in both", "mean of the first", "mean", "difference")
    section.tables.append(Table("paired_by_group", headings, rows, shown=30))
