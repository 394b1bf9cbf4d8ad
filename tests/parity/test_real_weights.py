"""Weights that were trained, where there are some: TUCO_REAL_PAIR=PT:FT, two models' directories.

Random weights hide what training makes: a few dimensions of the stream that are a hundred times the others.
"""

import os
import random

import pytest
from engines import in_this_process
from scored import ScoringEngine
from truth import assert_rows_close, read

from tuco_vllm.prompts import load_tokenizer

PAIR = os.environ.get("TUCO_REAL_PAIR", "")
TEXT = (
    "It was a bright cold day in April, and the clocks were striking thirteen. How do I bake bread? Mix "
    "flour, water, salt and yeast; let the dough rise for two hours. def area(r): return 3.14159 * r ** 2\n\n"
)


@pytest.mark.skipif(":" not in PAIR, reason="no trained pair: TUCO_REAL_PAIR=PT:FT")
def test_a_trained_pair_is_the_oracles() -> None:
    """In float32, whole and in chunks, cold and warm; a response of every length too."""
    pt, _, ft = PAIR.partition(":")
    ids = load_tokenizer(ft).encode(TEXT * 3)
    draw = random.Random(1)
    starts = [draw.randrange(len(ids) - 100) for _ in range(8)]
    prompts = [ids[start : start + draw.randrange(1, 100)] for start in starts]
    asked = [read(prompt, ids[: 1 + place * 5]) for place, prompt in enumerate(prompts)]
    arguments = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
        "block_size": 32,
        "kv_cache_memory_bytes": 1 << 30,
    }
    with in_this_process():
        engine = ScoringEngine((pt, ft), "float32", arguments)
        try:
            engine.check(prompts)
            engine.check(prompts)
            found = [rows for _, rows in engine.scorer.stream(enumerate(asked))]
            assert_rows_close(found, asked, engine.pair, "float32")
        finally:
            engine.scorer.close()
