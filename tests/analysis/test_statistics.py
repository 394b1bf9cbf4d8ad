"""Figures with intervals: against scikit-learn and scipy, planted truths, and what has no answer."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from tuco_vllm.analysis import statistics
from tuco_vllm.analysis.statistics import (
    Estimate,
    auc,
    mean,
    paired_difference,
    proportion,
    spearman,
    tpr_at_fpr,
)


def samples(m, n, ties=False, seed=5):
    draw = np.random.default_rng(seed)
    above, below = draw.normal(1, 1, m), draw.normal(0, 1, n)
    return (above.round(), below.round()) if ties else (above, below)


def nan(estimate: Estimate):
    return all(np.isnan([estimate.value, estimate.low, estimate.high]))


@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 300), (40, 3), (3000, 50)])
@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_scikit_learns(m, n, ties):
    above, below = samples(m, n, ties)
    truth = roc_auc_score([1] * m + [0] * n, np.concatenate([above, below]))
    found = auc(above, below)
    assert found.value == pytest.approx(truth, abs=1e-12)
    assert found.low <= found.value <= found.high
    assert found.n == m + n
    assert auc(below, above).value == pytest.approx(1 - truth, abs=1e-12)


def test_the_bootstrap_is_that_of_redrawn_rows_and_delong_agrees(monkeypatch):
    above, below = samples(150, 90, ties=True)
    draw = np.random.default_rng(1)
    drawn = [
        roc_auc_score([1] * 150 + [0] * 90, np.concatenate([draw.choice(above, 150), draw.choice(below, 90)]))
        for _ in range(1000)
    ]
    found = auc(above, below, resamples=4000)
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.012)
    monkeypatch.setattr(statistics, "_RESAMPLED", 10)
    other = auc(above, below)
    assert [other.low, other.high] == pytest.approx([found.low, found.high], abs=0.012)
    assert other.low != found.low


def test_intervals_hold_the_truth_as_often_as_they_say():
    truth, held = stats.norm.cdf(1 / np.sqrt(2)), 0
    for seed in range(200):
        found = auc(*samples(60, 60, seed=seed), resamples=300)
        held += found.low <= truth <= found.high
    assert 178 <= held <= 199  # 190 are expected, with a deviation of 3.1


def test_classes_that_do_not_overlap_are_not_certain():
    found = auc([3, 4, 5], [1, 2] * 10)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 3))
    assert auc([1] * 3, [2] * 9).value == 0.0
    caught = tpr_at_fpr([3, 4, 5], [1, 2] * 10)
    assert (caught.value, caught.high) == (1.0, 1.0)
    assert caught.low == pytest.approx(0.025 ** (1 / 3))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("fpr", [0.0, 0.05, 0.29, 1.0])
def test_tpr_is_the_best_that_the_roc_curve_allows(ties, fpr):
    above, below = samples(200, 100, ties)
    fprs, tprs, _ = roc_curve([1] * 200 + [0] * 100, np.concatenate([above, below]), drop_intermediate=False)
    truth = tprs[fprs <= fpr + 1e-9].max()
    found = tpr_at_fpr(above, below, fpr)
    assert found.value == pytest.approx(truth)
    assert found.low <= found.value <= found.high
    assert tpr_at_fpr(-above, -below, fpr, above=False) == found


def test_tprs_interval_is_that_of_redrawn_rows():
    above, below = samples(120, 80)
    draw, drawn = np.random.default_rng(2), []
    for _ in range(2000):
        ups, downs = draw.choice(above, 120), np.sort(draw.choice(below, 80))[::-1]
        drawn.append((ups > downs[4]).mean())
    found = tpr_at_fpr(above, below, 0.05, resamples=4000)
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)


def test_a_share_of_a_number_is_not_lost_to_rounding():
    assert [statistics.allowed(share, 100) for share in (0.29, 0.57, 0.05, 0.058)] == [29, 57, 5, 5]
    assert statistics.allowed(0.07, 10**7) == 700_000


@pytest.mark.parametrize("figure", [auc, tpr_at_fpr])
def test_one_class_and_nan(figure):
    assert nan(figure([], [1.0, 2.0]))
    assert nan(figure([1.0], [np.nan]))
    assert figure([1, np.nan, 3], [2, np.nan, 0]) == figure([1, 3], [2, 0])
    assert figure([1, 3], [2, 0]).n == 4
    assert np.isfinite(figure([np.inf, 1], [-np.inf, 2]).value)


def test_constant_scores_tell_nothing_apart():
    assert auc([0.5] * 9, [0.5] * 7).value == 0.5
    assert tpr_at_fpr([0.5] * 9, [0.5] * 7).value == 0.0
    assert mean([0.5] * 4) == Estimate(0.5, 0.5, 0.5, 4)
    assert nan(spearman([1, 1, 1], [1, 2, 3]))


def test_a_million_scores():
    above, below = samples(1_000_000, 1_000_000)
    found, share = auc(above, below), tpr_at_fpr(above, below)
    assert found.low < stats.norm.cdf(1 / np.sqrt(2)) < found.high
    assert found.high - found.low < 0.002
    assert share.value == pytest.approx(stats.norm.sf(stats.norm.isf(0.05) - 1), abs=0.003)


def test_means_are_scipys():
    values = np.random.default_rng(5).normal(3, 2, 40)
    ends = stats.ttest_1samp(values, 0).confidence_interval()
    assert mean(values) == Estimate(*map(pytest.approx, (values.mean(), ends.low, ends.high)), 40)
    others = values + 1
    assert paired_difference(others, values).value == pytest.approx(1)
    assert paired_difference([1, 2, np.nan, 4], [0, np.inf, 3, 1]).n == 2
    assert mean([7.0]).value == 7.0
    assert np.isnan(mean([7.0]).low)
    assert nan(mean([]))


def test_shares_are_wilsons():
    found = proportion(3, 40)
    ends = stats.binomtest(3, 40).proportion_ci(method="wilson")
    assert (found.low, found.high, found.n) == (ends.low, ends.high, 40)
    assert proportion(0, 5).high > 0.3
    assert nan(proportion(0, 0))


def test_rank_correlation():
    x, noise = np.random.default_rng(5).normal(size=(2, 300))
    y = x + noise
    found = spearman(x, y)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.value < found.high
    assert spearman(x, x**3).value == pytest.approx(1)
    assert spearman([1, 2, np.nan], [2, 1, 5]).n == 2
