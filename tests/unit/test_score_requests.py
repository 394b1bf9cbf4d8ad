"""What engines are asked for one prompt, and a score put together from their answers."""

import pytest
import torch

from tuco_vllm.errors import InputError
from tuco_vllm.records import TucoScore
from tuco_vllm.score_requests import ALL_MORE, NO_MORE, MoreScores, RowScores, engine_inputs
from tuco_vllm.steering import Asked

PROMPT, RESPONSE = [5, 6, 7], [8, 9]
NORMS = torch.tensor([[1.0, 2.0, 6.0, 2.0, 3.0, 1.0, 0.5]])


def test_a_prompt_alone_is_its_token_ids():
    assert engine_inputs(PROMPT, None, NO_MORE) == [PROMPT]
    assert engine_inputs(PROMPT, None, MoreScores(relative_reward=True)) == [PROMPT]


def test_a_response_is_read_but_for_its_last_token():
    [asked] = engine_inputs(PROMPT, RESPONSE, NO_MORE)
    assert (asked.token_ids, asked.asked, asked.num_rows) == ([5, 6, 7, 8], Asked(2, 2), 2)
    [traced] = engine_inputs(PROMPT, RESPONSE, MoreScores(trace=True))
    assert (traced.asked, traced.num_rows) == (Asked(0, 2), 4)


def test_each_stream_of_pt_is_a_request_of_its_own():
    ft, layers, whole = engine_inputs(PROMPT, RESPONSE, ALL_MORE)
    assert ft.asked == Asked(0, 2, (8, 9), state=True)
    assert (layers.token_ids, layers.asked) == (PROMPT, Asked(2, 2, state=True, stream="pt-layers"))
    assert (whole.token_ids, whole.asked) == ([5, 6, 7, 8], Asked(2, 2, (8, 9), stream="pt"))


def test_answers_become_one_score():
    inputs = engine_inputs(PROMPT, RESPONSE, ALL_MORE)
    state = torch.tensor([1.0, -2.0])
    answers = [
        RowScores(NORMS, torch.tensor([0.1, 0.2, 0.25, 0.4]), state, torch.tensor([-1.0, -3.0])),
        RowScores(None, None, state + torch.tensor([0.5, -0.5])),
        RowScores(None, None, None, torch.tensor([-2.0, -2.5])),
    ]
    score = TucoScore.of(answers, inputs, RESPONSE, ALL_MORE)
    assert score.tuco == 0.25
    assert score.output_co == pytest.approx(1 / (4 + 1))
    assert (score.response_logps_ft, score.response_logps_pt) == ([-1.0, -3.0], [-2.0, -2.5])
    assert (score.logp_ft, score.logp_pt, score.relative_reward) == (-4.0, -4.5, 0.5)
    assert score.response_tucos == pytest.approx([0.25, 0.4])
    assert score.prompt_tucos == pytest.approx([0.1, 0.2, 0.25])
    assert score.is_finite


@pytest.mark.parametrize("which", ["response_logps_ft", "response_logps_pt", "output_co"])
def test_an_overflow_in_any_of_them_is_seen(which):
    score = TucoScore.from_norms(NORMS.tolist(), 3)
    bad = float("nan") if which == "output_co" else [0.0, float("-inf")]
    object.__setattr__(score, which, bad)
    assert not score.is_finite


def test_a_wish_is_checked_where_it_comes_from_outside():
    asked = Asked(1, 4, (7, 8), state=True, stream="pt")
    assert Asked.of(list(asked)) == asked
    assert Asked.of([1, 4, [7, 8], True, "pt"]) == asked
    assert Asked.of(None) is None
    good = [1, 4, [], False, "ft"]
    changed = {0: [5, -1, True], 1: [0, 4.0], 2: [None, [-1], ["a"]], 3: [1, None], 4: ["other", None]}
    lists = [[*good[:n], bad, *good[n + 1 :]] for n, several in changed.items() for bad in several]
    for bad in ([1, 4], "ft", 5, {}, *lists):
        with pytest.raises(InputError, match="tuco_rows is no row of a prompt"):
            Asked.of(bad)
