"""Scores that travel behind logprobs come out as they went in, and logprobs without a trace of them."""

import numpy as np
import pytest
import torch

from tuco_vllm.engine.compat import LogprobsTensors
from tuco_vllm.engine.score_columns import COLUMN, append_scores, rows_of_request, split_scores

ROWS, LAYERS = 5, 3
SCORES = torch.randn(ROWS, 7 * LAYERS)


def logprobs(columns: int) -> LogprobsTensors:
    return LogprobsTensors(
        torch.randint(0, 99, (ROWS, columns)), torch.randn(ROWS, columns), torch.arange(ROWS)
    )


@pytest.mark.parametrize("columns", [1, 4])
def test_behind_real_logprobs(columns: int) -> None:
    real = logprobs(columns)
    lists, scores = split_scores(append_scores(real, SCORES).tolists())
    assert np.array_equal(scores, SCORES.numpy())
    assert np.array_equal(lists.logprobs, real.logprobs.numpy())
    assert np.array_equal(lists.logprob_token_ids, real.logprob_token_ids.numpy())
    assert np.array_equal(lists.sampled_token_ranks, real.selected_token_ranks.numpy())


def test_without_real_logprobs() -> None:
    lists, scores = split_scores(append_scores(None, SCORES, [0, 2, 5]).tolists())
    assert lists is None
    assert np.array_equal(scores, SCORES.numpy())


def test_steps_without_scores_are_left_alone() -> None:
    assert split_scores(None) == (None, None)
    real = logprobs(2).tolists()
    lists, scores = split_scores(real)
    assert lists is real
    assert scores is None


def test_a_filter_of_rejected_drafts_takes_the_scores_along() -> None:
    kept = torch.tensor([True, False, True, True, False])
    lists = append_scores(logprobs(2), SCORES).filter(kept).tolists([0, 2, 3])
    columns = lists
    _, scores = split_scores(lists)
    assert np.array_equal(scores, SCORES[kept].numpy())
    assert np.array_equal(
        rows_of_request(columns, scores, 1, 1, LAYERS, False), SCORES[3].reshape(1, LAYERS, 7).numpy()
    )
    assert np.array_equal(
        rows_of_request(columns, scores, 0, 2, LAYERS, False), SCORES[[0, 2]].reshape(2, LAYERS, 7).numpy()
    )


def test_what_is_read_of_a_prompt_says_how_long_it_is() -> None:
    scores = np.array([[9.0, 9.0, 9.0, 9.0], [2.0, 5.0, 6.0, 0.0]], dtype=np.float32)
    found = rows_of_request(
        append_scores(None, torch.from_numpy(scores)).tolists(), scores, 1, 1, LAYERS, True
    )
    assert found.tolist() == [[5.0, 6.0]]


def test_the_marker_is_no_token() -> None:
    assert COLUMN < 0
    assert np.int32(COLUMN) == COLUMN  # vLLM's ids are int32 on V1 and V2
