"""bench/algorithm_1.py, the algorithm as one reads it in the paper, against the oracle."""

import pytest
import tiny_models
import tolerances
import torch
from transformers import AutoModelForCausalLM

from tuco_vllm.oracle import Oracle


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_it_is_the_oracle_in_sixty_lines(bench, pair_dirs, name):
    directories = pair_dirs(name, "float32")
    pt, ft = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32, attn_implementation="eager")
        for each in directories
    )
    oracle, algorithm = Oracle(*directories), bench("algorithm_1")
    for prompt in tiny_models.prompts(3):
        found = algorithm.tuco(pt, ft, torch.tensor([prompt]))
        assert abs(found - oracle.score(prompt).tuco) <= tolerances.TUCO_FLOAT32
