"""What a sweep's statistics say of answers whose truth is known: planted effects, and none."""

import math

import numpy as np
import pytest
from scipy import stats

from tuco_vllm.analysis.effects import (
    FOLDS,
    GROUP,
    MACRO,
    MAX,
    MIN,
    ROWS,
    TASK,
    accuracies,
    bootstrap,
    chosen_alphas,
    effects,
    folds_of,
    holm,
    wilson,
)
from tuco_vllm.analysis.effects_read import Cell

ALPHAS = [0.75, 0.9, 1.0, 1.1, 1.25]


def cell_of(correct, *, alphas=ALPHAS, tasks=None, groups=None, questions=None, mass=None):
    correct = np.asarray(correct, dtype=bool)
    n = len(correct)
    return Cell(
        *("main", 0, 3, alphas, tasks or ["t"] * n, groups or [None] * n),
        questions or [f"q{place}" for place in range(n)],
        correct,
        np.full(correct.shape, 0.5) if mass is None else mass,
        np.zeros(correct.shape, dtype=bool),
        left_out=0,
    )


def drawn(n, shares, seed=0):
    """Answers that are right with the share of their alpha, each by itself."""
    return np.random.default_rng(seed).random((n, len(shares))) < np.array(shares)


def only(found, scope, name=""):
    [effect] = [each for each in found if (each.scope, each.name) == (scope, name)]
    return effect


def test_a_planted_effect_is_found():
    cell = cell_of(drawn(400, [0.4, 0.45, 0.5, 0.6, 0.75]))
    best = only(effects(cell, MAX), ROWS)
    assert best.chosen == {1.25: FOLDS}
    assert best.delta == pytest.approx((cell.correct[:, 4].mean() - cell.correct[:, 2].mean()), abs=1e-12)
    assert best.low < 0.25 < best.high
    assert best.p < 1e-6
    worst = only(effects(cell, MIN), ROWS)
    assert worst.chosen == {0.75: FOLDS}
    assert worst.delta < 0 < -worst.high
    assert worst.p < 0.05


def test_without_an_effect_none_is_found_more_often_than_chance_allows():
    """Choosing the best of five alphas on all rows would "find" one in most of these."""
    seen, lucky, deltas = 0, 0, []
    for seed in range(150):
        cell = cell_of(drawn(100, [0.5] * 5, seed))
        best = only(effects(cell, MAX), ROWS)
        seen += best.p < 0.05
        deltas.append(best.delta)
        right = cell.correct.sum(axis=0)
        lucky += right.max() > right[2]
    assert seen <= 15  # 7.5 expected of 150 at 5 %
    assert abs(np.mean(deltas)) < 0.02
    assert lucky > 100


def test_the_rows_that_say_what_an_alpha_is_worth_did_not_choose_it():
    correct = drawn(200, [0.4, 0.5, 0.5, 0.5, 0.6])
    cell = cell_of(correct)
    folds = folds_of(cell.questions, "t")
    for direction in (MAX, MIN):
        before = chosen_alphas(correct, ALPHAS, folds, direction)
        for fold in range(FOLDS):
            turned = correct.copy()
            turned[folds == fold] = ~turned[folds == fold]
            assert chosen_alphas(turned, ALPHAS, folds, direction)[fold] == before[fold]
    turned = ~correct  # but the others do choose it
    assert chosen_alphas(turned, ALPHAS, folds, MAX) != chosen_alphas(correct, ALPHAS, folds, MAX)


def test_a_chosen_alpha_is_worth_what_it_is_on_its_own_fold():
    """Whatever fold is held out, another alpha is right on all others and always wrong on it."""
    alphas = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    folds = folds_of([f"q{n}" for n in range(50)], "t")
    correct = np.array([[fold != place for place in range(FOLDS)] + [True] for fold in folds])
    correct[:10, FOLDS] = False  # 1 is good, but not as good
    best = only(effects(cell_of(correct, alphas=alphas), MAX), ROWS)
    assert best.chosen == dict.fromkeys(alphas[:FOLDS], 1)
    assert best.delta == pytest.approx(-40 / 50)
    assert (best.gained, best.lost) == (0, 40)


def test_folds_are_even_keep_equal_questions_together_and_know_no_order():
    names = [f"q{n}" for n in range(103)]
    folds = folds_of(names, "t")
    assert sorted(np.bincount(folds)) == [20, 20, 21, 21, 21]
    assert (folds_of(names[::-1], "t") == folds[::-1]).all()
    assert (folds_of(names, "other") != folds).any()
    twice = folds_of(names + names, "t")
    assert (twice[:103] == twice[103:]).all()
    assert folds_of(names[:4] * 9, "t") is None
    assert folds_of([], "t") is None


def test_of_equal_alphas_the_nearest_to_1_is_chosen():
    same = np.ones((20, 5), dtype=bool)
    folds = folds_of([f"q{n}" for n in range(20)], "t")
    assert chosen_alphas(same, ALPHAS, folds, MAX) == chosen_alphas(same, ALPHAS, folds, MIN) == [2] * FOLDS
    same[:, 2] = False
    assert chosen_alphas(same, ALPHAS, folds, MAX) == [1] * FOLDS  # 0.9 and 1.1 are as near: the smaller
    near = [0.95, 1.0, 1.05]
    assert chosen_alphas(same[:, [0, 2, 0]], near, folds, MAX) == [0] * FOLDS
    constant = only(effects(cell_of(np.ones((20, 5))), MAX), ROWS)
    assert (constant.delta, constant.low, constant.high, constant.p) == (0, 0, 0, 1)
    assert constant.chosen == {1.0: FOLDS}


def test_the_interval_is_scipys_paired_bootstrap():
    sample = np.random.default_rng(3).choice([-1, 0, 1], size=150, p=[0.1, 0.6, 0.3])
    low, high = bootstrap([sample], macro=False)
    scipys = stats.bootstrap((sample,), np.mean, n_resamples=9999, method="percentile", rng=1)
    assert (low, high) == pytest.approx(tuple(scipys.confidence_interval), abs=0.01)
    assert bootstrap([sample], macro=True) == (low, high)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth, covered = 0.2, 0
    for seed in range(200):
        sample = np.random.default_rng(seed).choice([-1, 0, 1], size=200, p=[0.1, 0.6, 0.3])
        low, high = bootstrap([sample], macro=False)
        covered += low <= truth <= high
    assert 180 <= covered <= 198


def test_rows_weigh_tasks_by_size_and_macro_alike():
    large, small = drawn(300, [0.5] * 5, 1), drawn(50, [0.1, 0.1, 0.1, 0.1, 0.9], 2)
    cell = cell_of(
        np.concatenate([large, small]),
        tasks=["large"] * 300 + ["small"] * 50,
        groups=["g"] * 300 + [None] * 50,
    )
    found = effects(cell, MAX)
    parts = {name: only(found, TASK, name) for name in ("large", "small")}
    rows, macro, group = only(found, ROWS), only(found, MACRO), only(found, GROUP, "g")
    assert rows.delta == pytest.approx((300 * parts["large"].delta + 50 * parts["small"].delta) / 350)
    assert macro.delta == pytest.approx((parts["large"].delta + parts["small"].delta) / 2)
    assert group.delta == parts["large"].delta
    assert group.n == 300
    assert macro.p is None
    assert macro.low < macro.delta < macro.high
    assert parts["small"].chosen == {1.25: FOLDS}
    assert [each.scope for each in found][:2] == [ROWS, MACRO]


def test_a_group_may_be_a_part_of_a_task():
    correct = drawn(100, [0.2, 0.5, 0.5, 0.5, 0.9])
    cell = cell_of(correct, groups=["even", "odd"] * 50)
    found = effects(cell, MAX)
    assert only(found, GROUP, "even").n == only(found, GROUP, "odd").n == 50
    both = [only(found, GROUP, name).delta for name in ("even", "odd")]
    assert np.mean(both) == pytest.approx(only(found, ROWS).delta)


def test_mcnemars_exact_p():
    correct = np.zeros((40, 2), dtype=bool)
    correct[:15, 0] = True  # gained by 0.5
    correct[15:18, 1] = True  # lost
    best = only(effects(cell_of(correct, alphas=[0.5, 1.0]), MAX), ROWS)
    assert (best.gained, best.lost, best.chosen) == (15, 3, {0.5: FOLDS})
    tail = sum(math.comb(18, k) for k in range(4)) / 2**18
    assert best.p == pytest.approx(2 * tail)


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    tasks = [name for name in "abc" for _ in range(60)]
    shares = [[0.5] * 5, [0.5] * 5, [0.2, 0.2, 0.2, 0.2, 0.9]]
    cell = cell_of(np.concatenate([drawn(60, s, n) for n, s in enumerate(shares)]), tasks=tasks)
    of_tasks = [each for each in effects(cell, MAX) if each.scope == TASK]
    assert [each.p_holm for each in of_tasks] == pytest.approx(holm([each.p for each in of_tasks]))
    assert of_tasks[2].p_holm < 0.001 < min(of_tasks[0].p_holm, of_tasks[1].p_holm)
    assert all(each.p_holm is None for each in effects(cell, MAX) if each.scope != TASK)


def test_a_task_with_too_few_questions_has_no_choice_and_counts_in_none():
    correct = np.concatenate([drawn(50, [0.5] * 5), drawn(4, [0.0, 0.0, 0.0, 0.0, 1.0])])
    found = effects(cell_of(correct, tasks=["big"] * 50 + ["tiny"] * 4), MAX)
    tiny = only(found, TASK, "tiny")
    assert (tiny.delta, tiny.low, tiny.p, tiny.p_holm, tiny.chosen) == (None, None, None, None, {})
    assert only(found, ROWS).n == 50
    assert not [each for each in found if each.scope == MACRO]


@pytest.mark.parametrize("n", [0, 1])
def test_no_question_and_one(n):
    cell = cell_of(drawn(n, [0.5] * 5).reshape(n, 5))
    assert [each.delta for each in effects(cell, MAX)] == [None] * n
    assert len(accuracies(cell)) == (2 * len(ALPHAS) if n else 0)


def test_accuracy_has_wilsons_interval():
    cell = cell_of(drawn(100, [0.1, 0.3, 0.5, 0.7, 0.9]), groups=["g"] * 100)
    rows = [each for each in accuracies(cell) if each.scope == ROWS]
    for place, each in enumerate(rows):
        right = int(cell.correct[:, place].sum())
        assert each.value == right / 100
        z, p = stats.norm.ppf(0.975), right / 100
        middle, half = (p + z**2 / 200), z * math.sqrt(p * (1 - p) / 100 + z**2 / 40_000)
        assert (each.low, each.high) == pytest.approx(
            ((middle - half) / (1 + z**2 / 100), (middle + half) / (1 + z**2 / 100))
        )
        assert each.delta == pytest.approx(each.value - rows[2].value)
    assert wilson(0, 10)[0] == 0 < wilson(0, 10)[1]
    assert {each.scope for each in accuracies(cell)} == {ROWS, GROUP, TASK}


def test_accuracy_over_tasks_counts_each_alike():
    correct = np.concatenate([np.ones((90, 5)), np.zeros((10, 5))])
    cell = cell_of(correct, tasks=["large"] * 90 + ["small"] * 10)
    macro = [each for each in accuracies(cell) if each.scope == MACRO]
    assert {each.value for each in macro} == {0.5}
    assert {each.value for each in accuracies(cell) if each.scope == ROWS} == {0.9}


def test_the_same_answers_make_the_same_figures():
    cell = cell_of(drawn(200, [0.5] * 5))
    assert effects(cell, MAX) == effects(cell, MAX)
