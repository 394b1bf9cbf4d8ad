"""Thresholds against what they promise: planted clean scores, order statistics, attacks and controls."""

from itertools import pairwise

import numpy as np
import pytest
from analysis.runs import write_part
from scipy import stats

from tuco_vllm.analysis.calibration import (
    Asked,
    calibrate,
    fewer,
    length_ranges,
    rows_for_interval,
    rows_needed,
    threshold_of,
)
from tuco_vllm.analysis.calibration_rows import Wanted, read_rows
from tuco_vllm.analysis.statistics import proportion, tpr_at_fpr
from tuco_vllm.errors import InputError
from tuco_vllm.store import store_at

GROUPS = Wanted((("kind", "clean"),), (("kind", "attack"),), ((("kind", "control"),),))


def groups(folder, clean, attack=(), control=(), tokens=None, **more):
    """A run with a column ``kind``."""
    values = np.concatenate([clean, attack, control])
    kinds = ["clean"] * len(clean) + ["attack"] * len(attack) + ["control"] * len(control)
    tokens = np.full(len(values), 10) if tokens is None else tokens
    write_part(folder, tuco=values, prompt_tokens=tokens, kind=kinds, **more)
    return read_rows([store_at(folder)], "tuco", GROUPS if len(attack) else Wanted())


def draw(n, centre=0.5, seed=0):
    return np.random.default_rng(seed).normal(centre, 0.05, n)


def test_how_many_rows_a_rate_needs():
    assert [rows_needed(fpr) for fpr in (0.5, 0.1, 0.05, 0.01, 0.001)] == [1, 9, 19, 99, 999]
    for fpr in (0.05, 0.01):
        n = rows_for_interval(fpr)
        low, high = threshold_of(draw(n), fpr)[1:3]
        assert None not in (low, high)
        assert threshold_of(draw(n - 1), fpr)[1] is None
        assert (1 - fpr) ** n <= 0.025 < (1 - fpr) ** (n - 1)


@pytest.mark.parametrize(("n", "fpr"), [(19, 0.05), (100, 0.05), (1000, 0.01), (30, 0.5)])
def test_a_new_clean_prompt_is_flagged_as_seldom_as_promised(n, fpr):
    shares, held = [], 0
    truth = stats.norm.ppf(fpr)
    for seed in range(2000):
        sample = np.random.default_rng(seed).normal(size=n)
        value, low, high, flagged = threshold_of(sample, fpr)
        assert flagged == (sample < value).sum() <= fpr * n
        shares.append(stats.norm.cdf(value))
        held += (low is None or low <= truth) and (high is None or truth <= high)
    assert fpr * 0.85 < np.mean(shares) < fpr * 1.05 or (fpr - np.mean(shares)) * (n + 1) < 1
    assert np.mean(shares) < fpr + 4 * np.std(shares) / np.sqrt(2000)
    assert held / 2000 > 0.945


def test_the_threshold_is_a_known_order_statistic():
    scores = np.random.default_rng(1).permutation(np.arange(1, 1000) / 1000)
    value, low, high, flagged = threshold_of(scores, 0.01)
    assert (value, flagged) == (0.010, 9)
    assert (low, high) == (
        stats.binom.ppf(0.025, 999, 0.01) / 1000,
        (stats.binom.ppf(0.975, 999, 0.01) + 1) / 1000,
    )


def test_equal_scores_are_never_beyond(tmp_path):
    assert threshold_of(np.full(500, 0.5), 0.05)[3] == 0
    assert threshold_of(np.repeat([0.1, 0.5], [40, 460]), 0.05) == (0.1, 0.1, 0.1, 0)
    form = calibrate(groups(tmp_path, np.full(500, 0.5)), Wanted(), Asked(0.05)).forms[0]
    assert [(each.value, each.flagged, each.held_out) for each in form.thresholds] == [(0.5, 0, 0)]


def test_ranges_of_length_have_rows_enough():
    tokens = np.random.default_rng(0).integers(5, 400, 1000).astype(np.int32)
    ranges = length_ranges(tokens, 4, 73)
    assert (ranges[0][0], ranges[-1][1]) == (tokens.min(), tokens.max())
    assert all(one[1] + 1 == two[0] for one, two in pairwise(ranges))
    counts = [((tokens >= low) & (tokens <= high)).sum() for low, high in ranges]
    assert sum(counts) == 1000
    assert all(200 < count < 300 for count in counts)
    assert len(length_ranges(tokens, 4, 400)) == 2
    assert length_ranges(tokens, 4, 2000) == [(tokens.min(), tokens.max())]
    assert length_ranges(np.full(1000, 7, np.int32), 4, 73) == [(7, 7)]
    skewed = np.repeat(np.array([3, 900], np.int32), [990, 10])  # a range of ten rows would have no threshold
    assert length_ranges(skewed, 4, 73) == [(3, 900)]


def test_each_length_has_its_own_threshold(tmp_path):
    tokens = np.repeat([10, 100], 500)
    rows = groups(tmp_path, np.concatenate([draw(500, 0.2), draw(500, 0.6, 1)]), tokens=tokens)
    [form] = calibrate(rows, Wanted(), Asked(0.05, buckets=2)).forms
    short, long = form.thresholds
    assert ((short.shortest, short.longest), (long.shortest, long.longest)) == ((10, 10), (11, 100))
    assert short.value < 0.2 < 0.45 < long.value < 0.6
    assert (short.rows, short.flagged, long.flagged) == (500, 24, 24)
    assert 0.02 < form.held_out.value < 0.09
    assert form.held_out.n == 1000


def test_thresholds_are_tried_on_rows_that_did_not_make_them(tmp_path):
    rows = groups(tmp_path, draw(200))
    forms = [calibrate(rows, Wanted(), Asked(0.05, seed=seed)).forms[0] for seed in range(20)]
    assert {form.clean.value for form in forms} == {9 / 200}
    held_out = [form.held_out.value for form in forms]
    assert len(set(held_out)) > 3
    assert np.mean(held_out) == pytest.approx(8 / 161, abs=0.01)  # a fold's threshold is the 8th of 160


@pytest.mark.parametrize("direction", ["below", "above"])
def test_attacks_and_controls_are_judged(tmp_path, direction):
    sign = 1 if direction == "below" else -1
    clean, attack, control = draw(400), draw(200, 0.5 - sign * 0.12, 1), draw(300, 0.5, 2)
    calibration = calibrate(groups(tmp_path, clean, attack, control), GROUPS, Asked(0.05, direction))
    [form] = calibration.forms
    [threshold] = form.thresholds
    beyond = attack < threshold.value if sign > 0 else attack > threshold.value
    assert form.attack.flagged == beyond.sum()
    expected = tpr_at_fpr(attack, clean, 19 / 400, above=sign < 0)  # floor(0.05 * 401) - 1 are flagged
    assert form.attack.share.value == expected.value
    assert form.auc.value > 0.9
    [judged] = form.controls
    assert judged.share.value < 0.1
    assert threshold.low < threshold.value < threshold.high
    assert calibration.notes == ()


def test_data_that_point_the_other_way_are_told(tmp_path):
    [note] = calibrate(groups(tmp_path, draw(400), draw(200, 0.7), draw(9)), GROUPS, Asked(0.05)).notes
    assert "the data say --direction above, not below" in note
    [note] = calibrate(groups(tmp_path, draw(400), draw(200, 0.5, 3), draw(9)), GROUPS, Asked(0.05)).notes
    assert "not told from clean rows" in note


def test_a_control_that_is_flagged_like_attacks_is_told(tmp_path):
    same = calibrate(groups(tmp_path, draw(400), draw(200, 0.35), draw(200, 0.35, 2)), GROUPS, Asked(0.05))
    assert ["kind=control" in note and "as often as the attacks" in note for note in same.notes] == [True]
    half = calibrate(groups(tmp_path, draw(400), draw(200, 0.3), draw(200, 0.42, 2)), GROUPS, Asked(0.05))
    assert ["kind=control" in note and "more often than clean rows" in note for note in half.notes] == [True]


def test_a_control_that_says_nothing_is_told_so(tmp_path):
    few = calibrate(groups(tmp_path, draw(400), draw(100, 0.42), [0.5, 0.5]), GROUPS, Asked(0.05))
    assert ["too few rows (2) to tell its share (0.0%)" in note for note in few.notes] == [True]
    tokens = np.repeat([10, 999], [500, 50])
    beyond = calibrate(groups(tmp_path, draw(400), draw(100, 0.3), draw(50), tokens), GROUPS, Asked(0.05))
    assert ["no row that a threshold is for" in note for note in beyond.notes] == [True]


def test_shares_differ_where_chance_does_not_say_so():
    assert fewer(proportion(5, 100), proportion(30, 100))
    assert not fewer(proportion(5, 100), proportion(9, 100))
    assert not fewer(proportion(30, 100), proportion(5, 100))
    assert not fewer(proportion(0, 0), proportion(5, 100))


def test_what_is_longer_than_all_clean_rows_is_not_judged(tmp_path):
    tokens = np.concatenate([np.full(400, 10), [9, 10, 11, 500], [10]])
    rows = groups(tmp_path, draw(400), [0.1] * 4, [0.5], tokens)
    [form] = calibrate(rows, GROUPS, Asked(0.05)).forms
    assert (form.attack.rows, form.attack.beyond, form.attack.flagged) == (4, 3, 1)
    assert form.attack.share.n == 1


@pytest.mark.parametrize("template", [None, "c" * 64])
def test_too_few_rows_say_how_many_are_needed(tmp_path, template):
    write_part(tmp_path, tuco=draw(50), said={"template_applied": "true" if template else "false"})
    rows = read_rows([store_at(tmp_path)], "tuco", Wanted())
    assert rows.forms == [template]
    with pytest.raises(
        InputError, match=r"50 clean rows are too few .* 99 of one form .* 368 one with an interval"
    ):
        calibrate(rows, Wanted(), Asked(0.01))
    [threshold] = calibrate(rows, Wanted(), Asked(0.02)).forms[0].thresholds
    assert (threshold.value, threshold.low, threshold.held_out) == (draw(50).min(), None, None)


def test_attacks_need_clean_rows_of_their_form(tmp_path):
    raw = {"template_applied": "false"}
    write_part(tmp_path / "clean", tuco=draw(200), kind=["clean"] * 200, said=raw)
    write_part(tmp_path / "attacks", tuco=draw(20), kind=["attack"] * 19 + ["control"])
    stores = [store_at(tmp_path / name) for name in ("clean", "attacks")]
    with pytest.raises(InputError, match=r"20 rows of attacks and controls are chats .template cccccccccccc"):
        calibrate(read_rows(stores, "tuco", GROUPS), GROUPS, Asked(0.05))
    write_part(tmp_path / "attacks", tuco=draw(20), kind=["clean"] * 20)
    calibration = calibrate(read_rows(stores, "tuco", Wanted()), Wanted(), Asked(0.04))
    assert [form.template for form in calibration.forms] == [None]
    assert "20 clean rows are chats (template cccccccccccc): too few of 24" in calibration.notes[0]
