"""Pipeline stages, two of them on a CPU: what the first has summed up is in what the second returns."""

from contextlib import closing

import tiny_models
from cells import Cell
from scored import ScoringEngine, assert_own_streams_are_true, assert_responses_are_true


def test_two_stages_are_the_oracles(pair_dirs) -> None:
    """Compiled, since vLLM has no eager stages on a CPU; cold, then warm, in small steps."""
    pair = pair_dirs("llama", "float32")
    arguments = Cell("llama", compiled=True, chunk=48).engine_args() | {"pipeline_parallel_size": 2}
    engine = ScoringEngine(pair, "float32", arguments)
    with closing(engine.scorer):
        prompts = tiny_models.prompts(24)
        engine.check(prompts)
        engine.check(prompts)
        assert_responses_are_true(engine.scorer.stream, pair, "float32")
        assert_own_streams_are_true(engine.scorer.stream, pair, "float32")
