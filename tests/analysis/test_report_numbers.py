"""What a report says is what numpy, scipy and scikit-learn say of the same rows."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from synthetic_run import scored_rows, write_run

from tuco_vllm.analysis import statistics
from tuco_vllm.analysis.report import cells, data

NAMES = ("text", "chat", "attack")
MEANS = {"text": 0.3, "chat": 0.5, "attack": 0.45}


def planted(n=600, seed=3):
    """Three groups, of which text is the largest."""
    draw = np.random.default_rng(seed)
    group = [NAMES[0] if number % 2 else NAMES[1 + number % 3 % 2] for number in range(n)]
    tuco = [float(np.clip(draw.normal(MEANS[name], 0.06), 0, 1)) for name in group]
    return scored_rows(tuco, group=group, seed=seed)


def of(rows, name, column="tuco"):
    return np.array([row[column] for row in rows if row["group"] == name], float)


def number(row, name):
    return float(row[name])


def close(value, tolerance=1e-9):
    return pytest.approx(value, rel=tolerance, abs=tolerance)


def test_the_distribution_of_each_group_is_numpys(tmp_path, report):
    rows = planted()
    found = report(write_run(tmp_path / "run", rows, parts=3)).rows("distribution", "group")
    assert list(found) == ["chat", "text", "attack"]  # as they come
    for name in NAMES:
        scores, row = of(rows, name), found[name]
        assert int(row["n"]) == len(scores)
        assert number(row, "mean") == close(scores.mean())
        assert number(row, "sd") == close(scores.std(ddof=1))
        expected = stats.t.interval(0.95, len(scores) - 1, scores.mean(), stats.sem(scores))
        assert (number(row, "mean_low"), number(row, "mean_high")) == close(expected)
        quantiles = np.quantile(scores, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1], method="inverted_cdf")
        shown = [number(row, name) for name in ("min", "5%", "25%", "50%", "75%", "95%", "max")]
        assert shown == close(list(quantiles))


def test_auc_against_the_largest_group_is_scikit_learns(tmp_path, report):
    rows = planted()
    found = report(write_run(tmp_path / "run", rows)).rows("auc", "group")
    assert set(found) == {"chat", "attack"}
    text = of(rows, "text")
    for name, row in found.items():
        scores = of(rows, name)
        truth = roc_auc_score([1] * len(scores) + [0] * len(text), np.concatenate([scores, text]))
        assert number(row, "AUC") == close(truth)
        assert number(row, "AUC_low") < truth < number(row, "AUC_high")
        assert row["TuCo is"] == "higher"
        assert number(row, "TPR") == close(statistics.tpr_at_fpr(scores, text).value)


def test_a_group_below_the_baseline_is_called_so(tmp_path, report):
    rows = planted()
    found = report(write_run(tmp_path / "run", rows), against="chat").rows("auc", "group")
    text, chat = of(rows, "text"), of(rows, "chat")
    assert found["text"]["TuCo is"] == "lower"
    assert number(found["text"], "AUC") < 0.1
    assert number(found["text"], "TPR") == close(statistics.tpr_at_fpr(text, chat, above=False).value)


def test_an_effect_of_length_alone_is_gone_at_equal_length(tmp_path, report):
    """One group is longer, and TuCo falls with length and with nothing else."""
    draw = np.random.default_rng(0)
    group = ["short", "long"] * 1500
    tokens = [int(draw.integers(10, 120) + (40 if name == "long" else 0)) for name in group]
    tuco = [float(0.6 - length / 400 + draw.normal(0, 0.01)) for length in tokens]
    rows = scored_rows(tuco, group=group, prompt_tokens=tokens)
    written = report(write_run(tmp_path / "run", rows), against="short")
    row = written.rows("auc", "group")["long"]
    assert number(row, "AUC") < 0.3
    assert 0.38 < number(row, "AUC at equal length") < 0.5
    assert "much of the difference goes with length" in written.page
    pieces = written.table("auc_by_length")
    assert len(pieces) == 5
    for piece in pieces:
        low, high = number(piece, "shortest"), number(piece, "longest")
        inside = [(r["tuco"], r["group"] == "long") for r in rows if low <= r["prompt_tokens"] <= high]
        scores, labels = zip(*inside, strict=True)
        assert number(piece, "AUC") == close(roc_auc_score(labels, scores))
        assert int(piece["n"]) + int(piece["n baseline"]) == len(inside)
    assert sum(int(piece["n"]) + int(piece["n baseline"]) for piece in pieces) == len(rows)


def test_an_effect_that_length_does_not_explain_is_still_there(tmp_path, report):
    rows = planted()
    row = report(write_run(tmp_path / "run", rows)).rows("auc", "group")["chat"]
    assert number(row, "AUC at equal length") == pytest.approx(number(row, "AUC"), abs=0.02)


def test_groups_without_a_length_in_common_are_said_to_have_none(tmp_path, report):
    group = ["short", "long"] * 50
    tokens = [10 if name == "short" else 90 for name in group]
    rows = scored_rows([0.3 if name == "short" else 0.6 for name in group], group=group, prompt_tokens=tokens)
    written = report(write_run(tmp_path / "run", rows))
    assert written.rows("auc", "group")["long"]["AUC at equal length"] == ""
    assert "length alone may be what is seen" in written.page


def test_layers_are_the_means_of_the_lists(tmp_path, report):
    rows = planted(200)
    found = report(write_run(tmp_path / "run", rows)).rows("layers", "group", "layer")
    assert len(found) == 3 * 4
    for name in NAMES:
        ptc, ftc, own, cosines = (
            np.array([row[column] for row in rows if row["group"] == name], float)
            for column in ("cum_ptc_norms", "cum_ftc_norms", "ftc_norms", "cosines")
        )
        beta = ftc / (ptc + ftc)
        for layer in range(4):
            row = found[name, str(layer + 1)]
            assert number(row, "beta") == close(beta[:, layer].mean(), 1e-6)
            assert number(row, "beta sd") == close(beta[:, layer].std(ddof=1), 1e-5)
            assert number(row, "ftc_norms") == close(own[:, layer].mean(), 1e-6)
            if layer:
                assert number(row, "cosines") == close(cosines[:, layer].mean(), 1e-6)
            else:
                assert row["cosines"] == ""  # 0/0 in every row
    assert number(found["chat", "4"], "beta") == close(of(rows, "chat").mean(), 1e-6)


def test_a_column_of_numbers_is_looked_at_by_value(tmp_path, report):
    shots = [2 ** (number % 6) for number in range(300)]
    draw = np.random.default_rng(1)
    tuco = [0.8 - 0.1 * float(np.log2(each)) + draw.normal(0, 0.02) for each in shots]
    rows = scored_rows(tuco, shots=shots)
    written = report(write_run(tmp_path / "run", rows), by="shots")
    found = written.rows("by", "shots")
    assert [int(each) for each in found] == [1, 2, 4, 8, 16, 32]
    for value, row in found.items():
        scores = [score for score, each in zip(tuco, shots, strict=True) if each == int(value)]
        assert number(row, "TuCo") == close(np.mean(scores))
        assert int(row["n"]) == 50
    [correlated] = written.table("by_correlation")
    assert number(correlated, "Spearman") == close(stats.spearmanr(shots, tuco).statistic)


def test_a_column_of_many_values_is_cut_into_tenths(tmp_path, report):
    rows = planted(500)
    found = report(write_run(tmp_path / "run", rows)).table("by_length")
    text = [row for row in found if row["group"] == "text"]
    assert sum(int(row["n"]) for row in text) == len(of(rows, "text"))
    assert len(text) == 10
    for row in text:
        low, high = number(row, "from"), number(row, "to")
        inside = of(rows, "text")[
            (of(rows, "text", "prompt_tokens") >= low) & (of(rows, "text", "prompt_tokens") <= high)
        ]
        assert len(inside) == int(row["n"])
        assert number(row, "TuCo") == close(inside.mean())


def with_responses(rows, seed=0):
    draw = np.random.default_rng(seed)
    for row in rows:
        tucos = [row["tuco"], *draw.random(int(draw.integers(0, 30)))]
        row |= {"response_tucos": tucos, "response_tokens": len(tucos)}
        row |= {"response_tuco": float(np.mean(tucos)), "response_token_ids": [1] * len(tucos)}
        row |= {"output_co": row["tuco"] ** 2, "relative_reward": float(draw.normal(3, 1))}
        row |= {"logp_ft": -3.0, "logp_pt": -6.0}
    return rows


def test_positions_of_responses_are_the_means_of_those_that_are_as_long(tmp_path, report):
    rows = with_responses(planted(200))
    found = report(write_run(tmp_path / "run", rows)).rows("positions", "group", "token")
    for name in NAMES:
        lists = [row["response_tucos"] for row in rows if row["group"] == name]
        assert max(int(token) for group, token in found if group == name) == max(map(len, lists)) - 1
        for place in (0, 3, 20):
            there = [each[place] for each in lists if len(each) > place]
            row = found[name, str(place)]
            assert int(row["n"]) == len(there)
            assert number(row, "TuCo") == close(np.mean(there), 1e-6)
            assert number(row, "TuCo_high") == close(statistics.mean(there).high, 1e-5)


def test_output_co_and_reward_are_held_against_tuco(tmp_path, report):
    rows = with_responses(planted(200))
    written = report(write_run(tmp_path / "run", rows))
    for name in NAMES:
        row = written.rows("output_co", "group")[name]
        assert number(row, "OutputCo") == close((of(rows, name) ** 2).mean())
        assert number(row, "Spearman") == close(1.0)
        reward = of(rows, name, "relative_reward")
        row = written.rows("reward", "group")[name]
        assert number(row, "relative reward") == close(reward.mean())
        assert number(row, "Spearman") == close(stats.spearmanr(of(rows, name), reward).statistic)
        per_token = reward / of(rows, name, "response_tokens")
        assert number(written.rows("reward_per_token", "group")[name], "reward per token") == close(
            per_token.mean()
        )
        mean = number(written.rows("responses", "group")[name], "mean over the response")
        assert mean == close(of(rows, name, "response_tuco").mean())


def test_the_extremes_are_the_rows_with_their_texts(tmp_path, report):
    rows = planted(300)
    written = report(write_run(tmp_path / "run", rows, parts=4, row_group=20)).table("outliers")
    text = sorted((row for row in rows if row["group"] == "text"), key=lambda row: row["tuco"])
    found = {(row["end"], row["id"]): row for row in written if row["group"] == "text"}
    assert [name for end, name in found if end == "lowest"] == [row["id"] for row in text[:10]]
    assert [name for end, name in found if end == "highest"] == [row["id"] for row in text[:-11:-1]]
    for row in [*text[:10], *text[-10:]]:
        [shown] = [each for (_, name), each in found.items() if name == row["id"]]
        assert shown["prompt"] == row["prompt"]
        assert number(shown, "TuCo") == close(row["tuco"])


def test_beyond_the_limit_quantiles_are_a_sketch_and_comparisons_of_a_sample(tmp_path, report, monkeypatch):
    monkeypatch.setattr(cells, "EXACT_ROWS", 1000)
    monkeypatch.setattr(data, "SAMPLED", 500)
    rows = planted(6000)
    written = report(write_run(tmp_path / "run", rows))
    assert "t-digest" in written.page
    text, found = of(rows, "text"), written.rows("distribution", "group")["text"]
    assert number(found, "mean") == close(text.mean())
    assert number(found, "50%") == pytest.approx(np.median(text), abs=0.01)
    row = written.rows("auc", "group")["chat"]
    assert 800 < int(row["n"]) < 1200
    truth = statistics.auc(of(rows, "chat"), text).value
    assert number(row, "AUC_low") <= truth <= number(row, "AUC_high")
