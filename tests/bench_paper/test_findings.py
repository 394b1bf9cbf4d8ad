"""What the replication calls the same, the opposite, nothing, and unknown; and what it compares with what."""

import json
import math

import numpy as np
import pytest
from paper_rows import row

from tuco_vllm.analysis.statistics import Estimate


@pytest.fixture(scope="module")
def findings(paper):
    return paper("findings")


@pytest.fixture(scope="module")
def setting(paper):
    return paper("setting")


@pytest.mark.parametrize(
    ("low", "high", "above", "expected"),
    [
        (0.6, 0.9, True, "same"),
        (0.6, 0.9, False, "opposite"),
        (0.1, 0.4, True, "opposite"),
        (0.1, 0.4, False, "same"),
        (0.5, 0.9, True, "none seen"),
        (0.4, 0.5, True, "none seen"),
        (0.4, 0.6, False, "none seen"),
        (math.nan, math.nan, True, "cannot be said"),
    ],
)
def test_the_verdict_is_the_interval_s(findings, low, high, above, expected):
    figure = findings.Figure("AUC", Estimate(0.7, low, high, 10))
    assert findings.verdict(figure, above) == expected


def test_a_verdict_is_about_its_own_null(findings):
    figure = findings.Figure("difference", Estimate(0.3, 0.1, 0.4, 10), 0.0)
    assert findings.verdict(figure, True) == "same"


def test_pairs_are_of_the_same_behaviour(setting):
    scores = setting.Scores([row("a", "1", 0.5), row("a", "2", 0.7), row("b", "2", 0.4), row("b", "3", 0.1)])
    assert scores.drops("a", "b") == pytest.approx([0.3])
    assert len(scores.drops("a", "nothing")) == 0


def test_rows_with_errors_are_counted_and_left_out(setting):
    scores = setting.Scores([row("a", "1", 0.5), {**row("a", "2", None), "error": "too long"}])
    assert (scores.errors, list(scores.of("a"))) == (1, [0.5])


def test_each_prompt_is_matched_once_and_only_to_one_as_long(findings):
    rows = [row("a", str(n), 0.5, tokens) for n, tokens in enumerate((100, 100, 20, 500))]
    others = [row("b", str(n), 0.1, tokens) for n, tokens in enumerate((109, 111, 22, 300))]
    pairs = findings.matched(rows, others)
    assert sorted((a["prompt_tokens"], b["prompt_tokens"]) for a, b in pairs) == [(20, 22), (100, 109)]


def test_length_alone_leaves_no_difference_at_equal_length(findings, setting):
    """TuCo is a function of length here; the groups differ in nothing else."""
    draw = np.random.default_rng(0)
    lengths = {"short": draw.integers(10, 60, 300), "long": draw.integers(40, 90, 300)}
    rows = [
        row(group, str(n), 1 / tokens, int(tokens))
        for group, own in lengths.items()
        for n, tokens in enumerate(own)
    ]
    scores = setting.Scores(rows)
    plain = findings.higher(scores, "short", "long").estimate
    matched = findings.at_equal_length(scores, "short", "long").estimate
    assert plain.low > 0.8
    assert matched.low < 0.5 < matched.high
    assert matched.n < plain.n


def test_a_record_is_json_without_nan(findings):
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    told = findings.Told(
        [findings.Finding("claim", "paper", findings.Figure("AUC", nothing))], curves={"a": {1: nothing}}
    )
    text = json.dumps(told.as_record(), allow_nan=False)
    assert json.loads(text)["findings"][0]["verdict"] == "cannot be said"
