"""Steps of CUDA graphs, full and piecewise, on Model Runner V2, imitated on a CPU (``graphs_on_cpu``)."""

from typing import Any

import pytest
import steered
import tiny_models

SIZES = [4, 8, 16]
"""Tokens that graphs are for: fewer than a chunk of a prompt, and seldom what a step has by itself."""

ENGINE = {
    "dtype": "float32",
    "max_model_len": tiny_models.MAX_LEN,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 << 20,
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
    "seed": 0,
    "disable_log_stats": False,
}
GREEDY = {"temperature": 0.0, "ignore_eos": True}


def asked(on_v2, models, requests: list[dict[str, Any]], **engine_args: Any) -> dict[str, Any]:
    """What graphs' steps give ``requests``, cold and from the prefix cache."""
    args = {"enforce_eager": True, **ENGINE, **engine_args}
    spec = {"pt": models[0], "ft": models[1], "engine_args": args, "generate": requests, "graphs": SIZES}
    return on_v2(spec)


def mixed(count: int = 6) -> list[dict[str, Any]]:
    """Prompts of many lengths. A third are plain and go on alone when the others have ended."""
    prompts, alphas = steered.requests(count, longest=30, seed=2)
    return [
        {"prompt": prompt, "alpha": None, **GREEDY, "max_tokens": 8}
        if place % 3 == 2
        else {"prompt": prompt, "alpha": alpha, **GREEDY, "max_tokens": 4}
        for place, (prompt, alpha) in enumerate(zip(prompts, alphas, strict=True))
    ]


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        ("mistral_windowed_ft", False),
        pytest.param("mixtral", False, marks=pytest.mark.slow),  # NaN would choose experts
        pytest.param("qwen3", True, marks=pytest.mark.slow),
    ],
)
def test_a_mixed_batch(name, compiled, pair_dirs, on_v2) -> None:
    pair, requests = pair_dirs(name, "float32"), mixed()
    answer = asked(on_v2, pair, requests, enforce_eager=not compiled)
    for kind in ("FULL", "FULL padded", "PIECEWISE", "PIECEWISE padded", "unpadded"):
        assert answer["steps"].get(kind, 0) > 0, f"no step was {kind}: {answer['steps']}"
    for completions in answer["rounds"]:
        steered.assert_round_is_true(pair, requests, completions)


def test_alpha_in_some_layers(pair_dirs, on_v2) -> None:
    """Alone they have no graph; beside others that need PT in all layers they have that one."""
    pair = pair_dirs("llama_mha", "float32")
    requests = mixed(3)
    requests[0] |= {"alpha": steered.RANGED[0], "tuco": False, "max_tokens": 7}
    requests[1] |= {"alpha": 1.0, "max_tokens": 3}
    answer = asked(on_v2, pair, requests)
    assert answer["steps"]["PIECEWISE"] > 0
    assert answer["steps"]["unpadded"] > 4
    for completions in answer["rounds"]:
        steered.assert_round_is_true(pair, requests, completions)


def test_speculated(pair_dirs, on_v2) -> None:
    """Several rows of a request, and numbers of them that differ."""
    pair = pair_dirs("llama_mha", "float32")
    requests = mixed()
    for request in requests:
        request |= {"prompt": (request["prompt"][:9] * 8)[:40], "max_tokens": 2 * request["max_tokens"]}
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    answer = asked(on_v2, pair, requests, speculative_config=ngram)
    assert answer["counters"]["vllm:spec_decode_num_accepted_tokens"] > 0
    assert answer["steps"]["PIECEWISE padded"] > 0
    for completions in answer["rounds"]:
        steered.assert_round_is_true(pair, requests, completions)


def test_adapters(models_of, on_v2) -> None:
    """Full graphs where nobody needs PT; none of PT's rows, which stand behind the tokens."""
    pair, models = models_of("adapter", "llama")
    requests = mixed(3)
    answer = asked(on_v2, models, requests)
    assert answer["steps"]["FULL"] > 0
    for completions in answer["rounds"]:
        steered.assert_round_is_true(pair, requests, completions)
