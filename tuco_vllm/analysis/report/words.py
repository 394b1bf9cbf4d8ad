"""The report's first paragraphs: the main finding in words, and what it does not show."""

from tuco_vllm.analysis.report.cells import Cells, Comparison
from tuco_vllm.analysis.report.document import shown, visible
from tuco_vllm.analysis.report.side_by_side import Pairing

_NAME = 60


def main_finding(cells: Cells, comparisons: list[Comparison], pairings: list[Pairing]) -> list[str]:
    """A paragraph of what was found, and one of what that leaves open."""
    if not cells.scored:
        return ["No row has a score: there is nothing to find here. The reasons are below."]
    runs = len(cells.runs.sources)
    begin = f"{cells.scored:,} rows of {'one run' if runs == 1 else f'{runs} runs'} have a score."
    if comparisons:
        found, open_questions = _of_groups(cells, comparisons)
    else:
        found, open_questions = _of_one(cells)
    if pairings:
        found += " " + _of_runs(cells, pairings)
    return [f"{begin} {found}", open_questions]


def _of_groups(cells: Cells, comparisons: list[Comparison]) -> tuple[str, str]:
    best = max(comparisons, key=lambda each: abs(each.auc.value - 0.5))
    group, baseline = (f"“{visible(cells.name(cell), _NAME)}”" for cell in (best.cell, best.baseline))
    means = (cells.spreads[cell].mean for cell in (best.cell, best.baseline))
    one, two = map(shown, means)
    where = ""
    if len(cells.runs.series) > 1:
        where = f" (in {visible(cells.series_name(cells.runs.cells[best.cell].series), _NAME)})"
    if best.auc.low <= 0.5 <= best.auc.high:
        found = (
            f"TuCo does not tell any group from {baseline} with certainty: the largest difference is that of "
            f"{group}{where}, AUC {shown(best.auc)}, an interval that holds 0.5."
        )
    else:
        found = (
            f"TuCo is {best.direction} in {group} than in {baseline}{where}: means of {one} and {two}, AUC "
            f"{shown(best.auc)} (0.5 is chance)."
        )
        found += _at_equal_length(best)
    doubts = (
        "This does not show why the groups differ: whatever else goes with a group, its template, length, "
        "language or likeness to what the model was tuned on, may be the reason; and it is a finding on "
        "these rows and this pair of models."
    )
    if len(comparisons) > 1:
        doubts += (
            f" It is the largest of {len(comparisons)} comparisons, and such a one is flattered: "
            "its interval does not know of the others."
        )
    return found, doubts


def _at_equal_length(best: Comparison) -> str:
    matched = best.matched
    if not matched.n:
        return (
            " Too few of their prompts are of about equal length to compare those, so length alone may be "
            "what is seen."
        )
    text = f" Among prompts of about equal length the AUC is {shown(matched)}"
    away, left = abs(best.auc.value - 0.5), (matched.value - 0.5) * (1 if best.auc.value > 0.5 else -1)
    if matched.low <= 0.5 <= matched.high or left < 0.5 * away:
        return f"{text}: much of the difference goes with length."
    return f"{text}, so length is not the whole of it."


def _of_one(cells: Cells) -> tuple[str, str]:
    ranges = []
    for series in range(len(cells.runs.series)):
        for cell in cells.of(series)[:1]:
            s = cells.spreads[cell]
            low, middle, high = s.quantiles[0], s.quantiles[2], s.quantiles[4]
            name = f" in {visible(cells.series_name(series), _NAME)}" if len(cells.runs.series) > 1 else ""
            ranges.append(
                f"half lie below {shown(middle)}{name}, nine of ten between {shown(low)} and {shown(high)}"
            )
    found = f"Of TuCo {'; '.join(ranges[:4])}."
    return found, (
        "A level of TuCo by itself shows little: it depends on the pair of models, the template and the "
        "prompts' length. Compare groups of prompts (--group COLUMN) or runs of the same prompts."
    )


def _of_runs(cells: Cells, pairings: list[Pairing]) -> str:
    best = max(pairings, key=lambda each: abs(each.difference.value))
    first, name = (f"“{visible(cells.series_name(series), _NAME)}”" for series in (0, best.series))
    change = best.difference
    verb = "higher" if change.value > 0 else "lower"
    if not change.low > 0 and not change.high < 0:
        return (
            f"Row by row, {name} does not differ from {first} with certainty "
            f"({shown(change)} in {change.n:,} rows)."
        )
    by = f"by {shown(change)} in {change.n:,} rows with one id"
    return f"Row by row, TuCo is {verb} in {name} than in {first}: {by}."
