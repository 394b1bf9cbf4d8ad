"""Sections on TuCo against another number of the same rows: a column of the input, OutputCo, the reward."""

from tuco_vllm.analysis.report.cells import Cells, of_moments
from tuco_vllm.analysis.report.document import Figure, Section, Table, Value
from tuco_vllm.analysis.report.figures import Line, clouds
from tuco_vllm.analysis.report.groups import binned, correlations, drawn, lead, named

_POINTS = 400


def by_column(cells: Cells) -> Section:
    """TuCo against the column that a person named."""
    name = cells.runs.by
    section = Section("by", "TuCo against a column" if name is None else f"TuCo against {name}")
    if name is None:
        section.left_out = "no column was named (--by COLUMN, for instance the number of shots)"
        return section
    if not cells.runs.has("along"):
        section.left_out = f"no scored row has a number in {name}"
        return section
    section.words.append(
        "Mean TuCo with 95 % intervals, at each value, or in tenths of all rows where there are more than "
        "30; the correlation is Spearman's, within a group. A column that goes with the prompt's length is "
        "confounded with it."
    )
    binned(cells, section, "along", name)
    return section


def output_co(cells: Cells) -> Section:
    """OutputCo against TuCo."""
    section = Section("output_co", "OutputCo against TuCo")
    if not cells.runs.has("output_co"):
        section.left_out = "the runs have no OutputCo (tuco score --output-co)"
        return section
    section.words.append(
        "OutputCo compares the two models' last hidden states, each on a stream of its own (paper §5.5). "
        f"Spearman's correlation is within a group; up to {_POINTS} rows of each are drawn."
    )
    _against(cells, section, "output_co", "OutputCo")
    return section


def reward(cells: Cells) -> Section:
    """The relative reward of the responses, and how it goes with TuCo."""
    section = Section("reward", "Relative reward against TuCo")
    if not cells.runs.has("relative_reward"):
        section.left_out = "the runs have no relative reward (tuco score --relative-reward)"
        return section
    section.words.append(
        "log p of the response under FT less that under PT, summed over its tokens: longer responses have "
        f"more of it, so it is also given per token. Up to {_POINTS} rows of each group are drawn."
    )
    _against(cells, section, "relative_reward", "relative reward")
    query = (
        "SELECT cell, count(*), avg(r), stddev_samp(r) FROM"
        " (SELECT cell, relative_reward / response_tokens AS r FROM rows"
        " WHERE tuco IS NOT NULL AND relative_reward IS NOT NULL AND response_tokens > 0)"
        " GROUP BY cell ORDER BY cell"
    )
    rows: list[tuple[Value, ...]] = [
        (*named(cells, cell), n, of_moments(n, mean, sd)) for cell, n, mean, sd in cells.runs.all(query)
    ]
    section.tables.append(Table("reward_per_token", (*lead(cells), "n", "reward per token"), rows, shown=25))
    return section


def _against(cells: Cells, section: Section, column: str, label: str) -> None:
    """Add a cloud, and a table of means and correlations."""
    for title, shown in drawn(cells):
        groups = []
        for cell in sorted(shown, key=lambda cell: -cells.spreads[cell].n):
            tuco, other = cells.runs.sample(cell, "tuco", column)
            step = max(1, len(tuco) // _POINTS)
            groups.append(Line(cells.name(cell), tuco[::step][:_POINTS], other[::step][:_POINTS]))
        section.figures.append(Figure(clouds(groups, "TuCo", label), f"{label} against TuCo{title}"))
    query = (
        f"SELECT cell, count(*), avg({column}), stddev_samp({column}), avg(tuco) FROM rows"
        f" WHERE tuco IS NOT NULL AND {column} IS NOT NULL GROUP BY cell ORDER BY cell"
    )
    ranks = correlations(cells, column)
    rows: list[tuple[Value, ...]] = [
        (*named(cells, cell), n, of_moments(n, mean, sd), sd, tuco, ranks.get(cell))
        for cell, n, mean, sd, tuco in cells.runs.all(query)
    ]
    headings = (*lead(cells), "n", label, "sd", "mean TuCo", "Spearman")
    section.tables.append(Table(section.name, headings, rows, shown=25))
