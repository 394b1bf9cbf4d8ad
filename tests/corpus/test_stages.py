"""Tokenising and scoring a chunk, where a row goes wrong on the way."""

import pyarrow as pa
import pytest
import torch
from fake_scorer import byte_level_tokenizer, fake_norms

from tuco_vllm.corpus.chunks import SOURCE_COLUMNS
from tuco_vllm.corpus.stages import scored, tokenised
from tuco_vllm.prompts import PromptEncoder
from tuco_vllm.records import LAYERS, SCALARS


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_row_whose_norms_overflowed_has_an_error_and_no_score(bad) -> None:
    class Overflowing:
        def score(self, prompts):
            norms = [torch.tensor(fake_norms(prompt)) for prompt in prompts]
            norms[1][-1, 2:] = bad
            return norms

    nothing = [None] * 3
    columns = (["0", "1", "2"], ["a", "b", "c"], nothing, nothing, nothing)
    chunk = pa.table([pa.array(column, pa.string()) for column in columns], names=SOURCE_COLUMNS)
    table = scored(tokenised(chunk, PromptEncoder(byte_level_tokenizer())), Overflowing())
    assert [error is None for error in table["error"].to_pylist()] == [True, False, True]
    assert "not finite" in table["error"][1].as_py()
    for name in (*SCALARS, *LAYERS, "prompt_tokens"):
        assert [value is None for value in table[name].to_pylist()] == [False, True, False]
