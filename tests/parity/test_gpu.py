"""The engine on a CUDA device: attention backends, CUDA graphs and torch.compile against the float64 oracle.

FLASH_ATTN takes 16 bits only, so the comparison is bfloat16's: within twice Hugging Face's own error.
"""

import pytest
import tiny_models
import torch
from truth import assert_close

from tuco_vllm.config import resolve_pair
from tuco_vllm.engine.scorer import Scorer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("backend", ["FLASH_ATTN", "TRITON_ATTN"])
@pytest.mark.parametrize("pair_name", ["llama", "mistral_windowed_ft", "qwen3"])
def test_scores_on_a_gpu(pair_name: str, backend: str, compiled: bool, pair_dirs) -> None:
    pair = pair_dirs(pair_name, "bfloat16")
    scorer = Scorer(
        resolve_pair(*pair),
        dtype="bfloat16",
        attention_backend=backend,
        enforce_eager=not compiled,  # compiled runs small batches in piecewise CUDA graphs
        max_model_len=tiny_models.MAX_LEN,
        max_num_batched_tokens=512,
        max_num_seqs=64,
        gpu_memory_utilization=0.3,
    )
    try:
        for prompts in (tiny_models.prompts(100), tiny_models.prompts(3, seed=8, longest=20)):
            for _ in ("cold", "warm"):
                norms = torch.stack([norms for _, norms in scorer.stream(enumerate(prompts))])
                assert_close(norms.cpu(), pair, prompts, "bfloat16")
    finally:
        scorer.close()
