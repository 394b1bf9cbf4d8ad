"""Which tokens are a response's: given apart, or as the turn that ends a chat; what is cut, what refused."""

import pytest
from fake_scorer import byte_level_tokenizer

from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.prompts import PromptEncoder
from tuco_vllm.responses import encode_with_response

TOKENIZER = byte_level_tokenizer(special=False)
WITH_SPECIAL = byte_level_tokenizer()
USER = {"role": "user", "content": "hi"}
PROMPT = "<|user|>hi\n<|assistant|>"
ENDING = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MOVING = "{{ messages | length }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def encoded(prompt, response=None, *, tokenizer=TOKENIZER, **options):
    encoder = PromptEncoder(tokenizer, **({"max_model_len": 60} | options))
    prompt, response = encode_with_response(encoder, prompt, response)
    return prompt, response


def tokens(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def assistant(content):
    return {"role": "assistant", "content": content}


def test_a_prompt_alone_has_none():
    prompt, response = encoded([USER])
    assert (prompt.token_ids, response) == (tokens(PROMPT), None)


def test_a_text_after_a_text():
    prompt, response = encoded("the quick", " brown fox")
    assert prompt.token_ids == tokens("the quick")
    assert prompt.token_ids + response.token_ids == tokens("the quick brown fox")
    assert response.text == " brown fox"


def test_tokens_that_reach_across_do_not_count():
    """Together the two are other tokens than the prompt's: the response is tokenised by itself."""
    assert tokens("the qu" + "ick")[: len(tokens("the qu"))] != tokens("the qu")
    prompt, response = encoded("the qu", "ick")
    assert (prompt.token_ids, response.token_ids) == (tokens("the qu"), tokens("ick"))


def test_special_tokens_are_the_prompts():
    prompt, response = encoded("the fox", " and", tokenizer=WITH_SPECIAL)
    assert prompt.token_ids == [0, *tokens("the fox"), 1]
    assert response.token_ids == tokens(" and")


@pytest.mark.parametrize("prompt", ["the fox", [USER], [5, 6]])
def test_token_ids_are_taken_as_they_are(prompt):
    _, response = encoded(prompt, [7, 8, 9])
    assert (response.token_ids, response.text) == ([7, 8, 9], None)


def test_a_text_after_a_chat_and_after_token_ids():
    prompt, response = encoded([USER], "yo\n")
    assert prompt.token_ids == tokens(PROMPT)
    assert response.token_ids == tokens("yo\n")
    assert encoded([5, 6], "yo")[1].token_ids == tokens("yo")


def test_the_turn_that_ends_a_chat_is_the_response():
    prompt, response = encoded([USER, assistant("yo")])
    assert (prompt.text, prompt.token_ids) == (PROMPT, tokens(PROMPT))
    assert (response.text, response.token_ids) == ("yo", tokens("yo"))


@pytest.mark.parametrize("content", ["yo", " yo \n", "[assistant]<end>", "a<end>b"])
def test_a_turn_has_its_end_token_and_no_space_behind_it(content):
    prompt, response = encoded([USER, assistant(content)], chat_template=ENDING)
    assert prompt.text == "[user]hi<end>\n[assistant]"
    assert response.text == content + "<end>"


def test_a_system_prompt_opens_both():
    prompt, response = encoded([USER, assistant("yo")], system_prompt="be brief")
    assert (prompt.text, response.text) == ("<|system|>be brief\n" + PROMPT, "yo")


@pytest.mark.parametrize(
    ("prompt", "response", "reason"),
    [
        ("the fox", "", "the response is empty"),
        ("the fox", [], "the response is empty"),
        ("the fox", "\ud800", "response holds a lone surrogate"),
        ("the fox", [1, "a"], "response's list holds a string"),
        ("the fox", [10**6], "token id 1000000 is not in FT's vocabulary"),
        ("the fox", 3, "the response is a number"),
        ("", "yo", "the prompt is empty"),
        ([], "yo", "the prompt is empty"),
        ([assistant("yo")], None, "a response needs a prompt"),
        ([USER, assistant("yo"), assistant("yo")], None, "two assistant turns"),
        ([USER, assistant("yo")], "and", "there is a response as well"),
        ([USER, assistant("")], None, "the response is empty"),
        ("the fox", [5] * 61, "response has 61 tokens, the limit is 60"),
        ([5] * 40, [5] * 22, "prompt has 40 tokens, the limit is 60 less 21 for its response"),
    ],
)
def test_what_cannot_be_is_refused(prompt, response, reason):
    with pytest.raises(PromptError, match=reason):
        encoded(prompt, response)


def test_a_template_that_begins_otherwise_when_a_turn_is_added_is_refused():
    with pytest.raises(PromptError, match="does not begin what it gives for prompt and response"):
        encoded([USER, assistant("yo")], chat_template=MOVING)


def test_all_that_the_model_reads_fits():
    """Of a response's tokens the last is only written."""
    prompt, response = encoded([5] * 40, [6] * 21)
    assert len(prompt.token_ids) + len(response.token_ids) == 61


def test_a_prompt_is_cut_from_the_left_and_a_response_never():
    ids = [*range(5, 45)]
    prompt, response = encoded(ids, [6] * 31, on_long="truncate-left")
    assert prompt.token_ids == ids[10:]
    assert response.token_ids == [6] * 31
    fits = encoded(ids[:30], [6] * 31, on_long="truncate-right")
    assert fits[0].token_ids == ids[:30]
    with pytest.raises(PromptError, match="cut from the left only"):
        encoded(ids, [6] * 31, on_long="truncate-right")
