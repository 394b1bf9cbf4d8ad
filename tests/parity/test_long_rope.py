"""Phi-3's long factors, for positions beyond those it was first trained on.

vLLM takes them for every prompt of an engine that allows longer ones, Hugging Face for the prompts that are
longer: the two agree on these.
"""

from contextlib import closing

import pytest
import tiny_models
from cells import Cell
from scored import ScoringEngine

FIRST_TRAINED_ON = 64


@pytest.mark.usefixtures("in_process")
def test_long_factors(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pt, ft = tiny_models.PAIRS["phi3"]
    rope = {**pt["rope_parameters"], "original_max_position_embeddings": FIRST_TRAINED_ON}
    pt = {**pt, "original_max_position_embeddings": FIRST_TRAINED_ON, "rope_parameters": rope}
    monkeypatch.setitem(tiny_models.PAIRS, "phi3_long", (model, pt, ft))
    pair = tiny_models.make_pair("phi3_long", tmp_path)
    drawn = tiny_models.prompts(24)
    longer = [prompt for prompt in drawn if len(prompt) > FIRST_TRAINED_ON]
    others = [prompt for prompt in drawn if 1 < len(prompt) <= FIRST_TRAINED_ON]
    cell = Cell("phi3_long", chunk=48)
    engine = ScoringEngine(pair, cell.dtype, cell.engine_args())
    with closing(engine.scorer):
        engine.check(longer)
        engine.check(longer)  # from the prefix cache
        with pytest.raises(AssertionError):  # the factors make a difference
            engine.check(others)
