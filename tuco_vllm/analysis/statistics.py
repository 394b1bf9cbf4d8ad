"""Figures of scores, each with a 95 % interval: what reports, calibrations and replications say.

NaN is no score: it is left out, and ``n`` counts what is left. Where nothing can be said a value is NaN.
Infinite scores have a rank, and no mean. Everything is reproducible: resampling starts from ``seed``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2
_RESAMPLED = 2_000
"""Up to so many scores in each class a bootstrap is drawn; beyond, DeLong's normal interval is as good."""
_DRAWN = 8_000_000
"""Numbers in memory at a time, of resamples."""


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval, and how many scores it is of; NaN where there are too few."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(positive: ArrayLike, negative: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Chance that a positive's score is above a negative's, ties counting half: the area under the ROC curve.

    The interval is a stratified percentile bootstrap, or DeLong's where a class has more than 2,000 scores.
    Where the classes do not overlap at all, resampling sees no uncertainty: then it is that of a share of
    which all of the smaller class are (Clopper-Pearson).
    """
    above, below = _scores(positive), _scores(negative)
    n = len(above) + len(below)
    if not len(above) or not len(below):
        return Estimate(np.nan, np.nan, np.nan, n)
    value = float(stats.mannwhitneyu(above, below, method="asymptotic").statistic / (len(above) * len(below)))
    if value in (0.0, 1.0):
        return Estimate(value, *_exact(value, min(len(above), len(below))), n)
    if max(len(above), len(below)) > _RESAMPLED:
        spread = stats.norm.ppf(1 - _TAIL) * _delong_deviation(above, below)
        return Estimate(value, max(0.0, value - spread), min(1.0, value + spread), n)
    drawn = _resampled_aucs(above, below, resamples, np.random.default_rng(seed))
    return Estimate(value, *_percentiles(drawn), n)


def tpr_at_fpr(
    positive: ArrayLike,
    negative: ArrayLike,
    fpr: float = 0.05,
    *,
    above: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Share of positives beyond the threshold beyond which at most a share ``fpr`` of the negatives is.

    ``above``: whether positives are those with high scores; else those with low ones. Scores equal to the
    threshold are not beyond it, so ties never break the promise. The interval is a stratified percentile
    bootstrap in which the threshold is drawn too; where it catches all or none, at least Clopper-Pearson's.
    """
    sign = 1.0 if above else -1.0
    ups, rest = np.sort(sign * _scores(positive)), np.sort(sign * _scores(negative))[::-1]
    n = len(ups) + len(rest)
    if not len(ups) or not len(rest):
        return Estimate(np.nan, np.nan, np.nan, n)
    passed = allowed(fpr, len(rest))
    if passed >= len(rest):
        return Estimate(1.0, 1.0, 1.0, n)

    def share(thresholds: Any) -> Any:
        return 1 - np.searchsorted(ups, thresholds, side="right") / len(ups)

    # Of a resample of N negatives, the one with `passed` above it is at a place that a beta distribution has.
    draw = np.random.default_rng(seed)
    places = (draw.beta(passed + 1, len(rest) - passed, resamples) * len(rest)).astype(np.int64)
    drawn = draw.binomial(len(ups), share(rest[np.minimum(places, len(rest) - 1)])) / len(ups)
    value, (low, high) = float(share(rest[passed])), _percentiles(drawn)
    if value in (0.0, 1.0):
        ends = _exact(value, len(ups))
        low, high = min(low, ends[0]), max(high, ends[1])
    return Estimate(value, low, high, n)


def allowed(share: float, n: int) -> int:
    """How many of ``n`` a share is at most: the largest whole number, whatever floats make of 0.29 * 100."""
    return int(np.floor(share * n * (1 + 1e-12) + 1e-12))


def mean(values: ArrayLike) -> Estimate:
    """The mean, with Student's interval."""
    scores = _scores(values)
    scores = scores[np.isfinite(scores)]
    if len(scores) < 2:
        value = float(scores[0]) if len(scores) else np.nan
        return Estimate(value, np.nan, np.nan, len(scores))
    value = float(scores.mean())
    spread = stats.t.ppf(1 - _TAIL, len(scores) - 1) * scores.std(ddof=1) / np.sqrt(len(scores))
    return Estimate(value, float(value - spread), float(value + spread), len(scores))


def proportion(successes: int, n: int) -> Estimate:
    """A share of ``n``, with Wilson's interval."""
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    ends = stats.binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
    return Estimate(successes / n, float(ends.low), float(ends.high), int(n))


def paired_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """The mean of a - b over pairs of which both are finite, with Student's interval."""
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    whole = np.isfinite(left) & np.isfinite(right)
    return mean(left[whole] - right[whole])


def spearman(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Rank correlation over pairs without NaN, by Fisher's z, its variance Bonett and Wright's (2000)."""
    left, right = np.asarray(x, np.float64), np.asarray(y, np.float64)
    whole = ~(np.isnan(left) | np.isnan(right))
    left, right = left[whole], right[whole]
    n = len(left)
    if n < 2 or np.all(left == left[0]) or np.all(right == right[0]):
        return Estimate(np.nan, np.nan, np.nan, n)
    value = float(stats.spearmanr(left, right).statistic)
    if n < 4 or abs(value) >= 1 - 1e-12:
        return Estimate(value, np.nan, np.nan, n)
    spread = stats.norm.ppf(1 - _TAIL) * np.sqrt((1 + value**2 / 2) / (n - 3))
    centre = np.arctanh(value)
    return Estimate(value, float(np.tanh(centre - spread)), float(np.tanh(centre + spread)), n)


def _scores(values: ArrayLike) -> Floats:
    flat = np.asarray(values, np.float64).ravel()
    return flat[~np.isnan(flat)]


def _exact(share: float, n: int) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share of ``n`` that is all or none."""
    ends = stats.binomtest(round(share * n), n).proportion_ci(LEVEL, method="exact")
    return float(ends.low), float(ends.high)


def _percentiles(drawn: Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def _resampled_aucs(above: Floats, below: Floats, resamples: int, draw: np.random.Generator) -> Floats:
    """AUCs of stratified resamples: how often each distinct score was drawn says all."""
    values, place = np.unique(np.concatenate([above, below]), return_inverse=True)
    shares = [
        np.bincount(part, minlength=len(values)) / len(part)
        for part in (place[: len(above)], place[len(above) :])
    ]
    drawn = []
    for begin in range(0, resamples, step := max(1, _DRAWN // len(values))):
        size = min(step, resamples - begin)
        ups, downs = (
            draw.multinomial(len(part), share, size) / len(part)
            for part, share in zip((above, below), shares, strict=True)
        )
        drawn.append((ups * (downs.cumsum(axis=1) - downs / 2)).sum(axis=1))
    return np.concatenate(drawn)


def _delong_deviation(above: Floats, below: Floats) -> float:
    """The standard deviation of an AUC (DeLong et al. 1988), by mid-ranks (Sun and Xu 2014)."""
    m, n = len(above), len(below)
    ranks = stats.rankdata(np.concatenate([above, below]))
    ups = (ranks[:m] - stats.rankdata(above)) / n
    downs = 1 - (ranks[m:] - stats.rankdata(below)) / m
    return float(np.sqrt(ups.var(ddof=1) / m + downs.var(ddof=1) / n)) if min(m, n) > 1 else np.nan
