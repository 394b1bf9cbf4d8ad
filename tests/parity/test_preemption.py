"""Scores survive preemption: a KV cache far too small for the requests that run at once."""

import tiny_models
import torch
from truth import assert_close

from tuco_vllm.config import resolve_pair
from tuco_vllm.engine.scorer import Scorer


def test_preempted_prompts_score_the_same(pair_dirs) -> None:
    pair = pair_dirs("llama", "float32")
    scorer = Scorer(
        resolve_pair(*pair),
        dtype="float32",
        enforce_eager=True,
        max_model_len=tiny_models.MAX_LEN,
        block_size=32,
        num_gpu_blocks_override=14,  # one prompt of the longest takes 8
        long_prefill_token_threshold=32,  # so that all running requests grow together, and collide
        max_num_seqs=8,
        disable_log_stats=False,
        kv_cache_memory_bytes=64 << 20,
    )
    try:
        prompts = [prompt for seed in range(12) for prompt in tiny_models.prompts(2, seed=seed)]
        norms = torch.stack([norms for _, norms in scorer.stream(enumerate(prompts))])
        preemptions = [m.value for m in scorer.engine.get_metrics() if m.name == "vllm:num_preemptions"]
    finally:
        scorer.close()
    assert sum(preemptions) > 0, "nothing was preempted: this test tested nothing"
    assert_close(norms, pair, prompts, "float32")
