"""What is done to a chunk on its way: tokenise, score. Pure functions of a chunk, wherever they run."""

from __future__ import annotations  # torch's types below are for the checker only

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from tuco_vllm.corpus.chunks import SOURCE_COLUMNS, TOKEN_COLUMNS, join, split
from tuco_vllm.corpus.feeder import SetAside
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.prompts import EncodedPrompt, PromptEncoder
from tuco_vllm.records import LAYERS, SCALARS, TucoScore, output_schema

if TYPE_CHECKING:
    from torch import Tensor


NOT_FINITE = (
    "its norms are not finite: a model overflowed (score in a --dtype of a larger range) or has such weights"
)


class Scores(Protocol):
    """Whatever scores many prompts: ``feeder.Feeder``."""

    def score(self, prompts: Sequence[list[int]]) -> Sequence[Tensor | str]:
        """Norms ``[L, 7]`` of each prompt of token ids, or the reason why there are none."""


def tokenised(chunk: pa.Table, encoder: PromptEncoder) -> pa.Table:
    """A source chunk -> a token chunk. Prompts that cannot be scored get an error and no tokens."""
    own, others = split(chunk, SOURCE_COLUMNS)
    ids, prompts, chats, errors = (column.to_pylist() for column in own)
    token_ids: list[list[int] | None] = []
    templated = []
    for row, (prompt, chat, error) in enumerate(zip(prompts, chats, errors, strict=True)):
        encoded = EncodedPrompt([], prompt, templated=False)
        # A row without a prompt has an error already.
        if error is None:
            try:
                encoded = encoder.encode(prompt if chat is None else json.loads(chat))
            except PromptError as refused:
                # A template may quote what is not text.
                errors[row] = str(refused).encode(errors="replace").decode()
        prompts[row] = encoded.text
        token_ids.append(encoded.token_ids or None)
        templated.append(encoded.templated)
    tokens = {
        "id": pa.array(ids, pa.string()),
        "prompt": pa.array(prompts, pa.string()),
        "token_ids": pa.array(token_ids, pa.list_(pa.int32())),
        "templated": pa.array(templated, pa.bool_()),
        "error": pa.array(errors, pa.string()),
    }
    return join({name: tokens[name] for name in TOKEN_COLUMNS}, others)


def scored(chunk: pa.Table, engine: Scores, *, layers: bool = True, prompt: bool = True) -> pa.Table:
    """A token chunk -> a scored chunk. Rows that the engine gives up get its reason as their error."""
    (row_ids, prompts, tokens, templated, told), others = split(chunk, TOKEN_COLUMNS)
    token_ids, errors = tokens.to_pylist(), told.to_pylist()
    given = [row for row, ids in enumerate(token_ids) if ids is not None]
    results = engine.score([token_ids[row] for row in given])
    scores: list[TucoScore | None] = [None] * chunk.num_rows
    set_aside = [False] * chunk.num_rows
    for row, result in zip(given, results, strict=True):
        if isinstance(result, str):
            errors[row], set_aside[row] = result, isinstance(result, SetAside)
        else:
            score = TucoScore.from_norms(result.tolist(), len(token_ids[row]))
            if math.isfinite(score.tuco):
                scores[row] = score
            else:
                errors[row] = NOT_FINITE

    values = {name: [getattr(s, name) if s else None for s in scores] for name in (*SCALARS, *LAYERS)}
    values["prompt_tokens"] = [s.num_prompt_tokens if s else None for s in scores]
    values["error"] = errors
    own = {"templated": templated, "set_aside": pa.array(set_aside, pa.bool_())}
    for field in output_schema(layers=layers, prompt=prompt):
        if field.name in ("id", "prompt"):
            own[field.name] = row_ids if field.name == "id" else prompts
        else:
            own[field.name] = pa.array(values[field.name], field.type)
    return join(own, others)
