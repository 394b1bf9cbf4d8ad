"""What a grid of alphas does to accuracy, and whether chance would do as much.

Accuracy at each alpha is a share, with Wilson's interval. To *choose* an alpha by it and report its accuracy
would be to report the luckiest, so the choice is cross-validated, as in the paper's §5.1: each task's
questions are dealt into 5 folds, the alpha is the best (or the worst) on four of them, and the fifth says
what it is worth: d = correct(chosen) − correct(1) of each question, −1, 0 or 1, out of fold. Then

    Δ       the mean of d: of a task, of all questions of a group or of all ("rows"), or the mean over tasks
            of their Δ, where every task counts alike ("macro")
    [ , ]   95 %, a paired bootstrap over questions, within tasks, given the chosen alphas. d takes three
            values, so to resample n questions is a multinomial draw of their counts
    p       McNemar's exact test, two-sided: of the questions that changed, as many to the better as to the
            worse. Of tasks also Holm's correction over the tasks of one range and direction; groups and all
            questions are tested once each, without a correction

Of alphas that are equally good the one nearest to 1 is chosen, of two so near the smaller. Equal questions of
a task are in one fold. A task with fewer than 5 different questions has no choice, and counts in none.
"""

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tuco_vllm.analysis.effects_read import Bools, Cell, Floats

FOLDS = 5
LEVEL = 0.95
RESAMPLES = 9_999
SEED = 0
"""Of folds and of resampling: a table is the same each time."""

MAX, MIN = "max", "min"
TASK, GROUP, ROWS, MACRO = "task", "group", "rows", "macro"

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Accuracy:
    """How often the answer was right at one alpha."""

    scope: str
    name: str
    alpha: float
    n: int
    value: float
    low: float
    high: float
    delta: float
    """Against alpha = 1 on the same questions. This is the curve, not a chosen alpha's worth."""
    mass: float
    """Median probability of all options together."""
    tied: int
    """Answers that were the first of equally probable ones."""


@dataclass(frozen=True)
class Effect:
    """What choosing alpha is worth, out of fold. None where there is nothing to say it by."""

    scope: str
    name: str
    direction: str
    n: int
    chosen: dict[float, int]
    """Alpha -> in how many folds (of how many tasks) it was chosen."""
    delta: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    gained: int = 0
    lost: int = 0

    @property
    def decides(self) -> float | None:
        """The p that a verdict is by: corrected where there is a correction."""
        return self.p if self.p_holm is None else self.p_holm


def accuracies(cell: Cell) -> list[Accuracy]:
    """At every alpha: of all questions, over tasks, of each group and of each task."""
    found = [] if not len(cell.tasks) else _accuracies(cell, ROWS, "", np.arange(len(cell.tasks)))
    by_task = _places(cell.tasks)
    if len(by_task) > 1:
        found += _macro_accuracies(cell, list(by_task.values()))
    for scope, places in ((GROUP, _places(cell.groups)), (TASK, by_task)):
        for name, rows in places.items():
            found += _accuracies(cell, scope, name, rows)
    return found


def effects(cell: Cell, direction: str) -> list[Effect]:
    """Out-of-fold Δ of the ``direction`` "max" or "min": of all, of each group and of each task."""
    by_task = _places(cell.tasks)
    differences = np.zeros(len(cell.tasks), dtype=np.int64)
    choices: dict[str, list[float]] = {}
    for task, rows in by_task.items():
        folds = folds_of([cell.questions[row] for row in rows], task)
        if folds is not None:
            chosen = chosen_alphas(cell.correct[rows], cell.alphas, folds, direction)
            picked = cell.correct[rows, np.array(chosen)[folds]].astype(np.int64)
            differences[rows] = picked - cell.correct[rows, cell.ft]
            choices[task] = [cell.alphas[place] for place in chosen]

    def of(scope: str, name: str, wanted: Ints) -> Effect | None:
        parts = {task: np.intersect1d(wanted, rows) for task, rows in by_task.items() if task in choices}
        samples = [differences[rows] for rows in parts.values() if len(rows)]
        made = [alpha for task, rows in parts.items() if len(rows) for alpha in choices[task]]
        return _effect(scope, name, direction, samples, made) if samples else None

    everything = np.arange(len(cell.tasks))
    wholes = [of(ROWS, "", everything), of(MACRO, "", everything) if len(choices) > 1 else None]
    groups = [of(GROUP, name, rows) for name, rows in _places(cell.groups).items()]
    tasks = [
        of(TASK, task, rows) or Effect(TASK, task, direction, len(rows), {}) for task, rows in by_task.items()
    ]
    return [*(each for each in (*wholes, *groups) if each is not None), *_with_holm(tasks)]


def folds_of(questions: Sequence[str], task: str) -> Ints | None:
    """The fold of each question, 0 to 4; equal ones share theirs. None where there are too few.

    Depends on the task's name and its different questions alone, not on their order.
    """
    different = sorted(set(questions))
    if len(different) < FOLDS:
        return None
    draw = np.random.default_rng([SEED, zlib.crc32(task.encode())])
    fold = dict(zip(different, (draw.permutation(len(different)) % FOLDS).tolist(), strict=True))
    return np.array([fold[question] for question in questions])


def chosen_alphas(correct: Bools, alphas: Sequence[float], folds: Ints, direction: str) -> list[int]:
    """Of each fold the place of the alpha that is best, or worst, on the other folds."""
    places = []
    for fold in range(FOLDS):
        right = correct[folds != fold].sum(axis=0)
        wanted = right.max() if direction == MAX else right.min()
        equal = [place for place in range(len(alphas)) if right[place] == wanted]
        # 1.05 and 0.95 are equally near, whatever floats say.
        places.append(min(equal, key=lambda place: (round(abs(alphas[place] - 1.0), 9), alphas[place])))
    return places


def bootstrap(samples: Sequence[Ints], *, macro: bool) -> tuple[float, float]:
    """The 95 % interval of the mean of −1, 0 and 1: each sample is resampled by itself, then all means are
    weighed by their sizes or, for ``macro``, alike."""
    draw = np.random.default_rng([SEED, *(len(sample) for sample in samples)])
    total = sum(len(sample) for sample in samples)
    means: Floats = np.zeros(RESAMPLES)
    for sample in samples:
        counts = [int((sample == value).sum()) for value in (-1, 0, 1)]
        drawn = draw.multinomial(len(sample), np.array(counts) / len(sample), size=RESAMPLES)
        weight = 1 / (len(samples) * len(sample)) if macro else 1 / total
        means += (drawn[:, 2] - drawn[:, 0]) * weight
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's (1979) correction: each p, from the smallest up, times how many are left; never falling."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, values[place] * (len(values) - rank)))
        corrected[place] = highest
    return corrected


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    interval = stats.binomtest(right, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def _effect(scope: str, name: str, direction: str, samples: list[Ints], chosen: list[float]) -> Effect:
    pooled = np.concatenate(samples)
    gained, lost = int((pooled == 1).sum()), int((pooled == -1).sum())
    macro = scope == MACRO
    delta = float(np.mean([sample.mean() for sample in samples]) if macro else pooled.mean())
    low, high = bootstrap(samples, macro=macro)
    changed = gained + lost
    p = float(stats.binomtest(gained, changed).pvalue) if changed else 1.0
    counts = dict(sorted(Counter(chosen).items()))
    # McNemar's test weighs questions alike, so it is not of the mean over tasks.
    return Effect(
        *(scope, name, direction, len(pooled), counts, delta, low, high),
        p=None if macro else p,
        gained=gained,
        lost=lost,
    )


def _with_holm(found: list[Effect]) -> list[Effect]:
    tested = [effect.p for effect in found if effect.p is not None]
    corrected = iter(holm(tested))
    return [effect if effect.p is None else replace(effect, p_holm=next(corrected)) for effect in found]


def _accuracies(cell: Cell, scope: str, name: str, rows: Ints) -> list[Accuracy]:
    correct, n = cell.correct[rows], len(rows)
    shares = correct.mean(axis=0)
    return [
        Accuracy(
            *(scope, name, alpha, n, float(shares[place])),
            *wilson(int(correct[:, place].sum()), n),
            float(shares[place] - shares[cell.ft]),
            float(np.median(cell.mass[rows, place])),
            int(cell.tied[rows, place].sum()),
        )
        for place, alpha in enumerate(cell.alphas)
    ]


def _macro_accuracies(cell: Cell, tasks: list[Ints]) -> list[Accuracy]:
    """Means over tasks; the interval resamples the questions of each."""
    shares = np.array([cell.correct[rows].mean(axis=0) for rows in tasks])  # [tasks, A]
    means = shares.mean(axis=0)
    found = []
    for place, alpha in enumerate(cell.alphas):
        low, high = bootstrap([cell.correct[rows, place].astype(np.int64) for rows in tasks], macro=True)
        delta = float(means[place] - means[cell.ft])
        mass = math.fsum(float(np.median(cell.mass[rows, place])) for rows in tasks) / len(tasks)
        n, tied = len(cell.tasks), int(cell.tied[:, place].sum())
        found.append(Accuracy(MACRO, "", alpha, n, float(means[place]), low, high, delta, mass, tied))
    return found


def _places(names: Sequence[str | None]) -> dict[str, Ints]:
    """Name -> where it stands, in order of first appearance; None is no name."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if name is not None:
            places.setdefault(name, []).append(place)
    return {name: np.array(rows) for name, rows in places.items()}
