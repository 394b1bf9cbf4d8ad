"""The tokens that options begin with, and the grid."""

import pytest
from asking_models import encoder_of, write_pair

from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.sweep.asked import encoded_question
from tuco_vllm.sweep.grid import PAPER_ALPHAS, Point, grid, parse_alphas, parse_layers
from tuco_vllm.sweep.question import Question


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return encoder_of(write_pair(tmp_path_factory.mktemp("pair"))[1])


def asked(encoder, prompt, *options):
    found = encoded_question(encoder, Question("", "", None, prompt, options, 0))
    return encoder.tokenizer.convert_ids_to_tokens(found.options)


def test_an_option_is_the_token_after_the_prompts(encoder):
    assert asked(encoder, "Answer:", " A", " D") == ["ĠA", "ĠD"]
    assert asked(encoder, "Answer:", " Yes, I do", " No") == ["ĠYes", "ĠNo"]
    chat = [{"role": "user", "content": "Would you?"}]
    assert asked(encoder, chat, "Yes", "No") == ["Ye", "No"]


def test_where_prompt_and_option_grow_together_the_option_is_tokenised_alone(encoder):
    # "Answer: " ends with a token of its own, which " A" takes in.
    together = encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer.encode("Answer: A"))
    assert together[-1] == "ĠA"
    assert asked(encoder, "Answer: ", "A", "D or not") == ["A", "D"]


def test_options_that_begin_alike_are_an_error(encoder):
    with pytest.raises(PromptError, match="' x' and ' y' begin with the same token"):
        asked(encoder, "Answer:", " x", " y")
    with pytest.raises(PromptError, match="' A' and ' A and more' begin with the same token"):
        asked(encoder, "Answer:", " A", " B", " A and more")


def test_equal_questions_have_one_digest_whatever_the_order_of_options(encoder):
    def digest(prompt, *options):
        return encoded_question(encoder, Question("", "", None, prompt, options, 0)).digest

    assert digest("Q:", " A", " B") == digest("Q:", " B", " A")
    assert len({digest("Q:", " A", " B"), digest("Q:", " A", " C"), digest("R:", " A", " B")}) == 3


def test_a_prompt_that_is_too_long_says_so(encoder):
    encoder.max_model_len = 4
    try:
        with pytest.raises(PromptError, match="limit"):
            asked(encoder, "Answer: far too long", " A", " B")
    finally:
        encoder.max_model_len = None


def test_the_grid_has_every_alpha_in_every_range_and_always_1():
    assert grid([2, 0.5, 0.5], [(0, 1), (2, 3), (0, 1)], 5) == tuple(
        Point(alpha, *layers) for layers in [(0, 1), (2, 3)] for alpha in (0.5, 1.0, 2.0)
    )
    assert [point.alpha for point in grid(PAPER_ALPHAS, [], 5)] == [0.75, 0.9, 0.95, 1, 1.05, 1.1, 1.25]
    assert {point[1:] for point in grid(PAPER_ALPHAS, [], 5)} == {(0, 4)}


def test_a_point_is_a_number_where_all_layers_are_scaled_or_none():
    assert Point(0.5, 0, 4).scale(5) == 0.5
    assert Point(1.0, 1, 2).scale(5) == 1.0
    assert Point(0.5, 1, 4).scale(5) == {"value": 0.5, "layers": [1, 4]}


@pytest.mark.parametrize(
    "alphas", ["nan", "inf", "-0.1", "2.01", "1e400", "0.9,nan", "1,", "", "true", "one"]
)
def test_an_alpha_that_no_engine_takes_is_refused(alphas):
    with pytest.raises(InputError):
        grid(parse_alphas(alphas), [], 5)


@pytest.mark.parametrize("layers", ["0-5", "3-2", "1", "-1", "a-b", "0-", "0:3", "١-٢", "0-" + "9" * 99, ""])
def test_a_range_that_no_engine_takes_is_refused(layers):
    with pytest.raises(InputError, match="layers"):
        grid([0.5], [parse_layers(layers)], 5)
    assert grid([0.5], [parse_layers("0-4")], 5)
