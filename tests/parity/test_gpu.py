"""The engine on a CUDA device: attention backends, CUDA graphs and torch.compile against the float64 oracle.

FLASH_ATTN takes 16 bits only, so the comparison is bfloat16's: within twice Hugging Face's own error.
"""

import pytest
import steered
import tiny_models
import torch
from truth import assert_close
from vllm import SamplingParams

from tuco_vllm import TucoLLM
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


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("pair_name", ["llama", "qwen3"])
def test_steers_on_a_gpu(pair_name: str, compiled: bool, pair_dirs) -> None:
    """A mixed batch in float32, token by token the oracle's; plain requests beside it stay plain."""
    pair = pair_dirs(pair_name, "float32")
    prompts, alphas = steered.requests(64)
    greedy = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    with TucoLLM(
        *pair,
        task="generate",
        dtype="float32",
        attention_backend="TRITON_ATTN",  # FLASH_ATTN takes 16 bits only
        enforce_eager=not compiled,
        max_model_len=tiny_models.MAX_LEN,
        max_num_batched_tokens=96,
        max_num_seqs=64,
        gpu_memory_utilization=0.3,
    ) as llm:
        for _ in ("cold", "warm"):
            for output, prompt, alpha in zip(
                llm.generate(prompts, greedy, alphas), prompts, alphas, strict=True
            ):
                completion = output.outputs[0]
                steered.assert_true(pair, prompt, alpha, completion.token_ids, completion.tuco_norms)
        plain = llm.generate(prompts, greedy, scores=False)
        scored = llm.generate(prompts, greedy)
    for a, b in zip(plain, scored, strict=True):
        assert a.outputs[0].tuco is None
        assert list(a.outputs[0].token_ids) == list(b.outputs[0].token_ids)
