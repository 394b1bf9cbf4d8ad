"""What is done to a chunk on its way: tokenise, score. Pure functions of a chunk, wherever they run.

Of short prompts an engine does thousands a second, so what a row takes here is kept to microseconds: plain
strings are tokenised together, and norms become columns without a Python object for a number.
"""

from __future__ import annotations  # torch's types below are for the checker only

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tuco_vllm.adapter import Adapter
from tuco_vllm.corpus.chunks import SOURCE_COLUMNS, TOKEN_COLUMNS, join, split
from tuco_vllm.corpus.feeder import SetAside
from tuco_vllm.metrics import Floats
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.prompts import EncodedPrompt, PromptEncoder
from tuco_vllm.records import TucoScore, numbers_of, output_schema
from tuco_vllm.responses import EncodedResponse, encode_with_response
from tuco_vllm.score_requests import (
    NO_MORE,
    Adapted,
    EngineInput,
    MoreScores,
    RowScores,
    ScoredTokens,
    engine_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor


NOT_FINITE = (
    "its numbers are not finite: a model overflowed (score in a --dtype of larger range) or has such weights"
)
_NAN_IS_NULL = ("cosine", "cancellation", "cosines")


class Scores(Protocol):
    """Whatever scores many prompts: ``feeder.Feeder``."""

    def score(self, prompts: Sequence[EngineInput | Adapted]) -> Sequence[Tensor | RowScores | str]:
        """Norms ``[L, 7]`` of each prompt of token ids, RowScores of ScoredTokens, or why there are none."""


def tokenised(chunk: pa.Table, encoder: PromptEncoder, *, rewarded: bool = False) -> pa.Table:
    """A source chunk -> a token chunk. Prompts that cannot be scored get an error and no tokens."""
    (row_ids, *own), others = split(chunk, SOURCE_COLUMNS)
    prompts, chats, responses, errors = (column.to_pylist() for column in own)
    plain = zip(prompts, responses, errors, strict=True)
    known = encoder.tokens_of(text for text, *rest in plain if text is not None and rest == [None, None])
    token_ids: list[list[int] | None] = []
    response_ids: list[list[int] | None] = []
    templated = []
    for row, (prompt, chat, response, error) in enumerate(
        zip(prompts, chats, responses, errors, strict=True)
    ):
        encoded: EncodedPrompt | None = None
        followed: EncodedResponse | None = None
        # A row without a prompt has an error already.
        if error is None:
            try:
                asked = prompt if chat is None else json.loads(chat)
                given = None if response is None else json.loads(response)
                ids = known.get(prompt) if chat is None else None
                encoded, followed = encode_with_response(encoder, asked, given, rewarded=rewarded, ids=ids)
            except PromptError as refused:
                # A template may quote what is not text.
                errors[row] = str(refused).encode(errors="replace").decode()
        prompts[row] = prompt if encoded is None else encoded.text
        responses[row] = None if followed is None else followed.text
        token_ids.append(None if encoded is None else encoded.token_ids)
        response_ids.append(None if followed is None else followed.token_ids)
        templated.append(encoded is not None and encoded.templated)
    tokens = {
        "id": row_ids,
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
    under: Adapter | None = None,
    ft: str | None = None,
) -> pa.Table:
    """A token chunk -> a scored chunk. Rows that the engine gives up get its reason as their error.

    ``under``: another adapter than the engine's own. ``ft``: what rows say that they were scored under, where
    there are several.
    """
    (row_ids, prompts, tokens, texts, answers, templated, told), others = split(chunk, TOKEN_COLUMNS)
    norms, scores, refused = _ask(engine, tokens.to_pylist(), answers.to_pylist(), more, under)
    numbers = numbers_of(np.stack([*norms.values()]) if norms else np.empty((0, 1, 7)))
    errors, places = told.to_pylist(), np.full(chunk.num_rows, -1)
    for place, (row, finite) in enumerate(zip(norms, np.isfinite(numbers["tuco"]), strict=True)):
        if finite and (row not in scores or scores[row].is_finite):
            places[row] = place
        else:
            scores.pop(row, None)
            errors[row] = NOT_FINITE
    set_aside = np.zeros(chunk.num_rows, np.bool_)
    for row, reason in refused.items():
        errors[row], set_aside[row] = reason, isinstance(reason, SetAside)

    place_or_null = pa.array(places, mask=places < 0)
    own = {"templated": templated, "set_aside": pa.array(set_aside)}
    given = {"id": row_ids, "prompt": prompts, "response": texts, "error": pa.array(errors, pa.string())}
    given["prompt_tokens"] = pc.if_else(place_or_null.is_valid(), pc.list_value_length(tokens), None)
    given["ft"] = pa.repeat(pa.scalar(ft, pa.string()), chunk.num_rows)
    for field in output_schema(
        layers=layers, prompt=prompt, responses=True, more=more, several=ft is not None
    ):
        name = field.name
        if name in given:
            own[name] = given[name]
        elif name in numbers:
            own[name] = _number_column(field, numbers[name]).take(place_or_null)
        elif scores:
            values = [getattr(scores.get(row), name, None) for row in range(chunk.num_rows)]
            own[name] = pa.array(values, field.type)
        else:
            own[name] = pa.nulls(chunk.num_rows, field.type)
    return join(own, others)


def _ask(
    engine: Scores,
    token_ids: Sequence[list[int] | None],
    response_ids: Sequence[list[int] | None],
    more: MoreScores,
    under: Adapter | None,
) -> tuple[dict[int, Any], dict[int, TucoScore], dict[int, str]]:
    """By row: the norms ``[L, 7]``, the scores of those of which more is known, and why there are none."""
    asked = [
        [] if ids is None else engine_inputs(ids, response, more)
        for ids, response in zip(token_ids, response_ids, strict=True)
    ]
    prompts = [each for inputs in asked for each in inputs]
    answers = iter(engine.score(prompts if under is None else [Adapted(each, under) for each in prompts]))
    norms: dict[int, Any] = {}
    scores: dict[int, TucoScore] = {}
    refused: dict[int, str] = {}
    for row, inputs in enumerate(asked):
        answered: list[Any] = [next(answers) for _ in inputs]
        for answer in answered:
            if isinstance(answer, str):
                refused.setdefault(row, answer)
        if not inputs or row in refused:
            continue
        norms[row] = answered[0]
        if isinstance(inputs[0], ScoredTokens):
            norms[row] = answered[0].norms
            scores[row] = TucoScore.of(answered, inputs, response_ids[row], more)
    return norms, scores, refused


def _number_column(field: pa.Field, values: Floats) -> pa.Array:
    """Of N prompts: ``values`` ``[N]`` of a scalar, ``[N, L]`` of a list with a number for each layer."""
    as_null = field.name in _NAN_IS_NULL
    if values.ndim == 1:
        return pa.array(values, field.type, from_pandas=as_null)
    count, layers = values.shape
    flat = pa.array(values.astype(np.float32).ravel(), from_pandas=as_null)
    return pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * layers, flat, type=field.type)
