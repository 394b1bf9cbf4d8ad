"""The tables that close a sweep, and effects.csv with all that is in them."""

import csv
import io
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuco_vllm.analysis.effects import (
    FOLDS,
    LEVEL,
    MACRO,
    MAX,
    MIN,
    ROWS,
    Accuracy,
    Effect,
    accuracies,
    effects,
)
from tuco_vllm.analysis.effects_read import MAIN, Answers, Cell, read_answers
from tuco_vllm.store import Store

EFFECTS = "effects.csv"

_REASONS_SHOWN = 5
_TEXT_SHOWN = 60
_WIDTH = 140
"""Columns where nobody says how many there are: a pipe, a file."""
_LITTLE_MASS = 0.01
"""Median probability of all options below which the model would have said something else."""

_CSV = (
    *("dataset", "first_layer", "last_layer", "scope", "name", "what", "alpha", "n"),
    *("value", "low", "high", "delta", "p", "p_holm", "gained", "lost", "mass", "tied"),
)


@dataclass(frozen=True)
class Found:
    """A sweep's answers and what they say, of each cell."""

    answers: Answers
    cells: list[tuple[Cell, list[Accuracy], list[Effect]]]

    @property
    def errors(self) -> int:
        """Rows with an error."""
        return self.answers.errors


def find_effects(store: Store) -> Found:
    """Read a sweep and test it. Raises InputError where there is none."""
    answers = read_answers(store)
    cells = [(cell, accuracies(cell), [*effects(cell, MAX), *effects(cell, MIN)]) for cell in answers.cells]
    return Found(answers, cells)


def print_effects(found: Found, console: Console | None = None) -> None:
    """Print a sweep's tables on stdout: accuracy by alpha, cost beside it, what a chosen alpha is worth."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    answers = found.answers
    lines = [f"{plain(answers.where, 200)}: {answers.rows:,} answers, {answers.errors:,} errors"]
    if answers.chunks_missing:
        lines.append(f"unfinished: {answers.chunks_missing:,} chunks of questions have no answers yet")
    reasons = answers.reasons.most_common(_REASONS_SHOWN)
    lines += [f"  {count:,} x {plain(reason, 150)}" for reason, count in reasons]
    console.print(Text("\n".join(lines)))
    for cell, own, tested in found.cells:
        if cell.dataset == MAIN and cell.tasks:
            costs = [
                each for each in found.cells if each[0].dataset != MAIN and _layers(each[0]) == _layers(cell)
            ]
            console.print(_by_alpha([(cell, own), *(each[:2] for each in costs)]))
            console.print(_choices(cell, tested))
    for cell, own, _ in found.cells:
        for note in _notes(cell, own):
            console.print(Text(note, style="yellow"))


def save_effects(store: Store, found: Found) -> None:
    """Write effects.csv, unless it is there and the same."""
    data = effects_csv(found)
    if store.read(EFFECTS) != data:
        store.replace(EFFECTS, data)


def effects_csv(found: Found) -> bytes:
    """A line a figure. ``what`` is accuracy, at ``alpha``; or chosen-max or chosen-min: then ``value`` is Δ,
    and ``alpha`` says in how many folds which was chosen."""
    text = io.StringIO()
    lines = csv.DictWriter(text, _CSV, lineterminator="\n")
    lines.writeheader()
    for cell, own, tested in found.cells:
        where = {"dataset": cell.dataset, "first_layer": cell.first_layer, "last_layer": cell.last_layer}
        for each in own:
            figures = {name: getattr(each, name) for name in _CSV if hasattr(each, name)}
            lines.writerow({**where, "what": "accuracy", **figures})
        for effect in tested:
            figures = {name: getattr(effect, name) for name in _CSV if hasattr(effect, name)}
            alpha = " ".join(f"{value:g}:{count}" for value, count in effect.chosen.items())
            kind = {
                "what": f"chosen-{effect.direction}",
                "alpha": alpha,
                "value": effect.delta,
                "delta": None,
            }
            lines.writerow({**where, **figures, **kind})
    return text.getvalue().encode()


def plain(text: str, longest: int = _TEXT_SHOWN) -> str:
    """A text that strangers wrote, for a terminal: one line, nothing in it a command."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return words if len(words) <= longest else words[: longest - 1] + "…"


def _by_alpha(columns: list[tuple[Cell, list[Accuracy]]]) -> Table:
    """Effect, and cost where there is a utility, side by side."""
    cell = columns[0][0]
    table = Table(title=Text(f"Accuracy by α, layers {_layers(cell)}"), title_justify="left")
    table.add_column("α", justify="right")
    for each, _ in columns:
        name = "rows" if each.dataset == MAIN else each.dataset
        for heading in (f"{name} [{LEVEL:.0%}]", "Δ", "over tasks", "p(options)"):
            table.add_column(heading, justify="right")
    for alpha in cell.alphas:
        table.add_row(f"{alpha:g}", *(text for _, own in columns for text in _accuracy_cells(own, alpha)))
    counts = "; ".join(f"{each.dataset}: {_counts(each)}" for each, _ in columns)
    table.caption = Text(
        f"{counts}. Δ is on all rows here, where the best of several α is partly the luckiest: see below"
    )
    table.caption_justify = "left"
    return table


def _accuracy_cells(figures: list[Accuracy], alpha: float) -> list[str]:
    by_scope = {each.scope: each for each in figures if each.alpha == alpha and each.scope in (ROWS, MACRO)}
    if (rows := by_scope.get(ROWS)) is None:
        return ["", "", "", ""]
    macro = by_scope.get(MACRO)
    delta = "" if alpha == 1.0 else f"{rows.delta:+.3f}"
    share = f"{rows.value:.3f} [{rows.low:.3f}, {rows.high:.3f}]"
    return [share, delta, "" if macro is None else f"{macro.value:.3f}", f"{rows.mass:.2g}"]


def _choices(cell: Cell, tested: list[Effect]) -> Table:
    title = f"α chosen on four folds, Δ against α = 1 on the fifth, layers {_layers(cell)}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("of", overflow="fold")
    table.add_column("chosen for")
    for heading in ("n", "α (folds)", f"Δ [{LEVEL:.0%}]", "p"):
        table.add_column(heading, justify="right")
    table.add_column("effect")
    pairs: dict[tuple[str, str], list[Effect]] = {}
    for effect in tested:
        pairs.setdefault((effect.scope, effect.name), []).append(effect)
    for (scope, name), both in pairs.items():
        label = {ROWS: "all rows", MACRO: "all tasks alike"}.get(scope, f"{scope} {plain(name)}")
        for place, effect in enumerate(both):
            table.add_row(Text("" if place else label), *_effect_cells(effect))
    table.caption = Text(
        "p: McNemar's exact test, of tasks after Holm's correction over them, of the others without one. "
        "Interval: paired bootstrap over rows, the chosen α given, uncorrected. Of equally good α the one "
        "nearest to 1 is chosen"
    )
    table.caption_justify = "left"
    return table


def _effect_cells(effect: Effect) -> list[str]:
    wanted = "highest" if effect.direction == MAX else "lowest"
    if effect.delta is None:
        return [wanted, f"{effect.n:,}", "", "", "", verdict(effect)]
    most = max(effect.chosen, key=lambda alpha: (effect.chosen[alpha], -abs(alpha - 1.0)))
    share = f"{most:g} ({effect.chosen[most]}/{sum(effect.chosen.values())})"
    p = "" if effect.decides is None else f"{effect.decides:.2g}"
    interval = f"{effect.delta:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]"
    return [wanted, f"{effect.n:,}", share, interval, p, verdict(effect)]


def verdict(effect: Effect) -> str:
    """What a reader may take from an effect, in words."""
    if effect.delta is None or effect.low is None or effect.high is None:
        return f"too few rows for {FOLDS} folds"
    if set(effect.chosen) == {1.0}:
        return "none: 1 is chosen"
    if not effect.gained + effect.lost:
        return "none: no answer changed"
    p = effect.decides  # a mean over tasks has an interval only
    is_seen = not effect.low <= 0 <= effect.high if p is None else p < 1 - LEVEL
    return ("higher" if effect.delta > 0 else "lower") if is_seen else "none seen"


def _notes(cell: Cell, own: list[Accuracy]) -> list[str]:
    rows = [each for each in own if each.scope == ROWS]
    where = f"{cell.dataset}, layers {_layers(cell)}"
    notes = []
    if not rows:
        notes.append(f"{where}: no question was answered at every α: there is nothing to compare")
    if rows and (low := min(rows, key=lambda each: each.mass)).mass < _LITTLE_MASS:
        notes.append(
            f"{where}: the options together have probability {low.mass:.1g} (median, α = {low.alpha:g}). "
            "The model would have said something else: look at prompt, template and the spaces before options"
        )
    if tied := sum(each.tied for each in rows):
        notes.append(
            f"{where}: {tied:,} answers are the first of equally probable ones, as in 16 bits happens"
        )
    return notes


def _counts(cell: Cell) -> str:
    out = f", {cell.left_out:,} left out" if cell.left_out else ""
    again = len(cell.questions) - len(set(zip(cell.tasks, cell.questions, strict=True)))
    repeated = f", {again:,} repeated" if again else ""
    return f"{len(cell.tasks):,} questions of {len(set(cell.tasks)):,} tasks{out}{repeated}"


def _layers(cell: Cell) -> str:
    return f"{cell.first_layer} to {cell.last_layer}"
