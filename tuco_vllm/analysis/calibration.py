"""From clean rows to thresholds: at most a stated share of clean prompts is flagged.

A threshold is an order statistic of clean scores, and needs no distribution of them (split conformal
prediction, Vovk et al. 2005): of n clean rows it is the k-th from the flagged side, k = floor(fpr (n + 1)),
and only what lies beyond it is flagged. Of the rows themselves at most fpr are then flagged, and a *new*
clean prompt is with a chance of at most fpr. Its interval is exact as well: two order statistics that hold
the clean prompts' own quantile in 95 % of samples.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tuco_vllm.analysis.calibration_rows import Scored, Wanted, written
from tuco_vllm.analysis.statistics import LEVEL, Estimate, allowed, auc, proportion
from tuco_vllm.errors import InputError

Floats = NDArray[np.float64]

_TAIL = (1 - LEVEL) / 2
_FOLDS = 5


@dataclass(frozen=True)
class Threshold:
    """For prompts of ``shortest`` to ``longest`` tokens what is flagged, and how clean ones fared."""

    shortest: int
    longest: int
    value: float
    low: float | None
    """The 95 % interval of the clean prompts' quantile; None for an end that so few rows do not give."""
    high: float | None
    rows: int
    flagged: int
    """Of the clean rows."""
    held_out: int | None
    """Clean rows that a threshold made without them would flag; None where too few would be left for one."""


@dataclass(frozen=True)
class Judged:
    """What the thresholds say of rows that did not make them."""

    name: str
    rows: int
    flagged: int
    beyond: int
    """Rows shorter or longer than every clean one: without a threshold, and in no share."""

    @property
    def share(self) -> Estimate:
        """Of the rows that have a threshold, those flagged: under this threshold, as it is."""
        return proportion(self.flagged, self.rows - self.beyond)


@dataclass(frozen=True)
class Form:
    """The thresholds of prompts of one form, and what they do."""

    template: str | None
    thresholds: tuple[Threshold, ...]
    attack: Judged | None
    auc: Estimate | None
    """Chance that an attack's score is further on the flagged side than a clean row's."""
    controls: tuple[Judged, ...]

    @property
    def clean(self) -> Estimate:
        """Share of clean rows that is flagged."""
        return proportion(
            sum(each.flagged for each in self.thresholds), sum(each.rows for each in self.thresholds)
        )

    @property
    def held_out(self) -> Estimate:
        """Share of clean rows that thresholds made without them would flag; NaN without such thresholds."""
        judged = [each for each in self.thresholds if each.held_out is not None]
        return proportion(sum(each.held_out or 0 for each in judged), sum(each.rows for each in judged))


@dataclass(frozen=True)
class Calibration:
    """All thresholds of one pair and column."""

    direction: str
    fpr: float
    forms: tuple[Form, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What thresholds are to do."""

    fpr: float
    """The share of clean prompts that may be flagged."""
    direction: str = "below"
    """The flagged side, one of ``flagging.DIRECTIONS``."""
    buckets: int = 4
    """Ranges of length with a threshold each, at most."""
    seed: int = 0

    @property
    def sign(self) -> float:
        """By it scores are multiplied, so that low ones are flagged."""
        return 1.0 if self.direction == "below" else -1.0


def rows_needed(fpr: float) -> int:
    """How many clean rows a threshold needs: with fewer, flagging nothing would be all one could promise."""
    n = max(1, math.ceil(1 / fpr) - 2)
    while allowed(fpr, n + 1) < 1:
        n += 1
    return n


def rows_for_interval(fpr: float) -> int:
    """How many clean rows give a threshold both ends of its interval."""
    return max(rows_needed(fpr), math.ceil(math.log(_TAIL) / math.log1p(-fpr)))


def calibrate(rows: Scored, wanted: Wanted, asked: Asked) -> Calibration:
    """Thresholds for each form of prompt, and what they do with attacks and controls.

    Raises InputError where clean rows are too few, and for attacks and controls of a form that has none.
    """
    forms, notes, needed = [], [], rows_needed(asked.fpr)
    for place, template in enumerate(rows.forms):
        here = rows.form == place
        count, others = int((here & rows.meant[0]).sum()), int(rows.meant[1:, here].any(axis=0).sum())
        if count >= needed:
            forms.append(_form(rows, wanted, asked, template, here))
        elif others:
            raise InputError(
                f"{others:,} rows of attacks and controls are {named(template)}, and clean rows of that form "
                f"are {count:,}: a threshold at {asked.fpr:g} needs {needed:,}"
            )
        elif count:
            notes.append(
                f"{count:,} clean rows are {named(template)}: too few of {needed:,} for a threshold."
            )
    if not forms:
        count = int(rows.meant[0].sum())
        raise InputError(
            f"{count:,} clean rows are too few for a false-positive rate of {asked.fpr:g}: {needed:,} of one "
            f"form give a threshold, {rows_for_interval(asked.fpr):,} one with an interval; score more, or "
            "raise --fpr"
        )
    for form in forms:
        notes += _notes(form, asked)
    return Calibration(asked.direction, asked.fpr, tuple(forms), tuple(notes))


def named(template: str | None) -> str:
    """A form of prompts, in words."""
    return "raw prompts" if template is None else f"chats (template {template[:12]})"


def threshold_of(low_first: Floats, fpr: float) -> tuple[float, float | None, float | None, int]:
    """(threshold, its interval's ends, rows beyond it) of scores ``[n]`` of which low ones are flagged."""
    n = len(low_first)
    rank = allowed(fpr, n + 1)
    low, high = int(stats.binom.ppf(_TAIL, n, fpr)), int(stats.binom.ppf(1 - _TAIL, n, fpr)) + 1
    ends = [end for end in (low, high) if 1 <= end <= n]
    places = sorted({each - 1 for each in (rank, *ends)})
    parted = np.partition(low_first, places)
    value = float(parted[rank - 1])
    return (
        value,
        float(parted[low - 1]) if low in ends else None,
        float(parted[high - 1]) if high in ends else None,
        int((low_first < value).sum()),
    )


def length_ranges(tokens: NDArray[np.int32], buckets: int, least: int) -> list[tuple[int, int]]:
    """Up to ``buckets`` ranges of tokens, side by side from the shortest prompt to the longest, of about as
    many rows each and of at least ``least``; one range where there are fewer."""
    lengths, counts = np.unique(tokens, return_counts=True)
    upto = counts.cumsum()
    edges, taken, most = [], 0, min(buckets, len(tokens) // least)
    for place in range(1, most):
        at = int(np.searchsorted(upto, place * len(tokens) / most))
        if upto[at] - taken >= least and len(tokens) - upto[at] >= least:
            edges.append(int(lengths[at]))
            taken = int(upto[at])
    starts = [int(lengths[0]), *(edge + 1 for edge in edges)]
    return list(zip(starts, [*edges, int(lengths[-1])], strict=True))


def _form(rows: Scored, wanted: Wanted, asked: Asked, template: str | None, here: Any) -> Form:
    """Of a form with enough clean rows, which are ``here``."""
    sign, fpr, clean = asked.sign, asked.fpr, here & rows.meant[0]
    scores, tokens = sign * rows.values[clean], rows.tokens[clean]
    ranges = length_ranges(tokens, asked.buckets, rows_for_interval(fpr))
    draw, thresholds = np.random.default_rng(asked.seed), []
    for shortest, longest in ranges:
        inside = scores[(tokens >= shortest) & (tokens <= longest)]
        value, low, high, flagged = threshold_of(inside, fpr)
        ends = (low, high) if sign > 0 else (_negated(high), _negated(low))
        held_out = _held_out(inside, fpr, draw)
        thresholds.append(Threshold(shortest, longest, sign * value, *ends, len(inside), flagged, held_out))

    def judged(name: str, mask: Any) -> Judged:
        its_tokens, its_scores = rows.tokens[mask], sign * rows.values[mask]
        place = np.searchsorted([each.shortest for each in thresholds], its_tokens, side="right") - 1
        inside = (place >= 0) & (its_tokens <= thresholds[-1].longest)
        limits = sign * np.array([each.value for each in thresholds])[place]
        flagged = int((inside & (its_scores < limits)).sum())
        return Judged(name, len(its_tokens), flagged, int((~inside).sum()))

    attack, area = None, None
    attacks = here & rows.meant[1]
    if attacks.any():
        attack = judged(written(wanted.attack), attacks)
        area = auc(-sign * rows.values[attacks], -scores)
    controls = [
        judged(written(where), here & mask)
        for where, mask in zip(wanted.controls, rows.meant[2:], strict=True)
    ]
    return Form(template, tuple(thresholds), attack, area, tuple(each for each in controls if each.rows))


def _held_out(scores: Floats, fpr: float, draw: np.random.Generator) -> int | None:
    """How many of these are flagged by thresholds of which each was made without the rows it judges."""
    n = len(scores)
    if n - math.ceil(n / _FOLDS) < rows_needed(fpr):
        return None
    fold, flagged = draw.permutation(n) % _FOLDS, 0
    for each in range(_FOLDS):
        value = threshold_of(scores[fold != each], fpr)[0]
        flagged += int((scores[fold == each] < value).sum())
    return flagged


def _notes(form: Form, asked: Asked) -> list[str]:
    """What a reader of the table should not miss."""
    notes, of = [], f"of {named(form.template)}"
    area = form.auc
    if area is not None and form.attack is not None:
        other = "above" if asked.direction == "below" else "below"
        if area.high < 0.5:
            notes.append(
                f"Attacks {of} score on the other side of clean rows (AUC {1 - area.value:.3f} that way): "
                f"the data say --direction {other}, not {asked.direction}."
            )
        elif area.low <= 0.5:
            notes.append(f"Attacks {of} are not told from clean rows: AUC {area}.")
    for control in form.controls:
        share, told = control.share, f"Control {control.name} {of} is flagged"
        if not share.n:
            notes.append(f"Control {control.name} {of} has no row that a threshold is for: it says nothing.")
            continue
        detected = form.attack is not None and fewer(form.clean, form.attack.share)
        if form.attack is not None and detected and not fewer(share, form.attack.share):
            attacks = form.attack.share.value
            if share.low <= form.clean.value:  # like clean rows as well: it cannot say which
                notes.append(
                    f"Control {control.name} {of} has too few rows ({share.n:,}) to tell its share "
                    f"({share.value:.1%}) from the attacks' ({attacks:.1%}): it says nothing."
                )
                continue
            notes.append(
                f"{told} as often as the attacks, or nearly ({share.value:.1%} against {attacks:.1%}): what "
                "is detected may be that property."
            )
        elif fewer(form.clean, share):
            notes.append(
                f"{told} more often than clean rows ({share.value:.1%} against {form.clean.value:.1%}): in "
                "part it is that property which is detected."
            )
    return notes


def fewer(one: Estimate, other: Estimate) -> bool:
    """Whether a share is below another: Newcombe's 95 % interval of the difference, from Wilson's two."""
    gap = other.value - one.value
    return bool(gap - math.hypot(other.value - other.low, one.high - one.value) > 0)


def _negated(value: float | None) -> float | None:
    return None if value is None else -value
