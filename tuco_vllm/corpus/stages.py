"""What is done to a chunk on its way: tokenise, score. Pure functions of a chunk, wherever they run."""

from __future__ import annotations  # torch's types below are for the checker only

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from tuco_vllm.corpus.chunks import SOURCE_COLUMNS, TOKEN_COLUMNS, join, split
from tuco_vllm.corpus.feeder import SetAside
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.prompts import EncodedPrompt, PromptEncoder
from tuco_vllm.records import TucoScore, output_schema
from tuco_vllm.responses import encode_with_response
from tuco_vllm.score_requests import NO_MORE, EngineInput, MoreScores, RowScores, engine_inputs

if TYPE_CHECKING:
    from torch import Tensor


_ATTRIBUTES = {"prompt_tokens": "num_prompt_tokens"}
"""A column whose name is another than its field's of a TucoScore."""

NOT_FINITE = (
    "its numbers are not finite: a model overflowed (score in a --dtype of larger range) or has such weights"
)


class Scores(Protocol):
    """Whatever scores many prompts: ``feeder.Feeder``."""

    def score(self, prompts: Sequence[EngineInput]) -> Sequence[Tensor | RowScores | str]:
        """Norms ``[L, 7]`` of each prompt of token ids, RowScores of ScoredTokens, or why there are none."""


def tokenised(chunk: pa.Table, encoder: PromptEncoder, *, rewarded: bool = False) -> pa.Table:
    """A source chunk -> a token chunk. Prompts that cannot be scored get an error and no tokens."""
    own, others = split(chunk, SOURCE_COLUMNS)
    ids, prompts, chats, responses, errors = (column.to_pylist() for column in own)
    token_ids: list[list[int] | None] = []
    response_ids: list[list[int] | None] = []
    templated = []
    for row, (prompt, chat, response, error) in enumerate(
        zip(prompts, chats, responses, errors, strict=True)
    ):
        encoded, followed = EncodedPrompt([], prompt, templated=False), None
        # A row without a prompt has an error already.
        if error is None:
            try:
                asked = prompt if chat is None else json.loads(chat)
                given = None if response is None else json.loads(response)
                encoded, followed = encode_with_response(encoder, asked, given, rewarded=rewarded)
            except PromptError as refused:
                # A template may quote what is not text.
                errors[row] = str(refused).encode(errors="replace").decode()
        prompts[row] = encoded.text
        responses[row] = None if followed is None else followed.text
        token_ids.append(encoded.token_ids or None)
        response_ids.append(None if followed is None else followed.token_ids)
        templated.append(encoded.templated)
    tokens = {
        "id": pa.array(ids, pa.string()),
        "prompt": pa.array(prompts, pa.string()),
        "token_ids": pa.array(token_ids, pa.list_(pa.int32())),
        "response": pa.array(responses, pa.string()),
        "response_ids": pa.array(response_ids, pa.list_(pa.int32())),
        "templated": pa.array(templated, pa.bool_()),
        "error": pa.array(errors, pa.string()),
    }
    return join({name: tokens[name] for name in TOKEN_COLUMNS}, others)


def scored(
    chunk: pa.Table,
    engine: Scores,
    *,
    layers: bool = True,
    prompt: bool = True,
    more: MoreScores = NO_MORE,
) -> pa.Table:
    """A token chunk -> a scored chunk. Rows that the engine gives up get its reason as their error."""
    (row_ids, prompts, tokens, texts, answers, templated, told), others = split(chunk, TOKEN_COLUMNS)
    token_ids, response_ids, errors = tokens.to_pylist(), answers.to_pylist(), told.to_pylist()
    asked = {
        row: engine_inputs(ids, answer, more)
        for row, (ids, answer) in enumerate(zip(token_ids, response_ids, strict=True))
        if ids is not None
    }
    answers = iter(engine.score([tokens for inputs in asked.values() for tokens in inputs]))
    scores: list[TucoScore | None] = [None] * chunk.num_rows
    set_aside = [False] * chunk.num_rows
    for row, inputs in asked.items():
        answered = [next(answers) for _ in inputs]
        refused = next((answer for answer in answered if isinstance(answer, str)), None)
        if refused is not None:
            errors[row], set_aside[row] = refused, isinstance(refused, SetAside)
            continue
        score = TucoScore.of(answered, inputs, response_ids[row], more)
        if score.is_finite:
            scores[row] = score
        else:
            errors[row] = NOT_FINITE

    own = {"templated": templated, "set_aside": pa.array(set_aside, pa.bool_())}
    given = {"id": row_ids, "prompt": prompts, "response": texts, "error": pa.array(errors, pa.string())}
    for field in output_schema(layers=layers, prompt=prompt, responses=True, more=more):
        if field.name in given:
            own[field.name] = given[field.name]
            continue
        name = _ATTRIBUTES.get(field.name, field.name)
        own[field.name] = pa.array([getattr(s, name) if s else None for s in scores], field.type)
    return join(own, others)
