"""Engines of pairs that vLLM's Transformers backend runs, in a process that does only this.

The backend changes Hugging Face's class of a model, for its process: where an engine of a family has run, no
oracle of it can be built any more. What comes back is in NumPy's arrays, as ``v2_on_cpu``'s.
"""

import os
from contextlib import closing
from typing import Any

ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 256,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 << 20,
    "max_num_batched_tokens": 48,  # far below a prompt's length: prefill is chunked
    "max_num_seqs": 16,
}


def prepare() -> None:
    """Once, before vllm is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import torch

    torch.set_num_threads(1)  # see engines.in_this_process


def scores(pair: tuple[str, str], rounds: list[list[list[int]]], **engine_args: Any) -> list[Any]:
    """Norms ``[N, L, 7]`` of each round of prompts."""
    import torch

    from tuco_vllm.config import resolve_pair
    from tuco_vllm.engine.scorer import Scorer

    with closing(Scorer(resolve_pair(*pair), **{**ENGINE, **engine_args})) as scorer:
        streams = [scorer.stream(enumerate(prompts)) for prompts in rounds]
        return [torch.stack([norms for _, norms in stream]).numpy() for stream in streams]


def completions(
    pair: tuple[str, str], prompts: list[list[int]], alphas: list[Any], ranged: list[Any], **engine_args: Any
) -> list[Any]:
    """Of two rounds each prompt's greedy tokens and norms ``[n, L, 7]``; then without scores the tokens, of
    plain requests and under the ``ranged`` alphas."""
    from vllm import SamplingParams

    from tuco_vllm import TucoLLM

    greedy = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    with TucoLLM(*pair, task="generate", **{**ENGINE, **engine_args}) as llm:
        steered = [llm.generate(prompts, greedy, alphas) for _ in range(2)]
        unscored = [llm.generate(prompts, greedy, each, scores=False) for each in (1.0, ranged)]
    first, again = (
        [(list(o.outputs[0].token_ids), o.outputs[0].tuco_norms) for o in outputs] for outputs in steered
    )
    return [first, again, *([list(o.outputs[0].token_ids) for o in outputs] for outputs in unscored)]
