"""Sections on groups: how TuCo is distributed, how well it tells them apart, and what length explains."""

from tuco_vllm.analysis.database import quantiles
from tuco_vllm.analysis.report.cells import FPR, LARGEST, SHARES, Cells, Comparison, of_moments
from tuco_vllm.analysis.report.data import SAMPLED
from tuco_vllm.analysis.report.document import Figure, Section, Table, Value
from tuco_vllm.analysis.report.figures import Box, Line, boxes, lines
from tuco_vllm.analysis.statistics import Estimate, spearman
from tuco_vllm.records import SCALARS

MOST_SERIES = 6
"""Of so many runs or adapters figures by group are drawn; of the others only tables."""
_DOTS = 300
_BINS = 10
_EACH, _ROWS_SHOWN = 30, 24


def lead(cells: Cells) -> tuple[str, ...]:
    """The headings that name a cell."""
    return ("group",) if len(cells.runs.series) == 1 else ("run", "group")


def named(cells: Cells, cell: int) -> tuple[str, ...]:
    """A cell's names, below ``lead``."""
    name = cells.name(cell)
    series = cells.runs.cells[cell].series
    return (name,) if len(cells.runs.series) == 1 else (cells.series_name(series), name)


def drawn(cells: Cells) -> list[tuple[str, list[int]]]:
    """What has figures of its own: a series, ": NAME" where there are several, and its cells."""
    series = [each for each in range(len(cells.runs.series)) if cells.of(each)]
    several = len(cells.runs.series) > 1
    return [(f": {cells.series_name(s)}" if several else "", cells.of(s)) for s in series[:MOST_SERIES]]


def distribution(cells: Cells) -> Section:
    """TuCo by group: counts, mean, deviation, quantiles; over all scored rows."""
    section = Section("distribution", "TuCo by group")
    if not cells.scored:
        section.left_out = "no row was scored"
        return section
    kind = "exact, at nearest rank" if cells.exact else "a t-digest's, about right"
    section.words.append(
        "Boxes hold the middle half, their line is the median, whiskers reach from 5 to 95 %, the diamond is "
        f"the mean; dots are up to {_DOTS} rows each. Means have 95 % intervals; quantiles are {kind}."
    )
    if others := cells.left_out():
        section.words.append(
            f"Of each run the {LARGEST} largest groups are shown; {others} others are in the CSV table only."
        )
    for title, shown in drawn(cells):
        rows = []
        for cell in shown:
            spread = cells.spreads[cell]
            [points] = cells.runs.sample(cell, "tuco")
            step = max(1, len(points) // _DOTS)
            rows.append(Box(cells.name(cell), spread.quantiles, spread.mean, points[::step][:_DOTS]))
        section.figures.append(Figure(boxes(rows, "TuCo"), f"TuCo by group{title}"))
    found: list[tuple[Value, ...]] = []
    shown_first = [cell for s in range(len(cells.runs.series)) for cell in cells.of(s)]
    for cell in [*shown_first, *sorted(cells.spreads.keys() - set(shown_first))]:
        s = cells.spreads[cell]
        if s.n:
            mean = of_moments(s.n, s.mean, s.sd)
            found.append((*named(cells, cell), s.n, mean, s.sd, s.low, *s.quantiles, s.high))
    names = tuple(f"{share:.0%}" for share in SHARES)
    headings = (*lead(cells), "n", "mean", "sd", "min", *names, "max")
    section.tables.append(Table("distribution", headings, found, shown=len(shown_first)))
    section.tables += _measures(cells)
    return section


def _measures(cells: Cells) -> list[Table]:
    """Means of the other numbers that a row has."""
    columns = [name for name in SCALARS if name not in ("tuco", "preco")]
    averages = ", ".join(f"avg({name})" for name in columns)
    query = f"SELECT cell, {averages} FROM rows WHERE tuco IS NOT NULL GROUP BY cell ORDER BY cell"
    rows: list[tuple[Value, ...]] = [(*named(cells, cell), *means) for cell, *means in cells.runs.all(query)]
    there = [
        place for place, _ in enumerate(columns) if any(row[place - len(columns)] is not None for row in rows)
    ]
    if not there:
        return []
    first = len(lead(cells))
    kept = [(*row[:first], *(row[first + place] for place in there)) for row in rows]
    headings = (*lead(cells), *(columns[place] for place in there))
    return [
        Table(
            "measures",
            headings,
            kept,
            "Means of the other measures (tuco_vllm/corpus/README.md says what they are).",
            shown=25,
        )
    ]


def separation(cells: Cells, comparisons: list[Comparison]) -> Section:
    """AUC of every group against the baseline, with equal lengths too."""
    section = Section("separation", "How well TuCo tells groups apart")
    if not comparisons:
        one = (
            "no column of groups was named, and there is none called group"
            if cells.runs.group is None
            else ""
        )
        section.left_out = one or "fewer than two groups have scored rows"
        return section
    baseline = cells.name(comparisons[0].baseline)
    section.words += [
        f"AUC is the chance that a row of the group has a higher TuCo than one of “{baseline}”; below 0.5 "
        f"the group's TuCo is lower. TPR is the share of the group that a threshold catches which {FPR:.0%} "
        f"of “{baseline}” pass, in the direction named. Intervals are 95 %, one by one. Of groups larger "
        f"than {SAMPLED:,} rows a random sample of about that many is compared.",
        "“At equal length” is the AUC within fifths of prompt length, pooled: where it falls back to 0.5, "
        "length is what tells the groups apart; where it is missing, no fifth has five rows of both, and the "
        "two cannot be told apart from their lengths.",
    ]
    rows: list[tuple[Value, ...]] = []
    pieces: list[tuple[Value, ...]] = []
    for each in comparisons:
        name = named(cells, each.cell)
        shared = sum(bucket[2] for bucket in each.buckets)
        n = each.auc.n
        rows.append((*name, n, each.direction, each.auc, each.tpr, each.matched, shared))
        for low, high, ups, downs, area in each.buckets:
            pieces.append((*name, low, high, ups, downs, area))
    columns = ("n", "TuCo is", "AUC", "TPR", "AUC at equal length", "rows of equal length")
    section.tables.append(Table("auc", (*lead(cells), *columns), rows, shown=LARGEST * MOST_SERIES))
    if pieces:
        ends = ("shortest", "longest", "n", "n baseline", "AUC")
        section.tables.append(Table("auc_by_length", (*lead(cells), *ends), pieces, shown=0))
    return section


def length(cells: Cells) -> Section:
    """TuCo against the prompt's length."""
    section = Section("length", "TuCo against prompt length")
    if not cells.scored or not cells.runs.has("prompt_tokens"):
        section.left_out = "no row was scored" if not cells.scored else "rows have no prompt_tokens"
        return section
    [low, high] = cells.runs.one(
        "SELECT min(prompt_tokens), max(prompt_tokens) FROM rows WHERE tuco IS NOT NULL"
    )
    if low == high:
        section.left_out = f"all prompts have {low:,.0f} tokens"
        return section
    section.words.append(
        "Mean TuCo, with 95 % intervals, in tenths of all prompts by length (at each length where there are "
        "up to 30); the correlation is Spearman's, within a group."
    )
    binned(cells, section, "prompt_tokens", "prompt tokens", log_x=low > 0 and high / low > 8)
    return section


def correlations(cells: Cells, column: str) -> dict[int, Estimate]:
    """Spearman's between TuCo and a column, within each shown cell."""
    found = {}
    for series in range(len(cells.runs.series)):
        for cell in cells.of(series):
            tuco, other = cells.runs.sample(cell, "tuco", column)
            found[cell] = spearman(other, tuco)
    return found


def binned(cells: Cells, section: Section, column: str, label: str, *, log_x: bool = False) -> None:
    """Add the curve of mean TuCo over a column: at each value if there are few, else in tenths of rows."""
    runs = cells.runs
    known = f"FROM rows WHERE tuco IS NOT NULL AND {column} IS NOT NULL"
    few = runs.all(f"SELECT DISTINCT {column} {known} LIMIT {_EACH + 1}")
    place = column
    if len(few) > _EACH:
        shares = tuple(step / _BINS for step in range(1, _BINS))
        [edges] = runs.one(f"SELECT {quantiles(column, shares, cells.exact)} {known}")
        place = " + ".join(f"CAST({column} > {edge!r} AS INTEGER)" for edge in sorted(set(map(float, edges))))
    query = (
        f"SELECT cell, {place} AS bin, min({column}), max({column}), avg({column}), count(*), avg(tuco),"
        f" stddev_samp(tuco) {known} GROUP BY cell, bin ORDER BY cell, bin"
    )
    points: dict[int, list[tuple[float, float, float, int, Estimate]]] = {}
    for cell, _, low, high, middle, n, mean, sd in runs.all(query):
        points.setdefault(cell, []).append((low, high, middle, n, of_moments(n, mean, sd)))
    for title, shown in drawn(cells):
        curves = []
        for cell in sorted(shown, key=lambda cell: -cells.spreads[cell].n):
            found = points.get(cell, [])
            means = [point[4] for point in found]
            y, down, up = ([getattr(mean, end) for mean in means] for end in ("value", "low", "high"))
            curves.append(Line(cells.name(cell), [point[2] for point in found], y, down, up))
        section.figures.append(
            Figure(lines(curves, label, "mean TuCo", log_x=log_x), f"Mean TuCo by {label}{title}")
        )
    correlated: list[tuple[Value, ...]] = [
        (*named(cells, cell), found.n, found)
        for cell, found in correlations(cells, column).items()
        if found.n
    ]
    name = f"{section.name}_correlation"
    section.tables.append(Table(name, (*lead(cells), "n", "Spearman"), correlated, shown=25))
    each = len(few) <= _EACH
    rows: list[tuple[Value, ...]] = []
    for cell, found in points.items():
        for low, high, middle, n, mean in found:
            place_of = (low,) if each else (low, high, middle)
            rows.append((*named(cells, cell), *map(_whole, place_of), n, mean))
    headings = (label,) if each else ("from", "to", f"mean {label}")
    few_rows = len(rows) <= _ROWS_SHOWN
    name = f"by_{section.name}" if section.name != "by" else "by"
    section.tables.append(
        Table(name, (*lead(cells), *headings, "n", "TuCo"), rows, shown=len(rows) if few_rows else 0)
    )


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() and abs(value) < 1e15 else value
