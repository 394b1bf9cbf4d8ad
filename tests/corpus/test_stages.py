"""Tokenising and scoring a chunk: as row by row, whatever goes wrong with rows on the way."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from fake_scorer import byte_level_tokenizer, fake_norms, fake_rows, fake_score

from tuco_vllm.corpus.chunks import SOURCE_COLUMNS, TOKEN_COLUMNS
from tuco_vllm.corpus.feeder import SetAside
from tuco_vllm.corpus.stages import scored, tokenised
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.prompts import PromptEncoder
from tuco_vllm.records import LAYERS, SCALARS, TucoScore, output_schema
from tuco_vllm.responses import encode_with_response
from tuco_vllm.score_requests import ALL_MORE, NO_MORE, MoreScores, ScoredTokens

TOKENIZER = byte_level_tokenizer()
CHAT = [{"role": "user", "content": "hi"}]
TEXTS = ["the fox", "", "x" * 30, "x" * 31, "y" * 400, "<s> in <s>", "é\0\U0001f98a", " ", "the fox", "\n\n"]


def source(rows):
    """A chunk of rows (prompt, chat, response, error)."""
    columns = [[str(n) for n in range(len(rows))], *([row[n] for row in rows] for n in range(4))]
    return pa.table([pa.array(column, pa.string()) for column in columns], names=SOURCE_COLUMNS)


def texts(*prompts):
    return source([(prompt, None, None, None) for prompt in prompts])


def alone(encoder, prompt, response=None):
    """The text, the tokens and the error of a prompt by itself."""
    try:
        encoded, _ = encode_with_response(encoder, prompt, response)
    except PromptError as refused:
        return prompt if isinstance(prompt, str) else None, None, str(refused)
    return encoded.text, encoded.token_ids, None


class Scores:
    """FakeScorer's scores; ``change`` is given the answers."""

    def __init__(self, change=list):
        self.change = change

    def score(self, prompts):
        return self.change(
            [
                fake_rows(asked) if isinstance(asked, ScoredTokens) else torch.tensor(fake_norms(asked))
                for asked in prompts
            ]
        )


@pytest.mark.parametrize("on_long", ["error", "truncate-left", "truncate-right"])
@pytest.mark.parametrize("limit", [None, 1, 7, 32])
@pytest.mark.parametrize("system", [None, "be brief"])
def test_strings_get_the_tokens_and_errors_that_they_get_one_by_one(on_long, limit, system):
    encoder = PromptEncoder(TOKENIZER, on_long=on_long, max_model_len=limit, system_prompt=system)
    table = tokenised(texts(*TEXTS), encoder)
    assert table.column_names == list(TOKEN_COLUMNS)
    for prompt, row in zip(TEXTS, table.to_pylist(), strict=True):
        assert (row["prompt"], row["token_ids"], row["error"]) == alone(encoder, prompt)
        assert row["templated"] == (system is not None and row["error"] is None)


def test_strings_are_given_to_the_tokenizer_in_one_call():
    calls = []

    class Own(type(TOKENIZER)):
        def encode(self, text, **options):
            calls.append(text)
            return super().encode(text, **options)

    encoder = PromptEncoder(Own(tokenizer_object=TOKENIZER.backend_tokenizer), max_model_len=32)
    tokenised(texts("a", "b"), encoder)  # what is found out once has been
    calls.clear()
    tokenised(texts("the fox", "a dog", "the fox", "", "x" * 31), encoder)
    assert calls == ["the fox"]


def test_what_a_tokenizer_does_of_its_own_is_done_to_each():
    class Own(type(TOKENIZER)):
        def encode(self, text, **options):
            return [7, *super().encode(text, **options)]

    own = Own(tokenizer_object=TOKENIZER.backend_tokenizer)
    table = tokenised(texts("the fox", "a dog"), PromptEncoder(own))
    assert table["token_ids"].to_pylist() == [own.encode("the fox"), own.encode("a dog")]


def test_a_tokenizers_own_limit_and_padding_are_not_a_jobs():
    own = byte_level_tokenizer()
    own.backend_tokenizer.enable_truncation(3)
    own.backend_tokenizer.enable_padding(length=9)
    table = tokenised(texts("the fox", "a"), PromptEncoder(own))
    assert table["token_ids"].to_pylist() == [TOKENIZER.encode("the fox"), TOKENIZER.encode("a")]


def test_rows_of_all_kinds_stand_side_by_side():
    """With a text that others have, too, a chat, a response, token ids after a prompt, and errors."""
    chat, answer = json.dumps(CHAT), json.dumps(" and")
    rows = [("a", None, None, None), ("a", None, answer, None), (None, chat, None, None)]
    rows += [("a", None, None, "broken"), (None, None, None, "no prompt"), ("a", None, "[7, 8]", None)]
    rows += [(None, "[]", None, None), ("z" * 99, None, None, None), ("a", None, None, None)]
    encoder = PromptEncoder(TOKENIZER, max_model_len=20)
    table = tokenised(source(rows), encoder).to_pylist()
    for (prompt, chat, response, error), row in zip(rows, table, strict=True):
        asked = prompt if chat is None else json.loads(chat)
        given = None if response is None else json.loads(response)
        expected = (prompt, None, error) if error else alone(encoder, asked, given)
        assert (row["prompt"], row["token_ids"], row["error"]) == expected
        assert (row["response_ids"] is None) == (given is None)


def tokens(*prompts, more=NO_MORE):
    return tokenised(texts(*prompts), PromptEncoder(TOKENIZER), rewarded=more.relative_reward)


def norms(count, layers=32):
    random = np.random.default_rng(count)
    made = random.lognormal(3, 2, (count, layers, 7)).astype(np.float32)
    made[:, :, 6] = random.uniform(-1, 1, (count, layers))
    made[0, :, 1::2] = 0  # a model that changes nothing
    made[1] = 0
    made[:2, :, 6] = np.nan
    made[2, 5, 6] = np.nan
    return made


@pytest.mark.parametrize("as_answer", [torch.from_numpy, np.asarray])
def test_columns_of_many_are_the_scores_of_each(as_answer):
    made = norms(200)
    chunk = tokens(*(f"p{n}" for n in range(200)))
    table = scored(chunk, Scores(lambda _: [as_answer(each) for each in made]))
    fixed = [field for field in output_schema(responses=True) if field.name in (*SCALARS, *LAYERS)]
    for field in fixed:
        expected = [getattr(TucoScore.from_norms(each.tolist(), 1), field.name) for each in made]
        assert table[field.name].combine_chunks() == pa.array(expected, field.type)
    assert table["prompt_tokens"].to_pylist() == [len(ids) for ids in chunk["token_ids"].to_pylist()]
    assert table["error"].null_count == 200
    assert table["cosine"].null_count == table["cancellation"].null_count == 2
    assert not any(table["set_aside"].to_pylist())


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("more", [NO_MORE, MoreScores(trace=True)])
def test_a_row_whose_norms_overflowed_has_an_error_and_no_score(bad, more) -> None:
    def overflow(answers):
        norms = answers[1].norms if more.trace else answers[1]
        norms[-1, 2:] = bad
        return answers

    table = scored(tokens("a", "b", "c"), Scores(overflow), more=more)
    assert [error is None for error in table["error"].to_pylist()] == [True, False, True]
    assert "not finite" in table["error"][1].as_py()
    for name in (*SCALARS, *LAYERS, "prompt_tokens", *(["prompt_tucos"] if more.trace else [])):
        assert [value is None for value in table[name].to_pylist()] == [False, True, False]


def test_a_row_that_is_given_up_has_the_reason_as_its_error():
    reasons = [SetAside("died twice"), "no good"]
    chunk = tokens("a", "b", "", "c", "d")
    table = scored(chunk, Scores(lambda answers: [answers[0], reasons[0], reasons[1], *answers[3:]]))
    errors = [None, "died twice", "the prompt is empty", "no good", None]
    assert table["error"].to_pylist() == errors
    assert table["set_aside"].to_pylist() == [False, True, False, False, False]
    for name in (*SCALARS, *LAYERS, "prompt_tokens"):
        values = table[name].to_pylist()
        assert [value is None for value in values] == [error is not None for error in errors]
    assert table["tuco"][4].as_py() == fake_score(chunk["token_ids"][4].as_py()).tuco


@pytest.mark.parametrize("prompts", [[], [""], ["", ""]])
def test_nothing_to_score(prompts):
    table = scored(tokens(*prompts), Scores(), more=ALL_MORE)
    assert table.num_rows == len(prompts)
    for field in output_schema(responses=True, more=ALL_MORE):
        assert table[field.name].type == field.type


def test_rows_with_responses_beside_rows_without():
    chunk = tokenised(
        source([("a", None, '" and"', None), ("b", None, None, None)]), PromptEncoder(TOKENIZER)
    )
    answered, alone = scored(chunk, Scores()).to_pylist()
    for row, ids in zip((answered, alone), chunk["token_ids"].to_pylist(), strict=True):
        score = fake_score(ids)
        assert all(row[name] == getattr(score, name) for name in (*SCALARS, *LAYERS))
        assert row["prompt_tokens"] == len(ids)
    assert answered["response_token_ids"] == chunk["response_ids"][0].as_py()
    assert answered["response_tucos"][0] == pytest.approx(answered["tuco"])
    assert alone["response_tucos"] is alone["response_token_ids"] is alone["response_tokens"] is None
